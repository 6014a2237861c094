"""Answers of a given form: JSON that satisfies a schema, a regular expression, one of some texts, a grammar.

The grammars are llguidance's (MIT): an Earley parser over the bytes of tokens, which says before every token which ones
may come. JSON is written on one line with a space behind commas and colons, as Python writes it; were any white space
allowed, a model that is unsure could write spaces for ever.

A schema or expression that cannot be kept is an error before anything is computed, never an answer that breaks it:
keywords that the library does not know (``not``, ``if``, ``uniqueItems``), look-around, a schema that nothing can meet.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deepwell.errors import DeepwellError, MissingExtraError, ModelFormatError, UsageError
from deepwell.lm.engine.digits import DigitCount, leading_digits
from deepwell.lm.engine.params import SamplingParams
from deepwell.lm.engine.schemas import sound
from deepwell.lm.engine.spelling import spelled

if TYPE_CHECKING:
    import llguidance

    from deepwell.lm.weights.tokenizer import Tokenizer

_KEPT = 32
"""Compiled grammars that are kept for the next request with the same one."""


class Grammar:
    """A ``Constraint``: one answer on its way through a grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, digits: _Digits | None = None) -> None:
        """``digits``: the answer is JSON, and its numbers are to have an end."""
        self._matcher = matcher
        self._digits = digits
        self._count = DigitCount()
        self._ended = False

    @property
    def done(self) -> bool:
        """Whether the answer is whole, and nothing may follow."""
        return self._ended or (self._matcher.is_stopped() and not self._matcher.is_error())

    @property
    def forced(self) -> list[int]:
        """Tokens that the grammar leaves no choice about, such as a key and its quotes."""
        return [] if self.done else self._matcher.compute_ff_tokens()

    def restrict(self, logits: Tensor) -> Tensor:
        """Logits [V] with -inf for every token that would leave the grammar; the model's end tokens where it may end.

        Raises:
            DeepwellError: The grammar has grown too large to follow.
        """
        allowed = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
        self._check()
        if self._digits is not None and self._count.left < self._digits.most:
            fitting = allowed * (self._digits.leading <= self._count.left)
            allowed = fitting if fitting.any() else allowed
        return logits.masked_fill(allowed[: len(logits)].to(logits.device) == 0, -math.inf)

    def accept(self, token: int) -> None:
        """Go on behind a token that was chosen.

        Raises:
            DeepwellError: The token is not one that may come.
        """
        self._matcher.consume_token(token)
        self._check()
        if self._digits is not None:
            self._count.push(self._digits.tokenizer.token_bytes(token))

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = " ".join(self._matcher.get_error().split("<backtrace>")[0].split())[:300]
            raise DeepwellError(f"the answer's grammar cannot be followed: {reason}", hint="Simplify the schema.")


