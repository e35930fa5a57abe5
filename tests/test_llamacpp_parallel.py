"""llama.cpp with several sequences at a time, against the same engine with one: answers, rows, prefixes, memory."""

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from chat_families import ending_with
from conftest import POCKET

from primekd.foundation.errors import UserError
from primekd.models.chat import build_prompt
from primekd.models.logits import LogitTransform
from primekd.teachers import Response, Sampling

SYSTEM = "You are a teacher who explains every step, and then checks it."
QUESTIONS = [
    "A kid has 8 pencils and his brother has 5. How many have they?",
    "Two and two?",
    "Name a fruit.",
    "A farmer sells 12 eggs a day for a week and keeps 3 of them each day for his breakfast. How many does he sell?",
]
SHORT = [[5 + n] for n in range(5)]  # prompts of one token
LIMIT = Sampling(6)
NEAR_TIE = 0.2  # nats between the two likeliest tokens below which another batch may turn a greedy choice
CLOSE = 1e-3  # nats a token: rows of another batch differ in last bits, which 8-bit activations can make larger


# Architecture, what its file says of the logits, and what llama.cpp does with it.
CAPPED = {
    "granite": ({"logit_scale": 8.0}, LogitTransform(1 / 8)),
    "command-r": ({"logit_scale": 0.0625}, LogitTransform(0.0625)),
    "minicpm": ({"logit_scale": 9.0}, LogitTransform(1 / 9)),
    "gemma2": ({"final_logit_softcapping": 3.0}, LogitTransform(1.0, 3.0)),
    "gemma2-unsaid": ({}, None),  # llama.cpp caps at 30 of its own accord
}


