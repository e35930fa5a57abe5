"""The study of pseudo-labels: gold stays out, answers that are no labels are counted, servers of our own and others."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest
from api_server import KEY, VARIABLE, api_section, good_answer, serving
from conftest import POCKET, small_profile, write_profile
from tenacity import wait_none

from primekd.assessment.students import find_students
from primekd.capture.jobs import open_signals, training_job
from primekd.capture.run import capture
from primekd.config import load_profile
from primekd.config.arms import get_arm
from primekd.foundation import hash_file, read_json
from primekd.foundation.errors import UserError
from primekd.models import parse_reference, require_local
from primekd.studies.labels import refuse
from primekd.studies.study import find_study
from primekd.tasks import grammar
from primekd.tasks.load import load_items
from primekd.tasks.numbers import NUMBERS
from primekd.tasks.protocol import without_gold
from primekd.teachers.api import client, own_server
from primekd.teachers.api.own_server import OwnServer
from primekd.training.distill import distill
from primekd.training.treatment import treated, unfit_responses

ARMS = ["base-KD", "base-fine-tune", "api-KD", "api-KD-half"]
DATA = {"task": "grammar", "source": "sentences", "train_items": 8, "validation_items": 2, "test_items": 4}


@pytest.fixture
def profile(output, lively):
    """`ci` with sentences, and a teacher that writes nonsense."""
    return small_profile(output, study="labels", arms=ARMS, teacher={"model": lively}, data=DATA, planned={"main": []})


@pytest.fixture
def all_fit(monkeypatch):
    monkeypatch.setattr(grammar.Grammar, "unfit", lambda self, question, response, truncated: "")


needs_server = pytest.mark.skipif(
    any(own_server.importlib.util.find_spec(name) is None for name in own_server.NEEDED),
    reason="llama-cpp-python's server is not installed: make setup-llamacpp",
)
RAW = {"repeat_penalty": 1.0, "top_k": 0, "min_p": 0.0}  # its own defaults, off

# Gold.


def test_what_is_handed_to_a_teacher_and_its_students_has_no_gold_sentence(profile):
    items = load_items(profile, "train")
    asked = without_gold(items)
    assert [one.messages for one in asked] == [item.messages for item in items]
    assert not any(hasattr(one, name) for one in asked for name in ("answer", "solution"))


def test_with_other_gold_sentences_the_labels_and_the_adapters_have_the_same_bytes(profile, all_fit, monkeypatch):
    """The ceiling, which is trained on them, has others: the test can fail."""

    def made() -> dict[str, str]:
        capture(training_job(profile, "base-KD"))
        folders = {arm: distill(profile, arm) for arm in ("api-KD", "base-KD", "base-fine-tune")}
        return {arm: hash_file(folder / "adapter/adapter_model.safetensors") for arm, folder in folders.items()}

    first = made()
    plain = grammar.generate

    def other(languages, split, count, seed):
        items = plain(languages, split, count, seed)
        return [type(i)(i.id, i.question, f"{i.id} zzz", f"{i.id} zzz") if split == "train" else i for i in items]

    monkeypatch.setattr(grammar, "generate", other)
    second = made()
    assert first["api-KD"] == second["api-KD"] and first["base-KD"] == second["base-KD"]
    assert first["base-fine-tune"] != second["base-fine-tune"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss": {"labels": "gold"}}, "base-KD would learn from gold sentences"),
        ({"arms": [*ARMS, "base-right-KD"]}, "base-right-KD chooses labels by gold sentences"),
        ({"arms": [*ARMS, "ai-KD"]}, "ai-KD has another text than the teacher's labels"),
        ({"train": {"learning_rate": [0.001, 0.01]}}, "are chosen from by gold sentences"),
        ({"assess": {"few_shot": 2}}, "would show gold sentences: set it to instruction or 0"),
    ],
)
def test_whatever_would_bring_gold_into_a_student_is_refused(output, changes, said):
    with pytest.raises(UserError, match=said):
        refuse(small_profile(output, study="labels", data=DATA, **({"arms": ARMS} | changes)))


@pytest.mark.parametrize(
    ("arm", "changes", "said"),
    [
        ("base-KD", {"loss": {"labels": "gold"}}, "base-KD would learn from gold sentences"),
        ("base-right-KD", {}, "base-right-KD chooses labels by gold sentences"),
        ("cut-to-shortest-KD", {}, "cut-to-shortest-KD reads gold sentences, or labels that are unfit"),
        ("no-shuffle-KD", {}, "no-shuffle-KD reads gold sentences, or labels that are unfit"),
        ("base-KD", {"train": {"learning_rate": [0.001, 0.01]}}, "are chosen from by gold sentences"),
        ("base-KD", {"loss": {"labels": "gold"}, "study": "priming"}, "base-KD would learn from gold sentences"),
    ],
)
def test_one_training_by_itself_or_in_another_study_is_refused_gold_too(output, arm, changes, said):
    """`primekd distill` and the notebook train without asking the study."""
    with pytest.raises(UserError, match=said):
        distill(small_profile(output, **({"study": "labels", "data": DATA, "arms": ARMS} | changes)), arm)


def test_the_study_is_found_and_runs_what_the_profile_lists(profile):
    study = find_study(profile)
    refuse(profile)
    assert study.rules == "labels.smk" and study.costs(profile, 1, 1)["label"] > 0


# Answers that are no labels, and parts of them.


def test_unfit_answers_are_counted_with_reasons_and_nobody_is_trained_on_them(profile, monkeypatch):
    capture(training_job(profile, "base-KD"))
    items = without_gold(load_items(profile, "train"))
    bad = {items[0].question: "chatty", items[5].question: "empty", items[6].question: "empty"}
    monkeypatch.setattr(grammar.Grammar, "unfit", lambda self, question, response, cut: bad.get(question, ""))
    reader = open_signals(training_job(profile, "api-KD"))
    assert unfit_responses(profile, reader, items) == {items[n].id: bad[items[n].question] for n in (0, 5, 6)}
    source = treated(profile, get_arm("api-KD"), reader, items, 0)
    assert source.dropped == {"items": 3, "tokens": 0, "unfit": {"chatty": 1, "empty": 2}}
    half = treated(profile, get_arm("api-KD-half"), reader, items, 0)
    assert half.item_ids == [item.id for item in items[1:4]] and half.dropped["unfit"] == {"chatty": 1}
    manifest = read_json(distill(profile, "api-KD") / "manifest.json")
    assert manifest["dropped"]["unfit"] == {"chatty": 1, "empty": 2}
    assert manifest["inputs"]["kept"] == source.item_ids


def test_a_task_without_such_a_rule_takes_every_response():
    assert not NUMBERS.filters and grammar.TASK.filters


# Servers.


@pytest.fixture
def served(output, monkeypatch):
    """A profile that is taught by a server of the tests' own."""
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # nobody is there: this machine's servers are asked directly
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setattr(client, "BACK_OFF", wait_none())

    def build(server, **changes):
        teacher = {"engine": "api", "instruction": "Correct the sentence.", "api": api_section(server, **changes)}
        return small_profile(
            output, study="labels", arms=ARMS, data=DATA, teacher=teacher, planned={"main": []},
            signals={"codec": "topk", "top_k": 2, "items_per_shard": 2}, loss={"temperature": 1.0},
        )  # fmt: skip

    return build


