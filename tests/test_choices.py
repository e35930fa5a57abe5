"""The task choices: agreement with lm-evaluation-harness item by item, bad input, summaries."""

import json
import sys

import pytest
import torch
from conftest import POCKET, ROOT, save_llama, small_profile
from pydantic import ValidationError

sys.path.insert(0, str(ROOT))
pytest.importorskip("lm_eval")

from benchmarks.choices import harness_task, measure
from primekd.assessment.likelihood import (
    MEASURES,
    ChoiceRow,
    encode_choices,
    score_choices,
)
from primekd.config import CONTROL, DataConfig
from primekd.config.data import BENCHMARKS
from primekd.foundation.errors import UserError
from primekd.foundation.stage_code import stage_code
from primekd.foundation.tables import read_records, write_records
from primekd.models import load_model
from primekd.statistics.choices import PUBLISHED, benchmark_contrasts, summarise_choices
from primekd.tasks import choices
from primekd.tasks.choices import ChoiceItem
from primekd.tasks.load import load_items, task_of
from primekd.tasks.splits import hash_items
from primekd.teachers.transformers_engine import TransformersEngine

ITEMS = 4  # of each benchmark; two-shot contexts are long


def data_of(*benchmarks: str, **changes) -> DataConfig:
    given = {"task": "choices", "source": "own", "benchmarks": benchmarks, "test_items": ITEMS}
    return DataConfig(**given | changes)


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