def write_gguf(path: Path, architecture: str, numbers: dict[str, float]) -> None:
    """A random one-layer model of 96 tokens without a tokenizer, in float32."""
    from gguf import GGUFWriter

    vocabulary, width, inner = 96, 32, 64
    writer, random = GGUFWriter(path, architecture), np.random.default_rng(0)
    for name, value in {"context_length": 256, "embedding_length": width, "block_count": 1, "vocab_size": vocabulary,
                        "feed_forward_length": inner, "attention.head_count": 2, "attention.sliding_window": 64,
                        "rope.dimension_count": 16}.items():  # fmt: skip
        writer.add_uint32(f"{architecture}.{name}", value)
    for name, value in {
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.layer_norm_epsilon": 1e-5,
        **numbers,
    }.items():
        writer.add_float32(f"{architecture}.{name}", value)
    writer.add_tokenizer_model("none")
    shapes = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (width, width))
    shapes |= {"ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner)}
    norms = ["attn_norm"] + ["ffn_norm"] * (architecture != "command-r")
    norms += ["post_attention_norm", "post_ffw_norm"] * (architecture == "gemma2")
    tensors = {"token_embd": 1.5 * random.standard_normal((vocabulary, width)), "output_norm": np.ones(width)}
    tensors |= {f"blk.0.{name}": 0.3 * random.standard_normal(shape) for name, shape in shapes.items()}
    tensors |= {f"blk.0.{name}": np.ones(width) for name in norms}
    for name, values in tensors.items():
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ask_capped(name: str) -> tuple:
    """What the engine finds behind such a file's head, what it offers, and how well its hidden states do then."""
    from primekd.capture.run import measure_reconstruction
    from primekd.signals import StoredItem
    from primekd.teachers import llamacpp_engine as module

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "tiny.gguf"
        write_gguf(path, name.removesuffix("-unsaid"), CAPPED[name][0])
        patch.setattr(module, "load_tokenizer", lambda model: range(96))
        engine = module.LlamaCppEngine(f"path:{path}", context_tokens=256)
        item, measured = StoredItem("a", [5, 6, 7], [8, 9, 10, 11], False), None
        if engine.transform is not None:
            measured = measure_reconstruction(engine, [item], engine.score([[5, 6, 7]], [[8, 9, 10, 11]], "hidden"))
        engine.close()
        return engine.transform, engine.offers, measured and measured["mean_kl_nats"]


def ask(prompts: list[list[int]], long: list[int]) -> dict:
    """What the engine says. Run in a process of its own: a crash inside the library must not end the test run."""
    import psutil

    from primekd.teachers.llamacpp_context import Context
    from primekd.teachers.llamacpp_engine import LlamaCppEngine

    torch.set_num_threads(1)  # llama.cpp takes as many; they spin, which is slow where the cores are shared
    read: list[int] = []  # tokens of every call that puts nothing out
    plain_read = Context.read
    Context.read = lambda self, sequence, ids, start: (read.append(len(ids)), plain_read(self, sequence, ids, start))[1]

    copied: list[int] = []  # the sequences that another one was copied to
    plain_copy = Context.copy
    Context.copy = lambda self, source, target: (copied.append(target), plain_copy(self, source, target))[1]

    def error_of(call) -> str:
        try:
            call()
        except UserError as error:
            return str(error)
        return "accepted"

    one, many = (LlamaCppEngine(POCKET, context_tokens=256, batch_size=n) for n in (1, 3))
    many.generate(SHORT, Sampling(3))
    resident = psutil.Process().memory_info().rss
    many.generate_scored(SHORT * 6, Sampling(3), "hidden")
    found = {"grown": psutil.Process().memory_info().rss - resident}
    alone = [one.generate_scored([prompt], LIMIT, "logits") for prompt in [*prompts, long]]
    read.clear()
    together, hidden = many.generate_scored(prompts, LIMIT, "hidden")
    found |= {"read together": list(read), "shared": many.shared_prefix(prompts)}
    ids = [response.ids for response in together]
    copied.clear()
    scored = [rows.numpy() for rows in many.score(prompts, ids, "hidden")]
    found["copied to score"] = list(copied)
    told: list[int] = []  # when each response had ended: how many pieces of prompts had been read
    telling = Sampling(LIMIT.max_new_tokens, ended=lambda: told.append(len(read)))
    again, own_logits = many.generate_scored(prompts, LIMIT, "logits")
    found |= {
        "alone": [response for (response,), _ in alone],
        "alone logits": [rows[0].numpy() for _, rows in alone],
        "together": together,
        "hidden": [rows.numpy() for rows in hidden],
        "again": again,
        "logits": [rows.numpy() for rows in own_logits],
        "scored": scored,
        "head": many.head().numpy(),
        "mixed": many.generate([*prompts[1:3], SHORT[0], long], telling),
        "told": told,
        "single token": one.generate(SHORT[:1], LIMIT)[0],
        "none": many.generate_scored([], LIMIT, "hidden"),
        "sampled": [e.generate(SHORT, Sampling(4, 1.5, seed)) for e, seed in ((one, 1), (many, 1), (many, 2))],
        "too long": error_of(lambda: many.generate(prompts, Sampling(500))),
        "short": many.generate(SHORT, LIMIT),
    }
    end = found["short"][1].ids[2]
    many.tokenizer = ending_with(many.tokenizer, end)
    ended, rows = many.generate_scored(SHORT, LIMIT, "hidden")
    found |= {"end": end, "ended": ended, "ended rows": [len(part) for part in rows]}
    found["gap in positions"] = error_of(lambda: many.context.predict([5], [200], [0]))
    found["too many sequences"] = error_of(lambda: Context(many.model, many.model.most_sequences + 1, 256))
    found["transforms"] = {name: ask_capped(name) for name in CAPPED}
    loaded = psutil.Process().memory_info().rss
    one.close()
    many.close()
    return found | {"freed": loaded - psutil.Process().memory_info().rss}


@pytest.fixture(scope="module")
def prompts(tokenizer) -> list[list[int]]:
    return [build_prompt(tokenizer, question, SYSTEM) for question in QUESTIONS]


@pytest.fixture(scope="module")
def long(tokenizer, prompts) -> list[int]:
    """Longer than one call of llama.cpp, and with another system message."""
    ids = build_prompt(tokenizer, QUESTIONS[3] + " " + QUESTIONS[0])
    assert len(ids) > 63 + 2
    return ids


@pytest.fixture(scope="module")
def found(prompts, long) -> dict:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(ask, prompts, long).result(timeout=300)


def log_probs(rows) -> torch.Tensor:
    return torch.as_tensor(rows).double().log_softmax(-1)


def kl(rows, other) -> float:
    """Mean KL over the rows of all items, in nats."""
    p, q = (torch.cat([log_probs(item) for item in items]) for items in (rows, other))
    assert p.shape == q.shape
    return float((p.exp() * (p - q)).sum(-1).mean())


def same_but_for_ties(answers: list[Response], expected: list[Response], logits: list) -> int:
    """How many are equal; the others have to part at a near tie of the expected answer's own logits."""
    for answer, other, rows in zip(answers, expected, logits, strict=True):
        if answer != other:
            t = next(t for t, (a, b) in enumerate(zip(answer.ids, other.ids, strict=False)) if a != b)
            first, second = log_probs(rows[t]).topk(2).values
            assert first - second < NEAR_TIE
    return sum(answer == other for answer, other in zip(answers, expected, strict=True))


@pytest.mark.slow
def test_parallel_answers_are_those_of_one_sequence_at_a_time(found):
    """Four prompts in three places."""
    count = len(found["together"])
    assert same_but_for_ties(found["together"], found["alone"][:count], found["alone logits"][:count]) >= count - 1
    assert found["together"] == found["again"]


@pytest.mark.slow
def test_rows_that_are_collected_while_generating_are_those_of_scoring(found):
    hidden = [rows @ found["head"].T for rows in found["hidden"]]
    assert kl([rows @ found["head"].T for rows in found["scored"]], hidden) < CLOSE
    assert kl(found["logits"], hidden) < 5e-3  # the head is dequantised, llama.cpp's product is not
    for rows, response in zip(found["logits"], found["together"], strict=True):
        assert rows.argmax(-1).tolist() == response.ids and len(rows) == len(response.ids)


@pytest.mark.slow
def test_what_all_prompts_begin_with_is_read_once(found, prompts):
    shared = found["shared"]
    assert shared > 10 and all(prompt[:shared] == prompts[0][:shared] for prompt in prompts)
    assert len({prompt[shared] for prompt in prompts}) > 1
    rest = sorted((len(prompt) - 1 - shared for prompt in prompts), reverse=True)  # longest first
    assert found["read together"] == [shared, *rest]
    assert found["copied to score"] == []  # it takes one sequence
    # Alone nothing was shared, so the tests above compare with and without it.


@pytest.mark.slow
def test_prompts_without_a_common_prefix_of_one_token_and_of_many_run_side_by_side(found):
    alone, mixed, told = found["alone"], found["mixed"], found["told"]
    assert len(told) == 4 and told[0] < told[-1], "told when the last prompt had been read"
    assert mixed[2] == found["single token"]
    logits = [*found["alone logits"][1:3], found["alone logits"][-1]]
    assert same_but_for_ties([*mixed[:2], mixed[3]], [*alone[1:3], alone[-1]], logits) >= 2
    assert found["none"] == ([], [])


@pytest.mark.slow
def test_a_response_that_ends_early_does_not_disturb_the_others(found):
    """The third token of one answer is taken for the end of turn."""
    for before, after in zip(found["short"], found["ended"], strict=True):
        stop = before.ids.index(found["end"]) + 1 if found["end"] in before.ids else len(before.ids)
        assert after == Response(before.ids[:stop], truncated=found["end"] not in before.ids)
    lengths = [len(response.ids) for response in found["ended"]]
    assert found["ended rows"] == lengths and min(lengths) < max(lengths)


@pytest.mark.slow
def test_sampled_answers_do_not_depend_on_the_place_that_they_get(found):
    one, many, other_seed = found["sampled"]
    assert sum(a == b for a, b in zip(one, many, strict=True)) >= len(one) - 1
    assert many != other_seed and len({tuple(response.ids) for response in many}) == len(many)


@pytest.mark.slow
def test_memory_is_flat_in_the_number_of_items_and_freed_at_the_end(found):
    assert found["grown"] < 3e6  # the cache of one sequence more is 6 MB
    assert found["freed"] > 20e6


@pytest.mark.slow
def test_llamacpps_own_errors_are_one_sentence(found):
    assert "does not fit: raise teacher.context_tokens" in found["too long"]
    assert "could not open a context for" in found["too many sequences"]
    assert found["gap in positions"].startswith("llama.cpp stopped with code -1")


@pytest.mark.parametrize("name", CAPPED)
def test_scale_and_soft_cap_are_found_where_the_file_names_them(found, name):
    transform, offers, kl = found["transforms"][name]
    assert transform == CAPPED[name][1]
    assert offers == ({"hidden", "logits"} if transform else {"logits"})
    assert transform is None or kl < 1e-6


def test_a_broken_gguf_file_is_one_sentence(tmp_path):
    from primekd.teachers.llamacpp_context import Model

    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(UserError, match=r"cannot load .*broken.gguf: fetch or make it again"):
        Model(tmp_path / "broken.gguf")
