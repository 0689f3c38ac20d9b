"""Finding the end of a JSON value in text that arrives in pieces, refusing it at the first wrong character."""

import re
from collections.abc import Callable

MAX_DEPTH = 128
JSON_SPACE = " \t\n\r"

_STRING_RUN = re.compile(r'[^"\\\x00-\x1f]*')
_SCALAR_RUN = re.compile(r"[-+.0-9A-Za-z]*")
_SCALAR = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null")
_HEX = frozenset("0123456789abcdefABCDEF")


class JsonError(ValueError):
    """The text is not JSON; `at` is where in the text being fed."""

    def __init__(self, at: int, message: str) -> None:
        super().__init__(message)
        self.at = at


class JsonScanner:
    """Recognises one JSON value (RFC 8259). `done` once it is complete.

    A bare number or word is only known to be complete at the character after it.
    """

    __slots__ = ("_closers", "_in_key", "_num_hex", "_scalar", "_step", "done")

    def __init__(self) -> None:
        self.done = False
        self._step: Callable[[str, int], int] = self._value
        self._closers: list[str] = []  # of the open containers
        self._in_key = False
        self._num_hex = 0
        self._scalar = ""

    def feed(self, text: str, start: int) -> int:
        """Read `text` from `start`; returns where the value ended, or len(text). Raises `JsonError`."""
        while start < len(text) and not self.done:
            start = self._step(text, start)
        return start

    def _value(self, text: str, at: int) -> int:
        char = text[at]
        if char in JSON_SPACE:
            return at + 1
        if char == '"':
            self._step = self._string
        elif char == "{":
            self._open(at, "}", self._first_key)
        elif char == "[":
            self._open(at, "]", self._first_item)
        elif char in "-0123456789tfn":
            self._scalar = ""
            self._step = self._bare
            return at
        else:
            raise JsonError(at, f"unexpected {char!r}")
        return at + 1

    def _open(self, at: int, closer: str, step: Callable[[str, int], int]) -> None:
        if len(self._closers) == MAX_DEPTH:
            raise JsonError(at, "nested too deeply")
        self._closers.append(closer)
        self._step = step

    def _first_item(self, text: str, at: int) -> int:
        if text[at] == "]":
            return self._close(at)
        if text[at] not in JSON_SPACE:
            self._step = self._value
            return at
        return at + 1

    def _first_key(self, text: str, at: int) -> int:
        return self._close(at) if text[at] == "}" else self._key(text, at)

    def _key(self, text: str, at: int) -> int:
        if text[at] == '"':
            self._in_key = True
            self._step = self._string
        elif text[at] not in JSON_SPACE:
            raise JsonError(at, f"expected a key, got {text[at]!r}")
        return at + 1

    def _colon(self, text: str, at: int) -> int:
        if text[at] == ":":
            self._step = self._value
        elif text[at] not in JSON_SPACE:
            raise JsonError(at, f"expected ':', got {text[at]!r}")
        return at + 1

    def _after(self, text: str, at: int) -> int:
        char = text[at]
        if char == self._closers[-1]:
            return self._close(at)
        if char == ",":
            self._step = self._key if self._closers[-1] == "}" else self._value
        elif char not in JSON_SPACE:
            raise JsonError(at, f"expected ',' or {self._closers[-1]!r}, got {char!r}")
        return at + 1

    def _close(self, at: int) -> int:
        self._closers.pop()
        self._end_value()
        return at + 1

    def _end_value(self) -> None:
        self.done = not self._closers
        self._step = self._after

    def _string(self, text: str, at: int) -> int:
        run = _STRING_RUN.match(text, at)
        assert run  # the pattern matches the empty string
        at = run.end()
        if at == len(text):
            return at
        if text[at] == "\\":
            self._step = self._escape
        elif text[at] != '"':
            raise JsonError(at, "control character in a string")
        elif self._in_key:
            self._in_key = False
            self._step = self._colon
        else:
            self._end_value()
        return at + 1

    def _escape(self, text: str, at: int) -> int:
        if text[at] == "u":
            self._num_hex = 4
            self._step = self._hex
        elif text[at] in '"\\/bfnrt':
            self._step = self._string
        else:
            raise JsonError(at, f"unknown escape {text[at]!r}")
        return at + 1

    def _hex(self, text: str, at: int) -> int:
        if text[at] not in _HEX:
            raise JsonError(at, f"expected a hexadecimal digit, got {text[at]!r}")
        self._num_hex -= 1
        if self._num_hex == 0:
            self._step = self._string
        return at + 1

    def _bare(self, text: str, at: int) -> int:
        run = _SCALAR_RUN.match(text, at)
        assert run  # the pattern matches the empty string
        self._scalar += run.group()
        if run.end() < len(text):
            if not _SCALAR.fullmatch(self._scalar):
                raise JsonError(run.end(), "not a number, true, false or null")
            self._end_value()
        return run.end()