def harness_samples(model, tokenizer, tested: int, shots: int, *tasks) -> dict[str, list[dict]]:
    """What the harness logs of each item, by task: its own templates, metrics and few-shot draws."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    for task in tasks:
        task.set_config("num_fewshot", None)  # a 0 of an earlier call would stand
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16, device="cpu")
    found = simple_evaluate(
        lm, tasks=list(tasks), num_fewshot=shots, limit=tested, log_samples=True, bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False),
    )  # fmt: skip
    return found["samples"]


@pytest.fixture(scope="module")
def harness_tasks():
    return [harness_task(benchmark, ITEMS) for benchmark in BENCHMARKS]


def compare(rows: list[ChoiceRow], items: list[ChoiceItem], samples: list[dict], tolerance: float) -> None:
    assert len(rows) == len(items) == len(samples)
    for row, item, sample in zip(rows, items, samples, strict=True):
        assert [tuple(one) for one in sample["arguments"]] == [(item.context, f" {choice}") for choice in item.choices]
        theirs = [response[0] for (response,) in sample["resps"]]
        assert row.loglikelihoods == pytest.approx(theirs, abs=tolerance), item.id
        assert (sample["acc"], sample["acc_norm"]) == (row.right("acc"), row.right("acc_norm")), item.id
        norm = [value / len(choice) for value, choice in zip(theirs, item.choices, strict=True)]
        assert row.chosen("acc") == theirs.index(max(theirs)) and row.chosen("acc_norm") == norm.index(max(norm))


@pytest.mark.parametrize("shots", [0, 2])
def test_every_item_is_as_likely_as_to_the_harness(shots, plain_model, tokenizer, harness_tasks):
    samples = harness_samples(plain_model, tokenizer, ITEMS, shots, *harness_tasks)
    items = items_of(*BENCHMARKS, shots=shots)
    rows = scored(plain_model, items, tokenizer, batch_size=7)
    for place, benchmark in enumerate(BENCHMARKS):
        own = slice(place * ITEMS, (place + 1) * ITEMS)
        assert {item.benchmark for item in items[own]} == {benchmark}
        compare(rows[own], items[own], samples[benchmark], 2e-3)


# What is scored, and how.


def scored(model, items, tokenizer, batch_size=32) -> list[ChoiceRow]:
    """Of a model as it is, such as one in training."""
    return score_choices(TransformersEngine.around(model, tokenizer, batch_size), items)


def by_hand(model, tokenizer, item: ChoiceItem) -> list[float]:
    """Each choice alone behind the context, its tokens' log-probabilities over the tokenizer's own columns."""
    context, found = tokenizer.encode(item.context), []
    for choice in item.choices:
        whole = tokenizer.encode(f"{item.context} {choice}")
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([whole])).logits[0, :, : len(tokenizer)].float()
        rows = logits[len(context) - 1 : -1].log_softmax(-1)
        found.append(float(rows.gather(1, torch.tensor(whole[len(context) :])[:, None]).double().sum()))
    return found


@pytest.mark.parametrize("whole_logits", [False, True])
def test_padded_columns_have_no_share_and_an_engine_scores_as_its_model_does(lively, tokenizer, whole_logits):
    engine, items = TransformersEngine(lively, "float32", batch_size=3), items_of("hellaswag", "rte", test_items=2)
    if whole_logits:  # of an architecture whose hidden states do not rebuild its logits
        engine.transform = None
    rows = score_choices(engine, items)
    assert [row.id for row in rows] == [item.id for item in items]
    for row, item in zip(rows, items, strict=True):
        assert row.loglikelihoods == pytest.approx(by_hand(engine.model, tokenizer, item), abs=2e-3)
        assert row.characters == tuple(map(len, item.choices))
    assert all(scored(engine.model, items, tokenizer)[0].loglikelihoods[i] == pytest.approx(value, abs=2e-3)
               for i, value in enumerate(rows[0].loglikelihoods))  # fmt: skip


def test_a_context_is_read_once_whatever_the_number_of_its_choices(plain_model, tokenizer):
    (item, *_), read = items_of("hellaswag", test_items=2), []
    hook = plain_model.get_decoder().embed_tokens.register_forward_hook(
        lambda module, ids, out: read.append(ids[0].numel())
    )
    try:
        scored(plain_model, [item], tokenizer)
    finally:
        hook.remove()
    context, choices = encode_choices(tokenizer, item)
    # The probes of `find_transform` and `branches` read a few dozen more.
    assert read[-1] <= len(context) + sum(len(choice) - 1 for choice in choices) < 4 * len(context)


def test_a_model_in_training_goes_on_as_it_was(plain_model, tokenizer):
    items, config = items_of("sst2", test_items=2), plain_model.generation_config
    expected = scored(plain_model, items, tokenizer)
    plain_model.train()
    attentions = [layer.self_attn for layer in plain_model.get_decoder().layers]
    for attention in attentions:
        attention.attention_dropout = 0.5
    try:
        assert scored(plain_model, items, tokenizer) == expected
        assert plain_model.training and plain_model.generation_config is config
        assert all(parameter.requires_grad and parameter.grad is None for parameter in plain_model.parameters())
    finally:
        plain_model.eval()
        for attention in attentions:
            attention.attention_dropout = 0.0


def made(context: str, *options: str) -> ChoiceItem:
    return ChoiceItem("made", context, options[0], options[0], "rte", options, 0)


def test_spaces_at_the_end_of_a_context_go_to_the_choices(tokenizer):
    spaced, plain = (encode_choices(tokenizer, made(text, "yes", "no")) for text in ("A cat.  ", "A cat."))
    assert spaced[0] == plain[0] == tokenizer.encode("A cat.")
    assert spaced[1] == [tokenizer.encode(f"A cat.   {choice}")[len(plain[0]) :] for choice in ("yes", "no")]
    assert plain[1] == [tokenizer.encode(f"A cat. {choice}")[len(plain[0]) :] for choice in ("yes", "no")]


def test_what_is_longer_than_the_models_context_is_refused(plain_model, tokenizer):
    fits = made(" ".join(["cat"] * 510), "yes yes", "no")  # 512 tokens, of which the last is not read
    assert len(scored(plain_model, [fits], tokenizer)) == 1
    too_long = made(" ".join(["cat"] * 600), "yes", "no")
    with pytest.raises(
        UserError, match="made: context and choice have 601 tokens, more than the model's context of 512"
    ):
        scored(plain_model, [too_long], tokenizer)


def row_of(values, tokens, characters, label=0, benchmark="hellaswag", name="a") -> ChoiceRow:
    return ChoiceRow(benchmark, name, label, tuple(values), tuple(tokens), tuple(characters))


def test_the_three_measures_are_told_apart():
    row = row_of((-4.0, -6.0, -9.0), (1, 2, 4), (8, 30, 20))
    assert [row.chosen(measure) for measure in MEASURES] == [0, 1, 2]
    assert row_of((-2.0, -2.0), (1, 1), (3, 3)).chosen("acc") == 0  # the first of equal ones


def test_rows_are_kept_to_the_last_digit_and_damaged_ones_refused(tmp_path, plain_model, tokenizer):
    rows = scored(plain_model, items_of("hellaswag", "snli", test_items=2), tokenizer)
    write_records(tmp_path / "choices.csv", ChoiceRow, rows)
    assert read_records(tmp_path / "choices.csv", ChoiceRow) == rows
    head, line = (tmp_path / "choices.csv").read_text().splitlines()[:2]
    name, item_id, label, values, tokens, characters = line.split(",")
    for damaged in (
        [name, item_id, "4", values, tokens, characters],
        [name, item_id, label, "nan 1 1 1", tokens, characters],
        [name, item_id, label, values, tokens + " 3", characters],
    ):
        (tmp_path / "choices.csv").write_text(f"{head}\n{','.join(damaged)}\n")
        with pytest.raises(UserError, match=r"choices\.csv row 2"):
            read_records(tmp_path / "choices.csv", ChoiceRow)


def test_summaries_have_intervals_the_majority_and_chance():
    right, wrong = ((-1.0, -2.0, -2.0, -2.0), (-2.0, -1.0, -2.0, -2.0))
    rows = [row_of(v, [1] * 4, [5] * 4, label=0, name=str(n)) for n, v in enumerate([right] * 3 + [wrong])]
    rows += [row_of((-1.0, -2.0), (1, 1), (2, 3), label, "rte", str(n)) for n, label in enumerate((1, 0, 1, 1, 0))]
    first, second = summarise_choices(rows)
    assert (first.benchmark, first.n, first.acc, first.acc_norm, first.majority, first.chance) == (
        "hellaswag", 4, 0.75, 0.75, 1.0, 0.25,
    )  # fmt: skip
    assert first.acc_low == pytest.approx(0.300642, abs=1e-6) and first.acc_high == pytest.approx(0.954413, abs=1e-6)
    assert (second.n, second.acc, second.acc_norm, second.majority, second.chance) == (5, 0.4, 0.4, 0.6, 0.5)
    assert {model: share for _, model, share, _ in PUBLISHED}["GPT-2 124M"] == 0.2955


def test_contrasts_on_each_benchmark_go_by_the_measure_that_decides_there():
    """The long choice has the greatest sum a character, the short one the greatest sum: of all but HellaSwag the latter
    decides, as in lm-evaluation-harness."""
    long, short = (-3.0, -2.0), (-1.0, -2.0)  # of choices with 9 characters and 2; right is the first

    def rows(values):
        return [row_of(values, (1, 1), (9, 2), 0, name, str(n)) for name in ("rte", "hellaswag") for n in range(8)]

    chosen = {"a-KD": rows(long), CONTROL: rows(short)}
    found = {row.benchmark: row for row in benchmark_contrasts(chosen, {("a-KD", CONTROL): "main"}, "harness")}
    assert found["rte"].difference == -1 and found["hellaswag"].difference == 0
    assert found["rte"].p == pytest.approx(2 / 2**8) and found["rte"].p_holm == pytest.approx(4 / 2**8)
    by_character = benchmark_contrasts(chosen, {("a-KD", CONTROL): "main"}, "acc_norm")
    assert all(row.difference == 0 for row in by_character)


# The project's own items.


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_own_items_are_many_balanced_and_not_shown_to_themselves(benchmark):
    items, shown = items_of(benchmark, test_items=99), items_of(benchmark, test_items=99, shots=2)
    labels = [item.label for item in items]
    counts = {label: labels.count(label) for label in range(len(items[0].choices))}
    assert len(items) == (24 if benchmark == "hellaswag" else 12) and len(set(counts.values())) == 1
    assert len({item.context for item in items}) == len(items)
    for plain, item in zip(items, shown, strict=True):
        before = item.context.removesuffix(plain.context)
        assert item.context.endswith(f"\n\n{plain.context}") and before.count("\n\n") == 2
        assert item.choices == plain.choices and plain.context not in before


def test_hellaswag_is_cleaned_and_its_answer_is_the_label():
    (item,) = [item for item in items_of("hellaswag", test_items=99) if "boil an egg" in item.context]
    assert item.context.startswith("Food and Cooking: How to boil an egg. Put the egg into boiling water.")
    assert "[" not in item.context and item.answer == item.choices[item.label] == item.solution


def test_a_profile_loads_them_and_their_hash_knows_choices_and_labels(output):
    section = {"task": "choices", "source": "own", "benchmarks": ["rte", "wnli"], "test_items": 3}
    profile = small_profile(output, data=section | {"templates": [], "train_items": 0, "validation_items": 0})
    items = load_items(profile, "test")
    assert [item.id for item in items] == [f"{name}:own-{n}" for name in ("rte", "wnli") for n in (4, 5, 6)]
    assert not load_items(profile, "train") and "tasks.choices" in str(stage_code("capture", profile)["modules"])
    first = items[0]
    other = [ChoiceItem(first.id, first.context, first.solution, first.answer, "rte", first.choices[::-1], 1)]
    assert hash_items(items[:1]) != hash_items(other)
    judged = task_of(profile.data).judge(first, f" {first.answer}\n", None)
    assert judged.correct and judged.span == (1, 1 + len(first.answer))
    assert not task_of(profile.data).judge(first, "  ", None).correct


# Bad input.

HELLASWAG = {"activity_label": "Walking", "ctx_a": "A man walks.", "ctx_b": "he", "label": "1",
             "endings": ["stops.", "runs.", "sits.", "sings."]}  # fmt: skip
PAIR = {"sentence1": "It rains.", "sentence2": "It is wet.", "label": 0}


@pytest.mark.parametrize(
    "benchmark, row, said",
    [
        ("hellaswag", HELLASWAG | {"endings": ["stops.", "runs.", "sits."]}, "'endings' holds 3 choices, not 4"),
        ("hellaswag", HELLASWAG | {"endings": ["stops.", "runs.", " ", "sings."]}, "holds 3 choices, not 4"),
        ("hellaswag", HELLASWAG | {"endings": "stop"}, "holds 0 choices"),
        ("hellaswag", HELLASWAG | {"label": "4"}, "the label is 4, out of range. It must be 0 to 3"),
        ("hellaswag", {k: v for k, v in HELLASWAG.items() if k != "ctx_b"}, "'ctx_b' is missing"),
        ("hellaswag", HELLASWAG | {"ctx_a": " "}, "'ctx_a' is missing or empty"),
        ("rte", PAIR | {"label": 2}, "the label is 2, out of range. It must be 0 to 1"),
        ("rte", PAIR | {"label": -1}, "the label is -1, out of range"),
        ("rte", PAIR | {"label": True}, "the label is missing or no whole number"),
        ("rte", PAIR | {"label": None}, "the label is missing or no whole number"),
        ("rte", PAIR | {"sentence2": 3}, "'sentence2' is missing or empty. rte needs it as text"),
        ("rte", "{'sentence1': 1}", "not valid JSON"),
        ("rte", "[1]", "no JSON object"),
    ],
)
def test_a_bad_row_is_one_sentence_with_file_and_line(benchmark, row, said, tmp_path):
    good = HELLASWAG if benchmark == "hellaswag" else PAIR
    path = tmp_path / f"{benchmark}.jsonl"
    path.write_text(f"{json.dumps(good)}\n{row if isinstance(row, str) else json.dumps(row)}\n")
    with pytest.raises(UserError, match=f"{benchmark}.jsonl line 2") as refusal:
        items_of(benchmark, source="jsonl", test_file=str(tmp_path / "{benchmark}.jsonl"))
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_snli_without_a_gold_label_is_left_out_and_counted(tmp_path, capsys):
    rows = [{"premise": "A", "hypothesis": "B", "label": label} for label in (0, -1, 2)]
    (tmp_path / "snli.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = items_of("snli", source="jsonl", test_file=str(tmp_path / "snli.jsonl"))
    assert [item.id for item in items] == ["snli:test-0", "snli:test-2"]
    assert "1 of 3 rows have no gold answer to judge by: left out." in capsys.readouterr().err


@pytest.mark.parametrize(
    "given, said",
    [
        ({"benchmarks": ("hellaswag", "arc")}, "benchmark 'arc' is none of hellaswag, snli"),
        ({"benchmarks": ()}, "needs benchmarks"),
        ({"benchmarks": ("rte", "rte")}, "each once"),
        ({"shots": -1}, "greater than or equal to 0"),
        ({"source": "jsonl"}, "needs train_file and test_file"),
        ({"source": "jsonl", "test_file": "x.jsonl"}, "several benchmarks need {benchmark}"),
        ({"source": "jsonl", "test_file": "{benchmark}", "shots": 1}, "name a train_file"),
        ({"source": "hub", "revision": "a"}, "a revision is of one data set"),
        ({"task": "gsm8k", "source": "hub", "train_items": 0, "validation_items": 1}, "must be greater than 0"),
    ],
)
def test_settings_that_fit_no_benchmark_are_refused(given, said):
    with pytest.raises(ValidationError, match=said):
        data_of(**{"benchmarks": ("rte", "wnli")} | given)


def test_more_shots_than_there_are_items_to_show_are_refused():
    with pytest.raises(UserError, match="rte: data.shots 4 needs more than 4 items in the training side"):
        items_of("rte", shots=4)


def test_from_the_hub_each_benchmark_has_its_set_and_the_side_whose_labels_are_public(monkeypatch):
    asked = []

    def load(name, config, split, revision):
        asked.append((name, config, split))
        return [dict(HELLASWAG) | PAIR | {"label": "1" if "hella" in name else 1, "n": n} for n in range(3)]

    monkeypatch.setattr("datasets.load_dataset", load)
    items = items_of("hellaswag", "rte", source="hub", test_items=2)
    assert [item.id for item in items] == [
        "hellaswag:validation-0",
        "hellaswag:validation-1",
        "rte:validation-0",
        "rte:validation-1",
    ]
    assert asked == [("Rowan/hellaswag", None, "validation"), ("nyu-mll/glue", "rte", "validation")]
    assert choices.BENCHMARKS["mnli"].hub[3] == "validation_matched"


def test_the_benchmark_compares_both_on_the_same_items():
    found = measure(items=2, profile="ci", rounds=2)
    assert {name: (one["items"], one["choices"]) for name, one in found["sets"].items()} == {
        "hellaswag": (2, 8), "mnli": (2, 6), "hellaswag, 2 shots": (2, 8),
    }  # fmt: skip
    assert all(one["largest_difference_nats"] < 2e-3 and one["ratio"]["low"] > 0 for one in found["sets"].values())


# A model that is known.


def test_smollm2_agrees_with_the_harness_on_hellaswag(tokenizer):
    model, items = load_model(POCKET, "float32"), items_of("hellaswag", test_items=5)
    rows = scored(model, items, tokenizer)
    samples = harness_samples(model, tokenizer, 5, 0, harness_task("hellaswag", 5))
    compare(rows, items, samples["hellaswag"], 2e-3)
    assert sum(row.right("acc_norm") for row in rows) >= 3  # absurd endings are easy
