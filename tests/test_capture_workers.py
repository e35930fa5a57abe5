"""Several workers on one store: the same bytes as one, whoever dies, and nobody waits for the dead.

Workers are real processes. Most of them ask a stub in place of a teacher, so that a test can say when it answers; one
test asks a real (random) model.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
from conftest import small_profile, write_profile
from typer.testing import CliRunner

from primekd.capture import workers as workers_file
from primekd.capture.jobs import open_signals, training_job
from primekd.capture.run import capture
from primekd.capture.workers import Part, SharedStore
from primekd.cli import app
from primekd.foundation import hash_json, read_json
from primekd.foundation.errors import UserError
from primekd.foundation.progress import Progress
from primekd.models.logits import PLAIN
from primekd.signals import claims as claims_file
from primekd.signals.claims import Claims, Owner, look
from primekd.teachers import Response
from primekd.teachers.protocol import TeacherEngine

SIX_SHARDS = {"data": {"train_items": 12, "test_items": 2}, "signals": {"codec": "hidden", "items_per_shard": 2}}
LIMIT = 60  # seconds: long for a machine that is busy, and never waited out


def files(folder: Path, pattern: str = "shard-*.safetensors") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern))}


def without_times(folder: Path) -> dict:
    manifest = read_json(folder / "manifest.json")
    assert len(manifest.pop("sessions")) >= 1
    return manifest


def wait_until(condition) -> None:
    limit = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < limit, "it never came about"
        time.sleep(0.01)


# A stub for the teacher.


class StubEngine:
    """Not a model: its answers follow from the prompt. `before(n)` is called before its n-th answer, from 0."""

    name, vocab_size, offers, transform = "stub", 11, frozenset({"hidden", "logits"}), PLAIN

    def __init__(self, before):
        self.before, self.number = before, 0

    def identity(self):
        return {"engine": "stub"}

    def generate(self, prompts, sampling):
        self.before(self.number)
        self.number += 1
        made = []
        for prompt in prompts:
            made.append(Response([1 + int(hash_json(prompt)[:4], 16) % 9, 2], False))
            sampling.ended()
            self.after(self.number, len(made))
        return made

    def after(self, number: int, ended: int) -> None:
        """Called when a response has ended: in which call, from 1, and how many have in it."""

    def score(self, prompts, responses, want):
        sources = [torch.Generator().manual_seed(int(hash_json(p)[:8], 16)) for p in prompts]
        return [torch.randn(len(r), 4, generator=g) for r, g in zip(responses, sources, strict=True)]

    generate_scored = TeacherEngine.generate_scored

    def head(self):
        return torch.eye(self.vocab_size)[:, :4]

    def own_logits(self, prompts, responses):
        return [rows @ self.head().T for rows in self.score(prompts, responses, "hidden")]

    def close(self):
        pass


@pytest.fixture
def profile(output, monkeypatch):
    """Twelve items in six shards, asked of the stub."""
    monkeypatch.setattr("primekd.capture.run.open_engine", lambda profile: StubEngine(at_once))
    monkeypatch.setattr("primekd.capture.run.Meter", NoMeter)
    monkeypatch.setattr(claims_file, "POLL", 0.02)
    monkeypatch.setattr(workers_file, "POLL", 0.02)
    return small_profile(output, **SIX_SHARDS)


class NoMeter(contextlib.nullcontext):
    """Stands for the energy meter, which takes a second to start."""

    facts = {"seconds": 1.0, "energy_kwh": None}
    so_far = staticmethod(lambda: NoMeter.facts)


class Worker:
    """A capture in a process of its own (a copy of this one). `before`: what its stub does; what it prints is kept."""

    def __init__(self, folder: Path, job, before=None, part: Part | None = None, start=None):
        self.log = folder / f"worker-{len(list(folder.glob('worker-*.log')))}.log"
        self.log.touch()
        arguments = (job, before, part, start)
        self.process = multiprocessing.get_context("fork").Process(target=self._run, args=arguments)
        self.process.start()

    def _run(self, job, before, part, start):
        import primekd.capture.run as module

        with open(self.log, "w", buffering=1) as sink:
            os.dup2(sink.fileno(), 1), os.dup2(sink.fileno(), 2)
            sys.stdout = sys.stderr = sink
            if before:
                module.open_engine = lambda profile: StubEngine(before)
            try:
                if start:
                    start.wait(LIMIT)
                capture(job, part)
            except UserError as error:
                print(f"primekd: {error}")
                os._exit(1)
            except BaseException:
                traceback.print_exc()
                os._exit(2)
            os._exit(0)

    def end(self) -> tuple[int, str]:
        self.process.join(LIMIT)
        return self.process.exitcode, self.log.read_text()

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join(LIMIT)


@pytest.fixture
def alone(profile, monkeypatch, tmp_path):
    """What one worker makes of the store."""
    with monkeypatch.context() as patch:
        patch.setenv("PRIMEKD_OUTPUT", str(tmp_path / "alone"))
        return capture(training_job(small_profile(tmp_path, **SIX_SHARDS), "base-KD"))


def assert_same(folder: Path, alone: Path) -> None:
    assert files(folder) == files(alone) and len(files(folder)) == 6
    assert without_times(folder) == without_times(alone)
    left = {path.name for path in folder.iterdir()} - {p.name for p in alone.iterdir()}
    assert all(name.startswith("session-") for name in left), left


def at_once(number: int) -> None:
    pass


def mark(path: Path) -> None:
    path.touch()


def test_two_workers_share_the_shards_and_make_none_twice(profile, alone, tmp_path):
    job, met = training_job(profile, "base-KD"), multiprocessing.get_context("fork").Barrier(2)

    def before(number):
        if number == 0:
            met.wait(LIMIT)
        mark(tmp_path / f"asked-{os.getpid()}-{number}")

    workers = [Worker(tmp_path, job, before) for _ in range(2)]
    assert [worker.end()[0] for worker in workers] == [0, 0], [worker.end()[1] for worker in workers]
    assert_same(job.folder, alone)
    asked = [len(list(tmp_path.glob(f"asked-{worker.process.pid}-*"))) for worker in workers]
    assert sum(asked) == 6 and min(asked) >= 1
    assert len(read_json(job.folder / "manifest.json")["sessions"]) == 2


def test_progress_moves_within_a_shard_and_holds_what_others_have_in_hand(profile, tmp_path, monkeypatch):
    """One worker stands still behind the first response of its shard; what the other one says includes it."""
    job, told = training_job(profile, "base-KD"), tmp_path / "told"
    monkeypatch.setattr(workers_file, "TELL", 0)

    def stand_still(self, number, ended):
        if (number, ended) == (1, 1):
            mark(told)
            wait_until((tmp_path / "go on").exists)

    with monkeypatch.context() as patch:
        patch.setattr(StubEngine, "after", stand_still)
        other = Worker(tmp_path, job)
    seen, real = [], Progress.advance

    def advance(self, count=1):
        real(self, count)
        seen.append(self.state["done"])
        if self.state["done"] >= 11:  # all but the response that the other has still to give
            mark(tmp_path / "go on")

    wait_until(told.exists)
    monkeypatch.setattr(Progress, "advance", advance)
    capture(job)
    assert other.end()[0] == 0, other.end()[1]
    assert seen == sorted(seen) and seen[0] == 1 and {2, 3, 10, 11} < set(seen) and seen[-1] == 12
    assert not list(job.folder.glob("worker-*"))


def test_what_a_dead_worker_had_in_hand_is_not_counted(profile, tmp_path, monkeypatch):
    job = training_job(profile, "base-KD")
    monkeypatch.setattr(workers_file, "TELL", 0)
    with monkeypatch.context() as patch:
        patch.setattr(StubEngine, "after", lambda self, *_: (mark(tmp_path / "told"), time.sleep(LIMIT)))
        killed = Worker(tmp_path, job)
    wait_until((tmp_path / "told").exists)
    with Claims() as claims:
        store = SharedStore(claims, job.folder, read_json(job.folder / "manifest.json")["spec"], 6)
        assert store.ended(store.missing()) == 1 and store.ended([1, 2, 3]) == 0
        killed.kill()
        assert store.ended(store.missing()) == 0


def test_two_workers_with_a_real_model_make_the_store_that_one_makes(output, lively, tmp_path, monkeypatch):
    def same_job():
        return training_job(small_profile(output, teacher={"model": lively}, **SIX_SHARDS), "base-KD")

    job = same_job()
    start = multiprocessing.get_context("fork").Barrier(2)
    ends = [worker.end() for worker in [Worker(tmp_path, job, start=start) for _ in range(2)]]
    assert [status for status, _ in ends] == [0, 0], ends
    open_signals(job)
    monkeypatch.setenv("PRIMEKD_OUTPUT", str(output / "alone"))
    assert_same(job.folder, capture(same_job()))


def test_a_killed_workers_shard_is_taken_over_by_the_one_that_waits_for_it(profile, alone, tmp_path):
    job = training_job(profile, "base-KD")

    def stuck(number):
        if number == 1:
            (job.folder / ".shard-00001.safetensors.1.abcd.tmp").write_bytes(b"half of it")
            (job.folder / ".tmpeFf8Y4").write_bytes(b"half of it, as safetensors leaves it")
            mark(tmp_path / "stuck")
            time.sleep(LIMIT)

    first = Worker(tmp_path, job, stuck)
    wait_until((tmp_path / "stuck").exists)
    second = Worker(tmp_path, job, at_once)
    waits = f"waiting for other workers: shard-00001 (process {first.process.pid} on {socket.gethostname()})"
    wait_until(lambda: waits in second.log.read_text())
    assert len(files(job.folder)) == 5 and second.process.is_alive()
    assert not read_json(job.folder / "manifest.json")["complete"]
    first.kill()
    status, said = second.end()
    assert status == 0 and "100%" in said, said
    assert_same(job.folder, alone)
    assert not list(job.folder.glob(".*")), "nothing is left of what was half written"


def test_two_workers_who_finish_at_the_same_time_complete_the_store(profile, alone, tmp_path):
    job, met = training_job(profile, "base-KD"), multiprocessing.get_context("fork").Barrier(3)
    workers = [Worker(tmp_path, job, lambda n: n == 1 and met.wait(LIMIT), Part(i, 3)) for i in (1, 2, 3)]
    ends = [worker.end() for worker in workers]
    assert [status for status, _ in ends] == [0, 0, 0], ends
    assert_same(job.folder, alone)
    assert len(read_json(job.folder / "manifest.json")["sessions"]) == 3


def test_workers_with_a_fixed_share_do_it_and_name_what_is_missing(profile, alone, capsys):
    job = training_job(profile, "base-KD")
    capture(job, Part(2, 4))
    assert sorted(files(job.folder)) == ["shard-00001.safetensors", "shard-00005.safetensors"]
    said = capsys.readouterr().out
    assert "worker 2/4 has done its share; shard-00000, shard-00002, shard-00003, shard-00004 missing yet" in said
    with pytest.raises(UserError, match="not complete"):
        open_signals(job)
    for number in (4, 1, 3):
        capture(job, Part(number, 4))
    assert_same(job.folder, alone)
    open_signals(job)
    capsys.readouterr()
    capture(job, Part(2, 4))
    assert "nothing to do" in capsys.readouterr().out


def test_the_command_takes_a_share(profile, tmp_path):
    path, runner = write_profile(tmp_path, **SIX_SHARDS), CliRunner()
    done = runner.invoke(app, ["capture", "base-KD", "--profile", str(path), "--worker", "1/3"])
    assert done.exit_code == 0 and "worker 1/3" in done.stdout
    folder = training_job(profile, "base-KD").folder
    assert sorted(files(folder)) == ["shard-00000.safetensors", "shard-00003.safetensors"]
    refused = runner.invoke(app, ["capture", "base-KD", "--profile", str(path), "--worker", "4/3"])
    assert refused.exit_code == 1 and "for example 2/4" in refused.stderr


def test_a_share_that_is_no_share_is_refused():
    assert Part.parse("2/4") == Part(2, 4) and str(Part(2, 4)) == "2/4"
    for text in ("0/4", "5/4", "2", "2/", "-1/4", "a/b"):
        with pytest.raises(UserError, match="for example 2/4"):
            Part.parse(text)


def test_of_two_workers_started_on_an_outdated_store_one_sets_it_aside(profile, output, tmp_path, monkeypatch):
    old = training_job(small_profile(tmp_path, max_new_tokens=5, **SIX_SHARDS), "base-KD")
    capture(old)
    kept = files(old.folder)
    job, start = training_job(small_profile(tmp_path, **SIX_SHARDS), "base-KD"), multiprocessing.Barrier(2)
    real = workers_file.set_aside
    # Long enough for both to see the outdated store before either has renamed it, if they could.
    monkeypatch.setattr(workers_file, "set_aside", lambda folder: time.sleep(1) or real(folder))
    workers = [Worker(tmp_path, job, at_once, start=start) for _ in range(2)]
    ends = [worker.end() for worker in workers]
    assert [status for status, _ in ends] == [0, 0], ends
    assert sorted(p.name for p in job.folder.parent.iterdir() if p.is_dir()) == ["base-KD", "base-KD.old-1"]
    assert sum("set aside as base-KD.old-1" in said for _, said in ends) == 1
    assert files(job.folder.with_name("base-KD.old-1")) == kept
    open_signals(job)


def test_a_store_is_not_set_aside_under_a_living_worker(profile, alone, tmp_path):
    job = training_job(profile, "base-KD")
    go = tmp_path / "go"
    worker = Worker(tmp_path, job, lambda number: number == 2 and wait_until(go.exists))
    wait_until(lambda: len(files(job.folder)) == 2)
    changed = training_job(small_profile(tmp_path, max_new_tokens=5, **SIX_SHARDS), "base-KD")
    said = rf"of another configuration and is worked on by process {worker.process.pid} on .*wait for it"
    with pytest.raises(UserError, match=said):
        capture(changed)
    mark(go)
    assert worker.end()[0] == 0
    assert_same(job.folder, alone)


def test_after_an_error_in_the_middle_shards_stay_and_the_claim_is_given_up(profile, alone, monkeypatch):
    def failing(number):
        if number == 2:
            raise UserError("The server answered 401: set OPENAI_API_KEY.")

    job = training_job(profile, "base-KD")
    with monkeypatch.context() as patch:
        patch.setattr("primekd.capture.run.open_engine", lambda profile: StubEngine(failing))
        with pytest.raises(UserError, match="401"):
            capture(job)
    assert len(files(job.folder)) == 2 and not list(job.folder.glob("*.lock"))
    assert not list(job.folder.parent.glob(".*"))
    capture(job)
    assert_same(job.folder, alone)
    assert len(read_json(job.folder / "manifest.json")["sessions"]) == 2  # the one that failed took time too


def test_a_lost_head_is_written_again_although_every_shard_is_there(profile, alone):
    job = training_job(profile, "base-KD")
    capture(job)
    (head,) = job.folder.parent.glob("head-*")
    data = head.read_bytes()
    head.unlink()
    capture(job)
    assert head.read_bytes() == data
    assert_same(job.folder, alone)


class CappedInSilence(StubEngine):
    """An engine that says hidden states and head are all, and does something behind them."""

    asked = 0

    def generate(self, prompts, sampling):
        type(self).asked += 1
        return super().generate(prompts, sampling)

    def own_logits(self, prompts, responses):
        return [3 * logits for logits in super().own_logits(prompts, responses)]


@pytest.mark.parametrize("part", [None, Part(2, 3)], ids=["alone", "a later share"])
def test_hidden_states_that_do_not_give_the_engines_logits_stop_a_capture_at_its_first_shard(
    profile, part, monkeypatch
):
    job = training_job(profile, "base-KD")
    monkeypatch.setattr("primekd.capture.run.open_engine", lambda profile: CappedInSilence(at_once))
    monkeypatch.setattr(CappedInSilence, "asked", 0)
    with pytest.raises(
        UserError, match=r"capture base-KD: .* nats a token from the teacher's own logits \(at most 0.002"
    ):
        capture(job, part)
    assert CappedInSilence.asked == 1 and not files(job.folder)


def test_a_store_that_such_an_engine_made_before_is_not_read(profile):
    job = training_job(profile, "base-KD")
    capture(job)
    manifest = read_json(job.folder / "manifest.json")
    manifest["reconstruction"]["mean_kl_nats"] = 0.7
    (job.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="0.7 nats a token from the teacher's own logits.*set signals.codec to topk"):
        open_signals(job)


class OtherHead(StubEngine):
    """The stub on a machine whose libraries or model file differ."""

    def identity(self):
        return {"engine": "stub", "version": 2}

    def head(self):
        return super().head() * 2


def test_shards_made_with_different_heads_are_refused_and_kept(profile, alone, monkeypatch):
    job = training_job(profile, "base-KD")
    with monkeypatch.context() as patch:
        patch.setattr("primekd.capture.run.open_engine", lambda profile: OtherHead(at_once))
        capture(job, Part(2, 3))
    capture(job, Part(1, 3))
    sentence = "shard-00001.safetensors, shard-00004.safetensors and shard-00000.safetensors differ in the teacher's"
    for _ in range(2):  # all is made the second time
        with pytest.raises(UserError, match=sentence):
            capture(job)
    assert len(files(job.folder)) == 6 and not list(job.folder.glob("*.lock"))
    with pytest.raises(UserError, match="not complete"):
        open_signals(job)
    for number in (1, 4):
        (job.folder / f"shard-0000{number}.safetensors").unlink()
    capture(job)
    assert_same(job.folder, alone)


def test_another_head_in_place_of_a_lost_one_is_refused(profile, monkeypatch):
    job = training_job(profile, "base-KD")
    capture(job)
    (head,) = job.folder.parent.glob("head-*")
    head.unlink()
    monkeypatch.setattr("primekd.capture.run.open_engine", lambda profile: OtherHead(at_once))
    with pytest.raises(UserError, match="loaded now and shard-00000.safetensors differ"):
        capture(job)


def test_every_engine_that_made_shards_is_in_the_manifest(profile, monkeypatch):
    job = training_job(profile, "base-KD")
    with monkeypatch.context() as patch:
        patch.setattr("primekd.capture.run.open_engine", lambda profile: OtherHead(at_once))
        patch.setattr(OtherHead, "head", StubEngine.head)
        capture(job, Part(2, 3))
    capture(job)
    manifest = read_json(job.folder / "manifest.json")
    made = {tuple(group["engine"].items()): group["parts"] for group in manifest["mixed"]}
    stub, other = (("engine", "stub"),), (("engine", "stub"), ("version", 2))
    assert made.keys() == {stub, other} and len(made[stub]) + len(made[other]) == len(manifest["shards"])
    assert manifest["engine"] == {"engine": "stub"} and open_signals(job).item_ids


# Claims.


def leave_claim(path: Path, seconds_ago: float, **owner) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"host": "node7", "pid": 4711, "machine": "another", "started": "1"} | owner))
    then = time.time() - seconds_ago
    os.utime(path, (then, then))


def test_a_claim_of_another_host_is_left_alone_until_it_has_been_silent_for_long(profile, alone):
    job = training_job(profile, "base-KD")
    lock = job.folder / "shard-00001.lock"
    leave_claim(job.folder / "worker-x.lock", 0)  # or the shard's claim would be tidied away with its worker
    leave_claim(lock, claims_file.STALE_AFTER - 60)
    with Claims() as claims:
        assert claims.take(lock) == Owner("node7", 4711, "another", "1")
        assert str(claims.take(lock)) == "process 4711 on node7"
    leave_claim(lock, claims_file.STALE_AFTER + 60)
    capture(job)
    (job.folder / "worker-x.lock").unlink()
    assert_same(job.folder, alone)


def test_silence_is_measured_by_the_file_systems_clock_not_by_this_machines(tmp_path, monkeypatch):
    leave_claim(tmp_path / "a.lock", 0)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert look(tmp_path / "a.lock")
    leave_claim(tmp_path / "a.lock", 0)  # touched far ahead of the file system's clock: alive all the same
    assert look(tmp_path / "a.lock")


def test_a_process_of_this_machine_is_gone_when_it_has_ended_or_its_id_is_anothers(tmp_path):
    mine = claims_file.this_process()
    leave_claim(tmp_path / "a.lock", 0, pid=mine.pid, machine=mine.machine, started=mine.started)
    assert look(tmp_path / "a.lock").pid == os.getpid()
    leave_claim(tmp_path / "a.lock", 0, pid=mine.pid, machine=mine.machine, started="1")
    assert look(tmp_path / "a.lock") is None and not (tmp_path / "a.lock").exists()
    child = subprocess.Popen([sys.executable, "-c", ""])
    leave_claim(tmp_path / "a.lock", 0, pid=child.pid, machine=mine.machine, started=None)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has taken notice
    assert look(tmp_path / "a.lock") is None
    child.wait()
    leave_claim(tmp_path / "a.lock", 0, pid=child.pid, machine=mine.machine, started=None)
    assert look(tmp_path / "a.lock") is None


def test_a_claim_that_is_just_being_written_is_respected(tmp_path):
    (tmp_path / "a.lock").touch()
    with Claims() as claims:
        assert "unknown" in str(claims.take(tmp_path / "a.lock"))


def test_a_claim_is_kept_alive_and_given_up_however_the_work_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(claims_file, "BEAT", 0.01)
    lock = tmp_path / "a.lock"
    with pytest.raises(KeyboardInterrupt), Claims() as claims:
        assert claims.take(lock) is None
        leave = time.time() - 1000
        os.utime(lock, (leave, leave))
        wait_until(lambda: lock.stat().st_mtime > leave + 500)
        raise KeyboardInterrupt
    assert not lock.exists()


def test_claims_that_a_thread_gives_up_meanwhile_do_not_hide_an_interrupt(tmp_path, monkeypatch):
    both = [tmp_path / "a.lock", tmp_path / "b.lock"]
    with pytest.raises(KeyboardInterrupt), Claims() as claims:
        assert [claims.take(lock) for lock in both] == [None, None]
        give_up = claims.release
        monkeypatch.setattr(claims, "release", lambda _: [give_up(lock) for lock in both])
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_new_claim_is_not_removed_in_place_of_the_dead_one_that_was_seen(tmp_path):
    """Two workers find a dead worker's claim; one has taken the shard over before the other removes what it saw."""
    lock = tmp_path / "a.lock"
    leave_claim(lock, 1000)
    seen = lock.stat()
    with Claims() as quicker:
        assert quicker.take(lock) is None
        claims_file._remove(lock, seen)
        assert look(lock).pid == os.getpid() and [path.name for path in tmp_path.iterdir()] == ["a.lock"]
        # And the other way round: who lost a claim does not take the new owner's away when it gives up its own.
        lock.unlink()
        leave_claim(lock, 0)
    assert look(lock).host == "node7"


def test_a_shard_that_another_finished_meanwhile_is_not_made_again(profile, monkeypatch):
    """Between looking and claiming, its worker may have written it and given its claim up."""
    job = training_job(profile, "base-KD")
    capture(job)
    spec = read_json(job.folder / "manifest.json")["spec"]
    with Claims() as claims:
        store = SharedStore(claims, job.folder, spec, 6)
        looks = iter([[3]])
        real = store.missing
        monkeypatch.setattr(store, "missing", lambda: next(looks, None) or real())
        assert list(store.shards()) == []
        assert not list(job.folder.glob("shard-*.lock"))
