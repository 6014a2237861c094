"""The application: every endpoint over one language model, and an encoder if there is one.

>>> driver = Driver(deepwell.Model.load("smollm2-135m-instruct"))
>>> app = create_app(driver, name="smollm2-135m-instruct")

It has no doors: who may ask, how much and how many at once is decided by what stands before it (``lifecycle.Door``).
``/openapi.json`` describes it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI

from deepwell import __version__
from deepwell.server import errors
from deepwell.server.chat import chat_routes
from deepwell.server.completions import completion_routes
from deepwell.server.embeddings import embedding_routes
from deepwell.server.models_list import model_routes
from deepwell.server.served import Served

if TYPE_CHECKING:
    from deepwell.library.protocols import TextEncoder
    from deepwell.server.driver import Driver


def create_app(driver: Driver, *, name: str, encoder: TextEncoder | None = None) -> FastAPI:
    """Make the application; it closes ``driver`` when it ends.

    Args:
        driver: Of the language model.
        name: What requests call the model.
        encoder: What makes embeddings; None: nothing does.
    """
    served = Served(driver, name, encoder)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        driver.close()

    app = FastAPI(
        title="Deepwell",
        summary="A language model of this machine behind the API of OpenAI and DeepSeek.",
        version=__version__,
        lifespan=lifespan,
        # Their pages load scripts from elsewhere, which a server of one's own has no business to do.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    errors.install(app)
    for router in (chat_routes(served), completion_routes(served), embedding_routes(served), model_routes(served)):
        app.include_router(router, prefix="/v1")
    return app
