"""The application as a whole, and the library as a client of it."""

import asyncio
import json
from pathlib import Path

import httpx
import numpy as np
import pytest

from deepwell.errors import ChatError
from deepwell.library.answers.openai_compatible import OpenAICompatible
from deepwell.library.encoders.opening import open_text
from deepwell.library.encoders.remote import RemoteEncoder
from deepwell.library.protocols import Message
from deepwell.lm import SamplingParams
from deepwell.server.app import create_app
from deepwell.server.chat_schemas import ChatRequest
from deepwell.server.completion_schemas import CompletionRequest
from deepwell.server.driver import Driver, Job, StoppedError
from deepwell.server.embeddings import EmbeddingRequest
from deepwell.testing import HashEncoder

from .tiny import Live

ASK = [Message("user", "Hello, well!")]


def test_the_library_can_ask_a_server(server: Live) -> None:
    own = server.model.chat([{"role": "user", "content": "Hello, well!"}], SamplingParams(temperature=0, max_tokens=20))
    deltas = list(OpenAICompatible(server.url, model="tiny").chat(ASK, max_tokens=20))
    assert "".join(delta.text for delta in deltas) == own.text
    thinking = OpenAICompatible(server.url, model="deepseek-reasoner")
    assert "".join(delta.reasoning for delta in thinking.chat(ASK, max_tokens=20))
    with pytest.raises(ChatError, match="tiny, deepseek-chat"):
        list(OpenAICompatible(server.url, model="gpt-7").chat(ASK))


def test_the_library_needs_no_name_for_the_one_model_of_a_server(server: Live) -> None:
    model = OpenAICompatible(server.url)
    assert list(model.chat(ASK, max_tokens=2))
    assert model.name == "tiny"


def test_the_library_can_encode_by_a_server(server: Live) -> None:
    encoder = open_text(f"openai:hash-encoder@{server.url}")
    texts = ["a cat sleeps", "", "diesel engine"]
    expected = HashEncoder().encode([text or " " for text in texts])
    np.testing.assert_allclose(encoder.encode(texts), expected, atol=1e-6)
    assert isinstance(encoder, RemoteEncoder) and encoder._client is not None
    encoder._client.close()


def test_the_description_names_every_endpoint_and_loads_nothing_from_elsewhere(server: Live) -> None:
    description = httpx.get(server.url.removesuffix("/v1") + "/openapi.json").json()
    assert set(description["paths"]) == {
        "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/v1/models/{model}",
    }  # fmt: skip
    for path, methods in description["paths"].items():
        for method in methods.values():
            assert {"200", "4XX", "5XX"} <= set(method["responses"]), path
            assert "422" not in method["responses"]
    assert "http" not in json.dumps(description)


def test_the_page_about_the_api_names_every_field() -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    fields = {*ChatRequest.model_fields, *CompletionRequest.model_fields, *EmbeddingRequest.model_fields}
    assert [field for field in sorted(fields) if f"`{field}`" not in page] == []


def test_the_end_of_the_application_is_the_end_of_its_driver(server: Live) -> None:
    driver = Driver(server.model)
    app = create_app(driver, name="tiny")

    async def live_and_end() -> None:
        async with app.router.lifespan_context(app):
            with await driver.begin([Job("a", SamplingParams(max_tokens=2))]) as generation:
                while not generation.over:
                    await generation.news()
        with pytest.raises(StoppedError):
            await driver.begin([Job("a", SamplingParams())])

    asyncio.run(live_and_end())
