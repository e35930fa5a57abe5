"""The section `data`: which task is asked, and where its items come from."""

from typing import Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from primekd.config.section import Section

# Task -> where its items can come from, the first where a profile says nothing. Its file is `tasks/<task>.py`.
TASKS = {"gsm8k": ("hub", "jsonl"), "gsm-symbolic": ("gsm-symbolic",), "word-problems": ("jsonl",),
         "grammar": ("sentences", "hub", "jsonl", "m2", "ua-gec"), "choices": ("hub", "jsonl", "own"),
         "facts": ("own", "jsonl")}  # fmt: skip
UNTAUGHT = ("choices", "facts")  # tasks that nobody is taught: their models may learn from other texts
BENCHMARKS = ("hellaswag", "snli", "sst2", "mrpc", "qnli", "qqp", "rte", "cola", "mnli", "wnli")  # of the task choices


class DataConfig(Section):
    """The task, where its items come from and how many are used.

    The source `gsm-symbolic` draws from the named templates of reasoning-gym; `hub` reads openai/gsm8k or a set like it
    (GSM8K-Platinum, GSM-Plus, MGSM); `jsonl` reads `train_file` and `test_file` (the fields are those of the task's
    `item_of_row`). With `hub` such files stand in for the set where they are there: for machines without a network.
    Where a hub's set has no training side (Platinum), `train_dataset` names another set for it.
    The task `choices` takes at most so many items of each of its `benchmarks`, whose names stand for `{benchmark}` in
    names of files; `shots` solved items of the training side stand in front of each of its test items.
    Validation items are taken from the training side, after the training items; never from the test side."""

    task: str
    source: str
    train_items: int = Field(ge=0)  # 0 for the tasks UNTAUGHT alone
    validation_items: int = Field(ge=0)
    test_items: int = Field(ge=2)  # an interval over items needs two of them
    templates: tuple[int, ...] = ()
    languages: tuple[str, ...] = ("en", "de", "fr", "es")  # of the task grammar: others are left out
    benchmarks: tuple[str, ...] = ()
    shots: int = Field(0, ge=0)
    difficulty: float = 1.0
    hub_dataset: str = "openai/gsm8k"
    hub_config: str = "main"
    revision: str | None = None
    train_dataset: str | None = None
    train_config: str = "main"
    train_revision: str | None = None
    train_file: str | None = None
    test_file: str | None = None

    @model_validator(mode="before")
    @classmethod
    def named(cls, values: Any) -> Any:
        """A task without a source has its first one; a source alone may tell which of two tasks is meant."""
        if not isinstance(values, dict):
            return values
        task, source = values.get("task"), values.get("source")
        if source and task in (None, "gsm8k", "gsm-symbolic"):
            task = "gsm-symbolic" if source == "gsm-symbolic" else "gsm8k"
        elif isinstance(task, str) and not source:
            source = TASKS.get(task, ("hub",))[0]
        unasked = {"train_items": 0, "validation_items": 0} if task in UNTAUGHT else {}
        return unasked | values | {name: value for name, value in (("task", task), ("source", source)) if value}

    @model_validator(mode="after")
    def complete(self) -> "DataConfig":
        if self.task not in TASKS:
            raise ValueError(f"task {self.task!r} is none of {', '.join(TASKS)}")
        if self.source not in TASKS[self.task]:
            raise ValueError(f"source {self.source!r} is none of {', '.join(TASKS[self.task])}, which {self.task} has")
        if self.source == "gsm-symbolic" and not self.templates:
            raise ValueError("source gsm-symbolic needs templates: [numbers]")
        if self.source in ("jsonl", "m2") and not (self.test_file and (self.train_file or not self.train_items)):
            raise ValueError(f"source {self.source} needs train_file and test_file")
        if self.task == "choices":
            self._complete_choices()
        return self

    @field_validator("train_items", "validation_items")
    @classmethod
    def some(cls, value: int, info: ValidationInfo) -> int:
        """Items to learn from and to choose by, where a task is taught."""
        if not value and cls is DataConfig and info.data.get("task") not in UNTAUGHT:
            raise ValueError("must be greater than 0")
        return value

    def _complete_choices(self) -> None:
        if unknown := [name for name in self.benchmarks if name not in BENCHMARKS]:
            raise ValueError(f"benchmark {unknown[0]!r} is none of {', '.join(BENCHMARKS)}")
        if not self.benchmarks or len(set(self.benchmarks)) < len(self.benchmarks):
            raise ValueError(f"task choices needs benchmarks, each once: any of {', '.join(BENCHMARKS)}")
        several, local = len(self.benchmarks) > 1, self.source == "jsonl"
        if several and local and any("{benchmark}" not in name for name in (self.train_file, self.test_file) if name):
            raise ValueError("several benchmarks need {benchmark} in the names of train_file and test_file")
        if local and self.shots and not self.train_file:
            raise ValueError("shots are taken from the training side: name a train_file")
        if several and self.revision:
            raise ValueError("a revision is of one data set: name one benchmark, or leave it out")

    @property
    def task_module(self) -> str:
        return f"primekd.tasks.{self.task.replace('-', '_')}"

    def hub_side(self, side: str) -> tuple[str, str, str | None]:
        """The hub's data set, its configuration and revision, of the training or the test side."""
        if side == "train" and self.train_dataset:
            return self.train_dataset, self.train_config, self.train_revision
        return self.hub_dataset, self.hub_config, self.revision


class TransferConfig(DataConfig):
    """A second set of items that nobody trained on: `test_items` of its test side, and nothing else of it."""

    train_items: int = Field(0, ge=0, le=0)
    validation_items: int = Field(0, ge=0, le=0)
