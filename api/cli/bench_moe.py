"""`sirocco bench moe`: a mixture of experts in this engine and in transformers."""

import argparse
import sys
from pathlib import Path
from typing import Any

from sirocco.api.cli.options import positive, seconds
from sirocco.runtime.errors import RequestError

_DESCRIPTION = """Run a mixture of experts with random weights in Sirocco and in transformers, in turns, each in a
fresh process, and write moe.json with the figures and moe.md with their tables. The usual shape has 6.2 GB of
weights."""


def add_parser(kinds: Any) -> None:
    """Declare the verb."""
    parser = kinds.add_parser("moe", help="a mixture of experts beside transformers", description=_DESCRIPTION)
    parser.add_argument("--shape", default="qwen3-30b-a3b-4-layers", metavar="NAME", help="default %(default)s")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="runs of each engine (3)")
    parser.add_argument("--threads", type=positive, default=2, metavar="N", help="threads of each engine (2)")
    parser.add_argument("--max-wait", type=seconds, default=90.0, metavar="S", help="for quiet before each test (90)")
    parser.add_argument("--timeout", type=seconds, default=600.0, metavar="S", help="for one answer (600)")
    parser.add_argument("--out", type=Path, default=Path("bench/results"), metavar="DIR", help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="also write the medians here, - for stdout")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from sirocco.bench import report
    from sirocco.bench.moe import page, rounds
    from sirocco.bench.peers.results import check_writable

    if not arguments.timeout:
        raise RequestError("--timeout must be greater than 0")
    check_writable(arguments.out)
    report.check_writable(arguments.json)
    results = rounds.compare(
        rounds.MoeBench(
            shape=arguments.shape,
            num_rounds=arguments.rounds,
            threads=arguments.threads,
            max_wait_s=arguments.max_wait,
            timeout_s=arguments.timeout,
            seed=arguments.seed,
        ),
        say=lambda line: print(line, file=sys.stderr, flush=True),
        keep=lambda found: page.write(found, arguments.out),
    )
    rows = [
        {"engine": entry.label} | {metric: results.median(entry, metric) for metric, _ in page.SPEEDS}
        for entry in results.engines
    ]
    columns = [("engine", "engine"), *((heading, metric) for metric, heading in page.SPEEDS)]
    report.publish(rows, columns, arguments.json)
    return 0 if results.runs and not any(run.errors for run in results.runs) else 1
