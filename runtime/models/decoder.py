"""The decoder: embedding, one loop over the layers, norm, output head."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sirocco.kernels.attention import AttentionBatch
from sirocco.runtime.models.attention import Attention, Step
from sirocco.runtime.models.cache import KvCache
from sirocco.runtime.models.linear import DenseWeight, Linear, Weight, make_weight
from sirocco.runtime.models.mlp import make_ffn
from sirocco.runtime.models.norm import make_norm
from sirocco.runtime.models.rope import Rope
from sirocco.runtime.models.spec import BlockSpec, ModelSpec, RopeSpec
from sirocco.runtime.weights import Loadable, Slot, loadable_modules

# An embedding this large may stay in its file; below, a copy costs less than depending on the file's staying as it is.
MIN_IN_FILE = 64 << 20


class Embedding(Loadable):
    """A row of width C for each of V token ids."""

    weight: Tensor

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.width = width
        self.in_file = False

    def slots(self) -> dict[str, Slot]:
        return {"weight": Slot((self.vocab_size,), (self.width,))}

    def assign(self, tensors: dict[str, Tensor]) -> None:
        self.weight = tensors.pop("weight")

    @property
    def num_bytes(self) -> int:
        return 0 if self.in_file else self.weight.nbytes

    def keep_in_file(self, mapped: Callable[[], Tensor | None]) -> None:
        """Lookups touch a page or two a token: the rest of a large table need not take memory."""
        if self.weight.nbytes >= MIN_IN_FILE and (weight := mapped()) is not None:
            self.weight, self.in_file = weight, True

    def forward(self, token_ids: Tensor) -> Tensor:
        """token_ids [T] to [T, C]."""
        return F.embedding(token_ids, self.weight)


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

    def project(self, x: Tensor) -> Tensor:
        """x [R, C] to [R, V]."""
        return self.output.matmul(x, None)


class Block(nn.Module):
    """A layer whose mixer and feed-forward each read a norm of the residual stream and add to it."""

    def __init__(self, spec: BlockSpec, width: int, rope_index: int | None) -> None:
        super().__init__()
        self.mixer_norm = make_norm(spec.norm, width)
        self.mixer = Attention(spec.mixer, width, rope_index)
        self.ffn_norm = make_norm(spec.norm, width)
        self.ffn = make_ffn(spec.ffn, width)

    def forward(self, x: Tensor, residual: Tensor | None, step: Step, cache: KvCache) -> tuple[Tensor, Tensor]:
        """x [T, C] is what the layer before still has to add to the residual stream; returns the same pair."""
        normed, residual = self.mixer_norm(x, residual)
        normed, residual = self.ffn_norm(self.mixer(normed, step, cache), residual)
        return self.ffn(normed), residual


class Decoder(nn.Module):
    """A decoder as its spec says. It takes no memory for weights until they are assigned (`load.py`)."""

    def __init__(self, spec: ModelSpec, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.spec = spec
        ropes = _distinct_ropes(spec)
        self.embed, self.head = _embedding_and_head(spec)
        self.ropes = nn.ModuleList(Rope(rope, torch.device(device)) for rope in ropes)
        self.layers = nn.ModuleList(
            Block(block, spec.width, None if block.mixer.rope is None else ropes.index(block.mixer.rope))
            for block in spec.layers
        )
        self.norm = make_norm(spec.norm, spec.width)

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
        caches: Sequence[KvCache],
    ) -> Tensor:
        """Hidden states [T, C], normed, of token ids [T] or embeddings [T, C] at positions [T].

        Writes each token's state to `caches` (one a layer) at `slot_mapping` [T]; negative slots are padding.
        """
        x = inputs if inputs.is_floating_point() else self.embed(inputs)
        step = Step(batch, slot_mapping, tuple(rope(positions) for rope in self.ropes))
        residual = None
        for layer, cache in zip(self.layers, caches, strict=True):
            x, residual = layer(x, residual, step, cache)
        hidden: Tensor = self.norm(x, residual)[0]
        return hidden

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [R, V] in float32 of hidden rows [R, C]: pass only the rows that are sampled."""
        return self.head(hidden).float()


def _embedding_and_head(spec: ModelSpec) -> tuple[Embedding, Callable[[Tensor], Tensor]]:
    if spec.tied_embeddings:
        tied = TiedEmbedding(spec.vocab_size, spec.width)
        return tied, tied.project
    return Embedding(spec.vocab_size, spec.width), Linear(spec.width, spec.vocab_size)


def _distinct_ropes(spec: ModelSpec) -> list[RopeSpec]:
    return list(dict.fromkeys(block.mixer.rope for block in spec.layers if block.mixer.rope is not None))
