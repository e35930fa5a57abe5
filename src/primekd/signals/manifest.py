"""The small JSON files of a store, each read through one schema: its manifest, what vouches for a shard, a session."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from primekd.foundation import UserError, hash_json, manifests, relative_name
from primekd.foundation.manifests import MANIFEST, Count, Digest, Number, Part, checked
from primekd.signals.shards import FORMAT

FIX = "Delete it and run the capture again: shards that are whole are kept."


class Entry(Part):
    """What the manifest says of a shard."""

    sha256: Digest
    items: Count
    tokens: Count
    bytes: Count


class Head(Part):
    file: Annotated[str, Field(pattern=r"^head-[0-9a-f]+\.safetensors$")]
    sha256: Digest


class CodecSpec(manifests.Codec):
    name: str


class StoreSpec(Part):
    codec: CodecSpec


class Made(manifests.Store):
    head: Head | None = None
    environment: manifests.Environment | None = None


class Vouch(Entry, Made):
    spec_sha256: Digest


class Session(manifests.Measured):
    end: str = ""
    seconds: Number


class StoreManifest(Made):
    format: int
    spec: StoreSpec
    spec_sha256: Digest
    complete: bool
    shards: dict[Annotated[str, Field(pattern=r"^shard-[0-9]{5,}\.safetensors$")], Entry]
    sessions: list[Session] = []


def read_store(folder: Path) -> dict[str, Any]:
    """The manifest of a store, finished or begun. Raises UserError if it is absent or does not fit the schema."""
    return checked(Path(folder) / MANIFEST, StoreManifest, FIX)


def read_complete(folder: Path) -> dict[str, Any]:
    """The manifest of a finished store. Raises UserError if there is none, or it does not fit the schema."""
    name = relative_name(folder)
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{name} has no signals: run `primekd capture` (or the inference notebook) first.")
    manifest = read_store(folder)
    if manifest["format"] != FORMAT or hash_json(manifest["spec"]) != manifest["spec_sha256"]:
        raise UserError(f"{name}/{MANIFEST} was altered or is of another version: capture again.")
    if not manifest["complete"]:
        raise UserError(f"{name} is not complete: run its capture again, it goes on where it stopped.")
    return manifest


def shards_hash(folder: Path) -> str:
    """One hash of all bytes of a finished store, from its manifest. Raises UserError as `read_complete`."""
    return hash_json({shard: entry["sha256"] for shard, entry in read_complete(folder)["shards"].items()})
