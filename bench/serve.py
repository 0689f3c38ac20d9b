"""`sirocco bench serve`: load on any OpenAI-compatible server, as its clients feel it.

TTFT: sending to first text. ITL: between two chunks with text, which may hold several tokens. TPOT: from first to last
text over the tokens after the first. E2EL: sending to the end.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from sirocco.bench import report, workload
from sirocco.bench.client import Client, Outcome
from sirocco.bench.stats import summary
from sirocco.bench.workload import DatasetLine, Prompt
from sirocco.runtime.errors import EngineUnavailableError

COLUMNS = (
    ("requests done", "completed"),
    ("errors", "errors"),
    ("concurrency", "concurrency"),
    ("request rate asked", "request_rate"),
    ("requests/s", "request_throughput"),
    ("output tokens/s", "output_tps"),
    ("total tokens/s", "total_tps"),
    ("cached prompt tokens", "cached_tokens"),
    ("goodput requests/s", "goodput"),
    *(
        (f"{label} ms {figure}", f"{label.lower()}_ms.{figure}")
        for label in ("TTFT", "TPOT", "ITL", "E2EL")
        for figure in ("mean", "p50", "p99")
    ),
    ("client CPU s", "client_cpu_s"),
    ("client CPU share", "client_cpu_share"),
)

_PROBE_WORDS = 32
_SHORT_PROBE_WORDS = 8


@dataclass(frozen=True, slots=True)
class ServeBench:
    """What to ask a server. With a `request_rate` requests come at random moments, else `concurrency` run at once."""

    base_url: str
    endpoint: str = "completions"
    model: str = "default"
    api_key: str | None = None
    num_prompts: int = 64
    request_rate: float | None = None
    concurrency: int = 8
    prompt_len: int = 128
    gen_len: int = 64
    dataset: Sequence[DatasetLine] | None = None
    goodput: dict[str, float] = field(default_factory=dict)
    timeout: float = 600.0
    seed: int = 0


def measure(bench: ServeBench) -> dict[str, Any]:
    """Run the load and return its figures. Raises `EngineUnavailableError` when the first request already fails."""
    import uvloop

    return uvloop.run(_measure(bench))


async def _measure(bench: ServeBench) -> dict[str, Any]:
    client = Client(bench.base_url, bench.api_key, bench.timeout)
    rng = random.Random(bench.seed)
    try:
        prompts = await _prompts(bench, client, rng)
        messages = [_encode(bench, client, prompt) for prompt in prompts]
        cpu, start = time.process_time(), time.perf_counter()
        outcomes = await _load(bench, client, messages, rng)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    finally:
        client.close()
    return {
        "prompt_len": bench.prompt_len if bench.dataset is None else None,
        "gen_len": bench.gen_len if bench.dataset is None else None,
        "concurrency": min(bench.concurrency, bench.num_prompts) if bench.request_rate is None else None,
        "request_rate": bench.request_rate,
        **figures(outcomes, wall, bench.goodput),
        "client_cpu_s": round(cpu, 3),
        "client_cpu_share": round(cpu / wall, 4),
        "client_peak_rss_mib": report.peak_rss_mib(),
        "model": bench.model,
        "path": f"{bench.base_url} {bench.endpoint}",
        "seed": bench.seed,
        "versions": report.versions("sirocco", "uvloop"),
        # Facts about the server that a client cannot see.
        "prefill_tps": None,
        "decode_tps": None,
        "load_s": None,
        "peak_rss_mib": None,
        "device": None,
        "dtype": None,
    }


def figures(outcomes: Sequence[Outcome], wall: float, goodput: dict[str, float]) -> dict[str, Any]:
    """All that follows from what the client saw within `wall` seconds; what a server did not count is None."""
    good = [outcome for outcome in outcomes if outcome.error is None and outcome.arrivals]
    empty = sum(1 for outcome in outcomes if outcome.error is None and not outcome.arrivals)
    errors = Counter(outcome.error for outcome in outcomes if outcome.error is not None)
    if empty:
        errors["no_text"] = empty
    counted = all(outcome.prompt_tokens for outcome in good)
    prompt_tokens = sum(outcome.prompt_tokens for outcome in good) if counted else None
    output_tokens = sum(_num_tokens(outcome) for outcome in good)
    cached = [outcome.cached_tokens for outcome in good if outcome.cached_tokens is not None]
    within = sum(1 for outcome in good if _meets(outcome, goodput))
    return {
        "completed": len(good),
        "errors": dict(sorted(errors.items())),
        "duration_s": round(wall, 3),
        "prompt_tokens": prompt_tokens,
        "cached_tokens": sum(cached) if cached else None,
        "output_tokens": output_tokens,
        "request_throughput": round(len(good) / wall, 3),
        "output_tps": round(output_tokens / wall, 3),
        "total_tps": None if prompt_tokens is None else round((prompt_tokens + output_tokens) / wall, 3),
        "goodput": round(within / wall, 3) if goodput else None,
        "goodput_limits_ms": goodput or None,
        "ttft_ms": summary([_ttft(outcome) for outcome in good]),
        "tpot_ms": summary([tpot for outcome in good if (tpot := _tpot(outcome)) is not None]),
        "itl_ms": summary([gap for outcome in good for gap in _gaps(outcome)]),
        "e2el_ms": summary([outcome.end - outcome.start for outcome in good]),
    }


def _ttft(outcome: Outcome) -> float:
    return outcome.arrivals[0] - outcome.start


def _tpot(outcome: Outcome) -> float | None:
    tokens = _num_tokens(outcome)
    return (outcome.arrivals[-1] - outcome.arrivals[0]) / (tokens - 1) if tokens > 1 else None


def _gaps(outcome: Outcome) -> list[float]:
    return [later - earlier for earlier, later in pairwise(outcome.arrivals)]


def _num_tokens(outcome: Outcome) -> int:
    """As the server counts them; a server without usage is taken to send one token a chunk."""
    return outcome.completion_tokens or len(outcome.arrivals)


def _meets(outcome: Outcome, limits: dict[str, float]) -> bool:
    gaps = _gaps(outcome)
    measured = {
        "ttft": _ttft(outcome),
        "tpot": _tpot(outcome) or 0.0,
        "itl": sum(gaps) / len(gaps) if gaps else 0.0,
        "e2el": outcome.end - outcome.start,
    }
    return all(measured[name] * 1000 <= limit for name, limit in limits.items())


async def _prompts(bench: ServeBench, client: Client, rng: random.Random) -> list[Prompt]:
    """The prompts; random ones are as long as asked by the server's own count of first, unmeasured requests."""
    num_tokens = await _count(bench, client, rng, _PROBE_WORDS)
    if bench.dataset is not None:
        return workload.from_dataset(bench.dataset, bench.num_prompts, bench.gen_len)
    words = max(1, await _num_words(bench, client, rng, num_tokens))
    return [Prompt(workload.random_text(words, rng), bench.gen_len) for _ in range(bench.num_prompts)]


