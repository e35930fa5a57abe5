"""An endpoint that misbehaves: one sentence each, a non-zero status, what is finished is kept, and nothing leaks.

The server is a fake (a real one does not fail on demand); everything else is the real thing, over a socket.
"""

import contextlib
import json
import logging
import math
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from api_server import KEY, VARIABLE, api_section, good, good_answer, serving
from conftest import write_profile
from tenacity import wait_none
from typer.testing import CliRunner

from primekd.capture import run as capture_file
from primekd.cli import app
from primekd.config import load_profile
from primekd.foundation import read_json
from primekd.foundation.errors import UserError
from primekd.models.chat import build_prompt
from primekd.studies.priming import STUDY
from primekd.teachers import Sampling
from primekd.teachers.api import ApiEngine, client
from primekd.teachers.api import engine as engine_module
from primekd.teachers.api.engine import OVERSHOOT
from primekd.teachers.api.spending import EMPTY, Ledger

SIGNALS = {"codec": "topk", "top_k": 2, "items_per_shard": 2}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch, output):
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setattr(client, "BACK_OFF", wait_none())


def write(folder: Path, server, items: int = 4, **changes) -> Path:
    """A profile of some training items in shards of two, taught by a server."""
    return write_profile(
        folder,
        teacher={"engine": "api", "api": api_section(server, **changes)},
        signals=SIGNALS if changes.get("logprobs", True) else SIGNALS | {"codec": "auto"},
        loss={"temperature": 1.0},
        data={"train_items": items},
    )


def capture(path: Path):
    return CliRunner().invoke(app, ["capture", "base-KD", "--profile", str(path)])


def engine_for(ci, server, folder: Path, **changes) -> ApiEngine:
    teacher = ci.teacher.model_dump() | {"engine": "api", "api": api_section(server, **changes)}
    return ApiEngine(type(ci.teacher)(**teacher), 2, folder / "spending.json")


def answering(tokenizer_of: str, **changes):
    """A server whose answer differs from a good one in some fields of its choice, or of itself."""

    def behave(handler, request):
        answer = good_answer(tokenizer_of, request)
        for key, value in changes.items():
            (answer["choices"][0] if key in ("logprobs", "finish_reason", "message") else answer)[key] = value
        handler.reply(answer)

    return behave


def drop_halfway(handler, request):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)


def status(code: int, message: str = "no", **headers: str):
    return lambda handler, request: handler.reply({"error": {"message": message}}, code, **headers)


def _saying(text: str):
    """A server whose answer is this text, in tokens of no account."""
    token = {"token": text, "logprob": -0.1, "bytes": list(text.encode()), "top_logprobs": []}
    return {"message": {"content": text}, "logprobs": {"content": [token]}}


def _beside(token: str, other: str) -> dict:
    """Log-probs of an answer of one token, and of another one that was not chosen."""
    shown = {"token": token, "logprob": -0.1, "bytes": None}
    return {"content": [shown | {"top_logprobs": [shown, shown | {"token": other, "logprob": -4.0}]}]}


def top(value: float, chosen: float = -3.0):
    row = {"token": "7", "logprob": chosen, "bytes": [55]}
    return {"content": [row | {"top_logprobs": [{"token": "8", "logprob": value, "bytes": [56]}]}]}


