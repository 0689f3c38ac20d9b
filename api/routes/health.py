"""Liveness, readiness, metrics."""

from sirocco.api.http import Exchange, encode
from sirocco.api.schemas.models import Readiness
from sirocco.api.service import Service


async def health(service: Service, exchange: Exchange) -> None:
    """Whether the process answers at all."""
    await exchange.reply(200, b"OK", b"text/plain; charset=utf-8")


async def ready(service: Service, exchange: Exchange) -> None:
    """Whether requests are accepted now; if not, 503 says why."""
    unready = service.unready_reason()
    if unready is None:
        await exchange.reply(200, encode(Readiness("ready")))
        return
    state, reason = unready
    await exchange.reply(503, encode(Readiness(state, reason)), headers=[(b"retry-after", b"1")])


async def metrics(service: Service, exchange: Exchange) -> None:
    """Prometheus text."""
    await exchange.reply(200, service.metrics.exposition(), b"text/plain; version=0.0.4; charset=utf-8")
