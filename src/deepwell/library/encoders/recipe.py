"""How a checkpoint turns token states into a vector: pooling, prompts, longest input, normalisation.

Sentence encoders publish this beside their weights in the files of sentence-transformers. We read those files, so that
a folder from a model hub gives the vectors its authors measured:

    modules.json                      the steps in order, each with its folder
    sentence_bert_config.json         max_seq_length
    N_Pooling/config.json             mean, first token, last token or maximum
    N_Dense/config.json               a linear layer after pooling, with its activation (EmbeddingGemma has two)
    N_Normalize                       unit length
    config_sentence_transformers.json prompts for queries and for passages

A few models tell their prompts only in prose (the model card); the catalogue of models knows those. What the files say
wins over the catalogue.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deepwell.errors import ModelSourceError

Pooling = Literal["mean", "cls", "last", "max"]

_QUERY_NAMES = ("query", "Retrieval-query", "web_search_query", "search_query", "retrieval_query")
_PASSAGE_NAMES = ("document", "passage", "Retrieval-document", "search_document", "retrieval_document", "corpus")


@dataclass(frozen=True, slots=True)
class DenseStep:
    """A linear layer after pooling: ``linear.weight`` and ``linear.bias`` of ``folder/model.safetensors``."""

    folder: str
    activation: Literal["identity", "tanh", "relu", "gelu"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What happens around the network.

    Attributes:
        pooling: Token states [T, hidden] to one vector [hidden].
        pool_prompt: Tokens of the prompt are pooled too (only some instruction models leave them out).
        dense: Linear layers after pooling, in order.
        normalize: Whether the checkpoint asks for unit length. Deepwell always returns unit vectors, since its stores
            compare by cosine; this only keeps what was published for the fingerprint.
        max_tokens: Longest input in tokens, special ones included; longer texts lose their end.
        query_prompt, passage_prompt: Put before a text as it is.
    """

    pooling: Pooling = "mean"
    pool_prompt: bool = True
    dense: tuple[DenseStep, ...] = ()
    normalize: bool = True
    max_tokens: int = 512
    query_prompt: str = ""
    passage_prompt: str = ""

    def prompt(self, *, query: bool) -> str:
        """The words that go before a query or a passage."""
        return self.query_prompt if query else self.passage_prompt


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model's folder; empty when there is no such file. Raises ``ModelSourceError``."""
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelSourceError(f"{path} is not readable JSON: {error}", hint="Run: deepwell models verify") from error
    return data if isinstance(data, dict) else {"": data}


def read_recipe(folder: Path, settings: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of the checkpoint in ``folder``; the catalogue's ``settings`` say what no file says.

    Raises ``ModelSourceError`` for a step, a pooling or an activation that is unknown: its vectors would be wrong.
    """
    settings = settings or {}
    modules = read_json(folder / "modules.json").get("", [])
    pooling = _known_pooling(str(settings.get("pooling", "mean")))
    pool_prompt = True
    dense: list[DenseStep] = []
    # A folder without modules.json is a bare network: mean pooling and unit length are the usual reading of it.
    normalize = not modules
    for module in modules:
        step = str(module.get("type", "")).rsplit(".", 1)[-1]
        where = str(module.get("path", ""))
        if step == "Pooling":
            pooling, pool_prompt = _pooling(folder / where / "config.json")
        elif step == "Dense":
            dense.append(_dense(folder, where))
        elif step == "Normalize":
            normalize = True
        elif step not in ("Transformer", "Dropout"):
            raise ModelSourceError(
                f"{folder / 'modules.json'} has a step {step!r} that this version does not know",
                hint="Use a model whose steps are Transformer, Pooling, Dense and Normalize.",
            )
    query_prompt, passage_prompt = _prompts(folder, settings)
    return Recipe(
        pooling=pooling,
        pool_prompt=pool_prompt,
        dense=tuple(dense),
        normalize=normalize,
        max_tokens=_max_tokens(folder),
        query_prompt=query_prompt,
        passage_prompt=passage_prompt,
    )


def _pooling(path: Path) -> tuple[Pooling, bool]:
    config = read_json(path)
    flags: tuple[tuple[str, Pooling], ...] = (
        ("pooling_mode_cls_token", "cls"),
        ("pooling_mode_lasttoken", "last"),
        ("pooling_mode_max_tokens", "max"),
        ("pooling_mode_mean_tokens", "mean"),
    )
    chosen: list[Pooling] = [mode for flag, mode in flags if config.get(flag)]
    named = config.get("pooling_mode")
    if isinstance(named, str):  # newer files name the mode instead of setting a flag
        chosen = [_known_pooling(named)]
    if len(chosen) != 1:
        raise ModelSourceError(
            f"{path} asks for {len(chosen)} known ways of pooling, not one",
            hint="Deepwell knows mean, first token, last token and maximum.",
        )
    return chosen[0], bool(config.get("include_prompt", True))


def _dense(folder: Path, where: str) -> DenseStep:
    name = str(read_json(folder / where / "config.json").get("activation_function", "Identity")).rsplit(".", 1)[-1]
    known: dict[str, Literal["identity", "tanh", "relu", "gelu"]] = {
        "Identity": "identity",
        "Tanh": "tanh",
        "ReLU": "relu",
        "GELU": "gelu",
    }
    if name not in known:
        raise ModelSourceError(f"{folder / where / 'config.json'} asks for an unknown activation {name!r}")
    return DenseStep(where, known[name])


def _max_tokens(folder: Path) -> int:
    """The model's own limit: sentence-transformers' file, else the tokenizer's, never beyond the position table."""
    limits = [
        read_json(folder / "sentence_bert_config.json").get("max_seq_length"),
        read_json(folder / "tokenizer_config.json").get("model_max_length"),
    ]
    config = read_json(folder / "config.json")
    table = config.get("max_position_embeddings") or config.get("text_config", {}).get("max_position_embeddings")
    stated = next((int(limit) for limit in limits if limit), 0)
    # Tokenizers say 1e30 for "no limit"; the position table is then the only one.
    return min(limit for limit in (stated or 512, int(table or 512)) if limit > 0)


def _prompts(folder: Path, settings: Mapping[str, Any]) -> tuple[str, str]:
    stored = read_json(folder / "config_sentence_transformers.json").get("prompts") or {}
    query = next((stored[key] for key in _QUERY_NAMES if stored.get(key)), settings.get("query_prefix", ""))
    passage = next((stored[key] for key in _PASSAGE_NAMES if stored.get(key)), settings.get("passage_prefix", ""))
    return str(query), str(passage)


def _known_pooling(name: str) -> Pooling:
    names: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "last": "last", "lasttoken": "last", "max": "max"}
    if name not in names:
        raise ModelSourceError(f"unknown pooling {name!r}", hint="Deepwell knows mean, cls, lasttoken and max.")
    return names[name]
