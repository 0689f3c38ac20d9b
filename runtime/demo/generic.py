"""Requests for functions of every kind, composed from verbs, nouns and parameters, so that the model reads schemas."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from sirocco.runtime.demo.exchange import Exchange
from sirocco.runtime.demo.lexicon import (
    BOOLEAN_PARAMETERS,
    HELD_OUT_NOUNS,
    HELD_OUT_NUMBER,
    HELD_OUT_TEXT,
    NOUNS,
    NUMBER_PARAMETERS,
    TEXT_PARAMETERS,
)
from sirocco.runtime.demo.patterns import stand_in
from sirocco.runtime.demo.phrasing import worded
from sirocco.runtime.demo.results import invent, report
from sirocco.runtime.demo.schemas import (
    ARTICLES,
    DESCRIPTIONS,
    ENUM_PARAMETERS,
    HELD_OUT_BOOLEAN,
    HELD_OUT_ENUM,
    HELD_OUT_VERBS,
    MARKED,
    NATURAL,
    NONSENSE,
    VERBS,
)
from sirocco.runtime.demo.tools import Call, Parameter, Tool
from sirocco.runtime.demo.values import Split, Value, Values
from sirocco.runtime.demo.wrappers import polite

__all__ = ["Request", "compose", "several", "sibling", "single"]


@dataclass(frozen=True, slots=True)
class Request:
    """A tool, an imperative clause that needs it, and the call it is due."""

    tool: Tool
    clause: str
    call: Call
    again: Callable[[], Request] | None = None  # the same function once more


LINK = "<||||||||and |also |just |only >"
DOUBLED = re.compile(r"\b(and|also|just|only|plus),? (and|plus|just|only)\b")  # links that meet


def spelled(value: Value, rng: random.Random) -> str:
    """A value as a user writes it; strings are sometimes quoted."""
    if isinstance(value, list):
        parts = [str(item) for item in value]
        return (
            ", ".join(parts) if rng.random() < 0.5 or len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
        )
    text = str(value)
    if isinstance(value, str) and rng.random() < 0.15:
        return f'"{text}"' if rng.random() < 0.6 else f"'{text}'"
    return text


def cased(name: str, rng: random.Random, style: int) -> str:
    """snake_case as the style has it: mostly as it is, else camelCase, or with another joiner."""
    if style < 8:
        return name
    head, *rest = name.split("_")
    return (
        head + "".join(part.capitalize() for part in rest) if style == 8 else name.replace("_", rng.choice((".", "-")))
    )


def pick(values: Values, split: Split, known: list[str], held_out: list[str], coined: float = 0.4) -> str:
    """A name that the split may use; in training often any word, so that names are copied, not known by heart."""
    if split == "test":
        return values.rng.choice(held_out)
    coin = values.split == "train" and values.rng.random() < coined
    return stand_in(values) if coin else values.rng.choice(known)


class Composer:
    """Composes one function with parameters and a request for it."""

    def __init__(self, values: Values, schemas: Split) -> None:
        self.values, self.rng, self.schemas = values, values.rng, schemas
        self.used: set[str] = set()

    def parameter(self) -> tuple[Parameter, Callable[[], tuple[Value, str]]]:
        """A parameter, and what draws a value for it and how the request says it."""
        rng, values = self.rng, self.values
        draw = rng.random()
        if draw < 0.4:
            kind = rng.choice([n for n in NATURAL if not self.used & set(n.names)] or NATURAL)
            name = rng.choice(kind.names)
            self.used.update(kind.names)

            def natural() -> tuple[Value, str]:
                value = kind.value(values)
                said = spelled(value, rng) if "'" not in "".join(kind.fragments) else str(value)
                if rng.random() < 0.3:
                    return value, self.marked(name, said)
                return value, worded(values, [LINK + fragment for fragment in kind.fragments]).format(said)

            return Parameter(name, kind.type), natural
        if draw < 0.62:
            name = pick(values, self.schemas, TEXT_PARAMETERS, HELD_OUT_TEXT)

            def text() -> tuple[Value, str]:
                value = values.text()
                return value, self.marked(name, spelled(value, rng))

            return Parameter(name, "string"), text
        if draw < 0.8:
            name = (
                values.pseudo()
                if rng.random() < 0.15
                else pick(values, self.schemas, NUMBER_PARAMETERS, HELD_OUT_NUMBER)
            )
            whole = rng.random() < 0.6

            def number() -> tuple[Value, str]:
                value = values.integer() if whole else values.number()
                return value, self.marked(name, str(value))

            return Parameter(name, "integer" if whole else "number"), number
        if draw < 0.88:
            table = HELD_OUT_ENUM if self.schemas == "test" else ENUM_PARAMETERS
            name = rng.choice(list(table))
            choices = list(table[name])
            if rng.random() < 0.3:
                choices = [values.word() for _ in range(rng.randint(2, 4))]
            rng.shuffle(choices)

            def choice() -> tuple[Value, str]:
                value = rng.choice(choices)
                return value, f"in {value}" if name.startswith("unit") else self.marked(name, value)

            return Parameter(name, "string", choices=tuple(choices)), choice
        if draw < 0.94:
            name = pick(values, self.schemas, BOOLEAN_PARAMETERS, HELD_OUT_BOOLEAN)

            def flag() -> tuple[Value, str]:
                value = rng.random() < 0.5
                on, off = ("with {} on", "with {} true", "make it {}"), ("with {} off", "with {} false", "not {}")
                return value, rng.choice(on if value else off).format(name.replace("_", " "))

            return Parameter(name, "boolean"), flag
        name = pick(values, self.schemas, TEXT_PARAMETERS, HELD_OUT_TEXT) + "s"
        numbers = rng.random() < 0.4

        def several_values() -> tuple[Value, str]:
            many: Value = (
                [values.integer() for _ in range(rng.randint(2, 4))]
                if numbers
                else [values.word() for _ in range(rng.randint(2, 4))]
            )
            return many, self.marked(name, spelled(many, rng))

        return Parameter(name, "array", items="integer" if numbers else "string"), several_values

    def marked(self, name: str, said: str) -> str:
        """A fragment that names the parameter."""
        spoken = name.replace("_", " ") if self.rng.random() < 0.8 else name
        return worded(self.values, MARKED).format(p=spoken, v=said)

    def request(self, most: int = 4) -> Request:
        """A function of up to `most` parameters, and a clause and call for it."""
        rng = self.rng
        name, description, clause, speak = self.subject()
        count = rng.choice((0, 1, 1, 1, 1, 2, 2, 2, 3, 3)) if most > 1 else 1
        style = rng.randrange(10)
        parameters: list[Parameter] = []
        arguments: dict[str, Value] = {}
        fragments: list[str] = []
        sayings: list[Callable[[], tuple[Value, str]]] = []
        names: set[str] = set()
        for _ in range(min(count, most)):
            parameter, say = self.parameter()
            value, fragment = say()
            if parameter.name in names:
                continue
            names.add(parameter.name)
            optional = bool(parameters) and rng.random() < 0.35
            shown = cased(parameter.name, rng, 8) if style == 8 else parameter.name
            parameters.append(Parameter(shown, parameter.type, not optional, parameter.choices, parameter.items))
            sayings.append(say)
            if not optional or rng.random() < 0.6:
                arguments[shown] = value
                fragments.append(fragment)
        text = self.joined(clause, fragments)
        tool = Tool(cased(name, rng, style), description, tuple(parameters))

        def again() -> Request:
            due: dict[str, Value] = {}
            told: list[str] = []
            for parameter, say in zip(parameters, sayings, strict=True):
                if parameter.required or rng.random() < 0.6:
                    due[parameter.name], fragment = say()
                    told.append(fragment)
            return Request(tool, self.joined(speak(), told), Call(tool.name, due), again)

        return Request(tool, text, Call(tool.name, arguments), again)

    def joined(self, clause: str, fragments: list[str]) -> str:
        """A clause with what it says of parameters, in any order."""
        rng = self.rng
        if rng.random() < 0.3:
            rng.shuffle(fragments)
        joiner = rng.choice((" ", ", ", ", ", " and ", " and "))
        return DOUBLED.sub(r"\2", f"{clause} {joiner.join(fragments)}".strip()).replace(" :", ":")

    def subject(self) -> tuple[str, str, str, Callable[[], str]]:
        """A function's name, its description, the clause that asks for it, and what draws another one."""
        rng, values = self.rng, self.values
        if rng.random() < 0.08:
            name = f"{values.pseudo()}_{values.pseudo()}" if rng.random() < 0.6 else values.pseudo()
            spoken = name.replace("_", " ") if rng.random() < 0.5 else name
            described = f"The {values.pseudo()} function" if rng.random() < 0.5 else ""

            def command() -> str:
                return f"{rng.choice(NONSENSE)} {spoken}"

            return name, described, command(), command
        verbs = {**VERBS, **HELD_OUT_VERBS} if self.schemas == "test" and rng.random() < 0.3 else VERBS
        verb = rng.choice(list(verbs))
        noun = pick(values, self.schemas, NOUNS, HELD_OUT_NOUNS)
        form = rng.choice(DESCRIPTIONS)
        description = form.format(verb=verb.capitalize(), lower=verb, noun=noun)

        def request() -> str:
            said = verb if rng.random() < 0.5 else rng.choice(verbs[verb])
            article = rng.choice(ARTICLES)
            if said.endswith((" all", " new")):
                article = ""
            return f"{said} {article} {noun}".replace("  ", " ")

        clause = request()
        name = f"{verb}_{noun}" if rng.random() < 0.85 else f"{noun}_{verb}"
        return name, description, clause, request


