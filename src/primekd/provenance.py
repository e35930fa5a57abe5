"""Where an artefact came from: hashes, manifests, and writes that are whole or absent.

Every other module writes its files through `write_atomically`, so a killed process or a full disk leaves
either the old file or the new one, never half of one.
"""

import contextlib
import datetime
import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from primekd.errors import UserError

MANIFEST = "manifest.json"


def project_root() -> Path:
    """The checkout that holds configs/ and the notebooks: $PRIMEKD_ROOT, or found upwards from the working folder.

    Raises:
        UserError: neither the working folder nor one above it is a primekd checkout.
    """
    if root := os.environ.get("PRIMEKD_ROOT"):
        return Path(root).resolve()
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        if (folder / "configs" / "strategies.yaml").is_file():
            return folder
    raise UserError(f"{here} is not inside a primekd checkout: go to one, or name it in PRIMEKD_ROOT.")


def output_root() -> Path:
    """Where runs/ and logs/ are written: $PRIMEKD_OUTPUT, or the checkout itself."""
    return Path(os.environ.get("PRIMEKD_OUTPUT") or project_root()).resolve()


def relative_name(path: Path) -> str:
    """`path` as manifests write it: relative to the output folder or the checkout, never a path of one machine."""
    path = Path(path).resolve()
    for base in (output_root(), project_root()):
        if path.is_relative_to(base):
            return path.relative_to(base).as_posix()
    return path.name


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spare spaces, so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def hash_json(value: Any) -> str:
    """sha256 of the canonical JSON of `value`, as hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def hash_text(text: str) -> str:
    """sha256 of a text's UTF-8 bytes, as hex."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, as hex."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextlib.contextmanager
def disk_errors(path: Path):
    """Turns a full disk or a forbidden folder into one sentence that says what to do."""
    try:
        yield
    except OSError as error:
        _raise_if_disk(error, path)
        raise
    except Exception as error:  # safetensors reports the operating system's error as text only
        if "No space left on device" in str(error):
            raise UserError(_full_disk(path)) from error
        raise


def _full_disk(path: Path) -> str:
    return (
        f"The disk is full: {relative_name(path)} could not be written. "
        "Free some space and run the same command again; finished parts are kept."
    )


def _raise_if_disk(error: OSError, path: Path) -> None:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise UserError(_full_disk(path)) from error
    if error.errno in (errno.EACCES, errno.EROFS):
        raise UserError(
            f"{relative_name(path)} may not be written: {error.strerror}. Check the folder's owner."
        ) from error
    if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.ENOENT):
        raise UserError(f"{relative_name(path)} cannot be written: {error.strerror}. Name a file.") from error


@contextlib.contextmanager
def write_atomically(path: Path):
    """Yields a temporary path beside `path`; when the block ends well it is synced and renamed to `path`.

    Raises:
        UserError: the disk is full or the folder may not be written; the temporary file is removed.
    """
    path = Path(path)
    # Processes of several machines may share a folder, and a process id.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            descriptor = os.open(temporary, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: the file is absent or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{relative_name(path)} is missing: run the stage that writes it.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{relative_name(path)} is not valid JSON ({error}): delete it and run its stage again."
        ) from error


def set_aside(folder: Path) -> Path:
    """Renames a folder that no longer matches the profile, so that it is neither lost nor reused."""
    for number in range(1, 10_000):
        target = folder.with_name(f"{folder.name}.old-{number}")
        if not target.exists():
            folder.rename(target)
            return target
    raise UserError(f"{relative_name(folder)} has too many set-aside copies: delete some of them.")


def now() -> str:
    """The current time in UTC, to the second, in ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def git_state() -> dict[str, Any]:
    """Commit and dirty flag of the checkout; both None where there is no git.

    Results that are written into tracked places (logs/, models/, benchmarks/results/, tables in README and docs/) do
    not make it dirty: the flag says whether the code and the configuration are those of the commit.
    """

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *words], cwd=project_root(), capture_output=True, text=True, timeout=20, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    written = ("logs", "models", "README.md", "benchmarks/results", "docs")
    changed = git("status", "--porcelain", "--", ".", *(f":!{name}" for name in written))
    return {"commit": commit, "dirty": None if commit is None or changed is None else bool(changed)}


def requirement_pins() -> dict[str, str]:
    """Package name -> version for every `name==version` line of requirements.txt."""
    path = project_root() / "requirements.txt"
    if not path.is_file():
        return {}
    found = re.findall(r"^([A-Za-z0-9_.\-]+)(?:\[[^\]]*\])?==([^\s;#]+)", path.read_text(), re.M)
    return dict(found)


def package_versions(names: Iterable[str] | None = None) -> dict[str, str | None]:
    """Installed version of each package, None where it is absent; by default every pinned one."""

    def version(name: str) -> str | None:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {name: version(name) for name in (requirement_pins() if names is None else names)}


def cpu_name() -> str:
    """The processor's name as the kernel gives it."""
    with contextlib.suppress(OSError):
        if found := re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M):
            return found.group(1)
    return platform.processor() or platform.machine()


def hardware() -> dict[str, Any]:
    """Processor, cores, memory and GPUs of this machine; nothing that names the machine itself."""
    import psutil

    facts: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
            facts["gpus"] = done.stdout.strip().splitlines()
    return facts


def environment() -> dict[str, Any]:
    """What every manifest says of the machine and the code that made an artefact."""
    return {"git": git_state(), "packages": package_versions(), "hardware": hardware()}


def is_current(folder: Path, inputs: dict[str, Any]) -> bool:
    """Whether `folder` was made from exactly these inputs and still has the bytes that its manifest names."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        return False
    manifest = read_json(path)
    return manifest.get("inputs_sha256") == hash_json(inputs) and not altered_outputs(path, manifest)


def altered_outputs(path: Path, manifest: dict[str, Any]) -> list[str]:
    """Outputs of a manifest, by name relative to its folder, that are missing or have other bytes."""
    folder = path.parent
    outputs = manifest.get("outputs", {})
    return [name for name, digest in outputs.items() if not _matches(folder / name, digest)]


def _matches(path: Path, digest: str) -> bool:
    return path.is_file() and hash_file(path) == digest


def write_manifest(
    folder: Path, kind: str, inputs: dict[str, Any], outputs: Iterable[Path], name: str = MANIFEST, **facts: Any
) -> None:
    """Writes a stage's manifest beside its outputs; it is written last, so its presence means a finished stage.

    Args:
        inputs: everything that the outputs depend on; its hash decides whether the stage has to run again.
        outputs: files inside `folder`.
        name: the manifest's own file name, where a folder holds the outputs of several stages.
        facts: what else is worth knowing (resolved config, tokens, seconds, energy, start, end).
    """
    names = {Path(p).relative_to(folder).as_posix(): hash_file(p) for p in outputs}
    manifest = {"kind": kind, "inputs": inputs, "inputs_sha256": hash_json(inputs), "outputs": names}
    write_json(Path(folder) / name, manifest | facts | {"environment": environment()})
