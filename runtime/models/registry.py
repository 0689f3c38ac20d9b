"""From the class name in `config.json` to a spec and a table of weight names."""

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import overload

from sirocco.runtime.config import ModelConfig
from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.models.multimodal import MULTIMODAL
from sirocco.runtime.models.spec import ModelSpec, WeightNames

SpecFunction = Callable[[ModelConfig], ModelSpec]


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one class of models becomes a spec, what its checkpoints call the weights, and which quantised formats its
    own modules read."""

    build: SpecFunction
    names: WeightNames
    formats: tuple[str, ...] = ()


# Modules that register themselves when they are imported.
FAMILIES = (
    "deepseek",
    "gemma",
    "glm",
    "glm_moe",
    "gpt_oss",
    "granite",
    "llama",
    "mixtral",
    "phi",
    "phimoe",
    "qwen",
    "qwen_moe",
    "starcoder",
)
ARCHITECTURES: dict[str, Architecture] = {}
_ALIASES = {"phi2": "phi", "phi35moe": "phimoe"}  # what else families are called


def architecture(
    *class_names: str, names: WeightNames, formats: tuple[str, ...] = ()
) -> Callable[[SpecFunction], SpecFunction]:
    """Register the decorated function `(ModelConfig) -> ModelSpec` for these class names."""

    def register(build: SpecFunction) -> SpecFunction:
        for class_name in class_names:
            ARCHITECTURES[class_name] = Architecture(build, names, formats)
        return build

    return register


def architectures() -> Mapping[str, Architecture]:
    """All that are known, by class name."""
    for module in FAMILIES:
        importlib.import_module(f"sirocco.runtime.models.{module}")
    return ARCHITECTURES


def find_architecture(name: str) -> Architecture:
    """The architecture of a class name. Raises `ModelLoadError` naming it and those that are known."""
    known = architectures()
    if name not in known:
        listed = ", ".join(sorted((*known, *MULTIMODAL)))
        raise ModelLoadError(f"architecture {name!r} is not supported; known are {listed}")
    return known[name]


def family_name(name: str) -> str:
    """The short name of a class, such as qwen3 of Qwen3ForCausalLM."""
    return _plain(name.removesuffix("ForCausalLM"))


@overload
def class_name(arch: str) -> str: ...


@overload
def class_name(arch: str | None) -> str | None: ...


def class_name(arch: str | None) -> str | None:
    """The class that a user means by a class or family name, in any spelling; None for None. Of a model of several
    modalities it is the class of the text model.

    Raises `ModelLoadError` naming it and those that are known.
    """
    if arch is None or arch in architectures():
        return arch
    if arch in MULTIMODAL:
        return next(iter(MULTIMODAL[arch].texts.values()))
    families = {family_name(name): name for name in architectures()}
    family = _plain(arch)
    found = families.get(_ALIASES.get(family, family))
    if found is None:
        listed = ", ".join(sorted(families))
        raise ModelLoadError(f"there is no architecture {arch!r}; known are {listed} and the names of their classes")
    return found


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def noncausal_field(config: ModelConfig) -> str | None:
    """The field by which a config lets tokens attend to later ones, None where they may not."""
    if config.fields.boolean("use_bidirectional_attention", False):
        return "use_bidirectional_attention"
    return None if config.fields.boolean("is_causal", True) else "is_causal"


def build_spec(config: ModelConfig) -> ModelSpec:
    """The spec of a model that generates. Raises `ModelLoadError` for an unknown class or a wrong field."""
    if (field := noncausal_field(config)) is not None:
        raise config.fields.error(field, "says that tokens attend both ways: such a model embeds and cannot generate")
    return find_architecture(config.architecture).build(config)
