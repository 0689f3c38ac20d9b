"""`sirocco serve` as a user starts it, on the demo model, with the official client."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from openai import BadRequestError, NotFoundError, OpenAI

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
            "required": ["a", "b"],
        },
    },
}


class Server:
    """The process, its port, and what it printed."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "sirocco", "serve", "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self.listening = threading.Event()
        self.port = 0
        threading.Thread(target=self._read, daemon=True).start()
        assert self.listening.wait(60), "".join(self.lines)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(r"listening on http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                self.listening.set()

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read().decode()

    def metric(self, name: str) -> float:
        _, text = self.get("/metrics")
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + "{"))

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server("--data-dir", str(tmp_path_factory.mktemp("data")))
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def client(server: Server) -> OpenAI:
    return OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)


def ask(text: str) -> dict:
    return {"model": "default", "messages": [{"role": "user", "content": text}], "temperature": 0}


def test_models_and_probes(server, client):
    assert [model.id for model in client.models.list()] == ["demo"]
    assert server.get("/health")[0] == 200
    assert server.get("/ready")[0] == 200
    assert "sirocco:num_requests_running" in server.get("/metrics")[1]
    assert any("curl" in line for line in server.lines), "it prints a request to try"


def test_chat_whole_and_streamed_say_the_same(client):
    whole = client.chat.completions.create(**ask("Hello! Who are you?"), max_tokens=80)
    text = whole.choices[0].message.content
    assert text and whole.choices[0].finish_reason == "stop" and "Sirocco" in text
    stream = client.chat.completions.create(
        **ask("Hello! Who are you?"), max_tokens=80, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_completions_whole_and_streamed(client):
    whole = client.completions.create(model="demo", prompt="The capital of", max_tokens=8, temperature=0, logprobs=2)
    assert len(whole.choices[0].logprobs.tokens) == whole.usage.completion_tokens
    stream = client.completions.create(model="demo", prompt="The capital of", max_tokens=8, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text


def test_choices_and_seed(client):
    request = {"model": "demo", "prompt": "Once", "max_tokens": 12, "temperature": 1.5, "n": 3, "seed": 4}
    first, again = client.completions.create(**request), client.completions.create(**request)
    assert [choice.text for choice in first.choices] == [choice.text for choice in again.choices]
    assert len({choice.text for choice in first.choices}) > 1


@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_call_end_to_end(client, streamed):
    messages = [{"role": "user", "content": "What is 4127 plus 3519?"}]
    name, arguments, call_id = "", "", ""
    if streamed:
        for chunk in client.chat.completions.create(
            model="default", messages=messages, tools=[ADD], temperature=0, stream=True
        ):
            for call in chunk.choices[0].delta.tool_calls or []:
                call_id, name = call.id or call_id, call.function.name or name
                arguments += call.function.arguments or ""
            reason = chunk.choices[0].finish_reason
    else:
        choice = client.chat.completions.create(model="default", messages=messages, tools=[ADD], temperature=0).choices[
            0
        ]
        call = choice.message.tool_calls[0]
        name, arguments, call_id, reason = call.function.name, call.function.arguments, call.id, choice.finish_reason
    assert reason == "tool_calls" and name == "add" and call_id
    values = json.loads(arguments)
    assert sorted(values.values()) == [3519, 4127]
    messages += [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}],
        },
        {"role": "tool", "tool_call_id": call_id, "content": str(sum(values.values()))},
    ]
    answer = client.chat.completions.create(model="default", messages=messages, tools=[ADD], temperature=0)
    assert "7646" in answer.choices[0].message.content


def test_errors_have_openai_shape(server, client):
    with pytest.raises(NotFoundError, match="does not exist"):
        client.completions.create(model="nobody", prompt="x")
    with pytest.raises(BadRequestError) as raised:
        client.completions.create(model="demo", prompt=[1] * 100_000)
    assert raised.value.code == "context_length_exceeded"
    with pytest.raises(BadRequestError):
        client.completions.create(model="demo", prompt="x", n=1_000_000)
    assert server.get("/v1/models", Origin="https://elsewhere.example")[0] == 403
    assert server.get("/v1/models", Host="elsewhere.example")[0] == 403


