"""The study micro: a control and an arm of text measured on documents and benchmarks, their logs, tables and report."""

import copy
import json
import shutil
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from conftest import ROOT, small_profile

from primekd.assessment.as_trained import AsTrained
from primekd.assessment.likelihood import encode_choices, score_choices
from primekd.assessment.logs import read_logs
from primekd.assessment.students import Student
from primekd.assessment.text_fit import measure_documents, pieces_of
from primekd.assessment.watch_choices import ChoicesCallback
from primekd.config import Architecture, LossConfig
from primekd.config.arm import CONTROL, TEACHER
from primekd.foundation import read_json, read_manifest
from primekd.foundation.errors import UserError
from primekd.models import load_model, load_tokenizer, tokenizer_hash
from primekd.models.students import scratch_model
from primekd.report import text as of_text
from primekd.report.cells import to_markdown
from primekd.report.findings import results_page
from primekd.report.html import write_report
from primekd.report.lineage import costs, model_facts, settings
from primekd.report.text import benchmark_contrast_table, benchmark_table, habit_table, read_text_log, text_curves
from primekd.running.verify import check_tables
from primekd.signals import LiveSource
from primekd.studies import micro
from primekd.studies.regrade import regrade
from primekd.studies.text_assessment import _trained
from primekd.tasks.choices import OWN, OWN_SHOWN, RAW, raw_items
from primekd.tasks.load import load_items
from primekd.tasks.text import text_folder
from primekd.tasks.text_shards import held_out
from primekd.teachers.transformers_engine import TransformersEngine
from primekd.training.objective import StudentObjective
from primekd.training.speed import TextLog

LLAMA = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
         "num_attention_heads": 2, "max_position_embeddings": 256}  # fmt: skip
ADAMW = {"optimizer": "adamw", "learning_rate": 0.01, "epochs": 1, "batch_size": 4, "micro_batch_size": 4}
STORY = "Tom has {n} apples and a dog. The dog has {m} cats. Ann counts them all, and gives Tom {n} more. "
CHANGES = {
    "study": "micro", "arms": ["micro-text", "micro-minillm"], "train": ADAMW, "max_new_tokens": 4,
    "data": {"task": "choices", "source": "own", "benchmarks": ["hellaswag", "sst2"], "test_items": 4,
             "train_items": 0, "validation_items": 0, "templates": [], "train_file": None, "test_file": None},
    "loss": {"alpha": 0.5, "temperature": 1.0}, "on_policy": {"prompt_tokens": 4}, "planned": {"main": []},
    "assess": {"batch_size": 8},
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory, lively, ci):
    """A profile whose control and arms are trained, one further seed among them."""
    with pytest.MonkeyPatch.context() as patched:
        output = tmp_path_factory.mktemp("micro")
        patched.setenv("PRIMEKD_OUTPUT", str(output))
        for n in range(40):
            (output / f"story{n:02}.txt").write_text(STORY.format(n=n, m=n * n) * (1 + n % 3))
        profile = small_profile(
            output, **CHANGES, teacher={"model": lively}, seeds={"micro-text": [1]},
            student={"model": None, "lora": None, "from_scratch": LLAMA, "tokenizer": ci.student.model,
                     "dtype": "float32"},
            text={"source": "files", "files": str(output / "story*.txt"), "block_tokens": 32,
                  "held_out_documents": 3, "held_out_tokens": 50, "train_tokens": 512},
            pretrain={"tokens": 256, "train": ADAMW, "choices": 2},
        )  # fmt: skip
        micro.STUDY.refuse(profile)
        micro.tokenise(profile)
        for name, seed in ((CONTROL, 0), (CONTROL, 1), ("micro-text", 0), ("micro-text", 1), ("micro-minillm", 0)):
            micro.train(profile, name, seed)
        yield profile


@pytest.fixture
def assessed(trained, monkeypatch):
    monkeypatch.setenv("PRIMEKD_OUTPUT", str(trained.runs.parents[1]))
    micro.assess(trained)
    return trained


