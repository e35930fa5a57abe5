"""The decode loop against transformers' own generation, one prompt at a time, in float32."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from primekd.teachers import Response, Sampling
from primekd.teachers import transformers_engine as engine_module
from primekd.teachers.cache import has_plain_cache, narrowest_window
from primekd.teachers.decoding import SHORTEST_PREFIX
from primekd.teachers.transformers_engine import TransformersEngine

PREFIX = [40 + 3 * n for n in range(SHORTEST_PREFIX + 6)]
SHARED = [[*PREFIX, *range(100 + 7 * n, 100 + 7 * n + 1 + n % 5)] for n in range(9)]
DIFFERENT = [[500 + n, *prompt[n:]] for n, prompt in enumerate(SHARED)]
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
LLAMA_LIKE = SIZES | {"num_key_value_heads": 1, "intermediate_size": 32, "head_dim": 8, "initializer_range": 0.4}


def configuration(kind: str, vocabulary: int):
    """A tiny model of another architecture: learned positions, windows, capped logits."""
    import transformers as t

    if kind == "gpt2":  # its positions are learned, and its head is tied
        return t.GPT2Config(vocab_size=vocabulary, n_embd=16, n_layer=2, n_head=2, initializer_range=0.4)
    if kind == "mistral":  # shorter than the prompts
        return t.MistralConfig(vocab_size=vocabulary, sliding_window=9, **LLAMA_LIKE)
    if kind == "qwen2":
        windows = {"use_sliding_window": True, "sliding_window": 256, "max_window_layers": 1}
        return t.Qwen2Config(vocab_size=vocabulary, **LLAMA_LIKE, **windows)
    return t.Gemma2Config(vocab_size=vocabulary, sliding_window=9, query_pre_attn_scalar=8, **LLAMA_LIKE)


@pytest.fixture(scope="module", params=["llama", "gpt2", "mistral", "qwen2", "gemma2"])
def engine(request, lively, tokenizer, tmp_path_factory) -> TransformersEngine:
    if request.param == "llama":  # has padded columns that win wherever they are not cut
        return TransformersEngine(lively, "float32", batch_size=3)
    folder = tmp_path_factory.mktemp(request.param)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = AutoModelForCausalLM.from_config(configuration(request.param, len(tokenizer) + 8))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return TransformersEngine(f"path:{folder}", "float32", batch_size=3)


@pytest.fixture(scope="module")
def llama(lively) -> TransformersEngine:
    return TransformersEngine(lively, "float32", batch_size=3)


def one_by_one(engine: TransformersEngine, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """The library's greedy answers, without padding, other rows or an end of turn."""
    padded = list(range(engine.vocab_size, engine.model.config.vocab_size))
    config = GenerationConfig(max_new_tokens=tokens, do_sample=False, suppress_tokens=padded or None)
    return [
        engine.model.generate(torch.tensor([p]), generation_config=config, use_cache=False)[0, len(p) :].tolist()
        for p in prompts
    ]


class Ending(SimpleNamespace):
    """A tokenizer as far as generation asks it."""

    def __len__(self) -> int:
        return self.size


def end_with(engine: TransformersEngine, end: int, monkeypatch: pytest.MonkeyPatch) -> None:
    own = engine.tokenizer
    ending = Ending(eos_token_id=end, pad_token_id=0, pad=own.pad, size=len(own))
    monkeypatch.setattr(engine, "tokenizer", ending)


def cut(ids: list[int], end: int) -> Response:
    """What an answer is if `end` ends it."""
    return Response(ids[: ids.index(end) + 1], False) if end in ids else Response(ids, True)


@pytest.mark.parametrize("prompts", [SHARED, DIFFERENT], ids=["shared", "different"])
def test_every_architecture_decodes_what_its_own_generate_does(engine, prompts, monkeypatch):
    """Nine prompts of several lengths in three places: rows end at different steps and others take their places."""
    assert engine.decodes
    free = one_by_one(engine, prompts, 12)
    end = free[3][4]
    end_with(engine, end, monkeypatch)
    monkeypatch.setattr(engine, "_generate_with_library", lambda *_: pytest.fail("the library was asked"))
    assert engine.generate(prompts, Sampling(12)) == [cut(ids, end) for ids in free]


