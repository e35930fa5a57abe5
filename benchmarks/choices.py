"""Scoring choices by likelihood: this project against lm-evaluation-harness, the same model on the same items.

Both go from texts to a log-likelihood for each choice, float32, in batches of one size. Items are the
project's own, which the harness asks with its own templates.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.timing import alternate, shown, spread
from primekd.assessment.likelihood import score_choices
from primekd.config import DataConfig, load_profile
from primekd.models import load_model, load_tokenizer
from primekd.tasks.choices import OWN, OWN_SHOWN, SHOTS_SEED, TASK, ChoiceItem
from primekd.teachers.transformers_engine import TransformersEngine

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

SETS = {"hellaswag": ("hellaswag", 0), "mnli": ("mnli", 0), "hellaswag, 2 shots": ("hellaswag", 2)}
BATCH = 16


def own_items(benchmark: str, shots: int, count: int) -> list[ChoiceItem]:
    """The project's items of a benchmark."""
    names = {"task": "choices", "source": "own", "benchmarks": (benchmark,)}
    return TASK.items(DataConfig(**names, shots=shots, test_items=max(2, count)), "test", count, 0)


def harness_task(benchmark: str, count: int) -> "ConfigurableTask":
    """The harness's own task of a benchmark, on those items; SNLI, which it has not, is asked as MNLI."""
    import lm_eval
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    lines = (OWN / f"{benchmark}.jsonl").read_text(encoding="utf-8").splitlines()
    sides = {"train": lines[:OWN_SHOWN], "validation": lines[OWN_SHOWN : OWN_SHOWN + count]}
    rows = {side: Dataset.from_list([json.loads(line) for line in own]) for side, own in sides.items()}
    named = {"hellaswag": "hellaswag/hellaswag.yaml", "snli": "glue/mnli/default.yaml"}
    tasks = Path(lm_eval.__file__).parent / "tasks"
    config = load_yaml(tasks / named.get(benchmark, f"glue/{benchmark}/default.yaml")) | {
        "task": benchmark, "custom_dataset": lambda **_: rows, "validation_split": "validation",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }  # fmt: skip
    config.pop("tag", None)
    return ConfigurableTask(config=config)


def harness_requests(benchmark: str, shots: int, count: int) -> list:
    """What the harness asks of a model: a request a choice, item by item."""
    task = harness_task(benchmark, count)
    task.set_config("num_fewshot", shots)
    task.set_fewshot_seed(SHOTS_SEED)
    task.build_all_requests()
    return task.instances


def measure(
    items: int = 24, profile: str = "pocket-plain", rounds: int = 3, budget_s: float = 45, say=print
) -> dict[str, Any]:
    """Seconds of both on each of SETS, their ratio, and the largest difference between two log-likelihoods.

    The base model of the profile's students; at most `items` of a set.
    """
    from lm_eval.models.huggingface import HFLM

    reference = load_profile(profile).student.model
    model, tokenizer = load_model(reference, "float32"), load_tokenizer(reference)
    model.resize_token_embeddings(len(tokenizer))  # padded columns would have a share of the harness's softmax
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH, device=str(model.device))
    engine = TransformersEngine.around(model, tokenizer, BATCH)  # both look at the model before the clock runs
    found = {}
    for name, (benchmark, shots) in SETS.items():
        asked, requests = own_items(benchmark, shots, items), harness_requests(benchmark, shots, items)
        said: dict[str, Sequence[float]] = {}

        def theirs(requests=requests, said=said) -> None:
            said["theirs"] = [value for value, _ in harness.loglikelihood(requests, disable_tqdm=True)]

        def ours(asked=asked, said=said) -> None:
            rows = score_choices(engine, asked)
            said["ours"] = [value for row in rows for value in row.loglikelihoods]

        times = alternate({"lm-evaluation-harness": theirs, "primekd": ours}, rounds, budget_s / len(SETS))
        ratios = [a / b for a, b in zip(*times.values(), strict=True)]
        apart = max(abs(a - b) for a, b in zip(said["theirs"], said["ours"], strict=True))
        found[name] = {
            "items": len(asked), "choices": len(requests), "seconds": {n: spread(x) for n, x in times.items()},
            "ratio": spread(ratios), "largest_difference_nats": apart,
        }  # fmt: skip
        say(f"{name}: {shown(found[name]['ratio'])} x as fast as lm-evaluation-harness")
    return {"profile": profile, "batch_size": BATCH, "sets": found}