def test_a_documents_row_is_that_of_plain_float64_passes(lively, tmp_path, tokenizer):
    from conftest import save_llama

    student = TransformersEngine(save_llama(tmp_path, tokenizer, seed=5), "float32")
    teacher = TransformersEngine(lively, "float32")
    documents = [torch.arange(300, 343).numpy(), torch.arange(500, 508).numpy()]
    source = LiveSource(teacher, len(tokenizer))
    measured = measure_documents({"own": student}, documents, 16, 40, source)
    first, second = measured["own"]
    assert [len(piece) for piece in pieces_of(documents[0], 16, 40)] == [16, 16, 8]
    assert (first.id, first.teacher_tokens, second.teacher_tokens) == ("document-0", 15 + 15 + 7, 7)
    kl = nll = its_own = 0.0
    for piece in pieces_of(documents[0], 16, 40):
        ids = torch.tensor([piece])
        with torch.no_grad():
            p, q = (e.model(ids).logits[0, :-1, : len(tokenizer)].double().log_softmax(-1) for e in (teacher, student))
        kl += float((p.exp() * (p - q)).sum())
        nll, its_own = (
            sum_ - float(r[torch.arange(len(piece) - 1), ids[0, 1:]].sum()) for sum_, r in ((nll, q), (its_own, p))
        )
    assert measured[TEACHER][0].nll_gold == pytest.approx(its_own, rel=1e-4) and measured[TEACHER][0].kl == 0
    assert first.kl == pytest.approx(kl, rel=1e-4) and first.nll_gold == pytest.approx(nll, rel=1e-4)


def test_every_model_is_measured_and_its_choices_are_a_log(assessed):
    logs, names = read_logs(assessed), [CONTROL, "control-seed1", "micro-text", "micro-text-seed1", "micro-minillm"]
    assert list(logs) == [*names, TEACHER]
    assert all(len(rows) == 8 for rows in logs.values()) and logs[CONTROL][0].response
    documents = held_out(text_folder(assessed), tokenizer_hash(load_tokenizer(assessed.student.speaker)))
    rows = (assessed.logs / "held-out.csv").read_text().splitlines()
    assert len(rows) == 1 + len([*names, TEACHER]) * len(documents)
    manifest = read_json(assessed.logs / "manifest.json")
    for folder, kind in (("choices", "csv"), ("loss_curves", "csv"), ("text_logs", "txt")):
        assert {f"{folder}/{name}.{kind}" for name in names} <= set(manifest["outputs"])
    assert "rollouts/micro-minillm.csv" in manifest["outputs"]
    assert manifest["models"]["micro-minillm"]["inputs"]["on_policy"]["teacher_share"] == 0.2
    speed = manifest["models"][CONTROL]["tokens_per_second"]
    assert speed > 0 and dict(model_facts(manifest, CONTROL))["Tokens a second in training"] == f"{speed:,.0f}"
    lines = read_text_log(assessed.logs / "text_logs" / "control.txt")
    assert {"train", "val", "hella", "hella_token", "sst2"} == set(lines) and lines["hella"][-1][1] in (0.0, 0.5, 1.0)


def test_what_is_measured_is_not_measured_again(assessed, monkeypatch, capsys):
    monkeypatch.setattr("primekd.studies.text_assessment.measure_documents", lambda *_, **__: pytest.fail("measured"))
    shutil.rmtree(assessed.logs)
    micro.assess(assessed)
    micro.assess(assessed)
    assert "their inputs are unchanged" in capsys.readouterr().out


def test_tables_follow_from_the_logs_and_the_report_shows_them(assessed):
    regrade(assessed)
    assert not check_tables(assessed).problems
    table = benchmark_table(assessed.logs)
    assert len(table.rows) == 3 * 6 + 4, "a row a model and benchmark, HellaSwag by both measures, four published ones"
    of_gpt2 = dict(zip(table.head, next(row for row in table.rows if "GPT-2 124M" in str(row[1])), strict=True))
    assert of_gpt2["Benchmark"] == RAW and of_gpt2["acc_token_norm, % [95 %]"] == "29.6", "as it was measured"
    assert not of_gpt2["acc_norm, % [95 %]"]
    against_control = [row for row in benchmark_contrast_table(assessed.logs).rows if "No distillation" in str(row[2])]
    assert {row[0] for row in against_control} == {"hellaswag", RAW} and len(against_control) == 4
    [habits] = habit_table(assessed.logs).rows
    assert "→" in habits[2]
    assert "<svg" in text_curves(assessed.logs)
    page = write_report(assessed).read_text(encoding="utf-8")
    assert 'id="text"' in page and "GPT-2 124M (published)" in page


