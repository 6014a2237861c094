"""``/v1/embeddings``: texts to vectors, by the encoder of the library."""

from __future__ import annotations

import asyncio
import base64
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import APIRouter
from pydantic import Field

from deepwell.errors import PromptTooLongError, UsageError
from deepwell.library.protocols import CountsTokens
from deepwell.server.bodies import StrictRoute
from deepwell.server.errors import ApiError
from deepwell.server.schemas import ERRORS, Asked, Text, Told
from deepwell.server.served import Served

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from deepwell.library.protocols import TextEncoder

MOST_TEXTS = 2048


class EmbeddingRequest(Asked):
    """Texts to be encoded."""

    model: str = Field(description="The name of the encoder, as /v1/models lists it.")
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=MOST_TEXTS)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, description="Must be what the encoder has.")
    input_type: Literal["document", "query"] = Field(
        "document", description="Not in OpenAI's API. Some encoders tell questions from what answers them."
    )


class Embedding(Told):
    """A vector of unit length: numbers, or float32 in little-endian order in base 64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Told):
    """Tokens of the texts; 0 where the encoder does not count them."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(Told):
    """The vectors in the order of the texts."""

    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


def embedding_routes(served: Served) -> APIRouter:
    """The endpoint. One text after the other is encoded, in a thread beside the engine's."""
    router = APIRouter(route_class=StrictRoute)
    thread = ThreadPoolExecutor(1, thread_name_prefix="encode")

    @router.post(
        "/embeddings", operation_id="createEmbeddings", summary="Encode texts as vectors", responses={**ERRORS}
    )
    async def embed(body: EmbeddingRequest) -> Embeddings:
        encoder = served.encoder
        if encoder is None:
            message = "this server makes no embeddings; start it with `deepwell serve MODEL --text-encoder NAME`"
            raise ApiError(404, message, "model_not_found", param="model")
        if body.model != encoder.name:
            raise served.unknown(body.model)
        if body.dimensions not in (None, encoder.dim):
            raise UsageError(f"{body.dimensions} dimensions are asked for; {encoder.name} has {encoder.dim}")
        texts = [body.input] if isinstance(body.input, str) else body.input
        query = body.input_type == "query"
        counts, vectors = await asyncio.get_running_loop().run_in_executor(thread, _encode, encoder, texts, query)
        data = [
            Embedding(index=index, embedding=_written(vector, body.encoding_format))
            for index, vector in enumerate(vectors)
        ]
        usage = EmbeddingUsage(prompt_tokens=sum(counts), total_tokens=sum(counts))
        return Embeddings(model=encoder.name, data=data, usage=usage)

    return router


def _encode(encoder: TextEncoder, texts: list[str], query: bool) -> tuple[list[int], NDArray[np.float32]]:
    """The length of each text, as far as the encoder counts, and the vectors."""
    counts: list[int] = []
    if isinstance(encoder, CountsTokens):
        counts = encoder.count_tokens(texts, query=query)
        longest = max(counts)
        if longest > encoder.max_tokens:
            raise PromptTooLongError(
                f"text {counts.index(longest)} of input has {longest} tokens; {encoder.name} reads {encoder.max_tokens}"
            )
    return counts, encoder.encode(texts, query=query)


def _written(vector: NDArray[np.float32], form: str) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers
