"""Text in, text out, over any `EngineClient`: tokenizer, chat template and limits on this side, token ids on the other.

Nothing here imports torch: the API process runs it too.
"""

import asyncio
import contextlib
from array import array
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any, overload

from sirocco.runtime.background import in_background
from sirocco.runtime.client import EngineClient
from sirocco.runtime.config import ModelConfig, read_config
from sirocco.runtime.errors import ContextLengthError, EngineUnavailableError, RequestError, TemplateError
from sirocco.runtime.hub import model_id, resolve_model
from sirocco.runtime.local_client import LocalClient
from sirocco.runtime.models.registry import class_name
from sirocco.runtime.request import Result, SamplingParams, StreamEvent
from sirocco.runtime.resolve import resolve_request
from sirocco.runtime.stream import RequestStream
from sirocco.runtime.text.chat import ChatTemplate, TemplateRenderer
from sirocco.runtime.text.detokenize import Detokenizer
from sirocco.runtime.text.tokenizer import Tokenizer, load_tokenizer
from sirocco.runtime.text.tools import ToolParserFactory, tool_parser
from sirocco.runtime.wire import EngineOptions

Prompt = str | Sequence[int]
Message = dict[str, Any]

LONG_TEXT = 50_000  # characters, of all texts of a call: more are tokenised off the event loop
MAX_CHARS_PER_TOKEN = 128  # on an average over a whole prompt; the longest tokens of vocabularies in use have as many


