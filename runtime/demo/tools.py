"""Function schemas and calls, as the training text speaks of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sirocco.runtime.demo.values import Value

__all__ = ["Call", "Parameter", "Tool", "dumps"]


def dumps(value: Any) -> str:
    """JSON with the default separators, letters left as they are."""
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: a JSON schema type, its choices for an enum, its element type for an array."""

    name: str
    type: str
    required: bool = True
    choices: tuple[str, ...] = ()
    items: str = ""

    def schema(self) -> dict[str, Any]:
        """Its JSON schema."""
        out: dict[str, Any] = {"type": self.type}
        if self.choices:
            out["enum"] = list(self.choices)
        if self.items:
            out["items"] = {"type": self.items}
        return out


@dataclass(frozen=True, slots=True)
class Tool:
    """A declared function."""

    name: str
    description: str
    parameters: tuple[Parameter, ...]

    def declaration(self) -> dict[str, Any]:
        """The function as an OpenAI tool."""
        schema: dict[str, Any] = {"type": "object", "properties": {p.name: p.schema() for p in self.parameters}}
        schema["required"] = [p.name for p in self.parameters if p.required]
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.description, "parameters": schema},
        }


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a function."""

    name: str
    arguments: dict[str, Value]

    def message(self) -> dict[str, Any]:
        """The call as an entry of an assistant message's tool_calls."""
        return {"type": "function", "function": {"name": self.name, "arguments": self.arguments}}
