"""The models behind embeddings: whole sequences side by side in, their hidden states out, nothing kept afterwards."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sirocco.kernels.attention import AttentionBatch
from sirocco.runtime.checkpoint import Checkpoint
from sirocco.runtime.config import ModelConfig
from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.models.bert import ENCODERS, Encoder, EncoderArchitecture
from sirocco.runtime.models.cache import Cache, allocate_caches
from sirocco.runtime.models.decoder import Decoder
from sirocco.runtime.models.load import read_weights
from sirocco.runtime.models.registry import Architecture, architectures, noncausal_field
from sirocco.runtime.models.spec import AttentionSpec, ModelSpec, WeightNames, rope_regime

BLOCK_SIZE = 16
UNUSED = ("pooler.", "cls.", "lm_head.", "vocab_", "embeddings.position_ids")  # heads of other tasks, and constants

OLD_ENDINGS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # of the first checkpoints

# Models whose checkpoints are embedders under a name that no generating model has.
DECODERS = {"Gemma3TextModel": "Gemma3ForCausalLM"}


class EncoderBackbone:
    """An encoder of BERT's family. It takes no memory for weights until `load_backbone`."""

    default_pooling = "mean"

    def __init__(self, architecture: EncoderArchitecture, config: ModelConfig, device: torch.device) -> None:
        self.model = Encoder(architecture.build(config))
        self.names = architecture.names
        self.device = device

    def hidden(self, token_ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """Hidden states [T, C] of sequences of these lengths, whose token ids [T] lie side by side."""
        batch = _batch(lengths, torch.zeros(len(lengths), 0, dtype=torch.int32, device=self.device))
        out: Tensor = self.model(token_ids, _positions(batch), batch)
        return out


class DecoderBackbone:
    """A decoder without its head. Layers that look back through a cache share one, which lasts for a forward."""

    def __init__(self, architecture: Architecture, config: ModelConfig, device: torch.device) -> None:
        spec = _embedding_spec(architecture, config)
        self.model = Decoder(spec, device)
        self.names = {
            path: tuple(source.removeprefix("model.") for source in sources)
            for path, sources in architecture.names.items()
            if path != "head"
        }
        self.device = device
        self.default_pooling = "mean" if spec.cache_bytes_per_token(1) == 0 else "lasttoken"
        self._caches: list[Cache] = []
        self._num_blocks = 0

    def hidden(self, token_ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """Hidden states [T, C] of sequences of these lengths, whose token ids [T] lie side by side."""
        table, num_blocks = self._table(lengths)
        batch = _batch(lengths, table)
        positions = _positions(batch)
        sequence = torch.repeat_interleave(torch.tensor(lengths, device=self.device))
        slots = table[sequence, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
        regimes = torch.tensor([rope_regime(self.model.spec, length) for length in lengths], device=self.device)
        out: Tensor = self.model(
            token_ids, positions, batch, slots, self._reserve(num_blocks), rope_regimes=regimes[sequence]
        )
        return out

    def _table(self, lengths: Sequence[int]) -> tuple[Tensor, int]:
        """A block table [B, P] that gives each sequence blocks of its own, in order, and how many they are."""
        counts = torch.tensor([-(-length // BLOCK_SIZE) for length in lengths])
        columns = torch.arange(int(counts.max()))
        table = (counts.cumsum(0) - counts)[:, None] + columns.minimum(counts[:, None] - 1)
        return table.int().to(self.device), int(counts.sum())

    def _reserve(self, num_blocks: int) -> list[Cache]:
        """A cache for each layer, of at least so many blocks; equal declarations share one."""
        if num_blocks > self._num_blocks:
            spec = self.model.spec
            layers = {layer.mixer.cache: layer for layer in spec.layers}
            distinct = replace(spec, layers=tuple(layers.values()))
            self._caches = []
            shared = allocate_caches(distinct, num_blocks, BLOCK_SIZE, self.model.embed.weight.dtype, self.device)
            caches = dict(zip(layers, shared, strict=True))
            self._caches = [caches[cache] for cache in spec.caches]
            self._num_blocks = num_blocks
        return self._caches


Backbone = EncoderBackbone | DecoderBackbone


def is_encoder(architecture: str) -> bool:
    """Whether models of this class look both ways and generate nothing."""
    return architecture.replace("ForMaskedLM", "Model") in ENCODERS or architecture in DECODERS


def make_backbone(config: ModelConfig, device: torch.device) -> Backbone:
    """The model that a config describes, without weights. Raises `ModelLoadError`."""
    name, known = config.architecture, architectures()
    encoder = name.replace("ForMaskedLM", "Model")
    decoder = DECODERS.get(name, name.replace("Model", "ForCausalLM"))
    if encoder in ENCODERS:
        return EncoderBackbone(ENCODERS[encoder], config, device)
    if decoder in known:
        return DecoderBackbone(known[decoder], config, device)
    names = ", ".join(sorted([*known, *ENCODERS, *DECODERS]))
    raise ModelLoadError(f"architecture {name!r} is not supported for embeddings; known are {names}")


def load_backbone(backbone: Backbone, config: ModelConfig, folder: Path, dtype: str, progress: bool) -> None:
    """Read the weights of a folder. Raises `ModelLoadError` where they do not fit, before memory is taken."""
    with Checkpoint(folder) as checkpoint:
        names = _as_stored(backbone.names, checkpoint)
        read_weights(backbone.model, names, checkpoint, config, dtype, backbone.device, progress)


def _embedding_spec(architecture: Architecture, config: ModelConfig) -> ModelSpec:
    """A decoder's spec without its head, and looking both ways where the config says so."""
    spec = replace(architecture.build(config), has_head=False)
    if spec.cache_bytes_per_request(1):
        raise ModelLoadError(f"architecture {config.architecture!r} has recurrent layers and cannot embed")
    both_ways = noncausal_field(config)
    if both_ways is None:
        return spec
    mixers = [block.mixer for block in spec.layers]
    if not all(isinstance(mixer, AttentionSpec) and mixer.softcap is None for mixer in mixers):
        raise config.fields.error(both_ways, "is not supported with this kind of attention")
    return replace(spec, layers=tuple(block.with_mixer(causal=False) for block in spec.layers))


def _as_stored(names: WeightNames, checkpoint: Checkpoint) -> WeightNames:
    """The names with what this checkpoint puts before them, which depends on the class that saved it; forgets the heads
    of other tasks."""
    embedding = f"{names['embed'][0]}.weight"
    stored = next((name for name in checkpoint if f".{name}".endswith(f".{embedding}")), embedding)
    prefix = stored.removesuffix(embedding)
    checkpoint.rename(OLD_ENDINGS)
    checkpoint.hide((*UNUSED, *(prefix + name for name in UNUSED)))
    return {path: tuple(prefix + source for source in sources) for path, sources in names.items()}


def _batch(lengths: Sequence[int], table: Tensor) -> AttentionBatch:
    seq_lens = torch.tensor(lengths, dtype=torch.int32, device=table.device)
    return AttentionBatch(
        cu_seqlens_q=torch.cat([seq_lens.new_zeros(1), seq_lens.cumsum(0).int()]),
        seq_lens=seq_lens,
        block_table=table,
        query_lens=list(lengths),
        kv_lens=list(lengths),
    )


def _positions(batch: AttentionBatch) -> Tensor:
    return torch.cat([torch.arange(length) for length in batch.query_lens]).to(batch.seq_lens.device)
