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
from sirocco.runtime.models.multimodal import MULTIMODAL, TEXT_PREFIXES, Multimodal

T = TypeVar("T")

MAX_JSON_BYTES = 64 << 20
# What the config of several modalities says for its text part too, where that does not say it itself.
SHARED_FIELDS = ("quantization_config", "dtype", "torch_dtype")
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

    def nullable_integer(self, name: str, default: int | None) -> int | None:
        """The integer `name`, or None where it is null; `default` where it is absent."""
        return self.optional_integer(name) if name in self else default

    def number(
        self, name: str, default: float | None = None, minimum: float = -math.inf, maximum: float = math.inf
    ) -> float:
        value = self.optional_number(name, minimum, maximum)
        return self._required(name, default if value is None else value)

    def optional_number(self, name: str, minimum: float = -math.inf, maximum: float = math.inf) -> float | None:
        value = self.values.get(name)
        if value is None:
            return None
        number = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else _float(value)
        if not math.isfinite(number):
            raise self.error(name, f"must be a finite number, got {_shown(value)}")
        if not minimum <= number <= maximum:
            raise self.error(name, f"must be between {minimum:g} and {maximum:g}, got {_shown(value)}")
        return number

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
    """A model folder's configuration: `hf` is `config.json` as it stands, `dtype` the checkpoint's where it says.

    Of a model of several modalities (`whole` is its class) it describes the text model. Sizes are checked when they are
    asked for: whether the architecture is known comes first.
    """

    hf: dict[str, Any]
    architecture: str
    dtype: str | None = None
    eos_token_ids: tuple[int, ...] = ()
    generation: GenerationDefaults = GenerationDefaults()
    whole: str | None = None

    @property
    def vocab_size(self) -> int:
        return self.fields.integer("vocab_size")

    @property
    def max_model_len(self) -> int:
        return _max_model_len(self.fields)

    @property
    def prefixes(self) -> Mapping[str, str]:
        """How names in the checkpoint begin, and what the text model has instead."""
        return TEXT_PREFIXES if self.whole else {}

    @property
    def other_weights(self) -> tuple[str, ...]:
        """How the names of weights begin that are not the text model's."""
        return MULTIMODAL[self.whole].others if self.whole else ()

    @property
    def fields(self) -> Fields:
        return Fields(self.hf, "config.json: text_config" if self.whole else "config.json")


def read_config(folder: Path, architecture: str | None = None) -> ModelConfig:
    """Read `config.json` and `generation_config.json`, if there is one. Raises `ModelLoadError` naming the fault.

    `architecture` is used in place of the class that config.json names.
    """
    hf = read_json(folder, "config.json")
    if hf is None:
        raise ModelLoadError("the model folder holds no config.json")
    return make_config(hf, read_json(folder, "generation_config.json"), architecture)


def make_config(
    hf: dict[str, Any], generation: dict[str, Any] | None = None, architecture: str | None = None
) -> ModelConfig:
    """The configuration that these two JSON objects describe, for this architecture if it is given."""
    fields = outer = Fields(hf)
    recommended = Fields(generation or {}, "generation_config.json")
    named = (fields.strings("architectures") or (None,))[0]
    whole = named if named in MULTIMODAL else None
    if whole is not None:
        named, fields = _text_part(fields, MULTIMODAL[whole])
    if architecture is None and named is None:
        raise fields.error("architectures", "is missing: it must name the model's class")
    return ModelConfig(
        hf=hf if whole is None else dict(fields.values),
        architecture=architecture or str(named),
        dtype=_dtype(fields),
        eos_token_ids=next(filter(None, (part.token_ids("eos_token_id") for part in (recommended, outer, fields))), ()),
        generation=_generation_defaults(recommended),
        whole=whole,
    )


def _text_part(fields: Fields, whole: Multimodal) -> tuple[str, Fields]:
    """The class of the text model, and its config as it would be on its own."""
    text = fields.object("text_config")
    if text is None:
        raise fields.error("text_config", "is missing")
    model_type = text.string("model_type", next(iter(whole.texts)))
    if model_type not in whole.texts:
        raise text.error("model_type", f"{model_type!r} is not supported; known are {', '.join(whole.texts)}")
    stated = {name: value for name, value in text.values.items() if value is not None}
    shared = {name: fields.values[name] for name in SHARED_FIELDS if fields.values.get(name) is not None}
    tied = [part.values["tie_word_embeddings"] for part in (text, fields) if "tie_word_embeddings" in part]
    values = {**text.values, **whole.defaults, **shared, **stated}
    if tied:
        values["tie_word_embeddings"] = next((value for value in tied if value), tied[0])
    return whole.texts[model_type], Fields(values, text.where)


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
    settings = rope_settings(fields)
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


def rope_settings(fields: Fields) -> Fields | None:
    """`rope_parameters` or `rope_scaling`; where a config has both, what was scaled by hand, as in transformers."""
    modern, older = fields.object("rope_parameters"), fields.object("rope_scaling")
    if older is None or not older.values:
        return modern
    if modern is None or _is_per_layer_type(modern):
        return modern or older
    base = {name: modern.values[name] for name in ("rope_theta", "partial_rotary_factor") if name in modern}
    return Fields(base | dict(older.values), older.where)


def rope_factor(rope: Fields) -> float | None:
    """By how much a scaling stretches the context, where it says."""
    return rope.optional_number("factor", minimum=0.01, maximum=1e6)


def _is_per_layer_type(settings: Fields) -> bool:
    return any(isinstance(value, dict) for value in settings.values.values())


def _max_model_len(fields: Fields) -> int:
    """`max_position_embeddings`, extended where the rope scaling does not count as part of it already."""
    length = fields.integer("max_position_embeddings")
    settings = rope_settings(fields)
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
    return None if name == "auto" else name.removeprefix("torch.") or None  # "auto": as the weights are stored


def _generation_defaults(fields: Fields) -> GenerationDefaults:
    """Within the limits of `SamplingParams`, so that a request without parameters is as safe as one with them."""
    temperature = fields.optional_number("temperature", 0.0, 100.0)
    return GenerationDefaults(
        temperature=temperature if fields.boolean("do_sample", True) else 0.0,
        top_k=fields.optional_integer("top_k", minimum=-1),
        top_p=fields.optional_number("top_p", 0.0, 1.0),
        min_p=fields.optional_number("min_p", 0.0, 1.0),
        repetition_penalty=fields.optional_number("repetition_penalty", 1e-3, 1e3),
        max_new_tokens=fields.optional_integer("max_new_tokens"),
    )


def _float(value: float) -> float:
    """The number, an integer too, as a float; infinity for integers beyond them."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
