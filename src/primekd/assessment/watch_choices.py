"""Benchmarks of choices while a student learns: one line a benchmark in its text log, whenever it is validated."""

from transformers import TrainerCallback

from primekd.assessment.likelihood import score_choices
from primekd.config import Profile
from primekd.models import load_tokenizer
from primekd.tasks.load import load_items
from primekd.training.speed import TextLog

SHORT = {"hellaswag": "hella"}  # the name that published logs have


class ChoicesCallback(TrainerCallback):
    """Scores the first `pretrain.choices` items of each benchmark of a profile, and writes shares of right choices."""

    def __init__(self, profile: Profile, log: TextLog):
        self._items, self._measure = load_items(profile, "test", profile.pretrain.choices), profile.assess.choose_by
        self._log, self._batch = log, profile.assess.batch_size
        self._tokenizer = load_tokenizer(profile.student.speaker)

    def on_evaluate(self, args, state, control, model=None, **kwargs) -> None:
        rows = score_choices(model.model, self._items, self._tokenizer, self._batch)  # inside the objective
        right: dict[str, list[bool]] = {}
        for row in rows:
            right.setdefault(SHORT.get(row.benchmark, row.benchmark), []).append(row.right(self._measure))
        self._log.add(state.global_step, {name: sum(values) / len(values) for name, values in right.items()})
