"""The `sirocco` command: parses the command line and hands over to one verb.

Exit codes: 0 done, 1 no room for the output or a benchmark that failed, 2 wrong input or an engine that cannot answer
(one line on stderr), 130 interrupted; `serve` documents its own.
"""

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import sirocco
from sirocco.api.cli import bench, run, serve
from sirocco.api.output import drop_output
from sirocco.runtime.errors import SiroccoError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        _complain(message)
        raise SystemExit(2)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; the verbs import what they need when they run."""
    parser = _Parser(prog="sirocco", description="Run language models: a server, a terminal, benchmarks.")
    parser.add_argument("--version", action="version", version=f"sirocco {sirocco.__version__}")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for verb in (serve, run, bench):
        verb.add_parser(verbs)
    return parser


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit."""
    raise SystemExit(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    _open_missing_outputs()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an answer goes on whatever the terminal's encoding lacks
    try:
        parsed = build_parser().parse_args(arguments)
        exit_code = int(parsed.run(parsed))
        sys.stdout.flush()  # a reader that has gone is noticed here rather than at exit
        return exit_code
    except SiroccoError as error:
        _complain(str(error))
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone
        drop_output()
        return 0
    except OSError as error:
        if error.errno not in _FULL:
            raise
        drop_output()
        _complain(os.strerror(error.errno))
        return 1


def _open_missing_outputs() -> None:
    """Have what is written to an output that was closed before we began go nowhere, rather than into another file."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the process lives


def _complain(message: str) -> None:
    print(f"sirocco: error: {' '.join(message.split())}", file=sys.stderr)
