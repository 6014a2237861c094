"""Calls that a model makes of its own accord, held to their format.

A model that is free to answer or to call is free until it writes the mark that begins a call. From there to the end of
the call a grammar leaves it the choice of a function that exists and of arguments that satisfy its schema; then it is
free again. What it thinks before its answer is not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from deepwell.lm.engine.thinking import CLOSE, OPEN

if TYPE_CHECKING:
    from deepwell.lm.engine.sampler import Constraint
    from deepwell.lm.weights.tokenizer import Tokenizer


class CallGate:
    """A ``Constraint``: a grammar behind each mark, and outside of it whatever else constrains the reply."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        mark: str,
        begin: Callable[[], Constraint],
        *,
        opened: bool,
        outside: Constraint | None = None,
    ) -> None:
        """Start a reply.

        Args:
            tokenizer: The model's.
            mark: What begins a call.
            begin: Makes the grammar of what stands behind the mark.
            opened: The prompt ends with the opening tag of a thought.
            outside: What constrains the rest.
        """
        self._tokenizer = tokenizer
        self._mark = mark.encode()
        self._begin = begin
        self._outside = outside
        self._call: Constraint | None = None
        self._thinking = opened
        self._begun = b""
        self._tail = b""

    @property
    def done(self) -> bool:
        """Whether nothing may follow; a call ends nothing."""
        return self._call is None and self._outside is not None and self._outside.done

    @property
    def forced(self) -> Sequence[int]:
        """Tokens that come next because no others may."""
        inside = self._call or self._outside
        return () if inside is None else inside.forced

    def restrict(self, logits: Tensor) -> Tensor:
        """Logits [V] with -inf where no token may come now."""
        inside = self._call or self._outside
        return logits if inside is None else inside.restrict(logits)

    def accept(self, token: int) -> None:
        """Go on behind a token that was chosen."""
        if self._call is not None:
            self._call.accept(token)
            if self._call.done:
                self._call = None
            return
        if self._outside is not None:
            self._outside.accept(token)
        piece = self._tokenizer.token_bytes(token)
        self._tail = (self._tail + piece)[-max(len(self._mark), len(CLOSE)) - len(piece) :]
        if self._thinks(piece):
            return
        if self._tail.endswith(self._mark):
            self._call, self._tail = self._begin(), b""

    def _thinks(self, piece: bytes) -> bool:
        """Whether the reply is inside of its thought; the token that ends it still is."""
        if self._thinking:
            self._thinking = CLOSE.encode() not in self._tail
            return True
        if len(self._begun.lstrip()) < len(OPEN):
            self._begun += piece
            self._thinking = self._begun.lstrip().startswith(OPEN.encode())
        return self._thinking
