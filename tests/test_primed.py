"""What priming did to the teacher, stores that are treated before training, and responses that somebody else wrote."""

import csv
import json
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import small_profile

from primekd.capture.jobs import open_signals, scoring_job, test_job, training_job, unprimed_job
from primekd.capture.judged import JUDGED, JudgedRow, judged_folder, right_answers
from primekd.capture.run import capture, capture_all
from primekd.config.arm import Arm
from primekd.config.arms import get_arm
from primekd.foundation import read_json, write_manifest
from primekd.foundation.errors import UserError
from primekd.foundation.tables import read_records, write_table
from primekd.models import load_tokenizer
from primekd.models.chat import decode_response, encode_response
from primekd.signals import Asked
from primekd.signals.certainty import Certainty, certainty_of
from primekd.signals.manifest import shards_hash
from primekd.signals.rows import DenseRows
from primekd.statistics.primed import expectation, primed_rows
from primekd.studies.primed import _unsure, ask, asked_arms, jobs_of, measure
from primekd.tasks.load import load_items
from primekd.training.distill import distill
from primekd.training.treatment import TreatedSource

test_job.__test__ = False
ARMS = ["base-KD", "ai-KD", "placebo-KD", "shuffled-KD", "base-right-KD", "base-text-KD", "ai-plain-KD"]


@pytest.fixture
def profile(output, lively):
    return small_profile(
        output, arms=ARMS, teacher={"model": lively}, assess={"teacher_items": 3},
        data={"train_items": 5, "validation_items": 2, "test_items": 4},
    )  # fmt: skip


def asked_for(reader, item_id):
    return Asked(item_id, [1], reader.item(item_id).response_ids)


def test_shuffled_rows_are_those_of_another_item_and_of_no_item_its_own(profile):
    capture(training_job(profile, "shuffled-KD"))
    reader = open_signals(training_job(profile, "base-KD"))
    ids = reader.item_ids
    source = TreatedSource(reader, get_arm("shuffled-KD"), ids)
    givers = source._donors
    assert sorted(givers) == sorted(givers.values()) == sorted(ids) and all(a != b for a, b in givers.items())
    for item in ids:
        assert source.item(item).response_ids == reader.item(item).response_ids
        own, of_giver = (reader.rows_of([asked_for(reader, one)]) for one in (item, givers[item]))
        found = source.rows_of([asked_for(reader, item)])
        assert len(found) == len(own)
        for t in range(len(found)):
            assert torch.equal(found.hidden[t], of_giver.hidden[t % len(of_giver)])
        assert not torch.equal(found.hidden, own.hidden)
    assert TreatedSource(reader, get_arm("shuffled-KD"), ids, seed=1)._donors != givers
    assert source.dropped == {"items": 0, "tokens": 0}


def test_responses_are_cut_with_their_rows_and_what_was_dropped_is_counted(profile):
    capture(training_job(profile, "base-KD"))
    reader = open_signals(training_job(profile, "base-KD"))
    arm = Arm(
        name="cut-KD", title="cut", role="selection", variant_of="base-KD", text="base-KD", signals="base-KD",
        cut_tokens=3,
    )  # fmt: skip
    source = TreatedSource(reader, arm, reader.item_ids, right=set(reader.item_ids[1:]))
    assert source.item_ids == reader.item_ids[1:]
    whole = [reader.item(item).response_ids for item in source.item_ids]
    assert max(map(len, whole)) > 3
    assert source.dropped == {"items": 1, "tokens": sum(max(0, len(ids) - 3) for ids in whole)}
    for item, ids in zip(source.item_ids, whole, strict=True):
        stored = source.item(item)
        assert stored.response_ids == ids[:3] and stored.truncated
        rows = source.rows_of([Asked(item, [1], ids[:3])])
        assert torch.equal(rows.hidden, reader.rows(item, ids).hidden[:3])
        with pytest.raises(UserError, match="another response"):
            source.rows_of([Asked(item, [1], ids)])
    with pytest.raises(UserError, match="1 responses are left"):
        TreatedSource(reader, arm, reader.item_ids, right={reader.item_ids[0]})


