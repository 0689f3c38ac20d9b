"""Arithmetic and string tasks, done through declared functions or through a Python tool."""

from __future__ import annotations

import random
from typing import Any

from sirocco.runtime.demo import wrappers
from sirocco.runtime.demo.exchange import Exchange
from sirocco.runtime.demo.lexicon import words
from sirocco.runtime.demo.operations import OPERATIONS, Operation
from sirocco.runtime.demo.phrasing import shared, worded
from sirocco.runtime.demo.results import report
from sirocco.runtime.demo.tools import Call, Parameter, Tool, dumps
from sirocco.runtime.demo.values import Value, Values
from sirocco.runtime.demo.wrappers import polite, raised

__all__ = ["PYTHON_NAMES", "STATEMENT_ENDINGS", "asked", "compute", "python_tool", "tool_of"]

PYTHON_NAMES = (
    "python",
    "run_python",
    "execute_python",
    "python_tool",
    "run_code",
    "sirocco_execute_python",
    "python_exec",
)
PYTHON_DESCRIPTIONS = (
    "Run Python code and return what it prints",
    "Execute Python code",
    "Runs Python",
    "A Python interpreter",
    "",
)


def said(value: Value, rng: random.Random) -> str:
    """A value as the user writes it."""
    if isinstance(value, list):
        items = [str(item) for item in value]
        return ", ".join(items) if rng.random() < 0.6 else ", ".join(items[:-1]) + " and " + items[-1]
    return f'"{value}"' if isinstance(value, str) and rng.random() < 0.2 else str(value)


def clause_of(operation: Operation, arguments: tuple[Value, ...], values: Values) -> str:
    """The clause that asks for an operation."""
    frame = worded(values, operation.frames, operation.more)
    quoted = "'" in frame
    return frame.format(*(str(a) if quoted else said(a, values.rng) for a in arguments))


STATEMENT_ENDINGS = (".", ".", "", " please", "!")
FORMULA_ENDINGS = ("", "?", " =", " please", " = ?", ".")
QUESTIONS = words("what what's how which who when where is are am do does will has can could did should")
STATEMENTS = words("""
i i'm we the my our it there a one new next last let's don't in at on for from under until because
weather forecast news current price alarm light random distance population recipe tide total sunrise volume lyrics
blinds ticket
""")


def asked(clause: str, values: Values, frame: str = "") -> str:
    """A clause as a question, a request, or as it stands when it is neither; a frame may begin with a value."""
    first = "the" if frame.startswith("{") else clause.split()[0].lower()
    question = first in QUESTIONS
    if not question and first not in STATEMENTS and clause[0].isalpha() and not clause.endswith(("?", " mod")):
        return polite(values, clause)
    if question:
        return wrappers.question(values, clause)
    endings = STATEMENT_ENDINGS if first in STATEMENTS else FORMULA_ENDINGS
    return raised(clause + values.rng.choice(endings))


def tool_of(operation: Operation, rng: random.Random) -> tuple[Tool, list[str]]:
    """A declaration of an operation and its parameters' names in the operation's order."""
    variant = rng.choice((0, 0, 1, 2, 3, 4))
    parameters = []
    for names, kind in operation.parameters:
        options = names.split("|")
        scalar = kind.removesuffix("[]")
        if scalar == "number" and rng.random() < 0.3:
            scalar = "integer"
        array = kind.endswith("[]")
        name = options[min(variant, len(options) - 1)]
        parameters.append(Parameter(name, "array" if array else scalar, items=scalar if array else ""))
    description = operation.description if rng.random() < 0.8 else ""
    return Tool(rng.choice(operation.names), description, tuple(parameters)), [p.name for p in parameters]


def python_tool(rng: random.Random) -> Tool:
    """A declaration of the Python tool."""
    name = "python" if rng.random() < 0.4 else rng.choice(PYTHON_NAMES)
    return Tool(name, rng.choice(PYTHON_DESCRIPTIONS), (Parameter("code", "string"),))


def python_code(operation: Operation, arguments: tuple[Value, ...]) -> str:
    """The program that prints an operation's value."""
    literals = [dumps(argument) for argument in arguments]
    return f"print({operation.code.format(*literals)})"


def wrapped(value: Value, rng: random.Random) -> str:
    """An operation's value as a tool returns it."""
    text = value if isinstance(value, str) else dumps(value)
    draw = rng.random()
    if draw < 0.65:
        return text
    return dumps({rng.choice(("result", "output", "value", "answer")): value})


def printed(value: Value, rng: random.Random) -> str:
    """An operation's value as the Python tool returns it."""
    text = str(value)
    draw = rng.random()
    if draw < 0.5:
        return text
    return text + "\n" if draw < 0.75 else dumps({"stdout": text + "\n"}) if draw < 0.9 else dumps({"output": text})


def worked(
    operation: Operation, values: Values, *, python: bool, tool: Tool | None = None, names: list[str] | None = None
) -> tuple[Tool, Call, str, str]:
    """One operation on fresh values: tool, call, clause and result."""
    rng = values.rng
    arguments = operation.draw(values)
    clause = clause_of(operation, arguments, values)
    value = operation.evaluate(*arguments)
    if python:
        tool = tool or python_tool(rng)
        return tool, Call(tool.name, {"code": python_code(operation, arguments)}), clause, printed(value, rng)
    if tool is None or names is None:
        tool, names = tool_of(operation, rng)
    filled: dict[str, Any] = dict(zip(names, arguments, strict=True))
    return tool, Call(tool.name, filled), clause, wrapped(value, rng)


JOINERS = (" <And|Also|Then|After that|Next|And then|Now|Also,|Besides,|Afterwards|Then also|Finally|Second:|Next,> ",)


def compute(values: Values) -> Exchange:
    """An arithmetic or string task; now and then two of them in one turn."""
    rng = values.rng
    operation = rng.choice(OPERATIONS if rng.random() < 0.6 else OPERATIONS[:4])
    python = rng.random() < 0.35
    tool, call, clause, result = worked(operation, values, python=python)
    calls, results, tools, text = [call], [result], [tool], asked(clause, values)
    if rng.random() < 0.2:
        other = rng.choice(OPERATIONS)
        reused = tool if python or other is operation else None
        names = [p.name for p in tool.parameters]
        second, call, clause, result = worked(
            other, values, python=python, tool=reused, names=names if reused and not python else None
        )
        if second.name != tool.name or second == tool:
            calls.append(call)
            results.append(result)
            tools = list({t.name: t for t in (tool, second)}.values())
            joiner = shared(values, JOINERS)
            text = (
                text.rstrip("?.") + ("?" if text.endswith("?") else ".") + joiner + clause + rng.choice(("?", ".", ""))
            )
    answer, facts = report(tuple(results))
    return Exchange("compute", text, answer, tuple(calls), tuple(results), facts, tuple(tools))
