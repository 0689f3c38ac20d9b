"""Where the token for the Hugging Face hub comes from, in one short text.

    literal:TOKEN   the token itself (others can see it in the list of processes)
    env:NAME        an environment variable
    path:FILE       a file that holds nothing else
    cache           HF_TOKEN, or what `hf auth login` stored
    none            no token, even where one is stored

No message and no log line ever holds a token, nor a source that is not understood: it may be one.
"""

import os
import re
from pathlib import Path

from sirocco.runtime.errors import ModelLoadError

CACHE = "cache"
KINDS = "literal:TOKEN, env:NAME, path:FILE, cache, none"
MAX_TOKEN = 4096  # characters
_TOKEN = re.compile(r"[\x21-\x7e]+")


def check_token_source(source: str) -> None:
    """Raise `ModelLoadError` unless this is one of the forms above; what it points to is not looked at."""
    kind, _, value = source.partition(":")
    if source not in (CACHE, "none") and not (kind in ("literal", "env", "path") and value):
        raise ModelLoadError(f"the token source must be one of {KINDS}")


def read_token(source: str) -> str | bool | None:
    """The token as huggingface_hub takes it: None for its own cache, False for none at all.

    Raises `ModelLoadError` where the source is not understood or holds no token.
    """
    check_token_source(source)
    kind, _, value = source.partition(":")
    match kind:
        case "literal":
            token = value
        case "env":
            token = os.environ.get(value, "")
        case "path":
            token = _read(value)
        case _:
            return None if source == CACHE else False
    if not _TOKEN.fullmatch(token.strip()):
        raise ModelLoadError(f"the token source ({kind}) holds no token: one word of printable characters is needed")
    return token.strip()


def _read(name: str) -> str:
    try:
        with Path(name).expanduser().open(encoding="utf-8") as file:
            return file.read(MAX_TOKEN + 1)[:MAX_TOKEN]
    except (OSError, UnicodeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ModelLoadError(f"the file of the token source cannot be read: {reason}") from None