def test_each_response_that_ends_is_told_while_others_are_in_the_making(llama, monkeypatch):
    free = one_by_one(llama, SHARED, 12)
    end_with(llama, free[3][4], monkeypatch)
    told, steps, real = [], [], llama.last_states
    monkeypatch.setattr(llama, "last_states", lambda **inputs: (steps.append(1), real(**inputs))[1])
    llama.generate_scored(SHARED, Sampling(12, ended=lambda: told.append(len(steps))), "logits")
    assert len(told) == len(SHARED) and told[0] < told[-1] == len(steps)
    told.clear()
    monkeypatch.setattr(llama, "decodes", False)
    llama.generate(SHARED[:2], Sampling(2, ended=lambda: told.append(1)))
    assert len(told) == 2


def test_collected_rows_are_what_score_gives(engine):
    want = "hidden" if "hidden" in engine.offers else "logits"
    responses, rows = engine.generate_scored(SHARED, Sampling(8), want)
    assert responses == engine.generate(SHARED, Sampling(8))
    for found, expected in zip(rows, engine.score(SHARED, [r.ids for r in responses], want), strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_in_bfloat16_collected_rows_are_near_those_of_score(lively):
    engine = TransformersEngine(lively, "bfloat16", batch_size=4)
    responses, rows = engine.generate_scored(SHARED, Sampling(8), "logits")
    assert engine.decodes
    scored = torch.cat(engine.score(SHARED, [r.ids for r in responses], "logits")).double().log_softmax(-1)
    found = torch.cat(rows).double().log_softmax(-1)
    assert (scored.exp() * (scored - found)).sum(-1).mean() < 0.02


def test_logits_of_generated_tokens_are_cut_and_float32(llama):
    responses, rows = llama.generate_scored(SHARED[:2], Sampling(3), "logits")
    for response, logits in zip(responses, rows, strict=True):
        assert logits.shape == (3, llama.vocab_size) and logits.dtype == torch.float32
        assert logits.argmax(-1).tolist() == response.ids


@pytest.mark.parametrize("prompts", [SHARED[:1], [SHARED[2]] * 5, [[7]], [[7], [7, 8]]])
def test_one_prompt_equal_prompts_and_very_short_ones(llama, prompts):
    assert [r.ids for r in llama.generate(prompts, Sampling(5))] == one_by_one(llama, prompts, 5)


def test_nothing_is_asked_and_nothing_is_answered(llama):
    assert llama.generate([], Sampling(5)) == [] and llama.generate_scored([], Sampling(5), "hidden") == ([], [])


def test_a_single_token_may_be_all_that_is_allowed_or_the_end_of_turn(llama, monkeypatch):
    first = [ids[0] for ids in one_by_one(llama, SHARED, 1)]
    end_with(llama, first[0], monkeypatch)
    for most in (1, 4):
        found = llama.generate(SHARED, Sampling(most))
        assert found[0] == Response([first[0]], truncated=False)
        assert [r.ids[0] for r in found] == first
        assert all(len(r.ids) <= most for r in found)


def test_many_prompts_drift_through_few_slots(llama, monkeypatch):
    """Answers of different lengths in two places: the slots run out and rows are moved to their beginning."""
    from primekd.teachers import decoding
    from primekd.teachers.cache import SlotCache

    monkeypatch.setattr(decoding, "SLACK", 6)
    prompts = [[900 + n, *DIFFERENT[n % 9][: 3 + n % 7]] for n in range(16)]
    free = one_by_one(llama, prompts, 12)
    end = max(sum(free, []), key=lambda token: len({len(cut(ids, token).ids) for ids in free}))  # many lengths
    end_with(llama, end, monkeypatch)
    monkeypatch.setattr(llama, "batch_size", 2)
    moved = []
    real = SlotCache.make_room
    monkeypatch.setattr(SlotCache, "make_room", lambda cache, rows: (moved.append(rows), real(cache, rows)))
    assert llama.generate(prompts, Sampling(12)) == [cut(ids, end) for ids in free]
    assert len(moved) >= 2


def test_nothing_is_run_that_is_not_needed(llama, monkeypatch):
    """What all prompts begin with is run once, and a row is run once for each of its tokens but the last."""
    run = []
    real = llama.last_states
    monkeypatch.setattr(llama, "last_states", lambda **i: (run.append(i["input_ids"].shape), real(**i))[1])
    monkeypatch.setattr(llama, "batch_size", 16)
    free = one_by_one(llama, SHARED, 12)
    end_with(llama, free[3][4], monkeypatch)
    responses = llama.generate(SHARED, Sampling(12))
    assert len({len(r.ids) for r in responses}) > 1
    assert run[0] == (1, len(PREFIX)) and run[1] == (len(SHARED), 5)
    assert sum(rows for rows, _ in run[2:]) == sum(len(r.ids) - 1 for r in responses)


# Sampling.


def test_draws_depend_on_the_seed_and_the_prompts_place_and_not_on_the_batch(llama, monkeypatch):
    drawn = {}
    for size in (1, 2, 5, 16):
        monkeypatch.setattr(llama, "batch_size", size)
        drawn[size] = [r.ids for r in llama.generate(SHARED, Sampling(6, temperature=1.0, seed=4))]
    assert drawn[1] == drawn[2] == drawn[5] == drawn[16]
    assert drawn[16] != [r.ids for r in llama.generate(SHARED, Sampling(6, temperature=1.0, seed=5))]
    equal_prompts = llama.generate([SHARED[0]] * 6, Sampling(6, temperature=1.0, seed=4))
    assert len({tuple(r.ids) for r in equal_prompts}) > 1


def test_sampling_is_unbiased(llama, monkeypatch):
    """600 draws of the first token at temperature 2 against its distribution: a chi-square over likely groups."""
    from scipy.stats import chisquare

    (logits,) = llama.score([SHARED[0]], [[1]], "logits")
    probabilities = (logits[0].double() / 2).softmax(-1)
    order = probabilities.argsort(descending=True)
    group = torch.zeros(len(order), dtype=torch.long)
    group[order] = (probabilities[order].cumsum(-1) * 6).long().clamp(max=5)  # six groups of some likelihood
    monkeypatch.setattr(llama, "batch_size", 100)
    drawn = [r.ids[0] for r in llama.generate([SHARED[0]] * 600, Sampling(1, temperature=2.0, seed=1))]
    expected = torch.zeros(6, dtype=torch.double).index_add(0, group, probabilities) * 600
    used = expected > 5
    found = torch.bincount(group[torch.tensor(drawn)], minlength=6)
    assert used.sum() >= 3
    assert chisquare(found[used], expected[used] * found[used].sum() / expected[used].sum()).pvalue > 1e-3


# Several responses behind one prompt.

FORKS = [[[200 + n, *range(300, 300 + n % 4)], [200 + n, 300] + [400 + n] * (1 + n % 3), [450]] for n in range(9)]


@pytest.mark.parametrize("prompts", [SHARED, DIFFERENT], ids=["shared", "different"])
def test_responses_behind_one_prompt_have_the_rows_that_each_has_alone(engine, prompts):
    """Of every architecture: those whose windows count slots read them one by one."""
    assert engine.branches == (engine.model.config.model_type in ("llama", "gpt2"))
    want = "hidden" if "hidden" in engine.offers else "logits"
    found = engine.score_each(prompts, FORKS, want)
    for prompt, forks, rows in zip(prompts, FORKS, found, strict=True):
        for expected, row in zip(engine.score([prompt] * 3, forks, want), rows, strict=True):
            assert row.dtype == expected.dtype
            torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-4)


