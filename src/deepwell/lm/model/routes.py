"""Which experts each token took: recorded in one forward pass, replayed in another.

Reinforcement learning samples with one pass and learns with another; a router that chooses otherwise the second time
makes the two disagree. Replaying keeps them together ("Keep Routing", V3.2 report).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from deepwell.errors import UsageError
from deepwell.lm.model.config import ModelConfig


class Routes:
    """The experts of each token, layer by layer: ``choices[layer]`` is [B*T, K] int64, -1 where fewer were taken.

    Made empty, it records; made with ``choices``, it is replayed: weights are computed anew from the scores of the pass
    that replays, the choice is not.

        >>> routes = Routes()                                       # doctest: +SKIP
        >>> sampled = model(tokens, routes=routes)                   # doctest: +SKIP
        >>> again = model(tokens, routes=routes.replay())            # doctest: +SKIP
    """

    def __init__(self, choices: Mapping[int, Tensor] | None = None) -> None:
        self.choices: dict[int, Tensor] = dict(choices or {})
        self.replays = choices is not None

    def replay(self) -> Routes:
        """The same choices, to be followed."""
        return Routes(self.choices)

    def given(self, layer: int, tokens: int) -> Tensor | None:
        """What ``layer`` is to follow, or None while recording.

        Raises:
            UsageError: The layer or the number of tokens is not what was recorded.
        """
        if not self.replays:
            return None
        if layer not in self.choices:
            raise UsageError(f"the routes to replay hold nothing for layer {layer}: they are of another network")
        choice = self.choices[layer]
        if choice.shape[0] != tokens:
            raise UsageError(
                f"the routes to replay are of {choice.shape[0]} tokens, and {tokens} came (layer {layer})",
                hint="Replay with the same tokens that were recorded.",
            )
        return choice

    def record(self, layer: int, experts: Tensor) -> None:
        """Keep what ``layer`` chose, when recording."""
        if not self.replays:
            self.choices[layer] = experts

    def mean_experts(self) -> float:
        """Experts a token took, on average over tokens and layers. 0 without layers of experts."""
        taken = sum(int((choice >= 0).sum()) for choice in self.choices.values())
        rows = sum(choice.shape[0] for choice in self.choices.values())
        return taken / rows if rows else 0.0

    def compute_saved(self, config: ModelConfig) -> float:
        """Share of the routed experts' multiplications saved against always taking ``num_experts_per_tok``.

        Negative when more were taken.
        """
        return 1 - self.mean_experts() / config.num_experts_per_tok if self.choices else 0.0
