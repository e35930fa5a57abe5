"""Writes that are whole or absent, hashes, and what makes an artefact current."""

import errno
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

from primekd.foundation import (
    altered_outputs,
    canonical_json,
    git_state,
    hash_file,
    hash_json,
    hash_text,
    is_current,
    package_versions,
    project_root,
    provenance,
    read_json,
    relative_name,
    set_aside,
    write_atomically,
    write_json,
    write_manifest,
    write_text,
)
from primekd.foundation.errors import UserError


def test_a_written_file_has_its_text_byte_for_byte(output):
    write_text(output / "deep" / "a.txt", "x\r\ny\nä")
    assert (output / "deep" / "a.txt").read_bytes() == "x\r\ny\nä".encode()
    assert os.listdir(output / "deep") == ["a.txt"]


def test_a_block_that_fails_leaves_the_old_file_and_no_temporary_one(output):
    path = output / "a.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), write_atomically(path) as temporary:
        temporary.write_text("half of the n")
        assert path.read_text() == "old"
        1 / 0  # noqa: B018
    assert path.read_text() == "old" and os.listdir(output) == ["a.txt"]


def test_a_file_is_synced_before_it_is_renamed_and_its_folder_after(output, monkeypatch):
    calls = []
    real_sync, real_replace = os.fsync, os.replace

    def fsync(descriptor):
        calls.append(os.readlink(f"/proc/self/fd/{descriptor}") if Path("/proc/self/fd").is_dir() else "file")
        real_sync(descriptor)

    def replace(source, target):
        calls.append("renamed")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_text(output / "a.txt", "new")
    assert calls[1] == "renamed" and len(calls) == 3 and calls[2].endswith(output.name) | (calls[2] == "file")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence_and_keeps_the_old_file(code, output, monkeypatch):
    path = output / "runs" / "a.txt"
    write_text(path, "old")

    def fsync(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(provenance.os, "fsync", fsync)
    with pytest.raises(UserError, match=r"disk is full: runs/a\.txt.*Free some space"):
        write_text(path, "new")
    assert path.read_text() == "old" and os.listdir(path.parent) == ["a.txt"]


def test_a_full_disk_that_a_library_reports_as_text_is_recognised(output):
    class LibraryError(Exception):
        pass

    with pytest.raises(UserError, match="disk is full"), write_atomically(output / "a"):
        raise LibraryError("I/O error: No space left on device (os error 28)")
    with pytest.raises(LibraryError), write_atomically(output / "a"):
        raise LibraryError("something else")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_forbidden_folder_is_one_sentence(code, output, monkeypatch):
    def mkdir(*arguments, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(UserError, match="runs/a.txt may not be written"):
        write_text(output / "runs" / "a.txt", "new")


# Hashes.


def test_hashes_are_sha256(output):
    (output / "a").write_bytes(b"abc" * 100_000)
    assert hash_file(output / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()
    assert hash_text("ä") == hashlib.sha256("ä".encode()).hexdigest()
    assert hash_json({"b": [1, "ä"], "a": None}) == hashlib.sha256('{"a":null,"b":[1,"ä"]}'.encode()).hexdigest()


def test_equal_values_hash_equally_and_different_ones_do_not():
    assert hash_json({"a": 1, "b": 2}) == hash_json({"b": 2, "a": 1})
    assert (
        len({hash_json(v) for v in ({"a": 1}, {"a": "1"}, {"a": None}, {"a": 1.5}, [1, 2], [2, 1], [[1], 2], "")}) == 8
    )
    assert canonical_json((1, 2)) == canonical_json([1, 2])


# Names.


def test_names_are_relative_to_the_output_or_the_checkout_and_hold_no_machine_path(output):
    assert relative_name(output / "runs" / "x") == "runs/x"
    assert relative_name(ROOT / "configs" / "ci.yaml") == "configs/ci.yaml"
    assert relative_name(Path("/somewhere/else/file.txt")) == "file.txt"


def test_the_checkout_is_found_upwards_or_named_and_else_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.delenv("PRIMEKD_ROOT")
    monkeypatch.chdir(ROOT / "src" / "primekd")
    assert project_root() == ROOT
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="not inside a primekd checkout.*PRIMEKD_ROOT"):
        project_root()
    monkeypatch.setenv("PRIMEKD_ROOT", str(ROOT))
    assert project_root() == ROOT


# JSON.


@pytest.mark.parametrize("text", ['{"a": ', "", "\x00"])
def test_a_broken_json_file_is_one_sentence_with_its_name(text, output):
    (output / "m.json").write_text(text)
    with pytest.raises(UserError, match="m.json is not valid JSON") as refusal:
        read_json(output / "m.json")
    assert "\n" not in str(refusal.value)


def test_an_absent_json_file_is_one_sentence_with_its_name(output):
    with pytest.raises(UserError, match="m.json is missing"):
        read_json(output / "m.json")


def test_json_comes_back_as_it_was_written(output):
    value = {"a": [1, 2.5, None, True], "ä": "\u2028"}
    write_json(output / "m.json", value)
    assert read_json(output / "m.json") == value


# Folders and manifests.


def test_a_folder_set_aside_keeps_its_files_and_never_overwrites_another(output):
    for text in ("first", "second"):
        write_text(output / "store" / "a.txt", text)
        set_aside(output / "store")
    assert not (output / "store").exists()
    assert [(output / f"store.old-{n}" / "a.txt").read_text() for n in (1, 2)] == ["first", "second"]


@pytest.fixture
def artefact(output):
    folder = output / "artefact"
    write_text(folder / "sub" / "a.txt", "a")
    write_text(folder / "b.txt", "b")
    write_manifest(folder, "thing", {"x": 1}, [folder / "sub" / "a.txt", folder / "b.txt"], tokens=5)
    return folder


def test_an_artefact_is_current_for_its_own_inputs_alone(artefact):
    assert is_current(artefact, {"x": 1})
    assert not is_current(artefact, {"x": 2})
    assert not is_current(artefact.parent / "nothing", {"x": 1})


@pytest.mark.parametrize("damage", [lambda p: p.write_text("c"), lambda p: p.unlink()], ids=["altered", "missing"])
def test_an_artefact_with_a_damaged_output_is_not_current(damage, artefact):
    damage(artefact / "sub" / "a.txt")
    assert not is_current(artefact, {"x": 1})
    path = artefact / "manifest.json"
    assert altered_outputs(path, read_json(path)) == ["sub/a.txt"]


def test_a_manifest_says_what_where_and_with_what(artefact):
    manifest = read_json(artefact / "manifest.json")
    assert (manifest["kind"], manifest["inputs"], manifest["tokens"]) == ("thing", {"x": 1}, 5)
    assert manifest["inputs_sha256"] == hash_json({"x": 1})
    assert manifest["outputs"] == {
        "sub/a.txt": hash_file(artefact / "sub" / "a.txt"),
        "b.txt": hash_file(artefact / "b.txt"),
    }
    environment = manifest["environment"]
    assert set(environment) == {"git", "packages", "hardware"}
    assert {"commit", "dirty"} <= set(environment["git"])
    assert str(artefact) not in canonical_json(manifest)


def test_results_do_not_make_the_checkout_dirty_and_code_does(tmp_path, monkeypatch):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    for name in ("README.md", "docs/page.md", "benchmarks/results/x.json", "benchmarks/x.py", "logs/a.json"):
        write_text(tmp_path / name, "before")
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setenv("PRIMEKD_ROOT", str(tmp_path))
    for name in ("README.md", "docs/page.md", "benchmarks/results/x.json", "logs/a.json"):
        write_text(tmp_path / name, "after")
    found = git_state()
    assert found["dirty"] is False and len(found["commit"]) == 40
    write_text(tmp_path / "benchmarks" / "x.py", "after")
    assert git_state() == {"commit": found["commit"], "dirty": True}


def test_installed_versions_are_reported_and_absent_packages_are_none():
    import torch

    found = package_versions(["torch", "no-such-package-at-all"])
    # torch's module may name its build behind a plus sign where the package's metadata does not.
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["no-such-package-at-all"] is None