def test_a_prompt_is_read_once_for_all_its_responses_and_what_all_share_once_for_all(llama, monkeypatch):
    assert llama.branches
    real, tokens = llama.decoder.forward, []

    def forward(input_ids=None, **inputs):
        tokens.append(input_ids.numel())
        return real(input_ids=input_ids, **inputs)

    monkeypatch.setattr(llama.decoder, "forward", forward)
    prompts = [[*PREFIX, 100, 101], [*PREFIX, 102, 103]]
    llama.score_each(prompts, [[[7, 8, 9], [6, 5]]] * 2, "hidden")
    assert tokens == [len(PREFIX), 2 * (2 + 2 + 1)]
    tokens.clear()
    llama.score_each(prompts, [[[7, 8, 9], [7, 8, 6], [7, 5]]] * 2, "hidden")
    assert tokens == [len(PREFIX), 2 * (2 + 2)], "7 8 is common to two responses, 7 to all three"


def test_in_bfloat16_too_responses_are_read_together_with_plain_attention(lively, monkeypatch):
    """As on a CPU in a study: rows are near those of each response alone, as far as bfloat16 goes."""
    engine, seen = TransformersEngine(lively, "bfloat16", batch_size=4), []
    assert engine.branches
    real = engine._states
    monkeypatch.setattr(
        engine, "_states", lambda **inputs: (seen.append(engine.model.config._attn_implementation), real(**inputs))[1]
    )
    found = engine.score_each(SHARED, FORKS, "logits")
    assert set(seen) == {"eager"} and engine.model.config._attn_implementation == "sdpa"
    for prompt, forks, rows in zip(SHARED, FORKS, found, strict=True):
        alone = torch.cat(engine.score([prompt] * 3, forks, "logits")).double().log_softmax(-1)
        together = torch.cat(rows).double().log_softmax(-1)
        assert (alone.exp() * (alone - together)).sum(-1).mean() < 0.02