USAGE = {"prompt_tokens": 50, "completion_tokens": 99}
BAD = {
    "401": (status(401), rf"refuses the key in {VARIABLE} \(401\)"),
    "403": (status(403, "not for you"), r"does not let this key use the model m \(403\): not for you;"),
    "404": (status(404), r"has no model m, or is not the address.*\(404\)"),
    "400": (status(400, "top_logprobs is at most 1"), r"refuses the request \(400\): top_logprobs is at most 1;"),
    "429": (status(429, "slow down"), r"has too many requests \(429: slow down\)"),
    "no credit": (status(429, "insufficient_quota"), "has no credit left"),
    "come back tomorrow": (status(429, Retry_After="86400"), "asks to wait for 86400 s"),
    "500": (status(500), r"fails \(500: no\)"),
    "a proxy's page": (lambda h, r: h.reply("<html>busy</html>", 502), r"fails \(502: <html>busy</html>\)"),
    "brackets": (lambda h, r: h.reply("[" * 100_000, 500), r"fails \(500: \[\[\["),
    "a redirect": (lambda h, r: h.reply("", 302, Location="http://127.0.0.1:9/"), r"refuses the request \(302"),
    "dropped": (drop_halfway, "broke the connection before its answer was whole"),
    "no JSON": (lambda h, r: h.reply('{"choices": ['), "no JSON object"),
    "a list": (lambda h, r: h.reply([1]), "no JSON object"),
    "no choices": ({"choices": []}, "gave an answer that is none"),
    "no text": ({"message": 5}, "gave an answer that is none"),
    "another model": ({"model": "cheaper"}, "gave the model cheaper where m was asked for"),
    "too many tokens": ({"usage": USAGE}, "gave 99 tokens where 12 were asked for"),
    "a filter": ({"finish_reason": "content_filter"}, r"withheld an answer \(content_filter\): take the item out"),
    "an end of its own": ({"finish_reason": "tool_calls"}, "ended with 'tool_calls'"),
    "no log-probs": ({"logprobs": None}, "gave no log-probs, which teacher.api.logprobs promises"),
    "other tokens": ({"message": {"content": "Something else."}}, "gave tokens that are not those of"),
    "a penalty": (
        {"logprobs": top(-0.1) | {}, "message": {"content": "7"}},
        "most probable token and gave '7'",
    ),
    "above one": ({"logprobs": top(0.7), "message": {"content": "7"}}, "log-probs that are no probabilities"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_answer_is_one_sentence_and_the_next_run_goes_on(name, ci, tmp_path, caplog):
    """The first shard is answered well; the second not, and then well."""
    caplog.set_level(logging.DEBUG)
    fault, sentence = BAD[name]
    well = good(ci.teacher.model)
    badly = fault if callable(fault) else answering(ci.teacher.model, **_counted(fault))

    def behave(handler, request):
        (well if len(server.requests) <= 2 or server.mended else badly)(handler, request)

    with serving(behave) as server:
        server.mended = False
        path = write(tmp_path, server)
        failed = capture(path)
        bar, said = failed.stderr.strip().split("\n")
        assert failed.exit_code == 1 and bar.startswith("capture") and said.startswith("primekd: ")
        assert re.search(sentence, said), said
        profile = load_profile(str(path))
        store = profile.signals_folder("base-KD")
        first = (store / "shard-00000.safetensors").read_bytes()
        server.mended, before = True, len(server.requests)
        assert capture(path).exit_code == 0
        assert len(server.requests) == before + 2  # the second shard's two items, and nothing of the first's
        assert (store / "shard-00000.safetensors").read_bytes() == first
        assert read_json(store / "manifest.json")["items"] == 4
        assert set(server.keys) == {f"Bearer {KEY}"}
    assert KEY not in failed.output + caplog.text + str(failed.exception)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]


@pytest.mark.parametrize("logprobs", [True, False])
def test_a_withheld_answer_can_count_as_an_empty_one_and_is_paid_for_once(logprobs, ci, tmp_path):
    withheld = answering(
        ci.teacher.model, finish_reason="content_filter", message={"content": "I was about to"}, logprobs=None
    )
    with serving(withheld) as server:
        for _ in range(2):  # the second time it is read from disk
            engine = engine_for(ci, server, tmp_path, withheld_is_empty=True, logprobs=logprobs)
            made = engine.generate([build_prompt(engine.tokenizer, "How many?")], Sampling(12))
            assert [(response.ids, response.truncated) for response in made] == [([engine.end.token], False)]
        assert len(server.requests) == 1


@pytest.mark.parametrize("as_empty", [True, False])
def test_an_answer_with_a_control_token_in_it_is_no_label(as_empty, ci, tmp_path):
    saying = answering(ci.teacher.model, message={"content": "Four.<|im_end|> And"}, logprobs=None)
    with serving(saying) as server:
        engine = engine_for(ci, server, tmp_path, withheld_is_empty=as_empty, logprobs=False)
        prompt = build_prompt(engine.tokenizer, "How many?")
        if as_empty:
            assert [response.ids for response in engine.generate([prompt], Sampling(12))] == [[engine.end.token]]
        else:
            with pytest.raises(UserError, match=r"an answer with the control token '<\|im_end\|>' in it"):
                engine.generate([prompt], Sampling(12))


def test_a_withheld_answer_is_looked_at_for_the_key_too(ci, tmp_path):
    echo = answering(ci.teacher.model, finish_reason="content_filter", message={"content": KEY}, logprobs=None)
    with serving(echo) as server:
        engine = engine_for(ci, server, tmp_path, withheld_is_empty=True, logprobs=False)
        with pytest.raises(UserError, match="an answer with the API key in it"):
            engine.generate([build_prompt(engine.tokenizer, "How many?")], Sampling(12))
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]


