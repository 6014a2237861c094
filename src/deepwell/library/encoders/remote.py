"""Vectors from a server that speaks OpenAI's ``/v1/embeddings``: vLLM, llama.cpp, Ollama, TEI, or OpenAI itself.

Texts leave the machine only when a person names such an encoder; nothing falls back to one. The name says all:

    openai:MODEL@BASE_URL          openai:nomic-embed-text@http://localhost:11434/v1

The key, where one is needed, is read from ``DEEPWELL_EMBEDDINGS_KEY``, else ``OPENAI_API_KEY``; it is in no name, file
or message. A server says nothing of its weights, so the fingerprint covers address, model and dimension: a server that
changes its weights under the same name changes vectors without notice.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepwell.errors import DeepwellError, UsageError
from deepwell.library.encoders.vectors import unit

if TYPE_CHECKING:
    import httpx

BATCH = 64
ATTEMPTS = 4
TIMEOUT_S = 60.0
_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed."""


class RemoteEncoderError(DeepwellError):
    """A server of vectors did not answer, refused, or replied with something else."""

    code = "remote-encoder"


class RemoteEncoder:
    """A ``TextEncoder`` behind HTTP. Thread-safe. Making one asks the server for its dimension, unless that is given.

    Args:
        model: As the server calls it.
        base_url: Up to and including ``/v1``.
        dim: Ask for shortened vectors (servers of Matryoshka models); None takes what comes.
        key: The bearer token; None reads the environment.
        wait_s: Seconds before the second attempt; doubles each time. A ``Retry-After`` of the server goes first.
    """

    def __init__(
        self, model: str, base_url: str, *, dim: int | None = None, key: str | None = None, wait_s: float = 0.5
    ) -> None:
        self.name = f"openai:{model}@{base_url}"
        self._model = model
        self._url = base_url.rstrip("/") + "/embeddings"
        self._asked = dim
        self._key = key if key is not None else _key()
        self._wait = wait_s
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None
        self.dim = dim or self._request(["dimension"]).shape[1]
        told = f"{self._model}\n{self._url}\n{self.dim}"
        self.fingerprint = hashlib.blake2b(told.encode(), digest_size=8).hexdigest()

    @classmethod
    def named(cls, name: str, *, dim: int | None = None) -> RemoteEncoder:
        """From ``openai:MODEL@BASE_URL``. Raises ``UsageError`` for anything else."""
        model, at, url = name.removeprefix("openai:").rpartition("@")
        if not at or not model or not url.startswith(("http://", "https://")):
            raise UsageError(
                f"{name!r} is not openai:MODEL@BASE_URL",
                hint="For example openai:nomic-embed-text@http://localhost:11434/v1",
            )
        return cls(model, url, dim=dim)

    def encode(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:  # noqa: ARG002
        """Unit vectors [N, dim]. ``query`` changes nothing: prompts are the server's matter.

        Raises ``RemoteEncoderError`` when the server cannot be reached or refuses after several attempts.
        """
        vectors = np.empty((len(texts), self.dim), np.float32)
        for first in range(0, len(texts), BATCH):
            # Servers refuse empty strings; a space has a vector everywhere.
            batch = [text if text.strip() else " " for text in texts[first : first + BATCH]]
            got = self._request(batch)
            if got.shape != (len(batch), self.dim):
                raise self._failed(f"sent vectors of shape {got.shape} for {len(batch)} texts of {self.dim} numbers")
            vectors[first : first + BATCH] = got
        return unit(vectors)

    def _request(self, texts: Sequence[str]) -> NDArray[np.float32]:
        import httpx

        with self._lock:
            if self._client is None:
                headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
                self._client = httpx.Client(timeout=httpx.Timeout(TIMEOUT_S, connect=10.0), headers=headers)
        body: dict[str, Any] = {"model": self._model, "input": list(texts), "encoding_format": "float"}
        if self._asked is not None:
            body["dimensions"] = self._asked
        reason = ""
        for attempt in range(ATTEMPTS):
            wait = self._wait * 2**attempt
            try:
                reply = self._client.post(self._url, json=body)
            except httpx.HTTPError as error:
                reason = f"did not answer ({type(error).__name__}: {error})"
            else:
                if reply.is_success:
                    return self._vectors(reply, len(texts))
                reason = f"replied {reply.status_code}: {reply.text.strip()[:200]}"
                if reply.status_code not in _AGAIN:
                    break
                wait = _retry_after(reply.headers.get("retry-after"), wait)
            if attempt + 1 < ATTEMPTS:
                time.sleep(wait)
        raise self._failed(reason)

    def _vectors(self, reply: httpx.Response, count: int) -> NDArray[np.float32]:
        try:
            rows = sorted(reply.json()["data"], key=lambda row: row["index"])
            if [row["index"] for row in rows] != list(range(count)):
                raise ValueError(f"{len(rows)} vectors for {count} texts")
            vectors = np.array([row["embedding"] for row in rows], np.float32)
            if vectors.ndim != 2 or not np.isfinite(vectors).all():
                raise ValueError("vectors of unequal length or not finite")
        except (ValueError, KeyError, TypeError) as error:
            raise self._failed(f"replied with something that is not embeddings ({error!r})") from error
        return vectors

    def _failed(self, reason: str) -> RemoteEncoderError:
        return RemoteEncoderError(
            f"the server of {self.name} {reason}",
            hint="Is it running, is the model's name right, and is DEEPWELL_EMBEDDINGS_KEY set if it wants a key?",
        )


def _key() -> str:
    return os.environ.get("DEEPWELL_EMBEDDINGS_KEY") or os.environ.get("OPENAI_API_KEY") or ""


def _retry_after(stated: str | None, default: float) -> float:
    """Seconds a server asks to wait, at most a minute; its date form is ignored."""
    try:
        return min(float(stated or ""), 60.0)
    except ValueError:
        return default
