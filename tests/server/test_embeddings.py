"""Embeddings through the ``openai`` client."""

from collections.abc import Sequence

import numpy as np
import openai
import pytest

from deepwell.library.protocols import CountsTokens
from deepwell.server.app import create_app
from deepwell.server.driver import Driver
from deepwell.testing import HashEncoder

from .test_errors import _ask, _error
from .tiny import Live

TEXTS = ["a cat sleeps", "the cat sleeps", "diesel engine"]


def test_vectors_are_the_encoders_in_the_order_of_the_texts(server: Live) -> None:
    told = server.client.embeddings.create(model="hash-encoder", input=TEXTS, encoding_format="float")
    assert [one.index for one in told.data] == [0, 1, 2]
    assert told.model == "hash-encoder"
    vectors = np.array([one.embedding for one in told.data], np.float32)
    np.testing.assert_allclose(vectors, HashEncoder().encode(TEXTS), rtol=1e-6)
    # The client asks for base 64 by itself, and unpacks it.
    packed = server.client.embeddings.create(model="hash-encoder", input=TEXTS[0]).data[0].embedding
    np.testing.assert_array_equal(np.array(packed, np.float32), vectors[0])
    assert server.client.embeddings.create(model="hash-encoder", input="a", dimensions=64).data


def test_what_cannot_be_encoded_is_an_error(server: Live) -> None:
    for more in ({"dimensions": 32}, {"input": []}, {"input": ""}, {"input": [1, 2]}, {"encoding_format": "hex"}):
        with pytest.raises(openai.BadRequestError):
            server.client.embeddings.create(**{"model": "hash-encoder", "input": "a", **more})  # type: ignore[arg-type]
    with pytest.raises(openai.NotFoundError, match="hash-encoder"):
        server.client.embeddings.create(model="tiny", input="a")


def test_a_server_without_an_encoder_says_how_to_get_one(server: Live) -> None:
    app = create_app(Driver(server.model), name="tiny")
    response = _ask(app, "POST", "/v1/embeddings", json={"model": "tiny", "input": "a"})
    assert response.status_code == 404
    assert "--text-encoder" in _error(response)["message"]


def test_a_text_that_is_too_long_is_refused_with_the_counts_and_never_cut(server: Live) -> None:
    class Counting(HashEncoder):
        max_tokens = 4

        def count_tokens(self, texts: Sequence[str], *, query: bool = False) -> list[int]:
            return [len(text.split()) + query for text in texts]

    assert isinstance(Counting(), CountsTokens)
    app = create_app(Driver(server.model), name="tiny", encoder=Counting())
    asked = {"model": "hash-encoder", "input": ["a cat sleeps", "a cat"]}
    assert _ask(app, "POST", "/v1/embeddings", json=asked).json()["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    asked["input"] = ["a cat", "four words of text"]
    assert _ask(app, "POST", "/v1/embeddings", json=asked).status_code == 200
    response = _ask(app, "POST", "/v1/embeddings", json=asked | {"input_type": "query"})
    assert response.status_code == 400
    assert _error(response)["code"] == "context_length_exceeded"
    assert "text 1 of input has 5 tokens; hash-encoder reads 4" in _error(response)["message"]
