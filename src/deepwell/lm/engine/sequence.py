"""One request inside of the engine: its tokens, what of them is in the cache, and what is known about its end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import Literal

from deepwell.errors import DeepwellError
from deepwell.lm.engine.sampler import Sampled, SamplerState
from deepwell.lm.engine.speculation import Drafter

Finish = Literal["stop", "length", "cancelled", "error"]


class Sequence:
    """A prompt and the tokens behind it.

    Attributes:
        tokens: The prompt, then what was chosen, the token that ended the answer included.
        prompt_length: How many of them are the prompt.
        limit: No more tokens than these in all.
        ends: Tokens that end the answer.
        state: How the next token is chosen.
        drafter: Guesses what follows; None: nobody does.
        draft: The guess for this step.
        table: Its blocks of the cache, in order.
        digests: The names of its full blocks.
        computed: How many of its first tokens have their rows in the cache.
        reused: Tokens of the prompt whose rows were there when the request began.
        outbox: Chosen tokens that nobody has fetched yet.
        watch: Called with every chosen token; says whether the answer is complete with it, as at a stop string.
        complete: Whether ``watch`` said so.
        finish: Why it ended; None while it goes on.
        error: What went wrong, where ``finish`` is "error".
    """

    __slots__ = (
        "complete", "computed", "digests", "draft", "drafter", "ends", "error", "finish", "limit", "outbox",
        "prompt_length", "reused", "state", "table", "tokens", "watch",
    )  # fmt: skip

    def __init__(
        self,
        prompt: Collection[int],
        state: SamplerState,
        *,
        limit: int,
        ends: Collection[int] = (),
        drafter: Drafter | None = None,
    ) -> None:
        self.tokens = list(prompt)
        self.prompt_length = len(self.tokens)
        self.limit = limit
        self.ends = frozenset(ends)
        self.state = state
        self.drafter = drafter
        self.draft: list[int] = []
        self.table: list[int] = []
        self.digests: list[bytes] = []
        self.computed = 0
        self.reused: int | None = None
        self.watch: Callable[[Sampled], bool] | None = None
        self.complete = False
        self.outbox: deque[Sampled] = deque()
        self.finish: Finish | None = None
        self.error: DeepwellError | None = None

    @property
    def remaining(self) -> int:
        """Known tokens whose rows are not in the cache; 1 when it is decoding."""
        return len(self.tokens) - self.computed

    @property
    def answer(self) -> list[int]:
        """The tokens behind the prompt."""
        return self.tokens[self.prompt_length :]
