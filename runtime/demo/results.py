"""What tools give back, and how the model tells it."""

from __future__ import annotations

import json
from collections.abc import Callable

from sirocco.runtime.demo.lexicon import words
from sirocco.runtime.demo.tools import dumps
from sirocco.runtime.demo.values import Values

__all__ = ["invent", "report"]

KEYS = words("""
status id total count price temperature humidity distance duration rate score balance title author city country
name date time level speed weight height size color owner state city_code order_id ticket_id message summary
condition location address phone email stock quantity discount tax rating rank version language genre album year
month day length width volume currency amount confirmation reference room seat gate platform delay arrival
departure winner probability category topic label priority
""")
HELD_OUT_KEYS = words("""
altitude depth pressure voltage mileage calories salary age brand carrier terminal queue_length zip_code
color_code wind_speed last_seen battery_level
""")
WRAPPERS = ("result", "output", "stdout", "value", "answer")
STATES = words("""
ok done success confirmed pending open closed active sent saved created deleted updated ready shipped
""")
FAULTS = (
    "not found", "timeout", "permission denied", "invalid value", "service unavailable", "out of range", "unknown name",
    "no results", "rate limit reached", "connection lost", "already exists", "quota exceeded", "file is empty",
    "bad format", "no such user", "division by zero",
)  # fmt: skip


def joined(parts: list[str]) -> str:
    """Parts as an English list."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def plain(value: object) -> str:
    """A JSON value as the answer spells it: strings bare, the rest as JSON."""
    return value if isinstance(value, str) else dumps(value)


def told(result: str) -> tuple[str, tuple[str, ...]]:
    """The sentence that tells one result, without its full stop, and the facts in it."""
    if result.startswith("Error: "):
        fault = result.removeprefix("Error: ")
        return f"the tool failed: {fault}", (fault,)
    try:
        value = json.loads(result)
    except ValueError:
        return f"the result is {result.strip()}", (result.strip(),)
    if isinstance(value, dict) and "error" in value:
        return f"the tool failed: {value['error']}", (str(value["error"]),)
    if isinstance(value, dict) and len(value) == 1 and next(iter(value)) in WRAPPERS:
        value = next(iter(value.values()))
        value = value.strip() if isinstance(value, str) else value
    if isinstance(value, dict):
        facts = tuple(plain(item) for item in value.values())
        return joined([f"the {key.replace('_', ' ')} is {plain(item)}" for key, item in value.items()]), facts
    if isinstance(value, list):
        facts = tuple(plain(item) for item in value)
        return "the results are " + joined(list(facts)) if value else "there are no results", facts
    return f"the result is {plain(value)}", (plain(value),)


def report(results: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The answer that tells the results in order, and the facts it has to contain."""
    parts = [told(result) for result in results]
    facts = tuple(fact for _, found in parts for fact in found)
    if len(parts) == 1:
        sentence = parts[0][0]
        return sentence[0].upper() + sentence[1:] + ".", facts
    ordinals = ("First", "Second", "Third", "Fourth")
    return " ".join(f"{ordinal}: {sentence}." for ordinal, (sentence, _) in zip(ordinals, parts, strict=False)), facts


def invent(values: Values) -> str:
    """The result of a tool that does not exist: JSON, a scalar, a list, or an error."""
    rng = values.rng
    draw = rng.random()
    if draw < 0.08:
        fault = rng.choice(FAULTS) if rng.random() < 0.5 else values.words_phrase()
        return dumps({"error": fault}) if rng.random() < 0.5 else f"Error: {fault}"
    scalars: tuple[Callable[[], object], ...] = (
        values.number,
        values.number,
        values.word,
        values.name,
        values.city,
        values.code,
        values.words_phrase,
        values.date,
        values.time,
        lambda: rng.choice(STATES),
        lambda: rng.random() < 0.5,
    )
    if draw < 0.3:
        return plain(rng.choice(scalars)())
    if draw < 0.38:
        make = rng.choice(scalars[:5])
        return dumps([make() for _ in range(rng.randint(1, 4))])
    keys = HELD_OUT_KEYS if values.split == "test" and rng.random() < 0.5 else KEYS
    chosen = rng.sample(keys, rng.choice((1, 1, 2, 2, 2, 3, 3, 4)))
    if values.split == "train":  # coined names, so that keys are copied and not known by heart
        chosen = [values.word() if rng.random() < 0.4 else key for key in chosen]
    found = {key: rng.choice(STATES) if key in ("status", "state") else rng.choice(scalars)() for key in chosen}
    return dumps(found)