def test_students_of_a_task_without_labels_do_not_learn_withheld_answers(ci, tmp_path):
    with serving(good(ci.teacher.model)) as server, pytest.raises(UserError, match="take withheld_is_empty out"):
        STUDY.refuse(load_profile(str(write(tmp_path, server, withheld_is_empty=True))))


def _counted(fault: dict) -> dict:
    """The server's own count of tokens must fit what it shows, or that would be the fault that is found."""
    rows = (fault.get("logprobs") or {}).get("content", [])
    return {"usage": {"prompt_tokens": 5, "completion_tokens": len(rows)}} | fault if rows else fault


def test_a_server_that_echoes_the_key_does_not_get_it_printed_or_kept(ci, tmp_path):
    with serving(lambda h, r: h.reply({"error": {"message": f"bad key {h.headers['Authorization']}"}}, 400)) as server:
        failed = capture(write(tmp_path, server))
    assert "bad key Bearer [key]" in failed.stderr and KEY not in failed.stderr
    echo = {"echo": f"Bearer {KEY}", "model": f"m-1{KEY}"}  # the second looks like a dated version of m
    answer = lambda h, r: h.reply(good_answer(ci.teacher.model, r) | echo)  # noqa: E731
    with serving(answer) as server:
        engine = engine_for(ci, server, tmp_path)
        engine.generate([build_prompt(engine.tokenizer, "How many?")], Sampling(12))
        assert KEY not in repr(engine) + repr(engine._endpoint) + str(engine.identity())
    assert list((tmp_path / "answers").iterdir())
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]


@pytest.mark.parametrize("key", ["sk-line\nbreak", "sk-ключ"])
def test_a_key_that_no_header_can_hold_is_not_quoted(key, ci, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, key)
    with pytest.raises(UserError, match=f"{VARIABLE} holds characters") as caught:
        engine_for(ci, "http://127.0.0.1:9/v1", tmp_path)
    assert key not in str(caught.value)


def test_without_a_key_none_is_sent_and_a_refusal_says_so(ci, tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE)
    with serving(status(401)) as server:
        failed = capture(write(tmp_path, server))
        assert server.keys == [None]
    assert f"requests without a key ({VARIABLE} is not set)" in failed.stderr


def test_an_address_with_a_password_is_refused_before_it_reaches_a_manifest(ci, tmp_path):
    path = write(tmp_path, "http://me:secret@127.0.0.1:9/v1")
    assert "holds a password" in capture(path).stderr


@pytest.mark.parametrize(
    "request_fields",
    [{"user": KEY}, {"options": [{"user": f"Bearer {KEY}"}]}, {KEY: 1}],
)
def test_the_keys_own_value_is_refused_in_a_request_before_it_reaches_a_manifest(request_fields, tmp_path):
    failed = capture(write(tmp_path, "http://127.0.0.1:9/v1", request=request_fields))
    assert f"holds the value of {VARIABLE}: take it out" in failed.stderr and KEY not in failed.stderr
    assert failed.exit_code == 1 and not list(tmp_path.rglob("manifest.json"))


def test_nobody_listening_costs_nothing(ci, tmp_path):
    with serving(status(500)) as server:
        url = server.url
    failed = capture(write(tmp_path, url, retries=1))
    assert "cannot be reached" in failed.stderr and "after 2 attempts" in failed.stderr
    assert read_json(load_profile(str(tmp_path / "small.yaml")).runs / "spending.json") == EMPTY


# Retries, pace and time.


