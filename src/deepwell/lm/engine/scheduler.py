"""Who computes what in the next step.

Every step is one pass over a batch: a token for each sequence that is decoding (and its guess, if it has one), and with
what is left of the token budget pieces of prompts. So a long prompt never makes the others wait for more than a step,
and a new request joins at the next one (continuous batching, Orca, OSDI 2022; chunked prefill, arXiv 2308.16369).

The cache's size is a hard limit. A sequence is admitted when its tokens fit; when a decoding one needs a block and none
is left, the sequence that came last gives all of its blocks back and waits to be computed again. The first one can take
everything, and no sequence is longer than the cache, so there is always progress.

Prompts that begin alike and come together are computed once: one that waits is passed over while another computes what
it begins with, and is admitted when that is in the cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Items
from dataclasses import dataclass

from deepwell.errors import UsageError
from deepwell.lm.engine.blocks import BlockAllocator, chain
from deepwell.lm.engine.sequence import Finish, Sequence

_WORTH_WAITING = 64
"""Tokens that another one must be computing for it: a step costs as much as some tens of tokens beside others do."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one sequence computes in a step: ``count`` of its tokens from ``start``, guessed ones behind the known."""

    sequence: Sequence
    start: int
    count: int

    @property
    def tokens(self) -> list[int]:
        """The tokens to compute."""
        known = self.sequence.tokens[self.start : self.start + self.count]
        return known + self.sequence.draft[: self.count - len(known)]

    @property
    def guessed(self) -> int:
        """How many of its tokens are guesses."""
        return max(0, self.start + self.count - len(self.sequence.tokens))

    @property
    def chooses(self) -> bool:
        """Whether the last known token is among them, so that the next one can be chosen."""
        return self.start + self.count >= len(self.sequence.tokens)


