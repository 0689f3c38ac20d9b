"""The load client against small servers that behave and misbehave."""

import asyncio
import json
import random

import pytest
import uvloop

from sirocco.bench import workload
from sirocco.bench.client import Client, Outcome
from sirocco.bench.serve import ServeBench, _measure, figures
from sirocco.runtime.errors import EngineUnavailableError, RequestError


def event(text=None, usage=None, **extra):
    choices = [{"index": 0, "text": text}] if text is not None else []
    return b"data: " + json.dumps({"choices": choices, "usage": usage, **extra}).encode() + b"\n\n"


USAGE = event(usage={"prompt_tokens": 8, "completion_tokens": 3})
ANSWER = event("a") + b": keep-alive\n\n" + event("") + event("b") + USAGE + b"data: [DONE]\n\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunked(body, size):
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    return CHUNKED + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


class Server:
    """Answers every request with the same bytes, in pieces; counts connections and keeps the requests."""

    def __init__(self, answer, piece=10**9, then_close=False):
        self.answer, self.piece, self.then_close = answer, piece, then_close
        self.connections, self.requests = 0, []
        self.busy = self.most_busy = 0

    async def _serve(self, reader, writer):
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.requests.append((head, json.loads(await reader.readexactly(length))))
                self.busy += 1
                self.most_busy = max(self.most_busy, self.busy)
                for start in range(0, len(self.answer), self.piece):
                    writer.write(self.answer[start : start + self.piece])
                    await writer.drain()
                    await asyncio.sleep(0)
                self.busy -= 1
                if self.then_close:
                    break
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *exc):
        self.server.close()


def ask(answer, times=1, timeout=5.0, **kwargs):
    async def main():
        async with Server(answer, **kwargs) as server:
            client = Client(server.url, "key", timeout)
            message = client.encode("/completions", {"prompt": "x"})
            outcomes = [await client.post(message) for _ in range(times)]
            client.close()
            return server, outcomes

    return asyncio.run(asyncio.wait_for(main(), 20))


FIXED = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER)
CRLF = ANSWER.replace(b"\n", b"\r\n")
TO_END = b"HTTP/1.1 200 OK\r\n\r\n" + ANSWER


@pytest.mark.parametrize("piece", [1, 3, 50, 10**9])
@pytest.mark.parametrize("answer", [chunked(ANSWER, 5), chunked(ANSWER, 10**6), chunked(CRLF, 7), FIXED])
def test_answers_however_they_are_cut(answer, piece):
    server, outcomes = ask(answer, times=2, piece=piece)
    for outcome in outcomes:
        assert outcome.error is None
        assert len(outcome.arrivals) == 2  # the empty text and the comment are none
        assert (outcome.prompt_tokens, outcome.completion_tokens) == (8, 3)
        assert outcome.start <= outcome.arrivals[0] <= outcome.arrivals[1] <= outcome.end
    assert server.connections == 1
    head, body = server.requests[0]
    assert head.startswith(b"POST /v1/completions HTTP/1.1\r\n") and b"Authorization: Bearer key\r\n" in head
    assert body == {"prompt": "x"}


def test_events_with_other_fields_before_their_data():
    body = ANSWER.replace(b"data: {", b"event: chunk\nid: 7\ndata: {").replace(b"data: [", b"id: 8\ndata: [")
    _, (outcome,) = ask(chunked(b"event: ping\n\n" + body, 11))
    assert outcome.error is None and len(outcome.arrivals) == 2 and outcome.completion_tokens == 3


def test_data_of_several_lines_is_one_text():
    body = b'data: {"choices":\ndata:[{"text": "a"}]}\n\ndata: [DONE]\n\n'
    _, (outcome,) = ask(chunked(body, 99))
    assert outcome.error is None and len(outcome.arrivals) == 1


def test_answer_that_ends_with_the_connection():
    server, outcomes = ask(TO_END, times=2, then_close=True)
    assert [outcome.error for outcome in outcomes] == [None, None] and server.connections == 2


def test_chat_deltas_count():
    chunks = [
        {"role": "assistant"},
        {"content": "a"},
        {"reasoning_content": "b"},
        {"reasoning": "b"},
        {"tool_calls": [{}]},
        {"content": ""},
    ]
    body = b"".join(b"data: " + json.dumps({"choices": [{"delta": delta}]}).encode() + b"\n\n" for delta in chunks)
    _, (outcome,) = ask(chunked(body + b"data: [DONE]\n\n", 100))
    assert outcome.error is None and len(outcome.arrivals) == 4


def test_cached_tokens_are_told_where_the_server_counts_them():
    usage = {"prompt_tokens": 8, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 5}}
    for details, cached in ((usage, 5), (usage | {"prompt_tokens_details": None}, None)):
        _, (outcome,) = ask(chunked(event("a") + event(usage=details) + b"data: [DONE]\n\n", 99))
        assert outcome.cached_tokens == cached
        assert figures([outcome, outcome], 1.0, {})["cached_tokens"] == (cached and 2 * cached)


