"""Capture: killed and resumed to the same bytes, never silently reused, and a full disk loses nothing."""

import errno
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import weakref
from concurrent import futures
from pathlib import Path

import pytest
import torch
from conftest import small_profile, write_profile
from safetensors import SafetensorError

from primekd.capture import run as capture_file
from primekd.capture.jobs import held_out_job, open_signals, training_job
from primekd.capture.run import capture, capture_all
from primekd.capture.workers import Part
from primekd.config.arms import get_arm
from primekd.foundation import provenance, read_json
from primekd.foundation.errors import UserError
from primekd.models.chat import build_prompt
from primekd.signals import shards as shard_files
from primekd.tasks.load import load_items
from primekd.teachers.transformers_engine import TransformersEngine

FOUR_SHARDS = {"data": {"train_items": 8, "test_items": 2}, "signals": {"codec": "hidden", "items_per_shard": 2}}


@pytest.fixture
def profile(output, lively):
    """Eight items in four shards."""
    return small_profile(output, teacher={"model": lively}, **FOUR_SHARDS)


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*.safetensors"))}


def test_a_store_holds_the_primed_prompt_the_response_and_its_signals(profile, tokenizer):
    folder = capture(training_job(profile, "teacher-KD"))
    reader = open_signals(training_job(profile, "teacher-KD"))
    items = load_items(profile, "train")
    assert reader.item_ids == [item.id for item in items]
    session, *rest = (p.name for p in folder.glob("session-*"))
    assert not rest
    names = [f"shard-{n:05d}.{kind}" for n in range(4) for kind in ("json", "safetensors")]
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", session, *names]

    engine = TransformersEngine(profile.teacher.model, "float32")
    for item in items[:3]:
        kept = reader.item(item.id)
        assert kept.prompt_ids == build_prompt(tokenizer, item.question, get_arm("teacher-KD").priming)
        assert kept.truncated == (kept.response_ids[-1] != tokenizer.eos_token_id)
        with torch.no_grad():
            logits = engine.model(torch.tensor([kept.prompt_ids + kept.response_ids])).logits[0]
        first = len(kept.prompt_ids) - 1
        expected = logits[first : first + len(kept.response_ids), : len(tokenizer)]
        torch.testing.assert_close(reader.rows(item.id, kept.response_ids).to_logits(), expected, rtol=1e-4, atol=1e-4)


def test_the_manifest_of_a_store_states_what_it_is_and_its_error(profile):
    manifest = read_json(capture(training_job(profile, "base-KD")) / "manifest.json")
    assert manifest["complete"] is True and manifest["items"] == 8
    assert manifest["tokens"] == sum(s["tokens"] for s in manifest["shards"].values()) > 0
    assert manifest["spec"]["codec"]["name"] == "hidden" and manifest["engine"]["engine"] == "transformers"
    assert 0 <= manifest["reconstruction"]["mean_kl_nats"] < 1e-6
    assert manifest["reconstruction"]["top1_agreement"] == 1
    assert len(manifest["spec"]["tokenizer_sha256"]) == 64


def test_the_stated_error_is_that_of_the_states_that_are_kept(profile, monkeypatch):
    def coarsely(engine, *arguments):
        responses, rows = plain(engine, *arguments)
        return responses, [states.bfloat16().float() for states in rows]

    plain = TransformersEngine.generate_scored
    monkeypatch.setattr(TransformersEngine, "generate_scored", coarsely)
    manifest = read_json(capture(training_job(profile, "base-KD")) / "manifest.json")
    assert 1e-6 < manifest["reconstruction"]["mean_kl_nats"] < 1e-2


def test_a_store_says_which_shards_other_code_made(profile, edited, capsys, monkeypatch):
    job = training_job(profile, "base-KD")
    capture(job, Part(1, 2))
    edited("signals/codecs")
    monkeypatch.setattr(TransformersEngine, "identity", lambda engine: {"engine": "transformers", "torch": "9.9"})
    capsys.readouterr()
    capture(job)
    said = capsys.readouterr().out
    assert "capture base-KD: 2 parts of it are there, made by other code (commit" in said
    assert "changed since: signals.codecs" in said
    manifest = read_json(job.folder / "manifest.json")
    names = list(manifest["shards"])
    assert [group["parts"] for group in manifest["mixed"]] == [names[0::2], names[1::2]]
    assert [group["engine"]["torch"] == "9.9" for group in manifest["mixed"]] == [False, True]
    assert open_signals(job).item_ids
    capture(job)
    assert "capture base-KD: made by other code" in capsys.readouterr().out


