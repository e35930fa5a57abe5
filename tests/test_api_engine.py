"""A real server on loopback, llama-cpp-python's own with the pocket student, and what becomes of its answers."""

import importlib.util
import os
import shutil
import subprocess
import time

import pytest
import torch
import yaml
from api_server import KEY, VARIABLE, api_section, good, serving
from conftest import POCKET, ROOT, small_profile, stored, write_profile
from pydantic import ValidationError
from typer.testing import CliRunner

from benchmarks.plain_losses import forward_kl_topk
from primekd.cli import app
from primekd.config import LossConfig, TeacherConfig, load_profile
from primekd.foundation import read_json
from primekd.foundation.errors import UserError
from primekd.foundation.tables import read_records
from primekd.losses import distillation_loss
from primekd.models import parse_reference, require_local
from primekd.models.chat import Prompt, build_prompt
from primekd.signals import SignalReader
from primekd.signals.codecs import TopKCodec
from primekd.teachers import Sampling, TopLogprobs
from primekd.teachers.api import ApiEngine
from primekd.teachers.api.exchange import build_request
from primekd.teachers.api.own_server import NEEDED, OwnServer
from primekd.teachers.api.tokens import Shown, TokenMap, token_map
from primekd.teachers.transformers_engine import TransformersEngine

needs_server = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED),
    reason=f"llama-cpp-python's server needs {', '.join(NEEDED)}: make setup-llamacpp",
)
TOP_K = 6
QUESTIONS = ["A kid has 8 pencils and his brother has 5. How many have they?", "Say hello 🤖 in Chinese."]
# The server's own defaults (a penalty of 1.1, and cut-offs that matter for samples) off.
RAW = {"repeat_penalty": 1.0, "top_k": 0, "min_p": 0.0}


@pytest.fixture(autouse=True)
def key(monkeypatch, output):
    monkeypatch.setenv(VARIABLE, KEY)


@pytest.fixture(scope="module")
def server():
    """The address of a server that asks for KEY, in a process of its own for the whole module."""
    own = OwnServer(require_local(parse_reference(POCKET)), "pocket", 256, True, 1, KEY)
    yield own.url
    own.close()


def api_config(server, **changes) -> TeacherConfig:
    api = api_section(server, **{"model": "pocket", "request": RAW, "timeout_seconds": 300} | changes)
    return TeacherConfig(engine="api", model=POCKET, api=api)


