"""The language model, from tensor to token. It knows nothing of documents.

    >>> import deepwell.lm
    >>> model, tokenizer = deepwell.lm.load("smollm2-135m-instruct", dtype="f32")      # doctest: +SKIP
    >>> logits = model(torch.tensor([tokenizer.encode("Deep wells are")]))              # doctest: +SKIP
    >>> deepwell.lm.save(model, "my-model", format="deepseek", tokenizer=tokenizer)     # doctest: +SKIP

Names are fetched on first use, so that importing this costs no import of torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepwell.lm.engine.model import Model
    from deepwell.lm.engine.params import SamplingParams
    from deepwell.lm.engine.request import Completion
    from deepwell.lm.engine.tool_calls import ToolCall, ToolDelta, ToolParser
    from deepwell.lm.model.config import ModelConfig
    from deepwell.lm.model.transformer import Transformer
    from deepwell.lm.weights.opening import load
    from deepwell.lm.weights.saving import save
    from deepwell.lm.weights.tokenizer import Tokenizer

__all__ = [
    "Completion", "Model", "ModelConfig", "SamplingParams", "Tokenizer", "ToolCall", "ToolDelta", "ToolParser",
    "Transformer", "load", "save",
]  # fmt: skip

_HOMES = {
    "Completion": "deepwell.lm.engine.request",
    "Model": "deepwell.lm.engine.model",
    "ModelConfig": "deepwell.lm.model.config",
    "SamplingParams": "deepwell.lm.engine.params",
    "Tokenizer": "deepwell.lm.weights.tokenizer",
    "ToolCall": "deepwell.lm.engine.tool_calls",
    "ToolDelta": "deepwell.lm.engine.tool_calls",
    "ToolParser": "deepwell.lm.engine.tool_calls",
    "Transformer": "deepwell.lm.model.transformer",
    "load": "deepwell.lm.weights.opening",
    "save": "deepwell.lm.weights.saving",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'deepwell.lm' has no attribute {name!r}")
