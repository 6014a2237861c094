"""``deepwell.Model``: a language model of this machine, ready to write.

>>> model = deepwell.Model.load("smollm2-135m-instruct")
>>> model.chat([{"role": "user", "content": "What is a heat pump?"}]).text
>>> for piece in model.stream(messages, SamplingParams(max_tokens=100)):
...     print(piece.text, end="")
>>> model.generate(["Deep wells are", "Shallow wells are"], SamplingParams(temperature=0))   # in one batch
>>> model.score(tokens)                                                                      # log-probabilities

Any number of threads may ask at once; their requests share every step of the engine.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepwell.errors import UsageError
from deepwell.lm.engine.params import SamplingParams

if TYPE_CHECKING:
    from deepwell.lm.engine.engine import Engine
    from deepwell.lm.engine.native.program import Precision
    from deepwell.lm.engine.request import Completion, Prepared, Request, StreamPiece
    from deepwell.lm.model.transformer import Transformer
    from deepwell.lm.weights.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]

_SCORED_AT_ONCE = 128
"""Tokens whose logits over the whole vocabulary are in memory at once."""


class Model:
    """A network, its tokenizer, and an engine over both.

    Attributes:
        network: The network.
        tokenizer: Text to tokens and back.
        engine: What computes; its counters tell how it does.
        ends: Tokens that end an answer.
    """

    def __init__(
        self,
        network: Transformer,
        tokenizer: Tokenizer,
        *,
        cache_bytes: int | None = None,
        speculate: bool = True,
        most_sequences: int = 64,
        precision: Precision | None = None,
        consume: bool = False,
    ) -> None:
        """Take a network that is in memory already; ``load`` reads one.

        Args:
            network: The network.
            tokenizer: The one that it was trained with.
            cache_bytes: Memory for the cache, never more; None: a share of what is free.
            speculate: Guess tokens and check them, which changes speed alone.
            most_sequences: That are written at once; others wait.
            precision: f32, bf16, int8, int4: compute by compiled code with a copy of the weights in it. None: by
                PyTorch with the network's own, whose changes (as in training) are seen at once.
            consume: The copy takes the weights' place: ``network`` keeps its shape alone.

        Raises:
            UsageError: The tokenizer has more tokens than the network, the cache is too small, or there is no compiled
                code for this network here.
        """
        from deepwell.lm.engine.engine import Engine
        from deepwell.lm.engine.grammar import Grammars
        from deepwell.lm.engine.memory import cache_bytes_for

        if tokenizer.vocab_size > network.config.vocab_size:
            raise UsageError(
                f"the tokenizer has {tokenizer.vocab_size} tokens and the network {network.config.vocab_size}: "
                "they do not belong together"
            )
        self.network = network.eval()
        self.tokenizer = tokenizer
        self.engine: Engine = Engine(
            network,
            cache_bytes=cache_bytes_for(network, precision) if cache_bytes is None else cache_bytes,
            speculate=speculate,
            most_sequences=most_sequences,
            precision=precision,
            consume=consume,
        )
        self.ends = frozenset((*tokenizer.eos_token_ids, *network.config.eos_token_id))
        self._grammars = Grammars(tokenizer)
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        *,
        precision: str = "auto",
        device: str = "auto",
        cache_bytes: int | None = None,
        speculate: bool = True,
    ) -> Model:
        """Read a model.

        Args:
            name_or_path: A name as in ``deepwell models list``, a folder, or a GGUF file.
            precision: Of the weights in memory. On a processor f32, bf16, int8 and int4 are computed by compiled code
                where there is some (``network`` then has its shape alone), f16 and f64 by PyTorch; without compiled
                code int8 and int4 are rounded all the same and kept in float. On a GPU bf16, f16, f32 and fp8. "auto":
                int8 on a processor, int4 for a file that has no more than that; bf16 on a GPU.
            device: cpu or cuda; "auto": a GPU if there is one.
            cache_bytes: As for making one.
            speculate: As for making one.

        Raises:
            MissingModelError: It is not on this machine; the hint names the command that fetches it.
            DeepwellError: As ``deepwell.lm.load`` says.
        """
        from deepwell.lm.engine import memory
        from deepwell.lm.weights.opening import load, locate, usable

        if precision not in memory.PRECISIONS:
            raise UsageError(f"there is no precision {precision!r}", hint=f"use one of {', '.join(memory.PRECISIONS)}")
        chosen = memory.device_for(device)
        path = locate(name_or_path)
        if precision == "auto":
            precision = memory.precision_for(path, chosen)
        usable(chosen)
        dtype = memory.dtype_for(precision, path, chosen)
        network, tokenizer = load(path, dtype=dtype, device=memory.read_to(precision, chosen))
        compiled = memory.compiled_for(precision, network)
        if compiled is None:
            memory.round_weights(network, precision, chosen)
        return cls(
            network, tokenizer, cache_bytes=cache_bytes, speculate=speculate, precision=compiled, consume=bool(compiled)
        )

    # ---- writing ----

    def generate(
        self,
        prompts: str | Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Go on with each prompt, all in one batch.

        Args:
            prompts: Texts or lists of tokens; a single text is a list of one.
            params: For all of them, or one for each.

        Raises:
            UsageError: A prompt is too long (with the counts) or empty, or there is not one ``params`` a prompt.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        each = [params or SamplingParams()] * len(texts) if not isinstance(params, Sequence) else list(params)
        if len(each) != len(texts):
            raise UsageError(f"there are {len(texts)} prompts and {len(each)} params", hint="Give one for each.")
        with contextlib.ExitStack() as stack:
            requests = [stack.enter_context(self.begin(text, one)) for text, one in zip(texts, each, strict=True)]
            return [request.result() for request in requests]

    def chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Completion:
        """Answer a chat; reasoning is kept apart.

        Args:
            messages: ``role`` and ``content``, as in the chat API of OpenAI and DeepSeek.
            params: How the answer is written.
            tools: Functions that the model may call, as in the same API.

        Raises:
            UsageError: It is no chat, or too long (with the counts).
        """
        with self.begin(messages, params, tools=tools) as request:
            return request.result()

    def stream(
        self,
        prompt: str | Messages,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Generator[StreamPiece]:
        """The answer to a chat, or what goes on from a text, as it is written. Closing the generator ends the request.

        Raises:
            UsageError: As for ``chat``; when the first piece is asked for.
        """
        with self.begin(prompt, params, tools=tools) as request:
            yield from request.pieces()

    def begin(
        self,
        prompt: str | Sequence[int] | Messages,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Request:
        """Start a request and do not wait for it; see ``Request``. A chat is what is neither a text nor tokens.

        Raises:
            UsageError: As for ``chat``.
        """
        return self.start(self.prepare(prompt, params, tools=tools))

    def prepare(
        self,
        prompt: str | Sequence[int] | Messages,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_last: bool = False,
    ) -> Prepared:
        """Make a request ready, as any thread may do while another one computes; ``start`` starts it.

        Args:
            prompt: As for ``begin``.
            params: How the answer is written.
            tools: Functions that the model may call.
            continue_last: The last message of a chat, the assistant's, is the beginning of the answer.

        Raises:
            UsageError: It is no chat, or the form that ``params`` asks for cannot be kept.
        """
        from deepwell.lm.engine.reply import begin
        from deepwell.lm.engine.request import Prepared

        params = params or SamplingParams()
        chat = False
        if isinstance(prompt, str):
            tokens = self.tokenizer.encode(prompt)
        elif prompt and isinstance(prompt[0], Mapping):
            chat = True
            messages: Any = prompt
            tokens = self.tokenizer.chat(messages, thinking=params.thinking, tools=tools, continue_last=continue_last)
        else:
            given: Any = prompt
            tokens = [int(token) for token in given]
        state, reply = begin(self.tokenizer, params, tokens, self._grammars, chat=chat, tools=tools if chat else None)
        ends = frozenset() if params.ignore_eos else self.ends
        return Prepared(tokens, state, reply, params.max_tokens, ends)

    def start(self, prepared: Prepared) -> Request:
        """Start a request that was made ready, at the next step.

        Raises:
            UsageError: It is too long (with the counts).
        """
        from deepwell.lm.engine.request import Request

        with self._lock:
            sequence = self.engine.add(prepared.tokens, prepared.state, most=prepared.most, ends=prepared.ends)
            return Request(self.engine, self._lock, sequence, prepared.reply)

    def step(self) -> bool:
        """Compute one step of all requests; whether any goes on. For a program that asks each of them with ``poll``."""
        with self._lock:
            self.engine.step()
            return self.engine.busy

    # ---- scoring ----

    def score(self, tokens: Sequence[int]) -> list[float]:
        """The log-probability of each token but the first, behind all before it: one number fewer than tokens.

        Raises:
            UsageError: There are none, too many for the network, or one is no token.
        """
        import torch

        scores: list[float] = []
        with self._lock, torch.no_grad():
            first = 0
            for states in self.engine.states(tokens):
                for start in range(0, len(states), _SCORED_AT_ONCE):
                    aims = tokens[first + start + 1 : first + min(start + _SCORED_AT_ONCE, len(states)) + 1]
                    if aims:
                        logits = self.engine.logits(states[start : start + len(aims)]).float()
                        behind = torch.tensor(aims, device=logits.device)
                        scores += logits.log_softmax(-1).gather(1, behind[:, None])[:, 0].tolist()
                first += len(states)
        return scores
