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

__all__ = ["MANNERS", "MIXTURE", "bundle", "conversation", "distractors"]

SYSTEMS = (
    "You are a helpful assistant.", "You are a helpful assistant.", "You are a concise assistant.",
    "You are an assistant that uses tools.", "Answer the user.",
    "You are a friendly bot.", "Be brief.", "You are an expert. Use the functions when needed.", "You are Sirocco.",
    "Help the user with their task.",
)  # fmt: skip
BUNDLED = 0.8  # of the documents of training
MOST_REQUESTS = 6  # of such a one
REPEATED = 0.5  # of its requests, once something has been asked for: for the same functions in other words
CONTINUED = 0.25  # of its requests: after another one rather than beside it
# Of conversations of training, alone and in bundles, end with calls: telling a result is learned soon, calling is not.
UNANSWERED, BUNDLED_UNANSWERED = 0.65, 0.85
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
    "generic": 0.13, "pattern": 0.20, "everyday": 0.27, "compute": 0.13, "parallel": 0.15, "parallel everyday": 0.19,
    "no tool": 0.09, "decline": 0.07, "read": 0.06, "json": 0.05,
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
    talk = Talk(values, schemas, names, weights)
    exchanges: list[Exchange] = []
    while len(exchanges) < count:
        exchanges += talk.rounds()
    declared, system = talk.declared(), talk.system()
    unanswered = values_split == "train" and manner == "plain" and rng.random() < UNANSWERED
    return Conversation([MANNERS[manner](exchange) for exchange in exchanges], declared, system, unanswered)


def bundle(seed: str, *, manner: str = "plain", late: bool = False) -> list[Conversation]:
    """Conversations of training that declare the same functions under the same system prompt; a function of the seed.

    Most of a short conversation are its declarations: here they are read for several requests.
    """
    rng = random.Random(seed)
    if manner != "plain" or rng.random() > BUNDLED:
        return [conversation(seed, "train", "train", manner=manner, late=late)]
    values = Values(rng, "train", late=late)
    weights = [LATE_SHARES.get(name, share) if late else share for name, (share, _) in MIXTURE.items()]
    talk = Talk(values, "train", tuple(MIXTURE), weights)
    asked: list[list[Exchange]] = []
    for _ in range(rng.randint(2, MOST_REQUESTS)):
        repeats = [rounds[0].again for rounds in asked if rounds[0].again is not None]
        rounds = [rng.choice(repeats)()] if repeats and rng.random() < REPEATED else talk.rounds()
        if asked and rng.random() < CONTINUED:
            asked[-1] += rounds
        else:
            asked.append(rounds)
    declared, system = talk.declared(), talk.system()
    return [Conversation(exchanges, declared, system, rng.random() < BUNDLED_UNANSWERED) for exchanges in asked]


class Talk:
    """What is asked for under one list of declared functions, and that list."""

    def __init__(self, values: Values, schemas: Split, kinds: tuple[str, ...], weights: list[float]) -> None:
        self.values, self.schemas, self.kinds, self.weights = values, schemas, kinds, weights
        self.tools: dict[str, Tool] = {}
        self.absent: list[Tool] = []

    def rounds(self) -> list[Exchange]:
        """The next exchange, or one with those that follow from it, of any kind."""
        while True:
            made = MIXTURE[self.values.rng.choices(self.kinds, self.weights)[0]][1](self.values, self.schemas)
            rounds = made if isinstance(made, list) else [made]
            fresh = [tool for tool in rounds[0].tools if self.tools.get(tool.name) != tool]
            known = list(self.tools.values())
            if confusable_any(fresh, [*known, *self.absent]) or confusable_any(known, rounds[0].absent):
                continue
            self.tools.update({tool.name: tool for tool in fresh})
            self.absent.extend(rounds[0].absent)
            return rounds

    def declared(self) -> list[Tool]:
        """What has been asked for and some other functions, in any order."""
        rng, known = self.values.rng, list(self.tools.values())
        others = rng.choice((0, 0, 1, 1, 2, 3)) if known else rng.choice((0, 0, 0, 1, 1, 3))
        declared = [*known, *distractors(self.values, self.schemas, known, self.absent, others)]
        rng.shuffle(declared)
        return declared

    def system(self) -> str | None:
        """A system prompt, now and then."""
        rng = self.values.rng
        return rng.choice(SYSTEMS) if rng.random() < 0.25 else None


def confusable_any(tools: Iterable[Tool], others: Iterable[Tool]) -> bool:
    """Whether any function of one list could be taken for one of the other, by meaning or by being Python."""
    pool = list(others)
    python = any(tool.name in PYTHON_NAMES for tool in pool)
    computing = any(computes(tool) for tool in pool)
    return any(
        confusable(tool, pool) or (python and computes(tool)) or (computing and tool.name in PYTHON_NAMES)
        for tool in tools
    )
