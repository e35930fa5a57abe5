"""The published study's deviations: each changes what it says and nothing else."""

import math
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch
from conftest import small_profile
from pydantic import ValidationError

from primekd.assessment.score import ANSWER_ONLY, Model, models_of, untrained_models
from primekd.assessment.students import find_students
from primekd.capture.jobs import prompts_of, training_job
from primekd.capture.run import capture
from primekd.config import load_profile
from primekd.config.arm import Arm
from primekd.config.arms import arms_of, get_arm, load_arms
from primekd.config.deviations import DEVIATIONS, OF_ONE_ARM, PUBLISHED, SAID
from primekd.foundation import read_manifest
from primekd.foundation.errors import UserError
from primekd.foundation.stage_code import ask_anew, forget_wishes
from primekd.losses import chunked_loss
from primekd.models import load_tokenizer
from primekd.models.chat import build_prompt, encode_response
from primekd.models.students import new_student
from primekd.report.deviations import (
    control_table,
    deviating,
    deviation_table,
    each_seed,
    items_alone,
    show_deviations,
)
from primekd.report.formats import points
from primekd.report.html import write_report
from primekd.running.publishing import results_of
from primekd.running.verify_run import check_run
from primekd.signals.codecs import TopKCodec
from primekd.statistics.subsets import selection_rows
from primekd.studies.assess import assess
from primekd.tasks.forms import socratic
from primekd.tasks.load import load_items
from primekd.tasks.protocol import as_text
from primekd.training.deviations import Deviating, by_position, lexicographic
from primekd.training.distill import distill
from primekd.training.examples import IGNORED, Collator, ProcessBatches, asked_of
from primekd.training.objective import StudentObjective
from primekd.training.trainer import build_trainer

ARMS = {name: arm for name, arm in load_arms().items() if arm.role == "deviation"}


@pytest.fixture(scope="module")
def profile(tmp_path_factory, lively):
    """Teacher and student are one model: what they read alike, they say alike."""
    folder = tmp_path_factory.mktemp("deviations")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRIMEKD_OUTPUT", str(folder))
        profile = small_profile(
            folder, arms=["base-KD", "ai-KD", *ARMS], student={"model": lively}, teacher={"model": lively},
            data={"train_items": 12}, max_new_tokens=60, train={"epochs": 2}, loss={"temperature": 1.0},
        )  # fmt: skip
        for name in ("base-KD", "ai-KD", "no-template-KD"):
            capture(training_job(profile, name))
        yield profile


def lesson(profile, name: str) -> Deviating:
    arm = get_arm(name)
    return Deviating(arm.view_of(profile), arm, load_items(profile, "train"), 0)


def divergence(found: Deviating) -> float:
    """KL(teacher || untrained student) a token, as the first step of the training has it."""
    profile, tokenizer = found.profile, load_tokenizer(found.profile.student)
    objective = StudentObjective(new_student(profile.student, 0, None), profile.loss, len(tokenizer))
    batch = Collator(tokenizer.pad_token_id)(found.examples())
    ids, labels = batch["input_ids"], batch["labels"]
    rows = found.source.rows_of(asked_of(batch["item_ids"], ids, labels))
    count = len(batch["item_ids"])
    with torch.no_grad():
        states, targets = objective.response_states(ids[:count], batch["attention_mask"][:count], labels[:count])
        loss = profile.loss.model_copy(update={"alpha": 0.0, "labels": "response"})
        _, parts = chunked_loss(
            states, *objective.head(), targets, rows, loss, float(len(targets)), objective.transform
        )
    return float(parts["kd"])


def test_every_deviation_has_an_arm_a_sentence_and_a_place_in_the_protocol():
    alone = [arm.deviations[0] for arm in ARMS.values() if arm.protocol == "corrected"]
    assert sorted(alone) == sorted(DEVIATIONS) == sorted(SAID) and len(set(alone)) == len(alone)
    assert get_arm("published-ai-KD").deviates == PUBLISHED == set(DEVIATIONS) - set(OF_ONE_ARM)
    assert not get_arm("base-KD").deviates


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"role": "deviation"}, "has deviations, or protocol: published"),
        ({"role": "other-loss", "loss": {"alpha": 0.3}, "deviations": ["socratic"]}, "no other role has any"),
        ({"role": "deviation", "deviations": ["socratic"], "protocol": "published"}, "name none"),
        ({"role": "deviation", "deviations": ["sorted"]}, "deviations"),
        ({"role": "deviation", "deviations": ["socratic"], "text": "base-KD"}, "text and signals of its own"),
    ],
)
def test_an_arm_that_cannot_be_is_refused(values, said):
    with pytest.raises(ValidationError, match=said):
        Arm(name="x", title="X", variant_of="base-KD", **values)


