"""Models from the hub: the real client against a fake hub on loopback."""

import html
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import small_profile
from fake_hub import GOOD_TOKEN, FakeHub, Repository
from huggingface_hub import constants, file_download, snapshot_download

from primekd.foundation.errors import UserError
from primekd.models import (
    is_present,
    load_model,
    load_tokenizer,
    model_folder,
    model_hash,
    parse_reference,
    tokenizer_hash,
)
from primekd.models.download import download, record_path
from primekd.models.folders import missing_weights
from primekd.models.hub import describe
from primekd.models.tokenizers import tokenizer_folder
from primekd.running.doctor import check_profile
from primekd.running.get_models import get_models, require_access, survey, survey_table

NAME = "some-lab/tiny-instruct"
BIG = 12 * 2**20  # more than the client's 10 MiB pieces


@pytest.fixture(scope="module")
def files(tmp_path_factory, lively) -> dict[str, bytes]:
    """A real small model's files, its weights in two shards, and what must not be downloaded."""
    folder = tmp_path_factory.mktemp("repository")
    load_model(lively, "float32").save_pretrained(folder, max_shard_size="3MB")
    load_tokenizer(lively).save_pretrained(folder)
    found = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert sum(name.endswith(".safetensors") for name in found) > 1
    unwanted = ("pytorch_model.bin", "original/consolidated.00.pth", "original/params.json", "consolidated.safetensors")
    return found | dict.fromkeys(unwanted, b"never") | {"README.md": b"# A model", ".gitattributes": b""}


@pytest.fixture
def hub(files, output, tmp_path, monkeypatch):
    """The fake hub with one repository; the client's cache and models/downloads/ are this test's own."""
    with FakeHub({NAME: Repository(dict(files))}) as running:
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("PRIMEKD_ROOT", str(tmp_path))
        monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
        monkeypatch.setattr("primekd.models.download.PAUSE", 0.0)
        forget()
        yield running
        forget()


def forget() -> None:
    """The next test's repository has the same name."""
    for cached in (model_folder, model_hash, load_tokenizer):
        cached.cache_clear()


def fetch(text: str = f"hub:{NAME}") -> Path:
    return download(describe(parse_reference(text)))


def profile_of(folder: Path, teacher: str, student: str, **of_teacher):
    return small_profile(folder, teacher={"model": teacher} | of_teacher, student={"model": student})


def test_a_model_comes_by_revision_whole_and_verified_and_nothing_else_comes(hub, files, tmp_path):
    folder = fetch()
    wanted = {n for n in files if "/" not in n and n.startswith(("model", "config", "generation", "token", "chat"))}
    assert {p.name for p in folder.iterdir()} == wanted
    assert all((folder / name).read_bytes() == files[name] for name in wanted)
    assert {r.path.rpartition("/")[2] for r in hub.file_requests} == wanted
    assert all(f"/resolve/{hub.repositories[NAME].commit}/" in r.path for r in hub.file_requests)
    record = json.loads(record_path(NAME, folder.name).read_text())
    assert record["commit"] == hub.repositories[NAME].commit and set(record["files"]) == wanted
    assert all(len(f["sha256"]) == 64 for f in record["files"].values())
    assert str(tmp_path) not in json.dumps(record)
    # The hub client itself, and so every other tool, finds it under the branch and the commit.
    for revision in (None, folder.name):
        assert Path(snapshot_download(NAME, revision=revision, local_files_only=True)) == folder


def test_a_downloaded_model_loads_and_its_hash_is_that_of_its_files(hub, lively, files):
    assert not is_present(f"hub:{NAME}")
    folder = fetch()
    assert is_present(f"hub:{NAME}") and is_present(f"hub:{NAME}@{folder.name}")
    ours, original = load_model(f"hub:{NAME}", "float32").state_dict(), load_model(lively, "float32").state_dict()
    assert all((ours[key] == original[key]).all() for key in original)
    known = model_hash(f"hub:{NAME}")
    record = record_path(NAME, folder.name).read_text()
    record_path(NAME, folder.name).unlink()
    model_hash.cache_clear()
    assert model_hash(f"hub:{NAME}") == known
    config = (folder / "config.json").resolve()
    config.write_bytes(files["config.json"].replace(b"llama", b"LLAMA"))
    os.utime(config, (time.time() + 2, time.time() + 2))
    record_path(NAME, folder.name).write_text(record)
    model_hash.cache_clear()
    assert model_hash(f"hub:{NAME}") != known


