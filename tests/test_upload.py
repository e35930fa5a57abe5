"""Students, signals and logs on their way to the hub: the real client against a fake hub on loopback."""

import pytest
from conftest import make_store, stored
from fake_hub import GOOD_TOKEN, READING_TOKEN, FakeHub
from huggingface_hub import constants
from typer.testing import CliRunner

from primekd.cli import app
from primekd.config import load_profile
from primekd.foundation import write_manifest, write_text
from primekd.foundation.errors import UserError
from primekd.running.upload import gather, send

NAME = "some-lab/ai-KD"


@pytest.fixture
def hub(output, tmp_path, monkeypatch):
    """A fake hub where nothing is yet; large files go the plain way, which is the only one that it knows."""
    with FakeHub({}) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
        yield running


@pytest.fixture
def profile(output):
    """ci, with an export and logs; what they hold is not looked into."""
    found = load_profile("ci")
    folder = found.runs / "exports" / "ai-KD"
    for place, kind, names in (
        (folder, "export", ("README.md", "model.safetensors", "ai-KD-F16.gguf", "config.json")),
        (found.logs, "assessment", ("summary.csv", "ai-KD.csv")),
    ):
        place.mkdir(parents=True)
        for name in names:
            (place / name).write_bytes(f"---\ntags: []\n---\n{name}".encode() * 50)
        write_manifest(place, kind, {}, [place / name for name in names])
    return found


def publish(*words: str):
    return CliRunner().invoke(app, ["publish", "--profile", "ci", "--hub", NAME, *words])


def test_an_export_goes_whole_in_one_commit_into_a_private_repository(hub, profile):
    done = publish("--student", "ai-KD")
    assert done.exit_code == 0, done.output
    folder = profile.runs / "exports" / "ai-KD"
    assert hub.written == {f"models/{NAME}": {p.name: p.read_bytes() for p in folder.iterdir()}}
    assert hub.private == {f"models/{NAME}": True} and len(hub.commits) == 1
    sent = len([r for r in hub.requests if r.method == "PUT"])
    again = publish("--student", str(folder))
    assert again.exit_code == 0, again.output
    assert len(hub.commits) == 1 and len([r for r in hub.requests if r.method == "PUT"]) == sent == 2  # all is there
    assert GOOD_TOKEN not in done.output + again.output


def test_signals_and_logs_go_as_a_data_set_with_a_card(hub, profile, tokenizer):
    import torch

    from primekd.signals.codecs import FullCodec

    folder = profile.signals_folder("ai-KD")
    make_store(folder, FullCodec(), [[(stored("one", [5, 6]), torch.zeros(2, 7))]])
    done = publish("--signals", "ai-KD", "--logs")
    assert done.exit_code == 0, done.output
    files = hub.written[f"datasets/{NAME}"]
    assert hub.written.keys() == {f"datasets/{NAME}"}
    assert files["signals/ai-KD/shard-00000.safetensors"] == (folder / "shard-00000.safetensors").read_bytes()
    assert files["logs/ai-KD.csv"] == (profile.logs / "ai-KD.csv").read_bytes()
    assert {"signals/ai-KD/manifest.json", "logs/manifest.json", "logs/summary.csv", "README.md"} < files.keys()
    assert b"| Teacher | random:package" in files["README.md"] and files["README.md"].startswith(b"---\n")


def test_a_dry_run_says_what_would_go_and_asks_nobody(hub, profile, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    done = publish("--student", "ai-KD", "--logs", "--dry-run")
    assert done.exit_code == 0 and not hub.requests
    size = (profile.logs / "ai-KD.csv").stat().st_size
    assert f"{size:,}  logs/ai-KD.csv" in done.output
    assert f"model {NAME}: 5 files" in done.output and f"dataset {NAME}: 4 files" in done.output


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (None, "No token of the hub is set up here"),
        (READING_TOKEN, r"the token may not write there \(403\)"),
        ("hf_wrongwrongwrongwrongwrongwrong56", r"does not accept the token \(401\)"),
    ],
)
def test_without_the_right_to_write_one_sentence_says_so_and_nothing_is_there(hub, profile, monkeypatch, token, said):
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=said) as found:
        send(gather(profile, NAME, "ai-KD")[0])
    assert not hub.written and not (token and token in str(found.value)) and str(found.value).count("\n") == 0


def test_a_hub_that_takes_no_commit_or_cannot_be_reached_is_one_sentence(hub, profile, monkeypatch):
    hub.full = True
    with pytest.raises(UserError, match="the hub answered 507"):
        send(gather(profile, NAME, "ai-KD")[0])
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="go online"):
        send(gather(profile, NAME, "ai-KD")[0])


def test_what_was_found_inside_the_students_goes_with_the_logs(profile):
    place = profile.logs / "inside"
    assert not [name for name in gather(profile, NAME, None, logs=True)[0].files if "inside" in name]
    write_text(place / "attention.csv", "x")
    write_manifest(place, "inside", {}, [place / "attention.csv"])
    names = set(gather(profile, NAME, None, logs=True)[0].files)
    assert {"logs/summary.csv", "logs/inside/attention.csv", "logs/inside/manifest.json"} < names
    write_text(place / "attention.csv", "altered")
    with pytest.raises(UserError, match="attention.csv missing or altered"):
        gather(profile, NAME, None, logs=True)


def test_what_is_named_wrongly_missing_or_altered_is_refused_before_anything_is_sent(hub, profile):
    for words, said in (
        ([], "Name what goes to the hub"),
        (["--student", "base-KD"], "base-KD is no exported student"),
        (["--student", str(profile.logs)], "is no exported student"),
        (["--signals", "ai-KD"], "has no signals"),
        (["--student", "ai-KD", "--hub", "some-lab"], "names no repository of the hub: write owner/name"),
    ):
        done = publish(*words)
        assert done.exit_code == 1 and said in done.output, done.output
    (profile.runs / "exports" / "ai-KD" / "config.json").write_text("{}")
    done = publish("--student", "ai-KD")
    assert done.exit_code == 1 and "config.json missing or altered" in done.output
    alone = CliRunner().invoke(app, ["publish", "--profile", "ci", "--dry-run"])
    assert alone.exit_code == 1 and "belong to --hub" in alone.output
    assert not hub.requests


def test_a_file_that_holds_the_token_is_not_sent(hub, profile):
    folder = profile.logs
    (folder / "summary.csv").write_text(f"model,{GOOD_TOKEN}\n")
    write_manifest(folder, "assessment", {}, [folder / "summary.csv"])
    with pytest.raises(UserError, match="logs/summary.csv holds the hub's token"):
        send(gather(profile, NAME, None, logs=True)[0])
    assert not hub.requests