def test_passing_failures_are_tried_again_and_what_may_have_been_billed_stays_booked(ci, tmp_path):
    faults = [status(500), status(429), status(503)]

    def behave(handler, request):
        (faults.pop(0) if faults else good(ci.teacher.model))(handler, request)

    with serving(behave) as server:
        engine = engine_for(ci, server, tmp_path, retries=3)
        prompt = build_prompt(engine.tokenizer, "How many?")
        engine.generate([prompt], Sampling(12))
        assert len(server.requests) == 4
    ledger = read_json(tmp_path / "spending.json")
    most = engine._endpoint.ledger.price(engine._input_bound(prompt), 15)
    assert ledger["answers"] == 1 and ledger["unsettled_usd"] == pytest.approx(2 * most)  # of 500 and 503
    assert ledger["spent_usd"] == pytest.approx((50 * 1 + ledger["output_tokens"] * 10) / 1e6)


@pytest.mark.parametrize("code", [400, 401, 403, 404, 409, 422, 429, 302, 402, 408, 500, 502, 503, 504, 529])
def test_only_refusals_that_cannot_be_billed_free_their_booking(code, ci, tmp_path):
    with serving(status(code)) as server:
        engine = engine_for(ci, server, tmp_path)
        with pytest.raises(UserError, match=str(code)):
            engine.generate([build_prompt(engine.tokenizer, "How many?")], Sampling(12))
    free = code in (400, 401, 403, 404, 409, 422, 429)
    assert (read_json(tmp_path / "spending.json")["unsettled_usd"] == 0) == free


def test_a_dead_server_eats_up_the_cap_and_the_sentence_says_what_for(ci, tmp_path):
    with serving(status(503)) as server:
        engine = engine_for(ci, server, tmp_path, retries=9, max_spend_usd=0.0006)
        with pytest.raises(UserError, match="of it for attempts without an answer"):
            engine.generate([build_prompt(engine.tokenizer, "How many?")], Sampling(12))
        assert 0 < len(server.requests) < 10
    assert 0 < read_json(tmp_path / "spending.json")["unsettled_usd"] <= 0.0006


def test_the_server_says_how_long_to_wait(ci, tmp_path):
    faults, times = [status(429, Retry_After="0.4")], []

    def behave(handler, request):
        times.append(time.monotonic())
        (faults.pop(0) if faults else good(ci.teacher.model))(handler, request)

    with serving(behave) as server:
        engine = engine_for(ci, server, tmp_path, retries=1)
        engine.generate([build_prompt(engine.tokenizer, "How many?")], Sampling(12))
    assert 0.4 <= times[1] - times[0] < 2


def test_waits_without_a_word_from_the_server_double():
    from tenacity import wait_exponential_jitter

    waits = wait_exponential_jitter(initial=1, max=60, jitter=0)
    monkeyed = [waits(SimpleNamespace(attempt_number=n)) for n in range(1, 9)]
    assert monkeyed == [1, 2, 4, 8, 16, 32, 60, 60]


def test_requests_keep_the_pace_that_the_profile_sets(ci, tmp_path):
    times = []

    def behave(handler, request):
        times.append(time.monotonic())
        good(ci.teacher.model)(handler, request)

    with serving(behave) as server:
        engine = engine_for(ci, server, tmp_path, requests_per_minute=300, concurrency=4)
        prompts, start = [build_prompt(engine.tokenizer, f"{n}?") for n in range(4)], time.monotonic()
        engine.generate(prompts, Sampling(12))
    # One every 0.2 s from the first on. How far apart they arrive depends on what else this machine does.
    assert len(times) == 4 and max(times) - start >= 0.59


def test_so_many_requests_at_once_and_answers_in_order(ci, tmp_path):
    state = {"now": 0, "most": 0}
    lock = threading.Lock()

    def behave(handler, request):
        with lock:
            state["now"] += 1
            state["most"] = max(state["most"], state["now"])
        number = re.search(r"\d+", request["messages"][-1]["content"]).group()
        time.sleep(0.2 if number == "0" else 0.05)
        with lock:
            state["now"] -= 1
        handler.reply(good_answer(ci.teacher.model, request, f"It is {number}."))

    with serving(behave) as server:
        engine = engine_for(ci, server, tmp_path, concurrency=3)
        prompts = [build_prompt(engine.tokenizer, f"{n}?") for n in range(9)]
        told = []  # when each response had ended: how many requests were in flight or waited for
        found = engine.generate(prompts, Sampling(12, ended=lambda: told.append(state["now"])))
    assert state["most"] == 3
    assert len(told) == 9 and max(told) > 0, "all of them only at the end"
    assert [engine.tokenizer.decode(r.ids[:-1]) for r in found] == [f"It is {n}." for n in range(9)]