def test_an_arm_trains_on_right_answers_alone_and_says_what_it_dropped(profile):
    capture(training_job(profile, "base-KD"))
    with pytest.raises(UserError, match="run --only teacher"):
        distill(profile, "base-right-KD")
    ids = [item.id for item in load_items(profile, "train")]
    rows = [JudgedRow("train", "base-KD", i, n != 2, 5, False, 1.0, None, None, None) for n, i in enumerate(ids)]

    def judge(rows, store=None):
        path = write_table(judged_folder(profile) / JUDGED, JudgedRow, rows)
        stores = {"base-KD": store or shards_hash(profile.signals_folder("base-KD"))}
        write_manifest(judged_folder(profile), "priming", {"stores": stores}, [path])

    judge(rows, "0")
    with pytest.raises(UserError, match="is not of the responses in .*base-KD: delete runs/.*priming, then run"):
        distill(profile, "base-right-KD")
    judge(rows)
    own, other = (profile.signals_folder(name) for name in ("base-KD", "base-KD-seed1"))
    right_answers(profile, "base-KD", ids, own, shards_hash(own))
    shutil.copytree(own, other)
    with pytest.raises(UserError, match="is not of the responses in .*base-KD-seed1"):  # other text than was judged
        right_answers(profile, "base-KD", ids, other, shards_hash(other))
    judge(rows[:-1])
    with pytest.raises(UserError, match=f"no row of base-KD and {ids[-1]}"):
        distill(profile, "base-right-KD")
    judge(rows)
    manifest = read_json(distill(profile, "base-right-KD") / "manifest.json")
    assert manifest["dropped"] == {"items": 1, "tokens": 0}
    assert manifest["inputs"]["treatment"] == {"keep_right": True}
    assert manifest["inputs"]["kept"] == [i for n, i in enumerate(ids) if n != 2]
    plain = read_json(distill(profile, "base-KD") / "manifest.json")
    assert "treatment" not in plain["inputs"] and "dropped" not in plain
    assert manifest["response_tokens"] < plain["response_tokens"]


def test_the_teacher_is_measured_under_every_priming_before_any_student(profile, lively):
    ask(profile)
    folder = measure(profile)
    assert asked_arms(profile) == ["base-KD", "ai-KD", "placebo-KD"]
    rows = read_records(folder / JUDGED, JudgedRow)
    assert [(r.split, r.arm) for r in rows].count(("train", "ai-KD")) == 5
    assert [(r.split, r.arm) for r in rows].count(("test", "ai-KD")) == 3
    tokenizer = load_tokenizer(profile.teacher)
    for row in rows:
        job = training_job(profile, row.arm) if row.split == "train" else test_job(profile, row.arm)
        reader = open_signals(job)
        ids = reader.item(row.id).response_ids
        assert row.tokens == len(ids)
        measured = row.split == "test" or row.id in reader.item_ids[:3]
        assert (row.entropy is not None) == measured
        assert (row.kl is not None) == (measured and row.arm != "base-KD")
        if row.kl is None:
            continue
        # Once more in plain torch: the same response behind the primed and behind the plain prompt.
        p = reader.rows(row.id, ids).to_logits().double().log_softmax(-1)
        other = open_signals(unprimed_job(profile, row.arm, row.split))
        assert (
            other.item(row.id).response_ids == ids and other.item(row.id).prompt_ids != reader.item(row.id).prompt_ids
        )
        q = other.rows(row.id, ids).to_logits().double().log_softmax(-1)
        assert row.kl == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-3)
        assert row.kl > 0
        plain = open_signals(training_job(profile, "base-KD") if row.split == "train" else test_job(profile, "base-KD"))
        assert other.item(row.id).prompt_ids == plain.item(row.id).prompt_ids
        assert decode_response(tokenizer, ids) is not None
    assert measure(profile) == folder  # nothing to do


