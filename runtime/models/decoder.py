"""The decoder: embedding, one loop over the layers, norm, output head."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from sirocco.kernels.attention import AttentionBatch
from sirocco.kernels.embedding import embedding
from sirocco.kernels.mamba import StateBatch
from sirocco.runtime.models.block import make_block
from sirocco.runtime.models.cache import Cache
from sirocco.runtime.models.fused import FusedLayer, fuse
from sirocco.runtime.models.linear import DenseWeight, Head, Weight, make_weight, scores
from sirocco.runtime.models.norm import make_norm
from sirocco.runtime.models.rope import Rope
from sirocco.runtime.models.spec import ModelSpec
from sirocco.runtime.models.step import Placement, Step
from sirocco.runtime.weights import Loadable, Slot, loadable_modules

# An embedding this large may stay in its file; below, a copy costs less than depending on the file's staying as it is.
MIN_IN_FILE = 64 << 20


class Embedding(Loadable):
    """A row of width C for each of V token ids, times `multiplier`."""

    weight: Tensor

    def __init__(self, vocab_size: int, width: int, multiplier: float = 1.0) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.width = width
        self.multiplier = multiplier
        self.in_file = False

    def slots(self) -> dict[str, Slot]:
        return {"weight": Slot((self.vocab_size,), (self.width,))}

    def assign(self, tensors: dict[str, Tensor]) -> None:
        self.weight = tensors.pop("weight")
        # As models were trained: the factor is rounded to the dtype before it multiplies.
        self.multiplier = torch.tensor(self.multiplier, dtype=self.weight.dtype).item()

    @property
    def num_bytes(self) -> int:
        return 0 if self.in_file else self.weight.nbytes

    def keep_in_file(self, mapped: Callable[[], Tensor | None]) -> None:
        """Lookups touch a page or two a token: the rest of a large table need not take memory."""
        if self.weight.nbytes >= MIN_IN_FILE and (weight := mapped()) is not None:
            self.weight, self.in_file = weight, True

    def forward(self, token_ids: Tensor) -> Tensor:
        """token_ids [T] to [T, C]."""
        rows = embedding(token_ids, self.weight)
        return rows if self.multiplier == 1.0 else rows * self.multiplier


class TiedEmbedding(Embedding):
    """An embedding that is the output matrix too: `output` holds it as suits products, packed or as it is."""

    output: Weight

    def assign(self, tensors: dict[str, Tensor]) -> None:
        super().assign(tensors)
        self.output = make_weight(self.weight)

    @property
    def num_bytes(self) -> int:
        return super().num_bytes + (0 if isinstance(self.output, DenseWeight) else self.output.num_bytes)

    def keep_in_file(self, mapped: Callable[[], Tensor | None]) -> None:
        if not isinstance(self.output, DenseWeight):  # else every step needs all of it
            super().keep_in_file(mapped)

    def project(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [R, C] to [R, V] in float32."""
        return scores(self.output, x, bias)


class TiedHeadBias(Loadable):
    """An output head that owns its bias alone: its matrix is the embedding's."""

    bias: Tensor

    def __init__(self, embedding: TiedEmbedding) -> None:
        super().__init__()
        self.vocab_size = embedding.vocab_size
        self.project = embedding.project

    def slots(self) -> dict[str, Slot]:
        return {"bias": Slot((self.vocab_size,))}

    def assign(self, tensors: dict[str, Tensor]) -> None:
        self.bias = tensors.pop("bias")

    @property
    def num_bytes(self) -> int:
        return self.bias.nbytes

    def forward(self, x: Tensor) -> Tensor:
        """x [R, C] to [R, V]."""
        return self.project(x, self.bias)


