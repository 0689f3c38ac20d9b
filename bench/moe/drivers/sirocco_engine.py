"""Sirocco as its users run it, on random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sirocco.bench.peers.drivers import sirocco_engine
from sirocco.runtime.build import assemble
from sirocco.runtime.models.random import random_model

if TYPE_CHECKING:
    from sirocco.bench.moe.drivers.spec import MoeSpec
    from sirocco.runtime.core import EngineCore
    from sirocco.runtime.wire import EngineInfo, EngineOptions

version = sirocco_engine.version


class Model(sirocco_engine.Model):
    """The engine of the peers' comparison over a model that is made in memory."""

    def __init__(self, spec: MoeSpec) -> None:
        shape = spec["shape"]

        def build(options: EngineOptions) -> tuple[EngineCore, EngineInfo]:
            return assemble(random_model(shape, options.dtype, options.device), options, shape)

        super().__init__(spec, build)
