"""What the hub says of a model before anything is downloaded, and its refusals in plain words."""

import re
from dataclasses import dataclass
from pathlib import Path

from primekd.foundation import UserError, clean, hide
from primekd.models.reference import ModelReference

TOKENIZER_SUFFIXES = (".json", ".jinja", ".model", ".txt")
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubFile:
    """A file of a repository. `digest`: sha256 of what is kept in LFS or Xet, else git's sha1 of the blob."""

    name: str
    size: int
    digest: str

    @property
    def is_weights(self) -> bool:
        return self.name.endswith((".safetensors", ".gguf"))


@dataclass(frozen=True)
class HubModel:
    """One commit of a repository, and those of its files that are used here."""

    repository: str
    revision: str
    commit: str
    gated: bool
    licence: str
    files: tuple[HubFile, ...]


def has_token() -> bool:
    from huggingface_hub import get_token

    token = get_token()
    hide(token or "")
    return token is not None


def describe(reference: ModelReference) -> HubModel:
    """Asks the hub for a reference's commit, files, hashes and licence, and whether this account may read it.

    Source: `HfApi.model_info` with the files' metadata; for gated models also `HfApi.auth_check`. Raises UserError if
    the hub is out of reach or refuses, or there is no such model, without safetensors or without the file."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        info = HfApi().model_info(reference.repository, revision=reference.revision, files_metadata=True, timeout=30)
        if info.gated:
            HfApi().auth_check(reference.repository)
    except (HTTPError, OSError, ValueError) as error:
        raise explain(error, reference) from error
    if not isinstance(info.sha, str) or not COMMIT.fullmatch(info.sha):  # it becomes the name of a folder
        raise UserError(f"{_endpoint()} names no commit of {reference.text}: use another mirror (HF_ENDPOINT).")
    card = info.card_data or {}
    licence = clean(card.get("license_name") or card.get("license") or "not stated")
    files = tuple(_read(sibling, reference) for sibling in _used(info.siblings, reference))
    return HubModel(reference.repository, reference.revision, info.sha, bool(info.gated), licence, files)


def _used(siblings: list, reference: ModelReference) -> list:
    """The files at the top of a repository that are loaded here: never pickles, and no second copy of the weights."""
    top = [s for s in siblings if "/" not in s.rfilename]
    if reference.file:
        if found := [s for s in top if s.rfilename == reference.file]:
            return found
        others = ", ".join(s.rfilename for s in top if s.rfilename.endswith(".gguf")) or "no GGUF file"
        raise UserError(f"hub:{reference.repository} has no file {reference.file}: mend its name (there: {others}).")
    weights = [s for s in top if s.rfilename.endswith(".safetensors")]
    # Some repositories hold the same weights again in their maker's own layout, as consolidated.safetensors.
    weights = [s for s in weights if s.rfilename.startswith("model")] or weights
    if not weights:
        raise UserError(
            f"{reference.text} holds no *.safetensors: other formats are not downloaded (pickles can run code); "
            "choose a repository with safetensors, or put a GGUF file in models/ and write path:models/FILE.gguf."
        )
    return weights + [s for s in top if s.rfilename.endswith(TOKENIZER_SUFFIXES)]


def _read(sibling, reference: ModelReference) -> HubFile:
    digest = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    if not digest or sibling.size is None:
        what = f"{sibling.rfilename} of {reference.text}, so it could not be verified"
        fix = "use another mirror (HF_ENDPOINT), or put the model in a folder and write path:FOLDER"
        raise UserError(f"{_endpoint()} states no size and hash for {what}: {fix}.")
    return HubFile(sibling.rfilename, sibling.size, digest)


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def explain(error: Exception, reference: ModelReference) -> UserError:
    """The hub's refusal, or what kept us from reaching it, as what to do about it."""
    from huggingface_hub import errors

    name, page = reference.text, f"{_endpoint()}/{reference.repository}"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.OfflineModeIsEnabled):
        text = f"{name} is not here and the hub may not be asked: unset HF_HUB_OFFLINE and run this again."
    elif isinstance(error, errors.HFValidationError):
        text = f"{name} names no repository of the hub: write hub:owner/name@revision."
    elif status is None:
        fix = "go online, name a mirror in HF_ENDPOINT, or put the model in a folder and write path:FOLDER"
        text = f"{_endpoint()} cannot be reached for {name} ({type(error).__name__}): {fix}."
    elif status == 401 and has_token():
        text = (
            f"The hub does not accept the token that is set up here (401), so {name} cannot be had: it is mistyped, "
            f"expired or revoked. Make a read token at {_endpoint()}/settings/tokens, run `hf auth login`, then this "
            "again."
        )
    elif isinstance(error, errors.GatedRepoError):
        why = "no token is set up here (401)" if status == 401 else (
            f"the account behind the token may not read it yet ({status}): its licence is not accepted, the request is "
            "still being reviewed, or the token's own permissions leave gated repositories out "
            f"(`{_endpoint()}/settings/gated-repos` shows your requests)"
        )  # fmt: skip
        text = (
            f"{name} is gated, and {why}. 1. Open {page}, log in and accept the licence (for Llama 3.1 it is the Llama "
            "3.1 Community License; the answer can take from minutes to days). "
            f"2. Make a token of the kind `read` at {_endpoint()}/settings/tokens. "
            "3. Run `hf auth login` and paste it, or set HF_TOKEN; it is written into no notebook, log or manifest. "
            "4. Run this again. Nothing was downloaded."
        )
    elif isinstance(error, errors.RevisionNotFoundError):
        text = f"{name}: the repository is there, but it has no revision {reference.revision!r} (404): mend it."
    elif isinstance(error, errors.RepositoryNotFoundError) and status == 401:
        text = f"There is no public repository {name} (401): mend its name, or, if it is private, run `hf auth login`."
    else:
        text = {
            404: f"There is no repository {name} that this account can see (404): mend its name.",
            403: f"The hub forbids {name} to this account or this network (403): its page {page} says why.",
            429: f"The hub asks for fewer requests (429): wait some minutes and run this again ({name}).",
        }.get(status, f"The hub answered {status} for {name}: run this again later; what is here is kept.")
    return UserError(text)


def storage_folder(repository: str) -> Path:
    """Where the hub's cache keeps a repository (blobs/, refs/, snapshots/)."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")


def local_snapshot(reference: ModelReference) -> Path | None:
    """The folder of a reference's commit in the hub's cache, if anything of it is there."""
    storage, commit = storage_folder(reference.repository), reference.revision
    if not COMMIT.fullmatch(commit):
        known = storage / "refs" / commit
        if not known.is_file():
            return None
        commit = known.read_text(encoding="utf-8").strip()
    folder = storage / "snapshots" / commit
    return folder if folder.is_dir() else None


def has_tokenizer(snapshot: Path | None) -> bool:
    """Whether a snapshot holds the tokenizer; its files are linked together, once all of them are verified."""
    return snapshot is not None and (snapshot / "tokenizer_config.json").is_file()
