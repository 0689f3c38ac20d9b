"""Sirocco as its users run it: the engine on a thread of this process, token ids in and out."""

from __future__ import annotations

import asyncio
import importlib
import time
from importlib import metadata
from typing import TYPE_CHECKING

from sirocco.runtime.errors import GenerationError, SiroccoError
from sirocco.runtime.host import prepare_process
from sirocco.runtime.local_client import Build, LocalClient
from sirocco.runtime.wire import EngineOptions, EngineRequest, Sampling, SequenceOutput

if TYPE_CHECKING:
    from sirocco.bench.peers.drivers.host import PromptDict, Reply, Spec

prepare_process()  # must come before torch does
importlib.import_module("sirocco.runtime.build")  # now, for loading is timed without imports, as the peers' is

_DTYPES = {"bf16": "bfloat16", "f32": "float32"}


def version() -> str:
    return f"sirocco {metadata.version('sirocco')}, torch {metadata.version('torch')}"


class Model:
    """An engine with the options of a server except for the prefix cache, which would save a peer's work.

    `build` makes a model that is in no folder.
    """

    def __init__(self, spec: Spec, build: Build | None = None) -> None:
        options = EngineOptions(
            model=spec["folder"],
            dtype=_DTYPES[spec["variant"]],
            device="cpu",
            max_num_seqs=max(64, spec["max_streams"]),
            prefix_caching=False,
        )
        self._loop = asyncio.new_event_loop()
        self._client = LocalClient(options, build)
        self._loop.run_until_complete(self._client.start())

    def generate(self, prompts: list[PromptDict], count: int) -> Reply:
        return self._loop.run_until_complete(self._generate(prompts, count))

    async def _generate(self, prompts: list[PromptDict], count: int) -> Reply:
        sampling = Sampling(max_tokens=count, temperature=0.0)
        requests = [EngineRequest(self._client.next_id(), prompt["ids"], sampling) for prompt in prompts]
        sinks = [_Sink() for _ in requests]
        started = time.perf_counter()
        for request, sink in zip(requests, sinks, strict=True):
            self._client.add(request, sink)
        await asyncio.gather(*(sink.done for sink in sinks))
        return {
            "first_s": max(sink.first_at for sink in sinks) - started,
            "total_s": max(sink.last_at for sink in sinks) - started,
            "counts": [len(sink.ids) for sink in sinks],
            "ids": sinks[0].ids,
        }


class _Sink:
    """Collects the tokens of one request and the times of the first and the last."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.first_at = self.last_at = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def push(self, output: SequenceOutput) -> None:
        self.last_at = time.perf_counter()
        if not self.ids:
            self.first_at = self.last_at
        self.ids += output.token_ids
        if output.finish_reason == "length":
            self.done.set_result(None)
        elif output.finish_reason is not None:
            self.fail(GenerationError(output.error or f"a request ended early: {output.finish_reason}"))

    def fail(self, error: SiroccoError) -> None:
        if not self.done.done():
            self.done.set_exception(error)
