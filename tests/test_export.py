"""Students for others: what is exported is the student, in every format; what cannot be exported leaves nothing."""

import errno
import json
import re
from pathlib import Path

import pytest
import torch
from chat_families import FAMILIES, family_tokenizer
from conftest import ROOT, save_llama, small_profile
from jinja2 import Environment

from primekd.foundation import read_json, write_manifest
from primekd.foundation.errors import UserError
from primekd.foundation.outside import hide
from primekd.foundation.tables import write_table
from primekd.models import load_model, load_tokenizer
from primekd.models.chat import build_prompt
from primekd.models.gguf_files import refuse_other_tokens, write_f16
from primekd.models.modelfile import go_template, modelfile, portable
from primekd.models.served import load_beside, load_merged, own_logits
from primekd.models.students import new_student, save_student
from primekd.models.template import render
from primekd.models.whole import ROUNDING, distance
from primekd.running import export as module
from primekd.running.export import export, trained_student
from primekd.running.model_card import accuracy_of, plain
from primekd.statistics.summary import SummaryRow
from primekd.tasks.load import load_items
from primekd.tasks.text import begins_with_bos
from primekd.teachers import Sampling
from primekd.teachers.transformers_engine import TransformersEngine
from primekd.training.distill import student_inputs

ARM = "base-fine-tune"
LORA = {"rank": 2, "alpha": 4, "target_modules": "all-linear"}
SIZES = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 2}


def taught(profile):
    """A student with an adapter (or weights) that change answers, as a training leaves it."""
    trained, generator = new_student(profile.student, 0), torch.Generator().manual_seed(1)
    for name, parameter in trained.named_parameters():
        if "lora_B" in name or profile.student.from_scratch:
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    folder = profile.student_folder(ARM)
    files = save_student(trained, folder, profile.student)
    inputs = student_inputs(profile, ARM, profile.seed, None)
    facts = {"seconds": 61.0, "energy_kwh": 0.001, "energy_method": "measured", "config": profile.resolved()}
    write_manifest(folder, "adapter", inputs, files, **facts)
    return folder


