"""Students for others: `primekd.load_student`, and adapters that peft loads by the base that they name."""

import re

import pytest
import torch
from conftest import POCKET, ROOT, save_llama, small_profile

import primekd
from primekd.config import LoraSettings, StudentConfig
from primekd.foundation import read_json, storage, write_manifest
from primekd.foundation.errors import UserError
from primekd.models import load_tokenizer, model_hash
from primekd.models.chat import build_prompt
from primekd.models.reference import base_name
from primekd.models.served import require_same_base
from primekd.models.students import new_student, save_adapter, save_student
from primekd.teachers import Sampling
from primekd.teachers.transformers_engine import TransformersEngine
from primekd.training.distill import distill

QUESTION = "Ann has 3 apples and buys 4 more. How many has she?"
LORA = LoraSettings(rank=2, alpha=4)


def taught(folder, model: str, dtype: str = "float32", weight: float = 0.1):
    """A student's folder with an adapter that changes answers, as a training leaves it."""
    student = StudentConfig(model=model, dtype=dtype, lora=LORA)
    trained, generator = new_student(student, 0), torch.Generator().manual_seed(1)
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            parameter.data = weight * torch.randn(parameter.shape, generator=generator)
    files = save_student(trained, folder, student)
    settings = student.model_dump(mode="json", exclude_none=True) | {"model_sha256": model_hash(model)}
    write_manifest(folder, "adapter", {"student": settings}, files)
    return folder


def answer(model, tokenizer) -> list[int]:
    prompt = torch.tensor([build_prompt(tokenizer, QUESTION)])
    return model.generate(prompt, max_new_tokens=8)[0, prompt.shape[1] :].tolist()


def assessed(model: str, dtype: str, adapter=None) -> list[int]:
    engine = TransformersEngine(model, dtype, 1, adapter)
    return engine.generate([build_prompt(engine.tokenizer, QUESTION)], Sampling(8))[0].ids


@pytest.mark.parametrize("kind", ["package", "path"])
def test_a_loaded_student_answers_as_in_the_assessment(kind, lively, tmp_path):
    model, dtype, weight = (POCKET, "bfloat16", 0.02) if kind == "package" else (lively, "float32", 0.5)
    folder = taught(tmp_path / "ai-KD", model, dtype, weight)
    wanted = assessed(model, dtype, folder / "adapter")
    assert wanted != assessed(model, dtype)  # the adapter is on, or this says nothing
    assert answer(*primekd.load_student(folder)) == wanted
    assert answer(*primekd.load_student(str(folder / "adapter"))) == wanted


def test_a_student_of_a_whole_training_is_loaded_from_its_manifest_alone(output):
    profile = small_profile(output, data={"train_items": 4, "validation_items": 2, "test_items": 2})
    folder = distill(profile, "base-fine-tune")
    model, tokenizer = primekd.load_student(folder)
    assert answer(model, tokenizer) == assessed(profile.student.model, profile.student.dtype, folder / "adapter")
    assert tokenizer.get_vocab() == load_tokenizer(profile.student).get_vocab()


def test_a_student_from_scratch_is_loaded(tokenizer, tmp_path, lively):
    from primekd.config import Architecture

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    student = StudentConfig(from_scratch=Architecture(model_type="llama", **sizes), tokenizer=lively, dtype="float32")
    files = save_student(new_student(student, 0), tmp_path / "s", student)
    inputs = {"student": student.model_dump(mode="json", exclude_none=True)}
    write_manifest(tmp_path / "s", "model", inputs, files)
    assert len(answer(*primekd.load_student(tmp_path / "s" / "model"))) > 0
    settings = inputs["student"] | {"dtype": "bfloat16"}
    write_manifest(tmp_path / "s", "model", {"student": settings, "text": {"shard": "x"}}, files)
    model, own = primekd.load_student(tmp_path / "s")
    assert {p.dtype for p in model.parameters()} == {torch.float32}, "its weights were trained in float32"
    assert own.chat_template is None and own.eos_token == "<|endoftext|>"
    assert model.generation_config.eos_token_id in (own.eos_token_id, [own.eos_token_id])
    assert load_tokenizer(student).chat_template, "others' tokenizer stays as it was"


