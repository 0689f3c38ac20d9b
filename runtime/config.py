"""What a model folder says about itself: `config.json` and `generation_config.json`, checked field by field.

Nothing here imports torch: the process that serves HTTP reads configs too.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sirocco.runtime.errors import ModelLoadError

T = TypeVar("T")

MAX_JSON_BYTES = 64 << 20
MAX_SIZE = 2**31 - 1  # of any count in a config: larger values are mistakes or attacks


class Fields:
    """A JSON object read by type. Null counts as missing; errors are `ModelLoadError` naming the file and the field."""

    def __init__(self, values: Mapping[str, Any], where: str = "config.json") -> None:
        self.values = values
        self.where = where

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def error(self, name: str, problem: str) -> ModelLoadError:
        return ModelLoadError(f"{self.where}: {name} {problem}")

    def integer(self, name: str, default: int | None = None, minimum: int = 1, maximum: int = MAX_SIZE) -> int:
        """The integer `name`; `default` where it is missing, an error where there is no default."""
        value = self.optional_integer(name, minimum, maximum)
        return self._required(name, default if value is None else value)

    def optional_integer(self, name: str, minimum: int = 1, maximum: int = MAX_SIZE) -> int | None:
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # some exporters write every number as a float
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(name, f"must be an integer, got {_shown(value)}")
        if not minimum <= value <= maximum:
            raise self.error(name, f"must be between {minimum} and {maximum}, got {_shown(value)}")
        return value

    def number(
        self, name: str, default: float | None = None, minimum: float = -math.inf, maximum: float = math.inf
    ) -> float:
        value = self.optional_number(name, minimum, maximum)
        return self._required(name, default if value is None else value)

    def optional_number(self, name: str, minimum: float = -math.inf, maximum: float = math.inf) -> float | None:
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.error(name, f"must be a finite number, got {_shown(value)}")
        if not minimum <= value <= maximum:
            raise self.error(name, f"must be between {minimum:g} and {maximum:g}, got {_shown(value)}")
        return float(value)

    def boolean(self, name: str, default: bool | None = None) -> bool:
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.error(name, f"must be true or false, got {_shown(value)}")
        return self._required(name, default if value is None else value)

    def string(self, name: str, default: str | None = None) -> str:
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise self.error(name, f"must be a string, got {_shown(value)}")
        return self._required(name, default if value is None else value)

    def strings(self, name: str) -> tuple[str, ...] | None:
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(name, f"must be a list of strings, got {_shown(value)}")
        return tuple(value)

    def integers(self, name: str) -> tuple[int, ...] | None:
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(
            isinstance(item, int) and not isinstance(item, bool) and abs(item) <= MAX_SIZE for item in value
        ):
            raise self.error(name, f"must be a list of integers, got {_shown(value)}")
        return tuple(value)

    def token_ids(self, name: str) -> tuple[int, ...]:
        """One token id or a list of them; empty where the field is missing."""
        value = self.values.get(name)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item <= MAX_SIZE for item in ids):
            raise self.error(name, f"must be a token id or a list of them, got {_shown(value)}")
        return tuple(ids)

    def object(self, name: str) -> "Fields | None":
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(name, f"must be an object, got {_shown(value)}")
        return Fields(value, f"{self.where}: {name}")

    def _required(self, name: str, value: T | None) -> T:
        if value is None:
            raise self.error(name, "is missing")
        return value


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """The sampling that `generation_config.json` recommends; None where it says nothing."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A model folder's configuration: `hf` is `config.json` as it stands, `dtype` the checkpoint's where it says."""

    hf: dict[str, Any]
    architecture: str
    vocab_size: int
    max_model_len: int
    dtype: str | None = None
    eos_token_ids: tuple[int, ...] = ()
    generation: GenerationDefaults = GenerationDefaults()

    @property
    def fields(self) -> Fields:
        return Fields(self.hf)


def read_config(folder: Path) -> ModelConfig:
    """Read `config.json` and `generation_config.json`, if there is one. Raises `ModelLoadError` naming the fault."""
    hf = read_json(folder, "config.json")
    if hf is None:
        raise ModelLoadError("the model folder holds no config.json")
    return make_config(hf, read_json(folder, "generation_config.json"))


