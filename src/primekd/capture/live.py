"""The profile's teacher, asked while a student learns: what it reads is known before it is loaded."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from primekd.capture.jobs import identity_of, prompts_of, reads
from primekd.config import OWN, Arm, Profile, get_arm
from primekd.foundation import UserError, hash_json
from primekd.models import load_tokenizer
from primekd.signals import Asked, Codec, LiveSource, SignalRows, dense_codec
from primekd.tasks.protocol import Item, Unlabelled
from primekd.teachers import TeacherEngine, open_engine


class LiveTeacher:
    """A signal source whose teacher is loaded when it is first asked. It reads items under the prompt that the arm's
    signals come from, text as the student does. Raises UserError if it shows neither hidden states nor all logits."""

    def __init__(self, profile: Profile, arm: Arm, items: Sequence[Item | Unlabelled] | None = None):
        teacher = profile.teacher
        if not {"hidden", "logits"} & teacher.offers:
            raise UserError(f"{arm.name}: {teacher.engine} shows no whole distribution, which a live teacher needs.")
        self._profile, self._items = profile, items
        self._scored = arm if arm.signals == OWN else get_arm(arm.signals)
        self.codec: Codec = dense_codec(teacher.offers)
        prompt = {} if items is None else reads(self._scored, teacher)
        spec = prompt | identity_of(teacher) | {"codec": self.codec.describe()}
        self.manifest: dict[str, Any] = {"spec": spec, "spec_sha256": hash_json(spec), "shards": {}}

    @cached_property
    def engine(self) -> TeacherEngine:
        """The loaded teacher. Raises UserError if it cannot be loaded."""
        return open_engine(self._profile)

    @cached_property
    def _source(self) -> LiveSource:
        prompts = None
        if self._items is not None:
            asked = prompts_of(self._scored, self._profile.teacher, self._items)
            prompts = {item.id: prompt for item, prompt in zip(self._items, asked, strict=True)}
        vocabulary = len(load_tokenizer(self._profile.student))
        self.manifest["engine"] = self.engine.identity()
        return LiveSource(self.engine, vocabulary, prompts)

    def rows_of(self, asked: Sequence[Asked]) -> SignalRows | None:
        return self._source.rows_of(asked)

    @property
    def smaller(self) -> str:
        """What makes it take less of a GPU's memory, in the words of `gpu_memory`."""
        return "teacher.batch_size" + (", or set teacher.quantization: nf4," * (not self._profile.teacher.quantization))

    def close(self) -> None:
        """Frees the teacher, if it was loaded; asked once more it is loaded again."""
        self.__dict__.pop("_source", None)
        if engine := self.__dict__.pop("engine", None):
            engine.close()
