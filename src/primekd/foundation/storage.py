"""Files and their names: hashes, JSON, and writes that are whole or absent. Every other module writes its files through
`write_atomically`, so a killed process or a full disk leaves either the old file or the new one, never half of one."""

import contextlib
import datetime
import errno
import fcntl
import hashlib
import json
import math
import os
import secrets
from functools import cache
from pathlib import Path
from typing import IO, Any

import yaml

from primekd.foundation.errors import UserError


def project_root() -> Path:
    """The checkout that holds configs/ and the notebooks: $PRIMEKD_ROOT, or found upwards from the working folder.
    Raises UserError if neither the working folder nor one above it is a primekd checkout, or it is another one than
    that of the code which runs."""
    if root := os.environ.get("PRIMEKD_ROOT"):
        return _with_this_code(Path(root).resolve())
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        if (folder / "configs" / "strategies.yaml").is_file():
            return _with_this_code(folder)
    raise UserError(f"{here} is not inside a primekd checkout: go to one, or name it in PRIMEKD_ROOT.")


@cache
def _with_this_code(root: Path) -> Path:
    """The checkout, unless it has other code than what runs: its commit would be recorded as what made a result."""
    code, own = Path(__file__).resolve().parents[1], root / "src" / "primekd"
    if own.is_dir() and not own.samefile(code):
        fix = "use the environment of that checkout (`make setup` there), or go to the other one"
        raise UserError(f"{root} has code of its own, and that of {code.parents[1]} runs: {fix}.")
    return root


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


def locked(handle: IO) -> bool:
    """Whether this process has the one lock on an open file now; it ends with the process. Raises UserError if the file
    system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        said = f"The file system of {relative_name(Path(handle.name))} has no locks ({error.strerror})"
        raise UserError(f"{said}: set PRIMEKD_OUTPUT to a folder on one that has.") from error
    return True


class _Strict(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which YAML would keep the last without a word."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)  # as it is written: merged keys come later
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for number, key in enumerate(keys) if key in keys[:number]]:
            raise yaml.composer.ComposerError(None, None, f"the key {twice[0]!r} stands twice", node.start_mark)
        return node


def parse_yaml(text: str) -> Any:
    """Raises yaml.YAMLError if it is none, or has a key twice."""
    return yaml.load(text, _Strict)


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file. Raises UserError if it is absent, not valid YAML, or holds something else."""
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"{relative_name(path)} is not valid YAML: {reason}") from error
    if not isinstance(values, dict):
        raise UserError(f"{relative_name(path)} holds no mapping of keys to values. Mend the file and run again.")
    return values


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spare spaces, so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def hash_json(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def hash_text(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def hash_file(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextlib.contextmanager
def disk_errors(path: Path):
    """Turns a full disk or a forbidden folder into one sentence that says what to do."""
    try:
        yield
    except Exception as error:
        code = getattr(error, "errno", None)
        # safetensors reports the operating system's error as text only
        told = not isinstance(error, OSError) and "No space left on device" in str(error)
        if told or code in (errno.ENOSPC, errno.EDQUOT):
            fix = "Free some space and run the same command again; finished parts are kept."
            raise UserError(f"The disk is full: {relative_name(path)} could not be written. {fix}") from error
        if code in (errno.EACCES, errno.EROFS):
            said = f"{error.strerror}. Check the folder's owner."
            raise UserError(f"{relative_name(path)} may not be written: {said}") from error
        if code in (errno.EISDIR, errno.ENOTDIR, errno.ENOENT):
            raise UserError(f"{relative_name(path)} cannot be written: {error.strerror}. Name a file.") from error
        raise


@contextlib.contextmanager
def write_atomically(path: Path):
    """Yields a temporary path; when the block ends well it is synced and renamed to `path`, else removed. Raises
    UserError if the disk is full or the folder may not be written."""
    path = Path(path)
    # Processes of several machines may share a folder, and a process id.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            sync_folder(temporary)
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes a rename inside a folder survive a power cut, or what a file holds."""
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


def read_json(path: Path, finite: bool = False) -> Any:
    """Reads JSON; `finite` refuses NaN and infinite or too large numbers. Raises UserError if it is absent or none."""
    rules: dict[str, Any] = {"parse_constant": _no_number, "parse_float": _finite} if finite else {}
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"), **rules)
    except FileNotFoundError as error:
        raise UserError(f"{relative_name(path)} is missing: run the stage that writes it.") from error
    except (ValueError, RecursionError) as error:  # a ValueError also for text that is no UTF-8, or far too many digits
        fix = "delete it and run its stage again"
        raise UserError(f"{relative_name(path)} is not valid JSON ({error}): {fix}.") from error


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    return value if math.isfinite(value := float(text)) else _no_number(text)


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