def make_config(hf: dict[str, Any], generation: dict[str, Any] | None = None) -> ModelConfig:
    """The configuration that these two JSON objects describe."""
    fields = Fields(hf)
    recommended = Fields(generation or {}, "generation_config.json")
    architectures = fields.strings("architectures")
    if not architectures:
        raise fields.error("architectures", "is missing: it must name the model's class")
    return ModelConfig(
        hf=hf,
        architecture=architectures[0],
        vocab_size=fields.integer("vocab_size"),
        max_model_len=_max_model_len(fields),
        dtype=_dtype(fields),
        eos_token_ids=recommended.token_ids("eos_token_id") or fields.token_ids("eos_token_id"),
        generation=_generation_defaults(recommended),
    )


def read_json(folder: Path, name: str) -> dict[str, Any] | None:
    """The JSON object in a file of a model folder, or None where there is no such file."""
    try:
        with (folder / name).open("rb") as file:
            text = file.read(MAX_JSON_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ModelLoadError(f"{name} cannot be read: {error.strerror}") from None
    if len(text) > MAX_JSON_BYTES:
        raise ModelLoadError(f"{name} is larger than {MAX_JSON_BYTES >> 20} MiB")
    try:
        values = json.loads(text)  # unlike msgspec it takes the NaN and Infinity that some configs hold
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{name} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ModelLoadError(f"{name} must hold a JSON object")
    return values


def rope_parameters(fields: Fields, layer_type: str | None = None) -> Fields:
    """Rope settings in one spelling (transformers 5), whichever the config uses: `rope_type`, `rope_theta` and the
    scaling's own fields; `layer_type` chooses among settings that are given per layer type."""
    modern = fields.object("rope_parameters")
    settings = modern or fields.object("rope_scaling")
    if settings is not None and _is_per_layer_type(settings):
        if layer_type is None:
            raise settings.error("rope_type", "differs per layer type, which this architecture does not know")
        chosen = settings.object(layer_type)
        if chosen is None:
            raise settings.error(layer_type, "is missing")
        settings = chosen
    values = dict(settings.values) if settings else {}
    values["rope_type"] = values.get("rope_type") or values.get("type") or "default"
    for name in ("rope_theta", "partial_rotary_factor"):
        if values.get(name) is None:
            values[name] = fields.values.get(name)
    original = fields.values.get("original_max_position_embeddings") or values.get("original_max_position_embeddings")
    values["original_max_position_embeddings"] = original or fields.values.get("max_position_embeddings")
    return Fields(values, settings.where if settings else fields.where)


def rope_factor(rope: Fields) -> float | None:
    """By how much a scaling stretches the context, where it says."""
    return rope.optional_number("factor", minimum=0.01, maximum=1e6)


def _is_per_layer_type(settings: Fields) -> bool:
    return any(isinstance(value, dict) for value in settings.values.values())


def _max_model_len(fields: Fields) -> int:
    """`max_position_embeddings`, extended where the rope scaling does not count as part of it already."""
    length = fields.integer("max_position_embeddings")
    settings = fields.object("rope_parameters") or fields.object("rope_scaling")
    if settings is None or _is_per_layer_type(settings):
        return length
    rope = rope_parameters(fields)
    factor = rope_factor(rope)
    match rope.string("rope_type"):
        case "linear" | "dynamic" if factor is not None:
            return max(1, int(length * factor))
        case "yarn" if factor is not None:
            return max(1, int(rope.integer("original_max_position_embeddings") * factor))
    return length


def _dtype(fields: Fields) -> str | None:
    name = fields.string("dtype", "") or fields.string("torch_dtype", "")
    return name.removeprefix("torch.") or None


def _generation_defaults(fields: Fields) -> GenerationDefaults:
    temperature = fields.optional_number("temperature", minimum=0.0)
    return GenerationDefaults(
        temperature=temperature if fields.boolean("do_sample", True) else 0.0,
        top_k=fields.optional_integer("top_k", minimum=-1),
        top_p=fields.optional_number("top_p", minimum=0.0),
        min_p=fields.optional_number("min_p", minimum=0.0),
        repetition_penalty=fields.optional_number("repetition_penalty", minimum=0.0),
        max_new_tokens=fields.optional_integer("max_new_tokens"),
    )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