def test_what_is_said_of_students_of_text_is_of_text():
    """Of the published logs: no answers, no gold solutions, nothing captured, and accuracies of few items."""
    folder = ROOT / "logs" / "micro-pocket"
    page, manifest = (
        to_markdown(results_page(folder)) + "".join(results_page(folder).notes),
        read_manifest(folder / "manifest.json"),
    )
    assert "held-out documents more likely: no difference" in page and "token by token on held-out documents" in page
    assert "own answers" not in page and "gold" not in page and "bootstrap over documents" in page
    assert "fewer than 100 items shows that the machinery runs" in page
    said = {name: dict(model_facts(manifest, name)) for name in (CONTROL, "micro-text", "micro-minillm", TEACHER)}
    assert said[CONTROL]["Signals"] == said["micro-text"]["Signals"] == "none, trained on the text alone"
    assert said["micro-minillm"]["Signals"] == said[TEACHER]["Signals"] == "of the live teacher, none of them stored"
    assert {row[0] for row in costs(manifest, {})} == {"Training", "Assessment", "All"}
    settled = dict(settings(manifest))
    assert settled["Items"] == "choices: 16 test" and settled["Student"].startswith("from scratch")


def curves(folder, monkeypatch, **logs) -> list[dict]:
    """What is plotted of text logs: an entry a line, with the panel that it is on and its points."""
    (folder / "text_logs").mkdir()
    for name, text in logs.items():
        (folder / "text_logs" / f"{name.replace('_', '-')}.txt").write_text(text)
    seen: list[dict] = []

    def drawn(name, size, panels, fill):
        axes = [MagicMock() for _ in range(panels)]
        fill(*axes)
        for panel, one in enumerate(axes):
            seen.extend({"panel": panel, "points": call.args, **call.kwargs} for call in one.plot.call_args_list)
        return "<svg/>"

    monkeypatch.setattr(of_text, "draw", drawn)
    assert of_text.text_curves(folder) == "<svg/>"
    return seen


def test_arms_stand_where_they_start_and_a_surrogate_is_not_drawn_as_a_loss(tmp_path, monkeypatch):
    seen = curves(
        tmp_path, monkeypatch, control="5 train 10\n5 val 10\n5 hella 0.25\n5 hella_token 0.3\n",
        micro_minillm="2 train 100\n2 loss -7\n2 kl 2\n2 val 10\n", online_KD="3 train 10\n3 loss 4\n3 kl 1\n",
        micro_reverse_KL="2 train -0.9\n2 kl 2\n2 val 10\n3 train 0.7\n3 kl 2\n",
    )  # fmt: skip
    at = {line["label"]: line["points"] for line in seen if "label" in line and line["points"][0]}
    assert at["MiniLLM, training"] == ((7,), (2.0,)), "behind the control"
    assert at["online KD, training"] == ((3,), (1.0,)), "from scratch, beside it"
    assert "reverse KL, validation" in at and "reverse KL, training" not in at, "an older log's objective"
    assert [line["points"] for line in seen if line["panel"] == 1][:2] == [((5,), (0.3,)), ((5,), (0.25,))]


def test_without_hellaswag_there_is_no_panel_for_it(tmp_path, monkeypatch):
    assert {line["panel"] for line in curves(tmp_path, monkeypatch, control="5 train 10\n5 val 10\n")} == {0}


def test_benchmarks_are_looked_at_without_changing_the_training(trained, lively, tokenizer, tmp_path):
    model = StudentObjective(load_model(lively, "float32"), LossConfig(), len(tokenizer)).train()
    log = TextLog(tmp_path / "log.txt")
    before = torch.random.get_rng_state()
    callback = ChoicesCallback(trained, log)
    callback.on_train_begin(None, None, None, model=model)
    callback.on_evaluate(None, type("S", (), {"global_step": 7}), None, model=model)
    assert model.training and torch.equal(before, torch.random.get_rng_state())
    labels = [line.split()[:2] for line in log.path.read_text().splitlines()]
    assert labels == [["7", "hella"], ["7", "sst2"], ["7", "hella_token"]]
    model.model.config.max_position_embeddings = 9
    with pytest.raises(UserError, match="hellaswag:.*more than the model's context of 9 holds: lower data.shots"):
        callback.on_train_begin(None, None, None, model=model)


