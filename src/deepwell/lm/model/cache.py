"""The latent cache: one row a token and layer, and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

from deepwell.errors import UsageError
from deepwell.lm.model.config import ModelConfig


class LatentCache:
    """Rows of [latent ; rotary key] for every layer, in one tensor [layers, batch, capacity, latent_width].

    All sequences of the batch have the same length. MTP modules, if ``mtp`` is set, have rows of their own behind the
    network's layers. (The engine keeps a paged cache of the same rows.)
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        batch: int,
        capacity: int,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        mtp: bool = False,
    ) -> None:
        layers = config.num_hidden_layers + (config.num_nextn_predict_layers if mtp else 0)
        self.rows = torch.zeros(layers, batch, capacity, config.latent_width, dtype=dtype, device=device)
        self.length = 0

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        return self.rows.shape[2]

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token of one sequence takes, over all layers."""
        return self.rows.shape[0] * self.rows.shape[3] * self.rows.element_size()

    def append(self, layer: int, rows: Tensor) -> Tensor:
        """Store the rows [B, T, W] of new tokens for one layer; all rows up to and with them, [B, length + T, W].

        The length grows once a step, when the network calls ``advance``.

        Raises:
            UsageError: The tokens do not fit any more, or the batch is another.
        """
        end = self.length + rows.shape[1]
        if rows.shape[0] != self.rows.shape[1]:
            raise UsageError(f"the cache holds {self.rows.shape[1]} sequences, and {rows.shape[0]} came")
        if end > self.capacity:
            raise UsageError(
                f"the cache holds {self.capacity} tokens; {self.length} are in it and {rows.shape[1]} more came",
                hint="Make a LatentCache with a larger capacity.",
            )
        self.rows[layer, :, self.length : end] = rows
        return self.rows[layer, :, :end]

    def advance(self, tokens: int) -> None:
        """Count the tokens of a finished step."""
        self.length += tokens

    def truncate(self, length: int) -> None:
        """Forget all tokens from ``length`` on, as when a draft was refused."""
        if not 0 <= length <= self.length:
            raise UsageError(f"the cache holds {self.length} tokens and cannot be cut to {length}")
        self.length = length