def test_fewer_responses_may_be_scored_again_than_are_looked_at(profile):
    assess, arms = profile.assess.model_copy(update={"rescored_items": 1}), ("base-KD", "ai-KD")
    fewer = profile.model_copy(update={"assess": assess, "arms": arms})
    ask(fewer)
    rows = read_records(measure(fewer) / JUDGED, JudgedRow)
    primed = [row for row in rows if row.arm != "base-KD"]
    for split in ("train", "test"):
        own = [row for row in primed if row.split == split and row.arm == "ai-KD"]
        assert [row.kl is not None for row in own][:3] == [True, False, False]
        assert [row.entropy is not None for row in own][:3] == [True] * 3
    with pytest.raises(UserError, match="rescored_items is more than assess.teacher_items"):
        small_profile(profile.runs, assess={"teacher_items": 3, "rescored_items": 4})


def test_an_api_or_a_profile_without_teacher_items_asks_nothing_more(profile):
    none = profile.model_copy(update={"assess": profile.assess.model_copy(update={"teacher_items": 0})})
    assert [job.folder.name for job in jobs_of(none)] == ["base-KD", "ai-KD", "placebo-KD", "held-out"]
    assert len(jobs_of(profile)) == 3 + 1 + 2 + 4


def test_divergence_has_the_direction_and_refuses_what_is_not_whole():
    torch.manual_seed(0)
    one, two = (DenseRows(torch.randn(4, 7)) for _ in range(2))
    p, q = (rows.logits.double().softmax(-1) for rows in (one, two))
    wanted = (p * (p / q).log()).sum(-1)
    assert torch.allclose(certainty_of(one, [0] * 4, top=2, other=two).kl.double(), wanted, atol=1e-5)
    assert not torch.allclose(certainty_of(two, [0] * 4, top=2, other=one).kl.double(), wanted, atol=1e-2)
    assert not hasattr(certainty_of(one, [0] * 4, top=2), "kl")
    with pytest.raises(ValueError, match="the same tokens"):
        certainty_of(one, [0] * 4, other=DenseRows(torch.randn(3, 7)))


def judged(arm, lengths, correct, kl=None, same=0.5):
    return [
        JudgedRow("train", arm, f"i{n}", ok, size, False, same, None if kl is None else 1.0, kl and 1, kl and kl * size)
        for n, (size, ok) in enumerate(zip(lengths, correct, strict=True))
    ]


def test_differences_are_paired_and_say_whether_students_can_differ():
    base = judged("base-KD", range(40, 60), [True, False] * 10, same=1.0)
    shorter = judged("ai-KD", range(30, 50), [True, False] * 10, kl=0.2)
    alike = judged("placebo-KD", range(40, 60), [True, False] * 10, kl=0.0001, same=1.0)
    plain, ai, placebo = primed_rows([*base, *shorter, *alike], "base-KD")
    assert plain.tokens_difference is None and plain.kl is None and plain.same_share is None
    assert (ai.tokens_difference, ai.tokens_difference_low, ai.tokens_p) == (-10, -10, 0)
    assert ai.accuracy_difference == 0 and ai.accuracy_p == 1 and ai.kl == pytest.approx(0.2)
    assert ai.entropy == pytest.approx(20 / sum(range(30, 50)))
    assert ai.tokens_p_holm == 0 and 0 < ai.kl_p_holm < 1e-200 and placebo.accuracy_p_holm == 1
    assert plain.tokens_p_holm is None and placebo.kl_p < 1e-200  # surely below 0.01, which claims nothing
    said = expectation([plain, ai, placebo])
    assert (
        "Ground truth-KD can be expected to differ: its text is 20% shorter, and it moves the teacher by 0.200"
        in said[0]
    )
    assert said[1].startswith(
        "Placebo-KD, whose prompt is about nothing, shows what any such text does: its text is as long"
    )
    assert "20 of 20 responses" in said[1]
    with pytest.raises(ValueError, match="different items"):
        primed_rows([*base, *shorter[:5]], "base-KD")
    noisy = [replace(row, kl=row.tokens * (0.003, 0.022)[n % 2]) for n, row in enumerate(alike)]
    (row,) = primed_rows([*base, *noisy], "base-KD")[1:]
    assert row.kl_low > 0.007 and row.kl > 0.01 and row.kl_p > 0.05, "surely above 0, not surely above 0.01"


