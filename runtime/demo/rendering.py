"""Conversations as text and tokens, through the chat template that ships with the model."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from sirocco.runtime.demo.exchange import Conversation

__all__ = ["TEMPLATE", "encode", "prompt", "render"]

TEMPLATE = Path(__file__).resolve().parent.parent / "data" / "demo" / "chat_template.jinja"
OPEN, CLOSE = "\x02", "\x03"  # around what the model says; in no generated text


class Generation(Extension):
    """`{% generation %}…{% endgeneration %}` as markers around the text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [nodes.Output([nodes.Const(OPEN)], lineno=line), *body, nodes.Output([nodes.Const(CLOSE)], lineno=line)]


@cache
def template() -> Any:
    """The compiled chat template, with `tojson` as transformers has it."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation])
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(TEMPLATE.read_text())


def render(conversation: Conversation) -> list[tuple[str, bool]]:
    """A conversation as pieces of text, each with whether the model says it."""
    marked = template().render(
        messages=conversation.messages(), tools=conversation.declarations(), add_generation_prompt=False
    )
    pieces: list[tuple[str, bool]] = []
    for part in marked.split(OPEN):
        said, closed, rest = part.partition(CLOSE)
        pieces += [(said, True), (rest, False)] if closed else [(part, False)]
    return pieces


def prompt(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
    """The text that asks the model for its next turn."""
    text: str = template().render(messages=messages, tools=tools, add_generation_prompt=True)
    return text.replace(OPEN, "").replace(CLOSE, "")


def encode(conversations: list[Conversation], tokenizer: Tokenizer) -> list[tuple[list[int], list[bool]]]:
    """Each conversation's token ids, and for each id whether the model says it."""
    pieces = [render(conversation) for conversation in conversations]
    flat = tokenizer.encode_batch_fast([text for parts in pieces for text, _ in parts], add_special_tokens=False)
    out: list[tuple[list[int], list[bool]]] = []
    at = 0
    for parts in pieces:
        ids: list[int] = []
        said: list[bool] = []
        for (_, mine), encoding in zip(parts, flat[at : at + len(parts)], strict=True):
            ids += encoding.ids
            said += [mine] * len(encoding.ids)
        at += len(parts)
        out.append((ids, said))
    return out
