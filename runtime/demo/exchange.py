"""What one round of talk is: a request, the calls it is due, their results, and the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sirocco.runtime.demo.tools import Call, Tool

__all__ = ["Conversation", "Exchange"]


@dataclass(frozen=True, slots=True)
class Exchange:
    """One user turn and everything up to the model's final answer.

    `facts` are the strings a right answer contains; where it is empty the answer has to be equal.
    """

    kind: str
    request: str
    answer: str
    calls: tuple[Call, ...] = ()
    results: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()
    absent: tuple[Tool, ...] = ()  # functions whose declaration would change what is right here
    again: Callable[[], Exchange] | None = field(default=None, compare=False, repr=False)  # for the same functions

    def messages(self) -> list[dict[str, Any]]:
        """The round as chat messages."""
        out: list[dict[str, Any]] = [{"role": "user", "content": self.request}]
        if self.calls:
            calls = [call.message() for call in self.calls]
            out.append({"role": "assistant", "content": None, "tool_calls": calls})
            out.extend({"role": "tool", "content": result} for result in self.results)
        out.append({"role": "assistant", "content": self.answer})
        return out


@dataclass(slots=True)
class Conversation:
    """Exchanges under one system prompt and one list of declared functions."""

    exchanges: list[Exchange]
    tools: list[Tool] = field(default_factory=list)
    system: str | None = None
    unanswered: bool = False  # ends with the last exchange's calls

    def messages(self) -> list[dict[str, Any]]:
        """All turns as chat messages."""
        out: list[dict[str, Any]] = [] if self.system is None else [{"role": "system", "content": self.system}]
        for exchange in self.exchanges:
            out.extend(exchange.messages())
        last = self.exchanges[-1]
        return out[: len(out) - len(last.results) - 1] if self.unanswered and last.calls else out

    def declarations(self) -> list[dict[str, Any]]:
        """The declared functions as OpenAI tools."""
        return [tool.declaration() for tool in self.tools]
