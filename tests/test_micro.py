"""The study micro: a control and an arm of text measured on documents and benchmarks, their logs, tables and report."""

import shutil

import pytest
import torch
from conftest import small_profile

from primekd.assessment.logs import read_logs
from primekd.assessment.text_fit import measure_documents, pieces_of
from primekd.assessment.watch_choices import ChoicesCallback
from primekd.config import LossConfig
from primekd.config.arm import CONTROL, TEACHER
from primekd.foundation.errors import UserError
from primekd.foundation.provenance import read_json
from primekd.models import load_model, load_tokenizer, tokenizer_hash
from primekd.report.html import write_report
from primekd.report.text import benchmark_table, habit_table, read_text_log, text_curves
from primekd.running.verify import check_tables
from primekd.signals import LiveSource
from primekd.studies import micro
from primekd.studies.regrade import regrade
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
    [first, second] = measure_documents({"own": student}, documents, 16, 40, source)["own"]
    assert [len(piece) for piece in pieces_of(documents[0], 16, 40)] == [16, 16, 8]
    assert (first.id, first.teacher_tokens, second.teacher_tokens) == ("document-0", 15 + 15 + 7, 7)
    kl = nll = 0.0
    for piece in pieces_of(documents[0], 16, 40):
        ids = torch.tensor([piece])
        with torch.no_grad():
            p, q = (e.model(ids).logits[0, :-1, : len(tokenizer)].double().log_softmax(-1) for e in (teacher, student))
        kl += float((p.exp() * (p - q)).sum())
        nll -= float(q[torch.arange(len(piece) - 1), ids[0, 1:]].sum())
    assert first.kl == pytest.approx(kl, rel=1e-4) and first.nll_gold == pytest.approx(nll, rel=1e-4)


def test_every_model_is_measured_and_its_choices_are_a_log(assessed):
    logs, names = read_logs(assessed), [CONTROL, "control-seed1", "micro-text", "micro-text-seed1", "micro-minillm"]
    assert list(logs) == [*names, TEACHER]
    assert all(len(rows) == 8 for rows in logs.values()) and logs[CONTROL][0].response
    documents = held_out(text_folder(assessed), tokenizer_hash(load_tokenizer(assessed.student.speaker)))
    rows = (assessed.logs / "held-out.csv").read_text().splitlines()
    assert len(rows) == 1 + len(names) * len(documents)
    manifest = read_json(assessed.logs / "manifest.json")
    for folder, kind in (("choices", "csv"), ("loss_curves", "csv"), ("text_logs", "txt")):
        assert {f"{folder}/{name}.{kind}" for name in names} <= set(manifest["outputs"])
    assert "rollouts/micro-minillm.csv" in manifest["outputs"]
    assert manifest["models"]["micro-minillm"]["inputs"]["on_policy"]["teacher_share"] == 0.2
    lines = read_text_log(assessed.logs / "text_logs" / "control.txt")
    assert {"train", "val", "hella", "sst2"} == set(lines) and lines["hella"][-1][1] in (0.0, 0.5, 1.0)


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
    assert len(table.rows) == 2 * 6 + 4, "a row a model and benchmark, and four published ones"
    [habits] = habit_table(assessed.logs).rows
    assert "→" in habits[2]
    assert "<svg" in text_curves(assessed.logs)
    page = write_report(assessed).read_text(encoding="utf-8")
    assert 'id="text"' in page and "GPT-2 124M (published)" in page


def test_benchmarks_are_looked_at_without_changing_the_training(trained, lively, tokenizer, tmp_path):
    model = StudentObjective(load_model(lively, "float32"), LossConfig(), len(tokenizer)).train()
    log = TextLog(tmp_path / "log.txt")
    before = torch.random.get_rng_state()
    ChoicesCallback(trained, log).on_evaluate(None, type("S", (), {"global_step": 7}), None, model=model)
    assert model.training and torch.equal(before, torch.random.get_rng_state())
    assert [line.split()[:2] for line in log.path.read_text().splitlines()] == [["7", "hella"], ["7", "sst2"]]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"data": {"task": "gsm8k", "source": "jsonl"}}, "asks models the task choices"),
        ({"teacher": {"engine": "llamacpp"}}, "set teacher.engine: transformers"),
        ({"arms": ("base-KD",), "seeds": {}}, "learns from no text"),
        ({"pretrain": None}, "text and pretrain"),
    ],
)
def test_what_cannot_be_is_refused(trained, changes, said):
    update = {
        key: getattr(trained, key).model_copy(update=value) if key in ("data", "teacher") else value
        for key, value in changes.items()
    }
    with pytest.raises(UserError, match=said):
        micro.STUDY.refuse(trained.model_copy(update=update))


def test_a_missing_student_is_named(trained):
    with pytest.raises(UserError, match="micro-forward-KL has no student"):
        micro.students(trained.model_copy(update={"arms": ("micro-forward-KL",), "seeds": {}}))