@pytest.mark.parametrize("name", ["ablation-pocket", "ablation-laptop"])
def test_each_effect_is_that_of_one_deviation(name):
    """Its reference reads the same labels, and the profile plans that contrast and runs both sides."""
    profile = load_profile(name)
    known = arms_of(profile)
    run = {name: arm for name, arm in known.items() if arm.deviates}
    for arm in run.values():
        reference = known[arm.variant_of]
        labels = [one.loss_of(profile).labels for one in (arm, reference)]
        alone = arm.deviations != ("gold-labels",) and arm.protocol == "corrected"
        assert not alone or labels[0] == labels[1], arm.name
        assert (arm.name, arm.variant_of) in profile.planned.main or arm.name == "published-ai-KD"
    assert {arm.variant_of for arm in run.values()} == {"base-KD", "ai-KD", "gold-labels-KD"}


def test_keys_read_back_as_text_stand_in_another_order():
    names = [f"i-{n}" for n in range(1, 13)]
    got = lexicographic(names)
    assert [got[name] for name in names] == [f"i-{n}" for n in (1, 10, 11, 12, 2, 3, 4, 5, 6, 7, 8, 9)]


def test_gold_by_position_holds_logits_at_t_against_gold_token_t():
    for asked, place, gold in (
        ([5, 6, 7, 8], range(4), [1, 2]), ([5, 6], range(2), [1, 2, 3]), ([9, 9, 5, 6, 9], range(2, 4), [1, 2, 3]),
    ):  # fmt: skip
        made = by_position(asked, place, gold)
        batch = Collator(0)([type("E", (), {"item_id": "i", "sequence": made, "gold": None})()])
        labels = batch["labels"][0]
        predicted = {t: int(labels[t + 1]) for t in range(len(labels) - 1) if labels[t + 1] != IGNORED}
        assert predicted == dict(zip(place, gold, strict=False))  # logits at the question's token t -> gold[t]
        assert made.input_ids[: len(asked)] == asked


def test_rows_of_the_question_are_the_students_own_where_nobody_is_primed(profile):
    """Teacher and student are the same model and read the same tokens, so nothing is left to learn."""
    found = lesson(profile, "question-logits-KD")
    assert abs(divergence(found)) < 1e-5
    tokenizer = load_tokenizer(profile.student)
    for item, example in zip(found.items, found.examples(), strict=True):
        prompt, sequence = build_prompt(tokenizer, item.messages), example.sequence
        kept = [token for token, on in zip(sequence.input_ids, sequence.response_mask, strict=True) if on]
        assert tokenizer.decode(kept).strip() == item.question  # and not the template's tokens, which all items share
        assert sequence.input_ids == prompt[: len(sequence.input_ids)]
        assert example.gold.input_ids == [*prompt, *encode_response(tokenizer, item.solution)]


def test_gold_by_position_begins_with_the_question_and_not_with_the_template(profile):
    found, tokenizer = lesson(profile, "gold-by-position-KD"), load_tokenizer(profile.student)
    for item, example in zip(found.items, found.examples(), strict=True):
        on = [place for place, kept in enumerate(example.gold.response_mask) if kept]
        read = example.gold.input_ids[on[0] - 1 : on[-1]]
        assert item.question.startswith(tokenizer.decode(read).strip()) and len(read) > 3
        gold = encode_response(tokenizer, item.solution)
        assert [example.gold.labels[place] for place in on] == gold[: len(on)]


def test_a_priming_in_front_shifts_the_rows_against_the_students(profile):
    """Rows of the same text at their own places differ by what the priming changes alone; by their number, wholly."""
    shifted = lesson(profile, "priming-prefix-KD")
    item = shifted.items[0]
    texts, example = shifted.texts[item.id], shifted.examples()[0]
    lag = len(texts.teacher_prompt) - len(texts.asked)
    assert lag > 0 and shifted.source.offsets[item.id] == 0
    first = len(texts.asked)
    asked = [(item.id, example.sequence.input_ids[:first], example.sequence.input_ids[first:])]
    rows = shifted.source.rows_of(asked).to_logits()
    whole = [*texts.teacher_prompt, *texts.response]
    engine_rows = shifted.source.reader.rows(item.id, whole[1:]).to_logits()
    assert torch.equal(rows, engine_rows[first - 1 : first - 1 + len(texts.response)])  # row first - 1 of its own text
    in_place = Deviating(
        shifted.profile, shifted.arm.model_copy(update={"deviations": ("gold-by-position",)}), shifted.items, 0
    )
    assert divergence(in_place) < divergence(shifted)