class Scheduler:
    """Waiting and running sequences, and the blocks that they hold."""

    def __init__(
        self,
        allocator: BlockAllocator,
        *,
        token_budget: int = 512,
        most_sequences: int = 64,
        prompt_budget: int | None = None,
    ) -> None:
        """Start empty.

        Args:
            allocator: Of the cache's blocks.
            token_budget: Tokens of a step.
            most_sequences: That may run at once; others wait.
            prompt_budget: Tokens of prompts in a step for whose end others wait to get their next token; None: all that
                they leave.

        Raises:
            UsageError: The budget does not give each sequence a token.
        """
        if not 1 <= most_sequences <= token_budget:
            raise UsageError(f"a budget of {token_budget} tokens a step is not enough for {most_sequences} sequences")
        self.allocator = allocator
        self.token_budget = token_budget
        self.most_sequences = most_sequences
        self.prompt_budget = prompt_budget
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for its turn.

        Raises:
            UsageError: It can grow longer than the cache, or has no tokens.
        """
        if not sequence.tokens:
            raise UsageError("the prompt has no tokens")
        capacity = self.allocator.blocks * self.allocator.block_size
        if sequence.limit > capacity:
            raise UsageError(
                f"the prompt has {sequence.prompt_length} tokens and the answer may have "
                f"{sequence.limit - sequence.prompt_length}; the cache holds {capacity}"
            )
        self.waiting.append(sequence)

    def plan(self) -> list[Part]:
        """The next step. Blocks for all of its tokens are allocated. Empty when nothing is to be done."""
        parts: list[Part] = []
        budget = self.token_budget
        for sequence in [one for one in self.running if one.remaining == 1]:
            if sequence.table and self._has_room(sequence, budget):
                part = Part(sequence, sequence.computed, 1 + len(sequence.draft))
                parts.append(part)
                budget -= part.count
        if parts and self.prompt_budget is not None:
            budget = min(budget, self.prompt_budget)
        for sequence in self.running:
            if sequence.remaining > 1 and budget:
                parts.append(self._piece(sequence, budget))
                budget -= parts[-1].count
        for sequence in list(self.waiting):
            if not budget or len(self.running) >= self.most_sequences:
                break
            if self._on_its_way(sequence):
                continue
            if not self._admit(sequence):
                break
            self.waiting.remove(sequence)
            self.running.append(sequence)
            parts.append(self._piece(sequence, budget))
            budget -= parts[-1].count
        return parts

    def complete(self, part: Part, chosen: Items[int] = ()) -> None:
        """Take note that a part was computed, and of the tokens chosen behind it, right guesses included."""
        sequence = part.sequence
        sequence.computed = min(part.start + part.count, len(sequence.tokens) + max(0, len(chosen) - 1))
        sequence.tokens += chosen
        before = len(sequence.digests)
        chain(sequence.tokens, self.allocator.block_size, sequence.digests, upto=sequence.computed)
        first = min(before, part.start // self.allocator.block_size)
        for block in range(first, sequence.computed // self.allocator.block_size):
            self.allocator.name(sequence.table[block], sequence.digests[block])

    def end(self, sequence: Sequence, why: Finish) -> None:
        """A sequence is over: its blocks are free at once, and findable if they were full."""
        if sequence.finish is not None:
            return
        sequence.finish = why
        self._release(sequence)
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)

    def _piece(self, sequence: Sequence, budget: int) -> Part:
        sequence.draft = []
        return Part(sequence, sequence.computed, min(sequence.remaining, budget))

    def _has_room(self, sequence: Sequence, budget: int) -> bool:
        """Give a decoding sequence the blocks that it needs, from others if need be, or let it wait."""
        # The others that decode get a token each before this one gets a second.
        sequence.draft = sequence.draft[: max(0, budget - self.most_sequences)]
        wanted = self._blocks_of(len(sequence.tokens) + len(sequence.draft)) - len(sequence.table)
        if wanted > self.allocator.room:
            sequence.draft = []
            wanted = self._blocks_of(len(sequence.tokens)) - len(sequence.table)
            while wanted > self.allocator.room:
                last = self.running.pop()
                self._release(last)
                last.computed = 0
                last.draft = []
                self.waiting.appendleft(last)
                self.preemptions += 1
                if last is sequence:
                    return False
        if wanted > 0:
            likely = self._blocks_of(sequence.limit) - len(sequence.table) - wanted
            behind = sequence.table[-1]
            sequence.table += self.allocator.allocate(wanted, behind=behind, likely=max(0, likely))
        return True

    def _on_its_way(self, sequence: Sequence) -> bool:
        """Whether so much of a waiting sequence's beginning is being computed for another one that waiting pays."""
        size = self.allocator.block_size
        names = self._sharable(sequence)
        names = names[len(self.allocator.find(names)) :][: max(1, _WORTH_WAITING // size)]
        if len(names) * size < _WORTH_WAITING:
            return False
        # Names are chained: who has the last one has them all.
        return any(
            other.remaining > 1 and names[-1] in other.digests[other.computed // size :] for other in self.running
        )

    def _sharable(self, sequence: Sequence) -> list[bytes]:
        """The names of its blocks that may be another one's; its last token is computed, as it says what comes next."""
        size = self.allocator.block_size
        return chain(sequence.tokens, size, sequence.digests)[: (len(sequence.tokens) - 1) // size]

    def _admit(self, sequence: Sequence) -> bool:
        """Give a waiting sequence blocks for all of its tokens, those that hold its beginning already first."""
        size = self.allocator.block_size
        found = self.allocator.find(self._sharable(sequence))
        wanted = self._blocks_of(len(sequence.tokens)) - len(found)
        # Each that runs may soon need one more; admitting now only to preempt then would compute a prompt twice.
        if self.allocator.room_beside(found) < wanted + len(self.running):
            return False
        self.allocator.share(found)
        likely = self._blocks_of(sequence.limit) - len(found) - wanted
        behind = found[-1] if found else None
        sequence.table = found + self.allocator.allocate(wanted, behind=behind, likely=likely)
        sequence.computed = len(found) * size
        if sequence.reused is None:
            sequence.reused = sequence.computed
        return True

    def _release(self, sequence: Sequence) -> None:
        self.allocator.release(sequence.table)
        sequence.table = []

    def _blocks_of(self, tokens: int) -> int:
        return -(-tokens // self.allocator.block_size)
