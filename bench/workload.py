"""What a load test asks for: prompts, arrival times, limits for goodput."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from sirocco.runtime.errors import RequestError

GOODPUT_NAMES = ("ttft", "tpot", "itl", "e2el")
_VOCABULARY = """
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work number night point home water room mother area money story fact
month lot right study book eye job word business issue side kind head house service friend father power hour game line
end member law car city community name president team minute idea body information back parent face others level office
door health person art war history party result change morning reason research
"""
_WORDS = _VOCABULARY.split()


class DatasetLine(msgspec.Struct):
    """One line of a dataset: a prompt or messages, and how much to generate."""

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text for completions or messages for chat."""

    content: str | list[dict[str, Any]]
    max_tokens: int

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "\n".join(str(message.get("content") or "") for message in self.content)

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [{"role": "user", "content": self.content}] if isinstance(self.content, str) else self.content


def random_text(words: int, rng: random.Random) -> str:
    """Common English words, of which most tokenizers make one token each."""
    return " ".join(rng.choices(_WORDS, k=words))


def read_dataset(path: Path) -> list[DatasetLine]:
    """The lines of a JSON-lines file. Raises `RequestError` with the number of the line at fault."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise RequestError(f"the dataset {path} cannot be read: {error.strerror}") from None
    decoder = msgspec.json.Decoder(DatasetLine)
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = decoder.decode(line)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise RequestError(f"line {number} of the dataset: {error}") from None
        if not entry.prompt and not entry.messages:
            raise RequestError(f'line {number} of the dataset has neither "prompt" nor "messages"')
        found.append(entry)
    if not found:
        raise RequestError("the dataset is empty")
    return found


def from_dataset(lines: Sequence[DatasetLine], count: int, gen_len: int) -> list[Prompt]:
    """`count` prompts, going round when there are fewer lines."""
    chosen = (lines[i % len(lines)] for i in range(count))
    return [Prompt(line.messages or line.prompt or "", line.max_tokens or gen_len) for line in chosen]


def arrivals(rate: float | None, count: int, rng: random.Random) -> Iterator[float]:
    """Seconds after the start at which requests are due: a Poisson process, or all at once without a rate."""
    due = 0.0
    for _ in range(count):
        yield due
        due += rng.expovariate(rate) if rate is not None else 0.0


def parse_goodput(items: Sequence[str]) -> dict[str, float]:
    """Limits in milliseconds by name. Raises `RequestError` for other names and values."""
    limits = {}
    for item in items:
        name, _, value = item.partition(":")
        if name not in GOODPUT_NAMES:
            raise RequestError(f"--goodput knows {', '.join(GOODPUT_NAMES)}, got {item!r}")
        try:
            limit = float(value)
        except ValueError:
            limit = -1.0
        if not 0 <= limit < math.inf:
            raise RequestError(f"--goodput wants NAME:MILLISECONDS of 0 or more, got {item!r}")
        limits[name] = limit
    return limits
