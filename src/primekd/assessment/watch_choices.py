"""Benchmarks of choices while a student learns: one line a benchmark in its text log, whenever it is validated."""

from transformers import TrainerCallback

from primekd.assessment.as_trained import AsTrained
from primekd.assessment.likelihood import deciding, encode_all, with_raw
from primekd.config import Profile
from primekd.models import load_tokenizer
from primekd.tasks.load import load_items
from primekd.training.speed import TextLog

SHORT = {"hellaswag": "hella"}  # the name that published logs have


class ChoicesCallback(TrainerCallback):
    """Writes shares of right choices among the first `pretrain.choices` items, of HellaSwag by RAW's measure too.
    Raises UserError before the first step if an item is longer than the student's context."""

    def __init__(self, profile: Profile, log: TextLog):
        self._items, self._log = load_items(profile, "test", profile.pretrain.choices), log
        self._choose_by, self._batch = profile.assess.choose_by, profile.assess.batch_size
        self._tokenizer = load_tokenizer(profile.student.speaker)

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        encode_all(model.model, self._tokenizer, self._items)

    def on_evaluate(self, args, state, control, model=None, **kwargs) -> None:
        rows = with_raw(AsTrained.inside(model, self._tokenizer, self._batch), self._items, lambda count: None)
        right: dict[str, list[bool]] = {}
        for row in rows:
            measure = deciding(row.benchmark, self._choose_by)
            right.setdefault(SHORT.get(row.benchmark, row.benchmark), []).append(row.right(measure))
        self._log.add(state.global_step, {name: sum(values) / len(values) for name, values in right.items()})
