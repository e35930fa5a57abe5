"""What heads look at: each number against its definition, students beside the control, and no map that stays."""

import gc
import math
import weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import save_llama

from primekd.assessment.inside.attention import (
    BETWEEN,
    METRICS,
    SHARP,
    HeadReader,
    compare_heads,
    compare_rows,
    crop_maps,
    head_metrics,
    induction,
    measure_induction,
    measure_pairs,
    open_side_by_side,
    read_heads,
    read_maps,
)
from primekd.config import LoraSettings
from primekd.foundation.errors import UserError
from primekd.models.served import load_beside
from primekd.models.students import lora_model, save_adapter

IDS = [5, 9, 17, 9, 5, 30, 41, 9, 2, 17, 9, 5]
LORA = LoraSettings(rank=2, alpha=4, target_modules="all-linear")


def causal(heads: int, size: int, seed: int = 0) -> torch.Tensor:
    scores = 3 * torch.randn(heads, size, size, generator=torch.Generator().manual_seed(seed))
    return scores.masked_fill(torch.ones(size, size).triu(1).bool(), -math.inf).softmax(-1)


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer) -> str:
    return save_llama(tmp_path_factory.mktemp("base"), tokenizer, seed=3)


@pytest.fixture(scope="module")
def students(base, tmp_path_factory) -> dict[str, Path]:
    folders = {}
    for number, name in enumerate(("ai-KD", "base-KD-seed1", "teacher-KD")):
        student = lora_model(base, "float32", LORA, seed=number)
        with torch.no_grad():
            for key, parameter in student.named_parameters():
                if "lora_B" in key:
                    parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(number))
        folder = tmp_path_factory.mktemp(name)
        save_adapter(student, folder, base)
        folders[name] = folder / "adapter"
    return folders


def by_definition(map_T_T: list[list[float]]) -> dict[str, float]:
    """The numbers of one head's map, query by query, in float64."""
    found: dict[str, list[float]] = {name: [] for name in METRICS}
    entropy = lambda row: -sum(p * math.log(p) for p in row if p > 0)  # noqa: E731
    for i, row in enumerate(map_T_T):
        if i == 0:
            continue
        assert sum(row[: i + 1]) == pytest.approx(1, abs=1e-5) and not any(row[i + 1 :])
        found["entropy"].append(entropy(row) / math.log(i + 1))
        if i > 1:
            rest = [p / sum(row[1:]) for p in row[1:]]
            found["entropy_rest"].append(entropy(rest) / math.log(i))
        found["first"].append(row[0])
        found["diagonal"].append(row[i])
        found["previous"].append(row[i - 1])
        found["distance"].append(sum(p * (i - j) for j, p in enumerate(row)))
        found["sharp"].append(sum(p for p in row if p > SHARP))
    return {name: sum(values) / len(values) for name, values in found.items()}


def test_each_number_is_its_definition():
    maps = causal(heads=3, size=9)
    for own, row in zip(maps.double().tolist(), head_metrics(maps), strict=True):
        assert dict(zip(METRICS, row.tolist(), strict=True)) == pytest.approx(by_definition(own), rel=1e-5)
    alike = torch.ones(1, 6, 6).tril() / torch.arange(1, 7)[:, None]
    one_place = torch.eye(6)[None].clone()
    numbers = [dict(zip(METRICS, head_metrics(m)[0].tolist(), strict=True)) for m in (alike, one_place)]
    assert numbers[0]["entropy"] == numbers[0]["entropy_rest"] == pytest.approx(1)
    assert (numbers[1]["entropy"], numbers[1]["diagonal"], numbers[1]["distance"], numbers[1]["sharp"]) == (0, 1, 0, 1)
    with pytest.raises(ValueError, match="no text to attend to"):
        head_metrics(causal(1, 2))


def test_all_mass_on_the_first_token_leaves_nothing_and_no_nan():
    sink = torch.zeros(1, 5, 5)
    sink[..., 0] = 1
    numbers = dict(zip(METRICS, head_metrics(sink)[0].tolist(), strict=True))
    assert numbers["entropy"] == numbers["entropy_rest"] == 0 and numbers["first"] == 1


def test_what_two_maps_have_in_common():
    one, two = causal(2, 8, seed=0), causal(2, 8, seed=1)
    moved, cosine = compare_heads(one, two).T
    for head in range(2):
        by_query = [0.5 * sum(abs(a - b) for a, b in zip(*rows, strict=True))
                    for rows in zip(one[head].tolist(), two[head].tolist(), strict=True)]  # fmt: skip
        assert float(moved[head]) == pytest.approx(sum(by_query[1:]) / 7, rel=1e-5)
        a, b = one[head].flatten(), two[head].flatten()
        assert float(cosine[head]) == pytest.approx(float(a @ b / (a.norm() * b.norm())), rel=1e-5)
    assert compare_heads(one, one)[:, 0].tolist() == [0, 0]


