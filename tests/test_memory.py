"""Where the GPU's memory runs out. Fake: the error, which torch raises on a GPU alone."""

import pytest
import torch
from conftest import small_profile

from primekd.assessment import score as scoring
from primekd.capture.jobs import training_job
from primekd.capture.run import capture
from primekd.foundation.errors import UserError
from primekd.foundation.memory import gpu_memory
from primekd.training import distill as distilling
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
