"""The pocket profile's teacher: a LoRA adapter trained on gold solutions, merged and written as a quantised GGUF file,
which a local engine serves as it does the large one. The adapter is kept in git; the file is built from it at set-up.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from random import Random

import numpy as np
from safetensors.numpy import load_file

from primekd.capture.primings import priming_of
from primekd.config import Arm, PrepareConfig, Profile, StudentConfig, get_arm, load_arms, unprimed
from primekd.foundation import MANIFEST, UserError, altered_outputs, read_manifest, write_manifest
from primekd.foundation.memory import gpu_memory
from primekd.foundation.stage_code import forced_since, stage_code, stands
from primekd.foundation.storage import now, project_root, read_json, relative_name, write_atomically
from primekd.models import load_tokenizer, model_hash, parse_reference, require_local, template_hash, tokenizer_hash
from primekd.models.chat import Priming, build_prompt, encode_response, join
from primekd.models.gguf_files import permute_rotary
from primekd.tasks import Item, hash_items, load_items, refuse_overlap
from primekd.tasks.forms import FORMS
from primekd.training.distill import begin
from primekd.training.train_student import Lesson, train_student

# GGUF name of each linear layer of a Llama block -> peft's name for it.
ATTENTION = {"attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj", "attn_output": "o_proj"}
LINEAR_LAYERS = {name: f"self_attn.{layer}" for name, layer in ATTENTION.items()}
LINEAR_LAYERS |= {f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")}


def settings(profile: Profile) -> PrepareConfig:
    """The profile's `prepare` section. Raises UserError if it has none; its teacher is downloaded, not made."""
    if profile.prepare is None:
        raise UserError(f"{profile.name} has no section `prepare`: its teacher is not made by this project.")
    return profile.prepare


def primed_arms(solutions: Mapping[str, str]) -> list[Arm]:
    """The arms whose priming texts are taught. Raises UserError if `solutions` names one that has none of its own."""
    for name in solutions:
        if not (arm := get_arm(name)).priming and arm.name != unprimed().name:
            raise UserError(f"prepare.solutions names {name}, which has no priming of its own: take it out.")
    return [arm for arm in load_arms().values() if arm.priming and (not arm.extra or arm.name in solutions)]


def primed_examples(profile: Profile, tokenizer, items: list[Item], fraction: float) -> list:
    """Gold solutions in `prepare.solutions`' forms, `fraction` of them under a random priming: none is foreign then."""
    from primekd.training.examples import Example

    solutions = settings(profile).solutions
    random, arms, plain = Random(profile.seed), primed_arms(solutions), unprimed()
    examples = []
    for item in items:
        arm = random.choice(arms) if random.random() < fraction else plain
        form = FORMS[solutions.get(arm.name, solutions.get(plain.name, "gold"))]
        prompt = build_prompt(tokenizer, item.messages, priming_of(arm, profile.teacher))
        response = encode_response(tokenizer, form(item.solution, random))
        examples.append(Example(item.id, join(prompt, response)))
    return examples


def train_teacher(profile: Profile, force: bool = False) -> Path:
    """Trains the teacher's adapter (tens of minutes on two cores) and writes it with its manifest. One that was trained
    on the same inputs is kept, unless `force` is given. Its items come from a split of their own: no question of it
    stands in a student's training, validation or test set."""
    config = settings(profile)
    arms = primed_arms(config.solutions) if config.primed_fraction else []
    tokenizer = load_tokenizer(config.base)
    items = load_items(profile, "teacher", config.items)
    validation = load_items(profile, "validation")
    refuse_overlap(items, "teacher", {s: load_items(profile, s) for s in ("train", "validation", "test")})
    inputs = {
        "base": config.base, "base_sha256": model_hash(config.base), "tokenizer_sha256": tokenizer_hash(tokenizer),
        "template_sha256": template_hash(tokenizer), "items_sha256": hash_items(items),
        "validation_sha256": hash_items(validation), "primings": {arm.name: arm.priming for arm in arms},
        "prepare": config.model_dump(mode="json", exclude={"output", "quantization", "adapter"}), "seed": profile.seed,
    }  # fmt: skip
    placed = {arm.name: priming_of(arm, profile.teacher) for arm in arms}
    if placed := {n: asdict(p) for n, p in placed.items() if p != Priming(p.text)}:  # left out, as below
        inputs["placed"] = placed
    if profile.teacher.instruction:
        inputs["instruction"] = asdict(priming_of(unprimed(), profile.teacher))
    if config.train.length_window == 1:  # left out, so that an adapter from before there was a choice stays current
        del inputs["prepare"]["train"]["length_window"]
    folder = project_root() / config.adapter
    code, since = stage_code("train-teacher", profile), forced_since(profile, "train-teacher", force)
    if (checkpoints := begin(profile, folder, inputs, code, "prepare-teacher", "adapter", since)) is None:
        return folder
    made = (primed_examples(profile, tokenizer, *part) for part in ((items, config.primed_fraction), (validation, 0.0)))
    student = StudentConfig(model=config.base, dtype=profile.student.dtype, lora=config.lora)
    with gpu_memory("prepare.train.micro_batch_size"):
        train_student(
            folder, "prepare-teacher", profile, inputs, Lesson(*made), checkpoints, profile.seed, code, student=student,
            train=config.train,
        )  # fmt: skip
    return folder