async def _num_words(bench: ServeBench, client: Client, rng: random.Random, num_tokens: int) -> int:
    """How many words make the length asked for, when `_PROBE_WORDS` make `num_tokens`.

    A second probe tells what a word takes from what a template adds to any text.
    """
    proportional = round(bench.prompt_len * _PROBE_WORDS / num_tokens)
    words = proportional if proportional >= 2 * _PROBE_WORDS else _SHORT_PROBE_WORDS
    more_words = words - _PROBE_WORDS
    more_tokens = await _count(bench, client, rng, words) - num_tokens
    if more_words * more_tokens <= 0:
        return proportional  # these counts say nothing of lengths
    return round(_PROBE_WORDS + (bench.prompt_len - num_tokens) * more_words / more_tokens)


async def _count(bench: ServeBench, client: Client, rng: random.Random, words: int) -> int:
    """The tokens of a prompt of so many random words as the server counts them; the words where it does not count."""
    outcome = await client.post(_encode(bench, client, Prompt(workload.random_text(words, rng), 1)))
    if outcome.error is not None:
        raise EngineUnavailableError(f"the server at {bench.base_url} does not answer as expected: {outcome.error}")
    return outcome.prompt_tokens or words


def _encode(bench: ServeBench, client: Client, prompt: Prompt) -> bytes:
    payload: dict[str, Any] = {
        "model": bench.model,
        "max_tokens": prompt.max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if bench.endpoint == "chat":
        return client.encode("/chat/completions", {**payload, "messages": prompt.messages})
    return client.encode("/completions", {**payload, "prompt": prompt.text})


async def _load(bench: ServeBench, client: Client, messages: Sequence[bytes], rng: random.Random) -> list[Outcome]:
    if bench.request_rate is None:
        waiting = iter(messages)

        async def worker() -> list[Outcome]:
            return [await client.post(message) for message in waiting]

        parts = await asyncio.gather(*(worker() for _ in range(min(bench.concurrency, len(messages)))))
        return [outcome for part in parts for outcome in part]
    loop = asyncio.get_running_loop()
    start = loop.time()
    tasks = []
    for due, message in zip(workload.arrivals(bench.request_rate, len(messages), rng), messages, strict=True):
        await asyncio.sleep(max(0.0, start + due - loop.time()))
        tasks.append(asyncio.create_task(client.post(message)))
    return list(await asyncio.gather(*tasks))
