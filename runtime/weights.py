"""From the tensors of a checkpoint to the modules of a model, strictly: nothing missing, nothing left over.

A module says which tensors it wants (`slots`) and takes them (`assign`); a table per family says what checkpoints call
them. Everything is matched by name and shape before the first weight is read.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from sirocco.runtime.checkpoint import Checkpoint
from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.models.spec import WeightNames

# What checkpoints may hold beside what a model asks for, as patterns of whole names; a tied head is not asked for.
IGNORABLE = re.compile("|".join((r".*\.rotary_emb\.inv_freq", r".*\.attn\.(masked_)?bias", r"lm_head\.weight")))

LISTED_NAMES = 3
MAX_NAME = 120


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor that a module wants: its parts stacked along the first axis, each [part, *rest].

    The parts repeat `count` times, once for each expert. `dtype` is what it is kept in whatever the run dtype.
    """

    parts: tuple[int, ...]
    rest: tuple[int, ...] = ()
    count: int = 1
    dtype: torch.dtype | None = None

    @property
    def rows(self) -> int:
        return sum(self.parts)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.count * self.rows, *self.rest)


class Loadable(nn.Module, ABC):
    """A module that holds weights. It takes no memory until they are assigned."""

    @abstractmethod
    def slots(self) -> dict[str, Slot]:
        """What it wants, by the suffix that checkpoints give it (`weight`, `bias`)."""

    @abstractmethod
    def assign(self, tensors: dict[str, Tensor]) -> None:
        """Take one tensor for each slot, in the run dtype on the run device; consumes the dictionary."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Memory that the assigned weights occupy."""

    def keep_in_file(self, mapped: Callable[[], Tensor | None]) -> None:
        """Once assigned, a module that reads few rows at a time may take its weight as it lies in the file instead."""


@dataclass(frozen=True, slots=True)
class Part:
    """A source tensor and the rows of a slot it fills."""

    name: str
    shape: tuple[int, ...]
    rows: slice
    dtype: torch.dtype | None


@dataclass(frozen=True, slots=True)
class Target:
    """A module and, for each of its slots, the source tensors."""

    module: Loadable
    sources: dict[str, tuple[Part, ...]]

    def parts(self) -> Iterator[Part]:
        for parts in self.sources.values():
            yield from parts


def loadable_modules(model: nn.Module) -> Iterator[tuple[str, Loadable]]:
    """Modules that hold weights, with their paths, in the model's order."""
    for path, module in model.named_modules():
        if isinstance(module, Loadable):
            yield path, module


def match_weights(model: nn.Module, names: WeightNames, checkpoint: Checkpoint) -> list[Target]:
    """Find the source of every slot. Raises `ModelLoadError` listing names that are missing or unexpected, or naming
    the first tensor whose shape or dtype is not what the model needs."""
    modules = list(loadable_modules(model))
    _check_counts(modules, names, checkpoint)
    targets = [_target(path, module, names) for path, module in modules]
    expected = {part.name: part for target in targets for part in target.parts()}
    unexpected = [name for name in checkpoint if name not in expected and not IGNORABLE.fullmatch(name)]
    missing = [name for name in expected if name not in checkpoint]
    if missing or unexpected:
        raise ModelLoadError(_mismatch(missing, unexpected))
    for part in expected.values():
        _check_part(part, checkpoint)
    return targets


def load_weights(
    targets: Iterable[Target],
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    advance: Callable[[int], None],
) -> None:
    """Read and assign module by module, so that at most one module's weights exist twice; `advance` counts bytes."""
    for target in targets:
        slots = target.module.slots()
        tensors = {}
        for suffix, parts in target.sources.items():
            slot = slots[suffix]
            whole = torch.empty(slot.shape, dtype=slot.dtype or dtype, device=device)
            for part in parts:
                checkpoint.read(part.name, whole[part.rows])
                advance(checkpoint[part.name].num_bytes)
            tensors[suffix] = whole
        del whole
        target.module.assign(tensors)
        if device.type == "cpu":
            target.module.keep_in_file(partial(checkpoint.map, next(target.parts()).name, dtype))


