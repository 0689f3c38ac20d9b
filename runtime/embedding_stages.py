"""What an embedder's folder puts after the model (`modules.json`): pooling, dense layers, normalisation."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sirocco.runtime.checkpoint import Checkpoint
from sirocco.runtime.config import MAX_JSON_BYTES, Fields, read_json
from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.models.linear import Linear
from sirocco.runtime.text.embed_text import EmbedText
from sirocco.runtime.weights import load_weights, match_weights

MODULES = "modules.json"

# In the order in which pooled vectors are joined where a folder asks for several by flags.
POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Identity": lambda x: x,
    "Tanh": torch.tanh,
    "ReLU": F.relu,
    "GELU": F.gelu,
    "SiLU": F.silu,
    "Sigmoid": torch.sigmoid,
}


@dataclass(frozen=True, slots=True)
class Pooled:
    """Hidden states [T, C] in float32 of B sequences side by side."""

    hidden: Tensor
    lengths: Tensor  # [B]

    @property
    def ends(self) -> Tensor:
        return self.lengths.cumsum(0)

    def sums(self, hidden: Tensor) -> Tensor:
        sequence = torch.repeat_interleave(self.lengths)  # [T]
        return hidden.new_zeros(len(self.lengths), hidden.shape[1]).index_add_(0, sequence, hidden)

    def weighted_mean(self) -> Tensor:
        """Weights grow with the position: 1, 2, 3 …"""
        starts = torch.repeat_interleave(self.ends - self.lengths, self.lengths)
        weights = torch.arange(1, len(self.hidden) + 1, device=self.hidden.device) - starts
        total = self.lengths * (self.lengths + 1) / 2
        return self.sums(self.hidden * weights[:, None]) / total[:, None]


POOLINGS: dict[str, Callable[[Pooled], Tensor]] = {
    "cls": lambda x: x.hidden[x.ends - x.lengths],
    "max": lambda x: torch.stack([rows.amax(0) for rows in x.hidden.split(x.lengths.tolist())]),
    "mean": lambda x: x.sums(x.hidden) / x.lengths[:, None],
    "mean_sqrt_len_tokens": lambda x: x.sums(x.hidden) / x.lengths[:, None].sqrt(),
    "weightedmean": Pooled.weighted_mean,
    "lasttoken": lambda x: x.hidden[x.ends - 1],
}


@dataclass(frozen=True, slots=True)
class Pooling:
    """One vector per sequence; several kinds are joined."""

    kinds: tuple[str, ...]

    def __call__(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """hidden [T, C] of sequences of these lengths [B] to [B, C * kinds] in float32."""
        pooled = Pooled(hidden.float(), lengths)
        return torch.cat([POOLINGS[kind](pooled) for kind in self.kinds], dim=1)


class Dense(nn.Module):
    """A linear layer and an activation, in float32; a `residual` one adds its input."""

    def __init__(self, in_features: int, out_features: int, bias: bool, activation: str, residual: bool) -> None:
        super().__init__()
        self.out_features = out_features
        self.residual = residual
        self.linear = Linear(in_features, out_features, bias)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.linear(x))
        return x + y if self.residual else y


class Normalize(nn.Module):
    """Every row to unit length."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)