@pytest.fixture(scope="module")
def profile(lively, tmp_path_factory):
    """ci with the lively student, trained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRIMEKD_OUTPUT", str(tmp_path_factory.mktemp("runs")))
        made = small_profile(tmp_path_factory.mktemp("configs"), student={"model": lively, "lora": LORA})
        taught(made)
        yield made


@pytest.fixture(scope="module")
def exported(profile):
    kinds = ["F16", "Q8_0"] if has_llamacpp() else ["F16"]
    return export(profile, ARM, gguf=kinds, dtype="float32")


def has_llamacpp() -> bool:
    import importlib.util

    return importlib.util.find_spec("llama_cpp") is not None


def prompts_of(profile) -> list[list[int]]:
    tokenizer = load_tokenizer(profile.student)
    return [list(build_prompt(tokenizer, item.messages)) for item in load_items(profile, "test")]


def answers(engine, prompts, most: int = 8) -> list[list[int]]:
    return [response.ids for response in engine.generate(prompts, Sampling(most))]


def test_transformers_reads_the_student_and_it_answers_as_it_was_assessed(profile, exported):
    prompts = prompts_of(profile)
    wanted = answers(TransformersEngine(profile.student.model, "float32", 4, taught_folder(profile)), prompts)
    assert wanted != answers(TransformersEngine(profile.student.model, "float32", 4), prompts)
    assert answers(TransformersEngine(f"path:{exported}", "float32", 4), prompts) == wanted
    model, tokenizer = load_model(f"path:{exported}", "float32"), load_tokenizer(f"path:{exported}")
    assert model.config.vocab_size == len(tokenizer) == len(load_tokenizer(profile.student))
    assert tokenizer.chat_template == load_tokenizer(profile.student).chat_template
    assert model.generation_config.eos_token_id == [2] and not model.generation_config.do_sample


def taught_folder(profile) -> Path:
    return profile.student_folder(ARM) / "adapter"


def test_llama_cpp_answers_as_the_merged_model_under_greedy_decoding(profile, exported):
    pytest.importorskip("llama_cpp")
    from primekd.teachers.llamacpp_engine import LlamaCppEngine

    prompts, tokenizer = prompts_of(profile), load_tokenizer(f"path:{exported}")
    wanted = answers(TransformersEngine(f"path:{exported}", "float32", 4), prompts)
    engine = LlamaCppEngine(f"path:{exported / f'{ARM}-F16.gguf'}", 512, 4, tokenizer)
    assert engine.model.columns == len(tokenizer)
    assert answers(engine, prompts) == wanted and len({tuple(ids) for ids in wanted}) > 1


def test_the_card_and_the_manifest_say_what_was_exported_and_no_folder_of_this_machine(profile, exported):
    manifest, card = read_json(exported / "manifest.json"), (exported / "README.md").read_text()
    assert set(manifest["outputs"]) == {p.name for p in exported.iterdir()} - {"manifest.json"}
    assert manifest["merge"]["largest"] < 1e-5 and manifest["rounding"]["kl"] < 1e-9  # float32 rounds nothing
    assert manifest["rounding"]["equal_top"] == 1 and manifest["as_scored"]["dtype"] == "float32"
    assert manifest["code"]["modules"] and manifest["seconds"] > 0
    for said in ("| Seed | 0 |", "not measured", "1 min 1 s, 1.00 Wh (measured)", "| Base model | path:", "rank 2"):
        assert said in card, said
    texts = [p.read_bytes().decode(errors="replace") for p in exported.iterdir() if p.suffix not in (".gguf",)]
    for private in (str(ROOT), str(exported.parent), str(Path.home()), str(Path(profile.student.model[5:]).parent)):
        assert private == "/" or not any(private in text for text in texts), private


def test_an_accuracy_stands_on_the_card_only_if_these_very_weights_were_scored(profile, monkeypatch, tmp_path):
    student = trained_student(profile, ARM)
    assert accuracy_of(profile, student) is None
    cells = {"model": ARM, "title": "x", "n": 8, "correct": 2, "accuracy": 0.25, "accuracy_low": 0.1}
    row = SummaryRow(**{f: 0 for f in SummaryRow.__dataclass_fields__} | cells | {"accuracy_high": 0.6})
    monkeypatch.setattr(type(profile), "logs", property(lambda self: tmp_path))
    for weights, n in (({"adapter/x": "0"}, None), (module.weight_hashes(student.manifest), "8")):
        table = write_table(tmp_path / "summary.csv", SummaryRow, [row])
        write_manifest(tmp_path, "assessment", {"students": {ARM: weights}}, [table])
        found = accuracy_of(profile, student)
        assert (found and found["n"]) == n
    facts = {"merge": None, "gguf": {}, "chats": True}
    facts |= {key: {"kl": 1e-3, "equal_top": 1.0, "tokens": 3, "dtype": "x"} for key in ("rounding", "as_scored")}
    card = module.model_card(profile, student, {"accuracy": found}, facts, {})
    assert "25.0 [10.0, 60.0], n = 8, before it was exported" in card


def test_the_same_export_is_left_and_another_folder_is_refused(profile, exported, capsys, tmp_path):
    before = (exported / "manifest.json").read_bytes()
    kinds = ["Q8_0", "F16", "F16"] if has_llamacpp() else ["F16"]
    assert export(profile, ARM, gguf=kinds, dtype="float32") == exported
    assert "nothing to do" in capsys.readouterr().out and (exported / "manifest.json").read_bytes() == before
    (tmp_path / "mine").write_text("")
    for to, dtype in ((None, "bfloat16"), (tmp_path, "float32")):
        with pytest.raises(UserError, match="is there, and is no export of this student in these types"):
            export(profile, ARM, to=to, dtype=dtype)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_an_adapter_of_another_base_and_an_altered_student_are_refused(profile, tokenizer, tmp_path, monkeypatch):
    other, runs = save_llama(tmp_path / "other", tokenizer, seed=2), profile.runs
    for changes, said in (
        ({"model": other}, "is an adapter of .*, not of "),
        ({"lora": LORA | {"rank": 3}}, "has another student than"),
        ({"template_arguments": {"messages_": 1}}, "knows no messages_"),
    ):
        given = {"model": profile.student.model, "lora": LORA} | changes
        changed = small_profile(tmp_path, student=given)
        monkeypatch.setattr(type(changed), "runs", property(lambda self: runs))
        with pytest.raises(UserError, match=said):
            export(changed, ARM, to=tmp_path / "x")
    with pytest.raises(UserError, match="base-KD has no student: run .* or `primekd distill base-KD` first"):
        export(profile, "base-KD", to=tmp_path / "x")
    config = taught_folder(profile) / "adapter_config.json"
    text = config.read_text()
    config.write_text(text + " ")
    with pytest.raises(UserError, match="adapter_config.json missing or altered"):
        export(profile, ARM, to=tmp_path / "x")
    config.write_text(text)
    assert not (tmp_path / "x").exists()


def test_a_merge_that_changes_more_than_rounding_is_refused_and_leaves_nothing(profile, monkeypatch, tmp_path):
    def without(model, dtype, adapter, **how):
        return load_model(model, dtype)

    monkeypatch.setattr("primekd.models.whole.load_merged", without)
    with pytest.raises(UserError, match=r"merged, makes other logits than beside the weights .* train it again"):
        export(profile, ARM, to=tmp_path / "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("when", ["before", "tensors", "saving"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(profile, monkeypatch, tmp_path, when):
    import gguf
    from transformers import LlamaForCausalLM

    def full(*_, **__):
        raise (
            OSError(errno.ENOSPC, "No space left on device") if when == "saving" else OSError("9 requested, 0 written")
        )

    if when == "before":
        monkeypatch.setattr(
            module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})
        )  # of millions of bytes
    if when == "tensors":
        monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    if when == "saving":
        monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", full)
    with pytest.raises(UserError, match="free some space|The disk is full: .*x could not be written"):
        export(profile, ARM, to=tmp_path / "x", gguf=["F16"] if when == "tensors" else [])
    assert not list(tmp_path.iterdir())


def test_a_student_from_scratch_is_exported_and_the_share_of_fallen_back_weights_is_said(tmp_path, lively, output):
    pytest.importorskip("llama_cpp")
    scratch = {"from_scratch": SIZES | {"model_type": "llama"}, "tokenizer": lively, "model": None, "lora": None}
    made = small_profile(tmp_path, student=scratch)
    taught(made)
    folder = export(made, ARM, gguf=["Q4_K_M"])
    kept = read_json(folder / "manifest.json")
    [entry] = kept["gguf"].values()
    layers = 4 * 64 * 64 + 2 * 64 * 256
    whole = 64 * len(load_tokenizer(lively)) + layers + 64 * 256
    assert entry["of_other_types"] == pytest.approx(1 - 64 * 256 / whole)  # ffn_down alone has rows of 256
    assert kept["merge"] is None and 0 < kept["rounding"]["kl"] < 0.05
    assert {p.name for p in folder.glob("*.gguf")} == {f"{ARM}-Q4_K_M.gguf"}
    assert (folder / "Modelfile").read_text().startswith(f"FROM ./{ARM}-Q4_K_M.gguf\nTEMPLATE")


def test_an_adapter_over_4_bits_is_merged_into_the_dequantised_weights(lively, tmp_path):
    pytest.importorskip("bitsandbytes")
    made = small_profile(tmp_path, student={"model": lively, "lora": LORA})
    adapter = new_student(made.student, 0)
    for name, parameter in adapter.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    save_student(adapter, tmp_path, made.student)
    rows = []
    for model in (
        load_beside(lively, "float32", tmp_path / "adapter", "nf4"),
        load_merged(lively, "float32", tmp_path / "adapter", quantization="nf4"),
        load_merged(lively, "float32", tmp_path / "adapter"),
    ):
        rows.append(own_logits(model, [[5, 6, 7]], [[8, 9, 10]], 49152))
    assert distance(rows[0], rows[1]).largest < ROUNDING < distance(rows[0], rows[2]).largest


# GGUF files of other kinds of models.


def kinds_of_models():
    """Configuration, what is special about it, and what of its weights is."""
    from transformers import LlamaConfig, Qwen2Config

    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    return {
        "llama3": (LlamaConfig, {"rope_parameters": rope | {"original_max_position_embeddings": 16}}, "none"),
        "qwen2": (Qwen2Config, {}, "bias"),
    }


@pytest.mark.parametrize("kind", ["llama3", "qwen2"])
def test_scaled_rotary_positions_and_biases_are_llama_cpps_too(kind, tokenizer, tmp_path):
    pytest.importorskip("llama_cpp")
    from transformers import AutoModelForCausalLM

    from primekd.teachers.llamacpp_context import Context, Model

    config, more, ending = kinds_of_models()[kind]
    sizes = {**SIZES, "num_key_value_heads": 1, "head_dim": 32, "vocab_size": len(tokenizer), "initializer_range": 0.3}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**sizes | more, max_position_embeddings=128)).eval()
    plain_one = AutoModelForCausalLM.from_config(config(**sizes, max_position_embeddings=128)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(ending):
            parameter.data.normal_()
    plain_one.load_state_dict(
        {n: torch.zeros_like(t) if n.endswith(ending) else t for n, t in model.state_dict().items()}
    )
    write_f16(model, tokenizer, tmp_path / "x.gguf", "x")
    ids = torch.arange(60)[None] * 7 % 256
    with torch.inference_mode():
        wanted, other = (one(input_ids=ids).logits[0] for one in (model, plain_one))
    context = Context(read := Model(tmp_path / "x.gguf"), 1, 64)
    found = torch.from_numpy(context.predict(ids[0].tolist(), range(60), 0)[0].copy())
    assert (found - wanted).abs().max() < 0.05 * wanted.std()  # F16 weights, and keys and values in F16
    assert (found - other).abs().max() > wanted.std()
    context.close()
    read.close()


def test_a_sentencepiece_tokenizer_reads_in_llama_cpp_as_here_and_other_tokens_are_refused(tmp_path):
    pytest.importorskip("llama_cpp")
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    text = (ROOT / "README.md").read_text()
    raw.train_from_iterator(text.splitlines(), trainers.BpeTrainer(vocab_size=600, special_tokens=special[:3]))
    parts = json.loads(raw.to_str())
    vocabulary = [*special, *(t for t in parts["model"]["vocab"] if t not in special)]
    parts["model"] |= {"vocab": {t: i for i, t in enumerate(vocabulary)}, "byte_fallback": True}
    parts["added_tokens"] = [token | {"id": special.index(token["content"])} for token in parts["added_tokens"]]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(parts)), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    model = LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=len(tokenizer)))
    write_f16(model, tokenizer, tmp_path / "x.gguf", "x")
    asked = ["How many apples has Ann?", "Ünï: 12,345 € – née", "a  b\n\nc"]
    ids = [tokenizer(one, add_special_tokens=False)["input_ids"] for one in asked]
    refuse_other_tokens(tmp_path / "x.gguf", asked, ids)
    with pytest.raises(UserError, match="llama.cpp reads the profile's prompts as other tokens"):
        refuse_other_tokens(tmp_path / "x.gguf", asked, [*ids[:2], ids[2][1:]])


def test_what_cannot_be_written_as_gguf_is_refused_in_a_sentence(profile, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="--gguf Q5_0 is not made here: name F16"):
        export(profile, ARM, to=tmp_path / "x", gguf=["F16", "Q5_0"])
    monkeypatch.setattr("primekd.models.gguf_files.ARCHITECTURES", ("qwen2",))
    with pytest.raises(UserError, match=r"of the kind llama \(default\) is not made here: .*convert_hf_to_gguf.py"):
        export(profile, ARM, to=tmp_path / "x", gguf=["F16"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="`make setup-llamacpp`, or --gguf F16 alone"):
        export(profile, ARM, to=tmp_path / "x", gguf=["Q8_0"])
    assert not list(tmp_path.iterdir())


# Templates for others.


def ollama(template: str, messages: list[dict]) -> str:
    """What Ollama's template makes of messages: the few of its words that are used, in Jinja's."""
    words = {
        r"\{\{ range \$i, \$_ := \.Messages \}\}": "{% for m in ms %}{% set i = loop.index0 %}",
        r"\{\{ if eq \.Role (\"\w+\") \}\}": r"{% if m.role == \1 %}",
        r"\{\{ else if eq \.Role (\"\w+\") \}\}": r"{% elif m.role == \1 %}",
        r"\{\{ else if eq \$i (\d) \}\}": r"{% elif i == \1 %}",
        r"\{\{ else \}\}": "{% else %}",
        r"\{\{ end \}\}\{\{ \.Content \}\}\{\{ end \}\}": "{% endif %}{{ m.content }}{% endfor %}",
    }
    for pattern, jinja in words.items():
        template = re.sub(pattern, jinja, template)
    return Environment(keep_trailing_newline=True).from_string(template).render(ms=messages)


@pytest.mark.parametrize("family", ["pocket", *FAMILIES])
def test_ollamas_template_writes_what_the_chat_template_does(family, tokenizer):
    found = tokenizer if family == "pocket" else family_tokenizer(family)
    say = [{"role": role, "content": f"text {n}"} for n, role in enumerate(("user", "assistant", "user"))]
    talks = [say[:1], say] + ([] if family in ("gemma", "spaced") else [[{"role": "system", "content": "S"}, *say]])
    text = re.search(r'TEMPLATE """(.*?)"""\n', modelfile(found, "x.gguf"), re.DOTALL)[1]
    for talk in talks:
        wanted = render(found, talk)
        assert ollama(text, talk) == (wanted.removeprefix(found.bos_token) if begins_with_bos(found) else wanted)
    assert 'PARAMETER stop "' in modelfile(found, "x.gguf")


def test_braces_and_quotes_in_a_template_stay_text_in_ollamas(tokenizer):
    import copy

    odd = copy.deepcopy(tokenizer)
    odd.chat_template = '{% for m in messages %}{{ \'{{\' }}"""{{ m.content }}<|im_end|>{% endfor %}'
    said = go_template(odd)
    assert '"""' not in said
    assert ollama(said, [{"role": "user", "content": "a"}]) == '{{"""a<|im_end|>'


def test_a_template_that_is_taken_along_needs_no_arguments_and_no_date():
    for family, arguments in (("qwen", {"enable_thinking": False}), ("llama", {}), ("qwen", {})):
        tokenizer = family_tokenizer(family)
        tokenizer.template_arguments = arguments
        alone = portable(tokenizer)
        asked = [{"role": "user", "content": "a"}]
        found = alone.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        assert found == render(tokenizer, asked)
        assert (alone.chat_template == tokenizer.chat_template) == (family == "qwen" and not arguments)


def test_foreign_text_on_a_card_is_text_and_names_no_folder_and_no_secret():
    hide("sk-123456789012345678901234")
    odd = "<script>a|b</script> [x](javascript:y) `z`\n# t path:/srv/ann/m/x.gguf C:\\u\\ann\\f"
    said = plain(f"{odd} sk-123456789012345678901234")
    assert not re.search(r"<|(?<!\\)[|`\[\]]|\n|/srv|ann|sk-1234", said) and "path:x.gguf" in said
    assert plain("hub:owner/name@main") == "hub:owner/name@main" and plain("models/x y") == "models/x y"
    assert plain("https://a.org/b") == "https://a.org/b"