def test_a_second_run_asks_for_no_file_and_a_damaged_one_is_mended(hub, files, capsys):
    folder = fetch()
    hub.requests.clear()
    assert fetch() == folder and not hub.file_requests
    shard = next(n for n in files if n.startswith("model-00002"))
    damaged = bytearray(files[shard])
    damaged[-1] ^= 1
    (folder / shard).resolve().write_bytes(damaged)
    fetch()
    assert [r.path.rpartition("/")[2] for r in hub.file_requests] == [shard]
    assert (folder / shard).read_bytes() == files[shard]
    assert f"{shard} of {NAME} is damaged here" in capsys.readouterr().out


def test_a_dropped_connection_is_taken_up_where_it_broke(hub, monkeypatch):
    hub.repositories[NAME].files["model.safetensors"] = os.urandom(BIG)
    hub.drop["model.safetensors"] = BIG - 1000
    folder = fetch()
    assert [r.range for r in hub.asked_for("model.safetensors")] == [None, f"bytes={10 * 2**20}-"]
    assert (folder / "model.safetensors").read_bytes() == hub.repositories[NAME].files["model.safetensors"]


def test_a_killed_download_goes_on_within_the_file(hub, tmp_path):
    hub.repositories[NAME].files = {"config.json": b"{}", "model.safetensors": os.urandom(BIG)}
    hub.stall["model.safetensors"] = BIG - 1000
    code = (
        "from primekd.models import parse_reference\nfrom primekd.models.download import download\n"
        f"from primekd.models.hub import describe\ndownload(describe(parse_reference('hub:{NAME}')))"
    )
    here = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | here, stderr=subprocess.DEVNULL)
    assert hub.stalled.wait(30)
    part = None
    while not part or part.stat().st_size < 10 * 2**20:
        part = next((tmp_path / "cache").rglob("*.part"), None)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not is_present(f"hub:{NAME}")
    hub.requests.clear()
    folder = fetch()
    assert [r.range for r in hub.asked_for("model.safetensors")] == [f"bytes={10 * 2**20}-"]
    assert (folder / "model.safetensors").read_bytes() == hub.repositories[NAME].files["model.safetensors"]
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_a_wrong_hash_is_fetched_once_more_and_then_refused(hub, files, tmp_path):
    hub.corrupt["config.json"] = 1
    assert (fetch() / "config.json").read_bytes() == files["config.json"]
    hub.repositories["a/b"] = Repository({"config.json": b"{ }", "model.safetensors": b"weights"})
    hub.corrupt["model.safetensors"] = 2
    with pytest.raises(UserError, match=r"model.safetensors of a/b@.* came twice with another hash"):
        fetch("hub:a/b")
    assert not is_present("hub:a/b") and not record_path("a/b", hub.repositories["a/b"].commit).exists()


def test_a_line_that_stays_dead_ends_with_one_sentence_and_keeps_what_came(hub, monkeypatch):
    model = describe(parse_reference(f"hub:{NAME}"))
    hub.failing = 503
    with pytest.raises(UserError, match=r"connection broke off .*\(the hub answered 503\).* run this again"):
        download(model)
    hub.failing = None
    assert missing_weights(download(model)) == []


def test_a_full_disk_is_said_before_anything_is_fetched(hub, monkeypatch):
    model = describe(parse_reference(f"hub:{NAME}"))
    monkeypatch.setattr("primekd.models.download.free_bytes", lambda: 1000)
    with pytest.raises(UserError, match="needs .* more, and only 0.00 MB are free"):
        download(model)
    assert not hub.file_requests


