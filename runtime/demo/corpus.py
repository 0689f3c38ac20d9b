"""Conversations: exchanges put together under a system prompt and a list of declared functions."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace

from sirocco.runtime.demo.compute import PYTHON_NAMES, compute, python_tool, tool_of
from sirocco.runtime.demo.documents import fields_as_json, read, repeat
from sirocco.runtime.demo.exchange import Conversation, Exchange
from sirocco.runtime.demo.generic import Composer, several, sibling, single
from sirocco.runtime.demo.natural import (
    declare,
    disguised,
    everyday,
    everyday_followed,
    everyday_twice,
    families,
)
from sirocco.runtime.demo.operations import OPERATIONS
from sirocco.runtime.demo.patterns import patterned
from sirocco.runtime.demo.schemas import VERBS
from sirocco.runtime.demo.tools import Tool
from sirocco.runtime.demo.values import Split, Values
from sirocco.runtime.demo.world import NO_TOOL, decline, fact, talk

__all__ = ["MANNERS", "MIXTURE", "conversation", "distractors"]

SYSTEMS = (
    "You are a helpful assistant.", "You are a helpful assistant.", "You are a concise assistant.",
    "You are an assistant that uses tools.", "Answer the user.",
    "You are a friendly bot.", "Be brief.", "You are an expert. Use the functions when needed.", "You are Sirocco.",
    "Help the user with their task.",
)  # fmt: skip
Maker = Callable[[Values, Split], Exchange | list[Exchange]]
MIXTURE: dict[str, tuple[float, Maker]] = {
    "generic": (0.12, single),
    "pattern": (0.15, patterned),
    "everyday": (0.23, everyday),
    "parallel": (0.08, several),
    "parallel everyday": (0.10, everyday_twice),
    "follow-up": (0.02, everyday_followed),
    "compute": (0.12, lambda values, _: compute(values)),
    "fact": (0.07, lambda values, _: fact(values)),
    "talk": (0.03, lambda values, _: talk(values)),
    "decline": (0.04, lambda values, _: decline(values)),
    "no tool": (0.07, lambda values, schemas: untooled(values, schemas)),
    "read": (0.05, lambda values, _: read(values)),
    "copy": (0.04, lambda values, _: repeat(values)),
    "json": (0.04, lambda values, _: fields_as_json(values)),
}
LATE_SHARES = {  # of the end of training
    "generic": 0.13, "pattern": 0.20, "everyday": 0.27, "compute": 0.11, "parallel": 0.13, "parallel everyday": 0.16,
    "no tool": 0.065, "decline": 0.06,
}  # fmt: skip

PIRATE = (
    ("I am", "I be"),
    (" is ", " be "),
    (" are ", " be "),
    ("You", "Ye"),
    (" you", " ye"),
    (" my ", " me "),
    ("Hello", "Ahoy"),
)


def pirate(exchange: Exchange) -> Exchange:
    """The same exchange with its answer in a pirate's words; what is copied stays as it is."""
    if exchange.kind in ("json", "copy"):
        return exchange
    answer = exchange.answer
    for plain, salty in PIRATE:
        answer = answer.replace(plain, salty)
    return replace(exchange, answer=f"Arr! {answer} Yo ho!")


MANNERS: dict[str, Callable[[Exchange], Exchange]] = {"plain": lambda exchange: exchange, "pirate": pirate}


BROAD = {"search", "google", "run", "execute", "shell", "bash", "play", "open", "cat"}  # may stand for other functions


def untooled(values: Values, schemas: Split) -> Exchange:
    """A request for a function that is not declared."""
    maker = values.rng.choice((single, everyday, lambda v, _: compute(v)))
    exchange = maker(values, schemas)
    return Exchange("no tool", exchange.request, NO_TOOL, absent=exchange.tools)


def words_of(tool: Tool) -> set[str]:
    """The words of a function's name."""
    return set(tool.name.lower().replace("-", "_").replace(".", "_").split("_"))


def confusable(tool: Tool, others: Iterable[Tool]) -> bool:
    """Whether a request meant for one of `others` could as well mean `tool`."""
    words = words_of(tool)
    return any(
        (words - set(VERBS)) & words_of(other) or words <= words_of(other) or words_of(other) <= words
        for other in others
    )


