"""Functions that people really declare, with the ways people really ask for them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial

from sirocco.runtime.demo.compute import asked
from sirocco.runtime.demo.exchange import Exchange
from sirocco.runtime.demo.families import FAMILIES, FURTHER_FAMILIES, HELD_OUT_FAMILIES
from sirocco.runtime.demo.families.family import Family
from sirocco.runtime.demo.lexicon import words
from sirocco.runtime.demo.patterns import stand_in
from sirocco.runtime.demo.phrasing import has_unseen, shared, worded
from sirocco.runtime.demo.results import invent, report
from sirocco.runtime.demo.tools import Call, Parameter, Tool, dumps
from sirocco.runtime.demo.values import Split, Value, Values

__all__ = ["declare", "disguised", "everyday", "everyday_followed", "everyday_twice", "families"]

KINDS: dict[str, tuple[str, Callable[[Values], Value]]] = {
    "city": ("string", Values.city),
    "name": ("string", Values.name),
    "fullname": ("string", Values.full_name),
    "email": ("string", Values.email),
    "date": ("string", Values.date),
    "time": ("string", Values.time),
    "code": ("string", Values.code),
    "file": ("string", Values.file),
    "word": ("string", Values.word),
    "phrase": ("string", Values.words_phrase),
    "text": ("string", Values.text),
    "int": ("integer", lambda v: v.integer(1)),
    "small": ("integer", lambda v: v.integer(1, 60)),
    "number": ("number", Values.number),
}


SEGMENT = re.compile(r"\[([^\]]*)\]")


def parameters_of(family: Family, rng: random.Random) -> tuple[list[Parameter], list[str]]:
    """A family's parameters under one choice of names, and their kinds."""
    variant = rng.choice((0, 0, 1, 2))
    parameters, kinds = [], []
    for entry in family.parameters.split():
        names, kind = entry.rstrip("?").split(":")
        options = names.split("|")
        choices = tuple(kind.split("/")) if "/" in kind else ()
        json_type = "string" if choices else KINDS[kind][0]
        if json_type == "integer" and rng.random() < 0.2:
            json_type = "number"
        name = options[min(variant, len(options) - 1)]
        parameters.append(Parameter(name, json_type, not entry.endswith("?"), choices))
        kinds.append(kind)
    return parameters, kinds


def fill(frame: str, said: list[str | None]) -> str:
    """A frame with the given values; a segment about an absent one is left out."""

    def segment(match: re.Match[str]) -> str:
        used = [said[int(digit)] for digit in re.findall(r"\{(\d)\}", match[1])]
        return match[1] if None not in used else ""

    return SEGMENT.sub(segment, frame).format(*said)


def fitting(family: Family, values: Values) -> str:
    """A result as such a function may return it."""
    if not family.result or values.rng.random() < 0.3:
        return invent(values)
    keys = [entry.split(":") for entry in family.result.split()]
    return dumps({key: KINDS[kind][1](values) for key, kind in keys})


@dataclass(frozen=True, slots=True)
class Declared:
    """A family under one choice of names."""

    family: Family
    tool: Tool
    kinds: list[str]
    others: Mapping[str, str] = field(default_factory=dict)  # words that stand for those of the frames


def declare(family: Family, rng: random.Random) -> Declared:
    """One declaration of a family."""
    parameters, kinds = parameters_of(family, rng)
    description = rng.choice(family.descriptions.split("|")) if rng.random() < 0.85 else ""
    return Declared(family, Tool(rng.choice(family.names.split("|")), description, tuple(parameters)), kinds)


PLAIN = words("""
a an and are at by can do does for from get give has have how i in into is it its me my of on one or our out set some
that the their there this to up use was we what when where which who will with you your list show find check add make
""")


@cache
def spelling(word: str) -> re.Pattern[str]:
    """What finds a word, its plural, or either with a capital."""
    return re.compile(rf"(?<![A-Za-z{{])({word}|{word.capitalize()})(?=s?(?![A-Za-z}}]))")


