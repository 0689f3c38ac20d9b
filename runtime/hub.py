"""From the name of a model to a folder on disk: the demo, a path, or a repository of the Hugging Face hub."""

import os
import re
from pathlib import Path

from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.token_source import CACHE, check_token_source, read_token
from sirocco.runtime.weight_files import unnamed_files

DEMO = "demo"
DEMO_FOLDER = Path(__file__).parent / "data" / "demo"

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
REVISION = re.compile(r"\w[\w.+-]*(/\w[\w.+-]*)*")  # a branch, a tag or a commit; it is part of a path in the cache
WANTED = (
    *("*.json", "*.safetensors", "*.model", "*.jinja", "tokenizer*", "vocab*", "merges.txt", "*.tiktoken"),
    "[0-9]*/pytorch_model.bin",
)
# A second copy of the weights in the publisher's own layout, and files of folders that are not the model's. Those that
# a number begins are stages of sentence-transformers.
UNWANTED = ("consolidated*", "[!0-9]*/*.safetensors", "original/*", "onnx/*", "openvino/*")
# Asked for where there are no safetensors.
OLD_WANTED = ("*.bin", "*.pt", "*.pth")
OLD_UNWANTED = ("consolidated*", "[!0-9]*/*", "training_args*", "optimizer*", "scheduler*", "rng_state*")
_LONGEST_SHOWN = 100  # characters of a name that cannot be looked up


def resolve_model(
    name: str, revision: str | None = None, token_source: str = CACHE, offline: bool | None = None
) -> Path:
    """The folder of a model: "demo", an existing folder, or a hub id, downloaded where it is not cached.

    `token_source` is one of `token_source.py`'s forms; `offline` None follows HF_HUB_OFFLINE. Raises `ModelLoadError`
    saying what stands in the way.
    """
    check_token_source(token_source)
    if not name:
        raise ModelLoadError("the name of a model must not be empty")
    path = _expand(name)
    exists = name != DEMO and _exists(path, name)
    if revision is not None and (name == DEMO or path.is_dir()):
        raise ModelLoadError(f"{name!r} has no revisions: only a hub id has")
    if revision is not None and not REVISION.fullmatch(revision):
        raise ModelLoadError(f"{revision!r} is not the name of a revision")
    if name == DEMO:
        return _demo()
    if path.is_dir():
        return path.resolve()
    if exists:
        raise ModelLoadError(f"{model_id(name)!r} is a file; a model is a folder or a hub id")
    if _looks_like_path(name):
        raise ModelLoadError(f"there is no such folder: {name}")
    return _download(name, revision, token_source, offline)


def model_id(name: str) -> str:
    """How a model is called in answers and lists: a hub id and "demo" as they are, of a path its last part."""
    path = _expand(name)
    try:
        if name == DEMO or not (_looks_like_path(name) or path.exists()):
            return name
        return path.resolve().name or name
    except (OSError, RuntimeError, ValueError):  # too long, a loop of links, a null: `resolve_model` tells
        return name


def _expand(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # there is no user of that name
        return Path(name)


def _exists(path: Path, name: str) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last for text that no path can hold
        return False
    except OSError as error:
        shown = name if len(name) <= _LONGEST_SHOWN else f"{name[:_LONGEST_SHOWN]}..."
        raise ModelLoadError(f"{shown!r} cannot be looked up: {error.strerror}") from None
    return True


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "~", os.sep)) or HUB_ID.fullmatch(name) is None


def _demo() -> Path:
    if not (DEMO_FOLDER / "config.json").is_file():
        raise ModelLoadError("the demo model is not part of this installation")
    return DEMO_FOLDER


def _download(name: str, revision: str | None, token_source: str, offline: bool | None) -> Path:
    from huggingface_hub import constants

    if offline is None:
        offline = constants.is_offline_mode()
    token = False if offline else read_token(token_source)
    folder = _snapshot(name, revision, token, offline, WANTED, UNWANTED)
    if not unnamed_files(folder, (".safetensors",)):
        # A snapshot is named after its commit: the weights are of the same one, whatever has been published since.
        _snapshot(name, folder.name, token, offline, OLD_WANTED, OLD_UNWANTED)
    return folder


def _snapshot(
    name: str,
    revision: str | None,
    token: str | bool | None,
    offline: bool,
    wanted: tuple[str, ...],
    unwanted: tuple[str, ...],
) -> Path:
    from huggingface_hub import errors, snapshot_download

    what = f"{name!r} at revision {revision!r}" if revision else repr(name)
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            token=token,
            local_files_only=offline,
            allow_patterns=list(wanted),
            ignore_patterns=list(unwanted),
        )
    except errors.GatedRepoError:
        raise ModelLoadError(f"access to {what} is restricted: accept its terms on the hub and give a token") from None
    except errors.RevisionNotFoundError:
        raise ModelLoadError(f"the hub knows no revision {revision!r} of {name!r}") from None
    except errors.RepositoryNotFoundError:
        raise ModelLoadError(f"neither a folder nor a hub repository that this token can see: {name!r}") from None
    except errors.LocalEntryNotFoundError:
        reason = "offline mode is on" if offline else "the hub cannot be reached"
        raise ModelLoadError(f"{what} is not in the cache, or not completely, and {reason}") from None
    except errors.HFValidationError:
        raise ModelLoadError(f"{name!r} is neither a folder nor a valid hub id") from None
    except errors.HfHubHTTPError as error:
        raise ModelLoadError(f"the hub answered {error.response.status_code} for {what}") from None
    except OSError as error:
        raise ModelLoadError(f"{what} cannot be downloaded: {error.strerror or type(error).__name__}") from None
    except errors.HTTPError as error:  # type: ignore[attr-defined]  # of httpx, whose name differs between versions
        raise ModelLoadError(f"the download of {what} broke off: {type(error).__name__}") from None
    return Path(folder)
