"""An ASGI client in memory and a scripted engine: no socket, no model, no sleep."""

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from sirocco.api.app import App, create_app
from sirocco.api.options import ServerOptions
from sirocco.runtime.errors import RequestError, SiroccoError
from sirocco.runtime.request import Choice, Result, SamplingParams, StreamEvent, TokenLogprob, Usage
from sirocco.runtime.text.tools import ToolParserFactory
from sirocco.runtime.wire import EngineInfo, EngineStats

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HELLO = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


class Pieces(dict[int, bytes]):
    """Bytes by token id, asked of the tokenizer; special tokens have none when they are skipped."""

    def __init__(self, tokenizer: Any, skip: bool) -> None:
        self.tokenizer = tokenizer
        self.skip = skip

    def __missing__(self, token_id: int) -> bytes:
        hidden = self.skip and token_id in self.tokenizer.special_ids
        return b"" if hidden else self.tokenizer.token_bytes(token_id)


class FakeTokenizer:
    """A token is a character."""

    byte_errors = "replace"
    strips_first_space = False
    special_ids: frozenset[int] = frozenset()

    def pieces(self, skip_special_tokens: bool) -> Pieces:
        return Pieces(self, skip_special_tokens)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(char) for char in text]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return "".join(map(chr, ids))

    def token_text(self, token_id: int) -> str:
        return chr(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        return chr(token_id).encode()


class ByteTokenizer(FakeTokenizer):
    """A token is a byte; 256 is a special token that begins every prompt."""

    special_ids = frozenset({256})

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [256] * add_special_tokens + list(text.encode())

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        pieces = self.pieces(skip_special_tokens)
        return b"".join(pieces[i] for i in ids).decode("utf-8", "replace")

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        return b"<s>" if token_id == 256 else bytes([token_id])


@dataclass
class FakeTemplate:
    source: str = "{% if tools %}<tool_call>{% endif %}"


@dataclass
class FakeClient:
    state: str = "ready"
    state_reason: str = ""
    num_open: int = 0
    stats: EngineStats = field(default_factory=EngineStats)
    info: EngineInfo = field(
        default_factory=lambda: EngineInfo("fake", 128, 1000, 16, 10, 1, 8, 8, "cpu", "float32", 0, 0.0)
    )


class FakeStream:
    """Events from the engine's script. `gate` holds every event after `free` back; `waiting` is set when it holds."""

    def __init__(self, engine: "FakeEngine", prompt_token_ids: list[int], params: SamplingParams) -> None:
        self.engine = engine
        self.prompt_token_ids = prompt_token_ids
        self.params = params
        self.cancelled = asyncio.Event()
        self.waiting = asyncio.Event()
        self.events = self._script()
        self.sent = 0
        self.prompt_logprobs: list[TokenLogprob | None] | None = None
        if params.prompt_logprobs is not None:
            self.prompt_logprobs = [None, *(TokenLogprob(i, -1.0, {}) for i in prompt_token_ids[1:])]

    def _script(self) -> list[StreamEvent]:
        params, events = self.params, []
        for step, text in enumerate(self.engine.script):
            for index in range(params.n):
                last = step == len(self.engine.script) - 1
                ids = self.engine.tokenizer.encode(text, add_special_tokens=False)
                logprobs = None
                if params.logprobs is not None:
                    logprobs = [TokenLogprob(i, -0.5, {i + k: -0.5 - k for k in range(params.logprobs)}) for i in ids]
                usage = self.usage() if last and index == params.n - 1 else None
                reason = self.engine.finish_reason if last else None
                events.append(StreamEvent(index, text, ids, logprobs, reason, usage))
        return events

    def usage(self) -> Usage:
        return Usage(len(self.prompt_token_ids), 1, sum(map(len, self.engine.script)) * self.params.n)

    def __aiter__(self) -> "FakeStream":
        return self

    async def __anext__(self) -> StreamEvent:
        if self.engine.free is not None and self.sent >= self.engine.free:
            self.waiting.set()
            await self.engine.gate.wait()
        if self.engine.failure is not None and self.sent >= self.engine.failure_after:
            raise self.engine.failure
        if self.sent == len(self.events):
            raise StopAsyncIteration
        self.sent += 1
        return self.events[self.sent - 1]

    async def result(self) -> Result:
        choices = [Choice(i, "", [], "stop", []) for i in range(self.params.n)]
        async for event in self:
            old = choices[event.index]
            choices[event.index] = Choice(
                event.index,
                old.text + event.text,
                old.token_ids + event.token_ids,
                event.finish_reason or "stop",
                None if event.logprobs is None else (old.logprobs or []) + event.logprobs,
            )
        return Result(choices, self.prompt_token_ids, self.usage(), self.prompt_logprobs)

    def cancel(self) -> None:
        self.cancelled.set()

    async def __aenter__(self) -> "FakeStream":
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.cancel()


class FakeEngine:
    def __init__(self, *script: str, finish_reason: str = "stop") -> None:
        self.client = FakeClient()
        self.tokenizer = FakeTokenizer()
        self.template: FakeTemplate | None = FakeTemplate()
        self.model_id = "fake"
        self.script = script or ("Hel", "lo")
        self.finish_reason = finish_reason
        self.free: int | None = None  # events before the gate; None: no gate
        self.gate = asyncio.Event()
        self.failure: SiroccoError | None = None
        self.failure_after = 0
        self.submit_error: SiroccoError | None = None
        self.streams: list[FakeStream] = []
        self.rendered: list[tuple[list[dict[str, Any]], Any, dict[str, Any]]] = []
        self.render_gate: asyncio.Event | None = None  # holds every render back until it is set

    def submit(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        first_call: ToolParserFactory | None = None,
        param: str = "prompt",
    ) -> FakeStream:
        if self.submit_error is not None:
            raise self.submit_error
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if any(not 0 <= i < 0x110000 for i in ids):
            raise RequestError("token ids must be in the vocabulary", param)
        if params.truncate_prompt:
            ids = ids[1 - self.client.info.max_model_len :]
        stream = FakeStream(self, ids, params)
        self.streams.append(stream)
        return stream

    async def tokenize_inputs(
        self, texts: Sequence[str | list[int]], kept: str = "all", param: str = "prompt"
    ) -> list[list[int]]:
        return [self.tokenizer.encode(text) if isinstance(text, str) else text for text in texts]

    async def embedding_inputs(self, inputs: Sequence[str | list[int]], truncate: bool = False) -> list[list[int]]:
        return await self.tokenize_inputs(inputs)

    async def chat_prompt(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        variables: dict[str, Any],
        truncate: bool = False,
    ) -> list[int]:
        self.rendered.append((messages, tools, variables))
        if self.render_gate is not None:
            await self.render_gate.wait()
        return self.tokenizer.encode(json.dumps(messages))


class ServedEngine(FakeEngine):
    """A fake engine with a life of its own: `load` may fail, `closed` is seen."""

    def __init__(self, *script: str, load_error: SiroccoError | None = None) -> None:
        super().__init__(*script)
        self.load_error = load_error
        self.started = threading.Event()
        self.closed = threading.Event()

    async def start(self) -> None:
        if self.load_error is not None:
            raise self.load_error
        self.started.set()

    async def close(self) -> None:
        self.closed.set()


@dataclass
class Response:
    status: int
    headers: dict[bytes, bytes]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]

    @property
    def events(self) -> list[Any]:
        """The data of a stream; [DONE] stays a string."""
        found = [line[6:] for line in self.body.decode().split("\n\n") if line.startswith("data: ")]
        return [data if data == "[DONE]" else json.loads(data) for data in found]