def test_the_instruction_is_sent_with_the_line_end_as_stop_and_students_do_not_read_it(served, ci):
    with serving(lambda handler, request: handler.reply(good_answer(ci.teacher.model, request))) as server:
        profile = served(server, stop_at_line_end=True)
        capture(training_job(profile, "base-KD"))
        assert all(request["stop"] == ["\n"] and request["temperature"] == 0 for request in server.requests)
        system, user = server.requests[0]["messages"]
        assert (system["role"], system["content"]) == ("system", "Correct the sentence.")
        assert load_items(profile, "train")[0].question in user["content"]
    assert "instruction" not in json.dumps(profile.teacher.identity())  # it stands in the prompt, which is hashed


def test_a_server_that_becomes_another_model_is_refused_and_what_was_asked_is_kept(served, ci):
    def behave(handler, request):
        answer = good_answer(ci.teacher.model, request)
        dates = ("m-2026-01-01", "m-2026-02-02")
        handler.reply(answer | {"model": dates[len(handler.server.requests) > changes_after]})

    changes_after = 3
    with serving(behave) as server:
        profile = served(server)
        with pytest.raises(UserError, match="answered as m-2026-02-02, and as m-2026-01-01 before"):
            capture(training_job(profile, "base-KD"))
        asked = len(server.requests)
        with pytest.raises(UserError, match="answered as m-2026-02-02, and as m-2026-01-01 before"):
            capture(training_job(profile, "base-KD"))  # another session knows the first one's model
        assert len(server.requests) == asked + 1
        changes_after = 99
        capture(training_job(profile, "base-KD"))
        assert len(server.requests) == asked + 1 + 5  # eight sentences, of which three were there
    store = read_json(profile.signals_folder("base-KD") / "manifest.json")
    assert store["engine"]["served"] == ["m-2026-01-01"]