class _Digits:
    """With how many digits each token of a vocabulary begins."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        pieces = (tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size))
        self.leading = torch.tensor([leading_digits(piece) for piece in pieces])
        self.most = int(self.leading.max())


class Grammars:
    """The grammars of one model: made once from its vocabulary, and asked for each answer's, by any thread."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """The vocabulary is handed over when the first grammar is asked for, which takes a moment."""
        self._tokenizer = tokenizer
        self._vocabulary: llguidance.LLTokenizer | None = None
        self._made: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()
        self._lock = Lock()
        self._digits: _Digits | None = None

    def of_text(self, source: str) -> Grammar:
        """The grammar of a text in llguidance's dialect of Lark, as ``SamplingParams.grammar`` has it."""
        grammar = self.begin(SamplingParams(grammar=source))
        assert grammar is not None
        return grammar

    def begin(self, params: SamplingParams) -> Grammar | None:
        """The grammar of a new answer; None if it may have any form.

        Raises:
            UsageError: The schema or expression is wrong, cannot be satisfied, or uses what is not known here.
            MissingExtraError: llguidance is not installed.
        """
        if not params.constrained:
            return None
        try:
            import llguidance
        except ImportError as error:
            raise MissingExtraError(
                "structured answers need llguidance", hint="Run: pip install 'deepwell[lm]'"
            ) from error
        if params.json_schema is not None:
            what, form = "json_schema", json.dumps(sound(params.json_schema), ensure_ascii=False)
            source = llguidance.LLMatcher.grammar_from_json_schema(
                form, overrides={"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
            )
        elif params.regex is not None:
            what, source = "regex", llguidance.LLMatcher.grammar_from_regex(params.regex)
        elif params.grammar is not None:
            what, source = "grammar", llguidance.LLMatcher.grammar_from_lark(params.grammar)
        else:
            one_of = "|".join(_literally(text) for text in params.choice or ())
            what, source = "choice", llguidance.LLMatcher.grammar_from_regex(one_of)
        is_json = what == "json_schema" or "%json" in (params.grammar or "")
        with self._lock:
            matcher = self._compiled(what, source).deep_copy()
            if is_json and self._digits is None:
                self._digits = _Digits(self._tokenizer)
            return Grammar(matcher, self._digits if is_json else None)

    def _compiled(self, what: str, source: str) -> llguidance.LLMatcher:
        import llguidance

        matcher = self._made.get(source)
        if matcher is None:
            limits = llguidance.LLParserLimits(verbose_errors=False)
            matcher = llguidance.LLMatcher(self._tokens(), source, log_level=0, limits=limits)
            if matcher.is_error():
                reason = matcher.get_error().split("<backtrace>")[0].strip()
                raise UsageError(f"the {what} cannot be kept: {reason}", hint="Change it, or ask for it in words.")
            if not any(matcher.compute_logit_bias()):
                raise UsageError(f"no text can satisfy the {what}", hint="Change it.")
            self._made[source] = matcher
            if len(self._made) > _KEPT:
                self._made.popitem(last=False)
        self._made.move_to_end(source)
        return matcher

    def _tokens(self) -> llguidance.LLTokenizer:
        if self._vocabulary is None:
            import llguidance

            ends = list(self._tokenizer.eos_token_ids)
            if not ends:
                raise UsageError("the model has no token that ends an answer, so none can be held to a form")
            wrapper = llguidance.TokenizerWrapper(_Vocabulary(self._tokenizer))
            self._vocabulary = llguidance.LLTokenizer(wrapper, n_vocab=self._tokenizer.vocab_size, eos_token=ends)
        return self._vocabulary


class _Vocabulary:
    """A tokenizer as llguidance asks for one. A token that begins with the byte FF never stands for text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        size = range(tokenizer.vocab_size)
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.eos_token_ids[0]
        self.bos_token_id = tokenizer.bos_token_id
        self.special_token_ids = [token for token in size if tokenizer.is_control(token)]
        special = frozenset(self.special_token_ids)
        self.tokens = [
            b"\xff" + tokenizer.token_bytes(token) if token in special else tokenizer.token_bytes(token)
            for token in size
        ]

    def __call__(self, text: str | bytes) -> list[int]:
        # Where only one text can follow, its own tokens are the ones that may come. They follow other text, so a space
        # that the encoder puts before a text would be wrong, and so would what it makes of letters to normalise them.
        wanted = text if isinstance(text, bytes) else text.encode()
        with suppress(ModelFormatError, UnicodeDecodeError):
            return spelled(self._tokenizer, wanted.decode(), specials=False)
        return list(self._longest(wanted))

    def _longest(self, wanted: bytes) -> Iterator[int]:
        """Tokens for some bytes, each as long as it can be, as far as the vocabulary reaches."""
        ids = {piece: token for token, piece in enumerate(self.tokens) if piece}
        longest = max(map(len, ids), default=0)
        while wanted:
            ends = range(min(longest, len(wanted)), 0, -1)
            end = next((end for end in ends if wanted[:end] in ids), None)
            if end is None:
                return
            yield ids[wanted[:end]]
            wanted = wanted[end:]


def _literally(text: str) -> str:
    """A regular expression that matches this text alone."""
    return "".join(letter if letter.isalnum() else f"\\x{{{ord(letter):x}}}" for letter in text)
