"""GSM-Symbolic: grade-school problems drawn from templates. Items of one template are no independent draws.

The files that were published with it are data sets of GSM8K's form, and read by that task."""

import contextlib
import hashlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from random import Random
from types import ModuleType

from primekd.config import DataConfig
from primekd.foundation.errors import UserError
from primekd.tasks.gsm8k import GSM8K
from primekd.tasks.numbers import parse_answer
from primekd.tasks.protocol import Item
from primekd.tasks.splits import BUCKETS, bucket_of


class GSMSymbolic(GSM8K):
    """Items generated from the templates that the profile names."""

    def items(self, data: DataConfig, split: str, count: int, seed: int) -> list[Item]:
        return generate_gsm_symbolic(data.templates, split, count, seed, data.difficulty)

    def cluster(self, item_id: str) -> str:
        """The template: what a model learned of one of its items, it knows of all."""
        generated = re.fullmatch(r"(gsm-symbolic-[0-9]+)-[0-9]+", item_id)
        return generated[1] if generated else super().cluster(item_id)


@contextlib.contextmanager
def without_init(package: str, *subpackages: str) -> Iterator[None]:
    """Within it modules of a package are imported without its own __init__ and those of some subpackages.

    reasoning-gym's import every data set that it has, and with them a dozen packages that nothing here uses. Nothing is
    left behind: whoever imports the package afterwards gets all of it. Raises UserError if it is not installed."""
    spec = importlib.util.find_spec(package)  # finds it, runs nothing of it
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{package} is not installed: pip install --no-deps -r requirements-no-deps.txt.")
    (folder,) = spec.submodule_search_locations
    were = {name: sys.modules.pop(name) for name in _modules_of(package)}
    for name, path in ((package, folder), *((f"{package}.{sub}", f"{folder}/{sub}") for sub in subpackages)):
        sys.modules[name] = module = ModuleType(name)
        module.__path__ = [path]
    try:
        yield
    finally:
        for name in _modules_of(package):
            del sys.modules[name]
        sys.modules.update(were)


def _modules_of(package: str) -> list[str]:
    return [name for name in sys.modules if name == package or name.startswith(f"{package}.")]


@cache
def _generators() -> dict[int, Callable[[Random, float], dict]]:
    """The templates of reasoning-gym by their numbers."""
    with without_init("reasoning_gym", "arithmetic", "coaching"):
        from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import GSMSymbolicDataset, GSMSymbolicDatasetConfig

        return GSMSymbolicDataset(GSMSymbolicDatasetConfig(seed=0, size=1)).generators


def generate_gsm_symbolic(templates: Sequence[int], split: str, count: int, seed: int, difficulty: float) -> list[Item]:
    """`count` GSM-Symbolic items from reasoning-gym's templates, in turn, all different, of one split.

    Source: Mirzadeh et al., "GSM-Symbolic", arXiv 2410.05229, in reasoning-gym's implementation. Raises UserError if a
    template does not exist, or the templates hold too few different questions for the split."""
    generators = _generators()
    if unknown := [t for t in templates if t not in generators]:
        raise UserError(f"reasoning-gym has no GSM-Symbolic template {unknown}: mend data.templates in the profile.")
    items: list[Item] = []
    seen: set[str] = set()
    misses = dict.fromkeys(templates, 0)  # draws since the template's last new question; 2,000 means exhausted
    draw = 0
    while len(items) < count:
        live = [t for t in templates if misses[t] < 2000]
        if not live:
            raise UserError(
                f"The templates {list(templates)} hold only {len(items)} different questions for the split {split!r}; "
                f"{count} were asked for. Ask for fewer items or name more templates."
            )
        template = live[draw % len(live)]
        draw_seed = int.from_bytes(hashlib.sha256(f"{split}/{seed}/{draw}".encode()).digest()[:6], "big")
        draw += 1
        example = generators[template](Random(draw_seed), difficulty)
        question = example["question"].strip()
        if question in seen or bucket_of(question) not in BUCKETS[split]:
            misses[template] += 1
            continue
        misses[template] = 0
        seen.add(question)
        solution = example["metadata"]["answer_cot"].strip()
        items.append(Item(f"gsm-symbolic-{template}-{draw_seed}", question, solution, parse_answer(example["answer"])))
    return items


TASK = GSMSymbolic()
