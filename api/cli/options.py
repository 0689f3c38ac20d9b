"""Flags that several verbs share, and how their values are read."""

import argparse
import os
import re
from pathlib import Path
from typing import Any

from sirocco.runtime.errors import ModelLoadError, RequestError
from sirocco.runtime.token_source import CACHE, KINDS, check_token_source

MAX_NUM_SEQS = 65536  # each has a row in every table of a step
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Flags about the model and its engine."""
    group = parser.add_argument_group("model")
    group.add_argument("-m", "--model", default="demo", help="a folder, a hub id, or demo (default)")
    group.add_argument("--arch", type=_arch, metavar="NAME", help="read it as this class or family, such as llama")
    group.add_argument("--revision", type=word, metavar="NAME", help="branch, tag or commit of a hub id (main)")
    token_help = f"token for the hub: {KINDS} (cache); prefer env, the process list shows a literal"
    group.add_argument("--token-source", type=_token_source, default=CACHE, metavar="SOURCE", help=token_help)
    group.add_argument("--offline", action="store_true", default=None, help="use what is downloaded already, no more")
    group.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    group.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    group.add_argument("--max-num-seqs", type=_num_seqs, default=64, metavar="N", help="computed at once (64)")
    group.add_argument("--kv-memory", type=num_bytes, metavar="SIZE", help="cache size, such as 4GiB or 512MiB")
    group.add_argument("--chunk-size", type=positive, metavar="TOKENS", help="most prompt tokens of one request a step")
    group.add_argument("--max-model-len", type=positive, metavar="TOKENS", help="shorten the context")
    group.add_argument("--no-prefix-caching", dest="prefix_caching", action="store_false")
    group.add_argument("--batch-invariant", action="store_true", help="bitwise equal results whatever the batch")


def engine_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The engine's options as given, by their names in `EngineOptions`."""
    names = (
        *("model", "arch", "dtype", "device", "max_num_seqs", "kv_memory"),
        *("chunk_size", "prefix_caching", "batch_invariant", "max_model_len"),
    )
    return {name: getattr(arguments, name) for name in names}


def hub_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """How a hub id is fetched, by the names that `AsyncEngine` and `resolve_model` share."""
    return {name: getattr(arguments, name) for name in ("revision", "token_source", "offline")}


def num_bytes(text: str) -> int:
    """A size such as 4GiB, 512MiB, 2G or 1000."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", text.strip(), re.IGNORECASE)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 4GiB or 512MiB")
    size = float(found[1]) * _UNITS[(found[2] or "").lower()]
    if not 1 <= size < 2**63:
        raise argparse.ArgumentTypeError("a size must be greater than 0 and less than 8 EiB")
    return int(size)


def positive(text: str) -> int:
    """An integer of at least 1."""
    value = int(text) if re.fullmatch(r"\d{1,18}", text) else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return value


def _num_seqs(text: str) -> int:
    value = positive(text)
    if value > MAX_NUM_SEQS:
        raise argparse.ArgumentTypeError(f"at most {MAX_NUM_SEQS} sequences can be computed at once")
    return value


def positive_list(text: str) -> list[int]:
    """Positive integers with commas between them."""
    return [positive(part.strip()) for part in text.split(",")]


def seconds(text: str) -> float:
    """A duration in seconds, 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def word(text: str) -> str:
    """Any text that is not blank."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def api_key(text: str) -> str:
    """A key as a client can send it; errors do not repeat it."""
    if text != word(text).strip() or not text.isprintable():
        raise argparse.ArgumentTypeError("must have no spaces around it and no characters that cannot be printed")
    return text


def _arch(text: str) -> str:
    from sirocco.runtime.models.registry import class_name  # and with it every family

    try:
        return class_name(word(text))
    except ModelLoadError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _token_source(text: str) -> str:
    try:
        check_token_source(text)
    except ModelLoadError as error:  # which does not repeat the text: it may be a token
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def data_dir(given: str | None) -> Path:
    """The folder for what must survive; made when it is missing, private to the user."""
    path = Path(given) if given else user_folder("XDG_DATA_HOME", ".local/share") / "sirocco"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"the data folder cannot be made: {error.strerror}") from None
    return path


def user_folder(variable: str, below_home: str) -> Path:
    """The folder that an environment variable names, else the usual one. Raises `RequestError` without a home."""
    named = os.environ.get(variable)
    if named:
        return Path(named)
    try:
        return Path.home() / below_home
    except RuntimeError:
        raise RequestError(f"there is no home folder; set {variable}") from None
