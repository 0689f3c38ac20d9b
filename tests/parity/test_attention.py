"""The attention mechanism against a dense computation, for what no family of today asks for."""

import pytest
import torch

from sirocco.runtime.models.attention import Attention
from sirocco.runtime.models.cache import KvCache
from sirocco.runtime.models.rope import Rope
from sirocco.runtime.models.spec import AttentionSpec, NormSpec, RopeSpec
from sirocco.runtime.models.step import Step

from .harness import layout

H, HKV, D, C, T = 4, 2, 64, 24, 37
HALF = RopeSpec(100.0, 32)
INTERLEAVED = RopeSpec(100.0, 32, interleaved=True)
FULL_INTERLEAVED = RopeSpec(100.0, D, interleaved=True)


def turn(x, rope):
    """x [T, heads, D] as complex numbers times e^(i position frequency)."""
    if rope is None:
        return x
    x, rest = x[..., : rope.rotary_dim], x[..., rope.rotary_dim :]
    pairs = x.unflatten(-1, (-1, 2)) if rope.interleaved else x.unflatten(-1, (2, -1)).transpose(-1, -2)
    frequencies = rope.theta ** (-torch.arange(0, rope.rotary_dim, 2) / rope.rotary_dim).double()
    angles = torch.arange(len(x))[:, None, None] * frequencies
    turned = torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angles), angles)
    pairs = torch.view_as_real(turned)
    return torch.cat([(pairs if rope.interleaved else pairs.transpose(-1, -2)).flatten(-2), rest], dim=-1)


def dense_attention(x, weights, spec):
    qkv = x @ weights["qkv"].T
    if spec.qkv_bias:
        qkv = qkv + weights["qkv_bias"]
    q, k, v = qkv.unflatten(-1, (-1, D)).split([H, HKV, HKV], dim=1)
    if spec.qk_norm:
        q, k = (
            y * torch.rsqrt(y.square().mean(-1, keepdim=True) + spec.qk_norm.eps) * weights[name]
            for y, name in ((q, "q_norm"), (k, "k_norm"))
        )
    q, k = turn(q, spec.rope), turn(k, spec.rope)
    k, v = (y.repeat_interleave(H // HKV, dim=1) for y in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * spec.scale
    if spec.softcap:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    distance = torch.arange(T)[:, None] - torch.arange(T)
    dead = (distance < 0) | (distance >= (spec.window or T))
    out = torch.einsum("hqk,khd->qhd", scores.masked_fill(dead, -torch.inf).softmax(-1), v).flatten(1)
    return out @ weights["out"].T + (weights["out_bias"] if spec.out_bias else 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope": None},
        {"rope": HALF},
        {"rope": INTERLEAVED},
        {"rope": FULL_INTERLEAVED, "qk_norm": NormSpec(1e-5)},
        {"rope": None, "qk_norm": NormSpec(1e-5), "window": 9},
        {"rope": HALF, "softcap": 3.0, "scale": 0.7},
        {"rope": HALF, "qkv_bias": True, "out_bias": True, "window": 9, "softcap": 5.0},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_attention(changes):
    spec = AttentionSpec(**{"num_heads": H, "num_kv_heads": HKV, "head_dim": D, "scale": 0.3} | changes)
    sizes = {"qkv": ((H + 2 * HKV) * D, C), "out": (C, H * D), "q_norm": (D,), "k_norm": (D,)}
    sizes |= {"qkv_bias": (sizes["qkv"][0],), "out_bias": (C,)}
    weights = {name: torch.randn(size) / size[-1] ** 0.25 for name, size in sizes.items()}
    module = Attention(spec, C, None if spec.rope is None else 0)
    module.qkv.assign({"weight": weights["qkv"]} | ({"bias": weights["qkv_bias"]} if spec.qkv_bias else {}))
    module.out.assign({"weight": weights["out"]} | ({"bias": weights["out_bias"]} if spec.out_bias else {}))
    if spec.qk_norm:
        module.q_norm.assign({"weight": weights["q_norm"]})
        module.k_norm.assign({"weight": weights["k_norm"]})
    positions = torch.arange(T)
    ropes = () if spec.rope is None else (Rope(spec.rope, torch.device("cpu"))(positions),)
    block_table = torch.tensor([[2, 0, 1]], dtype=torch.int32)
    slots = block_table[0].long()[positions // 16] * 16 + positions % 16
    cache = KvCache(*torch.full((2, 3, HKV, 16, D), float("nan")))
    x = torch.randn(T, C)
    actual = module(x, Step(layout([T], [T], block_table), slots, ropes), cache)
    expected = dense_attention(x.double(), {name: weight.double() for name, weight in weights.items()}, spec)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=3e-5)  # float32 scores over 37 keys
