"""Wire structs of `/v1/models` and `/ready`."""

from typing import Literal

import msgspec


class ModelCard(msgspec.Struct, frozen=True):
    id: str
    created: int
    status: Literal["loaded", "loading", "unloaded"]
    max_model_len: int | None
    tools_available: bool
    owned_by: str = "local"
    object: Literal["model"] = "model"


class ModelList(msgspec.Struct, frozen=True):
    data: list[ModelCard]
    object: Literal["list"] = "list"


class Readiness(msgspec.Struct, frozen=True):
    state: str
    reason: str | None = None
