"""Language models by a short name, as ``--model`` takes it.

    (nothing), extractive       sentences copied from the library, no language model
    openai:MODEL@URL            a model behind an OpenAI-compatible URL
    http://127.0.0.1:8000/v1    the same, when the server offers one model only

There is no default address: without a URL nothing is contacted.
"""

from __future__ import annotations

import os

from deepwell.errors import UsageError
from deepwell.library.answers.extractive import Extractive
from deepwell.library.answers.openai_compatible import OpenAICompatible
from deepwell.library.protocols import ChatModel, TextEncoder

_HINT = "Use extractive, openai:MODEL@URL, or a server's URL such as http://127.0.0.1:8000/v1."


def models_by_name(spec: str | None = None, *, encoder: TextEncoder | None = None) -> ChatModel:
    """The model that ``spec`` names; ``encoder`` helps the extractive one.

    ``DEEPWELL_CHAT`` in the environment is the default for ``spec``. Raises ``UsageError`` for a name nobody knows.
    """
    spec = (spec if spec is not None else os.environ.get("DEEPWELL_CHAT", "")).strip()
    if spec in ("", Extractive.name):
        return Extractive(encoder)
    if spec.startswith(("http://", "https://")):
        return OpenAICompatible(spec)
    if spec.startswith("openai:"):
        model, at, url = spec.removeprefix("openai:").partition("@http")
        if not at or not model.strip():
            raise UsageError(f"{spec!r} does not say which model at which URL", hint="Use openai:MODEL@URL.")
        return OpenAICompatible(f"http{url}", model.strip())
    raise UsageError(f"unknown language model {spec!r}", hint=_HINT)