def test_sixty_four_streams_and_the_api_process_keeps_up(server, client):
    """The API process may spend 40 us of CPU on a token; the bound here is loose for busy machines."""

    def stream(number: int) -> int:
        chunks = client.completions.create(
            model="demo",
            prompt=f"Number {number}",
            max_tokens=64,
            temperature=1.0,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        return sum(1 for chunk in chunks if chunk.choices)

    stream(0)
    tokens, cpu = server.metric("sirocco:generation_tokens_total"), cpu_seconds(server.process.pid)
    with ThreadPoolExecutor(64) as pool:
        counts = list(pool.map(stream, range(64)))
    assert all(counts)
    generated = server.metric("sirocco:generation_tokens_total") - tokens
    assert generated == 64 * 64
    assert (cpu_seconds(server.process.pid) - cpu) / generated < 500e-6


def test_a_stream_that_nobody_reads_pauses(server):
    """Through all buffers between the engine and a client, which hold a few megabytes."""
    body = {"model": "demo", "prompt": "x", "max_tokens": 3500, "n": 8, "ignore_eos": True, "temperature": 1.0}
    data = json.dumps(body | {"stream": True, "logprobs": 20}).encode()  # more than a kilobyte a token
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    before = server.metric("sirocco:generation_tokens_total")

    def made() -> float:
        return server.metric("sirocco:generation_tokens_total") - before

    with socket.socket() as unread:
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        unread.connect(("127.0.0.1", server.port))
        unread.sendall(head.encode() + data)
        known, deadline = -1.0, time.monotonic() + 120
        while known < 256 or made() > known:
            assert time.monotonic() < deadline
            known = made()
            time.sleep(0.5)
        assert known < 8 * 3500, "it did not pause"
        assert client_is_served(server)
    while server.metric("sirocco:num_requests_running") or server.metric("sirocco:num_requests_waiting"):
        assert time.monotonic() < deadline, "it was not cancelled"
        time.sleep(0.05)
    assert made() < 8 * 3500


def client_is_served(server: Server) -> bool:
    """Whether somebody else gets an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("POST", "/v1/completions", json.dumps({"model": "demo", "prompt": "x", "max_tokens": 2}))
    return connection.getresponse().status == 200


def cpu_seconds(pid: int) -> float:
    """User and system time of one process."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_client_that_leaves_frees_the_engine(server, client):
    for streamed in (True, False):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        body = {"model": "demo", "prompt": "x", "max_tokens": 3000, "ignore_eos": True, "stream": streamed}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        wait_for(lambda: server.metric("sirocco:num_requests_running") == 1)
        if streamed:
            connection.getresponse().read(10)
        connection.close()
        wait_for(lambda: server.metric("sirocco:num_requests_running") == 0)


def test_a_killed_engine_comes_back(server, client):
    with open(f"/proc/{server.process.pid}/task/{server.process.pid}/children") as file:
        children = [int(pid) for pid in file.read().split()]
    engine = next(pid for pid in children if b"runtime.worker" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(engine, signal.SIGKILL)
    wait_for(lambda: server.get("/ready")[0] == 503)
    assert server.get("/health")[0] == 200
    wait_for(lambda: server.get("/ready")[0] == 200, seconds=40)
    assert client.completions.create(model="demo", prompt="x", max_tokens=2).usage.completion_tokens


def wait_for(true, seconds: float = 10.0) -> None:
    """Poll until it holds: the server is another process, so there is no event to wait for."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_run_prints_the_answer_alone():
    done = subprocess.run(
        [sys.executable, "-P", "-m", "sirocco", "run", "-i", "Hello!", "--temperature", "0"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and done.stdout.strip() and "tok/s" not in done.stdout


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["serve", "-m", "/no/such/folder"], "no such folder"),
        (["run", "-m", "nobody/nothing", "-i", "x"], "nobody/nothing"),
        (["serve", "--port", "99999"], "port"),
        (["fly"], "fly"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(arguments, said):
    done = subprocess.run(
        [sys.executable, "-P", "-m", "sirocco", *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stdout == "" and len(done.stderr.strip().splitlines()) == 1 and said in done.stderr
