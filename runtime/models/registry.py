"""From the class name in `config.json` to a spec and a table of weight names."""

from collections.abc import Callable
from dataclasses import dataclass

from sirocco.runtime.config import ModelConfig
from sirocco.runtime.errors import ModelLoadError
from sirocco.runtime.models.spec import ModelSpec, WeightNames

SpecFunction = Callable[[ModelConfig], ModelSpec]


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one class of models becomes a spec, and what its checkpoints call the weights."""

    build: SpecFunction
    names: WeightNames


ARCHITECTURES: dict[str, Architecture] = {}


def architecture(*class_names: str, names: WeightNames) -> Callable[[SpecFunction], SpecFunction]:
    """Register the decorated function `(ModelConfig) -> ModelSpec` for these class names."""

    def register(build: SpecFunction) -> SpecFunction:
        for class_name in class_names:
            ARCHITECTURES[class_name] = Architecture(build, names)
        return build

    return register


def find_architecture(class_name: str) -> Architecture:
    """The architecture of a class name. Raises `ModelLoadError` naming it and those that are known."""
    from sirocco.runtime.models import llama, qwen  # noqa: F401  (they register themselves)

    if class_name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ModelLoadError(f"architecture {class_name!r} is not supported; known are {known}")
    return ARCHITECTURES[class_name]


def build_spec(config: ModelConfig) -> ModelSpec:
    """The spec of a model. Raises `ModelLoadError` for an unknown class or a field that is missing or wrong."""
    return find_architecture(config.architecture).build(config)
