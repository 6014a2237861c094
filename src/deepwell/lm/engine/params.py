"""How one answer is to be written: ``SamplingParams``, checked where it is made.

The order in which the settings act on the network's logits, and the papers that they are from:

    repetition, presence, frequency penalty    CTRL (Keskar et al. 2019, 4.1); OpenAI's API
    the grammar, or the end of the thoughts    tokens that may not come are taken out
    temperature                                0 takes the most probable token
    top_k, top_p, min_p                        Fan et al. 2018; Holtzman et al. 2020; Nguyen et al. 2024
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepwell.errors import UsageError

MOST_LOGPROBS = 20
"""Of other tokens that one may ask the log-probabilities of, as in OpenAI's API."""

LEAST_TEMPERATURE = 1e-5
"""Below it the most probable token has all the probability, but for float32 numbers that would overflow."""

MOST_STOPS = 64
"""Stop strings of one request; each is looked for in every piece of text."""

_FORMS = ("json_schema", "regex", "choice", "grammar")
"""Settings that give an answer its form."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one answer is written. Any number of requests may share one.

    Attributes:
        temperature: Logits are divided by it; 0 is greedy.
        top_p: The fewest tokens whose probabilities together reach it are kept; 1 keeps all.
        top_k: That many most probable tokens are kept; 0 keeps all. Tokens equal to the last one stay with it.
        min_p: Tokens are kept that have at least this share of the most probable one's probability.
        presence_penalty: Taken off the logit of each token that the answer has already.
        frequency_penalty: The same, times how often the answer has it.
        repetition_penalty: Divides a positive logit, and multiplies a negative one, of each token that the prompt or
            the answer has; 1 does nothing.
        seed: Draws are repeated by it, whatever else is computed at the same time; None: another one each time.
        stop: Texts that end the answer, and are not part of it. They are looked for in the answer, not in thoughts.
        max_tokens: At most that many are written, thoughts included.
        ignore_eos: Go on to ``max_tokens`` though the model ends its answer, as for measuring.
        logprobs: Give each token's log-probability, and that of as many of the most probable ones; None gives none.
        json_schema: The answer is JSON that satisfies this schema.
        regex: The whole answer matches this regular expression.
        choice: The answer is one of these texts.
        grammar: The answer follows this grammar, in llguidance's dialect of Lark.
        thinking: Ask for reasoning before the answer, or for none; None: as the model's template does by itself.
        thinking_budget: Tokens after which a thought is ended.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: Sequence[str] = ()
    max_tokens: int = 512
    ignore_eos: bool = False
    logprobs: int | None = None
    json_schema: Mapping[str, Any] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    thinking: bool | None = None
    thinking_budget: int | None = None

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            UsageError: One is of the wrong type or out of its range; the message names it.
        """
        _number("temperature", self.temperature, 0.0, 100.0)
        _number("top_p", self.top_p, 0.0, 1.0, above=True)
        _whole("top_k", self.top_k, 0)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, math.inf, above=True)
        _whole("max_tokens", self.max_tokens, 1)
        if self.seed is not None:
            _whole("seed", self.seed, -(2**63), 2**64 - 1)
        if self.logprobs is not None:
            _whole("logprobs", self.logprobs, 0, MOST_LOGPROBS)
        if self.thinking_budget is not None:
            _whole("thinking_budget", self.thinking_budget, 0)
        object.__setattr__(self, "stop", _stops(self.stop))
        self._check_form()

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is taken, so that no seed matters."""
        return self.temperature < LEAST_TEMPERATURE or self.top_k == 1

    @property
    def penalises(self) -> bool:
        """Whether logits depend on the tokens that came before."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def constrained(self) -> bool:
        """Whether the answer must have a form."""
        return any(getattr(self, name) is not None for name in _FORMS)

    def _check_form(self) -> None:
        if self.constrained and self.ignore_eos:
            raise UsageError("ignore_eos lets an answer go on behind the form that it must have", hint="Leave one out.")
        forms = [name for name in _FORMS if getattr(self, name) is not None]
        if len(forms) > 1:
            raise UsageError(f"{' and '.join(forms)} exclude each other", hint="Give one of them.")
        if self.json_schema is not None:
            if not isinstance(self.json_schema, Mapping):
                raise UsageError(
                    f"json_schema is {_shown(self.json_schema)}", hint='Give an object, as {"type": "object"}.'
                )
            try:
                json.dumps(self.json_schema, allow_nan=False)
            except (TypeError, ValueError, RecursionError) as error:
                raise UsageError(f"json_schema cannot be written as JSON: {error}") from error
        for name in ("regex", "grammar"):
            if not isinstance(getattr(self, name), str | None):
                raise UsageError(f"{name} is {_shown(getattr(self, name))}", hint="Give a text.")
        if self.choice is not None:
            given = () if isinstance(self.choice, str) else tuple(self.choice)
            if not given or not all(isinstance(one, str) and one for one in given):
                raise UsageError(f"choice is {_shown(self.choice)}", hint="Give a list of texts, none of them empty.")
            object.__setattr__(self, "choice", given)


def _stops(stop: object) -> tuple[str, ...]:
    given = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, Sequence) else (None,)
    if not all(isinstance(one, str) and one for one in given):
        raise UsageError(f"stop is {_shown(stop)}", hint="Give a text or a list of texts, none of them empty.")
    if len(given) > MOST_STOPS:
        raise UsageError(f"stop has {len(given)} texts; at most {MOST_STOPS} are looked for")
    return tuple(str(one) for one in given)


def _number(name: str, value: object, least: float, most: float, *, above: bool = False) -> None:
    """Raise unless ``value`` is a finite number from ``least`` (or above it) to ``most``."""
    ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if ok and isinstance(value, int | float) and (least < value if above else least <= value) and value <= most:
        return
    reach = f"{'above' if above else 'at least'} {least:g}" + ("" if math.isinf(most) else f" and at most {most:g}")
    raise UsageError(f"{name} is {_shown(value)}", hint=f"Use a number {reach}.")


def _whole(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raise unless ``value`` is a whole number from ``least`` to ``most``."""
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= (value if most is None else most):
        return
    reach = f"of {least} or more" if most is None else f"from {least} to {most}"
    raise UsageError(f"{name} is {_shown(value)}", hint=f"Use a whole number {reach}.")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