@pytest.fixture(scope="module")
def asked(server, tmp_path_factory, tokenizer):
    """The engine after it has asked both questions, the second one cut off in the middle of a character."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, KEY)
        engine = ApiEngine(api_config(server), TOP_K, tmp_path_factory.mktemp("asked") / "spending.json")
    prompts = [build_prompt(tokenizer, question) for question in QUESTIONS]
    responses = engine.generate(prompts, Sampling(10))
    return engine, prompts, responses, engine.score(prompts, [r.ids for r in responses], "top")


@pytest.fixture(scope="module")
def reference() -> TransformersEngine:
    """The same file, dequantised, in float32."""
    return TransformersEngine(POCKET, "float32")


@needs_server
@pytest.mark.slow
def test_the_servers_log_probs_are_those_of_the_same_file_in_transformers(asked, reference):
    """llama.cpp quantises activations too, so its log-probs are near, not equal: within 0.35 nats each here, 0.08 on
    average. Rows one place off would differ by several nats."""
    engine, prompts, responses, rows = asked
    scored = reference.score(prompts, [r.ids for r in responses], "logits")
    for found, logits in zip(rows, scored, strict=True):
        known = found.ids >= 0
        said = logits.log_softmax(-1).gather(-1, found.ids.clamp(min=0))
        gaps = (said - found.log_probs)[known].abs()
        assert gaps.mean() < 0.08 and gaps.max() < 0.35
        encoded = TopKCodec(TOP_K, 1.0, "top").encode(found, stored("a", []))
        tail = 1 - torch.where(known, said.exp(), 0.0).sum(-1)
        torch.testing.assert_close(encoded["tail_mass"], tail, atol=0.05, rtol=0)


@needs_server
@pytest.mark.slow
def test_the_servers_tokens_are_our_ids_even_in_the_middle_of_a_character(asked, reference, tokenizer):
    engine, prompts, responses, rows = asked
    greedy = reference.generate(prompts, Sampling(10))
    for ours, theirs, found in zip(greedy, responses, rows, strict=True):
        assert theirs.ids[:4] == ours.ids[:4]  # later they may part, as the log-probs are near, not equal
        assert len(found) == len(theirs.ids) <= 10 and theirs.truncated == (theirs.ids[-1] != tokenizer.eos_token_id)
        for t, token in enumerate(theirs.ids):  # greedy: each token is in its row, and no other is above it
            assert token == tokenizer.eos_token_id or token == found.ids[t, 0]
    assert "\ufffd" in tokenizer.decode(responses[1].ids)


@needs_server
@pytest.mark.slow
def test_prompts_as_messages_and_as_text_reach_the_model_alike(asked, server, tmp_path):
    """The server's template is the file's, which is ours; and no second BOS is put before the text."""
    engine, prompts, responses, _ = asked
    text = ApiEngine(api_config(server, prompt="text"), TOP_K, tmp_path / "spending.json")
    assert text.generate(prompts[1:], Sampling(10)) == responses[1:]
    changed = Prompt(prompts[1], prompts[1].messages, "<|im_start|>" + prompts[1].text)  # as if it added a BOS
    with pytest.raises(UserError, match="read 39 prompt tokens where ours has 38: it adds a BOS of its own"):
        text.generate([changed], Sampling(1))
    with pytest.raises(UserError, match="Input should be a valid string"):  # this server takes no ids
        ApiEngine(api_config(server, prompt="ids"), TOP_K, tmp_path / "spending.json").generate(prompts, Sampling(1))


@needs_server
@pytest.mark.slow
def test_the_servers_own_penalty_is_noticed(server, tmp_path, tokenizer):
    """By default it penalises tokens that were there before, and a greedy answer is then not the model's."""
    engine = ApiEngine(api_config(server, request={"repeat_penalty": 2.0}), TOP_K, tmp_path / "spending.json")
    with pytest.raises(UserError, match="has a penalty or a sampler on by default"):
        engine.generate([build_prompt(tokenizer, "Repeat: one one one one one one.")], Sampling(10))


@needs_server
@pytest.mark.slow
def test_capture_from_the_server_goes_on_where_it_was_killed(server, tmp_path, warm_python):
    """A real process, killed after its first shard; its answers are in the store, and none is paid twice."""
    path = write_profile(
        tmp_path,
        teacher={"engine": "api", "model": POCKET, "api": api_section(server, model="pocket", request=RAW)},
        signals={"codec": "topk", "top_k": TOP_K, "items_per_shard": 1},
        loss={"temperature": 1.0},
        data={"train_items": 2},
        max_new_tokens=4,
    )
    profile = load_profile(str(path))
    folder = profile.signals_folder("base-KD")
    command = [warm_python, "-m", "primekd.cli", "capture", "base-KD", "--profile", str(path)]
    process = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (folder / "shard-00000.safetensors").is_file():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    done = CliRunner().invoke(app, ["capture", "base-KD", "--profile", str(path)])
    assert done.exit_code == 0, done.stderr
    reader = SignalReader(folder)
    ledger = read_json(profile.runs / "spending.json")
    assert len(reader.item_ids) == 2 and ledger["answers"] == 2
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]


# Tokens.


