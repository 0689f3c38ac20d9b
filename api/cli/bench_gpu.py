"""`sirocco bench kernels`, `tune` and `gpu`: operators against what a device can do, their options, all in one go."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from sirocco.api.cli.options import positive, positive_list
from sirocco.runtime.errors import RequestError


def add_parsers(kinds: Any) -> None:
    """Declare the three."""
    parser = kinds.add_parser("kernels", help="operators against float64, then against the device's best")
    parser.add_argument("operators", nargs="*", metavar="NAME", help="such as decode (all)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")
    parser.add_argument("--dtype", default="bfloat16", metavar="NAME,…", help="default %(default)s")
    parser.add_argument("--small", action="store_true", help="tiny sizes: try it without a GPU")
    parser.add_argument("--json", metavar="FILE", help="also write the results here, - for stdout")
    parser.set_defaults(run=_run_kernels)

    parser = kinds.add_parser("tune", help="measure kernels' options on this GPU and keep the best")
    parser.add_argument("--operators", nargs="+", metavar="NAME", help="such as attention or flash-attn (all)")
    parser.add_argument("--seconds", type=positive, metavar="S", help="for everything; the rest stays as it is")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write there, not into the files that kernels use")
    parser.add_argument("--small", action="store_true", help="two candidates, tiny sizes: try it without a GPU")
    parser.add_argument("--json", metavar="FILE", help="also write the results here, - for stdout")
    parser.set_defaults(run=_run_tune)

    parser = kinds.add_parser("gpu", help="kernel tests, kernels and engine on a GPU in ten minutes")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")
    parser.add_argument("--minutes", type=positive, default=10, metavar="N", help="for everything (10)")
    parser.add_argument("--model-shape", default="qwen3-0.6b,qwen3-8b", metavar="NAME,…", help="default %(default)s")
    parser.add_argument("--requests", type=positive, default=64, metavar="N", help="at once (64)")
    parser.add_argument(
        "--lengths", type=positive_list, default=[256, 128], metavar="PROMPT,GEN", help="tokens (256,128)"
    )
    parser.add_argument("--tune", action="store_true", help="first tune kernels, as far as a third of the time goes")
    parser.add_argument("--out", type=Path, default=Path("bench/results"), metavar="DIR", help="default %(default)s")
    parser.add_argument("--small", action="store_true", help="tiny sizes: try it without a GPU")
    parser.add_argument("--json", metavar="FILE", help="also write the results here, - for stdout")
    parser.set_defaults(run=_run_gpu)


def _run_kernels(arguments: argparse.Namespace) -> int:
    from sirocco.bench import kernels, report
    from sirocco.bench.kernel_cases import OPERATORS

    report.check_writable(arguments.json)
    bench = kernels.KernelBench(
        operators=arguments.operators or OPERATORS,
        device=arguments.device,
        dtypes=arguments.dtype.split(","),
        small=arguments.small,
        seconds=0.01 if arguments.small else 0.2,
    )
    rows = kernels.measure(bench, lambda rows: report.keep(rows, arguments.json))
    report.publish(rows, kernels.COLUMNS, arguments.json)
    return 0 if kernels.passed(rows) else 1


def _run_tune(arguments: argparse.Namespace) -> int:
    if arguments.small:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # triton reads it when the kernels are imported
    from sirocco.bench import report, tune

    report.check_writable(arguments.json)
    bench = tune.TuneBench(
        operators=arguments.operators or tune.OPERATORS,
        out=arguments.out,
        seconds=arguments.seconds,
        small=arguments.small,
    )
    rows = tune.measure(bench, say=_tell)
    report.publish(rows, tune.COLUMNS, arguments.json)
    return 0


def _tell(row: dict[str, Any]) -> None:
    """A line on the progress of minutes."""
    print(row["kernel"], row.get("bucket", ""), row["outcome"], file=sys.stderr, flush=True)


def _run_gpu(arguments: argparse.Namespace) -> int:
    from sirocco.bench import gpu, report
    from sirocco.bench.peers.results import check_writable
    from sirocco.runtime.models.random import SHAPES

    shapes = [name.strip() for name in arguments.model_shape.split(",")]
    unknown = [name for name in shapes if name not in SHAPES]
    if unknown:
        raise RequestError(f"unknown model shape {unknown[0]!r}: choose {', '.join(SHAPES)}")
    if len(arguments.lengths) != 2:
        raise RequestError("--lengths takes two numbers, such as 256,128")
    check_writable(arguments.out)
    report.check_writable(arguments.json)
    bench = gpu.GpuBench(
        out=arguments.out,
        device=arguments.device,
        minutes=arguments.minutes,
        shapes=shapes,
        requests=arguments.requests,
        prompt_len=arguments.lengths[0],
        gen_len=arguments.lengths[1],
        small=arguments.small,
        tune=arguments.tune,
    )
    rows = gpu.measure(bench)
    report.publish(rows, gpu.COLUMNS, arguments.json)
    return 0 if all(row["outcome"] == "passed" for row in rows) else 1
