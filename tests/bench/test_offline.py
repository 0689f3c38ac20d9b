"""The offline measurement, on an engine client with a clock of its own."""

import asyncio
import random

import pytest

from sirocco.bench import offline
from sirocco.bench.offline import OfflineBench, Round, figures, run_round
from sirocco.runtime.errors import EngineDiedError, GenerationError, RequestError
from sirocco.runtime.wire import EngineInfo, SequenceOutput

INFO = EngineInfo("fake", 64, 100, 16, 10, 1, 8, 8, "cpu", "float32", 0, 0.0)


class FakeClient:
    """Answers each request in the next turns of the loop; `ending` is how its last token ends it."""

    info = INFO

    def __init__(self, ending="length", error=None):
        self.ending, self.error = ending, error
        self.requests, self.aborted = [], []

    def next_id(self):
        return len(self.requests)

    def add(self, request, sink):
        self.requests.append(request)
        asyncio.get_running_loop().call_soon(self._serve, request, sink)

    def _serve(self, request, sink):
        if self.error is not None:
            sink.fail(self.error)
            return
        sink.push(SequenceOutput(request.id, 0, [1]))
        sink.push(SequenceOutput(request.id, 0, [1] * (request.sampling.max_tokens - 1), self.ending))

    def abort(self, id, index=None):
        self.aborted.append(id)


def test_round_asks_for_fresh_prompts_of_the_right_length():
    client = FakeClient()
    rng = random.Random(0)
    first = asyncio.run(run_round(client, 12, 5, 3, rng))
    asyncio.run(run_round(client, 12, 5, 3, rng))
    prompts = {tuple(request.prompt_token_ids) for request in client.requests}
    assert len(prompts) == 6 and {len(prompt) for prompt in prompts} == {12}
    assert all(0 <= token < 100 for prompt in prompts for token in prompt)
    assert all(request.sampling.stop_token_ids == () for request in client.requests)
    assert [len(times) for times in first.arrivals] == [5, 5, 5]


@pytest.mark.parametrize("client", [FakeClient(ending="stop"), FakeClient(error=EngineDiedError("died"))])
def test_a_request_that_fails_ends_the_round(client):
    client.ending = "error" if client.error is None else client.ending
    with pytest.raises((GenerationError, EngineDiedError)):
        asyncio.run(run_round(client, 4, 3, 2, random.Random(0)))
    assert len(client.aborted) == 2


def test_figures_by_hand():
    one = Round(100, [[1.0, 2.0, 3.0], [2.0, 3.0, 4.0, 5.0]])
    assert one.prefill_tps == 100.0  # 200 prompt tokens until second 2
    assert one.decode_tps == pytest.approx(4 / 3)  # at 3, 3, 4 and 5, from second 2 on
    assert one.total_tps == pytest.approx(7 / 5)
    found = figures([one])
    assert found["ttft_ms"]["p50"] == 1500.0
    assert found["itl_ms"] == {"mean": 1000.0, "p50": 1000.0, "p99": 1000.0}


def test_one_token_has_no_decode_speed():
    assert figures([Round(10, [[0.5], [0.5]])])["decode_tps"] is None


def test_lengths_that_do_not_fit():
    with pytest.raises(RequestError, match="context of 64"):
        offline._check_lengths(INFO, OfflineBench({}, prompt_lens=[60], gen_lens=[10]))
    with pytest.raises(RequestError, match="queue"):
        offline._check_lengths(INFO, OfflineBench({}, prompt_lens=[6], gen_lens=[10], concurrencies=[100]))


def test_tiny_model():
    bench = OfflineBench({"device": "cpu"}, "tiny", [16], [4], [1, 2], iterations=1, warmup=0)
    rows = offline.measure(bench)
    assert [row["concurrency"] for row in rows] == [1, 2]
    wanted = (
        *("prompt_len", "gen_len", "concurrency", "prefill_tps", "decode_tps", "ttft_ms", "itl_ms"),
        *("peak_rss_mib", "load_s", "device", "dtype", "model", "path", "versions"),
    )
    for row in rows:
        assert all(row[key] is not None for key in wanted)
        assert row["model"] == "tiny" and row["prompt_len"] == 16 and row["prefill_tps"] > 0


def test_how_many_sequences_the_engine_computes_at_once_is_told():
    bench = OfflineBench({"device": "cpu", "max_num_seqs": 3}, "tiny", [4], [2], [1], iterations=1, warmup=0)
    assert [row["max_num_seqs"] for row in offline.measure(bench)] == [3]
    assert "max_num_seqs" in dict(offline.COLUMNS).values()


def test_unknown_shape():
    from sirocco.runtime.errors import ModelLoadError

    with pytest.raises(ModelLoadError, match="unknown model shape"):
        offline.measure(OfflineBench({}, "no-such-shape"))
