"""The task choices: agreement with lm-evaluation-harness item by item, bad input, summaries."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from conftest import POCKET, save_llama, small_profile
from pydantic import ValidationError

from primekd.assessment.likelihood import MEASURES, ChoiceRow, encode_choices, read_choices, score_choices, write_choices
from primekd.config import DataConfig
from primekd.config.data import BENCHMARKS
from primekd.foundation.errors import UserError
from primekd.foundation.stage_code import stage_code
from primekd.models import load_model
from primekd.statistics.choices import PUBLISHED, summarise_choices
from primekd.tasks import choices
from primekd.tasks.choices import OWN, OWN_SHOWN, ChoiceItem
from primekd.tasks.load import load_items, task_of
from primekd.tasks.splits import hash_items
from primekd.teachers.transformers_engine import TransformersEngine

ITEMS = 4  # of each benchmark; two-shot contexts are long


def data_of(*benchmarks: str, **changes) -> DataConfig:
    return DataConfig(task="choices", **{"source": "own", "benchmarks": benchmarks, "test_items": ITEMS} | changes)


def items_of(*benchmarks: str, **changes) -> list[ChoiceItem]:
    data = data_of(*benchmarks, **changes)
    return task_of(data).items(data, "test", data.test_items, 0)


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory, tokenizer):
    """A random Llama without padded columns, which the harness would let into its softmax."""
    folder = tmp_path_factory.mktemp("plain")
    model = load_model(save_llama(folder, tokenizer, seed=3), "float32")
    model.resize_token_embeddings(len(tokenizer))
    return model


# The harness, on the same items.

lm_eval_tasks = pytest.importorskip("lm_eval").__path__[0]


def official(benchmark: str) -> dict:
    """What the harness's own file says of a benchmark; of SNLI, which it has not, what it says of MNLI."""
    folder = Path(lm_eval_tasks) / "tasks"
    files = {"hellaswag": "hellaswag/hellaswag.yaml", "snli": "glue/mnli/default.yaml"}
    from lm_eval.utils import load_yaml_config

    return load_yaml_config(str(folder / files.get(benchmark, f"glue/{benchmark}/default.yaml")))


def harness_rows(benchmark: str, model, tokenizer, folder: Path, shots: int, tested: int = ITEMS) -> list[dict]:
    """The harness's samples: its own template, metrics and few-shot draws, on the project's own items as local files."""
    from lm_eval import simple_evaluate
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM

    lines = (OWN / f"{benchmark}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    files = {"train": lines[:OWN_SHOWN], "validation": lines[OWN_SHOWN : OWN_SHOWN + tested]}
    for side, rows in files.items():
        (folder / f"{side}.jsonl").write_text("".join(rows), encoding="utf-8")
    config = official(benchmark) | {
        "task": benchmark, "dataset_path": "json", "dataset_name": None, "validation_split": "validation",
        "dataset_kwargs": {"data_files": {side: str(folder / f"{side}.jsonl") for side in files}},
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }  # fmt: skip
    config.pop("tag", None)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8)
    task = ConfigurableTask(config=config, cache_dir=str(folder / "cache"))
    found = simple_evaluate(lm, tasks=[task], num_fewshot=shots, log_samples=True, bootstrap_iters=0)
    return found["samples"][benchmark]


def compare(rows: list[ChoiceRow], items: list[ChoiceItem], samples: list[dict], tolerance: float) -> None:
    assert len(rows) == len(items) == len(samples)
    for row, item, sample in zip(rows, items, samples, strict=True):
        asked = [(one["arg_0"], one["arg_1"]) for one in sample["arguments"].values()]
        assert asked == [(item.context, f" {choice}") for choice in item.choices]
        theirs = [float(value[0]) for value in (one[0] for one in sample["resps"])]
        assert row.loglikelihoods == pytest.approx(theirs, abs=tolerance), item.id
        assert (sample["acc"], sample["acc_norm"]) == (row.right("acc"), row.right("acc_norm")), item.id
        norm = [value / len(choice) for value, choice in zip(theirs, item.choices, strict=True)]
        assert row.chosen("acc") == theirs.index(max(theirs)) and row.chosen("acc_norm") == norm.index(max(norm))


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_every_item_is_as_likely_as_to_the_harness(benchmark, shots, plain_model, tokenizer, tmp_path):
    items = items_of(benchmark, shots=shots)
    rows = score_choices(plain_model, items, tokenizer, batch_size=3)
    compare(rows, items, harness_rows(benchmark, plain_model, tokenizer, tmp_path, shots), 2e-3)