def test_every_token_is_found_by_its_bytes_and_by_its_text_where_that_is_certain(tokenizer, ci):
    found = token_map(ci.teacher.model)
    ids = range(len(tokenizer))
    assert [found.id_of(Shown("?", 0.0, found.bytes[i])) for i in ids] == list(ids)
    assert [found.id_of(Shown(f"token_id:{i}", 0.0)) for i in (0, 7, len(tokenizer) - 1)] == [0, 7, len(tokenizer) - 1]
    assert found.id_of(Shown(f"token_id:{len(tokenizer)}", 0.0)) is None
    by_text = [found.id_of(Shown(found.text(i), 0.0)) for i in ids]
    assert all(a is None or a == b for a, b in zip(by_text, ids, strict=True))
    assert sum(i is None for i in by_text) < 0.01 * len(tokenizer)
    for text in ("", " ", "\ufffd"):  # parts of characters look like these
        assert found.id_of(Shown(text, 0.0)) is None


def test_a_control_token_that_a_server_shows_as_nothing_is_told_by_its_id_and_no_other_token_is(tokenizer, ci):
    """llama.cpp's own server shows the end of a turn so; an id of another vocabulary must not pass for one of ours."""
    found = token_map(ci.teacher.model)
    end, word = tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.convert_tokens_to_ids("hello")
    assert found.id_of(Shown("", 0.0, b"", end)) == end and found.id_of(Shown("", 0.0, b"")) is None
    assert found.id_of(Shown("", 0.0, b"", word)) is None and found.id_of(Shown("a", 0.0, b"a", end)) != end
    space, half = (found.id_of(Shown("", 0.0, raw)) for raw in (b" ", b"\xc3"))
    assert None not in (space, half)
    assert found.id_of(Shown(" ", 0.0, b" ", end)) == space and found.id_of(Shown("", 0.0, b"\xc3", end)) == half


def test_parts_of_characters_are_told_from_the_only_way_to_cut_the_text(tokenizer, ci):
    """Where the model wrote them otherwise than our tokenizer would."""
    found, text = token_map(ci.teacher.model), "\u00c0 cette"
    parts = [found._by_bytes[piece] for piece in (b"\xc3", b"\x80", b" c", b"e", b"t", b"t", b"e")]
    shown = [Shown(found.text(i), 0.0) for i in parts]
    assert [token.text for token in shown[:3]] == ["", "", " c"]
    assert tokenizer(text, add_special_tokens=False)["input_ids"] != parts
    assert found.response_ids(shown, text) == parts
    assert found.response_ids(shown, "\u00c0 cetta") is None and found.response_ids(shown[1:], text) is None


@pytest.mark.parametrize("text", ["He has 7.", "  two  spaces\n\n$5", "héllo 世界 🤖!", " "])
@pytest.mark.parametrize("errors", ["ignore", "replace"])
def test_a_response_is_mapped_from_texts_that_lose_parts_of_characters(text, errors, tokenizer, ci):
    found = token_map(ci.teacher.model)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert found.response_ids([Shown(found.bytes[i].decode("utf-8", errors), 0.0) for i in ids], text) == ids


def test_a_response_that_our_tokenizer_would_write_otherwise_keeps_the_servers_tokens(tokenizer, ci):
    found = token_map(ci.teacher.model)
    ids = [found._by_bytes[letter.encode()] for letter in "apples"]
    assert tokenizer("apples", add_special_tokens=False)["input_ids"] != ids
    assert found.response_ids([Shown(letter, 0.0) for letter in "apples"], "apples") == ids
    assert found.response_ids([Shown("app", 0.0), Shown("les", 0.0)], "other text") is None