@pytest.mark.parametrize(
    "answer, close, error",
    [
        (b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\n{}", False, "http_429"),
        (chunked(event("a") + event(error={"message": "x"}) + b"data: [DONE]\n\n", 99), False, "stream_error"),
        (chunked(event("a"), 99), False, "cut_off"),
        (CHUNKED + b"5\r\ndata:", True, "disconnected"),
        (b"HTTP/1.1 200 OK\r\n", True, "disconnected"),
        (b"", True, "disconnected"),
        (b"nonsense\r\n\r\n", False, "bad_response"),
        (CHUNKED + b"xyz\r\n", False, "bad_response"),
        (CHUNKED + b"-5\r\n", False, "bad_response"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", False, "bad_response"),
        (chunked(b"data: {broken\n\n", 99), False, "bad_response"),
        (b"x" * 70_000, False, "bad_response"),
    ],
)
def test_errors_by_kind(answer, close, error):
    _, outcomes = ask(answer, times=2, then_close=close)
    assert [outcome.error for outcome in outcomes] == [error, error]


def test_timeout_and_refused_connection():
    _, (outcome,) = ask(CHUNKED, timeout=0.05)
    assert outcome.error == "timeout"

    async def main():
        async with Server(b"") as server:
            client = Client(server.url, None, 5.0)
        await server.server.wait_closed()
        return await client.post(client.encode("/x", {}))

    assert asyncio.run(main()).error == "connect"


def test_whole_measurement():
    async def main():
        async with Server(chunked(ANSWER, 40)) as server:
            bench = ServeBench(
                server.url, num_prompts=12, concurrency=3, prompt_len=16, gen_len=5, goodput={"ttft": 1e6}
            )
            return server, await _measure(bench)

    server, result = uvloop.run(asyncio.wait_for(main(), 20))
    assert result["completed"] == 12 and result["errors"] == {} and result["output_tokens"] == 36
    assert server.connections == 3 and server.most_busy == 3
    bodies = [body for _, body in server.requests[2:]]  # the first two probe
    assert all(body["max_tokens"] == 5 and body["ignore_eos"] and body["stream"] for body in bodies)
    # 8 tokens whatever was sent say nothing of a template, so 16 tokens are twice the first probe's 32 words.
    assert {len(body["prompt"].split()) for body in bodies} == {64}
    assert result["goodput"] == result["request_throughput"]
    assert result["client_cpu_s"] > 0 and 0 < result["client_cpu_share"] <= 1.5
    assert result["client_peak_rss_mib"] > 5 and result["peak_rss_mib"] is None  # the server's is not known
    assert (result["prompt_len"], result["gen_len"]) == (16, 5)


class Template(Server):
    """Counts a text's words and, beside them, the tokens that a chat template adds."""

    def __init__(self, overhead, tokens_per_word=1.0):
        super().__init__(ANSWER)
        self.overhead, self.tokens_per_word = overhead, tokens_per_word

    def count(self, body):
        text = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
        return round(len(text.split()) * self.tokens_per_word) + self.overhead

    @property
    def answer(self):
        usage = {"prompt_tokens": self.count(self.requests[-1][1]), "completion_tokens": 1}
        return chunked(event("a") + event(usage=usage) + b"data: [DONE]\n\n", 99)

    @answer.setter
    def answer(self, ignored):
        pass


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("overhead, tokens_per_word", [(36, 1.0), (1, 1.3), (0, 4.0), (1000, 1.0)])
@pytest.mark.parametrize("wanted", [33, 128, 2048])
def test_prompts_are_as_long_as_asked_however_much_the_template_adds(endpoint, overhead, tokens_per_word, wanted):
    async def main():
        async with Template(overhead, tokens_per_word) as server:
            await _measure(ServeBench(server.url, endpoint, num_prompts=2, prompt_len=wanted))
            return [server.count(body) for _, body in server.requests[2:]]

    shortest = overhead + round(tokens_per_word)
    for sent in uvloop.run(asyncio.wait_for(main(), 20)):
        assert abs(sent - max(wanted, shortest)) <= max(tokens_per_word, 0.01 * wanted)


def test_more_at_once_than_there_are_prompts():
    async def main():
        async with Server(chunked(ANSWER, 40)) as server:
            return await _measure(ServeBench(server.url, num_prompts=2, concurrency=8))

    assert uvloop.run(asyncio.wait_for(main(), 20))["concurrency"] == 2


def test_chat_at_a_request_rate_from_a_dataset():
    lines = [
        workload.DatasetLine(prompt="a"),
        workload.DatasetLine(messages=[{"role": "user", "content": "b"}], max_tokens=9),
    ]

    async def main():
        async with Server(chunked(ANSWER, 40)) as server:
            bench = ServeBench(server.url, "chat", num_prompts=4, request_rate=1e6, dataset=lines)
            return server, await _measure(bench)

    server, result = asyncio.run(asyncio.wait_for(main(), 20))
    assert result["completed"] == 4 and result["request_rate"] == 1e6 and result["concurrency"] is None
    asked = sorted((body["messages"][0]["content"], body["max_tokens"]) for _, body in server.requests[1:])
    assert asked == [("a", 64), ("a", 64), ("b", 9), ("b", 9)]
    assert result["prompt_len"] is None and result["gen_len"] is None  # each line has its own


def test_server_that_does_not_answer():
    with pytest.raises(EngineUnavailableError, match="connect"):
        asyncio.run(_measure(ServeBench("http://127.0.0.1:9/v1", timeout=1.0)))


def test_figures_by_hand():
    good = Outcome(start=0.0, end=4.0, arrivals=[1.0, 2.0, 4.0], prompt_tokens=10, completion_tokens=7)
    slow = Outcome(start=0.0, end=9.0, arrivals=[8.0], prompt_tokens=10)
    bad = Outcome(start=0.0, end=1.0, error="http_503")
    found = figures([good, slow, bad, Outcome(end=1.0)], 10.0, {"ttft": 2000.0, "itl": 1600.0})
    assert found["completed"] == 2 and found["errors"] == {"http_503": 1, "no_text": 1}
    assert found["output_tokens"] == 8 and found["output_tps"] == 0.8 and found["total_tps"] == 2.8
    assert found["goodput"] == 0.1
    assert found["ttft_ms"]["mean"] == 4500.0 and found["itl_ms"]["p50"] == 1500.0
    assert found["tpot_ms"]["mean"] == 500.0  # three seconds over six tokens after the first
    assert found["e2el_ms"]["p50"] == 6500.0


def test_no_total_from_a_server_that_counts_no_prompt_tokens():
    found = figures([Outcome(start=0.0, end=2.0, arrivals=[1.0, 2.0])], 1.0, {})
    assert found["output_tps"] == 2.0 and found["total_tps"] is None and found["prompt_tokens"] is None


def test_arrivals():
    assert list(workload.arrivals(None, 3, random.Random(0))) == [0.0, 0.0, 0.0]
    due = list(workload.arrivals(50.0, 2001, random.Random(0)))
    assert due[0] == 0.0 and due == sorted(due) and 35 < due[-1] < 45


def test_goodput_limits():
    assert workload.parse_goodput(["ttft:200", "itl:50.5"]) == {"ttft": 200.0, "itl": 50.5}
    for wrong in ("ttft", "ttft:x", "speed:1", "ttft:nan", "itl:inf", "itl:-inf", "tpot:-1", "e2el:1e999"):
        with pytest.raises(RequestError):
            workload.parse_goodput([wrong])


@pytest.mark.parametrize(
    "text, error",
    [
        ("", "empty"),
        ("{", "line 1"),
        ('{"prompt": "a"}\n{"prompt": 3}', "line 2"),
        ("{}", "neither"),
        ("\n\n", "empty"),
    ],
)
def test_datasets_that_are_none(tmp_path, text, error):
    path = tmp_path / "data.jsonl"
    path.write_text(text)
    with pytest.raises(RequestError, match=error):
        workload.read_dataset(path)


def test_dataset_goes_round(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"messages": [{"content": "b"}], "max_tokens": 3}\n')
    prompts = workload.from_dataset(workload.read_dataset(path), 3, 8)
    assert [(prompt.text, prompt.max_tokens) for prompt in prompts] == [("a", 8), ("b", 3), ("a", 8)]
    assert prompts[0].messages == [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    "url",
    [
        *("", "ftp://x", "http://", "localhost:80", "http://[::1"),
        *("http://127.0.0.1:99999/v1", "http://127.0.0.1:abc/v1", "http://127.0.0.1:0/v1"),
        *("http://127.0.0.1/a b", "http://127.0.0.1/\N{RIGHTWARDS ARROW}", "http://127.0.0.1/\udcff"),
        *(f"http://{'a' * 64}.example/v1", "http://\udcff/v1", "http://a b/v1", "http://user:secret@127.0.0.1/v1"),
        *("http://127.0.0.1/v1?version=1", "http://127.0.0.1/v1#part"),
    ],
)
def test_urls_that_are_none(url):
    with pytest.raises(RequestError) as error:
        Client(url, None, 1.0)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("key", ["schl\xfcssel\N{RIGHTWARDS ARROW}", "a\nb", "a b", "\udcff"])
def test_keys_that_no_header_can_carry(key):
    with pytest.raises(RequestError) as error:
        Client("http://127.0.0.1/v1", key, 1.0)
    assert key not in str(error.value)


@pytest.mark.parametrize(
    "url, host",
    [
        ("http://127.0.0.1:80/v1", b"127.0.0.1:80"),
        ("http://[::1]:8000/v1", b"[::1]:8000"),
        ("http://B\xfccher.example/v1", b"xn--bcher-kva.example"),
    ],
)
def test_host_header(url, host):
    head = Client(url, None, 1.0).encode("/x", {})
    assert b"Host: " + host + b"\r\n" in head


def test_request_that_is_not_unicode():
    with pytest.raises(RequestError, match="Unicode"):
        Client("http://127.0.0.1/v1", None, 1.0).encode("/x", {"model": "\udcff"})