class AsyncEngine:
    """An engine for asyncio programs. Use `async with`, or `start` and `close`.

    The arguments are `Engine`'s; `client` replaces the engine on a thread of this process.
    """

    tokenizer: Tokenizer
    config: ModelConfig
    _room: asyncio.Semaphore  # for the prompts of lists, with half of the queue left to others

    def __init__(
        self,
        model: str = "demo",
        dtype: str = "auto",
        device: str = "auto",
        max_num_seqs: int = 64,
        kv_memory: int | None = None,
        chunk_size: int | None = None,
        prefix_caching: bool = True,
        batch_invariant: bool = False,
        *,
        arch: str | None = None,
        revision: str | None = None,
        token_source: str = "cache",
        offline: bool | None = None,
        max_model_len: int | None = None,
        max_waiting: int = 1024,
        chat_template: str | None = None,
        progress: bool = False,
        client: EngineClient | None = None,
    ) -> None:
        options = EngineOptions(
            model=model,
            arch=arch,
            dtype=dtype,
            device=device,
            max_num_seqs=max_num_seqs,
            kv_memory=kv_memory,
            chunk_size=chunk_size,
            prefix_caching=prefix_caching,
            batch_invariant=batch_invariant,
            max_model_len=max_model_len,
            max_waiting=max_waiting,
            progress=progress,
        )
        self.model = model
        self.model_id = model_id(model)
        self.client = client or LocalClient(options)
        self.template: ChatTemplate | None = None
        # A closure rather than attributes: what is printed of this object must not show a token.
        self._find: Callable[[], Path] = lambda: resolve_model(model, revision, token_source, offline)
        self._arch = arch
        self._chat_template = chat_template
        self._renderer = TemplateRenderer()
        self._tokenizing = asyncio.Semaphore(1)  # for long texts, which take a hundred times their size in memory
        self._started = False

    async def start(self) -> None:
        """Load the model and what belongs to it. Raises `ModelLoadError`."""
        if self._started:
            return
        folder = await in_background(self._find)
        await in_background(lambda: self._read_folder(folder))
        info = await self.client.start(folder)
        self._room = asyncio.Semaphore(info.max_num_seqs + max(info.max_waiting, 1) // 2)
        self._started = True

    async def close(self) -> None:
        """End the engine; open requests fail."""
        self._renderer.close()
        await self.client.close()

    async def __aenter__(self) -> "AsyncEngine":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _read_folder(self, folder: Path) -> None:
        self.config = read_config(folder, class_name(self._arch))
        self.tokenizer = load_tokenizer(folder)
        self.template = ChatTemplate.load(folder, self.tokenizer, self._renderer, self._chat_template)
        if self.template is None:
            return
        with contextlib.suppress(TemplateError):  # none of its templates is the default: each request will hear of it
            parser = tool_parser(self.template.source)
            if parser is not None:
                self.tokenizer.show(parser().tags)

    def _check_started(self) -> None:
        if not hasattr(self, "tokenizer"):
            raise EngineUnavailableError("the engine has not been started")

    # Requests.

    def submit(
        self, prompt: Prompt, params: SamplingParams | None = None, first_call: ToolParserFactory | None = None
    ) -> RequestStream:
        """Hand a prompt to the engine and return its stream; with `first_call` it ends behind the first tool call.

        Raises at once, before anything is computed: `RequestError` for what the caller got wrong, `OverloadedError`
        when the queue is full, `EngineUnavailableError` when the engine is not ready.
        """
        self._check_started()
        params = params or SamplingParams()
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        stop_ids = self._hidden_stops(params)
        request = resolve_request(self.client.next_id(), ids, params, self.config, self.client.info, stop_ids)
        stream = RequestStream(
            self.client, request, params, lambda: Detokenizer(self.tokenizer, continues=True), first_call
        )
        self.client.add(request, stream)
        return stream

    def _hidden_stops(self, params: SamplingParams) -> list[int]:
        """The ids of stop strings that are special tokens: no text has them for a stop checker to find."""
        ids = map(self.tokenizer.token_id, params.stop_strings)
        return [token_id for token_id in ids if token_id in self.tokenizer.hidden_ids]

    async def tokenize(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; a long one does not hold up the event loop."""
        return (await self._encode([text], add_special_tokens))[0]

    async def _encode(self, texts: list[str], add_special_tokens: bool = True) -> list[list[int]]:
        self._check_started()
        if sum(map(len, texts)) < LONG_TEXT:
            return [self.tokenizer.encode(text, add_special_tokens) for text in texts]
        # `encode` of the tokenizers library would hold up all threads (the GIL), its `encode_batch` does not.
        async with self._tokenizing:
            return await asyncio.to_thread(self.tokenizer.encode_batch, texts, add_special_tokens)

    async def render_chat(
        self, messages: list[Message], /, tools: list[dict[str, Any]] | None = None, **variables: Any
    ) -> list[int]:
        """The prompt of a conversation, ready for the answer. Raises `RequestError` and `TemplateError`."""
        self._check_started()
        if self.template is None:
            raise RequestError("this model has no chat template; send a prompt instead of messages", "messages")
        text = await self.template.arender(messages, tools, **variables)
        return await self.tokenize(text, add_special_tokens=False)

    @overload
    async def generate(self, prompts: str, params: SamplingParams | None = None) -> Result: ...  # type: ignore[overload-overlap]

    @overload
    async def generate(self, prompts: Sequence[int], params: SamplingParams | None = None) -> Result: ...

    @overload
    async def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Result]: ...

    async def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> Result | list[Result]:
        """Complete one prompt, or each of a list (text or token ids). Any number of prompts may be given.

        `params` of a list may be a list too, one for each prompt.
        """
        if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
            if isinstance(params, Sequence):
                raise RequestError("one prompt takes one set of sampling parameters, not a list", "params")
            whole = params is None or not params.truncate_prompt
            (token_ids,) = await self.tokenize_inputs([prompts], whole=whole)  # type: ignore[list-item]
            return await self.submit(token_ids, params).result()
        each = list(params) if isinstance(params, Sequence) else [params] * len(prompts)
        if len(each) != len(prompts):
            raise RequestError(f"{len(prompts)} prompts came with {len(each)} sampling parameters", "params")
        whole = not any(one is not None and one.truncate_prompt for one in each)
        return await self._generate_all(await self.tokenize_inputs(prompts, whole=whole), each)  # type: ignore[arg-type]

    async def _generate_all(
        self, prompts: Sequence[list[int]], params: Sequence[SamplingParams | None]
    ) -> list[Result]:
        async def one(prompt: list[int], each: SamplingParams | None) -> Result:
            async with self._room:
                return await self.submit(prompt, each).result()

        tasks = [asyncio.ensure_future(one(*pair)) for pair in zip(prompts, params, strict=True)]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    @overload
    async def embed(  # type: ignore[overload-overlap]
        self, texts: str, truncate: bool = False, dimensions: int | None = None
    ) -> list[float]: ...

    @overload
    async def embed(
        self, texts: Sequence[Prompt], truncate: bool = False, dimensions: int | None = None
    ) -> list[list[float]]: ...

    async def embed(
        self, texts: str | Sequence[Prompt], truncate: bool = False, dimensions: int | None = None
    ) -> list[float] | list[list[float]]:
        """The vector of a text, or of each of a list (texts or token ids), by a model that makes embeddings.

        `truncate` cuts texts that are too long, `dimensions` shortens the vectors where the model was trained for it.
        Raises as `submit` does.
        """
        several = [texts] if isinstance(texts, str) else texts
        vectors = await self.client.embed(await self.tokenize_inputs(several, truncate, param="input"), dimensions)
        numbers = [array("f", vector).tolist() for vector in vectors]
        return numbers[0] if isinstance(texts, str) else numbers

    async def tokenize_inputs(
        self, texts: Sequence[Prompt], truncate: bool = False, whole: bool = True, param: str = "prompt"
    ) -> list[list[int]]:
        """Token ids of texts, without holding up the event loop; with `truncate` as many of each as the model takes.

        Raises `ContextLengthError` for a text that is to be taken `whole` and is beyond any context at a glance.
        """
        self._check_started()
        if whole and not truncate:
            _check_lengths(texts, self.client.info.max_model_len, param)
        encoded = iter(await self._encode([text for text in texts if isinstance(text, str)]))
        sequences = [next(encoded) if isinstance(text, str) else list(text) for text in texts]
        if not truncate:
            return sequences
        limit = self.client.info.max_model_len
        return [_truncated(sequence, limit) for sequence in sequences]

    async def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> AsyncGenerator[StreamEvent, None]:
        """Complete one prompt event by event. Closing the iterator cancels the request."""
        (token_ids,) = await self.tokenize_inputs([prompt], whole=params is None or not params.truncate_prompt)
        async with self.submit(token_ids, params) as events:
            async for event in events:
                yield event

    async def chat(
        self,
        messages: list[Message],
        /,
        params: SamplingParams | None = None,
        tools: list[dict[str, Any]] | None = None,
        **variables: Any,
    ) -> Result:
        """Answer a conversation in OpenAI's message format."""
        return await self.submit(await self.render_chat(messages, tools, **variables), params).result()

    async def stream_chat(
        self,
        messages: list[Message],
        /,
        params: SamplingParams | None = None,
        tools: list[dict[str, Any]] | None = None,
        **variables: Any,
    ) -> AsyncGenerator[StreamEvent, None]:
        """Answer a conversation event by event. Closing the iterator cancels the request."""
        prompt = await self.render_chat(messages, tools, **variables)
        async with contextlib.aclosing(self.stream(prompt, params)) as events:
            async for event in events:
                yield event


def _check_lengths(texts: Sequence[Prompt], max_model_len: int, param: str) -> None:
    """Tokenising takes time and memory, which a text that cannot fit is not worth."""
    longest = max((len(text) for text in texts if isinstance(text, str)), default=0)
    if longest > max_model_len * MAX_CHARS_PER_TOKEN:
        raise ContextLengthError(
            f"a text has {longest} characters, which is more than a context of {max_model_len} tokens can hold", param
        )


def _truncated(ids: list[int], limit: int) -> list[int]:
    """The first `limit` ids, but with the last one (often an end mark that pooling reads) kept."""
    return ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]
