"""The tokenizer every other module sees: text to ids, ids to text, and the exact bytes of each token."""

import codecs
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from sirocco.runtime.errors import ModelLoadError, RequestError
from sirocco.runtime.text.tokenizer_config import NAMED_TOKENS, read_tokenizer_config

EACH_BYTE = "sirocco.each_byte"  # codec error handler: one U+FFFD per bad byte, as sentencepiece decodes byte tokens


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(EACH_BYTE, _replace_each_byte)


class TokenBytes(dict[int, bytes]):
    """Bytes by token id, computed when first asked for; an id without a token has none."""

    __slots__ = ("_bytes_of", "_size")

    def __init__(self, bytes_of: Callable[[int], bytes], size: int) -> None:
        super().__init__()
        self._bytes_of = bytes_of
        self._size = size

    def __missing__(self, token_id: int) -> bytes:
        if not 0 <= token_id < self._size:
            return b""
        piece = self[token_id] = self._bytes_of(token_id)
        return piece


class Tokenizer(ABC):
    """A vocabulary with its rules. Instances may be used from several threads.

    `vocab_size` is the highest id + 1, added tokens included. `byte_errors` names the codec error handler under which
    decoding equals the joined bytes of the tokens, and is None where it does not (WordPiece and the like).
    `hidden_ids` are the special tokens that decoding leaves out when it is to skip them.
    `strips_first_space` says that a space at the very start of a text is an artefact of encoding and not decoded.
    """

    vocab_size: int
    special_ids: frozenset[int]
    hidden_ids: frozenset[int]
    special_tokens: Mapping[str, str]
    byte_errors: str | None
    strips_first_space: bool

    def _prepare(self, vocab_size: int, named: Mapping[str, str], special_ids: frozenset[int]) -> None:
        """Set what both kinds of tokenizer share; `_bytes_of` and `token_id` must work already."""
        self.vocab_size = vocab_size
        self.special_ids = self.hidden_ids = special_ids
        self.special_tokens = dict(named)
        self.bos_token, self.eos_token, self.unk_token, self.pad_token = (named.get(name) for name in NAMED_TOKENS)
        self.bos_id, self.eos_id, self.unk_id, self.pad_id = (
            None if (text := named.get(name)) is None else self.token_id(text) for name in NAMED_TOKENS
        )
        self._every_piece = TokenBytes(self._bytes_of, vocab_size)
        self._text_piece = TokenBytes(lambda i: b"" if i in self.hidden_ids else self._bytes_of(i), vocab_size)

    def show(self, tokens: Iterable[str]) -> None:
        """Let decoding keep these tokens though they are special, for a parser that looks for them in the text."""
        self.hidden_ids = self.hidden_ids.difference(map(self.token_id, tokens))
        self._text_piece.clear()

    @abstractmethod
    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. Raises `RequestError` when it is not valid Unicode (lone surrogates)."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Token ids of each text; errors as `encode`."""

    @abstractmethod
    def token_id(self, token: str) -> int | None:
        """The id of a token by its name in the vocabulary, None when there is no such token."""

    @abstractmethod
    def _bytes_of(self, token_id: int) -> bytes:
        """The bytes of one token below `vocab_size`; empty where the vocabulary has a hole."""

    @abstractmethod
    def _decode_as_whole(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens included, where it is not the joined bytes of the tokens."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`, U+FFFD for bytes that are not UTF-8. Ids without a token are passed over."""
        if self.byte_errors is None:
            hidden = self.hidden_ids if skip_special_tokens else frozenset()
            return self._decode_as_whole([i for i in ids if 0 <= i < self.vocab_size and i not in hidden])
        pieces = self.pieces(skip_special_tokens)
        text = b"".join([pieces[i] for i in ids]).decode("utf-8", self.byte_errors)
        return text[1:] if self.strips_first_space and text.startswith(" ") else text

    def pieces(self, skip_special_tokens: bool) -> Mapping[int, bytes]:
        """Bytes by id for every integer; empty for hidden tokens when special ones are to be skipped."""
        return self._text_piece if skip_special_tokens else self._every_piece

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes that a token stands for, special tokens as their text; empty for an id without a token."""
        return self._every_piece[token_id]

    def token_text(self, token_id: int) -> str:
        """A token as text for people (log probabilities), U+FFFD where its bytes are not UTF-8 on their own."""
        return self._every_piece[token_id].decode("utf-8", "replace")


def byte_token(token: str) -> bytes | None:
    """The byte that a token of the form <0xNN> stands for, None for any other token."""
    if len(token) != 6 or not token.startswith("<0x") or token[5] != ">":
        return None
    try:
        return bytes.fromhex(token[3:5])
    except ValueError:
        return None


def refuse_surrogates(texts: Sequence[str]) -> None:
    """Raise `RequestError` when a text cannot be encoded as UTF-8."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RequestError("the text is not valid Unicode: it holds a lone surrogate") from None


SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model")


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load tokenizer.json, else a sentencepiece model, from a model folder.

    Raises `ModelLoadError` when there is neither, or a file is broken.
    """
    config = read_tokenizer_config(folder)
    if (folder / "tokenizer.json").is_file():
        from sirocco.runtime.text.fast import load_fast  # each backend is imported only by those who use it

        return load_fast(folder / "tokenizer.json", config)
    for name in SENTENCEPIECE_FILES:
        if (folder / name).is_file():
            from sirocco.runtime.text.spm import load_sentencepiece

            return load_sentencepiece(folder / name, config)
    names = ", ".join(("tokenizer.json", *SENTENCEPIECE_FILES))
    raise ModelLoadError(f"the model has no tokenizer: none of {names} is there")
