"""What a model folder's JSON files say about its tokenizer beside the vocabulary itself."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sirocco.runtime.errors import ModelLoadError

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token matched literally in the text before the model's own segmentation sees it."""

    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """tokenizer_config.json, special_tokens_map.json and added_tokens.json as one.

    `named` maps bos_token, eos_token, unk_token and pad_token to their text where they are set; `added` maps ids to
    tokens. A flag is None where the files do not say.
    """

    named: Mapping[str, str] = field(default_factory=dict)
    extra_special: tuple[str, ...] = ()
    added: Mapping[int, AddedToken] = field(default_factory=dict)
    tokenizer_class: str | None = None
    legacy: bool | None = None
    add_prefix_space: bool | None = None
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file of a model folder, None without the file. Raises `ModelLoadError` when it is broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError):
        raise ModelLoadError(f"{path.name} is not readable as JSON") from None
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path.name} does not hold a JSON object")
    return value


def read_tokenizer_config(folder: Path) -> TokenizerConfig:
    """Read what `folder` says about special and added tokens; an empty configuration where it says nothing."""
    config = read_json(folder / "tokenizer_config.json") or {}
    fallback = read_json(folder / "special_tokens_map.json") or {}
    named: dict[str, str] = {}
    for name in NAMED_TOKENS:
        content = _content(config[name] if name in config else fallback.get(name))
        if content is not None:
            named[name] = content
    extra = _extra_special(config) or _extra_special(fallback)
    tokenizer_class = config.get("tokenizer_class")
    return TokenizerConfig(
        named=named,
        extra_special=extra,
        added=_added_tokens(config, read_json(folder / "added_tokens.json") or {}, {*named.values(), *extra}),
        tokenizer_class=tokenizer_class if isinstance(tokenizer_class, str) else None,
        legacy=_flag(config, "legacy"),
        add_prefix_space=_flag(config, "add_prefix_space"),
        add_bos_token=_flag(config, "add_bos_token"),
        add_eos_token=_flag(config, "add_eos_token"),
    )


def _content(value: object) -> str | None:
    """A token's text: files write it bare, or as an object with the matching rules beside it."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _flag(config: Mapping[str, Any], name: str) -> bool | None:
    value = config.get(name)
    return value if isinstance(value, bool) else None


def _extra_special(config: Mapping[str, Any]) -> tuple[str, ...]:
    found: list[str] = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        values = config.get(key)
        if isinstance(values, dict):
            values = list(values.values())
        if isinstance(values, list):
            found += [content for value in values if (content := _content(value)) is not None]
    return tuple(dict.fromkeys(found))


def _added_tokens(config: Mapping[str, Any], by_text: Mapping[str, Any], special: set[str]) -> dict[int, AddedToken]:
    added: dict[int, AddedToken] = {}
    for text, token_id in by_text.items():
        if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
            raise ModelLoadError(f"added_tokens.json gives the token {text!r} no valid id")
        if text:
            added[token_id] = AddedToken(text, special=text in special)
    decoder = config.get("added_tokens_decoder")
    if not isinstance(decoder, dict):
        return added
    for key, value in decoder.items():
        content = _content(value)
        if not key.isascii() or not key.isdigit() or content is None:
            raise ModelLoadError(f"tokenizer_config.json has a broken entry {key!r} in added_tokens_decoder")
        rules = value if isinstance(value, dict) else {}
        added[int(key)] = AddedToken(
            content,
            special=rules.get("special") is True or content in special,
            lstrip=rules.get("lstrip") is True,
            rstrip=rules.get("rstrip") is True,
            single_word=rules.get("single_word") is True,
            normalized=rules.get("normalized") is True,
        )
    return added
