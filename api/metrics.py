"""What the server measures, under the names vLLM uses with `sirocco:` for `vllm:`.

Recording is plain integer arithmetic on one thread; the Prometheus families are built when somebody asks for them.
"""

import asyncio
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from sirocco.runtime.errors import RequestCancelledError
from sirocco.runtime.request import Choice, FinishReason, StreamEvent
from sirocco.runtime.wire import EngineStats


def _bounds(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split()))


# vLLM's bounds, so that boards made for it fit
_TTFT_BOUNDS = _bounds("0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1 2.5 5 7.5 10 20 40 80")
_ITL_BOUNDS = _bounds("0.001 0.0025 0.005 0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1 2.5 5 10")
_E2E_BOUNDS = _bounds("0.05 0.1 0.3 0.5 0.8 1 1.5 2 2.5 5 10 15 20 30 40 60 120 240 480")
_HTTP_BOUNDS = _bounds("0.001 0.005 0.01 0.05 0.1 0.5 1 5 10 30 60 300")


class Histogram:
    """Counts of values by upper bound, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts as Prometheus wants them."""
        pairs, running = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            running += count
            pairs.append((bound, float(running)))
        return pairs


class Metrics:
    """All counters of one server. `stats` gives the engine's latest snapshot, or None while there is no engine."""

    def __init__(self, model_name: Callable[[], str], stats: Callable[[], EngineStats | None]) -> None:
        self.first_token = Histogram(_TTFT_BOUNDS)
        self.inter_token = Histogram(_ITL_BOUNDS)
        self.latency = Histogram(_E2E_BOUNDS)
        self.finished: Counter[str] = Counter()
        self.rejected = 0
        self.http_requests: Counter[tuple[str, str, str]] = Counter()
        self.http_seconds: dict[tuple[str, str], Histogram] = {}
        self.http_in_flight = 0
        self._registry = CollectorRegistry()
        self._registry.register(_Families(self, model_name, stats))

    def record_http(self, method: str, path: str, status: int, seconds: float) -> None:
        """`path` is the route's pattern, never what the client sent: labels stay bounded."""
        self.http_requests[method, path, str(status)] += 1
        histogram = self.http_seconds.get((method, path))
        if histogram is None:
            histogram = self.http_seconds[method, path] = Histogram(_HTTP_BOUNDS)
        histogram.observe(seconds)

    def request(self, start: float, num_choices: int) -> "RequestMeter":
        """A meter for a request that arrived at `start`, in `time.perf_counter()` seconds."""
        return RequestMeter(self, start, num_choices)

    def exposition(self) -> bytes:
        """Everything in the Prometheus text format."""
        return generate_latest(self._registry)


class RequestMeter:
    """Times one generation request. Time to first token and between tokens are seen on streams only.

    Leaving it as a context counts the choices that have not finished, as "abort" or, after a failure, as "error".
    """

    __slots__ = ("_last", "_metrics", "_num_running", "_start")

    def __init__(self, metrics: Metrics, start: float, num_choices: int) -> None:
        self._metrics = metrics
        self._start = start
        self._num_running = num_choices
        self._last: dict[int, float] = {}

    def __enter__(self) -> "RequestMeter":
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._num_running:
            aborted = error is None or isinstance(error, asyncio.CancelledError | RequestCancelledError)
            self._metrics.finished["abort" if aborted else "error"] += self._num_running

    def observe(self, event: StreamEvent) -> None:
        """Record one stream event as it arrives."""
        count = len(event.token_ids)
        if count:
            now = time.perf_counter()
            last = self._last.get(event.index)
            if last is None:
                if not self._last:
                    self._metrics.first_token.observe(now - self._start)
                if count > 1:  # more than one token at once: nothing lay between them
                    self._metrics.inter_token.observe(0.0, count - 1)
            else:
                self._metrics.inter_token.observe((now - last) / count, count)
            self._last[event.index] = now
        if event.finish_reason is not None:
            self._metrics.finished[event.finish_reason] += 1
            self._num_running -= 1
        if event.usage is not None:
            self._metrics.latency.observe(time.perf_counter() - self._start)

    def finish(self, choices: Sequence[Choice]) -> None:
        """Record a request that was answered whole."""
        for choice in choices:
            self._metrics.finished[choice.finish_reason] += 1
        self._num_running -= len(choices)
        self._metrics.latency.observe(time.perf_counter() - self._start)


