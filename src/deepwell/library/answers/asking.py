"""From a question to an answer whose every sentence is cited, in the order of the steps:

    gather   search, take the best passages, each once                          gather.py
    judge    is that enough to answer from? if not: "not found"                  evidence.py
    write    a language model, or sentences copied without one                   prompt.py, extractive.py
    check    quotes word for word, numbers, sources; what fails goes             claims.py, verify.py
    fall back  a model that leaves nothing checkable is replaced by the copied sentences, and a notice says so

Reasoning is streamed as it comes. The answer's words are streamed only when they have been checked, so that nothing
unchecked is ever on the screen; ``draft=True`` shows them as they are written, for people who would rather watch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from deepwell.errors import UsageError
from deepwell.library.answers import claims, prompt
from deepwell.library.answers.evidence import Strength, judge
from deepwell.library.answers.extractive import Extractive
from deepwell.library.answers.gather import Gathered, Search, gather
from deepwell.library.answers.guard import visible
from deepwell.library.answers.places import narrow
from deepwell.library.answers.ranking import Remembering, rank
from deepwell.library.protocols import ChatModel, Delta, TextEncoder
from deepwell.library.records import Answer, Citation, Filters

NOT_FOUND = "Not found in the library."


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is read and written for one answer.

    Attributes:
        passages: Shown to the model, at most.
        evidence_tokens: About how many tokens those may have together.
        answer_tokens: That a language model may write, its reasoning included.
        threshold: Least strength of evidence to answer from (0 answers always, 1 hardly ever); None: the measured one.
    """

    passages: int = 8
    evidence_tokens: int = 2400
    answer_tokens: int = 1024
    threshold: float | None = None

    def __post_init__(self) -> None:
        for name in ("passages", "evidence_tokens", "answer_tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}", hint="Use 1 or more.")


def ask(
    question: str,
    search: Search,
    model: ChatModel | None = None,
    *,
    encoder: TextEncoder | None = None,
    filters: Filters | None = None,
    limits: Limits | None = None,
) -> Answer:
    """Answer ``question`` from what ``search`` finds.

    Args:
        question: In the person's words.
        search: Finds hits for a query, best first.
        model: Writes the answer; None copies the best sentences.
        encoder: Compares meanings of sentences; without it words decide.
        filters: Which documents may answer.
        limits: How much to read and write.

    Returns:
        The answer. Every sentence of its text is cited and every quote stands word for word in its passage; or it
        abstains.

    Raises:
        UsageError: The question is empty.
        ChatError: The model cannot be reached or refuses.
    """
    for piece in ask_stream(question, search, model, encoder=encoder, filters=filters, limits=limits):
        if isinstance(piece, Answer):
            return piece
    raise AssertionError("a stream ends with its answer")