def test_sentencepiece_tokens_are_their_text_and_bytes():
    """Llama 2's kind of vocabulary: ▁ is a space, and <0x0A> a byte."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "<0x0A>": 1, "<0xF0>": 2, "▁He": 3, "y": 4, "▁": 5}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    found = TokenMap(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"))
    assert found.bytes == [b"<unk>", b"\n", b"\xf0", b" He", b"y", b" "]


# What is sent.


def test_requests_hold_the_prompt_in_the_form_that_the_profile_names(tokenizer):
    prompt = build_prompt(tokenizer, "How many?", "Be kind.")

    def request(**changes):
        return build_request(api_config("http://x/v1", **changes).api, prompt, "<|im_start|>", Sampling(9), 0, 5)

    path, body = request(request={"top_k": 0, "top_p": None})
    assert path == "chat/completions" and "top_p" not in body and "seed" not in body
    assert body["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "How many?"},
    ]
    assert (body["logprobs"], body["top_logprobs"], body["max_tokens"]) == (True, 5, 9)
    assert (body["temperature"], body["top_k"]) == (0, 0)
    path, body = request(prompt="ids")
    assert (path, body["prompt"], body["logprobs"]) == ("completions", list(prompt), 5)
    assert request(prompt="text")[1]["prompt"] == tokenizer.decode(prompt) == prompt.text
    assert "<|im_start|>" + request(prompt="text-without-bos")[1]["prompt"] == prompt.text
    assert "logprobs" not in request(logprobs=False)[1] | request(logprobs=False, prompt="ids")[1]
    path, body = request(limit_field="max_completion_tokens")
    assert body["max_completion_tokens"] == 9 and "max_tokens" not in body


OURS = ["n", "N", "best_of", "model", "messages", "prompt", "temperature", "seed", "stream", "logprobs", "top_logprobs"]
LIMITS = ["max_tokens", "max_completion_tokens", "max_new_tokens", "maxTokens", "n_predict", "stop", "tools"]


@pytest.mark.parametrize("name", OURS + LIMITS)
@pytest.mark.parametrize("value", [8, None])
def test_a_request_cannot_replace_what_the_engine_sets_or_multiply_the_cost(name, value):
    with pytest.raises(ValidationError, match=f"{name} is set by the engine or changes what a request may cost"):
        api_config("http://x/v1", request={name: value})


def test_a_request_can_leave_top_p_out_but_not_change_it():
    with pytest.raises(ValidationError, match="top_p is set by the engine"):
        api_config("http://x/v1", request={"top_p": 0.5})


@pytest.mark.parametrize(
    "name", ["api_key", "X-Api-Key", "token", "accessToken", "tokens", "Authorization", "password"]
)
def test_a_request_holds_no_name_of_a_secret_at_any_depth(name):
    for request in ({name: 1}, {"options": {name: 1}}, {"options": [{"deep": [{name: 1}]}]}):
        with pytest.raises(ValidationError, match=f"{name} looks like a secret"):
            api_config("http://x/v1", request=request)


def test_names_with_tokens_in_them_are_no_secrets():
    names = ("return_tokens_as_token_ids", "skip_special_tokens", "allowed_token_ids", "thinking_token_budget")
    request = dict.fromkeys(names, 1) | {"thinking": {"budget_tokens": 9}, "top_k": 0}
    assert api_config("http://x/v1", request=request).api.request == request


def test_samples_of_one_call_have_a_seed_each_and_the_same_ones_again(tokenizer):
    prompt, api = build_prompt(tokenizer, "How many?"), api_config("http://x/v1").api
    seeds = [build_request(api, prompt, None, Sampling(9, 1.0, 2**32 - 1), n, 5)[1]["seed"] for n in (0, 1, 1)]
    assert seeds[0] != seeds[1] == seeds[2] and all(0 <= seed < 2**31 for seed in seeds)


def test_nothing_is_scored_that_was_not_generated(tokenizer, tmp_path, ci):
    prompt = build_prompt(tokenizer, "How many?")
    with serving(good(ci.teacher.model)) as server:
        engine = ApiEngine(api_config(server), TOP_K, tmp_path / "spending.json")
        (response,) = engine.generate([prompt], Sampling(12))
        (rows,) = engine.score([prompt], [response.ids], "top")
    assert len(rows) == len(response.ids) and rows.ids[:-1, 0].tolist() == response.ids[:-1]
    assert rows.ids[-1].tolist() == [-1, -1] and response.ids[-1] == tokenizer.eos_token_id  # it is not shown
    with pytest.raises(UserError, match="just generated"):
        engine.score([prompt], [response.ids[1:]], "top")
    with pytest.raises(UserError, match="gives no logits: set signals.codec to topk"):
        engine.score([prompt], [response.ids], "logits")


# A row of which nothing is known.


def test_a_hidden_end_of_turn_adds_nothing_to_the_divergence_and_its_token_is_still_learnt():
    top = TopLogprobs(torch.tensor([[3, 1], [-1, -1]]), torch.tensor([[-0.2, -2.0], [-torch.inf, -torch.inf]]))
    codec = TopKCodec(4, 1.0, "top")
    rows = codec.decode(codec.encode(top, stored("a", [])), None, stored("a", []))
    assert rows.tail_mass[1] == 1
    student = torch.randn(2, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    divergence = forward_kl_topk(rows, student)
    assert divergence[0] > 0 and divergence[1] == 0
    (gradient,) = torch.autograd.grad(divergence.sum(), student)
    assert (gradient[0] != 0).any() and (gradient[1] == 0).all()
    loss = LossConfig(divergence="forward_kl", temperature=1.0, alpha=0.25)
    total, parts = distillation_loss(student, torch.tensor([3, 2]), rows, loss, 2)
    assert float(parts["kd"]) == pytest.approx(float(divergence[0].detach()) / 2)
    (gradient,) = torch.autograd.grad(total, student)
    expected = 0.25 * (student[1].softmax(-1) - torch.eye(9)[2]) / 2  # cross-entropy alone
    torch.testing.assert_close(gradient[1], expected.detach())


# Text alone.


def test_a_study_on_text_alone_has_accuracies_and_likelihoods_but_no_distance_to_the_teacher(ci, tmp_path, monkeypatch):
    """From the server's text to the report, in a checkout with two strategies; the server is a fake."""
    from primekd.assessment.held_out import HeldOutRow
    from primekd.capture.jobs import training_job
    from primekd.capture.run import capture as run_capture
    from primekd.config.arms import default_arms
    from primekd.report.findings import results_text
    from primekd.report.html import write_report
    from primekd.report.readme import block
    from primekd.studies.assess import assess
    from primekd.training.distill import distill

    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "models").symlink_to(ROOT / "models")
    chosen = yaml.safe_load((ROOT / "configs" / "strategies.yaml").read_text(encoding="utf-8"))
    chosen = {name: chosen[name] for name in ("base-KD", "base-fine-tune")}
    (tmp_path / "configs" / "strategies.yaml").write_text(yaml.safe_dump(chosen), encoding="utf-8")
    monkeypatch.setenv("PRIMEKD_ROOT", str(tmp_path))
    with serving(good(ci.teacher.model, "He has \\boxed{7}.")) as server:
        profile = small_profile(
            tmp_path,
            teacher={"engine": "api", "api": api_section(server, logprobs=False)},
            signals={"codec": "auto"},
            loss={"temperature": 1.0, "alpha": 1.0},
            data={"train_items": 2, "validation_items": 1, "test_items": 2},
            train={"epochs": 1},
        )
        for name, strategy in default_arms().items():
            if strategy.teacher:
                run_capture(training_job(profile, name))
            distill(profile, name)
        assess(profile)
        assert not any("logprobs" in request for request in server.requests)
    rows = read_records(profile.logs / "held-out.csv", HeldOutRow)
    assert rows and all(row.kl is None and row.nll_gold > 0 for row in rows)
    table = block("results", profile.logs)
    (control,) = [line for line in table.splitlines() if line.startswith("| No distillation (`control`)")]
    assert control.split(" | ")[-2] == "–" and "[" in control.split(" | ")[-1]
    assert "text alone was kept" in table and "KL is measured" not in table
    assert "text alone was kept" in " ".join(results_text(profile.logs).split())
    page = write_report(profile).read_text(encoding="utf-8")
    assert "Held-out KL to the unprimed teacher" not in page