def test_a_server_that_does_not_answer_is_left_and_stays_booked(ci, tmp_path):
    with serving(lambda h, r: time.sleep(1)) as server:
        engine = engine_for(ci, server, tmp_path, timeout_seconds=0.2)
        with pytest.raises(UserError, match="gave no answer in 0.2 s"):
            engine.generate([build_prompt(engine.tokenizer, "How many?")], Sampling(12))
    assert read_json(tmp_path / "spending.json")["unsettled_usd"] > 12 * 10 / 1e6  # it may have been billed


def test_one_failure_stops_the_others_and_answers_that_arrived_are_not_paid_twice(ci, tmp_path):
    def behave(handler, request):
        if "5?" in request["messages"][-1]["content"] and not server.mended:
            return status(401)(handler, request)
        good(ci.teacher.model)(handler, request)

    with serving(behave) as server:
        server.mended = False
        engine = engine_for(ci, server, tmp_path)
        prompts = [build_prompt(engine.tokenizer, f"{n}?") for n in range(9)]
        with pytest.raises(UserError, match="401"):
            engine.generate(prompts, Sampling(12))
        assert len(server.requests) == 6  # 6?, 7? and 8? were not sent
        server.mended = True
        again = engine_for(ci, server, tmp_path)
        assert len(again.generate(prompts, Sampling(12))) == 9 and len(server.requests) == 10
        assert read_json(tmp_path / "spending.json")["answers"] == 9
        assert len(list((tmp_path / "answers").iterdir())) == 9
        again.generate(prompts[:1], Sampling(11))  # the next shard: the last one is being written
        assert len(list((tmp_path / "answers").iterdir())) == 10
        again.generate([prompts[0], prompts[0]], Sampling(11))  # and now it is in the store
        assert len(list((tmp_path / "answers").iterdir())) == 1 and len(server.requests) == 11
        again.generate(prompts[1:2], Sampling(11))  # an answer that was used again is still needed
        assert len(list((tmp_path / "answers").iterdir())) == 2


def test_answers_of_a_shard_that_could_not_be_written_are_not_paid_twice(ci, tmp_path, monkeypatch):
    """Writing the second of three shards fails after the third was asked for."""
    plain = capture_file.write_shard

    def write_badly(store, codec, index, *rest):
        if index == 1:
            limit = time.monotonic() + 60
            while len(server.requests) < 6 and time.monotonic() < limit:
                time.sleep(0.01)
            raise UserError("The disk is full.")
        plain(store, codec, index, *rest)

    with serving(good(ci.teacher.model)) as server:
        path = write(tmp_path, server, items=6)
        with monkeypatch.context() as patch:
            patch.setattr(capture_file, "write_shard", write_badly)
            assert "The disk is full." in capture(path).stderr
        runs = load_profile(str(path)).runs
        assert len(server.requests) == 6 and len(list((runs / "answers").iterdir())) == 4
        assert capture(path).exit_code == 0
        assert len(server.requests) == 6 and read_json(runs / "spending.json")["answers"] == 6
        assert not list((runs / "answers").iterdir())


def test_answers_of_the_last_shard_are_deleted_by_close_but_not_on_the_way_out_of_a_failure(ci, tmp_path):
    def answers():
        return len(list((tmp_path / "answers").iterdir()))

    with serving(good(ci.teacher.model)) as server:
        engine = engine_for(ci, server, tmp_path)
        prompts = [build_prompt(engine.tokenizer, f"{n}?") for n in range(2)]
        engine.close()  # nothing was asked yet
        with pytest.raises(OSError), contextlib.closing(engine):
            engine.generate(prompts, Sampling(12))
            raise OSError("the disk is full, the shard was not written")
        assert answers() == 2
        with contextlib.closing(engine_for(ci, server, tmp_path)) as engine:  # the next session
            engine.generate(prompts, Sampling(12))
            assert len(server.requests) == 2 and answers() == 2
        assert answers() == 0
        engine.generate(prompts, Sampling(12))  # signals that were moved away are made of new answers
        assert len(server.requests) == 4