class Connection:
    """One request in flight. `hold()` makes the server's sends block, `leave()` closes the client's side."""

    def __init__(self, app: App, method: str, path: str, headers: dict[str, str], body: bytes, pieces: int) -> None:
        self.messages: list[dict[str, Any]] = []
        self.reads = 0
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._flow = asyncio.Event()
        self._flow.set()
        self.blocked = asyncio.Event()
        self.started = asyncio.Event()
        size = max(1, -(-len(body) // pieces))
        for start in range(0, max(len(body), 1), size):
            more = start + size < len(body)
            self._inbox.put_nowait({"type": "http.request", "body": body[start : start + size], "more_body": more})
        encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": method, "path": path, "headers": encoded, "http_version": "1.1"}
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        self.reads += 1
        return await self._inbox.get()

    async def _send(self, message: Any) -> None:
        if not self._flow.is_set():
            self.blocked.set()
            await self._flow.wait()
        self.messages.append(dict(message))
        self.started.set()

    def hold(self) -> None:
        self._flow.clear()

    def release(self) -> None:
        self._flow.set()

    def leave(self) -> None:
        self._inbox.put_nowait({"type": "http.disconnect"})

    async def response(self) -> Response:
        await asyncio.wait_for(self.task, 10)
        if not self.messages:
            return Response(0, {}, b"")
        body = b"".join(message.get("body", b"") for message in self.messages[1:])
        return Response(self.messages[0]["status"], dict(self.messages[0]["headers"]), body)


def open_request(
    app: App, path: str, payload: Any = None, method: str | None = None, headers: Any = None, pieces: int = 1
) -> Connection:
    body = payload if isinstance(payload, bytes) else b"" if payload is None else json.dumps(payload).encode()
    method = method or ("GET" if payload is None else "POST")
    return Connection(app, method, path, {"host": "127.0.0.1:1234", **(headers or {})}, body, pieces)


async def call(app: App, path: str, payload: Any = None, **kwargs: Any) -> Response:
    return await open_request(app, path, payload, **kwargs).response()


def ask(
    path: str, payload: Any = None, engine: FakeEngine | None = None, options: Any = None, **kwargs: Any
) -> Response:
    """One request to a fresh app."""

    async def main() -> Response:
        return await call(create_app(engine or FakeEngine(), options or ServerOptions()), path, payload, **kwargs)

    return asyncio.run(main())


def scenario(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run an async test with a deadline."""
    asyncio.run(asyncio.wait_for(main(), 20))
