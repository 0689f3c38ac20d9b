"""Text in, text out, over any `EngineClient`: tokenizer, chat template and limits on this side, token ids on the other.

Nothing here imports torch: the API process runs it too.
"""

import asyncio
import contextlib
from array import array
from collections.abc import AsyncGenerator, Callable, Container, Mapping, Sequence, Sized
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, overload

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
from sirocco.runtime.text.embed_text import EmbedText
from sirocco.runtime.text.tokenizer import Tokenizer, load_tokenizer
from sirocco.runtime.text.tools import ToolParserFactory, tool_parser
from sirocco.runtime.wire import EngineOptions

Prompt = str | Sequence[int]
Message = dict[str, Any]
Kept = Literal["all", "start", "end"]  # of a text that is too long; all: it is refused

TURN_ENDS = ("<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|end_of_text|>")  # no answer goes on behind one
LONG_TEXT = 50_000  # characters, of all texts of a call: more are tokenised off the event loop
MAX_CHARS_PER_TOKEN = 128  # on an average over a whole prompt; the longest tokens of vocabularies in use have as many


class AsyncEngine:
    """An engine for asyncio programs. Use `async with`, or `start` and `close`.

    The arguments are `Engine`'s; `client` replaces the engine on a thread of this process.
    """

    tokenizer: Tokenizer
    config: ModelConfig
    _embed_text: EmbedText
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
        self._started = self._closed = False

    async def start(self) -> None:
        """Load the model and what belongs to it. Raises `ModelLoadError`, `EngineUnavailableError` once closed."""
        self._check_open()
        if self._started:
            return
        folder = await in_background(self._find)
        self._check_open()
        await in_background(lambda: self._read_folder(folder))
        self._check_open()
        info = await self.client.start(folder)
        self._room = asyncio.Semaphore(info.max_num_seqs + max(info.max_waiting, 1) // 2)
        self._started = True

    async def close(self) -> None:
        """End the engine, for good; open requests fail."""
        self._closed = True
        self._renderer.close()
        await self.client.close()

    async def __aenter__(self) -> "AsyncEngine":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _read_folder(self, folder: Path) -> None:
        self.config = read_config(folder, class_name(self._arch))
        self._embed_text = EmbedText.read(folder)
        self.tokenizer = load_tokenizer(folder)
        self.template = ChatTemplate.load(folder, self.tokenizer, self._renderer, self._chat_template)
        self.config = replace(self.config, eos_token_ids=self._ends())
        if self.template is None:
            return
        with contextlib.suppress(TemplateError):  # none of its templates is the default: each request will hear of it
            parser = tool_parser(self.template.source)
            if parser is not None:
                self.tokenizer.show(parser().tags)

    def _ends(self) -> tuple[int, ...]:
        """Tokens that end an answer: those that the configs name, the tokenizer's, and those that end its turns.

        Models that were tuned to chat often keep the configs of what they were made from.
        """
        template = ""
        with contextlib.suppress(TemplateError):
            template = "" if self.template is None else self.template.text()
        turns = [self.tokenizer.token_id(end) for end in TURN_ENDS if end in template]
        ends = (self.tokenizer.eos_id, *(end for end in turns if end in self.tokenizer.hidden_ids))
        return tuple(dict.fromkeys((*self.config.eos_token_ids, *(end for end in ends if end is not None))))

    def _check_open(self) -> None:
        if self._closed:
            raise EngineUnavailableError("the engine was closed")

    def _check_started(self) -> None:
        if not hasattr(self, "tokenizer"):
            raise EngineUnavailableError("the engine has not been started")

    # Requests.

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        first_call: ToolParserFactory | None = None,
        param: str = "prompt",
    ) -> RequestStream:
        """Hand a prompt to the engine and return its stream; with `first_call` it ends behind the first tool call.

        `param` is what errors call the prompt.
        Raises at once, before anything is computed: `RequestError` for what the caller got wrong, `OverloadedError`
        when the queue is full, `EngineUnavailableError` when the engine is not ready.
        """
        self._check_started()
        params = params or SamplingParams()
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        stop_ids = self._hidden_stops(params)
        request = resolve_request(self.client.next_id(), ids, params, self.config, self.client.info, stop_ids, param)
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
        await self._tokenizing.acquire()
        # `encode` of the tokenizers library would hold up all threads (the GIL), its `encode_batch` does not.
        work = asyncio.ensure_future(in_background(lambda: self.tokenizer.encode_batch(texts, add_special_tokens)))
        work.add_done_callback(self._tokenized)
        return await asyncio.shield(work)  # a thread cannot be stopped: the next text waits even if this is given up

    def _tokenized(self, work: asyncio.Future[list[list[int]]]) -> None:
        self._tokenizing.release()
        if not work.cancelled():
            work.exception()  # has been seen, whether or not somebody still waits for it

    async def render_chat(
        self, messages: list[Message], /, tools: list[dict[str, Any]] | None = None, **variables: Any
    ) -> list[int]:
        """The prompt of a conversation, ready for the answer. Raises `RequestError` and `TemplateError`."""
        return await self.chat_prompt(messages, tools, variables)

    async def chat_prompt(
        self,
        messages: list[Message],
        tools: list[dict[str, Any]] | None,
        variables: Mapping[str, Any],
        truncate: bool = False,
    ) -> list[int]:
        """The prompt of a conversation; with `truncate` of one that is beyond any context the end alone.

        Raises `ContextLengthError` for one that is to be taken whole, and as `render_chat` does.
        """
        self._check_started()
        if self.template is None:
            raise RequestError("this model has no chat template; send a prompt instead of messages", "messages")
        text = await self.template.arender(messages, tools, **variables)
        (text,) = self._bounded([text], "end" if truncate else "all", "messages")
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
        if isinstance(prompts, str) or _are_ids(prompts):
            if isinstance(params, Sequence):
                raise RequestError("one prompt takes one set of sampling parameters, not a list", "params")
            (token_ids,) = await self.tokenize_inputs([prompts], _kept(params))  # type: ignore[list-item]
            return await self.submit(token_ids, params).result()
        each = list(params) if isinstance(params, Sequence) else [params] * len(prompts)
        if len(each) != len(prompts):
            raise RequestError(f"{len(prompts)} prompts came with {len(each)} sampling parameters", "params")
        kept: Kept = "end" if any(_kept(one) == "end" for one in each) else "all"
        return await self._generate_all(await self.tokenize_inputs(prompts, kept), each)  # type: ignore[arg-type]

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
        sequences = await self.embedding_inputs(several, truncate)
        vectors = await self.client.embed(sequences, dimensions)
        numbers = [array("f", vector).tolist() for vector in vectors]
        return numbers[0] if isinstance(texts, str) else numbers

    async def embedding_inputs(self, inputs: Sequence[Prompt], truncate: bool = False) -> list[list[int]]:
        """Token ids of what is to be embedded: of a text with what its model wants before it. Raises as `embed`."""
        self._check_started()
        texts = [self._embed_text(given) if isinstance(given, str) else given for given in inputs]
        return await self.tokenize_inputs(texts, "start" if truncate else "all", param="input")

    async def tokenize_inputs(
        self, texts: Sequence[Prompt], kept: Kept = "all", param: str = "prompt"
    ) -> list[list[int]]:
        """Token ids of texts, without holding up the event loop.

        Of one that is too long the start is `kept`, as much as the model takes, or the end, which `submit` cuts.
        Raises `ContextLengthError` for one that is to be taken whole and is beyond any context at a glance.
        """
        self._check_started()
        strings = self._bounded([text for text in texts if isinstance(text, str)], kept, param)
        encoded = iter(await self._encode(strings))
        sequences = [next(encoded) if isinstance(text, str) else _listed(text, param) for text in texts]
        if kept != "start":
            return sequences
        limit, ends = self.client.info.max_model_len, self.tokenizer.special_ids
        return [_truncated(sequence, limit, ends) for sequence in sequences]

    async def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> AsyncGenerator[StreamEvent, None]:
        """Complete one prompt event by event. Closing the iterator cancels the request."""
        (token_ids,) = await self.tokenize_inputs([prompt], _kept(params))
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
        prompt = await self.chat_prompt(messages, tools, variables, _kept(params) == "end")
        return await self.submit(prompt, params, param="messages").result()

    async def stream_chat(
        self,
        messages: list[Message],
        /,
        params: SamplingParams | None = None,
        tools: list[dict[str, Any]] | None = None,
        **variables: Any,
    ) -> AsyncGenerator[StreamEvent, None]:
        """Answer a conversation event by event. Closing the iterator cancels the request."""
        prompt = await self.chat_prompt(messages, tools, variables, _kept(params) == "end")
        async with self.submit(prompt, params, param="messages") as events:
            async for event in events:
                yield event

    def _bounded(self, texts: list[str], kept: Kept, param: str) -> list[str]:
        """The part of each text that can matter: tokenising takes time and memory that what cannot fit is not worth."""
        context = self.client.info.max_model_len
        most = context * MAX_CHARS_PER_TOKEN
        longest = max(map(len, texts), default=0)
        if longest <= most:
            return texts
        if kept == "all":
            raise ContextLengthError(
                f"a text has {longest} characters, which is more than a context of {context} tokens can hold", param
            )
        return [text[:most] if kept == "start" else text[-most:] for text in texts]


def _are_ids(prompts: object) -> bool:
    """Whether this is one prompt of token ids rather than a list of prompts."""
    if not isinstance(prompts, Sized):
        raise RequestError(f"a prompt must be a text or token ids, got {prompts!r:.64}", "prompt")
    return len(prompts) > 0 and isinstance(next(iter(prompts)), Integral)  # type: ignore[call-overload]


def _listed(ids: Sequence[int], param: str) -> list[int]:
    try:
        return list(ids)
    except TypeError:
        raise RequestError(f"a prompt must be a text or token ids, got {ids!r:.64}", param) from None


def _kept(params: SamplingParams | None) -> Kept:
    return "end" if params is not None and params.truncate_prompt else "all"


def _truncated(ids: list[int], limit: int, ends: Container[int]) -> list[int]:
    """The first `limit` ids, but with the last one kept where it is an end mark, which pooling may read."""
    if len(ids) <= limit:
        return ids
    return [*ids[: limit - 1], ids[-1]] if ids[-1] in ends else ids[:limit]
