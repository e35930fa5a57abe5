"""What goes to the hub: exported students as a model, signals and logs as a data set, each with its card. One commit a
repository, so that a stopped upload leaves what was there; a repository that is new is private."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from primekd.assessment.inside import inside_folder
from primekd.config import Profile, get_arm
from primekd.foundation import MANIFEST, UserError, altered_outputs, clean, holds_secret, read_manifest, relative_name
from primekd.models import gigabytes, has_token
from primekd.running.model_card import UNKNOWN, licence, plain
from primekd.running.verify_run import check_signals
from primekd.signals.manifest import read_complete
from primekd.studies.results import logs_in_use

READ = 2**24  # bytes of a file that are looked through for a secret, if it is text


@dataclass(frozen=True)
class Upload:
    """What one repository gets: name there -> file here, or bytes. `kind`: model or dataset."""

    repository: str
    kind: str
    files: dict[str, Path | bytes]


def gather(
    profile: Profile, repository: str, student: str | None, signals: Sequence[str] = (), logs: bool = False
) -> list[Upload]:
    """What would go, checked against its manifests. `repository`: owner/name, of the model and of the data set;
    `student`: an export's folder, or its name in runs/<profile>/exports/; `signals`: arms whose stores go. Raises
    UserError if nothing is named, or something is missing, unfinished or altered."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repository, re.ASCII):
        raise UserError(f"{clean(repository, 100)!r} names no repository of the hub: write owner/name.")
    if not (student or signals or logs):
        raise UserError("Name what goes to the hub: a --student, --signals of an arm, --logs, or several of these.")
    uploads = [Upload(repository, "model", _export_files(profile, student))] if student else []
    data: dict[str, Path | bytes] = {}
    for arm in signals:
        folder = profile.signals_folder(get_arm(arm).name)
        manifest = read_complete(folder)
        if problems := check_signals(folder).problems:
            raise UserError(f"{relative_name(folder)} is not uploaded: {problems[0]}; capture it again.")
        head = [manifest["head"]["file"]] if manifest.get("head") else []
        data |= {f"signals/{folder.name}/{name}": folder / name for name in [*manifest["shards"], *head, MANIFEST]}
    if logs:
        folder = logs_in_use(profile).logs
        data |= {f"logs/{name}": file for name, file in _named_files(folder).items()}
        if (inside := inside_folder(logs_in_use(profile))).joinpath(MANIFEST).is_file():
            data |= {f"logs/{inside.name}/{name}": file for name, file in _named_files(inside).items()}
    if data:
        card: dict[str, Path | bytes] = {"README.md": _data_card(profile, [*data]).encode()}
        uploads.append(Upload(repository, "dataset", card | data))
    return uploads


def _export_files(profile: Profile, name: str) -> dict[str, Path | bytes]:
    folder = next((f for f in (Path(name), profile.runs / "exports" / name) if (f / MANIFEST).is_file()), None)
    if folder is None or read_manifest(folder / MANIFEST)["kind"] != "export":
        raise UserError(f"{clean(name)} is no exported student: run `primekd export` first, and name what it printed.")
    return _named_files(folder)


def _named_files(folder: Path) -> dict[str, Path | bytes]:
    manifest = read_manifest(folder / MANIFEST)
    if altered := altered_outputs(folder / MANIFEST, manifest):
        raise UserError(f"{relative_name(folder)}: {', '.join(altered[:3])} missing or altered: make it again.")
    return {name: folder / name for name in [*manifest["outputs"], MANIFEST]}


def _data_card(profile: Profile, names: Sequence[str]) -> str:
    teacher, data = profile.teacher, profile.data
    facts = {
        "Profile": profile.name,
        "Teacher": f"{(teacher.api and teacher.api.model) or teacher.model} ({teacher.engine})",
        "The teacher's licence": licence(teacher.model) or UNKNOWN,
        "Student": profile.student.model or "from scratch",
        "Items": f"{data.task}, from {data.source}; their licence is their source's",
        "Holds": ", ".join(sorted({name.rpartition("/")[0] for name in names})),
    }
    head = yaml.safe_dump({"tags": ["knowledge-distillation"], "pretty_name": f"{profile.name}: signals and logs"})
    rows = "\n".join(f"| {name} | {plain(value)} |" for name, value in facts.items())
    return f"""---
{head}---
# {plain(profile.name)}

A teacher's responses and signals, and per-item logs of students that learned from them. Every folder's manifest.json
has the hashes of its files.

| | |
|---|---|
{rows}
"""


def say(upload: Upload) -> str:
    """What goes where, with sizes in bytes."""
    sizes = {name: len(f) if isinstance(f, bytes) else f.stat().st_size for name, f in upload.files.items()}
    lines = [f"  {size:>15,}  {name}" for name, size in sorted(sizes.items())]
    return "\n".join(
        [f"{upload.kind} {upload.repository}: {len(sizes)} files, {gigabytes(sum(sizes.values()))}", *lines]
    )


def send(upload: Upload) -> str:
    """Uploads in one commit, or nothing. Raises UserError if there is no token, a text holds it, or the hub refuses."""
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HTTPError

    if not has_token():
        fix = "make one that may write at huggingface.co/settings/tokens, run `hf auth login` or set HF_TOKEN"
        raise UserError(f"No token of the hub is set up here: {fix}, then this again. Nothing was sent.")
    for name, file in upload.files.items():
        start = file[:READ] if isinstance(file, bytes) else _beginning(file)
        if holds_secret(start.decode("utf-8", "replace")):
            raise UserError(f"{name} holds the hub's token: take it out and make the file again. Nothing was sent.")
    try:
        HfApi().create_repo(upload.repository, repo_type=upload.kind, private=True, exist_ok=True)
        added = [CommitOperationAdd(name, f if isinstance(f, bytes) else str(f)) for name, f in upload.files.items()]
        done = HfApi().create_commit(upload.repository, added, commit_message="From primekd", repo_type=upload.kind)
    except (HTTPError, OSError, ValueError) as error:
        raise _explain(error, upload.repository) from error
    return f"{upload.kind} {upload.repository}: {len(added)} files are there, {clean(done.commit_url)}"


def _beginning(file: Path) -> bytes:
    with open(file, "rb") as handle:
        return handle.read(READ)


def _explain(error: Any, repository: str) -> UserError:
    """The hub's refusal of an upload as what to do about it."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    status = error.response.status_code if getattr(error, "response", None) is not None else None
    name, tokens = clean(repository, 100), "huggingface.co/settings/tokens"
    answers = {
        401: f"the hub does not accept the token (401), it is mistyped, expired or revoked: make one at {tokens}",
        403: f"the token may not write there (403): give it the right to write for this owner at {tokens}",
        404: "the hub shows this account no such owner or repository (404): mend its name",
    }
    if isinstance(error, OfflineModeIsEnabled):
        text = "the hub may not be asked: unset HF_HUB_OFFLINE"
    elif status is not None:
        text = answers.get(status, f"the hub answered {status}: run this again later")
    elif isinstance(error, ValueError):
        text = f"{clean(error)}; mend that and run this again"
    else:
        text = f"{clean(error) or type(error).__name__}: go online, or name a mirror in HF_ENDPOINT"
    return UserError(f"Nothing was uploaded to {name}: {text}.")
