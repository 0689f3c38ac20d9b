"""`/v1/models`."""

from typing import Literal

from sirocco.api.http import Exchange, encode
from sirocco.api.schemas.models import ModelCard, ModelList
from sirocco.api.service import MAX_NAME, Service
from sirocco.runtime.errors import ModelNotFoundError


async def list_models(service: Service, exchange: Exchange) -> None:
    """The models that can be asked for."""
    await exchange.reply(200, encode(ModelList([_card(service)])))


async def get_model(service: Service, exchange: Exchange, model: str) -> None:
    """One model by its id or "default"."""
    if model not in ("default", service.engine.model_id):
        raise ModelNotFoundError(model[:MAX_NAME])
    await exchange.reply(200, encode(_card(service)))


def _card(service: Service) -> ModelCard:
    engine = service.engine
    ready = engine.client.state == "ready"
    return ModelCard(
        id=engine.model_id,
        created=service.created,
        status=_STATUS.get(engine.client.state, "unloaded"),
        max_model_len=engine.client.info.max_model_len if ready else None,
        tools_available=ready and service.tool_parser() is not None,
    )


_STATUS: dict[str, Literal["loaded", "loading", "unloaded"]] = {
    "ready": "loaded",
    "starting": "loading",
    "restarting": "loading",
}
