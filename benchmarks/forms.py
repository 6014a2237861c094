"""Answers held to a form: what a grammar costs, and what it gives back by knowing what must come.

    python benchmarks/forms.py [--model smollm2-135m-instruct] [--precision auto] [--rounds 5] [--tokens 200]

Each form is asked for, greedily, with the engine's guesses and without; the answers are the same. Printed are the
answer's tokens, the steps that they took, seconds from the question to the end (median of the rounds; the prompt is in
the cache), and milliseconds to make the form's grammar for the first time and again. "free" is an answer without a
form; the last row is 8 requests of one form at once.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

from deepwell import Model
from deepwell.lm import SamplingParams
from deepwell.lm.engine.grammar import Grammars


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
    }  # fmt: skip


_TEXT = {"type": "string", "maxLength": 24}
PERSON = _object(
    name=_TEXT, occupation={"enum": ["engineer", "teacher", "farmer", "physician"]},
    address=_object(street=_TEXT, postal_code={"type": "string", "pattern": "^[0-9]{5}$"}, country=_TEXT),
    is_customer={"type": "boolean"}, year_of_birth={"type": "integer", "minimum": 1900, "maximum": 2020},
)  # fmt: skip
INVOICE = _object(
    number={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"}, currency={"enum": ["EUR", "USD", "CHF"]},
    items={"type": "array", "minItems": 2, "maxItems": 2, "items": _object(what=_TEXT, amount={"type": "number"})},
)  # fmt: skip
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "person": ("Describe a person as JSON.", {"json_schema": PERSON}),
    "invoice": ("Write an invoice as JSON.", {"json_schema": INVOICE}),
    "yes or no": ("Is water wet?", {"choice": ["yes", "no"]}),
    "date": (
        "When did the first human walk on the moon? Answer as YYYY-MM-DD.",
        {"regex": "[0-9]{4}-[0-9]{2}-[0-9]{2}"},
    ),
}


def _answers(model: Model, asked: str, params: SamplingParams, copies: int) -> list[list[int]]:
    requests = [model.begin([{"role": "user", "content": asked}], params) for _ in range(copies)]
    return [request.result().tokens for request in requests]


def _grammar_ms(model: Model, params: SamplingParams) -> str:
    """Milliseconds of a form that is new, and of one that was asked for before."""
    grammars = Grammars(model.tokenizer)
    grammars.begin(SamplingParams(choice=["-"]))  # the vocabulary is handed over once a model
    made = []
    for _ in range(2):
        began = time.perf_counter()
        grammars.begin(params)
        made.append(1000 * (time.perf_counter() - began))
    return " / ".join(f"{one:.1f}" for one in made)


def _row(
    models: Sequence[Model], asked: str, form: dict[str, Any], rounds: int, most: int, copies: int = 1
) -> list[object]:
    params = SamplingParams(temperature=0, max_tokens=most, ignore_eos=not form, **form)
    seconds: list[float] = []
    steps: list[int] = []
    answers: list[list[list[int]]] = []
    for model in models:
        answers.append(_answers(model, asked, params, copies))
        times = []
        for _ in range(rounds):
            before, began = model.engine.counters.steps, time.perf_counter()
            _answers(model, asked, params, copies)
            times.append(time.perf_counter() - began)
        steps.append(model.engine.counters.steps - before)
        seconds.append(statistics.median(times))
    count = sum(map(len, answers[0]))
    speeds = [f"{one:.3f} s, {count / one:.0f}" for one in seconds]
    same = "yes" if answers[0] == answers[1] else "NO"
    return [count, *steps, *speeds, same, _grammar_ms(models[0], params) if form else "-"]


def main() -> None:
    """Measure and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default="smollm2-135m-instruct")
    arguments.add_argument("--precision", default="auto")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--tokens", type=int, default=200)
    given = arguments.parse_args()
    models = [Model.load(given.model, precision=given.precision, speculate=guesses) for guesses in (True, False)]
    print("| form | tokens | steps | without | time, tokens/s | without | same | grammar ms, new / again |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (asked, form) in FORMS.items():
        print("|", name, "|", *(f"{cell} |" for cell in _row(models, asked, form, given.rounds, given.tokens)))
    asked, form = FORMS["person"]
    print("| free |", *(f"{cell} |" for cell in _row(models, asked, {}, given.rounds, 80)))
    print("| person, 8 |", *(f"{cell} |" for cell in _row(models, asked, form, given.rounds, given.tokens, copies=8)))


if __name__ == "__main__":
    main()