def test_answers_of_a_call_that_failed_outlast_close_and_the_next_call(ci, tmp_path):
    def behave(handler, request):
        bad = "1?" in request["messages"][-1]["content"]
        (status(401) if bad else good(ci.teacher.model))(handler, request)

    with serving(behave) as server:
        engine = engine_for(ci, server, tmp_path)
        first, second, other = (build_prompt(engine.tokenizer, f"{n}?") for n in (0, 1, 2))
        with pytest.raises(UserError, match="401"):
            engine.generate([first, second], Sampling(12))
        engine.close()
        engine.generate([other], Sampling(12))
        engine.close()
        assert len(server.requests) == 3
        engine.generate([first], Sampling(12))
        assert len(server.requests) == 3


def test_answers_of_an_own_server_are_not_used_again_for_another_file(ci, tmp_path, monkeypatch):
    with serving(good(ci.teacher.model)) as server:
        teacher = type(ci.teacher)(**ci.teacher.model_dump() | {"engine": "api", "api": api_section(server)})
        own = SimpleNamespace(url=server.url, key=KEY, ensure=lambda: None)
        for weights, requests in (("a", 1), ("a", 1), ("b", 2)):
            monkeypatch.setattr(engine_module, "model_hash", lambda model, weights=weights: weights)
            engine = ApiEngine(teacher, 2, tmp_path / "spending.json", own)
            engine.generate([build_prompt(engine.tokenizer, "1?")], Sampling(12))
            assert len(server.requests) == requests


# The cap.


def test_no_request_is_sent_that_could_break_the_cap(ci, tmp_path):
    """An answer costs about 0.00012 dollars here, and may cost 0.00025: the third could go above the cap."""
    with serving(good(ci.teacher.model)) as server:
        path = write(tmp_path, server, max_spend_usd=0.00045)
        failed = capture(path)
        sent = len(server.requests)
        assert failed.exit_code == 1 and "raise teacher.api.max_spend_usd" in failed.stderr
        ledger = read_json(load_profile(str(path)).runs / "spending.json")
        assert 0 < sent < 4 and ledger["answers"] == sent and ledger["unsettled_usd"] == 0
        assert ledger["spent_usd"] <= 0.00045
        assert capture(path).exit_code == 1 and len(server.requests) == sent  # it is the same after a restart
        assert capture(write(tmp_path, server, max_spend_usd=0.01)).exit_code == 0 and len(server.requests) == 4


def test_the_cap_counts_what_is_in_flight(ci, tmp_path):
    """Room for two worst cases: four threads never have more than two requests under way."""
    most, state, lock = 0.0, {"now": 0, "most": 0}, threading.Lock()

    def behave(handler, request):
        with lock:
            state["now"] += 1
            state["most"] = max(state["most"], state["now"])
        time.sleep(0.1)
        with lock:
            state["now"] -= 1
        good(ci.teacher.model)(handler, request)

    with serving(behave) as server:
        engine = engine_for(ci, server, tmp_path)
        prompts = [build_prompt(engine.tokenizer, f"{n}?") for n in range(4)]
        most = engine._endpoint.ledger.price(engine._input_bound(prompts[0]), 15)
        engine = engine_for(ci, server, tmp_path, concurrency=4, max_spend_usd=2.5 * most)
        assert len(engine.generate(prompts, Sampling(12))) == 4
    assert state["most"] == 2


@pytest.mark.parametrize("cause", ["a refusal", "an interrupt"])
def test_a_thread_that_waits_for_room_under_the_cap_does_not_send_after_the_stop(cause, ci, tmp_path, monkeypatch):
    asked, go_on = threading.Event(), threading.Event()

    def behave(handler, request):
        asked.set()
        go_on.wait(10)
        (status(401) if cause == "a refusal" else good(ci.teacher.model))(handler, request)

    with serving(behave) as server:
        engine = engine_for(ci, server, tmp_path)
        prompts = [build_prompt(engine.tokenizer, f"{n}?") for n in range(3)]
        most = engine._endpoint.ledger.price(engine._input_bound(prompts[0]), 15)
        engine = engine_for(ci, server, tmp_path, concurrency=3, max_spend_usd=1.9 * most)
        ledger = engine._endpoint.ledger
        cancel = ledger.cancel
        monkeypatch.setattr(ledger, "cancel", lambda most: (cancel(most), time.sleep(0.3)))  # the others go first
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(engine.generate, prompts, Sampling(12))
            assert asked.wait(10)
            time.sleep(0.3)  # the two others have come to wait by now
            if cause == "an interrupt":
                engine._endpoint.stopping.set()
            go_on.set()
            with pytest.raises(UserError if cause == "a refusal" else client.Stopped):
                call.result()
        assert len(server.requests) == 1
    assert read_json(tmp_path / "spending.json")["unsettled_usd"] == 0