def sibling(name: str, values: Values) -> Tool | None:
    """A function for the same noun as `name` whose verb no request for `name` uses, if name is verb_noun."""
    rng = values.rng
    known = VERBS | HELD_OUT_VERBS
    verb, _, noun = name.partition("_")
    if verb not in known or not noun:
        return None
    verbs = [other for other in VERBS if not set(VERBS[other]) & set(known[verb]) and other not in known[verb]]
    other = rng.choice(verbs)
    template = Composer(values, "train").request(3).tool
    form = rng.choice(DESCRIPTIONS)
    return Tool(f"{other}_{noun}", form.format(verb=other.capitalize(), lower=other, noun=noun), template.parameters)


def compose(values: Values, schemas: Split, most: int = 4) -> Request:
    """One request for one composed function."""
    return Composer(values, schemas).request(most)


def again(values: Values, schemas: Split) -> list[Request]:
    """Two or three requests for the same function, each with its own value of its one parameter."""
    rng = values.rng
    composer = Composer(values, schemas)
    name, description, clause, _ = composer.subject()
    kind = rng.choice(NATURAL)
    parameter = Parameter(rng.choice(kind.names), kind.type)
    tool = Tool(name, description, (parameter,))
    fragment = worded(values, [LINK + fragment for fragment in kind.fragments])
    requests = []
    for i in range(rng.choice((2, 2, 2, 3))):
        value = kind.value(values)
        text = fragment.format(value)
        requests.append(Request(tool, f"{clause} {text}" if i == 0 else text, Call(name, {parameter.name: value})))
    return requests


