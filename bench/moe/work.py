"""What a mixture of experts costs at least, and what came out of measuring one."""

from collections.abc import Mapping
from typing import Any

import msgspec

from sirocco.bench.peers.results import Results, Work

PROMPT, SHORT_PROMPT, STREAMS, NEW_TOKENS = 512, 16, 16, 32
_BYTES = 2  # of a bfloat16


class ExpertWork(msgspec.Struct, frozen=True):
    """`num_experts` in each of `num_layers`, `top_k` of them for a token; one has so many weights."""

    num_layers: int
    num_experts: int
    top_k: int
    weights: int

    def distinct(self, rows: int) -> float:
        """How many experts of a layer `rows` tokens need together, when each chooses at random."""
        return float(self.num_experts * (1 - (1 - self.top_k / self.num_experts) ** rows))

    def read_bytes(self, rows: int) -> float:
        """Weights of experts that a step of `rows` tokens reads in all layers."""
        return self.num_layers * self.distinct(rows) * self.weights * _BYTES


class MoeResults(Results, kw_only=True):
    """Here `work.step_bytes` leaves out the experts, `work.token_flop` counts a token's own."""

    experts: ExpertWork


def work_of(geometry: Mapping[str, Any]) -> tuple[Work, ExpertWork]:
    """What a model of this geometry costs; norms and activations are left out."""
    width, layers = geometry["hidden_size"], geometry["num_hidden_layers"]
    heads = geometry["num_attention_heads"] * geometry["head_dim"]
    kv_heads = geometry["num_key_value_heads"] * geometry["head_dim"]
    experts = ExpertWork(
        num_layers=layers,
        num_experts=geometry["num_experts"],
        top_k=geometry["num_experts_per_tok"],
        weights=3 * width * geometry["moe_intermediate_size"],  # gate, up, down
    )
    dense = layers * width * (2 * heads + 2 * kv_heads + experts.num_experts)  # attention and router
    head = width * geometry["vocab_size"]
    work = Work(
        step_bytes=(dense + head) * _BYTES,
        token_flop=2 * (dense + layers * experts.top_k * experts.weights),
        head_flop=2 * head,
        pair_flop=4 * heads * layers,
    )
    return work, experts


def bounds(results: MoeResults) -> dict[str, float]:
    """Tokens a second that the median rates of the machine allow, by metric; empty where they are not known."""
    rates = results.median_rates()
    if rates is None:
        return {}
    read, matmul = rates
    work, experts = results.work, results.experts

    def step_s(rows: int, heads: int, pairs: float = 0.0) -> float:
        """`rows` tokens, `heads` of them with logits, `pairs` of a query and a key."""
        flop = rows * work.token_flop + heads * work.head_flop + pairs * work.pair_flop
        return max(flop / matmul, (work.step_bytes + experts.read_bytes(rows)) / read)

    prompts_s = step_s(STREAMS * SHORT_PROMPT, STREAMS)
    return {
        f"prefill{PROMPT}_tps": PROMPT / step_s(PROMPT, 1, PROMPT * (PROMPT + 1) / 2),
        "decode1_tps": 1 / step_s(1, 1),
        f"decode{STREAMS}_tps": STREAMS / step_s(STREAMS, STREAMS),
        f"conc{STREAMS}_tps": STREAMS * NEW_TOKENS / (prompts_s + (NEW_TOKENS - 1) * step_s(STREAMS, STREAMS)),
    }