def test_a_head_that_looks_behind_the_earlier_occurrence_has_an_induction_score_of_one():
    half, size = 4, 8
    weights = torch.zeros(1, 2, size, size)
    for k in range(half - 1):
        weights[0, 0, half + k, k + 1] = 1.0
        weights[0, 1, half + k, k] = 1.0  # the occurrence itself: no induction
    assert induction(weights)[0, :, 0].tolist() == [1.0, 0.0]


def test_students_beside_the_control_read_as_they_do_alone(base, students):
    together = open_side_by_side(base, "float32", students)
    names = list(students)
    found = read_heads(together, names, IDS)  # (1 + 3, layers, H, metrics)
    assert found.shape[0] == 4 and found.shape[-1] == len(METRICS) + len(BETWEEN)
    assert found[0, ..., -2].abs().max() == 0 and torch.allclose(found[0, ..., -1], torch.ones(()))
    control = None
    for row, folder in enumerate([None, *students.values()]):
        from primekd.models import load_model

        model = load_beside(base, "float32", folder) if folder else load_model(base, "float32")
        model.set_attn_implementation("eager")
        with torch.inference_mode():
            maps = model(torch.tensor([IDS]), output_attentions=True).attentions
        control = control or maps
        for layer, own in enumerate(maps):
            want = torch.cat([head_metrics(own[0]), compare_heads(own[0], control[layer][0])], -1)
            assert torch.allclose(found[row, layer], want, atol=2e-5)
    assert (found[1:, ..., -2] > 1e-3).all()  # adapters of some size move every head
    assert together.base.config._attn_implementation != "heads-read"


def test_more_students_than_share_a_batch_give_the_same(base, students, monkeypatch):
    together = open_side_by_side(base, "float32", students)
    whole = read_heads(together, list(students), IDS)
    monkeypatch.setattr("primekd.assessment.inside.attention.TOGETHER", 2)
    assert torch.allclose(read_heads(together, list(students), IDS), whole, atol=1e-6)
    alone = open_side_by_side(base, "float32", {})
    assert torch.allclose(read_heads(alone, [], IDS), whole[:1], atol=1e-6)


def test_two_students_are_held_against_each_other_whatever_the_control_is(base, students):
    together, names = open_side_by_side(base, "float32", students), list(students)
    pairs = [(names[0], names[1]), (names[2], names[1]), (names[1], names[1])]
    found = measure_pairs(together, pairs, IDS)
    for place, pair in enumerate(pairs):
        maps = []
        for name in pair:
            model = load_beside(base, "float32", students[name])
            model.set_attn_implementation("eager")
            with torch.inference_mode():
                maps.append(model(torch.tensor([IDS]), output_attentions=True).attentions)
        for layer, (one, other) in enumerate(zip(*maps, strict=True)):
            assert torch.allclose(found[place, layer], compare_heads(one[0], other[0]), atol=2e-5)
    assert (found[:2, ..., 0] > 1e-3).all() and found[2, ..., 0].abs().max() < 1e-6


def test_random_texts_are_the_same_for_all_and_twice(base, students):
    together, names = open_side_by_side(base, "float32", students), list(students)
    first, again = (measure_induction(together, names, range(10, 60), seed) for seed in (1, 1))
    assert torch.equal(first, again) and first.shape[1] == 4 and first.shape[-1] == 1
    assert not torch.equal(first, measure_induction(together, names, range(10, 60), 2))
    maps = crop_maps(together, names, IDS, 5)
    assert maps.dtype == torch.uint8 and maps.shape[-2:] == (5, 5) and maps[..., 0, 0].min() == 255


def test_capped_scores_are_refused_and_the_model_is_named():
    module = SimpleNamespace(config=SimpleNamespace(name_or_path="gemma"))
    with pytest.raises(UserError, match="gemma caps its attention scores.*leave `inside` out"):
        HeadReader(read_maps)(module, *[torch.zeros(1, 2, 3, 4)] * 3, None, softcap=50.0)


@pytest.mark.parametrize("reduces", [read_maps, partial(compare_rows, places=[[0, 1], [1, 0]])])
def test_at_no_time_do_the_maps_of_two_layers_live(base, students, reduces):
    """So memory does not grow with the layers: what a layer leaves behind are numbers."""
    together, seen, live = open_side_by_side(base, "float32", students), [], []

    def reduce(weights):
        gc.collect()
        live.append(sum(ref() is not None for ref in seen))
        seen.append(weakref.ref(weights))
        return reduces(weights)

    read_heads(together, list(students)[:1], IDS, reduce)
    assert len(seen) > 1 and live == [0] * len(seen)