@pytest.mark.parametrize(
    ("token", "sentence"),
    [
        (
            None,
            r"gated, and no token is set up here \(401\)\. 1\. Open .*accept the licence .*2\. .*3\. .*hf auth login",
        ),
        ("hf_badbadbadbadbadbadbadbadbadbadbad", r"does not accept the token that is set up here \(401\)"),
        (GOOD_TOKEN, r"account behind the token may not read it yet \(403\).*accept the licence"),
    ],
)
def test_gated_models_are_explained_before_any_file_is_asked_for(hub, tmp_path, monkeypatch, capsys, token, sentence):
    hub.repositories["meta-llama/gated"] = replace(hub.repositories[NAME], gated="manual")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    wanted = survey(profile_of(tmp_path, f"hub:{NAME}", "hub:meta-llama/gated"))
    with pytest.raises(UserError, match=sentence) as caught:
        require_access(wanted)
    with pytest.raises(UserError, match=sentence):
        get_models(profile_of(tmp_path, f"hub:{NAME}", "hub:meta-llama/gated"), wanted)
    assert not hub.file_requests
    if token:
        said = str(caught.value) + repr(survey_table(wanted)) + capsys.readouterr().out
        assert token not in said


def test_a_gated_model_with_access_comes_and_no_written_file_holds_the_token(hub, tmp_path, monkeypatch, capsys):
    hub.repositories[NAME] = replace(hub.repositories[NAME], gated="manual", granted=True)
    monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
    profile = profile_of(tmp_path, f"hub:{NAME}", f"hub:{NAME}")
    wanted = survey(profile)
    shown = html.unescape(survey_table(wanted).html)
    for word in ("teacher and student", "llama3.1", "gated, granted (token: set up)", hub.repositories[NAME].commit):
        assert word in shown
    require_access(wanted)
    get_models(profile, wanted)
    said = capsys.readouterr()
    assert f"write hub:{NAME}@{hub.repositories[NAME].commit} into the profile" in said.out
    written = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert is_present(f"hub:{NAME}") and record_path(NAME, hub.repositories[NAME].commit) in written
    assert not [p for p in written if GOOD_TOKEN.encode() in p.read_bytes()]
    assert GOOD_TOKEN not in said.out + said.err + shown


@pytest.mark.parametrize(
    ("text", "token", "sentence"),
    [
        (f"hub:{NAME}@v9", None, r"has no revision 'v9' \(404\)"),
        ("hub:no/where", None, r"no public repository hub:no/where \(401\)"),
        ("hub:no/where", GOOD_TOKEN, r"no repository hub:no/where that this account can see \(404\)"),
        ("hub:a/b/c", None, "names no repository of the hub"),
        ("hub:pickles/only", None, r"holds no \*\.safetensors"),
    ],
)
def test_each_refusal_of_the_hub_is_one_sentence(hub, monkeypatch, text, token, sentence):
    hub.repositories["pickles/only"] = Repository({"config.json": b"{}", "pytorch_model.bin": b"x"})
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=sentence):
        describe(parse_reference(text))
    assert not hub.file_requests


@pytest.mark.parametrize(("status", "sentence"), [(403, "forbids"), (429, "fewer requests"), (500, "answered 500")])
def test_a_hub_in_trouble_is_one_sentence(hub, status, sentence):
    hub.failing = status
    with pytest.raises(UserError, match=sentence):
        describe(parse_reference(f"hub:{NAME}"))


