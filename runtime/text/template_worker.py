"""The process that compiles and renders chat templates; it trusts none of them.

Run as `python -P -m sirocco.runtime.text.template_worker SECONDS` by `renderer.TemplateRenderer`. Memory and processor
time are limited here (the address space only where /proc tells its size: Linux): SIGPROF ends it when one render takes
more than SECONDS. It ends when its standard input does, so it never outlives its parent for longer than that.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.utils
import msgspec
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sirocco.runtime.text.template_wire import (
    EXIT_MEMORY,
    HEADER,
    MAX_OUTPUT,
    READY,
    Failed,
    Rendered,
    RenderRequest,
    frame,
)

EXTRA_MEMORY = 512 * 1024 * 1024  # bytes beyond what the started process uses
_MAX_MESSAGE = 500  # characters of a template's own error text


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}`, which marks what the model wrote; here it renders its body in a scope."""

    tags = {"generation"}  # noqa: RUF012 (the base class declares it an instance attribute)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class PlainNamespace(jinja2.utils.Namespace):
    """`namespace()` whose attributes cannot be underscored names."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # no `self`, so that namespace(self=…) works
        for name in dict(*args[1:], **kwargs):
            _refuse_underscore(name)
        jinja2.utils.Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


class TemplateRefusal(jinja2.TemplateError):
    """The template called `raise_exception`."""


def _refuse_underscore(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot have the attribute {name!r}")


def _raise_exception(message: object = "") -> NoReturn:
    raise TemplateRefusal(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def make_environment() -> ImmutableSandboxedEnvironment:
    """The environment that published chat templates are written for."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["namespace"] = PlainNamespace
    return environment


@lru_cache(maxsize=64)
def _compile(template: str) -> jinja2.Template:
    return make_environment().from_string(template)


def render(request: RenderRequest) -> Rendered | Failed:
    """Render, or say in one sentence why not. Lets `MemoryError` through."""
    try:
        return _join(_compile(request.template).generate(request.variables))
    except MemoryError:
        raise
    except TemplateRefusal as error:
        return Failed(f"The chat template refused the messages: {_short(error)}")
    except jinja2.TemplateSyntaxError as error:
        return Failed(f"The chat template is not valid (line {error.lineno}): {_short(error.message)}")
    except Exception as error:  # a template can raise whatever Python can
        return Failed(f"The chat template failed: {type(error).__name__}: {_short(error)}")


def _join(parts: Iterable[str]) -> Rendered | Failed:
    pieces: list[str] = []
    room = MAX_OUTPUT
    for piece in parts:
        room -= len(piece)
        if room < 0:
            break
        pieces.append(piece)
    text = "".join(pieces)
    if room < 0 or len(text.encode()) > MAX_OUTPUT:
        return Failed(f"The chat template wrote more than {MAX_OUTPUT // 2**20} MB.")
    return Rendered(text)


def _short(message: object) -> str:
    text = " ".join(str(message).encode("utf-8", "replace").decode().split())
    return text if len(text) <= _MAX_MESSAGE else text[:_MAX_MESSAGE] + "…"


def _limit(kind: int, soft: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _limit_process() -> None:
    _limit(resource.RLIMIT_CORE, 0)  # a core dump would hold people's messages
    _limit(resource.RLIMIT_FSIZE, 0)
    try:
        with open("/proc/self/statm", "rb") as statm:
            pages = int(statm.read().split()[0])
    except FileNotFoundError:
        return
    _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + EXTRA_MEMORY)


def main(seconds: float) -> None:
    """Answer render requests from standard input on standard output until it ends.

    Each may take `seconds` of processor time.
    """
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    decode = msgspec.json.Decoder(RenderRequest).decode
    encode = msgspec.msgpack.Encoder().encode
    _limit_process()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # the parent may have ignored it
    replies.write(READY)
    replies.flush()
    while len(header := requests.read(HEADER)) == HEADER:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            payload = requests.read(int.from_bytes(header, "big"))
            replies.write(frame(encode(render(decode(payload)))))
        except MemoryError:
            os._exit(EXIT_MEMORY)
        replies.flush()
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    main(float(sys.argv[1]))