def single(values: Values, schemas: Split) -> Exchange:
    """One request, one call."""
    return asked_for(values, compose(values, schemas))


def asked_for(values: Values, request: Request) -> Exchange:
    """The exchange for one request."""
    results = (invent(values),)
    answer, facts = report(results)
    text, more = polite(values, request.clause), request.again
    again = None if more is None else lambda: asked_for(values, more())
    return Exchange("generic", text, answer, (request.call,), results, facts, (request.tool,), again=again)


def several(values: Values, schemas: Split) -> Exchange:
    """One request that needs two or three calls in one turn."""
    rng = values.rng
    requests = again(values, schemas) if rng.random() < 0.5 else [compose(values, schemas, 2) for _ in range(2)]
    return asked_together(values, requests)


def asked_together(values: Values, requests: list[Request]) -> Exchange:
    """The exchange for several requests in one turn."""
    rng = values.rng
    if len({request.tool.name for request in requests}) == 1 or rng.random() < 0.6:
        joiner = rng.choice((" and ", " and ", " and also ", ", then "))
        clause = ", ".join(r.clause for r in requests[:-1]) + joiner + requests[-1].clause
        text = polite(values, clause)
    else:
        text = " ".join(polite(values, r.clause).rstrip(".?") + "." for r in requests)
    tools = {request.tool.name: request.tool for request in requests}
    results = tuple(invent(values) for _ in requests)
    answer, facts = report(results)
    calls, mores = tuple(r.call for r in requests), [r.again for r in requests]
    repeat = None if None in mores else lambda: asked_together(values, [more() for more in mores if more is not None])
    return Exchange("parallel", text, answer, calls, results, facts, tuple(tools.values()), again=repeat)