def test_offline_a_verified_model_is_used_and_a_missing_one_is_one_sentence(hub, tmp_path, monkeypatch):
    profile = profile_of(tmp_path, f"hub:{NAME}", f"hub:{NAME}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="unset HF_HUB_OFFLINE"):
        require_access(survey(profile))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    fetch()
    for switch in ("HF_HUB_OFFLINE", None):
        if switch:
            monkeypatch.setattr(constants, switch, True)
        else:
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
            monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        hub.requests.clear()
        wanted = survey(profile)
        require_access(wanted)
        get_models(profile, wanted)
        assert not hub.requests
    with pytest.raises(UserError, match=r"127.0.0.1:9 cannot be reached for hub:x/y \(ConnectError\)"):
        describe(parse_reference("hub:x/y"))


def test_a_tokenizer_comes_without_the_weights(hub, lively, tmp_path):
    assert tokenizer_hash(load_tokenizer(f"hub:{NAME}")) == tokenizer_hash(load_tokenizer(lively))
    assert hub.file_requests and not [r for r in hub.file_requests if r.path.endswith(".safetensors")]
    assert not is_present(f"hub:{NAME}")
    with pytest.raises(UserError, match=r"not here, or not whole: bring it with inference/get_models.ipynb"):
        model_folder(f"hub:{NAME}")
    hub.requests.clear()
    assert (tokenizer_folder(f"hub:{NAME}") / "tokenizer.json").is_file() and not hub.requests


def test_of_a_teacher_behind_an_api_only_the_tokenizer_comes(hub, tmp_path, lively):
    api = {"model": "m", "usd_per_million_input": 0, "usd_per_million_output": 0, "max_spend_usd": 0}
    profile = profile_of(tmp_path, f"hub:{NAME}", lively, engine="api", api=api)
    wanted = survey(profile)
    get_models(profile, wanted)
    assert hub.file_requests and not [r for r in hub.file_requests if r.path.endswith(".safetensors")]
    again = survey(profile)
    assert again[0].here == again[0].size > 0
    assert is_present(f"hub:{NAME}", weights=False) and not is_present(f"hub:{NAME}")
    assert not [f for f in check_profile(profile) if "missing" in f.text]


def test_the_source_of_a_teacher_that_is_converted_by_hand_comes_and_the_conversion_is_explained(
    hub, tmp_path, lively, capsys
):
    teacher = {"made_from": f"hub:{NAME}", "engine": "exllamav2"}
    profile = profile_of(tmp_path, "path:models/tiny-4.5bpw", lively, **teacher)
    wanted = survey(profile)
    shown = html.unescape(survey_table(wanted).html)
    assert f"is converted from hub:{NAME}" in shown and "teacher's source" in shown and "llama3.1" in shown
    require_access(wanted)
    assert f"its source hub:{NAME} is fetched" in capsys.readouterr().out
    with pytest.raises(UserError) as caught:
        get_models(profile, wanted)
    command = f"convert_exl2 -i {model_folder(f'hub:{NAME}')} -o WORK -cf models/tiny-4.5bpw -b 4.5`"
    assert command in str(caught.value) and is_present(f"hub:{NAME}")
    other = profile_of(tmp_path, "path:models/tiny.gguf", lively, **teacher | {"engine": "llamacpp"})
    with pytest.raises(UserError, match="convert it for the engine llamacpp") as caught:
        get_models(other, survey(other))
    assert "exllamav2" not in str(caught.value)
    with pytest.raises(UserError, match="mend the path"):
        require_access(survey(profile_of(tmp_path, "path:models/tiny-4.5bpw", lively, engine="exllamav2")))


def test_a_gated_source_of_a_teacher_is_explained(hub, tmp_path, lively):
    hub.repositories["meta-llama/gated"] = replace(hub.repositories[NAME], gated="manual")
    profile = profile_of(
        tmp_path, "path:models/tiny-6.0bpw", lively, made_from="hub:meta-llama/gated", engine="exllamav2"
    )
    with pytest.raises(UserError, match=r"meta-llama/gated.* gated, .*accept the licence"):
        require_access(survey(profile))
    assert not hub.file_requests


def test_a_folder_that_lacks_a_shard_is_one_sentence(files, tmp_path):
    for name, data in files.items():
        if "/" not in name and not name.startswith(("consolidated", "model-00002")):
            (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=r"is not whole: model-00002-of-\d+.safetensors missing \(1 in all\)"):
        model_folder(f"path:{tmp_path}")
    assert load_tokenizer(f"path:{tmp_path}").eos_token_id is not None


def test_exl2_folders_need_no_index_but_all_shards_and_are_refused_by_transformers(tmp_path):
    config = {"quantization_config": {"quant_method": "exl2", "bits": 6.0}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    (tmp_path / "output-00001-of-00002.safetensors").write_bytes(b"")
    assert missing_weights(tmp_path) == ["output-00002-of-00002.safetensors"]
    (tmp_path / "output-00002-of-00002.safetensors").write_bytes(b"")
    assert model_folder(f"path:{tmp_path}") == tmp_path
    with pytest.raises(UserError, match="quantised as EXL2, which transformers cannot read: set teacher.engine"):
        load_model(f"path:{tmp_path}", "float32")


def test_a_tokenizer_is_hashed_once_until_it_changes(tokenizer, monkeypatch):
    before = tokenizer_hash(tokenizer)
    monkeypatch.setattr("primekd.models.tokenizers.hash_json", lambda value: "hashed anew")
    assert tokenizer_hash(tokenizer) == before
    monkeypatch.setattr(type(tokenizer), "__len__", lambda self: 7)
    assert tokenizer_hash(tokenizer) == "hashed anew"