@needs_server
def test_a_server_of_our_own_answers_nobody_else_comes_back_and_ends_with_us(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    server = OwnServer(require_local(parse_reference(POCKET)), "pocket", 256, False, 1)
    try:
        ask = httpx.Client(base_url=server.url, trust_env=False).get
        assert ask("/models").status_code == 401
        key = {"Authorization": f"Bearer {server.key}"}
        assert ask("/models", headers=key).json()["data"][0]["id"] == "pocket"
        first = server._process.pid
        os.kill(first, signal.SIGKILL)
        server._process.wait()
        server.ensure()
        assert server._process.pid != first and ask("/models", headers=key).status_code == 200
        assert server.key not in Path(f"/proc/{server._process.pid}/cmdline").read_text()
        server._process.stdin.close()  # as the kernel does when this process is killed
        for _ in range(100):
            if server._process.poll() is not None:
                break
            time.sleep(0.1)
        assert server._process.poll() is not None
    finally:
        server.close()


@needs_server
def test_killing_server_and_run_anywhere_ends_in_the_same_labels_and_the_same_adapter(output, tmp_path):
    api = {"model": "t", "own_server": True, "stop_at_line_end": True, "logprobs": False, "request": RAW}
    api |= dict.fromkeys(("usd_per_million_input", "usd_per_million_output", "max_spend_usd"), 0) | {"concurrency": 1}
    teacher = {"engine": "api", "model": POCKET, "context_tokens": 256, "api": api}
    path = write_profile(
        output, study="labels", arms=ARMS, data=DATA, planned={"main": []}, teacher=teacher, loss={"alpha": 1.0},
        signals={"codec": "text", "items_per_shard": 1},
    )  # fmt: skip
    profile = load_profile(str(path))
    store, command = profile.signals_folder("base-KD"), [sys.executable, "-m", "primekd.cli", "capture", "base-KD"]

    def made() -> dict[str, str]:
        capture(training_job(profile, "base-KD"))
        files = [*store.glob("shard-*.safetensors"), distill(profile, "api-KD") / "adapter/adapter_model.safetensors"]
        return {file.name: hash_file(file) for file in files}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grammar.Grammar, "unfit", lambda self, question, response, truncated: "")
        whole = made()
        assert find_students(profile, "api-KD"), "a store of texts has no rows that an arm of text alone leaves out"
        shutil.move(profile.runs, tmp_path / "whole")
        process = subprocess.Popen([*command, "--profile", str(path)], stdout=subprocess.DEVNULL)
        for shard in (0, 2):  # the server first, then the run, and with it the server
            while not (store / f"shard-0000{shard}.safetensors").is_file():
                assert process.poll() is None
                time.sleep(0.01)
            killed = process if shard else psutil.Process(process.pid).children()[0]
            killed.kill()
        process.wait()
        assert len(list(store.glob("shard-*.safetensors"))) < 8
        assert made() == whole and len(whole) == 9


def test_the_table_of_labels_has_what_was_asked_dropped_and_spent(served, ci, monkeypatch):
    from primekd.studies.responses import label_rows

    with serving(lambda handler, request: handler.reply(good_answer(ci.teacher.model, request))) as server:
        profile = served(server)
        first = load_items(profile, "train")[0].question
        monkeypatch.setattr(grammar.Grammar, "unfit", lambda self, q, response, cut: "chatty" if q == first else "")
        capture(training_job(profile, "base-KD"))
        for arm in ARMS:
            distill(profile, arm)
    rows = {row.model: row for row in label_rows(profile, find_students(profile))}
    assert list(rows) == ["base-KD", "api-KD", "api-KD-half"]
    whole, half = rows["api-KD"], rows["api-KD-half"]
    assert (whole.asked, whole.unfit, whole.reasons, whole.trained_on, whole.right) == (8, 1, "chatty: 1", 7, 0)
    assert (half.asked, half.trained_on) == (4, 3)
    signals = profile.signals_folder("base-KD")
    signals.rename(signals.with_name("gone"))
    again = {row.model: row for row in label_rows(profile, find_students(profile))}
    assert again == {name: replace(row, right=None) for name, row in rows.items()}
    spent = read_json(profile.ledger)
    assert whole.usd == pytest.approx(spent["spent_usd"] / 8 * 1000) and whole.input_tokens == 50
