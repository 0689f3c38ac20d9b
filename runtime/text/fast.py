"""Tokenizers from tokenizer.json, through the `tokenizers` library."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.text.tokenizer import EACH_BYTE, Tokenizer, byte_token, refuse_surrogates
from sirocco.runtime.text.tokenizer_config import AddedToken, TokenizerConfig


def load_fast(path: Path, config: TokenizerConfig) -> "FastTokenizer":
    """Load a tokenizer.json. Raises `ModelLoadError` when the library refuses it."""
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for everything
        raise ModelLoadError(f"{path.name} cannot be loaded: {error}") from None
    return FastTokenizer(backend, config)


class FastTokenizer(Tokenizer):
    """A `tokenizers` pipeline: tokenizer.json decides, the folder's other files add tokens and mark special ones."""

    def __init__(self, backend: tokenizers.Tokenizer, config: TokenizerConfig) -> None:
        backend.no_truncation()  # limits baked into the file are the trainer's, not the model's
        backend.no_padding()
        _add_tokens(backend, config)
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self._spelling = _spelling(json.loads(backend.decoder.__getstate__()) if backend.decoder else None)
        self._added = {token_id: self._bytes_of_added(token) for token_id, token in added.items()}
        self.byte_errors = self._spelling.errors if self._spelling else None
        self.strips_first_space = self._spelling is not None and self._spelling.strips_first_space
        vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self._prepare(vocab_size, config.named, frozenset(i for i, token in added.items() if token.special))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        try:
            return self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError:
            refuse_surrogates([text])
            raise

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        try:
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        except TypeError:
            refuse_surrogates(texts)
            raise
        encodings.reverse()
        # Freed one by one: all at once, other threads would stand still meanwhile.
        return [encodings.pop().ids for _ in range(len(encodings))]

    def token_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def _bytes_of(self, token_id: int) -> bytes:
        literal = self._added.get(token_id)
        if literal is not None:
            return literal
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        return self._spelling.to_bytes(token) if self._spelling else token.encode()

    def _bytes_of_added(self, token: tokenizers.AddedToken) -> bytes:
        """Special tokens stand for themselves; others the decoder takes as any token: Gemma's "▁▁" is two spaces."""
        if token.special or self._spelling is None or self._spelling.byte_level:
            return token.content.encode()
        return self._spelling.to_bytes(token.content)

    def _decode_as_whole(self, ids: Sequence[int]) -> str:
        return self._backend.decode(list(ids), skip_special_tokens=False)


def _add_tokens(backend: tokenizers.Tokenizer, config: TokenizerConfig) -> None:
    """Bring in tokens that only tokenizer_config.json knows, and let it say which tokens are special.

    A named token without an id in any file stays unknown: the model has no embedding for it.
    """
    present = backend.get_added_tokens_decoder()
    missing = [
        _backend_token(token)
        for token_id, token in sorted(config.added.items())
        if (known := present.get(token_id)) is None or known.content != token.content or known.special != token.special
    ]
    if missing:
        backend.add_tokens(missing)
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    unmarked = [
        text
        for text in (*config.named.values(), *config.extra_special)
        if text not in special and backend.token_to_id(text) is not None
    ]
    if unmarked:
        backend.add_special_tokens(unmarked)


def _backend_token(token: AddedToken) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.special,
    )


@dataclass(slots=True)
class _Spelling:
    """How a vocabulary entry spells bytes."""

    errors: str
    byte_level: bool = False
    replaced: tuple[tuple[str, str], ...] = ()
    byte_fallback: bool = False
    strips_first_space: bool = False

    def to_bytes(self, token: str) -> bytes:
        if self.byte_level:
            try:
                return bytes([_BYTE_OF[char] for char in token])
            except KeyError:
                return token.encode()  # not in the byte alphabet: the library takes such a token literally
        if self.byte_fallback and (byte := byte_token(token)) is not None:
            return byte
        for old, new in self.replaced:
            token = token.replace(old, new)
        return token.encode()


def _byte_alphabet() -> dict[str, int]:
    """The GPT-2 alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 onwards, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(rest)}


_BYTE_OF = _byte_alphabet()


def _spelling(decoder: dict[str, Any] | None) -> _Spelling | None:
    """Read a decoder pipeline as a spelling of bytes; None where its text is not the tokens' bytes joined."""
    if decoder is None:
        return None
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    if [step["type"] for step in steps] == ["ByteLevel"]:
        return _Spelling("replace", byte_level=True)
    spelling = _Spelling(EACH_BYTE)
    fused = False
    for step in steps:
        match step:
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if len(old) == 1:
                spelling.replaced += ((old, new),)
            case {"type": "Metaspace", "replacement": str(old), "prepend_scheme": scheme}:
                spelling.replaced += ((old, " "),)
                spelling.strips_first_space = scheme != "never"
            case {"type": "ByteFallback"}:
                spelling.byte_fallback = True
            case {"type": "Fuse"}:
                fused = True
            case {"type": "Strip", "content": " ", "start": 1, "stop": 0} if fused:
                spelling.strips_first_space = True
            case _:
                return None
    return spelling
