"""Benchmarks of choices while a student learns: one line a benchmark in its text log, whenever it is validated."""

from dataclasses import replace

from transformers import TrainerCallback

from primekd.assessment.as_trained import AsTrained
from primekd.assessment.likelihood import RAW, score_choices
from primekd.config import Profile
from primekd.models import load_tokenizer
from primekd.tasks.load import load_items
from primekd.training.speed import TextLog

SHORT = {"hellaswag": "hella"}  # the name that published logs have


class ChoicesCallback(TrainerCallback):
    """Writes shares of right choices among the first `pretrain.choices` items, of HellaSwag by RAW's measure too."""

    def __init__(self, profile: Profile, log: TextLog):
        items, self._log = load_items(profile, "test", profile.pretrain.choices), log
        raw = [replace(x, benchmark=RAW, question=x.raw[0], choices=x.raw[1:]) for x in items if x.raw]
        self._items, self._measure, self._batch = items + raw, profile.assess.choose_by, profile.assess.batch_size
        self._tokenizer = load_tokenizer(profile.student.speaker)

    def on_evaluate(self, args, state, control, model=None, **kwargs) -> None:
        rows = score_choices(AsTrained.inside(model, self._tokenizer, self._batch), self._items)
        right: dict[str, list[bool]] = {}
        for row in rows:
            measure = "acc_token_norm" if row.benchmark == RAW else self._measure
            right.setdefault(SHORT.get(row.benchmark, row.benchmark), []).append(row.right(measure))
        self._log.add(state.global_step, {name: sum(values) / len(values) for name, values in right.items()})
