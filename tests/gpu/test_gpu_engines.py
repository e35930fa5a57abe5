"""Every engine that runs on a GPU here, against transformers in float32 on the CPU, on the same prompts and tokens.

    pytest tests/gpu -rs

Prints agreement, throughput and memory, and writes them to runs/gpu/<engine>.json. The bounds are expectations: tight
where only the precision of sums differs, wide where weights are quantised anew.
"""

import dataclasses
import time
from dataclasses import dataclass

import pytest
import torch
from conftest import POCKET, agree
from gpu_models import exl2_folder, missing_cuda, prompts, require, used_gib

from primekd.config import TeacherConfig
from primekd.foundation import environment, project_root, write_json
from primekd.teachers import Sampling

pytestmark = pytest.mark.skipif(missing_cuda() is not None, reason=f"no GPU: {missing_cuda()}")
NEW_TOKENS = 64


@dataclass(frozen=True)
class Bounds:
    """`top1`: at least this share of equal first tokens; `kl`: at most so many nats a token; `own`: at least this
    share of greedily generated tokens is what the same engine's scores put first."""

    top1: float
    kl: float
    own: float


BOUNDS = {
    "transformers-float32": Bounds(0.999, 1e-5, 0.999),
    "transformers-bfloat16": Bounds(0.95, 5e-3, 0.95),
    "llamacpp": Bounds(0.93, 1e-2, 0.95),  # the same weights; activations in 8 bits
    "exllamav2": Bounds(0.85, 5e-2, 0.95),  # weights and head quantised anew, to 6 bits
    "exllamav2-unpaged": Bounds(0.85, 5e-2, 0.95),  # as without flash-attn
    "vllm": Bounds(0.95, 5e-3, 0.95),  # bfloat16
}


@pytest.fixture(scope="module")
def asked() -> list[list[int]]:
    return prompts()


@pytest.fixture(scope="module")
def reference():
    """transformers in float32 on the CPU."""
    from primekd.teachers.transformers_engine import TransformersEngine

    engine = TransformersEngine(POCKET, "float32", batch_size=8)
    engine.model.to("cpu")
    return engine


@pytest.fixture(scope="module")
def responses(reference, asked) -> list[list[int]]:
    return [response.ids for response in reference.generate(asked, Sampling(NEW_TOKENS))]


@pytest.fixture(scope="module")
def exl2(tmp_path_factory) -> str:
    require("exllamav2")
    return exl2_folder(tmp_path_factory.mktemp("exl2"))


def first_tokens(engine, asked: list[list[int]], generated: list[list[int]]) -> list[torch.Tensor]:
    """What an engine's own scores put first, (T,) an item."""
    if "logits" in engine.offers:
        return [rows.argmax(-1).cpu() for rows in engine.score(asked, generated, "logits")]
    return [rows.ids[:, 0].cpu() for rows in engine.score(asked, generated, "top")]


def check(name: str, engine, before_gib: float, reference, asked, responses) -> None:
    """Measures an engine, writes what was found, and holds it to its bounds."""
    engine.generate(asked[:2], Sampling(4))  # compiles and tunes kernels
    began = time.monotonic()
    generated = [response.ids for response in engine.generate(asked, Sampling(NEW_TOKENS))]
    generating = time.monotonic() - began
    began = time.monotonic()
    agreement = agree(reference, engine, asked, responses)
    scoring = time.monotonic() - began  # with the reference's own, on the CPU
    began = time.monotonic()
    firsts = first_tokens(engine, asked, generated)
    scoring_own = time.monotonic() - began
    same = torch.cat([a == torch.tensor(b) for a, b in zip(firsts, generated, strict=True)])
    tokens = sum(map(len, generated))
    found = {
        "engine": name,
        "bounds": dataclasses.asdict(BOUNDS[name]),
        "agreement": dataclasses.asdict(agreement),
        "generated_as_scored": float(same.double().mean()),
        "generated_tokens": tokens,
        "generated_tokens_per_second": round(tokens / generating, 1),
        "scored_tokens_per_second": round(sum(map(len, asked)) / scoring_own + tokens / scoring_own, 1),
        "seconds": {"generating": generating, "agreement": scoring, "scoring": scoring_own},
        "gpu_memory_gib": round(used_gib() - before_gib, 3),
        "offers": sorted(engine.offers),
        "identity": engine.identity(),
        "environment": environment(),
    }
    write_json(project_root() / "runs" / "gpu" / f"{name}.json", found)
    print(
        f"\n{name}: top-1 {agreement.top1_agreement:.4f}, KL {agreement.mean_kl_nats:.2e} nats, generated as scored "
        f"{found['generated_as_scored']:.4f}, {found['generated_tokens_per_second']} tokens/s generated, "
        f"{found['scored_tokens_per_second']} tokens/s scored, {found['gpu_memory_gib']} GiB"
    )
    assert agreement.top1_agreement >= BOUNDS[name].top1 and agreement.mean_kl_nats <= BOUNDS[name].kl
    assert found["generated_as_scored"] >= BOUNDS[name].own
    assert all(token < engine.vocab_size for ids in generated for token in ids)