def test_hellaswag_is_asked_as_gpt2s_number_was_too(trained, lively, tokenizer, tmp_path, monkeypatch):
    """build-nanogpt: the row's own context and endings, an ending's mean loss a token, the lowest one chosen."""
    item = raw_items(load_items(trained, "test"))[0]
    row = json.loads((OWN / "hellaswag.jsonl").read_text().splitlines()[OWN_SHOWN])
    assert (item.context, *item.choices) == (row["ctx"], *row["endings"]) and item.label == int(row["label"])
    model, means = load_model(lively, "float32"), []
    for ending in row["endings"]:
        first, behind = (tokenizer(text)["input_ids"] for text in (row["ctx"], f" {ending}"))
        with torch.no_grad():
            logits = model(torch.tensor([first + behind])).logits[0, len(first) - 1 : -1, : len(tokenizer)]
        means.append(float(torch.nn.functional.cross_entropy(logits, torch.tensor(behind))))
    [found] = score_choices(TransformersEngine.around(model, tokenizer), [item])
    assert [-a / n for a, n in zip(found.loglikelihoods, found.tokens, strict=True)] == pytest.approx(means, abs=1e-3)


def test_what_is_scored_is_what_was_trained(trained, tokenizer, tmp_path):
    """Float32 weights, products in bfloat16, as in the steps and in validation: not weights that are rounded first."""
    sharp = {**LLAMA, "hidden_size": 64, "initializer_range": 0.3}
    model = scratch_model(Architecture(**sharp), tokenizer, 1)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    profile = trained.model_copy(update={"student": trained.student.model_copy(update={"dtype": "bfloat16"})})
    engine = _trained(profile, Student("x", tmp_path, {}))()
    objective = StudentObjective(model, LossConfig(), len(tokenizer), dtype="bfloat16")
    items = [item for item in load_items(profile, "test") if item.benchmark == "hellaswag"]
    found = np.array([row.loglikelihoods for row in score_choices(engine, items)])
    during = np.array([row.loglikelihoods for row in score_choices(AsTrained.inside(objective, tokenizer, 8), items)])
    np.testing.assert_array_equal(found, during)
    as_validated, rounded = [], copy.deepcopy(model).bfloat16()
    for item in items:
        context, choices = encode_choices(tokenizer, item)
        ids = [torch.tensor([context + choice]) for choice in choices]
        labels = [x.clone().index_fill_(1, torch.arange(len(context)), -100) for x in ids]
        with torch.no_grad():
            as_validated.append(
                [-float(objective(x, torch.ones_like(x), y)[0]) for x, y in zip(ids, labels, strict=True)]
            )
    other = [row.loglikelihoods for row in score_choices(TransformersEngine.around(rounded, tokenizer), items)]
    gap, of_rounded = (np.abs(found - np.array(x)).mean() for x in (as_validated, other))
    assert gap < 0.1 * of_rounded


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"data": {"task": "gsm8k", "source": "jsonl"}}, "asks models the task choices"),
        ({"teacher": {"engine": "llamacpp"}}, "set teacher.engine: transformers"),
        ({"arms": ("base-KD",), "seeds": {}}, "learns from no text"),
        ({"pretrain": None}, "text and pretrain"),
        ({"max_new_tokens": 300}, r"write up to 304 tokens, more than their context of 256 holds: lower on_policy"),
    ],
)
def test_what_cannot_be_is_refused(trained, changes, said):
    update = {
        key: getattr(trained, key).model_copy(update=value) if key in ("data", "teacher") else value
        for key, value in changes.items()
    }
    with pytest.raises(UserError, match=said):
        micro.STUDY.refuse(trained.model_copy(update=update))


@pytest.mark.parametrize(
    "section, change, said",
    [
        ("train", {"learning_rate": 0.5}, r"micro-text differs from the profile \(train\)"),
        ("text", {"documents_apart": False}, "control differs from the profile .blocks.: train it again"),
        ("teacher", {"dtype": "bfloat16"}, "micro-minillm differs from the profile .signals."),
    ],
)
def test_a_student_of_another_profile_is_refused(trained, monkeypatch, section, change, said):
    """Else old and new students would stand in one contrast, logged with today's settings."""
    monkeypatch.setenv("PRIMEKD_OUTPUT", str(trained.runs.parents[1]))
    assert len(micro.students(trained)) == 5
    section_of = getattr(trained, section)
    with pytest.raises(UserError, match=said):
        micro.students(trained.model_copy(update={section: section_of.model_copy(update=change)}))


def test_a_missing_student_is_named(trained):
    with pytest.raises(UserError, match="micro-forward-KL has no student"):
        micro.students(trained.model_copy(update={"arms": ("micro-forward-KL",), "seeds": {}}))
