"""Embeddings: texts as token ids in, vectors out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from sirocco.runtime.config import ModelConfig, read_config, read_json
from sirocco.runtime.embedding_backbone import Backbone, is_encoder, load_backbone, make_backbone
from sirocco.runtime.embedding_stages import Stages, read_stages
from sirocco.runtime.errors import ContextLengthError, RequestError
from sirocco.runtime.models.device import choose_device
from sirocco.runtime.models.load import refuse_quantised
from sirocco.runtime.models.registry import class_name
from sirocco.runtime.text.embed_text import read_settings

MAX_TOKENS = {"cpu": 4096, "mps": 8192, "cuda": 32768}  # of one forward, unless a single sequence has more
TRUNCATABLE = ("Gemma3TextModel", "Qwen3ForCausalLM", "Qwen3Model")  # trained so that vectors may be cut short


@dataclass(frozen=True, slots=True)
class Embedder:
    """A model that turns a sequence of tokens into a vector of `width` numbers.

    It takes sequences of up to `max_len` tokens, and computes some `max_tokens` at a time. `dimensions` lists the sizes
    to which vectors may be cut: empty for any, None for none.
    """

    backbone: Backbone
    stages: Stages
    max_len: int
    max_tokens: int
    dimensions: tuple[int, ...] | None = None

    @property
    def width(self) -> int:
        return self.stages.width

    @property
    def num_bytes(self) -> int:
        """Memory that the weights occupy."""
        return self.backbone.model.num_bytes + self.stages.num_bytes

    def check_device(self) -> None:
        """Raises what a CUDA device raises for ever once a kernel of this process went wrong on it."""
        if self.backbone.device.type == "cuda":
            torch.cuda.synchronize(self.backbone.device)

    @torch.inference_mode()
    def embed(self, sequences: Sequence[Sequence[int]], dimensions: int | None = None) -> Tensor:
        """Vectors [N, width] in float32 on the CPU of N sequences of token ids, or their first `dimensions` numbers,
        brought to unit length again where the model normalises.

        Raises `RequestError` for an empty sequence, an id that is out of range or dimensions that the model does not
        offer, `ContextLengthError` for a sequence longer than `max_len`.
        """
        self.check(sequences, dimensions)
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        out = torch.empty(len(sequences), self.width)
        for chosen in _batches([len(sequences[i]) for i in order], self.max_tokens):
            rows = order[chosen]
            out[rows] = self._forward([sequences[i] for i in rows]).cpu()
        if dimensions is not None and dimensions < self.width:
            out = out[:, :dimensions].contiguous()
            out = F.normalize(out, dim=-1) if self.stages.normalizes else out
        return out

    def _forward(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        device = self.backbone.device
        lengths = [len(sequence) for sequence in sequences]
        token_ids = torch.tensor([token for sequence in sequences for token in sequence], device=device)
        return self.stages(self.backbone.hidden(token_ids, lengths), torch.tensor(lengths, device=device))

    def check(self, sequences: Sequence[Sequence[int]], dimensions: int | None = None) -> None:
        """Raises what `embed` would."""
        for number, sequence in enumerate(sequences):
            if not sequence:
                raise RequestError(f"input {number} is empty", "input")
            if len(sequence) > self.max_len:
                raise ContextLengthError(
                    f"input {number} has {len(sequence)} tokens, the model takes at most {self.max_len}", "input"
                )
            if min(sequence) < 0 or max(sequence) >= self.backbone.model.spec.vocab_size:
                raise RequestError(f"input {number} holds a token id that is out of range", "input")
        if dimensions is None or dimensions == self.width:
            return
        if self.dimensions is None:
            raise RequestError(f"this model's embeddings have {self.width} dimensions and cannot be cut", "dimensions")
        if not 1 <= dimensions <= self.width or (self.dimensions and dimensions not in self.dimensions):
            allowed = ", ".join(map(str, self.dimensions)) or f"1 to {self.width}"
            raise RequestError(f"dimensions must be one of {allowed}, got {dimensions}", "dimensions")


def is_embedder(folder: Path, arch: str | None = None) -> bool:
    """Whether a folder is meant for embeddings: it has the `modules.json` of sentence-transformers, or an encoder.

    `arch` names an architecture in place of the one in config.json.
    """
    if (folder / "modules.json").is_file():
        return True
    return is_encoder(read_config(folder, class_name(arch)).architecture)


def load_embedder(
    folder: Path, dtype: str = "auto", device: str = "auto", progress: bool = True, arch: str | None = None
) -> Embedder:
    """Load an embedder's folder: a model, and `modules.json` with what follows it where there is one.

    Without it, hidden states are averaged, or the last one is taken where attention is causal. `arch` is as in
    `is_embedder`. Raises `ModelLoadError`.
    """
    config = read_config(folder, class_name(arch))
    refuse_quantised(config)
    run_device = choose_device(device)
    backbone = make_backbone(config, run_device)
    max_len, dimensions = _max_len(folder, backbone.model.spec.max_model_len), _dimensions(config)
    stages = read_stages(folder, backbone.model.spec.width, backbone.default_pooling, run_device)
    load_backbone(backbone, config, folder, dtype, progress)
    return Embedder(backbone, stages, max_len, MAX_TOKENS[run_device.type], dimensions)


def _max_len(folder: Path, most: int) -> int:
    """What the model can take, or less where the folder says that it was trained for less.

    Newer folders leave that to the tokenizer, whose limit may also be a number beyond all that stands for none.
    """
    settings = read_settings(folder)
    if settings.values.get("max_seq_length") is not None:
        return min(most, settings.integer("max_seq_length"))
    limit = (read_json(folder, "tokenizer_config.json") or {}).get("model_max_length")
    return int(limit) if isinstance(limit, int | float) and 1 <= limit < most else most


def _dimensions(config: ModelConfig) -> tuple[int, ...] | None:
    listed = config.fields.integers("matryoshka_dimensions")
    if listed is not None:
        return listed
    free = config.fields.boolean("is_matryoshka", config.architecture in TRUNCATABLE)
    return () if free else None


def _batches(lengths: Sequence[int], max_tokens: int) -> Iterator[slice]:
    """Cut sequences of these lengths into runs of at most so many tokens."""
    start = total = 0
    for i, length in enumerate(lengths):
        if total and total + length > max_tokens:
            yield slice(start, i)
            start, total = i, 0
        total += length
    if total:
        yield slice(start, len(lengths))