def test_the_published_protocol_reads_a_bare_question_with_the_priming_in_front(profile):
    plain, primed = lesson(profile, "published-base-KD"), lesson(profile, "published-ai-KD")
    tokenizer, item = load_tokenizer(profile.student), plain.items[0]
    bare = list(tokenizer(item.question)["input_ids"])
    assert list(plain.texts[item.id].asked) == list(plain.texts[item.id].teacher_prompt) == bare
    before = get_arm("ai-KD").priming
    assert tokenizer.decode(primed.texts[item.id].teacher_prompt).startswith(before)
    assert list(primed.texts[item.id].asked) == bare
    rows, bare = {}, {item.id: tokenizer(item.question)["input_ids"] for item in plain.items}
    for item, example in zip(plain.items, plain.examples(), strict=True):  # as short as what its rows are from, too
        gold = encode_response(tokenizer, socratic(item.solution, None))
        giver = lexicographic(list(bare))[item.id]
        kept = min(len(bare[item.id]) - 1, len(bare[giver]) - 1, len(gold))
        assert sum(example.sequence.response_mask) == kept == sum(example.gold.response_mask)
        labels = zip(example.gold.labels, example.gold.response_mask, strict=True)
        assert [label for label, on in labels if on] == gold[:kept]
        ids = example.sequence.input_ids
        rows[item.id] = plain.source.rows_of([(item.id, ids[:1], ids[1:])]).to_logits()
        whole = plain.source.reader.rows(giver, bare[giver][1:]).to_logits()
        assert torch.equal(rows[item.id], whole[: len(ids) - 1]) and kept <= len(ids) - 1
    assert any(len(bare[i]) > len(bare[giver]) for i, giver in lexicographic(list(bare)).items())
    view = plain.profile
    assert (view.train.batch_size, view.train.max_grad_norm, view.train.schedule) == (1, 0, "climbing")
    assert (view.loss.divergence, view.loss.labels, view.train.shuffle) == ("reverse_kl", "gold", False)
    assert view.student.lora.dropout == 0


def test_cut_sequences_have_one_length(profile):
    found = lesson(profile, "cut-to-shortest-KD")
    for item, example in zip(found.items, found.examples(), strict=True):
        gold = encode_response(load_tokenizer(profile.student), item.solution)
        assert sum(example.sequence.response_mask) == min(len(gold), len(found.texts[item.id].response))
        assert example.gold is None


def test_a_cosine_of_one_epoch_climbs_in_the_second_and_the_default_does_not(profile, tmp_path):
    def rates(train):
        tokenizer = load_tokenizer(profile.student)
        examples = lesson(profile, "socratic-KD").examples()
        trainer = build_trainer(
            new_student(profile.student, 0, None), tokenizer, examples, [], None, profile.loss, train, tmp_path, 0
        )
        trainer.create_optimizer()
        scheduler, found = trainer.create_scheduler(6), []
        for _ in range(6):
            found.append(scheduler.get_last_lr()[0] / train.learning_rate)
            scheduler.optimizer.step()
            scheduler.step()
        return found

    climbing = rates(profile.train.model_copy(update={"schedule": "climbing"}))
    cosine = [0.5 * (1 + math.cos(math.pi * n / 3)) for n in range(6)]
    assert climbing == pytest.approx(cosine) and climbing[4] > climbing[3] == pytest.approx(0)
    warm = profile.train.model_copy(update={"warmup_steps": 2})  # which both have alike
    assert rates(warm)[:2] == pytest.approx([0, 0.5])
    warm = warm.model_copy(update={"schedule": "climbing"})
    assert rates(warm) == pytest.approx([0, 0.5 * cosine[1], *cosine[2:]])
    assert all(a >= b for a, b in zip(rates(profile.train), rates(profile.train)[1:], strict=False))
    assert "schedule" not in profile.train.model_dump() and "shuffle" not in profile.train.model_dump()


def test_without_shuffling_every_epoch_reads_the_same_order():
    batches = ProcessBatches([3, 9, 1, 7], 2, 0, 1, 2, 4, None)
    orders = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        orders.append([i for batch in batches for i in batch])
    assert orders == [[0, 1, 2, 3]] * 2


def test_a_question_stands_in_front_of_each_step():
    said = socratic("2 + 3 = 5\n5 * 2 = 10\n#### 10", None).split("\n")
    assert said[0] == "What has to be found first? ** 2 + 3 = 5" and said[-1] == "#### 10" and len(said) == 3