def build_teacher(profile: Profile, force: bool = False) -> Path:
    """Writes the teacher's GGUF file, adapter merged. Raises UserError if that is not what its manifest names."""
    config = settings(profile)
    base, adapter = require_local(parse_reference(config.base)), project_root() / config.adapter
    if not (adapter / MANIFEST).is_file():
        raise UserError(f"{config.adapter} has no adapter: train it with `primekd prepare-teacher --train`.")
    trained = read_manifest(adapter / MANIFEST)
    if altered := altered_outputs(adapter / MANIFEST, trained):
        raise UserError(f"{config.adapter}: {', '.join(altered)} missing or altered: restore it with `git checkout`.")
    output = project_root() / config.output
    hashes = {"base_sha256": model_hash(config.base), "adapter": trained["outputs"]}
    inputs = hashes | {"quantization": config.quantization}
    code, since = stage_code("prepare-teacher", profile), forced_since(profile, "prepare-teacher", force)
    done = f"{relative_name(output)} is built and unchanged."
    if stands(output.parent, inputs, code, "prepare-teacher", done, since):
        return output
    start = now()
    with write_atomically(output) as temporary:
        write_merged_gguf(base, lora_deltas(adapter / "adapter"), temporary, config.quantization)
    write_manifest(
        output.parent, "teacher", inputs, [output], start=start, end=now(), code=code,
        config=config.model_dump(mode="json"),
    )  # fmt: skip
    print(f"prepare-teacher: wrote {relative_name(output)} ({output.stat().st_size / 2**20:.0f} MiB).")
    return output


def lora_deltas(folder: Path) -> dict[str, np.ndarray]:
    """scale * B @ A for every adapted layer, keyed `<block>.<layer>` as in `LINEAR_LAYERS`, float32 (out, in)."""
    config = read_json(folder / "adapter_config.json")
    others = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save")
    if config.get("bias", "none") != "none" or any(config.get(key) for key in others):
        raise UserError(f"{relative_name(folder)} is no plain LoRA adapter: only rank, alpha and targets are merged.")
    scale = config["lora_alpha"] / config["r"]
    weights = {name: w.astype(np.float32) for name, w in load_file(folder / "adapter_model.safetensors").items()}
    layers = {name: name.split(".layers.")[1].removesuffix(".lora_A.weight") for name in weights if "lora_A" in name}
    return {layer: scale * (weights[a.replace("lora_A", "lora_B")] @ weights[a]) for a, layer in layers.items()}


def write_merged_gguf(base: Path, deltas: dict[str, np.ndarray], target: Path, quantization: str) -> None:
    """Copies a Llama GGUF file with `deltas` added and quantised anew. Raises UserError if one finds no layer."""
    import gguf

    reader = gguf.GGUFReader(base)
    architecture = reader.get_field("general.architecture").contents()
    if architecture != "llama":
        raise UserError(f"{relative_name(base)} is of architecture {architecture}: only llama is merged.")
    heads = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}
    kind = gguf.GGMLQuantizationType[quantization]
    writer = gguf.GGUFWriter(target, architecture)
    replaced = {"general.file_type": gguf.LlamaFileType[f"MOSTLY_{quantization}"].value}
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":  # these are the writer's own
            sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, replaced.get(name, field.contents()), field.types[0], sub_type=sub_type)
    unused = dict(deltas)
    for tensor in reader.tensors:
        parts = tensor.name.split(".")  # blk.<block>.<layer>.weight
        layer = LINEAR_LAYERS.get(parts[2]) if parts[0] == "blk" else None
        if layer is None:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
            continue
        weight, delta = gguf.dequantize(tensor.data, tensor.tensor_type), unused.pop(f"{parts[1]}.{layer}", None)
        if delta is not None:  # (out, in), as the weight
            count = reader.get_field(heads[parts[2]]).contents() if parts[2] in heads else None
            weight = weight + (permute_rotary(delta, count) if count else delta)
        writer.add_tensor(tensor.name, gguf.quantize(weight, kind), raw_dtype=kind)
    if unused:
        raise UserError(f"The adapter has layers that {relative_name(base)} has not: {', '.join(sorted(unused)[:3])}.")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
