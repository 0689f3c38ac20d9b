"""`sirocco serve`: the HTTP server."""

import argparse
import os
import re
from typing import TYPE_CHECKING, Any

from sirocco.api.cli.options import (
    add_model_options,
    api_key,
    data_dir,
    engine_options,
    hub_options,
    positive,
    seconds,
    word,
)
from sirocco.runtime.errors import RequestError

if TYPE_CHECKING:
    from sirocco.runtime.async_engine import AsyncEngine


def add_parser(verbs: Any) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "serve",
        help="serve a model over HTTP",
        description="Serve a model over HTTP (OpenAI's chat and completions). SIGTERM or Ctrl-C lets running "
        "requests finish and exits with 0; a second one stops at once and exits with 128 + signal.",
    )
    add_model_options(parser)
    group = parser.add_argument_group("server")
    group.add_argument("--host", type=word, default="127.0.0.1", help="address to listen on (127.0.0.1)")
    group.add_argument("--port", type=_port, default=1234, help="port to listen on (1234); 0 picks a free one")
    group.add_argument("--data-dir", metavar="DIR", help="folder for what must survive a restart; nothing is kept yet")
    key_help = "require this key; may be repeated; also read from SIROCCO_API_KEY"
    group.add_argument("--api-key", type=api_key, action="append", default=[], metavar="KEY", help=key_help)
    origin_help = "web origin to admit, or *"
    group.add_argument("--cors-origin", type=word, action="append", default=[], metavar="ORIGIN", help=origin_help)
    host_help = "Host to admit, or *"
    group.add_argument("--allowed-host", type=word, action="append", default=[], metavar="NAME", help=host_help)
    group.add_argument("--drain-timeout", type=seconds, default=30.0, metavar="SECONDS", help="at shutdown (30)")
    group.add_argument(
        "--max-waiting", type=positive, default=1024, metavar="N", help="queued requests before 429 (1024)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until stopped; returns the exit code."""
    from sirocco.api import server
    from sirocco.api.options import ServerOptions

    if arguments.data_dir:
        data_dir(arguments.data_dir)
    options = ServerOptions(
        host=arguments.host,
        port=arguments.port,
        api_keys=(*arguments.api_key, *_key_from_environment()),
        cors_origins=tuple(arguments.cors_origin),
        allowed_hosts=tuple(arguments.allowed_host),
        drain_timeout=arguments.drain_timeout,
    )
    return server.run(lambda: _make_engine(arguments), options)


def _make_engine(arguments: argparse.Namespace) -> "AsyncEngine":
    from sirocco.runtime.async_engine import AsyncEngine
    from sirocco.runtime.process_client import ProcessClient
    from sirocco.runtime.wire import EngineOptions

    options = EngineOptions(**engine_options(arguments), max_waiting=arguments.max_waiting, progress=True)
    return AsyncEngine(arguments.model, client=ProcessClient(options), arch=arguments.arch, **hub_options(arguments))


def _key_from_environment() -> list[str]:
    key = os.environ.get("SIROCCO_API_KEY")
    if not key:
        return []
    try:
        return [api_key(key)]
    except argparse.ArgumentTypeError as error:
        raise RequestError(f"SIROCCO_API_KEY {error}") from None


def _port(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port")
    return int(text)
