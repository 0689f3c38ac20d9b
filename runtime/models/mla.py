"""Multi-head latent attention: the cache holds one latent a token instead of the keys and values of every head."""

from torch import Tensor, nn

from sirocco.kernels.mla import latent_attention, norm_rope_write_latent
from sirocco.kernels.norm import rms_norm
from sirocco.runtime.models.cache import LatentCache
from sirocco.runtime.models.linear import FusedLinear, Linear
from sirocco.runtime.models.norm import RmsNorm
from sirocco.runtime.models.spec import MlaSpec
from sirocco.runtime.models.step import Step
from sirocco.runtime.weights import Loadable, Slot


class LatentExpansion(Loadable):
    """What makes keys (`k` [H, D, R]) and values (`v` [H, Dv, R]) of a latent; plain, as both forms read it."""

    k: Tensor
    v: Tensor

    def __init__(self, spec: MlaSpec) -> None:
        super().__init__()
        self.spec = spec

    def slots(self) -> dict[str, Slot]:
        spec = self.spec
        return {"weight": Slot((spec.num_heads * (spec.nope_dim + spec.v_dim),), (spec.rank,))}

    def assign(self, tensors: dict[str, Tensor]) -> None:
        heads = tensors.pop("weight").view(self.spec.num_heads, -1, self.spec.rank)
        self.k, self.v = (part.contiguous() for part in heads.split([self.spec.nope_dim, self.spec.v_dim], dim=1))

    @property
    def num_bytes(self) -> int:
        return self.k.nbytes + self.v.nbytes


class LatentAttention(nn.Module):
    """Queries, by way of a latent of their own where the spec has one, against what the cached latents stand for."""

    def __init__(self, spec: MlaSpec, width: int, rope_index: int | None) -> None:
        super().__init__()
        assert rope_index is not None, "latent attention keeps positions in the turned part alone"
        self.spec = spec
        self.rope_index = rope_index
        q_size, kv_size = spec.num_heads * (spec.nope_dim + spec.rope_dim), spec.rank + spec.rope_dim
        if spec.q_rank is None:
            self.q_kv = FusedLinear(width, {"q": q_size, "kv": kv_size}, spec.bias)
        else:
            self.qa_kv = FusedLinear(width, {"qa": spec.q_rank, "kv": kv_size}, spec.bias)
            self.q_norm = RmsNorm(spec.norm, spec.q_rank)
            self.q_b = Linear(spec.q_rank, q_size)
        self.kv_norm = RmsNorm(spec.norm, spec.rank)
        self.kv_b = LatentExpansion(spec)
        self.out = Linear(spec.num_heads * spec.v_dim, width, spec.bias)

    def forward(self, x: Tensor, step: Step, cache: LatentCache) -> Tensor:
        """x [T, C] to [T, C]; writes the step's latents to the cache."""
        spec, rope = self.spec, step.ropes[self.rope_index]
        q, kv = self._project(x)
        norm_rope_write_latent(
            q,
            kv,
            self.kv_norm.weight,
            self.kv_norm.eps,
            rope.cos,
            rope.sin,
            spec.rope.interleaved,
            cache.latent,
            step.slot_mapping,
            step.padded(),
        )
        attended = latent_attention(q, self.kv_b.k, self.kv_b.v, cache.latent, step.batch, spec.scale)
        out: Tensor = self.out(attended.flatten(1))
        return out

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [T, H, D + P] and latents with their key part [T, R + P]."""
        spec = self.spec
        kv_size = spec.rank + spec.rope_dim
        if spec.q_rank is None:
            q, kv = self.q_kv(x).split([self.q_kv.out_features - kv_size, kv_size], dim=-1)
        else:
            latent, kv = self.qa_kv(x).split([spec.q_rank, kv_size], dim=-1)
            q = self.q_b(rms_norm(latent, self.q_norm.weight, self.q_norm.eps))
        return q.view(len(x), spec.num_heads, -1), kv