def test_on_a_cpu_passes_are_cut_and_rows_stay_in_order(llama, monkeypatch):
    whole, passes = llama.score(SHARED, [forks[1] for forks in FORKS], "hidden"), []
    real = llama._states
    monkeypatch.setattr(
        llama, "_states", lambda **inputs: (passes.append(inputs["input_ids"].shape), real(**inputs))[1]
    )
    monkeypatch.setattr(engine_module, "CPU_PASS_TOKENS", 45)
    cut = llama.score(SHARED, [forks[1] for forks in FORKS], "hidden")
    assert len(passes) == 5 and all(rows == 1 or rows * length <= 45 for rows, length in passes)
    for expected, rows in zip(whole, cut, strict=True):
        torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-4)


def test_an_empty_response_has_no_rows(llama):
    empty, full = llama.score_each([[5, 6, 7]], [[[], [8, 9]]], "hidden")[0]
    assert len(empty) == 0
    torch.testing.assert_close(full, llama.score([[5, 6, 7]], [[8, 9]], "hidden")[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("raises", [False, True])
def test_a_model_that_takes_no_mask_of_two_dimensions_reads_one_by_one(raises, lively, monkeypatch):
    """One that makes a causal mask of its own, whatever it is told: a response would see the one before it."""
    engine = TransformersEngine(lively, "float32")
    real = engine.decoder.forward

    def forward(attention_mask=None, **inputs):
        if attention_mask is not None and attention_mask.dim() == 4:
            if raises:
                raise ValueError("the mask has four dimensions")
            attention_mask = None
        return real(attention_mask=attention_mask, **inputs)

    engine.decoder.forward = forward
    assert engine.decodes and not engine.branches
    found = engine.score_each([[5, 6, 7]], [[[8, 9], [6, 5, 4]]], "hidden")[0]
    for row, response in zip(found, [[8, 9], [6, 5, 4]], strict=True):
        torch.testing.assert_close(row, engine.score([[5, 6, 7]], [response], "hidden")[0], rtol=1e-4, atol=1e-4)


# Where the loop does not fit.


def test_recurrent_layers_and_windows_are_seen():
    from transformers import LlamaConfig, MambaConfig, MistralConfig, Qwen3NextConfig

    assert has_plain_cache(LlamaConfig(**SIZES)) and has_plain_cache(MistralConfig(sliding_window=9, **SIZES))
    assert not has_plain_cache(MambaConfig(**SIZES)) and not has_plain_cache(Qwen3NextConfig(**SIZES))
    assert narrowest_window(MistralConfig(sliding_window=9, **SIZES)) == 9
    assert narrowest_window(LlamaConfig(**SIZES)) == float("inf")


def test_an_architecture_that_the_loop_does_not_fit_is_left_to_transformers(lively, llama, monkeypatch):
    monkeypatch.setattr(engine_module, "has_plain_cache", lambda _: False)
    other = TransformersEngine(lively, "float32", batch_size=3)
    assert not other.decodes
    responses, rows = other.generate_scored(SHARED, Sampling(6), "hidden")
    ours, own_rows = llama.generate_scored(SHARED, Sampling(6), "hidden")
    assert responses == ours
    torch.testing.assert_close(torch.cat(rows), torch.cat(own_rows), rtol=1e-4, atol=1e-4)


def test_a_probe_whose_answers_end_at_once_does_not_disturb(lively, monkeypatch):
    """The first token that is said there is taken for the end of turn, of one of its two answers at least."""
    probed = []
    real = TransformersEngine._decode
    monkeypatch.setattr(TransformersEngine, "_decode", lambda *a, **k: (probed.append(real(*a, **k)), probed[-1])[1])
    first = TransformersEngine(lively, "float32")
    assert first.decodes
    engine = TransformersEngine(lively, "float32")
    end_with(engine, probed[0][0].ids[0], monkeypatch)
    assert engine.decodes and [len(row.ids) for row in probed[1]] == [3, 3]


def test_a_model_that_goes_its_own_way_with_positions_is_found_out(lively):
    """One that counts positions from the slots, whatever it is told: a row behind padding would be wrong."""
    engine = TransformersEngine(lively, "float32")
    real = engine.decoder.forward

    def forward(position_ids=None, **inputs):
        return real(**inputs)

    engine.decoder.forward = forward
    assert not engine.decodes
    assert [r.ids for r in engine.generate(SHARED[:2], Sampling(3))] == one_by_one(engine, SHARED[:2], 3)