@dataclass(frozen=True, slots=True)
class Stages:
    """Pooling and what follows it; `width` is the size of an embedding."""

    pooling: Pooling
    steps: tuple[nn.Module, ...]
    width: int

    @property
    def num_bytes(self) -> int:
        """Memory that the weights occupy."""
        return sum(step.linear.num_bytes for step in self.steps if isinstance(step, Dense))

    @property
    def normalizes(self) -> bool:
        return any(isinstance(step, Normalize) for step in self.steps)

    def __call__(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """hidden [T, C] of sequences of these lengths [B] to [B, width] in float32."""
        x = self.pooling(hidden, lengths)
        for step in self.steps:
            x = step(x)
        return x


def read_stages(folder: Path, width: int, default_pooling: str, device: torch.device) -> Stages:
    """The stages of a folder whose model has this width; without `modules.json` the default pooling alone.

    Raises `ModelLoadError` for what is missing, does not fit or is not known.
    """
    pooling: Pooling | None = None
    steps: list[nn.Module] = []
    for kind, path in _modules(folder):
        match kind:
            case "Transformer":
                continue
            case "Pooling" if pooling is None:
                pooling = _pooling(folder / path, width, EmbedText.read(folder).prompt)
                width *= len(pooling.kinds)
            case "Dense" if pooling is not None:
                dense = _dense(folder / path, width, device)
                width = dense.out_features
                steps.append(dense)
            case "Normalize" if pooling is not None:
                steps.append(Normalize())
            case "Dropout":
                continue
            case _:
                raise ModelLoadError(f"{MODULES}: a step {kind!r} in this place is not supported")
    return Stages(pooling or Pooling((default_pooling,)), tuple(steps), width)


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Class and folder of each step, in order."""
    try:
        with (folder / MODULES).open("rb") as file:
            text = file.read(MAX_JSON_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return []
    try:
        listed: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{MODULES} is not valid JSON: {error}") from None
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise ModelLoadError(f"{MODULES} must hold a list of objects")
    return [_module(Fields(entry, MODULES)) for entry in listed]


def _module(entry: Fields) -> tuple[str, str]:
    path = PurePosixPath(entry.string("path", ""))
    if path.is_absolute() or ".." in path.parts:
        raise entry.error("path", "must lie within the model folder")
    return entry.string("type").rpartition(".")[2], str(path)


def _config(folder: Path) -> Fields:
    where = f"{folder.name}/config.json"
    values = read_json(folder, "config.json")
    if values is None:
        raise ModelLoadError(f"{where} is missing")
    return Fields(values, where)


def _pooling(folder: Path, width: int, prompt: str) -> Pooling:
    config = _config(folder)
    if prompt and not config.boolean("include_prompt", True):
        raise config.error("include_prompt", f"must be true for the prompt {prompt!r:.64} before every text")
    expected = config.integer("word_embedding_dimension", config.integer("embedding_dimension", width))
    if expected != width:
        raise config.error("word_embedding_dimension", f"is {expected}, the model's width is {width}")
    named = config.values.get("pooling_mode")
    kinds: Sequence[object] = named if isinstance(named, list) else [named] if named is not None else ()
    if not kinds:
        kinds = [kind for flag, kind in POOLING_FLAGS.items() if config.boolean(flag, False)]
    for kind in kinds:
        if kind not in POOLINGS:
            raise config.error("pooling_mode", f"{kind!r} is not supported; known are {', '.join(POOLINGS)}")
    if not kinds:
        raise config.error("pooling_mode", "is missing: no kind of pooling is chosen")
    return Pooling(tuple(str(kind) for kind in kinds))


def _dense(folder: Path, width: int, device: torch.device) -> Dense:
    config = _config(folder)
    in_features = config.integer("in_features")
    if in_features != width:
        raise config.error("in_features", f"is {in_features}, the vectors before it have {width}")
    activation = config.string("activation_function", "torch.nn.modules.activation.Tanh").rpartition(".")[2]
    if activation not in ACTIVATIONS:
        raise config.error("activation_function", f"{activation!r} is not supported")
    out_features, residual = config.integer("out_features"), config.boolean("use_residual", False)
    if residual and out_features != in_features:
        raise config.error("use_residual", f"is not supported from {in_features} to {out_features} features")
    dense = Dense(in_features, out_features, config.boolean("bias", True), activation, residual)
    with Checkpoint(folder) as checkpoint:
        targets = match_weights(dense, {"linear": ("linear",)}, checkpoint)
        load_weights(targets, checkpoint, torch.float32, device, lambda num_bytes: None)
    return dense