def test_a_capture_of_other_code_is_kept_and_made_anew_when_asked(profile, edited, capsys):
    job = training_job(profile, "base-KD")
    first = shards(capture(job))
    edited("models/chat")
    capture(job)
    assert "capture base-KD: made by other code" in capsys.readouterr().out
    capture(job, force=True)
    assert "base-KD is to be made anew: set aside as base-KD.old-1." in capsys.readouterr().out
    assert shards(job.folder) == first == shards(job.folder.with_name("base-KD.old-1"))
    capture(job)
    assert "capture base-KD: nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("codec", ["full", "hidden", "topk"])
def test_every_codec_serves_the_same_forward_kl_up_to_its_stated_error(codec, output, lively):
    from benchmarks.plain_losses import divergence

    signals = {"codec": codec, "top_k": 200, "topk_temperature": 2.0}
    profile = small_profile(output, teacher={"model": lively}, data={"train_items": 2}, signals=signals)
    capture(training_job(profile, "base-KD"))
    reader = open_signals(training_job(profile, "base-KD"))
    ids = reader.item(reader.item_ids[0]).response_ids
    rows = reader.rows(reader.item_ids[0], ids)
    student = torch.randn(len(ids), 49152, generator=torch.Generator().manual_seed(0))

    engine = TransformersEngine(lively, "float32")
    (own,) = engine.score([reader.item(reader.item_ids[0]).prompt_ids], [ids], "logits")
    p, q = ((x.double() / 2.0).log_softmax(-1) for x in (own, student))
    full = (p.exp() * (p - q)).sum(-1)
    ours = divergence(rows, student, profile.loss).double()
    if codec == "topk":
        assert (ours <= full + 1e-5).all() and (ours < full - 1e-3).any()
    else:
        torch.testing.assert_close(ours, full, rtol=1e-4, atol=1e-5)


def test_a_second_run_does_nothing_and_does_not_load_the_teacher(profile, capsys, monkeypatch):
    folder = capture(training_job(profile, "base-KD"))
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setattr("primekd.capture.run.open_engine", lambda profile: pytest.fail("the teacher was loaded"))
    capsys.readouterr()
    assert capture(training_job(profile, "base-KD")) == folder
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_several_stores_are_made_by_one_teacher_with_the_bytes_that_each_has_alone(profile, monkeypatch):
    jobs, events, opening = [training_job(profile, name) for name in ("base-KD", "teacher-KD", "ai-KD")], [], {}

    def opened(profile):
        events.append("opened")
        engine = opening["engine"](profile)
        monkeypatch.setattr(engine, "close", lambda: events.append("closed"))
        return engine

    opening["engine"] = capture_file.open_engine
    monkeypatch.setattr(capture_file, "open_engine", opened)
    alone = shards(capture(jobs[1]))
    assert events == ["opened", "closed"]
    shutil.rmtree(jobs[1].folder)
    capture(jobs[0])
    events.clear()
    folders = capture_all(jobs)  # the first one is there already
    assert folders == [job.folder for job in jobs] and events == ["opened", "closed"]
    assert shards(folders[1]) == alone != shards(folders[2])
    events.clear()
    assert capture_all(jobs) == folders and events == []


@pytest.mark.parametrize("damage", ["altered", "missing"])
def test_only_a_damaged_shard_is_captured_again_with_the_same_bytes(damage, profile):
    folder = capture(training_job(profile, "base-KD"))
    whole = shards(folder)
    path = folder / "shard-00002.safetensors"
    times = {p.name: p.stat().st_mtime_ns for p in folder.glob("shard-*.safetensors")}
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(UserError, match="shard-00002"):
        open_signals(training_job(profile, "base-KD"))
    capture(training_job(profile, "base-KD"))
    assert shards(folder) == whole
    after = {p.name: p.stat().st_mtime_ns for p in folder.glob("shard-*.safetensors")}
    assert {name for name in after if after[name] != times[name]} == {path.name}


