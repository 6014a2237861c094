"""The loop: requests in, tokens out.

>>> engine = Engine(model, cache_bytes=2**28)
>>> sequence = engine.add(prompt, SamplerState(params, prompt, vocab_size), most=100, ends=(2,))
>>> while sequence.finish is None:
...     engine.step()
>>> sequence.answer

A step plans a batch, computes it, chooses tokens and puts them into the sequences' outboxes. Requests may come and be
cancelled between any two steps. The engine is for one thread at a time; ``deepwell.Model`` keeps to that.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deepwell.errors import DeepwellError, PromptTooLongError, UsageError
from deepwell.lm.engine.blocks import BlockAllocator
from deepwell.lm.engine.cores import FreeCores
from deepwell.lm.engine.gpu import runner_for
from deepwell.lm.engine.native.program import Precision
from deepwell.lm.engine.native.runner import NativeRunner
from deepwell.lm.engine.pace import Pace
from deepwell.lm.engine.paged_cache import PagedCache
from deepwell.lm.engine.params import SamplingParams
from deepwell.lm.engine.runner import Runner
from deepwell.lm.engine.sampler import Sampled, SamplerState, sample, verify
from deepwell.lm.engine.scheduler import Part, Scheduler
from deepwell.lm.engine.sequence import Finish, Sequence
from deepwell.lm.engine.speculation import Drafter
from deepwell.lm.model.transformer import Transformer
from deepwell.threads import free_cores

_MOST_FORCED = 64
"""Tokens of a piece that a grammar leaves no choice about and that are computed together."""


_PROMPT_TOKENS_BESIDE = 128
"""Tokens of prompts in a step of a processor while answers are being written."""


@dataclass(slots=True)
class Counters:
    """What an engine has done so far: steps, and tokens that were guessed, and those of them that were right."""

    steps: int = 0
    proposed: int = 0
    accepted: int = 0


class Engine:
    """A network that generates for many requests at once."""

    def __init__(
        self,
        model: Transformer,
        *,
        cache_bytes: int,
        block_size: int = 16,
        token_budget: int = 512,
        most_sequences: int = 64,
        speculate: bool = True,
        precision: Precision | None = None,
        consume: bool = False,
    ) -> None:
        """Make ready to generate.

        Args:
            model: The network.
            cache_bytes: Memory for the cache; never more is used.
            block_size: Tokens of a block of the cache.
            token_budget: Tokens of a step.
            most_sequences: That may run at once; others wait.
            speculate: Guess tokens and check them; the answers are the same.
            precision: Compute by compiled code with a copy of the weights in this precision; None: by PyTorch with the
                weights of ``model`` themselves, so that a change of theirs is seen (its matrices are fused, see
                ``fused``).
            consume: Let go of the weights of ``model`` as they are copied.

        Raises:
            UsageError: The memory does not hold one block, or there is no compiled code for this network here.
        """
        mtp = speculate and bool(model.config.num_nextn_predict_layers)
        dtype = model.dtype
        if precision is not None:
            # Weights may be rounded to less; what tokens leave in the cache is not.
            dtype = torch.float32 if precision == "f32" else torch.bfloat16
        width = torch.empty((), dtype=dtype).element_size()
        layers = model.config.num_hidden_layers + (model.config.num_nextn_predict_layers if mtp else 0)
        token_bytes = layers * model.config.latent_width * width
        blocks = cache_bytes // (block_size * token_bytes)
        if blocks < 1:
            raise UsageError(
                f"the cache is to have {cache_bytes} bytes; {block_size} tokens of this network need "
                f"{block_size * token_bytes}"
            )
        self.model = model
        self.cache = PagedCache(
            model.config, blocks=blocks, block_size=block_size, dtype=dtype, device=model.device, mtp=mtp
        )
        self.allocator = BlockAllocator(blocks, block_size)
        self.scheduler = Scheduler(
            self.allocator,
            token_budget=token_budget,
            most_sequences=most_sequences,
            # A processor takes half a second for 512 tokens, and is as fast in smaller pieces.
            prompt_budget=_PROMPT_TOKENS_BESIDE if model.device.type == "cpu" else None,
        )
        self.counters = Counters()
        self._pace = Pace()
        self._speculate = speculate
        self._mtp = mtp
        self._cores: FreeCores | None = None
        if model.device.type == "cpu":
            self._cores = FreeCores(torch.get_num_threads())
            self._cores.threads = min(self._cores.threads, free_cores())
        self._runner: Runner | NativeRunner
        if precision is None:
            self._runner = runner_for(model, self.cache)
        else:
            self._runner = NativeRunner(
                model, self.cache, precision, most_rows=token_budget, most_chosen=most_sequences, consume=consume
            )

    @property
    def capacity(self) -> int:
        """Tokens that the cache holds; no request may have more."""
        return self.allocator.blocks * self.allocator.block_size

    @property
    def weight_bytes(self) -> int:
        """Bytes of the matrices that a step multiplies with, all experts included."""
        return self._runner.weight_bytes

    def add(self, prompt: Items[int], state: SamplerState, *, most: int, ends: Collection[int] = ()) -> Sequence:
        """A new request.

        Args:
            prompt: Its tokens.
            state: How tokens are chosen.
            most: Tokens that the answer may have. It has fewer where the network or the cache ends.
            ends: Tokens that end it.

        Raises:
            UsageError: The prompt is empty, holds something that is no token, or leaves no room for an answer.
        """
        room = min(self.model.config.max_position_embeddings, self.capacity)
        if not prompt:
            raise UsageError("the prompt has no tokens")
        if not 0 <= min(prompt) <= max(prompt) < self.model.config.vocab_size:
            raise UsageError(f"the prompt holds a token outside the network's {self.model.config.vocab_size}")
        if len(prompt) >= room:
            longest = "this network reads" if room < self.capacity else "the cache holds"
            raise PromptTooLongError(f"the prompt has {len(prompt)} tokens; {longest} {room}, the answer's included")
        drafter = Drafter() if self._speculate else None
        sequence = Sequence(prompt, state, limit=min(len(prompt) + most, room), ends=ends, drafter=drafter)
        self.scheduler.add(sequence)
        return sequence

    def states(self, tokens: Items[int]) -> Iterator[Tensor]:
        """The normed states of a text that is only read, [n, h] for so many of its tokens as a step holds at a time.

        Raises:
            UsageError: The text is empty, longer than the network reads, or has no room beside what is being written.
        """
        most = min(self.model.config.max_position_embeddings, self.capacity)
        if not 1 <= len(tokens) <= most:
            raise UsageError(f"{len(tokens)} tokens cannot be scored; there is room for {most}")
        if not 0 <= min(tokens) <= max(tokens) < self.model.config.vocab_size:
            raise UsageError(f"there is a token outside the network's {self.model.config.vocab_size}")
        wanted = -(-len(tokens) // self.allocator.block_size)
        if wanted > self.allocator.room:
            raise UsageError(
                f"{len(tokens)} tokens cannot be scored now: answers that are being written fill the cache"
            )
        sequence = Sequence(tokens, SamplerState(SamplingParams(), (), self.model.config.vocab_size), limit=len(tokens))
        sequence.table = self.allocator.allocate(wanted)
        try:
            for start in range(0, len(tokens), self.scheduler.token_budget):
                part = Part(sequence, start, min(self.scheduler.token_budget, len(tokens) - start))
                with self._threads():
                    yield self._runner.run([part])[0]
        finally:
            self.allocator.release(sequence.table)

    def logits(self, states: Tensor) -> Tensor:
        """Logits [n, vocabulary] of states [n, h], good until the next call."""
        return self._runner.head(states)

    def cancel(self, sequence: Sequence) -> None:
        """End a request at once; its blocks are free when this returns."""
        self.scheduler.end(sequence, "cancelled")

    @property
    def busy(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self.scheduler.running or self.scheduler.waiting)

    def step(self) -> None:
        """Compute one batch. Nothing happens when nothing is to be done."""
        with self._threads():
            self._step()

    @contextmanager
    def _threads(self) -> Iterator[None]:
        """Inside, a step has the cores that are free."""
        if self._cores is None:
            yield
            return
        with self._cores.for_a_step(torch_alone=not isinstance(self._runner, NativeRunner)):
            if isinstance(self._runner, NativeRunner):
                self._runner.threads = self._cores.threads
            yield

    def _step(self) -> None:
        parts = self.scheduler.plan()
        if not parts:
            return
        began = time.perf_counter()
        hidden, step = self._runner.run(parts)
        self.counters.steps += 1
        guessed = [part.guessed for part in parts]
        for part, chosen, proposed in zip(parts, self._choose(parts, hidden), guessed, strict=True):
            self._deliver(part, chosen, proposed)
        if self._speculate:
            self._guess(parts, hidden, step)
            if all(part.count == proposed + 1 for part, proposed in zip(parts, guessed, strict=True)):
                self._pace.note(sum(part.count for part in parts), time.perf_counter() - began)
        for part in parts:
            why = _end_of(part.sequence)
            if why is not None:
                self.scheduler.end(part.sequence, why)

    def _choose(self, parts: Items[Part], hidden: Tensor) -> list[list[Sampled]]:
        """The next tokens of each part; none for a piece of a prompt that goes on."""
        wanted: list[int] = []
        rows: list[slice] = []
        first = 0
        for part in parts:
            first += part.count
            begin = len(wanted)
            if part.chooses:
                wanted += range(first - part.guessed - 1, first)
            rows.append(slice(begin, len(wanted)))
        if not wanted:
            return [[] for _ in parts]
        logits = self._runner.head(hidden if len(wanted) == len(hidden) else hidden[wanted])
        single = [index for index, here in enumerate(rows) if here.stop - here.start == 1]
        chosen: list[list[Sampled]] = [[] for _ in parts]
        if single:
            few = logits if len(single) == len(wanted) else logits[[rows[index].start for index in single]]
            sequences = [parts[index].sequence for index in single]
            for index, one in zip(single, self._sample(few, sequences), strict=True):
                if one is not None:
                    try:
                        parts[index].sequence.state.accept(one.token)
                        chosen[index] = [one]
                    except DeepwellError as error:
                        parts[index].sequence.error = error
        for index, (part, here) in enumerate(zip(parts, rows, strict=True)):
            if here.stop - here.start > 1:
                sequence = part.sequence
                try:
                    chosen[index] = verify(logits[here], sequence.state, sequence.draft, sequence.ends)
                except DeepwellError as error:
                    sequence.error = error
        return chosen

    @staticmethod
    def _sample(logits: Tensor, sequences: Items[Sequence]) -> list[Sampled | None]:
        """A token for each row; None where that went wrong, which is that one sequence's error alone."""
        try:
            return list(sample(logits, [sequence.state for sequence in sequences]))
        except DeepwellError:
            chosen: list[Sampled | None] = []
            for row, sequence in zip(logits, sequences, strict=True):
                try:
                    chosen += sample(row[None], [sequence.state])
                except DeepwellError as error:
                    sequence.error = error
                    chosen.append(None)
            return chosen

    def _deliver(self, part: Part, chosen: list[Sampled], proposed: int) -> None:
        """Put chosen tokens behind the sequence and into its outbox."""
        sequence = part.sequence
        for count, one in enumerate(chosen, 1):
            if sequence.watch is not None and sequence.watch(one):
                chosen, sequence.complete = chosen[:count], True
                break
        self.scheduler.complete(part, [one.token for one in chosen])
        sequence.outbox += chosen
        sequence.draft = []
        if proposed and chosen and sequence.drafter is not None:
            accepted = len(chosen) - 1
            sequence.drafter.learn(sequence.tokens, proposed, accepted)
            self.counters.proposed += proposed
            self.counters.accepted += accepted

    def _guess(self, parts: Items[Part], hidden: Tensor, step: Any) -> None:
        """Drafts for the next step: what must come, what stands in the text, what the module says."""
        asking: list[Sequence] = []
        depths: list[int] = []
        rows: list[int] = []
        following: list[int] = []
        decoding = [part.sequence.remaining == 1 and _end_of(part.sequence) is None for part in parts]
        worth = partial(self._pace.best, sequences=sum(decoding))
        for part, decodes in zip(parts, decoding, strict=True):
            sequence = part.sequence
            first = len(following)
            behind = sequence.tokens[part.start + 1 : part.start + part.count + 1]
            following += behind + [0] * (part.count - len(behind))
            drafter = sequence.drafter
            if drafter is None or not decodes:
                continue
            most = sequence.limit - len(sequence.tokens) - 1
            sequence.draft = list(sequence.state.forced[: min(most, _MOST_FORCED)])
            if sequence.draft:
                drafter.certain()
                continue
            sequence.draft = drafter.propose(sequence.tokens, most, worth)
            if sequence.draft or not self._mtp:
                continue
            depth = drafter.depth(sequence.tokens, most, worth)
            if depth:
                asking.append(sequence)
                depths.append(depth)
                rows.append(first + sequence.computed - 1 - part.start)
        if self._mtp:
            # Also when nobody asks: the module's own rows must be there when somebody does.
            guessed, states = self._runner.draft(hidden, following, step, rows)
            for sequence, token in zip(asking, guessed, strict=True):
                sequence.draft = [token]
            self._guess_on(asking, depths, states)

    def _guess_on(self, asking: Items[Sequence], depths: Items[int], states: Tensor) -> None:
        """Deeper drafts of the module, each from its last one."""
        size = self.allocator.block_size
        # Its rows go where the network's own will come, in blocks that the sequence has.
        depths = [
            min(depth, len(one.table) * size - one.computed + 1) for one, depth in zip(asking, depths, strict=True)
        ]
        for length in range(1, max(depths, default=0)):
            going = [index for index, depth in enumerate(depths) if depth > length]
            states = states if len(going) == len(asking) else states[going]
            asking, depths = [asking[index] for index in going], [depths[index] for index in going]
            parts = [Part(one, one.computed + length - 1, 1) for one in asking]
            guessed, states = self._runner.draft_on(parts, states, [one.draft[-1] for one in asking])
            for sequence, token in zip(asking, guessed, strict=True):
                sequence.draft.append(token)


def _end_of(sequence: Sequence) -> Finish | None:
    """Why a sequence ends here, if it does."""
    if sequence.error is not None:
        return "error"
    if len(sequence.tokens) == sequence.prompt_length:
        return None
    if sequence.complete or sequence.tokens[-1] in sequence.ends or sequence.state.done:
        return "stop"
    return "length" if len(sequence.tokens) >= sequence.limit else None