@pytest.fixture(autouse=True)
def memory():
    """GiB in use before a test's engine; what the test's engine held is given back after it."""
    yield used_gib()
    import gc

    gc.collect()
    torch.cuda.empty_cache()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers(dtype, memory, reference, asked, responses):
    from primekd.teachers.transformers_engine import TransformersEngine

    engine = TransformersEngine(POCKET, dtype, batch_size=8)
    assert engine.model.device.type == "cuda"
    check(f"transformers-{dtype}", engine, memory, reference, asked, responses)


def test_llamacpp(memory, reference, asked, responses):
    require("llamacpp")
    from primekd.teachers.llamacpp_engine import LlamaCppEngine

    check("llamacpp", LlamaCppEngine(POCKET, context_tokens=1024), memory, reference, asked, responses)


def exllamav2_config(model: str, **settings) -> TeacherConfig:
    return TeacherConfig(engine="exllamav2", model=model, batch_size=8, context_tokens=1024, exllamav2=settings or None)


def test_exllamav2(exl2, memory, reference, asked, responses):
    from primekd.teachers.exllamav2_engine import ExLlamaV2Engine

    engine = ExLlamaV2Engine(exllamav2_config(exl2))
    check("exllamav2", engine, memory, reference, asked, responses)
    assert "hidden" in engine.offers
    hidden = torch.cat(engine.score(asked[:4], responses[:4], "hidden")).float()
    own = torch.cat(engine.own_logits(asked[:4], responses[:4])).double().log_softmax(-1)
    rebuilt = (hidden @ engine.head().float().T).double().log_softmax(-1)
    assert (own.exp() * (own - rebuilt)).sum(-1).mean() < 1e-3
    assert (own.argmax(-1) == rebuilt.argmax(-1)).double().mean() > 0.98


def test_exllamav2_without_flash_attn(exl2, memory, reference, asked, responses, monkeypatch):
    import exllamav2.attn

    from primekd.teachers.exllamav2_engine import ExLlamaV2Engine

    for name in ("has_flash_attn", "has_flash_attn_with_paged"):
        monkeypatch.setattr(exllamav2.attn, name, False)
    monkeypatch.setattr("exllamav2.model.has_flash_attn", False)
    engine = ExLlamaV2Engine(exllamav2_config(exl2))
    assert not engine.paged
    check("exllamav2-unpaged", engine, memory, reference, asked, responses)


@pytest.mark.parametrize("cache_type", ["Q8", "Q6", "Q4"])
def test_exllamav2_generates_with_a_quantised_cache_and_scores_without_it(cache_type, exl2, asked):
    from primekd.teachers.exllamav2_engine import ExLlamaV2Engine

    engine = ExLlamaV2Engine(exllamav2_config(exl2, cache_type=cache_type))
    generated = [response.ids for response in engine.generate(asked, Sampling(NEW_TOKENS))]
    firsts = first_tokens(engine, asked, generated)
    same = torch.cat([a == torch.tensor(b) for a, b in zip(firsts, generated, strict=True)]).double().mean()
    print(f"\nexllamav2, cache {cache_type}: generated as scored {float(same):.4f}")
    assert same > (0.7 if cache_type == "Q4" else 0.9)


def test_exllamav2_sampling_is_seeded(exl2, asked):
    from primekd.teachers.exllamav2_engine import ExLlamaV2Engine

    engine = ExLlamaV2Engine(exllamav2_config(exl2))
    drawn = [engine.generate(asked[:1], Sampling(16, temperature=1.0, seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU: nothing to split a model over")
@pytest.mark.parametrize("settings", [{"tensor_parallel": True}, {"gpu_split": (0.12, 20.0)}])
def test_exllamav2_over_two_gpus(settings, exl2, reference, asked, responses):
    from primekd.teachers.exllamav2_engine import ExLlamaV2Engine

    agreement = agree(reference, ExLlamaV2Engine(exllamav2_config(exl2, **settings)), asked, responses)
    assert agreement.top1_agreement >= BOUNDS["exllamav2"].top1


def test_vllm(memory, reference, asked, responses):
    require("vllm")
    from primekd.teachers.vllm_engine import VllmEngine

    settings = {"gpu_memory_utilization": 0.3}
    config = TeacherConfig(engine="vllm", model=POCKET, batch_size=8, context_tokens=1024, vllm=settings)
    check("vllm", VllmEngine(config, top_k=64), memory, reference, asked, responses)
