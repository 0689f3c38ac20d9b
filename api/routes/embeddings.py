"""`POST /v1/embeddings`."""

import base64
from array import array

import msgspec

from sirocco.api.http import Exchange, encode
from sirocco.api.schemas.embeddings import Embedding, EmbeddingList, EmbeddingRequest, EmbeddingUsage
from sirocco.api.service import Service
from sirocco.runtime.errors import RequestError

MAX_INPUTS = 2048  # of one request, as at OpenAI

_decoder = msgspec.json.Decoder(EmbeddingRequest)


async def embeddings(service: Service, exchange: Exchange) -> None:
    """Turn texts or token ids into vectors, in their order."""
    request = await exchange.json(_decoder)
    model = service.admit(request.model)
    if request.dimensions is not None and request.dimensions < 1:
        raise RequestError(f"dimensions must be at least 1, got {request.dimensions}", "dimensions")
    async with exchange.watched():
        inputs = await exchange.work_through(inputs_of, request.input)
        sequences = await service.tokenize_inputs(inputs, bool(request.truncate_sequence))
        vectors = await service.engine.client.embed(sequences, request.dimensions)
    show = _as_base64 if request.encoding_format == "base64" else _as_floats
    num_tokens = sum(map(len, sequences))
    answer = EmbeddingList(
        data=[Embedding(show(vector), index) for index, vector in enumerate(vectors)],
        model=model,
        usage=EmbeddingUsage(num_tokens, num_tokens),
    )
    await exchange.reply(200, encode(answer))


def inputs_of(given: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """The inputs of a request: a text, token ids, or a list of either. Raises `RequestError` for none or a mixture."""
    items = [given] if isinstance(given, str) else given
    inputs: list[str | list[int]]
    if items and all(isinstance(item, int) for item in items):
        inputs = [[item for item in items if isinstance(item, int)]]
    else:
        inputs = [item for item in items if not isinstance(item, int)]
        if len(inputs) < len(items) or len({type(item) for item in inputs}) > 1:
            raise RequestError("input must be a string, token ids, a list of strings, or a list of token ids", "input")
    if not inputs:
        raise RequestError("input is empty", "input")
    if len(inputs) > MAX_INPUTS:
        raise RequestError(f"input may hold {MAX_INPUTS} entries, got {len(inputs)}", "input")
    return inputs


def _as_floats(vector: bytes) -> list[float]:
    return array("f", vector).tolist()


def _as_base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode()
