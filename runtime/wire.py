"""What crosses between an engine and its client: length-prefixed msgpack frames of these structs, never pickle.

The client sends commands one by one; the engine answers with one `Outputs` frame a step. Ids are integers that the
client counts.
"""

import struct
from typing import Any, Literal, TypeVar

import msgspec

from sirocco.runtime.request import FinishReason, TokenLogprob

MAX_FRAME_BYTES = 256 * 2**20
_LENGTH = struct.Struct("<I")
_T = TypeVar("_T")


class Sampling(msgspec.Struct, frozen=True, array_like=True):
    """`SamplingParams` with every default filled in, for one request of `n` choices."""

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    logit_bias: dict[int, float] | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None


class EngineRequest(msgspec.Struct, frozen=True, array_like=True, tag="add"):
    """A prompt to continue `n` times. Lower `priority` runs first; `salt` keeps cached blocks apart."""

    id: int
    prompt_token_ids: list[int]
    sampling: Sampling
    n: int = 1
    priority: int = 0
    salt: str | None = None


class Abort(msgspec.Struct, frozen=True, array_like=True, tag="abort"):
    """Stop the request, all choices or the one at `index`; the client expects no more outputs of it."""

    id: int
    index: int | None = None


class Pause(msgspec.Struct, frozen=True, array_like=True, tag="pause"):
    """Stop or resume scheduling a request without ending it."""

    id: int
    paused: bool


class EmbedRequest(msgspec.Struct, frozen=True, array_like=True, tag="embed"):
    """Sequences of token ids to turn into vectors, cut to `dimensions` numbers where given."""

    id: int
    sequences: list[list[int]]
    dimensions: int | None = None


Command = EngineRequest | Abort | Pause | EmbedRequest


class SequenceOutput(msgspec.Struct, frozen=True, array_like=True):
    """New tokens of choice `index` of request `id`. `cached_tokens` counts prompt tokens that came from the prefix
    cache.

    `prompt_logprobs` comes with the first output of choice 0 when asked for; the first prompt token has none.
    """

    id: int
    index: int
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprob] | None = None
    cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprob | None] | None = None
    error: str | None = None


class Embedded(msgspec.Struct, frozen=True, array_like=True):
    """The vectors of an `EmbedRequest`, each as little-endian float32, or what was wrong with it."""

    id: int
    vectors: list[bytes]
    error: str | None = None
    param: str | None = None  # set where the request is at fault
    code: str | None = None


class EngineStats(msgspec.Struct, frozen=True, array_like=True):
    """A snapshot of the engine: gauges of the moment and counters since start."""

    running: int = 0
    waiting: int = 0
    blocks_used: int = 0
    blocks_total: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    prefix_queries: int = 0  # prompt tokens looked up
    prefix_hits: int = 0  # of them found
    graph_misses: int = 0  # steps of decodes that no captured graph held


class Outputs(msgspec.Struct, frozen=True, array_like=True, tag="outputs"):
    """Everything one step produced."""

    outputs: list[SequenceOutput]
    stats: EngineStats
    embedded: list[Embedded] = []


class EngineOptions(msgspec.Struct, frozen=True):
    """How to build an engine. `kv_memory` in bytes; `None` lets the engine choose.

    `folder` is where the model lies when it has been found already: whoever serves it has read its tokenizer there, and
    a token for the hub never leaves that process. `arch` is used in place of the class in config.json.
    """

    model: str = "demo"
    folder: str | None = None
    arch: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    max_num_seqs: int = 64
    kv_memory: int | None = None
    chunk_size: int | None = None
    prefix_caching: bool = True
    batch_invariant: bool = False
    max_waiting: int = 1024
    max_model_len: int | None = None
    progress: bool = False


class CacheMemory(msgspec.Struct, frozen=True, array_like=True):
    """What the caches take, in bytes unless said otherwise, by what layers keep of a token or of a request.

    One pool holds all tokens, in blocks of `block_bytes`; `block_tokens` says how many tokens one holds for each group
    of layers. `capacity_tokens` fit at once, more where windows have been left behind; `full_length_requests` is how
    many requests of `max_model_len` tokens fit.
    """

    total_bytes: int = 0
    full_bytes_per_token: int = 0
    window_bytes_per_token: int = 0
    latent_bytes_per_token: int = 0
    state_bytes_per_request: int = 0
    block_bytes: int = 0
    block_tokens: list[int] = []
    num_snapshots: int = 0  # recurrent states kept beside those of running requests
    capacity_tokens: int = 0
    full_length_requests: int = 0


class EngineInfo(msgspec.Struct, frozen=True, array_like=True, tag="ready"):
    """What a started engine is: the limits a client checks requests against, and what it runs on."""

    model: str
    max_model_len: int
    vocab_size: int
    block_size: int
    num_blocks: int
    kv_bytes_per_token: int
    max_num_seqs: int
    max_waiting: int
    device: str
    dtype: str
    weight_bytes: int
    load_seconds: float
    kind: Literal["generate", "embed"] = "generate"
    memory: CacheMemory = CacheMemory()


class LoadFailed(msgspec.Struct, frozen=True, array_like=True, tag="load_failed"):
    """The engine process could not load its model; `for_now` where that was for want of memory."""

    message: str
    for_now: bool = False


FromEngine = Outputs | EngineInfo | LoadFailed


_encoder = msgspec.msgpack.Encoder()


def frame(message: Any) -> bytes:
    """Encode one message with its length in front."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {len(body)} bytes exceeds {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Cuts a byte stream into frames. `feed` returns the bodies that are complete."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        buffer = self._buffer
        buffer += data
        bodies = []
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, start)
            if length > MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {length} bytes exceeds {MAX_FRAME_BYTES}")
            end = start + _LENGTH.size + length
            if len(buffer) < end:
                break
            bodies.append(bytes(buffer[start + _LENGTH.size : end]))
            start = end
        if start:
            del buffer[:start]
        return bodies
