"""The demo model as a training network: Qwen3's arithmetic with fused projections."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["LoraSettings", "Network", "Places", "Shape", "Targets"]


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of one network; head_dim is 64 throughout."""

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    head_dim: int = 64
    rope_theta: float = 10000.0
    eps: float = 1e-6

    def hf_config(self, *, eos: int, pad: int) -> dict[str, Any]:
        """config.json of the same network as a Qwen3ForCausalLM."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "vocab_size": self.vocab,
            "hidden_size": self.width,
            "intermediate_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": self.eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": None,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "use_sliding_window": False,
            "sliding_window": None,
            "max_window_layers": self.layers,
            "initializer_range": 0.02,
            "use_cache": True,
            "bos_token_id": None,
            "eos_token_id": eos,
            "pad_token_id": pad,
            "dtype": "bfloat16",
        }

    def as_dict(self) -> dict[str, Any]:
        """The fields, for a checkpoint."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Rank and scale of a low-rank adapter on every projection."""

    rank: int = 16
    alpha: float = 32.0


@dataclass(frozen=True, slots=True)
class Targets:
    """Which hidden rows predict what: index [N] into the flattened rows, labels [N]."""

    index: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True)
class Places:
    """Where each token [B, L] stands, and in which branch: those of branch 0 are seen by all after them, others by
    their own branch."""

    positions: Tensor
    branches: Tensor


class Projection(nn.Module):
    """Several matrices over one input in one product; each output slice may carry its own low-rank adapter."""

    def __init__(self, inputs: int, outputs: tuple[int, ...], lora: LoraSettings | None) -> None:
        super().__init__()
        self.outputs = outputs
        self.weight = nn.Parameter(torch.empty(sum(outputs), inputs))
        self.scale = 0.0
        self.lora_a: nn.ParameterList | None = None
        self.lora_b: nn.ParameterList | None = None
        nn.init.normal_(self.weight, std=inputs**-0.5)
        if lora is not None:
            self.weight.requires_grad_(False)
            self.scale = lora.alpha / lora.rank
            down = [torch.randn(lora.rank, inputs) * inputs**-0.5 for _ in outputs]
            self.lora_a = nn.ParameterList([nn.Parameter(matrix) for matrix in down])
            self.lora_b = nn.ParameterList([nn.Parameter(torch.zeros(size, lora.rank)) for size in outputs])

    def forward(self, x: Tensor) -> Tensor:
        """x [..., inputs] in bfloat16 → [..., sum(outputs)] in bfloat16."""
        y = F.linear(x, self.weight.to(x.dtype))
        if self.lora_a is None or self.lora_b is None:
            return y
        low = [
            F.linear(F.linear(x, a.to(x.dtype)), b.to(x.dtype)) for a, b in zip(self.lora_a, self.lora_b, strict=True)
        ]
        return y + self.scale * torch.cat(low, -1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale rows of x to unit root mean square, then by weight; in float32."""
    wide = x.float()
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in the half layout: x [B, L, H, D], cos and sin [B, L, 1, D/2]."""
    low, high = x.chunk(2, -1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), -1)


SPANS = 2  # of a row, each of which looks at no more than it may