def test_a_token_that_its_row_does_not_keep_is_unsure_and_of_an_empty_row_nobody_knows():
    written, probs = torch.tensor([0.95, 0.5, torch.nan, torch.nan]), torch.tensor([[0.95], [0.5], [0.9], [0.0]])
    assert _unsure(Certainty(torch.zeros(4), written, torch.zeros(4, 1), probs)) == 2


def test_one_of_many_prompts_that_is_a_little_longer_is_nothing_that_can_be_expected():
    base = judged("base-KD", [40] * 8, [True] * 8)
    longer = judged("ai-KD", [45, 44, 46, 41, 40, 43, 39, 44], [True] * 8)
    trifle = judged("teacher-KD", [41] * 8, [True] * 8, kl=0.001)
    others = [judged(f"other{n}", [40 + (-1) ** i for i in range(8)], [True] * 8) for n in range(12)]
    alone, among = (
        {row.arm: row for row in primed_rows([*base, *longer, *(r for arm in more for r in arm)], "base-KD")}["ai-KD"]
        for more in ([], others)
    )
    assert alone.tokens_p == among.tokens_p < 0.05 / 2
    assert "can be expected to differ" in expectation([alone])[0]
    open_one = "is open: no change of accuracy or of length by 5% or more can be claimed or ruled out; that of the"
    assert open_one in expectation([among])[0]
    for_sure = judged("teacher-KD", [41] * 8, [True] * 8)  # longer for sure, by too little
    said = expectation(primed_rows([*base, *for_sure], "base-KD"))[0]
    assert "no change of accuracy can be claimed or ruled out; one of length by 5% or more can be ruled out;" in said
    assert "can hardly be expected" in expectation(primed_rows([*base, *trifle], "base-KD"))[0], "a fortieth longer"
    apart = judged("teacher-KD", [30 + 3 * n for n in range(8)], [True] * 8, kl=0.001)
    said = expectation(primed_rows([*base, *apart], "base-KD"))[0]
    kl = "of the distribution by 0.01 nats a token or more"
    assert f"no change of accuracy or of length by 5% or more can be claimed or ruled out; one {kl} can be" in said
    moved = judged("teacher-KD", [30 + 3 * n for n in range(8)], [True] * 8, kl=0.008)
    moved = [replace(row, kl=row.tokens * (0.002, 0.02)[n % 2]) for n, row in enumerate(moved)]
    said = expectation(primed_rows([*base, *moved], "base-KD"))[0]
    assert f"or of length by 5% or more or {kl} can be claimed or ruled out (" in said


def file_arm(path, **changed):
    return Arm(
        **{"name": "human-KD", "title": "Human", "role": "crossed", "variant_of": "base-KD", "signals": "base-KD"}
        | {"responses": str(path)} | changed
    )  # fmt: skip


def test_a_file_is_scored_under_the_prompt_that_an_arms_signals_come_from(profile):
    crossed = profile.model_copy(update={"arms": ("base-KD", "ai-KD", "ai-signals-KD")})
    for arm, prompt in (("ai-signals-KD", "ai-KD"), ("ai-plain-KD", "base-KD"), ("ai-KD", "ai-KD")):
        job = scoring_job(crossed, arm, "human.csv")
        assert job.scored_under == get_arm(prompt) and job.folder.name == f"{prompt}-of-human"
    assert scoring_job(profile, "base-text-KD", "human.csv").scored_under.name == "base-KD"


