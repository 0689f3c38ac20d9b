"""`sirocco bench`: how fast an engine or a server is."""

import argparse
import secrets
from pathlib import Path
from typing import Any

from sirocco.api.cli import bench_gpu, bench_moe, bench_peers
from sirocco.api.cli.options import add_model_options, engine_options, hub_options, positive, positive_list
from sirocco.runtime.errors import RequestError
from sirocco.runtime.hub import resolve_model


def add_parser(verbs: Any) -> None:
    """Declare the verb and its two kinds."""
    parser = verbs.add_parser("bench", help="measure an engine or a server", description="Measure speed.")
    kinds = parser.add_subparsers(title="what to measure", metavar="KIND", required=True)
    _add_throughput(kinds)
    _add_serve(kinds)
    bench_peers.add_parser(kinds)
    bench_moe.add_parser(kinds)
    bench_gpu.add_parsers(kinds)


def _add_throughput(kinds: Any) -> None:
    parser = kinds.add_parser("throughput", help="an engine in this process", description="Measure an engine.")
    add_model_options(parser)
    parser.add_argument("--model-shape", metavar="NAME", help="random weights of this geometry instead of --model")
    parser.add_argument("--prompt-len", type=positive_list, default=[512], metavar="N,…", help="prompt tokens (512)")
    parser.add_argument("--gen-len", type=positive_list, default=[128], metavar="N,…", help="generated tokens (128)")
    parser.add_argument("--concurrency", type=positive_list, default=[1, 8, 32], metavar="N,…", help="requests at once")
    parser.add_argument("--iterations", type=positive, default=3, metavar="N", help="measured rounds (3)")
    parser.add_argument("--warmup", type=int, default=1, metavar="N", help="rounds before them (1)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the prompts (0)")
    _add_json(parser)
    parser.set_defaults(run=_run_throughput)


def _add_serve(kinds: Any) -> None:
    parser = kinds.add_parser("serve", help="an OpenAI-compatible server", description="Load a server.")
    parser.add_argument("--base-url", default="http://127.0.0.1:1234/v1", help="default %(default)s")
    parser.add_argument("--endpoint", choices=["completions", "chat"], default="completions")
    parser.add_argument("-m", "--model", default="default", help="model to ask for (default)")
    parser.add_argument("--api-key", metavar="KEY")
    parser.add_argument("--num-prompts", type=positive, default=64, metavar="N", help="requests (64)")
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument("--request-rate", type=_rate, metavar="R", help="requests a second, at random moments")
    pace.add_argument("--concurrency", type=positive, default=8, metavar="N", help="requests at once (8)")
    parser.add_argument("--prompt-len", type=positive, default=128, metavar="N", help="prompt tokens, about (128)")
    parser.add_argument("--gen-len", type=positive, default=64, metavar="N", help="generated tokens (64)")
    parser.add_argument("--dataset", metavar="FILE", help='JSON lines with "prompt" or "messages", "max_tokens"')
    parser.add_argument("--goodput", nargs="+", default=[], metavar="NAME:MS", help="limits, such as ttft:200 itl:50")
    parser.add_argument("--timeout", type=_rate, default=600.0, metavar="S", help="for one request (600)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the prompts (another each time)")
    _add_json(parser)
    parser.set_defaults(run=_run_serve)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", help="also write the results here, - for stdout")


def _run_throughput(arguments: argparse.Namespace) -> int:
    from sirocco.bench import offline, report

    if arguments.warmup < 0:
        raise RequestError("--warmup must be 0 or more")
    report.check_writable(arguments.json)
    options = engine_options(arguments)
    if arguments.model_shape is None:
        options["folder"] = str(resolve_model(arguments.model, **hub_options(arguments)))
    elif arguments.arch or arguments.revision:
        raise RequestError("--arch and --revision are about a model, --model-shape makes one up")
    options["max_num_seqs"] = max(options["max_num_seqs"], *arguments.concurrency)
    plan = offline.OfflineBench(
        engine=options,
        model_shape=arguments.model_shape,
        prompt_lens=arguments.prompt_len,
        gen_lens=arguments.gen_len,
        concurrencies=arguments.concurrency,
        iterations=arguments.iterations,
        warmup=arguments.warmup,
        seed=arguments.seed,
    )
    report.publish(offline.measure(plan), offline.COLUMNS, arguments.json)
    return 0


def _run_serve(arguments: argparse.Namespace) -> int:
    from sirocco.bench import report, serve, workload

    report.check_writable(arguments.json)
    plan = serve.ServeBench(
        base_url=arguments.base_url,
        endpoint=arguments.endpoint,
        model=arguments.model,
        api_key=arguments.api_key,
        num_prompts=arguments.num_prompts,
        request_rate=arguments.request_rate,
        concurrency=arguments.concurrency,
        prompt_len=arguments.prompt_len,
        gen_len=arguments.gen_len,
        dataset=workload.read_dataset(Path(arguments.dataset)) if arguments.dataset else None,
        goodput=workload.parse_goodput(arguments.goodput),
        timeout=arguments.timeout,
        seed=secrets.randbelow(2**31) if arguments.seed is None else arguments.seed,
    )
    result = serve.measure(plan)
    report.publish([result], serve.COLUMNS, arguments.json)
    return 0 if result["completed"] else 1


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number greater than 0")
    return value
