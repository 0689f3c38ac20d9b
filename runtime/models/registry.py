"""From the class name in `config.json` to a spec and a table of weight names."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sirocco.runtime.config import ModelConfig
from sirocco.runtime.errors import ModelLoadError
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
    for family in FAMILIES:
        importlib.import_module(f"sirocco.runtime.models.{family}")
    return ARCHITECTURES


def find_architecture(class_name: str) -> Architecture:
    """The architecture of a class name. Raises `ModelLoadError` naming it and those that are known."""
    known = architectures()
    if class_name not in known:
        raise ModelLoadError(f"architecture {class_name!r} is not supported; known are {', '.join(sorted(known))}")
    return known[class_name]


def build_spec(config: ModelConfig) -> ModelSpec:
    """The spec of a model that generates. Raises `ModelLoadError` for an unknown class or a wrong field."""
    if config.fields.boolean("use_bidirectional_attention", False):
        raise config.fields.error("use_bidirectional_attention", "is set: such a model embeds and cannot generate")
    return find_architecture(config.architecture).build(config)