def _target(path: str, module: Loadable, names: WeightNames) -> Target:
    prefixes = [name.replace("*", _layer(path) or "") for name in names[_generic(path)]]
    sources = {suffix: tuple(_parts(prefixes, suffix, slot)) for suffix, slot in module.slots().items()}
    return Target(module, sources)


def _parts(prefixes: list[str], suffix: str, slot: Slot) -> Iterator[Part]:
    """The tensors that fill a slot: one for each part, `#` in their names the expert's number, or one for them all."""
    if len(prefixes) == 1 and "#" not in prefixes[0]:
        shape = (slot.rows, *slot.rest) if slot.count == 1 else (slot.count, slot.rows, *slot.rest)
        yield Part(f"{prefixes[0]}.{suffix}", shape, slice(0, slot.count * slot.rows), slot.dtype)
        return
    sizes = (slot.rows,) if len(prefixes) == 1 else slot.parts
    start = 0
    for expert in range(slot.count):
        for prefix, size in zip(prefixes, sizes, strict=True):
            name = f"{prefix.replace('#', str(expert))}.{suffix}"
            yield Part(name, (size, *slot.rest), slice(start, start + size), slot.dtype)
            start += size


def _check_part(part: Part, checkpoint: Checkpoint) -> None:
    entry = checkpoint[part.name]
    if entry.shape != part.shape:
        raise ModelLoadError(
            f"tensor {part.name!r} has the shape {list(entry.shape)}, config.json asks for {list(part.shape)}"
        )
    wants_float = part.dtype is None or part.dtype.is_floating_point
    if entry.dtype != part.dtype and not (wants_float and entry.dtype.is_floating_point and entry.dtype.itemsize > 1):
        raise ModelLoadError(f"tensor {part.name!r} is quantised ({entry.dtype}), which is not supported")


def _mismatch(missing: list[str], unexpected: list[str]) -> str:
    kinds = (("missing", missing), ("unexpected", unexpected))
    found = [f"{len(listed)} {kind} ({_listed(listed)})" for kind, listed in kinds if listed]
    return f"the weights do not match config.json: {' and '.join(found)}"


def _check_counts(modules: list[tuple[str, Loadable]], names: WeightNames, checkpoint: Checkpoint) -> None:
    """Layers and experts are counted before any name is made: config.json may say any number of them."""
    sources = [name for listed in names.values() for name in listed]
    prefix = next((name.partition("*")[0] for name in sources if "*" in name), None)
    if prefix is not None:
        wanted, held = len({_layer(path) for path, _ in modules} - {None}), _num_layers(checkpoint, prefix)
        if wanted != held:
            raise ModelLoadError(f"config.json says {wanted} layers, the weights hold {held}")
    pattern = next((_expert_pattern(name) for name in sources if "#" in name), None)
    slots = [slot for path, module in modules if "#" in names[_generic(path)][0] for slot in module.slots().values()]
    if pattern is not None and slots:
        wanted, held = max(slot.count for slot in slots), _num_experts(checkpoint, pattern)
        if wanted != held:
            raise ModelLoadError(f"config.json says {wanted} experts, the weights hold {held}")


def _layer(path: str) -> str | None:
    """The layer's number in the path of a module."""
    found = re.search(r"\.(\d+)\.", path)
    return found[1] if found else None


def _generic(path: str) -> str:
    """The path of a module with `*` for the layer's number."""
    return re.sub(r"\.\d+\.", ".*.", path)


def _num_layers(names: Iterable[str], prefix: str) -> int:
    return len({name[len(prefix) :].partition(".")[0] for name in names if name.startswith(prefix)})


def _expert_pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\*", r"\d+").replace(r"\#", r"(\d+)"))


def _num_experts(names: Iterable[str], pattern: re.Pattern[str]) -> int:
    return len({match[1] for name in names if (match := pattern.match(name))})


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name[:MAX_NAME])[1:-1] for name in sorted(names)[:LISTED_NAMES])
    return shown if len(names) <= LISTED_NAMES else shown + ", ..."
