"""`sirocco bench throughput`: an engine in this process, token ids in and out.

Every request of a round is handed over at once, with fresh random prompts. Prefill speed is all prompt tokens over the
time until the last request has its first token; decode speed is what came after that moment over the time it took.
"""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

from sirocco.bench import report
from sirocco.bench.stats import median, summary
from sirocco.runtime.client import EngineClient
from sirocco.runtime.core import EngineCore
from sirocco.runtime.errors import GenerationError, RequestError, SiroccoError
from sirocco.runtime.local_client import LocalClient
from sirocco.runtime.wire import EngineInfo, EngineOptions, EngineRequest, Sampling, SequenceOutput

COLUMNS = (
    ("prompt", "prompt_len"),
    ("gen", "gen_len"),
    ("conc.", "concurrency"),
    ("max seqs", "max_num_seqs"),
    ("prefill tok/s", "prefill_tps"),
    ("decode tok/s", "decode_tps"),
    ("TTFT ms p50", "ttft_ms.p50"),
    ("TTFT ms p99", "ttft_ms.p99"),
    ("ITL ms p50", "itl_ms.p50"),
    ("ITL ms p99", "itl_ms.p99"),
    ("peak so far MiB", "peak_rss_mib"),
)


@dataclass(frozen=True, slots=True)
class OfflineBench:
    """What to measure: every combination of lengths and concurrencies. `engine` holds fields of `EngineOptions`."""

    engine: Mapping[str, Any]
    model_shape: str | None = None
    prompt_lens: Sequence[int] = (512,)
    gen_lens: Sequence[int] = (128,)
    concurrencies: Sequence[int] = (1, 8, 32)
    iterations: int = 3
    warmup: int = 1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Round:
    """Times of one round in seconds since its start: per request, when each token came."""

    prompt_len: int
    arrivals: Sequence[Sequence[float]]

    @property
    def first_tokens(self) -> list[float]:
        return [times[0] for times in self.arrivals]

    @property
    def gaps(self) -> list[float]:
        """Time between neighbouring tokens of a request."""
        return [later - earlier for times in self.arrivals for earlier, later in pairwise(times)]

    @property
    def prefill_tps(self) -> float:
        return self.prompt_len * len(self.arrivals) / max(self.first_tokens)

    @property
    def decode_tps(self) -> float | None:
        """Tokens a second once every request decodes; None when nothing was generated after that."""
        begin = max(self.first_tokens)
        after = [at for times in self.arrivals for at in times if at > begin]
        return len(after) / (max(after) - begin) if after else None

    @property
    def total_tps(self) -> float:
        """Generated tokens a second over the whole round."""
        return sum(map(len, self.arrivals)) / max(times[-1] for times in self.arrivals)


def measure(bench: OfflineBench) -> list[dict[str, Any]]:
    """One row for each combination. Raises `ModelLoadError`, or `RequestError` when the lengths do not fit."""
    return asyncio.run(_measure(bench))


async def _measure(bench: OfflineBench) -> list[dict[str, Any]]:
    options = EngineOptions(**bench.engine)
    client = LocalClient(options, _random_build(bench.model_shape) if bench.model_shape else None)
    started = time.perf_counter()
    try:
        info = await client.start()
        facts = _facts(info, time.perf_counter() - started, bench)
        _check_lengths(info, bench)
        rng = random.Random(bench.seed)
        rows = []
        for prompt_len, gen_len, concurrency in product(bench.prompt_lens, bench.gen_lens, bench.concurrencies):
            rounds = [
                await run_round(client, prompt_len, gen_len, concurrency, rng)
                for _ in range(bench.warmup + bench.iterations)
            ]
            shape = {"prompt_len": prompt_len, "gen_len": gen_len, "concurrency": concurrency}
            rows.append({**shape, **figures(rounds[bench.warmup :]), "peak_rss_mib": report.peak_rss_mib(), **facts})
        return rows
    finally:
        await client.close()