def test_the_released_control_has_fifty_tokens_and_is_asked_for_the_answer_alone(profile):
    view = profile.model_copy(update={"assess": profile.assess.model_copy(update={"few_shot": "answer-only"})})
    control, other = untrained_models(view)
    items = load_items(view, "test")
    assert control.asked(view, items) == items and control.limited(view) == view
    assert other.asked(view, items)[0].question == f"{items[0].question} {ANSWER_ONLY}"
    assert other.limited(view).max_new_tokens == 50


def test_every_deviation_trains_a_student_of_its_own_which_stands(profile):
    weights = {}
    for name in ("base-KD", "ai-KD", *ARMS):
        folder = distill(profile, name)
        weights[name] = read_manifest(folder / "manifest.json")["outputs"]["adapter/adapter_model.safetensors"]
    assert len(set(weights.values())) == len(weights)
    manifest = read_manifest(profile.student_folder("priming-prefix-KD") / "manifest.json")
    assert manifest["inputs"]["deviations"] == ["priming-prefix"] and manifest["inputs"]["signals"]["shards"]
    students = find_students(profile)
    assert {student.name for student in students} == weights.keys()
    bare = {model.name for model in models_of(students) if model.bare}
    assert bare == {"no-template-KD", "published-base-KD", "published-ai-KD"}
    items = load_items(profile, "test")
    assert Model("x", bare=True).asked(profile, items)[0].messages == [{"role": "text", "content": items[0].question}]
    problems = [p for check in check_run(profile) if check.what != "lineage" for p in check.problems]
    assert problems == []
    before = (profile.student_folder("published-ai-KD") / "manifest.json").read_bytes()
    assert (distill(profile, "published-ai-KD") / "manifest.json").read_bytes() == before
    made = {folder.name for stage, _, folder in results_of(profile) if stage == "capture"}
    assert {"question-logits-KD", "priming-prefix-KD", "published-ai-KD"} <= made


def test_a_store_of_whole_texts_is_made_anew_where_the_profile_changed_or_somebody_asks(profile, capsys):
    def spec(found):
        return Deviating(found.profile, found.arm, found.items, 0).source.manifest

    found = lesson(profile, "question-logits-KD")
    first = spec(found)
    few = Deviating(found.profile, found.arm, found.items[:3], 0)
    assert spec(few)["items"] == 3 and "is of another configuration: set aside" in capsys.readouterr().out
    assert spec(few)["items"] == 3 and "set aside" not in capsys.readouterr().out
    assert spec(found)["spec_sha256"] == first["spec_sha256"]
    ask_anew(profile, ["capture"])
    spec(found)
    assert "is to be made anew: set aside" in capsys.readouterr().out
    forget_wishes(profile)


def test_rows_of_another_text_are_refused(profile, monkeypatch):
    """The same spec and other responses: a capture that was made anew on another processor."""
    found = lesson(profile, "priming-prefix-KD")
    item = found.items[1].id
    found.texts[item].response.append(5)
    placed = lesson(profile, "priming-prefix-KD").source.reader
    monkeypatch.setattr("primekd.training.deviations.store_rows", lambda *a: placed)
    with pytest.raises(UserError, match=f"has rows of another text of {item}: remove that folder, and run"):
        _ = found.source


def test_rows_that_cannot_serve_the_loss_are_refused_before_a_model_is_loaded(profile, monkeypatch):
    found = lesson(profile, "reverse-kl-KD")
    monkeypatch.setattr(found.reader, "codec", TopKCodec(2, 1.0))
    with pytest.raises(UserError, match="These signals cannot serve this loss"):
        _ = found.source


def test_a_bare_prompt_is_text_and_holds_no_control_token(profile):
    tokenizer, (item, *_) = load_tokenizer(profile.student), as_text(load_items(profile, "train"))
    assert build_prompt(tokenizer, item.messages) == tokenizer(item.question)["input_ids"]
    with pytest.raises(UserError, match="control token"):
        build_prompt(tokenizer, [{"role": "text", "content": "Hello <|im_end|>"}])
    teacher = prompts_of(get_arm("no-template-KD"), profile.teacher, load_items(profile, "train")[:1])
    assert list(teacher[0]) == tokenizer(load_items(profile, "train")[0].question)["input_ids"]


