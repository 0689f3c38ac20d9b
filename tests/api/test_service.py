"""Models, readiness and metrics."""

import asyncio
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sirocco.api.app import create_app
from sirocco.api.metrics import Histogram, Metrics
from sirocco.runtime.errors import GenerationError, OverloadedError, TemplateError
from sirocco.runtime.request import StreamEvent, Usage
from sirocco.runtime.wire import EngineStats

from .harness import CHAT, COMPLETIONS, HELLO, FakeEngine, ask, call, open_request, scenario


def test_models():
    reply = ask("/v1/models").json
    (card,) = reply["data"]
    assert reply["object"] == "list"
    assert card["id"] == "fake" and card["object"] == "model" and card["owned_by"] == "local"
    assert card["status"] == "loaded" and card["max_model_len"] == 128 and card["tools_available"] is True
    assert ask("/v1/models/fake").json == {**card, "created": ask("/v1/models/default").json["created"]}
    assert ask("/v1/models/other").status == 404


def test_model_that_is_still_loading():
    engine = FakeEngine()
    engine.client.state = "starting"
    (card,) = ask("/v1/models", engine=engine).json["data"]
    assert card["status"] == "loading" and card["max_model_len"] is None


def test_models_whose_templates_cannot_be_told_apart_have_no_tools():
    class Unclear:
        @property
        def source(self):
            raise TemplateError("none of them is the default")

    engine = FakeEngine()
    engine.template = Unclear()
    assert ask("/v1/models", engine=engine).json["data"][0]["tools_available"] is False


def test_ready():
    assert ask("/ready").json == {"state": "ready", "reason": None}
    engine = FakeEngine()
    engine.client.state, engine.client.state_reason = "failed", "five deaths in a minute"
    reply = ask("/ready", engine=engine)
    assert reply.status == 503 and reply.json == {"state": "failed", "reason": "five deaths in a minute"}
    assert ask("/health", engine=engine).body == b"OK"


def samples(text):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_metrics():
    async def main():
        engine = FakeEngine()
        engine.client.stats = EngineStats(2, 3, 5, 10, 7, 100, 200, 4, 50, 25, graph_misses=6)
        app = create_app(engine)
        await call(app, CHAT, {"messages": HELLO, "stream": True})
        await call(app, CHAT, {"messages": HELLO, "n": 2})
        engine.submit_error = OverloadedError("full")
        await call(app, CHAT, {"messages": HELLO})
        reply = await call(app, "/metrics")
        assert reply.headers[b"content-type"].startswith(b"text/plain")
        found = samples(reply.body)
        model = ("model_name", "fake")
        expected = {
            "num_requests_running": 2,
            "num_requests_waiting": 3,
            "kv_cache_usage_perc": 0.5,
            "kv_cache_blocks_used": 5,
            "kv_cache_blocks": 10,
            "cuda_graph_misses_total": 6,
            "engine_steps_total": 7,
            "prompt_tokens_total": 100,
            "generation_tokens_total": 200,
            "num_preemptions_total": 4,
            "prefix_cache_queries_total": 50,
            "prefix_cache_hits_total": 25,
            "time_to_first_token_seconds_count": 1,
            "inter_token_latency_seconds_count": 4,
            "e2e_request_latency_seconds_count": 2,
            "admission_rejections_total": 1,
        }
        assert {name: found[f"sirocco:{name}", model] for name in expected} == expected
        assert found["sirocco:request_success_total", ("finished_reason", "stop"), model] == 3
        route = (("method", "POST"), ("path", CHAT))
        assert found["http_requests_total", *route, ("status", "200")] == 2
        assert found["http_requests_total", *route, ("status", "429")] == 1
        assert found["http_request_duration_seconds_count", *route] == 3
        assert found["http_requests_in_flight",] == 1  # the scrape itself

    scenario(main)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("stream", [False, True])
def test_choices_that_were_cut_short_are_counted(path, stream):
    async def main():
        engine = FakeEngine("a", "b")
        app = create_app(engine)
        body = {"messages": HELLO, "prompt": "x", "n": 2, "stream": stream}
        engine.failure, engine.failure_after = GenerationError("broken"), 3  # one choice has ended
        await call(app, path, body)
        engine.failure, engine.free = None, 2
        leaving = open_request(app, path, body)
        while len(engine.streams) < 2:
            await asyncio.sleep(0)
        await engine.streams[1].waiting.wait()
        leaving.leave()
        await leaving.response()
        ended = app.service.metrics.finished
        assert ended["abort"] == 2 and ended["error"] == (1 if stream else 2)

    scenario(main)


def test_refused_embeddings_are_counted():
    class Full(FakeEngine):
        async def tokenize_inputs(self, texts, truncate=False, **_):
            raise OverloadedError("full")

    async def main():
        app = create_app(Full())
        assert (await call(app, "/v1/embeddings", {"input": "x"})).status == 429
        assert app.service.metrics.rejected == 1

    scenario(main)


def test_every_statistic_of_the_engine_is_a_metric():
    names = EngineStats.__struct_fields__

    def exposed(**changed):
        stats = EngineStats(**dict.fromkeys(names, 2) | changed)
        return Metrics(lambda: "m", lambda: stats).exposition()

    unseen = [name for name in names if exposed(**{name: 1}) == exposed()]
    assert not unseen


def test_labels_do_not_grow_with_what_clients_send():
    async def main():
        app = create_app(FakeEngine())
        for i in range(5):
            await call(app, f"/nothing/{i}", method=f"M{i}")
        assert list(app.service.metrics.http_requests) == [("other", "unknown", "404")]

    scenario(main)


def test_histogram_buckets():
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    histogram.observe(0.1, times=2)
    assert histogram.buckets() == [("1.0", 4.0), ("2.0", 5.0), ("+Inf", 6.0)]
    assert abs(histogram.total - 12.2) < 1e-9


def test_meter_counts_tokens_not_events():
    metrics = Metrics(lambda: "m", lambda: None)
    meter = metrics.request(time.perf_counter(), 2)
    meter.observe(StreamEvent(0, "", []))
    assert sum(metrics.first_token.counts) == 0
    meter.observe(StreamEvent(0, "a", [1]))
    meter.observe(StreamEvent(1, "b", [2]))
    meter.observe(StreamEvent(0, "cde", [3, 4, 5], None, "length", Usage(1, 0, 5)))
    assert sum(metrics.first_token.counts) == 1
    assert sum(metrics.inter_token.counts) == 3
    assert metrics.finished["length"] == 1 and sum(metrics.latency.counts) == 1