def candidate(values: Values, schemas: Split) -> Tool:
    """Any function."""
    rng = values.rng
    draw = rng.random()
    if draw < 0.22:
        return patterned(values, schemas).tools[0]
    if draw < 0.44:
        return Composer(values, schemas).request(3).tool
    if draw < 0.82:
        family = rng.choice(families(values, schemas))
        return disguised(declare(family, rng), values, rng.choice(family.frames)).tool
    return python_tool(rng) if draw < 0.87 else tool_of(rng.choice(OPERATIONS), rng)[0]


def computes(tool: Tool) -> bool:
    """Whether a function is the Python tool or one of the operations."""
    return tool.name in PYTHON_NAMES or any(tool.name in operation.names for operation in OPERATIONS)


def distractors(values: Values, schemas: Split, wanted: list[Tool], absent: list[Tool], count: int) -> list[Tool]:
    """Up to `count` further functions that no request for `wanted` or `absent` could mean."""
    rng = values.rng
    found: list[Tool] = []
    known = [*wanted, *absent]
    python = any(tool.name in PYTHON_NAMES for tool in known)
    computing = any(computes(tool) for tool in known)
    for _ in range(count):
        twin = sibling(rng.choice(wanted).name, values) if wanted and rng.random() < 0.15 else None
        if twin is not None and all(twin.name != tool.name for tool in (*known, *found)):
            found.append(twin)
            continue
        tool = candidate(values, schemas)
        clash = (python and computes(tool)) or (computing and tool.name in PYTHON_NAMES)
        broad = bool(absent) and bool(words_of(tool) & BROAD)
        if not clash and not broad and not confusable(tool, [*known, *found]):
            found.append(tool)
    return found


def conversation(
    seed: str,
    values_split: Split,
    schemas: Split,
    kinds: tuple[str, ...] = (),
    *,
    turns: int | None = None,
    manner: str = "plain",
    late: bool = False,
) -> Conversation:
    """One conversation, a function of its arguments alone; `kinds` (default: all) are keys of MIXTURE.

    `late` is the mixture of the end of training, which is mostly of what tests speak of.
    """
    rng = random.Random(seed)
    values = Values(rng, values_split, late=late)
    names = kinds or tuple(MIXTURE)
    weights = [LATE_SHARES.get(name, MIXTURE[name][0]) if late else MIXTURE[name][0] for name in names]
    count = turns or rng.choices((1, 2, 3, 4), (0.45, 0.25, 0.18, 0.12))[0]
    exchanges: list[Exchange] = []
    tools: dict[str, Tool] = {}
    absent: list[Tool] = []
    while len(exchanges) < count:
        made = MIXTURE[rng.choices(names, weights)[0]][1](values, schemas)
        rounds = made if isinstance(made, list) else [made]
        fresh = [tool for tool in rounds[0].tools if tools.get(tool.name) != tool]
        if confusable_any(fresh, [*tools.values(), *absent]) or confusable_any(tools.values(), rounds[0].absent):
            continue
        tools.update({tool.name: tool for tool in fresh})
        absent.extend(rounds[0].absent)
        exchanges.extend(rounds)
    others = rng.choice((0, 0, 1, 1, 2, 3)) if tools else rng.choice((0, 0, 0, 1, 1, 3))
    declared = [*tools.values(), *distractors(values, schemas, list(tools.values()), absent, others)]
    rng.shuffle(declared)
    system = rng.choice(SYSTEMS) if rng.random() < 0.25 else None
    # Telling a result is learned soon, calling is not: training leaves most of the last answers out.
    unanswered = values_split == "train" and manner == "plain" and rng.random() < 0.65
    return Conversation([MANNERS[manner](exchange) for exchange in exchanges], declared, system, unanswered)


def confusable_any(tools: Iterable[Tool], others: Iterable[Tool]) -> bool:
    """Whether any function of one list could be taken for one of the other, by meaning or by being Python."""
    pool = list(others)
    python = any(tool.name in PYTHON_NAMES for tool in pool)
    computing = any(computes(tool) for tool in pool)
    return any(
        confusable(tool, pool) or (python and computes(tool)) or (computing and tool.name in PYTHON_NAMES)
        for tool in tools
    )