class Decoder(nn.Module):
    """A decoder as its spec says. It takes no memory for weights until they are assigned (`load.py`)."""

    def __init__(self, spec: ModelSpec, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.spec = spec
        ropes = spec.ropes
        self.embed, self.head = _embedding_and_head(spec)
        self.ropes = nn.ModuleList(Rope(rope, torch.device(device)) for rope in ropes)
        self.layers = nn.ModuleList(
            make_block(block, spec.width, None if block.mixer.rope is None else ropes.index(block.mixer.rope))
            for block in spec.layers
        )
        self.norm = make_norm(spec.norm, spec.width)
        self._fused: list[FusedLayer | None] = []
        self._fused_over: Sequence[Cache] | None = None

    def fuse(self, caches: Sequence[Cache]) -> None:
        """From now on run what layers can over these very caches as one call each; once the weights are there."""
        layers = zip(self.layers, self.spec.layers, caches, strict=True)
        self._fused = [fuse(layer, spec, cache) for layer, spec, cache in layers]
        self._fused_over = caches

    @property
    def num_bytes(self) -> int:
        """Memory that the weights occupy."""
        return sum(module.num_bytes for _, module in loadable_modules(self))

    @torch.inference_mode()
    def forward(
        self,
        inputs: Tensor,
        positions: Tensor,
        batch: AttentionBatch,
        slot_mapping: Tensor,
        caches: Sequence[Cache],
        states: StateBatch | None = None,
        rope_regimes: Tensor | None = None,
        others: Sequence[Placement] = (),
    ) -> Tensor:
        """Hidden states [T, C], normed, of token ids [T] or embeddings [T, C] at positions [T].

        Writes each token's state to `caches` (one a layer) at `slot_mapping` [T], where negative slots are padding;
        models with recurrent state find it through `states`. `rope_regimes` [T] holds the regime of each token's
        request (`rope_regime`) where the spec's rotary embedding depends on length; without it all are in regime 0.
        `others` place the tokens for groups of layers after the first; without them one placement serves all. Raises
        ValueError for embeddings of another width, and unless each input has its position and slot.
        """
        if not len(inputs) == len(positions) == len(slot_mapping):
            raise ValueError(f"{len(inputs)} inputs at {len(positions)} positions with {len(slot_mapping)} slots")
        x = self._embedded(inputs)
        step = Step(batch, slot_mapping, tuple(rope(positions, rope_regimes) for rope in self.ropes), states)
        steps = [step, *(replace(step, batch=other.batch, slot_mapping=other.slot_mapping) for other in others)]
        residual = None
        no_padding = len(slot_mapping) == sum(batch.query_lens)
        fused = self._fused if caches is self._fused_over and no_padding else [None] * len(caches)
        for layer, run, cache in zip(self.layers, fused, caches, strict=True):
            place = steps[cache.group] if others and cache else step
            x, residual = layer(x, residual, place, cache) if run is None else run(x, residual, place)
        hidden: Tensor = self.norm(x, residual)[0]
        return hidden

    def _embedded(self, inputs: Tensor) -> Tensor:
        if not inputs.is_floating_point():
            rows: Tensor = self.embed(inputs)
            return rows
        if inputs.dim() != 2 or inputs.shape[1] != self.spec.width:
            raise ValueError(f"embeddings of shape {tuple(inputs.shape)} for a model of width {self.spec.width}")
        return inputs.to(self.embed.weight.dtype)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [R, V] in float32 of hidden rows [R, C]: pass only the rows that are sampled."""
        assert self.head is not None, "the model has no output head"
        logits = self.head(hidden)
        if self.spec.logit_scale != 1.0:
            logits *= self.spec.logit_scale
        if self.spec.logit_softcap is not None:
            logits = torch.tanh(logits / self.spec.logit_softcap) * self.spec.logit_softcap
        return logits


def _embedding_and_head(spec: ModelSpec) -> tuple[Embedding, Callable[[Tensor], Tensor] | None]:
    size = (spec.vocab_size, spec.width, spec.embedding_multiplier)
    if not spec.has_head:
        return Embedding(*size), None
    if spec.tied_embeddings:
        tied = TiedEmbedding(*size)
        return tied, TiedHeadBias(tied) if spec.head_bias else tied.project
    return Embedding(*size), Head(spec.width, spec.vocab_size, spec.head_bias)