def test_choosing_on_the_test_split_gains_what_the_other_half_does_not_show():
    arms = {name: Arm(name=name, title=name, role="other-loss", variant_of="base-KD", loss={"alpha": 0.1})
            for name in ("a", "b")}  # fmt: skip
    rows = lambda *right: [SimpleNamespace(correct=bool(r)) for r in right]  # noqa: E731
    logs = {"base-KD": rows(1, 0, 0, 0), "a": rows(1, 0, 1, 0), "b": rows(0, 1, 0, 1), "control": rows(1, 1, 1, 1)}
    (row,) = selection_rows(logs, arms, "base-KD")
    assert row.models == "base-KD a b"
    assert (row.chosen, row.chosen_other) == (1.0, 0.0)  # a is best on the even items, b on the odd ones
    assert row.mean == row.mean_other == pytest.approx((0.5 + 1 + 0 + 0 + 0 + 1) / 6)
    assert selection_rows({"base-KD": logs["base-KD"], "a": logs["a"]}, arms, "base-KD") == []


def test_the_priming_stands_in_the_table_under_both_protocols():
    pairs = [("published-ai-KD", "published-base-KD"), ("published-ai-KD", "ai-KD"), ("published-base-KD", "base-KD"),
             ("ai-KD", "base-KD"), ("socratic-KD", "gold-labels-KD")]  # fmt: skip
    others = [("ai-KD", "control"), ("published-ai-KD", "base-KD"), ("socratic-KD", "base-KD"), ("ai-KD", "teacher-KD"),
              ("teacher-KD", "base-KD"), ("published-ai-KD", "control")]  # fmt: skip

    def shown(*found):
        rows = [{"model": model, "reference": reference} for model, reference in found]
        return [(row["model"], row["reference"]) for row in deviating(SimpleNamespace(contrasts=rows))]

    assert shown(*others[:2], *pairs, *others[2:]) == pairs
    assert shown(("ai-KD", "base-KD"), ("ai-KD", "control")) == []  # a study where nothing deviates


def test_each_seeds_own_difference_stands_behind_the_interval_and_one_over_items_alone_beside_it():
    accuracies = {"base-KD": "0.5", "base-KD-seed1": "0.52", "socratic-KD": "0.55", "socratic-KD-seed1": "0.5", "x": ""}
    row = {"model": "socratic-KD", "reference": "base-KD", "clusters": "41", "accuracy": "0.015",
           "accuracy_low": "-0.4", "accuracy_high": "0.43"}  # fmt: skip
    seeds = [{"model": "socratic-KD", "reference": "base-KD", "accuracy": "0.015", "item_se": "0.01"}]
    results = SimpleNamespace(summary=[{"model": m, "accuracy": a} for m, a in accuracies.items()], seeds=seeds)
    assert each_seed(results, "accuracy", points, row) == "+1.5 [-40.0, +43.0]; +5.0, -2.0"
    assert items_alone(results, row) == "[-0.5, +3.5]"  # 2.02 standard errors of 40 degrees of freedom
    assert items_alone(results, row | {"reference": "x"}) == "–"
    seeds[0]["item_se"] = "0"
    assert items_alone(results, row) == "–"  # all items differ alike: no more is known of other ones


def test_the_report_has_a_page_of_deviations_and_the_notebook_shows_it(profile, lively, tmp_path, monkeypatch):
    monkeypatch.setenv("PRIMEKD_OUTPUT", str(tmp_path))
    few = small_profile(
        tmp_path, arms=["base-KD", "no-template-KD", "reverse-kl-KD"], student={"model": lively},
        teacher={"model": lively}, assess={"few_shot": "answer-only"},
        planned={"main": [["no-template-KD", "base-KD"], ["reverse-kl-KD", "base-KD"]]},
    )  # fmt: skip
    for name in ("base-KD", "no-template-KD"):
        capture(training_job(few, name))
    for name in few.arms:
        distill(few, name)
    assess(few)
    html = write_report(few).read_text()
    control, asked = control_table(few.logs).rows
    assert control[4:] == ["–", "–"] and re.fullmatch(r"[-+\d.]+ \[[-+\d., ]+\]", asked[4])
    assert 'id="deviations"' in html and SAID["no-template"] in html and "50 new tokens" in html
    shown = show_deviations(few)
    assert "Reverse KL" in shown.text and "[figure: Each deviation minus its reference]" in shown.text
    cells = nbformat.read(Path(__file__).parents[1] / "assessment" / "ablation.ipynb", 4).cells
    monkeypatch.setattr("primekd.config.load_profile", lambda name: few)  # the notebook runs on these logs
    exec("\n".join(cell.source for cell in cells if cell.cell_type == "code"), {})
    monkeypatch.undo()
    monkeypatch.setenv("PRIMEKD_OUTPUT", str(tmp_path))
    rows = {row[0].model for row in deviation_table(few.logs).rows}
    assert rows == {"no-template-KD", "reverse-kl-KD"}
