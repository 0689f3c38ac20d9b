"""`sirocco bench peers`: this engine beside others on the same generated model."""

import argparse
import sys
from pathlib import Path
from typing import Any

from sirocco.api.cli.options import positive, seconds, user_folder
from sirocco.runtime.errors import RequestError

_DESCRIPTION = """Make a model with random weights, run Sirocco and other engines on it in turns, each in a fresh
process, and write the figures with a page of tables and charts. Engines: sirocco, llama.cpp (needs llama-cpp-python and
gguf), transformers, mistral.rs (mistralrs), onnxruntime-genai."""


def add_parser(kinds: Any) -> None:
    """Declare the verb."""
    parser = kinds.add_parser("peers", help="this engine beside others", description=_DESCRIPTION)
    parser.add_argument("--shape", default="qwen3-0.6b", help="qwen3-0.6b (default), llama-3.2-1b or tiny")
    parser.add_argument(
        "--engines",
        type=_names,
        default=["sirocco", "llama.cpp", "transformers"],
        metavar="NAME[:FORM],…",
        help="what to compare, such as sirocco,mistral.rs:bf16 (sirocco,llama.cpp,transformers)",
    )
    parser.add_argument(
        "--python", type=_python, action="append", default=[], metavar="ENGINE=PATH", help="interpreter of an engine"
    )
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="runs of each engine (3)")
    parser.add_argument("--tests", type=_names, default=[], metavar="NAME,…", help="only these, such as decode1,conc8")
    parser.add_argument("--threads", type=positive, default=2, metavar="N", help="threads of each engine (2)")
    parser.add_argument("--max-wait", type=seconds, default=90.0, metavar="S", help="for quiet before each test (90)")
    parser.add_argument("--timeout", type=seconds, default=300.0, metavar="S", help="for one answer (300)")
    parser.add_argument("--models", type=Path, metavar="DIR", help="where generated models are kept")
    parser.add_argument("--out", type=Path, default=Path("bench/results"), metavar="DIR", help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", action="store_true", help="only make the page again from the figures in --out")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from sirocco.bench.peers import page, results, rounds

    failed = False
    if not arguments.report:
        if not arguments.timeout:
            raise RequestError("--timeout must be greater than 0")
        results.check_writable(arguments.out)
        measured = rounds.compare(
            rounds.PeersBench(
                shape=arguments.shape,
                models=arguments.models or user_folder("XDG_CACHE_HOME", ".cache") / "sirocco" / "peers",
                engines=arguments.engines,
                pythons=dict(arguments.python),
                tests=arguments.tests,
                num_rounds=arguments.rounds,
                threads=arguments.threads,
                max_wait_s=arguments.max_wait,
                timeout_s=arguments.timeout,
                seed=arguments.seed,
            ),
            say=lambda line: print(line, file=sys.stderr, flush=True),
            keep=lambda found: results.save(found, arguments.out),
        )
        failed = any(run.errors for run in measured.runs)
    path = page.write_page(results.load_all(arguments.out), arguments.out)
    print(path)
    return 1 if failed else 0


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing")
    return names


def _python(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if not name or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not ENGINE=PATH")
    return name, path
