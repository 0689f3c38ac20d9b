"""What figures are held against: the least time that any engine needs on a machine, and the memory of what it keeps."""

import math

from sirocco.bench.peers.folder import Config, tensor_shapes
from sirocco.bench.peers.results import Results, Work

_BYTES = 2  # of a bfloat16
_EMBEDDING = "model.embed_tokens.weight"


def work_of(config: Config) -> Work:
    """What a model of this geometry costs; norms and activations are left out."""
    shapes = tensor_shapes(config)
    matrices = sum(math.prod(shape) for name, shape in shapes.items() if len(shape) == 2 and "layers" in name)
    head = math.prod(shapes[_EMBEDDING])  # tied or not, it has the shape of the embedding
    heads = config["num_attention_heads"] * config["head_dim"]
    return Work(
        step_bytes=(matrices + head) * _BYTES,
        token_flop=2 * matrices,
        head_flop=2 * head,
        pair_flop=4 * heads * config["num_hidden_layers"],
        cached_bytes=2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * _BYTES,
    )


def bounds(results: Results) -> dict[str, float]:
    """What figures are held against, by metric: `rate_bounds`, and the memory that weights and caches take."""
    work = results.work
    held = (work.step_bytes + results.most_tokens * work.cached_bytes) / 2**20
    return rate_bounds(results) | ({"peak_anon_mib": held} if results.most_tokens else {})


def rate_bounds(results: Results) -> dict[str, float]:
    """Tokens a second that the median rates of the machine allow, by metric; empty where they are not known.

    The caches that attention reads are not counted, nor the prompts of concurrent requests: the contexts are short.
    """
    rates = results.median_rates()
    if rates is None:
        return {}
    read, matmul = rates
    work = results.work

    def prefill(tokens: int) -> float:
        flop = tokens * work.token_flop + work.head_flop + work.pair_flop * tokens * (tokens + 1) / 2
        return tokens / max(flop / matmul, work.step_bytes / read)

    def decode(streams: int) -> float:
        flop = streams * (work.token_flop + work.head_flop)
        return streams / max(flop / matmul, work.step_bytes / read)

    return {
        "prefill512_tps": prefill(512),
        "prefill2048_tps": prefill(2048),
        "decode1_tps": decode(1),
        "conc8_tps": decode(8),
        "conc32_tps": decode(32),
    }
