"""The shape of a BERT network, from ``config.json``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deepwell.errors import ModelSourceError
from deepwell.library.encoders.recipe import read_json


@dataclass(frozen=True, slots=True)
class BertConfig:
    """Names as in the checkpoint's ``config.json``."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    layer_norm_eps: float

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


def read_config(folder: Path) -> BertConfig:
    """Raises ``ModelSourceError`` for a variant that is not plain BERT: its vectors would be silently wrong."""
    data = read_json(folder / "config.json")
    for key, only in (("hidden_act", "gelu"), ("position_embedding_type", "absolute"), ("is_decoder", False)):
        if data.get(key, only) != only:
            raise ModelSourceError(f"{folder / 'config.json'}: {key} is {data[key]!r}, only {only!r} is known here")
    try:
        config = BertConfig(
            vocab_size=int(data["vocab_size"]),
            hidden_size=int(data["hidden_size"]),
            num_hidden_layers=int(data["num_hidden_layers"]),
            num_attention_heads=int(data["num_attention_heads"]),
            intermediate_size=int(data["intermediate_size"]),
            max_position_embeddings=int(data["max_position_embeddings"]),
            layer_norm_eps=float(data.get("layer_norm_eps", 1e-12)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelSourceError(f"{folder / 'config.json'} does not describe a BERT: {error!r}") from error
    if config.hidden_size % config.num_attention_heads:
        raise ModelSourceError(f"{folder / 'config.json'}: {config.hidden_size} does not divide into heads")
    return config