def test_what_a_later_capture_lacks_is_said_before_the_first_one_asks(profile, tmp_path):
    with pytest.raises(UserError, match="human.jsonl is not there"):
        capture_all([training_job(profile, "base-KD"), file_job(profile, tmp_path / "human.jsonl")])
    with pytest.raises(UserError, match="ai-plain-KD scores the responses of ai-KD, which are not captured: run"):
        capture_all([training_job(profile, "base-KD"), training_job(profile, "ai-plain-KD")])
    assert not profile.signals_folder("base-KD").exists()
    capture_all([training_job(profile, name) for name in ("ai-KD", "ai-plain-KD")])


def file_job(profile, path):
    from dataclasses import replace

    return replace(training_job(profile, "base-KD"), arm=file_arm(path), folder=profile.signals_folder("human-KD"))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_responses_of_somebody_else_are_scored_as_they_stand(profile, tmp_path, suffix):
    items, path = load_items(profile, "train"), tmp_path / f"human{suffix}"
    rows = [{"id": item.id, "response": f"It is {n},\u2028I think.\nYes: {n}"} for n, item in enumerate(items)]
    if suffix == ".csv":
        with path.open("w", newline="") as sink:
            writer = csv.DictWriter(sink, ["response", "id"])
            writer.writeheader()
            writer.writerows(reversed(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    capture(file_job(profile, path))
    capture(training_job(profile, "base-KD"))
    reader, own = open_signals(file_job(profile, path)), open_signals(training_job(profile, "base-KD"))
    tokenizer = load_tokenizer(profile.teacher)
    for row in rows:
        stored = reader.item(row["id"])
        assert stored.response_ids == encode_response(tokenizer, row["response"])
        assert stored.prompt_ids == own.item(row["id"]).prompt_ids and not stored.truncated
        assert len(reader.rows(row["id"], stored.response_ids)) == len(stored.response_ids)
    path.write_text(path.read_text().replace("Yes: 0", "Yes: 7"))
    with pytest.raises(UserError, match="captured with another text"):
        open_signals(file_job(profile, path))


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda rows: rows[:-1], r"has responses to 4 of 5 items \(none to "),
        (lambda rows: [*rows, rows[0]], "stands there twice"),
        (lambda rows: [*rows, {"id": "nobody", "response": "x"}], "'nobody' is no item of train"),
        (lambda rows: [{"id": rows[0]["id"], "response": " "}, *rows[1:]], "has an empty response"),
        (lambda rows: [{"id": rows[0]["id"], "response": "a <|im_end|> b"}, *rows[1:]], "line 1: .*control token"),
        (lambda rows: [["x"], *rows], "line 1 is no JSON object"),
        (lambda rows: [{"id": rows[0]["id"], "response": 4}, *rows[1:]], "line 1: the response is no text"),
        (lambda rows: [{"Id": "1", "Response": "4"}, *rows], "line 1: there is no field 'id', but 'Id, Response'"),
    ],
)
def test_a_file_of_responses_that_does_not_fit_is_refused_before_anything_is_asked(profile, tmp_path, change, said):
    path = tmp_path / "human.jsonl"
    rows = [{"id": item.id, "response": "4"} for item in load_items(profile, "train")]
    path.write_text("".join(json.dumps(row) + "\n" for row in change(rows)))
    with pytest.raises(UserError, match=said):
        capture(file_job(profile, path))
    assert not profile.signals_folder("human-KD").exists()


def test_a_file_that_is_not_there_or_not_text_is_one_sentence(profile, tmp_path):
    with pytest.raises(UserError, match="is not there: mend the path"):
        capture(file_job(profile, tmp_path / "none.csv"))
    (tmp_path / "odd.jsonl").write_bytes(b"\xff\xfe{")
    with pytest.raises(UserError, match="is not UTF-8 text"):
        capture(file_job(profile, tmp_path / "odd.jsonl"))
