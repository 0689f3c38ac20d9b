"""Tokenizers from a sentencepiece model (tokenizer.model), through the `sentencepiece` library."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import sentencepiece

from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.text.tokenizer import EACH_BYTE, Tokenizer, byte_token, refuse_surrogates
from sirocco.runtime.text.tokenizer_config import AddedToken, TokenizerConfig

SPACE_MARK = "▁"
# Appended to a serialized ModelProto this is a second normalizer_spec (field 3) whose add_dummy_prefix (field 3) is
# false; protobuf merges repeated occurrences of a message, the last value winning.
_WITHOUT_PREFIX = b"\x1a\x02\x18\x00"
_ENDS_WITH_EOS = ("T5Tokenizer", "MT5Tokenizer", "UMT5Tokenizer")  # these end a text with eos and have no bos


def load_sentencepiece(path: Path, config: TokenizerConfig) -> "SentencePieceTokenizer":
    """Load a sentencepiece model. Raises `ModelLoadError` when it is not one."""
    try:
        return SentencePieceTokenizer(path.read_bytes(), config)
    except (OSError, RuntimeError):
        raise ModelLoadError(f"{path.name} is not a sentencepiece model") from None


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model with the added tokens and prefix rules of its folder.

    A model trained with a dummy prefix puts a space before the text. With `legacy` it does so again after every added
    token in the text; without (the default) only where the text itself begins.
    """

    byte_errors = EACH_BYTE

    def __init__(self, model: bytes, config: TokenizerConfig) -> None:
        self._prefixing = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._bare = sentencepiece.SentencePieceProcessor(model_proto=model + _WITHOUT_PREFIX)
        self._legacy = config.legacy is True
        self.strips_first_space = self._prefixing.normalize("a").startswith(SPACE_MARK)
        if config.add_prefix_space is False:
            self._prefixing, self.strips_first_space = self._bare, False
        self._num_pieces: int = self._bare.get_piece_size()
        named = self._names(config)
        self._added = self._added_tokens(config, named)
        self._id_of_added = {token.content: token_id for token_id, token in self._added.items()}
        self._added_in_text = _matcher(self._added)
        control = {i for i in range(self._num_pieces) if self._bare.is_control(i) or self._bare.is_unknown(i)}
        special = control - self._added.keys() | {i for i, token in self._added.items() if token.special}
        self._prepare(max(self._num_pieces, max(self._added, default=-1) + 1), named, frozenset(special))
        ends_with_eos = (config.tokenizer_class or "").removesuffix("Fast") in _ENDS_WITH_EOS
        add_bos = config.add_bos_token if config.add_bos_token is not None else not ends_with_eos
        add_eos = config.add_eos_token if config.add_eos_token is not None else ends_with_eos
        self._first = [self.bos_id] if add_bos and self.bos_id is not None else []
        self._last = [self.eos_id] if add_eos and self.eos_id is not None else []

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        try:
            ids = self._encode(text)
        except (RuntimeError, TypeError, UnicodeError):  # which of them depends on the release
            refuse_surrogates([text])
            raise
        return [*self._first, *ids, *self._last] if add_special_tokens else ids

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        return [self.encode(text, add_special_tokens) for text in texts]

    def token_id(self, token: str) -> int | None:
        if (added := self._id_of_added.get(token)) is not None:
            return added
        return self._piece_id(token)

    def _piece_id(self, piece: str) -> int | None:
        token_id: int = self._bare.piece_to_id(piece)
        return token_id if self._bare.id_to_piece(token_id) == piece else None  # an unknown piece maps to unk

    def _bytes_of(self, token_id: int) -> bytes:
        if (added := self._added.get(token_id)) is not None:
            return (added.content if added.special else added.content.replace(SPACE_MARK, " ")).encode()
        if token_id >= self._num_pieces:
            return b""
        piece: str = self._bare.id_to_piece(token_id)
        if self._bare.is_byte(token_id) and (byte := byte_token(piece)) is not None:
            return byte
        return piece.replace(SPACE_MARK, " ").encode()

    def _decode_as_whole(self, ids: Sequence[int]) -> str:
        raise AssertionError("sentencepiece tokens are always joined as bytes")

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for start, segment, added in self._segments(text):
            if segment:
                processor = self._prefixing if self._legacy or start == 0 else self._bare
                ids += processor.encode(segment)
            if added is not None:
                ids.append(added)
        return ids

    def _segments(self, text: str) -> Iterator[tuple[int, str, int | None]]:
        """Pieces of plain text with their offset, each with the id of the added token that ends it, if any."""
        start = 0
        for match in self._added_in_text.finditer(text) if self._added_in_text else ():
            if match.start() < start:
                continue  # swallowed as whitespace to the right of the token before
            token_id = self._id_of_added[match.group()]
            token = self._added[token_id]
            segment = text[start : match.start()]
            yield start, segment.rstrip() if token.lstrip else segment, token_id
            start = _spaces_end(text, match.end()) if token.rstrip else match.end()
        yield start, text[start:], None

    def _names(self, config: TokenizerConfig) -> dict[str, str]:
        """The named tokens: as the folder says, else as the sentencepiece model says."""
        sp = self._bare
        own = {"bos_token": sp.bos_id(), "eos_token": sp.eos_id(), "unk_token": sp.unk_id(), "pad_token": sp.pad_id()}
        return {name: sp.id_to_piece(i) for name, i in own.items() if i >= 0} | dict(config.named)

    def _added_tokens(self, config: TokenizerConfig, named: Mapping[str, str]) -> dict[int, AddedToken]:
        added = dict(config.added)
        listed = {token.content for token in added.values()}
        for text in (*named.values(), *config.extra_special):
            token_id = self._piece_id(text)
            if text not in listed and token_id is not None:
                added[token_id] = AddedToken(text, special=True)
        return added


_SPACES = re.compile(r"\s*")


def _spaces_end(text: str, start: int) -> int:
    match = _SPACES.match(text, start)
    assert match  # the pattern matches the empty string
    return match.end()


def _matcher(added: Mapping[int, AddedToken]) -> re.Pattern[str] | None:
    """A pattern that finds added tokens, the longest of those that begin at one place first."""
    if not added:
        return None
    tokens = sorted(added.values(), key=lambda token: len(token.content), reverse=True)
    choices = [rf"(?<!\w){re.escape(t.content)}(?!\w)" if t.single_word else re.escape(t.content) for t in tokens]
    firsts = "".join(sorted({re.escape(token.content[0]) for token in tokens}))
    return re.compile(f"(?=[{firsts}])(?:{'|'.join(choices)})")  # most positions fail on the first character