def renamed(text: str, others: Mapping[str, str]) -> str:
    """A text with words replaced by others."""
    for word, other in others.items():
        text = spelling(word).sub(other if "_" in text else partial(cased_like, other), text)
    return text


def cased_like(word: str, match: re.Match[str]) -> str:
    """A word with a capital where what it replaces had one."""
    return word if match[1].islower() else word.capitalize()


def disguised(declared: Declared, values: Values, frame: str) -> Declared:
    """The same function, in part of the training under any other words, which a request by the frame then speaks of.

    So a request fits a function because the same words are in both, not because they have been seen together.
    """
    rng, tool = values.rng, declared.tool
    if values.split == "test" or rng.random() > (0.2 if values.late else 0.3):
        return declared
    named = " ".join((tool.name, tool.description, *(parameter.name for parameter in tool.parameters)))
    words_of = sorted({w for w in re.findall(r"[a-z]{3,}", named.lower()) if w not in PLAIN})
    asked_for = [w for w in words_of if spelling(w).search(frame)]
    if not asked_for:
        return declared
    others = {w: stand_in(values) for w in rng.sample(asked_for, rng.randint(1, len(asked_for)))}
    parameters = tuple(replace(p, name=renamed(p.name, others)) for p in tool.parameters)
    if len({p.name for p in parameters}) < len(parameters):
        return declared
    disguise = Tool(renamed(tool.name, others), renamed(tool.description, others), parameters)
    return replace(declared, tool=disguise, others=others)


def ask(declared: Declared, values: Values, frame: str) -> tuple[str, Call]:
    """A clause for a declared function and the call it is due."""
    rng = values.rng
    frame = renamed(frame, declared.others)
    said: list[str | None] = []
    arguments: dict[str, Value] = {}
    for i, (parameter, kind) in enumerate(zip(declared.tool.parameters, declared.kinds, strict=True)):
        if f"{{{i}}}" not in frame or (not parameter.required and rng.random() < 0.5):
            said.append(None)
            continue
        choices = [c for c in parameter.choices if c not in said]
        value = rng.choice(choices) if choices else KINDS[kind][1](values)
        arguments[parameter.name] = value
        quote = isinstance(value, str) and kind in ("phrase", "word") and "'" not in frame and rng.random() < 0.2
        said.append(f'"{value}"' if quote else str(value))
    return fill(frame, said), Call(declared.tool.name, arguments)


TESTED_FAMILIES = tuple(family for family in FAMILIES if has_unseen(family.frames))


def families(values: Values, schemas: Split) -> tuple[Family, ...]:
    """The families of one side of the schema split that the split of wordings can ask for."""
    if schemas == "test":
        return HELD_OUT_FAMILIES
    if values.split == "test":
        return TESTED_FAMILIES
    return FAMILIES if values.rng.random() < (0.55 if values.late else 0.42) else FURTHER_FAMILIES


def family_for(values: Values, schemas: Split) -> Family:
    """A family that can be asked for."""
    return values.rng.choice(families(values, schemas))


def everyday(values: Values, schemas: Split) -> Exchange:
    """One request for one everyday function."""
    declared = declare(family_for(values, schemas), values.rng)
    frame = worded(values, declared.family.frames, declared.family.more, novel=schemas == "test")
    return everyday_request(disguised(declared, values, frame), values, schemas, frame)


def reworded(declared: Declared, values: Values, schemas: Split, frame: str) -> str:
    """Another frame for a declared function, with all of its words where it goes by other ones; else the same."""
    for _ in range(20):
        other = worded(values, declared.family.frames, declared.family.more, novel=schemas == "test")
        if all(spelling(word).search(other) for word in declared.others):
            return other
    return frame


def everyday_request(declared: Declared, values: Values, schemas: Split, frame: str) -> Exchange:
    """One request for a declared function in a frame."""
    clause, call = ask(declared, values, frame)
    results = (fitting(declared.family, values),)
    answer, facts = report(results)

    def again() -> Exchange:
        return everyday_request(declared, values, schemas, reworded(declared, values, schemas, frame))

    text, more = asked(clause, values, frame), again if declared.kinds else None
    return Exchange("everyday", text, answer, (call,), results, facts, (declared.tool,), again=more)