def test_a_changed_configuration_sets_the_old_store_aside(profile, output, lively, capsys):
    folder = capture(training_job(profile, "base-KD"))
    old = shards(folder)
    changed = small_profile(output, teacher={"model": lively}, max_new_tokens=5, **FOUR_SHARDS)
    with pytest.raises(UserError, match="base-KD was captured with another max_new_tokens"):
        open_signals(training_job(changed, "base-KD"))
    capture(training_job(changed, "base-KD"))
    assert "set aside as base-KD.old-1" in capsys.readouterr().out
    assert shards(folder.with_name("base-KD.old-1")) == old
    reader = open_signals(training_job(changed, "base-KD"))
    assert all(len(reader.item(i).response_ids) <= 5 for i in reader.item_ids)


def test_strategies_and_the_held_out_items_have_stores_of_their_own(profile):
    folders = [
        capture(training_job(profile, "base-KD")),
        capture(training_job(profile, "ai-KD")),
        capture(held_out_job(profile)),
    ]
    assert [f.name for f in folders] == ["base-KD", "ai-KD", "held-out"]
    assert len(list(folders[0].parent.glob("head-*.safetensors"))) == 1
    reader = open_signals(held_out_job(profile))
    assert reader.item_ids == [item.id for item in load_items(profile, "test")]


def test_a_loss_that_the_codec_cannot_serve_is_refused_before_the_teacher_is_asked(output, lively, monkeypatch):
    monkeypatch.setattr("primekd.capture.run.open_engine", lambda profile: pytest.fail("the teacher was loaded"))
    signals = {"codec": "topk", "topk_temperature": 1.0}
    for loss in ({"temperature": 2.0}, {"temperature": 1.0, "divergence": "reverse_kl"}):
        profile = small_profile(output, teacher={"model": lively}, signals=signals, loss=loss)
        with pytest.raises(UserError, match="cannot serve this loss"):
            capture(training_job(profile, "base-KD"))


# Writing beside the teacher.


def test_a_shard_is_written_while_the_next_one_is_asked_for_and_stays_claimed_until_then(profile, monkeypatch):
    job = training_job(profile, "base-KD")
    asked = {index: threading.Event() for index in range(4)}
    ask, write = capture_file.ask_teacher, capture_file.write_shard

    def ask_and_say(engine, codec, job, items, ended, index):
        if index >= 2:
            assert (job.folder / f"shard-{index - 2:05d}.json").is_file(), "more than one shard waits to be written"
        asked[index].set()
        return ask(engine, codec, job, items, ended, index)

    def write_late(store, codec, index, *rest):
        assert threading.current_thread() is not threading.main_thread()
        assert index == 3 or asked[index + 1].wait(60)
        assert (job.folder / f"shard-{index:05d}.lock").is_file()
        write(store, codec, index, *rest)
        assert not (job.folder / f"shard-{index:05d}.lock").exists()

    monkeypatch.setattr(capture_file, "ask_teacher", ask_and_say)
    monkeypatch.setattr(capture_file, "write_shard", write_late)
    capture(job)
    assert len(shards(job.folder)) == 4


def test_an_interrupted_capture_finishes_the_shard_that_is_being_written(profile, monkeypatch):
    job = training_job(profile, "base-KD")
    stopped = threading.Event()
    ask, write = capture_file.ask_teacher, capture_file.write_shard

    def ask_until_stopped(engine, codec, job, items, ended, index):
        if index == 2:
            stopped.set()
            raise KeyboardInterrupt
        return ask(engine, codec, job, items, ended, index)

    def write_late(store, codec, index, *rest):
        assert index == 0 or stopped.wait(60)
        write(store, codec, index, *rest)

    monkeypatch.setattr(capture_file, "ask_teacher", ask_until_stopped)
    monkeypatch.setattr(capture_file, "write_shard", write_late)
    with pytest.raises(KeyboardInterrupt):
        capture(job)
    assert list(shards(job.folder)) == ["shard-00000.safetensors", "shard-00001.safetensors"]
    assert not list(job.folder.glob("*.lock"))