def spans_of(length: int) -> list[tuple[int, int]]:
    """Where the spans of a row begin and end."""
    return list(pairwise(length * i // SPANS for i in range(SPANS + 1)))


def masks_of(places: Places) -> list[Tensor]:
    """For each span what is added to its scores, [B, M, L] in bfloat16: 0, or -inf where a query may not look."""
    masks = []
    for low, high in spans_of(places.branches.shape[1]):
        keys, queries = places.branches[:, None, :high], places.branches[:, low:high, None]
        later = torch.ones(high - low, high, dtype=torch.bool).triu(low + 1)
        hidden = later | ((keys != 0) & (keys != queries))
        masks.append(torch.zeros(hidden.shape, dtype=torch.bfloat16).masked_fill(hidden, -math.inf))
    return masks


def attend(q: Tensor, k: Tensor, v: Tensor, masks: list[Tensor]) -> Tensor:
    """Attention in bfloat16 under the masks of its spans, q [B, L, H, D], k and v [B, L, G, D] → [B, L, H, D].

    Written out: at a few hundred positions the products on whole matrices train faster here than torch's fused form.
    """
    spans = [
        attend_span(q[:, low:high], k[:, :high], v[:, :high], mask)
        for (low, high), mask in zip(spans_of(q.shape[1]), masks, strict=True)
    ]
    return torch.cat(spans, 1)


def attend_span(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """The last positions q [B, M, H, D] over all up to them, k and v [B, L, G, D], mask [B, M, L] → [B, M, H, D]."""
    batch, count, heads, size = q.shape
    length, groups = k.shape[1], k.shape[2]
    rows = q.reshape(batch, count, groups, -1, size).permute(0, 2, 3, 1, 4) * size**-0.5
    scores = (rows.reshape(batch, groups, -1, size) @ k.permute(0, 2, 3, 1)).view(batch, groups, -1, count, length)
    shares = torch.softmax(scores + mask[:, None, None], -1).view(batch, groups, -1, length)
    mixed = (shares @ v.transpose(1, 2)).view(batch, groups, -1, count, size)
    return mixed.permute(0, 3, 1, 2, 4).reshape(batch, count, heads, size)


class Block(nn.Module):
    """One Qwen3 layer: attention with normed queries and keys, then a SwiGLU."""

    def __init__(self, shape: Shape, lora: LoraSettings | None) -> None:
        super().__init__()
        self.shape = shape
        q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.qkv = Projection(shape.width, (q, kv, kv), lora)
        self.out = Projection(q, (shape.width,), lora)
        self.gate_up = Projection(shape.width, (shape.hidden, shape.hidden), lora)
        self.down = Projection(shape.hidden, (shape.width,), lora)
        self.attention_norm = nn.Parameter(torch.ones(shape.width))
        self.ffn_norm = nn.Parameter(torch.ones(shape.width))
        self.q_norm = nn.Parameter(torch.ones(shape.head_dim))
        self.k_norm = nn.Parameter(torch.ones(shape.head_dim))
        with torch.no_grad():  # a block starts as the identity
            self.out.weight.zero_()
            self.down.weight.zero_()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, masks: list[Tensor], kept: Tensor | None = None) -> Tensor:
        """x [B, L, C] float32 → [B, L, C] float32, or the rows `kept` [N] of all → [N, C]."""
        shape = self.shape
        batch, length, _ = x.shape
        qkv = self.qkv(rms_norm(x, self.attention_norm, shape.eps).bfloat16())
        qkv = qkv.view(batch, length, shape.heads + 2 * shape.kv_heads, shape.head_dim)
        q, k, v = qkv.split((shape.heads, shape.kv_heads, shape.kv_heads), 2)
        q = rotate(rms_norm(q, self.q_norm, shape.eps), cos, sin).bfloat16()
        k = rotate(rms_norm(k, self.k_norm, shape.eps), cos, sin).bfloat16()
        mixed = attend(q, k, v, masks)
        mixed = mixed.reshape(batch, length, -1)
        if kept is not None:
            x, mixed = x.flatten(0, 1).index_select(0, kept), mixed.flatten(0, 1).index_select(0, kept)
        x = x + self.out(mixed).float()
        gate, up = self.gate_up(rms_norm(x, self.ffn_norm, shape.eps).bfloat16()).chunk(2, -1)
        change: Tensor = self.down(F.silu(gate) * up)
        return x + change.float()


class Network(nn.Module):
    """A small Qwen3 that returns the loss of chosen positions."""

    def __init__(self, shape: Shape, lora: LoraSettings | None = None) -> None:
        super().__init__()
        self.shape, self.lora = shape, lora
        self.embedding = nn.Parameter(torch.randn(shape.vocab, shape.width) * 0.02)
        self.register_buffer("roots", torch.arange(shape.vocab))
        self.roots: Tensor
        self.blocks = nn.ModuleList([Block(shape, lora) for _ in range(shape.layers)])
        self.norm = nn.Parameter(torch.ones(shape.width))
        half = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
        self.register_buffer("frequencies", shape.rope_theta**-half, persistent=False)
        self.frequencies: Tensor
        if lora is not None:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_("lora_" in name)

    def derive(self, roots: list[int]) -> None:
        """Let each token that has another for its root begin with that one's embedding, and learn what it adds."""
        self.roots.copy_(torch.tensor(roots))
        with torch.no_grad():
            self.embedding[self.derived] = 0.0

    @property
    def derived(self) -> Tensor:
        """Which tokens [V] have another for their root."""
        return self.roots != torch.arange(len(self.roots))

    def embeddings(self) -> Tensor:
        """The embedding of every token, [V, C]."""
        return self.embedding + self.derived[:, None] * F.embedding(self.roots, self.embedding)

    def compile_blocks(self) -> None:
        """Fuse what stands between the products of a layer, which takes most of a minute and makes steps faster."""
        for block in self.blocks:
            block.compile(dynamic=True)

    def hidden(self, ids: Tensor, places: Places, kept: Tensor, embeddings: Tensor) -> Tensor:
        """ids [B, L] by embeddings [V, C] → [N, C] at the positions `kept` [N] of all rows in a row."""
        angles = places.positions[:, :, None, None] * self.frequencies
        cos, sin, masks = angles.cos(), angles.sin(), masks_of(places)
        x = F.embedding(ids, embeddings)
        *early, last = self.blocks
        for block in early:
            x = block(x, cos, sin, masks)
        x = last(x, cos, sin, masks, kept)
        return rms_norm(x, self.norm, self.shape.eps)

    def forward(self, ids: Tensor, places: Places, targets: Targets) -> Tensor:
        """The sum of the cross-entropies of targets, a scalar in float32; ids [B, L] padded on the right."""
        embeddings = self.embeddings()
        hidden = self.hidden(ids, places, targets.index, embeddings).bfloat16()
        logits = F.linear(hidden, embeddings.bfloat16()).float()
        return F.cross_entropy(logits, targets.labels, reduction="sum")