def ask_stream(
    question: str,
    search: Search,
    model: ChatModel | None = None,
    *,
    encoder: TextEncoder | None = None,
    filters: Filters | None = None,
    limits: Limits | None = None,
    draft: bool = False,
) -> Iterator[Delta | Answer]:
    """As ``ask``, giving deltas while they come and the ``Answer`` last.

    With ``draft`` the model's own words are streamed as they are written, unchecked; the answer at the end replaces
    them. Without it, text is streamed once, when it has been checked. Reasoning is always streamed at once.
    """
    began = time.perf_counter()
    if not question.strip():
        raise UsageError("the question is empty", hint='Ask in words: deepwell ask "When was the bridge opened?"')
    limits = limits or Limits()
    if isinstance(model, Extractive):
        encoder = encoder if encoder is not None else model.encoder
    encoder = Remembering(encoder) if encoder is not None else None
    copier = Extractive(encoder)
    writer = copier if model is None or isinstance(model, Extractive) else model
    gathered = gather(
        question, search, filters=filters or Filters(), tokens=limits.evidence_tokens, most=limits.passages
    )
    ranked = rank(question, gathered.evidence, encoder)
    strength = judge(question, gathered.evidence, gathered.found, ranked, threshold=limits.threshold)

    def took() -> float:
        return (time.perf_counter() - began) * 1000

    if not strength.enough:
        yield _abstain(question, gathered, strength, writer.name, took())
        return
    asked = prompt.build(question, gathered.evidence)
    reasoning, written = "", ""
    for delta in writer.chat(asked.messages, max_tokens=limits.answer_tokens):
        delta = Delta(visible(delta.text), visible(delta.reasoning))
        reasoning += delta.reasoning
        written += delta.text
        shown = delta if draft else Delta(reasoning=delta.reasoning)
        if (shown.text or shown.reasoning) and asked.key not in written:
            yield shown
    reply = prompt.parse(written)
    if reply.not_found:
        yield _abstain(question, gathered, strength, writer.name, took(), reasoning)
        return
    notices: list[str] = []
    if asked.key in written:
        checked = None
        notices.append(f"{writer.name} repeated its instructions, as it may do when a document orders it to.")
    else:
        checked = claims.check(reply, question, gathered.passages)
    name, dropped = writer.name, checked.dropped if checked is not None else len(reply.quotes)
    if (checked is None or not checked.text) and writer is not copier:
        why = "wrote no answer" if not written.strip() else "gave no source that stands in the library"
        notices.append(f"{writer.name} {why}; these are sentences copied from the library instead.")
        copied = "".join(visible(delta.text) for delta in copier.chat(asked.messages))
        checked = claims.check(prompt.parse(copied), question, gathered.passages)
        name = Extractive.name
    elif checked is not None:
        notices += _what_was_changed(checked)
    if checked is None or not checked.text:
        yield _abstain(question, gathered, strength, writer.name, took(), reasoning, dropped, notices)
        return
    if not draft:
        yield Delta(text=checked.text)
    yield Answer(
        question=question,
        text=checked.text,
        reasoning=reasoning.strip(),
        citations=_citations(checked, gathered),
        abstained=False,
        model=name,
        took_ms=took(),
        dropped=dropped,
        notices=(*gathered.notices, *notices),
    )


def _citations(checked: claims.Checked, gathered: Gathered) -> tuple[Citation, ...]:
    made = []
    for n, quote in enumerate(checked.quotes, 1):
        hit = gathered.hits[quote.n - 1]
        place = narrow(hit.place, hit.text, quote.spans)
        made.append(Citation(n, quote.text, hit.path, place, True, hit.document_id, hit.passage_id))
    return tuple(made)


def _what_was_changed(checked: claims.Checked) -> list[str]:
    notices = []
    if checked.dropped:
        notices.append(f"{_count(checked.dropped, 'source')} could not be confirmed word for word; taken out.")
    if checked.moved:
        notices.append(f"{_count(checked.moved, 'quote')} stood in another passage than the one named; put right.")
    if checked.left_out:
        notices.append(f"{_count(checked.left_out, 'sentence')} without a source in the library; left out.")
    return notices


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _abstain(
    question: str,
    gathered: Gathered,
    strength: Strength,
    model: str,
    took_ms: float,
    reasoning: str = "",
    dropped: int = 0,
    notices: list[str] | None = None,
) -> Answer:
    """Say that it is not there, which words were missing, and where one might look nearest."""
    told = list(notices or ())
    if strength.missing:
        told.append(f"Nothing found speaks of: {', '.join(_spelled(question, strength.missing))}.")
    if gathered.hits:
        nearest = gathered.hits[0]
        where = nearest.place.describe()
        told.append(f"Nearest: {nearest.path}{f', {where}' if where else ''}.")
    return Answer(
        question=question,
        text=NOT_FOUND,
        reasoning=reasoning.strip(),
        citations=(),
        abstained=True,
        model=model,
        took_ms=took_ms,
        dropped=dropped,
        notices=(*gathered.notices, *told),
    )


def _spelled(question: str, missing: tuple[str, ...]) -> list[str]:
    """Stems as the person wrote the words."""
    from deepwell.library.answers.words import terms

    written = [word.strip("?!.,;:\"'()") for word in question.split()]
    return [next((word for word in written if term in terms(word)), term) for term in missing]