def test_what_a_killed_session_took_is_kept_from_shard_to_shard(profile, monkeypatch):
    """A kill leaves no time to write it down at the end."""
    job, seen, ask = training_job(profile, "base-KD"), [], capture_file.ask_teacher

    def look(*arguments):
        seen.append([read_json(path) for path in job.folder.glob("session-*.json")])
        return ask(*arguments)

    monkeypatch.setattr(capture_file, "ask_teacher", look)
    capture(job)
    assert [len(found) for found in seen] == [0, 1, 1, 1]
    (first,), (later,) = seen[1], seen[3]
    assert 0 < first["seconds"] <= later["seconds"] and later["energy_kwh"] is None and later["start"] <= later["end"]
    (whole,) = read_json(job.folder / "manifest.json")["sessions"]
    assert whole["seconds"] >= later["seconds"] and whole["energy_kwh"] > 0


def test_a_capture_that_is_stopped_while_its_meter_starts_leaves_no_empty_session(profile, monkeypatch):
    job = training_job(profile, "base-KD")

    class Starting(capture_file.Meter):
        def __enter__(self):
            raise KeyboardInterrupt

    ask = capture_file.ask_teacher
    stop = lambda *words: exec("raise KeyboardInterrupt") if words[-1] == 2 else ask(*words)  # noqa: E731
    for name, stands_in in (("ask_teacher", stop), ("Meter", Starting)):  # the second finds two shards
        with monkeypatch.context() as patch:
            patch.setattr(capture_file, name, stands_in)
            with pytest.raises(KeyboardInterrupt):
                capture(job)
    capture(job)
    assert all(session["seconds"] >= 0 for session in read_json(job.folder / "manifest.json")["sessions"])


def test_the_states_of_a_shard_are_freed_when_it_is_written(profile, monkeypatch):
    ask, kept = capture_file.ask_teacher, []

    def ask_when_freed(*arguments):
        limit = time.monotonic() + 30
        while kept and kept[-1]() is not None:
            assert time.monotonic() < limit, "the states of the last shard are still held"
            time.sleep(0.01)
        stored, states = ask(*arguments)
        kept.append(weakref.ref(states[0]))
        return stored, states

    monkeypatch.setattr(capture_file, "ask_teacher", ask_when_freed)
    capture(training_job(profile, "base-KD"))
    assert len(kept) == 4


def test_where_writing_has_failed_the_teacher_is_not_asked_again(profile, monkeypatch):
    class AtOnce(futures.ThreadPoolExecutor):
        def submit(self, *arguments):
            written = super().submit(*arguments)
            futures.wait([written])
            return written

    ask, asked = capture_file.ask_teacher, []
    monkeypatch.setattr(capture_file, "ThreadPoolExecutor", AtOnce)
    monkeypatch.setattr(capture_file, "ask_teacher", lambda *a: (asked.append(a[-1]), ask(*a))[1])
    fill_disk_from_shard(1, "safetensors", monkeypatch)
    with pytest.raises(UserError, match="disk is full"):
        capture(training_job(profile, "base-KD"))
    assert asked == [0, 1]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), UserError("The teacher is gone.")])
def test_a_full_disk_is_named_also_where_something_else_stops_the_capture(stop, profile, monkeypatch, capsys):
    asked = threading.Event()
    ask, write = capture_file.ask_teacher, capture_file.write_shard

    def ask_once(*arguments):
        if arguments[-1] == 1:
            asked.set()
            raise stop
        return ask(*arguments)

    monkeypatch.setattr(capture_file, "ask_teacher", ask_once)
    monkeypatch.setattr(capture_file, "write_shard", lambda *a: (asked.wait(60), write(*a)))
    fill_disk_from_shard(0, "safetensors", monkeypatch)
    with pytest.raises(type(stop)) as caught:
        capture(training_job(profile, "base-KD"))
    assert caught.value is stop
    assert re.search(r"capture base-KD: The disk is full: .*shard-00000", capsys.readouterr().err)


# Killed.


