"""Asking control, students and teacher one question, answers streamed: one loaded base whose adapters are switched, or
students from scratch, which go on with plain text as they do in their assessment."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from primekd.assessment.reading import EXTRACTORS
from primekd.assessment.serving import MERGED, serving_folder
from primekd.assessment.stream import Reply, Stream
from primekd.assessment.students import require_control
from primekd.assessment.tokens import Token, tokens_of
from primekd.capture.primings import priming_of
from primekd.config import CONTROL, TEACHER, Arm, Profile, arms_of, get_arm, how_to_train
from primekd.foundation import MANIFEST, UserError, read_json, relative_name
from primekd.models import TEXT, Priming, Prompt, build_prompt, is_present, load_tokenizer, require_same_tokenizer
from primekd.models.loading import refuse_too_long
from primekd.signals.rows import DenseRows
from primekd.tasks import NumberTask, task_of
from primekd.tasks.text import end_of_text
from primekd.teachers.protocol import Sampling, probed

STREAMING = ("transformers", "llamacpp")  # engines that run in this process and can be overheard


def read_as(reply: Reply) -> list[str]:
    """What each extractor reads of an answer."""
    return [f"{extractor}: {value}" for extractor, value in reply.values.items()]


class Asker:
    """Control, trained students and teacher of a profile. What is asked is loaded when first asked, and stays. Raises
    UserError if students of this profile have neither a base beside which they could be asked nor read plain text."""

    def __init__(self, profile: Profile):
        self.of_text = bool(profile.student.from_scratch and profile.pretrain)
        if not self.of_text:
            require_control(profile)
        self.profile, self.arms, self._whole = profile, arms_of(profile), dict[str, Any]()
        self._extractors = EXTRACTORS if isinstance(task_of(profile.data), NumberTask) else ()

    @property
    def trained(self) -> list[str]:
        """The arms that have a student, in their order."""
        return [name for name in self.arms if not self.missing(name)]

    def missing(self, name: str) -> str:
        """What is to be done before a student, or a control, can be asked; empty where it can."""
        there = name == CONTROL and not self.of_text  # a pretrained base needs no training
        there = there or (self.profile.student_folder(name) / MANIFEST).is_file()
        return "" if there else how_to_train(name, self.profile)

    def require(self, name: str) -> None:
        """Raises UserError if an arm has no trained student, or there is no such arm or trained control."""
        if todo := self.missing(name):
            raise UserError(f"{relative_name(self.profile.student_folder(name))} has no student: {todo}.")

    @property
    def no_teacher(self) -> str:
        """Why the teacher cannot be asked here, in one sentence; empty where it can."""
        teacher = self.profile.teacher
        if teacher.engine not in STREAMING:
            return f"The playground does not open the engine {teacher.engine}."
        return "" if is_present(teacher.model) else "Its model is not here: run inference/get_models.ipynb."

    @property
    def primed(self) -> dict[str, Arm]:
        """The arms whose teacher reads a priming text."""
        return {name: arm for name, arm in self.arms.items() if arm.priming}

    def priming(self, arm: str) -> Priming | None:
        """What the teacher reads under an arm."""
        return priming_of(get_arm(arm), self.profile.teacher)

    def own_priming(self, text: str) -> Priming:
        """A text of one's own, placed as the profile places primings. Raises UserError if it is empty."""
        teacher = self.profile.teacher
        if not text.strip():
            raise UserError("There is no priming text of your own: type one, or choose another priming.")
        return Priming(text.strip(), teacher.priming_placement, teacher.priming_mode)

    def load(self) -> None:
        """Loads all that is trained, if it is not loaded yet. Raises UserError if something cannot be."""
        for name in (CONTROL, *self.trained):
            if not self.missing(name):
                self._engine(name)

    def stream(self, name: str, question: str, priming: Priming | None = None) -> Stream:
        """The greedy answer of `control`, `teacher` (who reads the `priming`) or a student; iterate before the next is
        asked for. Raises UserError if there is no question, model or trained student, or a text cannot be in a prompt.
        """
        if not question.strip():
            raise UserError("There is no question: type one.")
        if name == TEACHER:
            self._require_teacher()
        else:
            self.require(name)
        tokenizer = load_tokenizer(self.profile.teacher if name == TEACHER else self.profile.student)
        prompt = self._prompt(tokenizer, question, priming if name == TEACHER else None)
        engine, limit = self._engine(name), self.profile.max_new_tokens
        sampling = Sampling(limit)
        if self.of_text:
            sampling = Sampling(limit, ends=frozenset({end_of_text(tokenizer)}))
            lengths = {name: len(prompt) + limit}
            refuse_too_long(engine.model, lengths, "the question and max_new_tokens make", "ask a shorter one")
        return Stream(name, question, tokenizer, prompt, engine, sampling, self._extractors)

    def _prompt(self, tokenizer, question: str, priming: Priming | None) -> Prompt:
        return build_prompt(tokenizer, [{"role": TEXT, "content": question}] if self.of_text else question, priming)

    def _engine(self, name: str):
        """What answers under a name."""
        if name == TEACHER:
            return self._teacher
        if self.of_text:
            if name not in self._whole:
                from primekd.assessment.as_trained import AsTrained

                folder = self.profile.student_folder(name) / "model"
                self._whole[name] = probed(AsTrained.load(folder, self.profile.scoring_dtype, 1))
            return self._whole[name]
        engine, adapters = self._base
        # The head is what a student's logits are made with: where an adapter changes it, it is switched as well.
        engine._output = adapters.wear(None if name == CONTROL else name)
        engine.__dict__.pop("_head", None)
        return engine

    def tokens(self, stream: Stream, priming: Priming | None = None) -> list[Token]:
        """An answer token by token, beside what the teacher would have written there under a priming. `stream`: the
        last one, ended. Raises UserError if the teacher cannot be asked, or has other tokens."""
        self._require_teacher()
        require_same_tokenizer(self.profile.teacher, self.profile.student)
        engine, tokenizer = self._engine(stream.name), load_tokenizer(self.profile.student)
        ids = stream.reply.ids
        [own] = engine.score([stream.prompt], [ids], "logits")  # (T, V)
        asked = self._prompt(load_tokenizer(self.profile.teacher), stream.question, priming)
        [taught] = self._teacher.score([asked], [ids], "logits")
        return tokens_of(tokenizer, ids, DenseRows(taught.float().cpu()), {stream.name: DenseRows(own.float().cpu())})

    def _require_teacher(self) -> None:
        if self.no_teacher:
            raise UserError(f"The teacher cannot be asked: {self.no_teacher}")

    @cached_property
    def _teacher(self):
        from primekd.teachers import open_engine

        return probed(open_engine(self.profile))

    @cached_property
    def _base(self):
        """The student's base in an engine, and the adapters of all that are trained."""
        from primekd.models.switched import SwitchedAdapters
        from primekd.teachers.transformers_engine import TransformersEngine

        student, dtype = self.profile.student, self.profile.scoring_dtype
        adapters = {n: (self.profile.student_folder(n) / "adapter", is_merged(self.profile, n)) for n in self.trained}
        rounded = None if dtype == student.dtype else student.dtype
        exact = "float32" if any(merged for _, merged in adapters.values()) else dtype
        tokenizer = load_tokenizer(student)
        engine = TransformersEngine(student.model, rounded or exact, 1, None, student.quantization, tokenizer)
        switched = SwitchedAdapters(engine.model, student.model, dtype, adapters, rounded)
        engine.dtype = dtype
        engine._output = switched.wear(None)
        return probed(engine), switched


def is_merged(profile: Profile, name: str) -> bool:
    """Whether a student's adapter is merged: as the assessment has chosen, beside the weights where it has not yet."""
    if profile.student.quantization:
        return False
    path = serving_folder(profile, name) / "served.json"
    return profile.scoring_dtype == "float32" or (path.is_file() and read_json(path)["adapter"] == MERGED)


def ask(
    profile: Profile, question: str, strategies: Sequence[str] | None = None, asker: Asker | None = None
) -> list[Reply]:
    """Greedy answers of the control and of students; for None of all, and of the teacher where it can be asked here.
    Raises UserError if one is not trained."""
    asker = asker or Asker(profile)
    names = asker.trained if strategies is None else list(strategies)
    teacher = [] if strategies is not None or asker.no_teacher else [TEACHER]
    replies = []
    for name in (CONTROL, *names):
        asker.require(name)
    for name in (CONTROL, *names, *teacher):
        stream = asker.stream(name, question)
        for _ in stream:
            pass
        replies.append(stream.reply)
    return replies