def test_what_is_no_whole_student_is_refused_with_what_to_do(lively, tmp_path):
    with pytest.raises(UserError, match=r"has no manifest.json, so no student.*peft"):
        primekd.load_student(tmp_path)
    folder = taught(tmp_path / "ai-KD", lively)
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"adapter/adapter_config.json missing or altered"):
        primekd.load_student(folder)
    (tmp_path / "file").write_text("")
    write_manifest(tmp_path, "adapter", {"student": {"model": lively, "dtype": "float8"}}, [tmp_path / "file"])
    with pytest.raises(UserError, match=r"of no student .*dtype.*train it again"):
        primekd.load_student(tmp_path)
    write_manifest(tmp_path, "signals", {}, [tmp_path / "file"])
    with pytest.raises(UserError, match="is of no student"):
        primekd.load_student(tmp_path)


def test_only_what_is_there_can_be_taken_from_the_package():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = primekd.nothing


def test_the_example_of_the_docs_runs(lively, tmp_path, capsys):
    text = (ROOT / "docs" / "export.md").read_text(encoding="utf-8").partition("## From Python")[2]
    code = re.search(r"```python\n(import primekd.*?)```", text, re.DOTALL)[1]
    folder = taught(tmp_path / "ai-KD", lively, weight=0.5)
    exec(code.replace("runs/pocket/students/ai-KD", str(folder)).replace("=128", "=4"), {})  # noqa: S102
    assert capsys.readouterr().out.strip()


# The names of bases in adapter_config.json.


@pytest.mark.parametrize(
    "reference, name, revision",
    [
        ("hub:meta-llama/Llama-3.1-8B-Instruct@0e9e39f", "meta-llama/Llama-3.1-8B-Instruct", "0e9e39f"),
        ("hub:meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct", None),
        ("path:models/./base", "models/base", None),
        ("path:../base", None, None),
        (POCKET, POCKET, None),
        ("path:models/a.gguf", "path:models/a.gguf", None),
    ],
)
def test_a_base_has_the_name_that_peft_can_load_or_its_reference(reference, name, revision):
    outside = (storage.project_root().parent / "base").as_posix()
    assert base_name(reference) == (name or outside, revision)


def test_a_folder_of_the_checkout_is_named_without_this_machines_path(tokenizer, tmp_path, monkeypatch):
    from peft import AutoPeftModelForCausalLM

    monkeypatch.setenv("PRIMEKD_ROOT", str(tmp_path))
    save_llama(tmp_path / "models" / "base", tokenizer, seed=3)
    model = f"path:{tmp_path}/models/base"
    folder = taught(tmp_path / "runs" / "p" / "students" / "s", model, weight=0.5)
    config = (folder / "adapter" / "adapter_config.json").read_text()
    assert str(tmp_path) not in config and '"models/base"' in config
    require_same_base(folder / "adapter", model)
    require_same_base(folder / "adapter", "path:models/base")

    monkeypatch.chdir(tmp_path)
    ids = torch.tensor([build_prompt(tokenizer, QUESTION)])
    student, _ = primekd.load_student(folder)
    with torch.inference_mode():
        by_peft = AutoPeftModelForCausalLM.from_pretrained(folder / "adapter").eval()(ids).logits
        torch.testing.assert_close(by_peft, student(ids).logits, rtol=1e-4, atol=1e-4)


def test_peft_asks_for_the_hub_model_and_its_revision(lively, tmp_path, monkeypatch):
    import peft.auto
    from transformers import AutoModelForCausalLM

    student = new_student(StudentConfig(model=lively, dtype="float32", lora=LORA), 0)
    save_adapter(student, tmp_path, "hub:owner/base@abc123")
    plain, asked = AutoModelForCausalLM.from_pretrained, []

    def load(name, *, revision=None, **options):
        asked.append((name, revision))
        return plain(lively.removeprefix("path:"), **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    monkeypatch.setattr(peft.auto, "check_file_exists_on_hf_hub", lambda *_, **__: False)
    peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert asked == [("owner/base", "abc123")]
    require_same_base(tmp_path / "adapter", "hub:owner/base@abc123")
    with pytest.raises(UserError, match="adapter of owner/base, not of hub:owner/other"):
        require_same_base(tmp_path / "adapter", "hub:owner/other")


def test_an_adapter_of_pockets_base_keeps_the_bytes_that_published_manifests_name(tmp_path):
    config = read_json(taught(tmp_path / "s", POCKET, "bfloat16") / "adapter" / "adapter_config.json")
    assert (config["base_model_name_or_path"], config["revision"]) == (POCKET, None)
