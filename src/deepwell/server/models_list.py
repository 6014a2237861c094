"""``/v1/models``: the names that a request may give."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter

from deepwell.server.schemas import ERRORS, Told
from deepwell.server.served import ALIASES, Served


class ModelEntry(Told):
    """A model.

    ``root`` is the model that an alias stands for; ``max_model_len`` how many tokens a prompt and its answer may have.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "deepwell"
    root: str
    max_model_len: int | None = None


class ModelList(Told):
    """All models."""

    object: Literal["list"] = "list"
    data: list[ModelEntry]


def model_routes(served: Served) -> APIRouter:
    """The endpoints."""
    router = APIRouter()

    def entry(name: str) -> ModelEntry:
        if name != served.name and name not in ALIASES:
            return ModelEntry(id=name, created=served.created, root=name)
        model = served.driver.model
        room = min(model.network.config.max_position_embeddings, model.engine.capacity)
        return ModelEntry(id=name, created=served.created, root=served.name, max_model_len=room)

    @router.get("/models", operation_id="listModels", summary="List the models", responses={**ERRORS})
    async def list_models() -> ModelList:
        return ModelList(data=[entry(name) for name in served.names])

    @router.get("/models/{model:path}", operation_id="getModel", summary="Describe a model", responses={**ERRORS})
    async def get_model(model: str) -> ModelEntry:
        if model not in served.names:
            raise served.unknown(model)
        return entry(model)

    return router