FOLLOW_UPS = (
    "<And|and|now|And now|ok, and|ok, now|then|next|well, and|so, and> <for |||with |>{v}<?||.>",
    "<what about|how about|What about|How about|and what about|and how about|ok, what about|now what about> {v}<?|>",
    "<the same|do the same|do it|do that|and the same|again|once more|repeat that|try it|same thing|same question|"
    "do it again|please repeat it> <for|with|but for|but with|now with|now for> {v}<?|.||, please>",
    "{v}<?||, please|.| too| as well| too?>", "<I also need|also|and also|I need it for|and now|also try|"
        "now try> {v}<.||?>",
)  # fmt: skip
JOINERS = ("< and |, and | and also |, and also | and then |, then |; also |; | plus |, and after that |"
           " and after that "
           "| and, |, also | as well as >",)  # fmt: skip


def everyday_followed(values: Values, schemas: Split) -> list[Exchange]:
    """A request, and a second that only names the new value of its first parameter."""
    rng = values.rng
    family = rng.choice(
        [f for f in families(values, schemas) if ":" in f.parameters and "/" not in f.parameters.split()[0]]
    )
    frame = worded(values, family.frames, family.more, novel=schemas == "test")
    declared = disguised(declare(family, rng), values, frame)
    clause, call = ask(declared, values, frame)
    first = declared.tool.parameters[0].name
    value = KINDS[declared.kinds[0]][1](values)
    out = []
    text = worded(values, FOLLOW_UPS).format(v=value)
    for request, due in ((asked(clause, values), call), (text, Call(call.name, {**call.arguments, first: value}))):
        results = (fitting(family, values),)
        answer, facts = report(results)
        out.append(Exchange("everyday", request, answer, (due,), results, facts, (declared.tool,)))
    return out


def everyday_twice(values: Values, schemas: Split) -> Exchange:
    """Two requests in one turn, for the same function or for two."""
    rng = values.rng

    def some() -> tuple[Declared, str]:
        family = family_for(values, schemas)
        frame = worded(values, family.frames, family.more, novel=schemas == "test")
        return disguised(declare(family, rng), values, frame), frame

    first, frame = some()
    second, other = first, worded(values, first.family.frames, first.family.more, novel=schemas == "test")
    if rng.random() > 0.6 or not first.kinds:  # asked twice, a function without parameters is called once
        while second.tool.name == first.tool.name:
            second, other = some()
    return everyday_pair((first, second), (frame, other), values, schemas)


def everyday_pair(pair: tuple[Declared, Declared], frames: tuple[str, str], values: Values, schemas: Split) -> Exchange:
    """One turn that asks for two declared functions, or for one twice."""
    rng, (first, second), (frame, other) = values.rng, pair, frames
    asks = [ask(first, values, frame), ask(second, values, other)]
    clauses, calls = [clause for clause, _ in asks], [call for _, call in asks]
    if second is first and len(first.tool.parameters) == 1 and rng.random() < 0.7:
        clauses[1] = (
            rng.choice(("{}", "in {}", "for {}")).format(*calls[1].arguments.values())
            if "city" in first.kinds
            else str(*calls[1].arguments.values())
        )
    joiner = shared(values, JOINERS)
    results = tuple(fitting(declared.family, values) for declared in pair)
    answer, facts = report(results)
    tools = {declared.tool.name: declared.tool for declared in pair}

    def again() -> Exchange:
        others = reworded(first, values, schemas, frame), reworded(second, values, schemas, other)
        return everyday_pair(pair, others, values, schemas)

    return Exchange(
        "parallel",
        asked(clauses[0] + joiner + clauses[1], values),
        answer,
        tuple(calls),
        results,
        facts,
        tuple(tools.values()),
        again=again,
    )