async def run_round(client: EngineClient, prompt_len: int, gen_len: int, concurrency: int, rng: random.Random) -> Round:
    """Compute `concurrency` requests of random tokens side by side, past any end-of-text token."""
    vocab_size = client.info.vocab_size
    requests = [
        EngineRequest(
            client.next_id(),
            [rng.randrange(vocab_size) for _ in range(prompt_len)],
            Sampling(max_tokens=gen_len, temperature=1.0, seed=rng.getrandbits(62)),
        )
        for _ in range(concurrency)
    ]
    start = time.perf_counter()
    sinks = [_Arrivals(start, gen_len) for _ in requests]
    for request, sink in zip(requests, sinks, strict=True):
        client.add(request, sink)
    try:
        await asyncio.gather(*(sink.done for sink in sinks))
    except BaseException:
        for request in requests:
            client.abort(request.id)
        raise
    return Round(prompt_len, [sink.times for sink in sinks])


def figures(rounds: Sequence[Round]) -> dict[str, Any]:
    """The medians over the rounds, and percentiles over all their tokens."""
    return {
        "prefill_tps": median([one.prefill_tps for one in rounds]),
        "decode_tps": median([one.decode_tps for one in rounds]),
        "total_tps": median([one.total_tps for one in rounds]),
        "ttft_ms": summary([at for one in rounds for at in one.first_tokens]),
        "itl_ms": summary([gap for one in rounds for gap in one.gaps]),
    }


class _Arrivals:
    """Notes when each token of one request comes."""

    def __init__(self, start: float, expected: int) -> None:
        self.times: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._start = start
        self._expected = expected

    def push(self, output: SequenceOutput) -> None:
        now = time.perf_counter() - self._start
        self.times.extend([now] * len(output.token_ids))
        if output.finish_reason is None or self.done.done():
            return
        if output.finish_reason == "length" and len(self.times) == self._expected:
            self.done.set_result(None)
        else:
            self.fail(GenerationError(output.error or f"a request ended early: {output.finish_reason}"))

    def fail(self, error: SiroccoError) -> None:
        if not self.done.done():
            self.done.set_exception(error)


def _check_lengths(info: EngineInfo, bench: OfflineBench) -> None:
    longest = max(bench.prompt_lens) + max(bench.gen_lens)
    if longest > info.max_model_len:
        raise RequestError(
            f"prompt and generation of {longest} tokens do not fit the context of {info.max_model_len}; "
            "choose smaller --prompt-len and --gen-len"
        )
    if max(bench.concurrencies) > info.max_num_seqs + info.max_waiting:
        raise RequestError(f"a concurrency of {max(bench.concurrencies)} does not fit the queue")


def _facts(info: EngineInfo, load_seconds: float, bench: OfflineBench) -> dict[str, Any]:
    return {
        "load_s": round(load_seconds, 3),
        "max_num_seqs": info.max_num_seqs,
        "device": report.cpu_name() if info.device == "cpu" else info.device,
        "dtype": info.dtype,
        "model": bench.model_shape or info.model,
        "path": _path(info.device, info.dtype),
        "seed": bench.seed,
        "iterations": bench.iterations,
        "versions": report.versions("sirocco", "torch", "triton"),
    }


def _path(device: str, dtype: str) -> str:
    """Which implementation of the operators made the figures."""
    import torch

    from sirocco.kernels.backend import use_native, use_triton

    x = torch.empty(1, device=device, dtype=getattr(torch, dtype))
    kind = "triton" if use_triton(x) else "native" if use_native(x) else "torch"
    return f"{kind}, {torch.get_num_threads()} threads" if device == "cpu" else kind


def _random_build(shape: str) -> Any:
    def build(options: EngineOptions) -> tuple[EngineCore, EngineInfo]:
        from sirocco.runtime.build import assemble  # imports torch
        from sirocco.runtime.models.random import random_model

        return assemble(random_model(shape, options.dtype, options.device), options, shape)

    return build