# Answers that are paid for and refused, and what is said of them.
REFUSED = {
    "nothing": (
        {"logprobs": top(-math.inf, chosen=-math.inf), "message": {"content": "7"}},
        "log-probs that are no probabilities",
    ),
    "not a number": (
        {"logprobs": top(-1.0, chosen=math.nan), "message": {"content": "7"}},
        "log-probs that are no probabilities",
    ),
    "more than certain": (
        {"logprobs": top(-1.0, chosen=0.5), "message": {"content": "7"}},
        "log-probs that are no probabilities",
    ),
    "the key as the model": ({"model": f"m\x1b[31m/{KEY}"}, r"gave the model m/\[key\] where m was asked for"),
    "the key as the end": ({"finish_reason": f"{KEY}+\u200b/"}, r"an answer that ended with '\[key\]\+/'"),
    "half the key as the end": ({"finish_reason": f"Bearer {KEY[:14]}..."}, r"ended with 'Bearer \[key\]"),
    "the key as the answer": (_saying(KEY), "an answer with the API key in it"),
    "the key as a token that was not chosen": (
        {"logprobs": _beside("7", KEY), "message": {"content": "7"}},
        "an answer with the API key in it",
    ),
    "a negative count": ({"usage": {"prompt_tokens": -(10**6), "completion_tokens": -5}}, "greater than or equal to 0"),
    "a count that is true": (
        {"usage": {"prompt_tokens": 5, "completion_tokens": True}},
        "true and false are no numbers",
    ),
    "a count without end": ({"usage": {"prompt_tokens": 5, "completion_tokens": math.inf}}, "usage.completion_tokens"),
    "a huge prompt": (
        {"usage": {"prompt_tokens": 10**6, "completion_tokens": 5}},
        "gave a count of 1000000 prompt tokens",
    ),
    "5,000 digits": (lambda h, r: h.reply('{"usage": ' + "9" * 5000 + "}"), "no JSON object"),
    "brackets without end": (lambda h, r: h.reply("[" * 100_000), "no JSON object"),
}


@pytest.mark.parametrize("fault, sentence", REFUSED.values(), ids=REFUSED)
def test_an_answer_that_cannot_be_is_refused_and_not_kept(fault, sentence, ci, tmp_path, capsys):
    behave = fault if callable(fault) else answering(ci.teacher.model, **_counted(fault))
    with serving(behave) as server:
        engine = engine_for(ci, server, tmp_path)
        with pytest.raises(UserError, match=sentence) as refusal:
            engine.generate([build_prompt(engine.tokenizer, "How many?")], Sampling(12))
    said = str(refusal.value) + str(engine.identity()) + repr(refusal.value.__cause__)
    assert KEY not in said and KEY[:14] not in said and said.isprintable()
    assert not (tmp_path / "answers").exists()
    assert read_json(tmp_path / "spending.json")["spent_usd"] >= 0


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": -(10**6), "completion_tokens": 3},
        {"prompt_tokens": True, "completion_tokens": True},
        {"prompt_tokens": math.nan, "completion_tokens": 3},
        {"prompt_tokens": 5, "completion_tokens": math.inf},
        {"prompt_tokens": 10**30, "completion_tokens": 3},
        {"completion_tokens": 3},
        "much",
    ],
)
def test_a_count_that_cannot_be_costs_the_most_that_the_request_can(usage, ci, tmp_path):
    (tmp_path / "spending.json").write_text(json.dumps(EMPTY | {"spent_usd": 0.25}))
    with serving(answering(ci.teacher.model, usage=usage)) as server:
        engine = engine_for(ci, server, tmp_path)
        prompt = build_prompt(engine.tokenizer, "How many?")
        with pytest.raises(UserError):
            engine.generate([prompt], Sampling(12))
        most = engine._input_bound(prompt), 12 + OVERSHOOT
    spent = read_json(tmp_path / "spending.json")
    assert spent["spent_usd"] == pytest.approx(0.25 + engine._endpoint.ledger.price(*most))
    assert (spent["input_tokens"], spent["output_tokens"]) == most and spent["unsettled_usd"] == 0


