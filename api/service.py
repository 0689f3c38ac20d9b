"""What every route needs: the engine, the options, the metrics, and the life of the server."""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sirocco.api.metrics import Metrics
from sirocco.api.options import ServerOptions
from sirocco.api.schemas.common import RequestFields
from sirocco.runtime.errors import (
    EngineUnavailableError,
    ModelNotFoundError,
    OverloadedError,
    RequestError,
    TemplateError,
)
from sirocco.runtime.request import SamplingParams
from sirocco.runtime.text.tools import ToolParser, tool_parser
from sirocco.runtime.wire import EngineStats

if TYPE_CHECKING:  # imports nothing at run time: routes are typed against it, tests pass a fake
    from sirocco.runtime.async_engine import AsyncEngine

FINGERPRINT = "sirocco"
MAX_NAME = 256  # characters of a model's name that are repeated to the client


class Service:
    """One engine behind HTTP. `draining` refuses new work while what runs may finish."""

    def __init__(self, engine: "AsyncEngine", options: ServerOptions) -> None:
        self.engine = engine
        self.options = options
        self.metrics = Metrics(lambda: engine.model_id, self.stats)
        self.created = int(time.time())
        self.draining = False
        self._num_preparing = 0

    def stats(self) -> EngineStats | None:
        return self.engine.client.stats if self.engine.client.state == "ready" else None

    def unready_reason(self) -> tuple[str, str] | None:
        """The state and one sentence when requests are not accepted, else None."""
        if self.draining:
            return "draining", "The server is shutting down."
        client = self.engine.client
        if client.state == "ready":
            return None
        return client.state, client.state_reason or f"The engine is {client.state}."

    def admit(self, model: str | None) -> str:
        """The id of the model to answer with. Raises `EngineUnavailableError` or `ModelNotFoundError`."""
        unready = self.unready_reason()
        if unready is not None:
            raise EngineUnavailableError(unready[1])
        if model not in (None, "default", self.engine.model_id):
            raise ModelNotFoundError(model[:MAX_NAME])
        return self.engine.model_id

    async def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        variables: dict[str, Any],
        truncate: bool,
    ) -> list[int]:
        """The prompt of a conversation. Raises `OverloadedError` when too many requests wait for theirs."""
        with self._places(1):
            return await self.engine.chat_prompt(messages, tools, variables, truncate)

    async def tokenize(self, prompts: list[str | list[int]], params: SamplingParams) -> list[list[int]]:
        """Token ids of a request's prompts, of which each will take a place in the queue.

        Raises `OverloadedError` when there are too few, `RequestError` when there never are so many.
        """
        limit = self._limit()
        if len(prompts) > limit:
            raise RequestError(f"at most {limit} prompts fit into this server, got {len(prompts)}", "prompt")
        with self._places(len(prompts)):
            return await self.engine.tokenize_inputs(prompts, "end" if params.truncate_prompt else "all")

    async def tokenize_inputs(self, inputs: list[str | list[int]], truncate: bool) -> list[list[int]]:
        """Token ids of what one request wants embedded. Raises `OverloadedError` when the queue is full."""
        with self._places(1):
            return await self.engine.embedding_inputs(inputs, truncate)

    def _limit(self) -> int:
        info = self.engine.client.info
        return info.max_num_seqs + info.max_waiting

    @contextmanager
    def _places(self, count: int) -> Iterator[None]:
        """Keeps places in the queue for prompts that are being made."""
        limit = self._limit()
        if self._num_preparing + self.engine.client.num_open + count > limit:
            raise OverloadedError(f"{limit} requests are waiting or running, which is the limit; try again later")
        self._num_preparing += count
        try:
            yield
        finally:
            self._num_preparing -= count

    def tool_parser(self) -> Callable[[], ToolParser] | None:
        """What reads tool calls in the text of this model, or None when its template knows no tools or is unclear."""
        if self.engine.template is None:
            return None
        try:
            return tool_parser(self.engine.template.source)
        except TemplateError:
            return None


def check_constraints(request: RequestFields) -> None:
    """Raises `RequestError` for what would change the answer and cannot be done yet."""
    if request.response_format is not None and request.response_format.type != "text":
        kind = request.response_format.type
        raise RequestError(f"response_format of type {kind!r:.64} is not supported yet", "response_format")
    for name in ("grammar", "adapter"):
        if getattr(request, name) is not None:
            raise RequestError(f"{name} is not supported yet", name)


def check_stream_options(stream: bool, given: bool) -> None:
    """Raises `RequestError` for stream options of an answer that is not streamed."""
    if given and not stream:
        raise RequestError("stream_options is only allowed when stream is true", "stream_options")


def new_id(prefix: str) -> str:
    return f"{prefix}{secrets.token_hex(12)}"
