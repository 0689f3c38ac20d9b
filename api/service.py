"""What every route needs: the engine, the options, the metrics, and the life of the server."""

import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from sirocco.api.http import Exchange
from sirocco.api.metrics import Metrics
from sirocco.api.options import ServerOptions
from sirocco.runtime.errors import EngineUnavailableError, ModelNotFoundError, OverloadedError, RequestError
from sirocco.runtime.request import SamplingParams
from sirocco.runtime.text.tools import ToolParser, tool_parser
from sirocco.runtime.wire import EngineStats

if TYPE_CHECKING:  # imports nothing at run time: routes are typed against it, tests pass a fake
    from sirocco.runtime.async_engine import AsyncEngine
    from sirocco.runtime.stream import RequestStream

FINGERPRINT = "sirocco"


class Service:
    """One engine behind HTTP. `draining` refuses new work while what runs may finish."""

    def __init__(self, engine: "AsyncEngine", options: ServerOptions) -> None:
        self.engine = engine
        self.options = options
        self.metrics = Metrics(lambda: engine.model_id, self.stats)
        self.created = int(time.time())
        self.draining = False

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
            raise ModelNotFoundError(model)
        return self.engine.model_id

    async def submit(self, prompt: str | list[int], params: SamplingParams) -> "RequestStream":
        """Hand a prompt to the engine."""
        token_ids = await self.engine.tokenize(prompt) if isinstance(prompt, str) else prompt
        try:
            return self.engine.submit(token_ids, params)
        except OverloadedError:
            self.metrics.rejected += 1
            raise

    @asynccontextmanager
    async def generate(
        self, exchange: Exchange, prompt: str | list[int], params: SamplingParams
    ) -> AsyncIterator["RequestStream"]:
        """Run one request for as long as the block lasts: leaving it, or the client leaving, cancels."""
        async with exchange.watched(), await self.submit(prompt, params) as stream:
            yield stream

    def tool_parser(self) -> Callable[[], ToolParser] | None:
        """What reads tool calls in the text of this model, or None when its template knows no tools."""
        template = self.engine.template
        return tool_parser(template.source) if template is not None else None


def check_stream_options(stream: bool, given: bool) -> None:
    """Raises `RequestError` for stream options of an answer that is not streamed."""
    if given and not stream:
        raise RequestError("stream_options is only allowed when stream is true", "stream_options")


def new_id(prefix: str) -> str:
    return f"{prefix}{secrets.token_hex(12)}"