@pytest.mark.parametrize(
    "usage", [{"prompt_tokens": 0, "completion_tokens": 0}, {"prompt_tokens": 50, "completion_tokens": 0}]
)
def test_a_count_of_nothing_costs_the_most_that_the_request_can(usage, ci, tmp_path):
    with serving(
        lambda handler, request: handler.reply(good_answer(ci.teacher.model, request) | {"usage": usage})
    ) as s:
        engine = engine_for(ci, s, tmp_path, logprobs=False)
        prompt = build_prompt(engine.tokenizer, "How many?")
        engine.generate([prompt], Sampling(12))
        most = engine._input_bound(prompt), 12 + OVERSHOOT
    assert read_json(tmp_path / "spending.json")["spent_usd"] == pytest.approx(engine._endpoint.ledger.price(*most))


def test_log_probs_of_nothing_of_tokens_that_were_not_chosen_are_left_out(ci, tmp_path):
    shown = {"logprobs": top(-math.inf, chosen=-0.1), "message": {"content": "7"}}
    with serving(answering(ci.teacher.model, **_counted(shown))) as server:
        engine = engine_for(ci, server, tmp_path)
        for _ in range(2):  # the second time from disk
            prompt = build_prompt(engine.tokenizer, "How many?")
            (response,) = engine.generate([prompt], Sampling(12))
            (rows,) = engine.score([prompt], [response.ids], "top")
            assert rows.ids[0].tolist() == [response.ids[0]] and rows.log_probs[0].tolist() == pytest.approx([-0.1])
        assert len(server.requests) == 1


def test_a_killed_process_leaves_its_request_booked(tmp_path, ci):
    config = type(ci.teacher)(**ci.teacher.model_dump() | {"engine": "api", "api": api_section("http://x/v1")}).api
    Ledger(tmp_path / "spending.json", config).book(0.9)
    with pytest.raises(UserError, match="may cost 0.2 USD, and 0.9 of 1 USD are spent or booked"):
        Ledger(tmp_path / "spending.json", config).book(0.2)


def test_a_damaged_ledger_is_not_taken_for_an_empty_one(tmp_path, ci):
    config = type(ci.teacher)(**ci.teacher.model_dump() | {"engine": "api", "api": api_section("http://x/v1")}).api
    damaged = [EMPTY | {key: value} for key in EMPTY for value in (-1, True, math.nan, math.inf, "1", None)]
    texts = ["", "{", "[]", "null", "7", "[" * 10**5, '{"spent_usd": ' + "9" * 5000, *map(json.dumps, damaged)]
    texts += [json.dumps({key: 0 for key in EMPTY if key != left_out}) for left_out in EMPTY]
    for text in texts:
        (tmp_path / "spending.json").write_text(text)
        with pytest.raises(UserError, match=r"spending\.json is no ledger.*Keep the file") as refusal:
            Ledger(tmp_path / "spending.json", config).book(0.1)
        assert "delete" not in str(refusal.value) and "\n" not in str(refusal.value)
        assert (tmp_path / "spending.json").read_text() == text
    (tmp_path / "spending.json").write_text(json.dumps(EMPTY | {"spent_usd": 1}))  # as the sentence says
    with pytest.raises(UserError, match="1 of 1 USD are spent or booked"):
        Ledger(tmp_path / "spending.json", config).book(0.1)


def test_a_server_of_ones_own_costs_nothing_under_a_cap_of_nothing(ci, tmp_path):
    free = {"usd_per_million_input": 0, "usd_per_million_output": 0, "max_spend_usd": 0}
    with serving(good(ci.teacher.model)) as server:
        assert capture(write(tmp_path, server, **free)).exit_code == 0