def test_a_killed_capture_goes_on_to_the_same_bytes_as_one_that_was_not(output, lively, monkeypatch, warm_python):
    """kill -9 of the real command. Responses are sampled, so the random state must be right too."""
    changes = {
        "teacher": {"model": lively, "sampling_temperature": 0.8, "batch_size": 2},
        "data": {"train_items": 40},
        "signals": {"codec": "full", "items_per_shard": 2},
    }
    path = write_profile(output, **changes)
    job = training_job(small_profile(output, **changes), "base-KD")
    command = [warm_python, "-m", "primekd.cli", "capture", "base-KD", "--profile", str(path)]
    environment = os.environ | {"PRIMEKD_OUTPUT": str(output), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 120
    while not (job.folder / "shard-00001.json").is_file() and time.monotonic() < limit and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was over before it could be killed"

    written = shards(job.folder)
    assert 1 <= len(written) < 20
    named = [path.with_suffix(".safetensors").name for path in job.folder.glob("shard-*.json")]
    times = {name: (job.folder / name).stat().st_mtime_ns for name in named}
    assert len(times) >= 2
    with pytest.raises(UserError, match="not complete"):
        open_signals(job)

    capture(job)
    resumed = shards(job.folder)
    assert len(resumed) == 20
    assert {name: (job.folder / name).stat().st_mtime_ns for name in named} == times  # kept, not made again
    monkeypatch.setenv("PRIMEKD_OUTPUT", str(output / "uninterrupted"))
    whole = training_job(small_profile(output, **changes), "base-KD")
    capture(whole)
    assert shards(whole.folder) == resumed
    left = {p.name for p in job.folder.iterdir()} - resumed.keys()
    kinds = {re.sub(r"[0-9a-f]{16}|\d{5}", "…", name) for name in left}
    assert kinds == {"manifest.json", "shard-….json", "session-….json"}


# Full disk.


def fill_disk_from_shard(number: int, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing this shard fails as it does on a full disk: in the library's write, or when it is synced."""
    name = f"shard-{number:05d}"
    real_save, real_sync = shard_files.save_file, os.fsync

    def save_file(tensors, path, *rest, **options):
        if how == "safetensors" and name in str(path):
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        return real_save(tensors, path, *rest, **options)

    def fsync(descriptor):
        if how == "fsync" and name in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real_sync(descriptor)

    monkeypatch.setattr(shard_files, "save_file", save_file)
    monkeypatch.setattr(provenance.os, "fsync", fsync)


@pytest.mark.parametrize("how", ["safetensors", "fsync"])
def test_a_full_disk_is_one_sentence_and_what_was_captured_stays(how, profile, monkeypatch, capsys):
    if how == "fsync" and not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to see which file is synced")
    job = training_job(profile, "base-KD")
    with monkeypatch.context() as patch:
        fill_disk_from_shard(2, how, patch)
        with pytest.raises(
            UserError, match=r"disk is full: runs/small/signals/base-KD/shard-00002.*finished parts are kept"
        ):
            capture(job)
    assert "disk is full" not in capsys.readouterr().err  # the command prints it, once
    before = shards(job.folder)
    assert list(before) == ["shard-00000.safetensors", "shard-00001.safetensors"]
    assert not list(job.folder.glob(".*"))
    capture(job)
    after = shards(job.folder)
    assert len(after) == 4 and before.items() <= after.items()


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 12 MiB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("this machine does not let us mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_real_full_disk_is_one_sentence_and_what_was_captured_stays(small_disk, tmp_path, lively, monkeypatch):
    """Shards of full logits, 4.5 MiB each: two fit. Then there is room, and the capture goes on."""
    monkeypatch.setenv("PRIMEKD_OUTPUT", str(small_disk))
    changes = FOUR_SHARDS | {"signals": {"codec": "full", "items_per_shard": 2}}
    job = training_job(small_profile(tmp_path, teacher={"model": lively}, **changes), "base-KD")
    with pytest.raises(UserError, match="disk is full"):
        capture(job)
    before = shards(job.folder)
    assert before and len(before) < 4
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    capture(job)
    after = shards(job.folder)
    assert len(after) == 4 and before.items() <= after.items()
    open_signals(job)