class _Families(Collector):
    def __init__(
        self, metrics: Metrics, model_name: Callable[[], str], stats: Callable[[], EngineStats | None]
    ) -> None:
        self._metrics = metrics
        self._model_name = model_name
        self._stats = stats

    def describe(self) -> list[Metric]:
        return []  # asked once at registration, before there is an engine

    def collect(self) -> Iterator[Metric]:
        model = self._model_name()
        stats = self._stats()
        if stats is not None:
            for family, name, text, value in _ENGINE_FAMILIES:
                yield _labelled(family(f"sirocco:{name}", text, labels=["model_name"]), model, value(stats))
        metrics = self._metrics
        for name, text, histogram in (
            ("time_to_first_token_seconds", "Time to the first token of streams.", metrics.first_token),
            ("inter_token_latency_seconds", "Time between tokens of streams.", metrics.inter_token),
            ("e2e_request_latency_seconds", "Time of whole requests.", metrics.latency),
        ):
            times = HistogramMetricFamily(f"sirocco:{name}", text, labels=["model_name"])
            times.add_metric([model], histogram.buckets(), histogram.total)
            yield times
        success = CounterMetricFamily(
            "sirocco:request_success", "Finished sequences by reason.", labels=["model_name", "finished_reason"]
        )
        for reason in get_args(FinishReason):
            success.add_metric([model, reason], metrics.finished[reason])
        yield success
        rejections = CounterMetricFamily(
            "sirocco:admission_rejections", "Requests refused because the queue was full.", labels=["model_name"]
        )
        yield _labelled(rejections, model, metrics.rejected)
        yield from _http_families(metrics)


_Scalar = CounterMetricFamily | GaugeMetricFamily

_ENGINE_FAMILIES: tuple[tuple[type[_Scalar], str, str, Callable[[EngineStats], float]], ...] = (
    (GaugeMetricFamily, "num_requests_running", "Sequences being computed.", lambda s: s.running),
    (GaugeMetricFamily, "num_requests_waiting", "Sequences waiting to be computed.", lambda s: s.waiting),
    (
        GaugeMetricFamily,
        "kv_cache_usage_perc",
        "Part of the cache blocks in use; 1 is all.",
        lambda s: s.blocks_used / s.blocks_total if s.blocks_total else 0.0,
    ),
    (GaugeMetricFamily, "kv_cache_blocks_used", "Cache blocks in use.", lambda s: s.blocks_used),
    (GaugeMetricFamily, "kv_cache_blocks", "Cache blocks there are.", lambda s: s.blocks_total),
    (CounterMetricFamily, "prompt_tokens", "Prompt tokens taken in, cached ones too.", lambda s: s.prompt_tokens),
    (CounterMetricFamily, "generation_tokens", "Tokens generated.", lambda s: s.generated_tokens),
    (CounterMetricFamily, "prefix_cache_queries", "Prompt tokens looked up.", lambda s: s.prefix_queries),
    (CounterMetricFamily, "prefix_cache_hits", "Prompt tokens found cached.", lambda s: s.prefix_hits),
    (CounterMetricFamily, "num_preemptions", "Sequences preempted for want of blocks.", lambda s: s.preemptions),
    (CounterMetricFamily, "engine_steps", "Steps the engine ran.", lambda s: s.steps),
    (
        CounterMetricFamily,
        "cuda_graph_misses",
        "Steps of decodes that no captured graph held.",
        lambda s: s.graph_misses,
    ),
)


def _labelled(family: _Scalar, model: str, value: float) -> Metric:
    family.add_metric([model], value)
    return family


def _http_families(metrics: Metrics) -> Iterator[Metric]:
    where = ["method", "path"]
    requests = CounterMetricFamily("http_requests", "Answered HTTP requests.", labels=[*where, "status"])
    for labels, count in metrics.http_requests.items():
        requests.add_metric(list(labels), count)
    yield requests
    seconds = HistogramMetricFamily("http_request_duration_seconds", "Time of HTTP requests.", labels=where)
    for pair, histogram in metrics.http_seconds.items():
        seconds.add_metric(list(pair), histogram.buckets(), histogram.total)
    yield seconds
    yield GaugeMetricFamily("http_requests_in_flight", "HTTP requests being answered.", value=metrics.http_in_flight)
