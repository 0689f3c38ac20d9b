"""Generated tokens to text as it becomes final, and stop strings found in that text."""

import codecs
import re
from collections.abc import Sequence
from functools import lru_cache

from sirocco.runtime.text.tokenizer import Tokenizer

_MAX_HELD_TOKENS = 32  # of a text that ends in U+FFFD; no character takes more tokens


class Detokenizer:
    """Turns one sequence's token ids into text, piece by piece.

    What `push` and `finish` return, joined, is `tokenizer.decode` of all ids however they were split (for tokenizers
    without `byte_errors`: as near as decoding a window of recent tokens gets). No piece ends within a character.
    With `continues` the ids go on from a text before them, so a first space is kept.
    """

    __slots__ = ("_stream",)

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True, continues: bool = False) -> None:
        self._stream: _ByteStream | _WindowStream
        if tokenizer.byte_errors is not None:
            self._stream = _ByteStream(tokenizer, tokenizer.byte_errors, skip_special_tokens, continues)
        else:
            self._stream = _WindowStream(tokenizer, skip_special_tokens)

    def push(self, ids: Sequence[int]) -> str:
        """Text that became final with these ids."""
        return self._stream.push(ids)

    def finish(self) -> str:
        """The rest; bytes of an unfinished character become U+FFFD."""
        return self._stream.finish()


class _ByteStream:
    """For tokens whose bytes join to the text."""

    __slots__ = ("_errors", "_pending", "_pieces", "_strip")

    def __init__(self, tokenizer: Tokenizer, errors: str, skip_special_tokens: bool, continues: bool) -> None:
        self._pieces = tokenizer.pieces(skip_special_tokens)
        self._errors = errors
        self._pending = b""  # the first bytes of a character
        self._strip = tokenizer.strips_first_space and not continues

    def push(self, ids: Sequence[int]) -> str:
        pieces = self._pieces
        data = pieces[ids[0]] if len(ids) == 1 else b"".join([pieces[i] for i in ids])
        return self._decode(data, final=False)

    def finish(self) -> str:
        return self._decode(b"", final=True)

    def _decode(self, data: bytes, final: bool) -> str:
        if self._pending:
            data = self._pending + data
        text, used = codecs.utf_8_decode(data, self._errors, final)
        self._pending = data[used:]
        if self._strip and text:
            self._strip = False
            return text[1:] if text[0] == " " else text
        return text


class _WindowStream:
    """For decoders that look at neighbours: decodes the tokens of the last two pushes and returns what is new."""

    __slots__ = ("_ids", "_num_shown", "_skip", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._ids: list[int] = []
        self._num_shown = 0  # how many of them are shown already and kept as context only

    def push(self, ids: Sequence[int]) -> str:
        hidden = self._tokenizer.hidden_ids if self._skip else frozenset()
        self._ids += [i for i in ids if i not in hidden]
        text = self._new_text()
        if not text or (text.endswith("\ufffd") and len(self._ids) - self._num_shown < _MAX_HELD_TOKENS):
            return ""
        self._ids = self._ids[self._num_shown :]
        self._num_shown = len(self._ids)
        return text

    def finish(self) -> str:
        text = self._new_text()
        self._num_shown = len(self._ids)
        return text

    def _new_text(self) -> str:
        shown = self._tokenizer.decode(self._ids[: self._num_shown], self._skip)
        return self._tokenizer.decode(self._ids, self._skip)[len(shown) :]


@lru_cache(maxsize=64)
def _stop_patterns(stops: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What finds one of the stops and what finds one of their first characters; the same for all choices."""
    first_chars = sorted({stop[0] for stop in stops})
    return re.compile("|".join(map(re.escape, stops))), re.compile("|".join(map(re.escape, first_chars)))


class StopChecker:
    """Watches text that arrives in pieces for stop strings; the result does not depend on the pieces.

    The match is the one that begins first, of those the shortest. While a stop that began earlier may still complete,
    a finished one is not reported; `finish` settles it, so look at `matched` after it. `matched` is the stop found.
    """

    __slots__ = ("_first_chars", "_held", "_pattern", "_stops", "matched")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(sorted({stop for stop in stops if stop}, key=len))
        self._held = ""
        self.matched: str | None = None
        if self._stops:
            self._pattern, self._first_chars = _stop_patterns(self._stops)

    @property
    def ended(self) -> bool:
        return self.matched is not None

    def push(self, text: str) -> tuple[str, bool]:
        """The text that may be shown, and whether a stop was found (then nothing more will ever be shown)."""
        if not self._stops:
            return text, False
        if self.matched is not None:
            return "", True
        text = self._held + text
        match = self._pattern.search(text)
        end = match.start() if match else len(text)
        open_at = self._open_stop(text, end)
        if match is None or open_at < end:
            self._held = text[open_at:]
            return text[:open_at], False
        self._held, self.matched = "", match.group()
        return text[:end], True

    def finish(self) -> str:
        """What was held back, up to a stop within it."""
        held, self._held = self._held, ""
        match = self._pattern.search(held) if held else None
        if match is None:
            return held
        self.matched = match.group()
        return held[: match.start()]

    def _open_stop(self, text: str, before: int) -> int:
        """Where the text's end begins a stop that more text may complete; `before` when nowhere in front of it."""
        earliest = max(0, len(text) - len(self._stops[-1]) + 1)
        for candidate in self._first_chars.finditer(text, earliest, before):
            tail = text[candidate.start() :]
            if any(stop.startswith(tail) for stop in self._stops):
                return candidate.start()
        return before
