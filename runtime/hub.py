"""From the name of a model to a folder on disk: the demo, a path, or a repository of the Hugging Face hub."""

import os
import re
from pathlib import Path

from sirocco.runtime.errors import ModelLoadError

DEMO = "demo"
DEMO_FOLDER = Path(__file__).parent / "data" / "demo"

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
WANTED = ("*.json", "*.safetensors", "*.model", "*.jinja", "tokenizer*", "vocab*", "merges.txt", "*.tiktoken")
# A second copy of the weights in the publisher's own layout, and files of folders that are not the model's.
UNWANTED = ("consolidated*", "*/*.safetensors", "original/*", "onnx/*", "openvino/*")


def resolve_model(
    name: str, revision: str | None = None, token: str | None = None, offline: bool | None = None
) -> Path:
    """The folder of a model: "demo", an existing folder, or a hub id, downloaded where it is not cached.

    `offline` None follows HF_HUB_OFFLINE. Raises `ModelLoadError` saying what stands in the way.
    """
    if name == DEMO:
        return _demo()
    if not name:
        raise ModelLoadError("the name of a model must not be empty")
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise ModelLoadError(f"{model_id(name)!r} is a file; a model is a folder or a hub id")
    if _looks_like_path(name):
        raise ModelLoadError(f"there is no such folder: {name}")
    return _download(name, revision, token, offline)


def model_id(name: str) -> str:
    """How a model is called in answers and lists: a hub id and "demo" as they are, of a path its last part."""
    if name == DEMO or not (_looks_like_path(name) or Path(name).expanduser().exists()):
        return name
    return Path(name).expanduser().resolve().name or name


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "~", os.sep)) or HUB_ID.fullmatch(name) is None


def _demo() -> Path:
    if not (DEMO_FOLDER / "config.json").is_file():
        raise ModelLoadError("the demo model is not part of this installation")
    return DEMO_FOLDER


def _download(name: str, revision: str | None, token: str | None, offline: bool | None) -> Path:
    from huggingface_hub import constants, errors, snapshot_download

    offline = constants.is_offline_mode() if offline is None else offline
    what = f"{name!r} at revision {revision!r}" if revision else repr(name)
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            token=token,
            local_files_only=offline,
            allow_patterns=list(WANTED),
            ignore_patterns=list(UNWANTED),
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
