"""One search, from a query to results: understand, retrieve, complete, fuse, look again, arrange.

    text ──> words arm ────┐
      └────> meaning arm ──┼─> candidates, each scored by every arm ─> fused ─┐
    picture > likeness arm ┘        ^                                         │ the first results
                                   └──── moved vector, more terms <──────────┘ become examples

``Searcher`` keeps encoders and an index of words loaded, so it answers many queries fast, and may be asked from
several threads at once.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from deepwell.errors import DeepwellError
from deepwell.library.protocols import ImageEncoder, Senses, TextEncoder
from deepwell.library.records import Filters, Kind, Label, Query, Results
from deepwell.library.search import feedback
from deepwell.library.search.arms import DEPTH, VectorArm, WordsArm
from deepwell.library.search.arrange import Ranking, Scored, arrange
from deepwell.library.search.confidence import Confidence, coverage
from deepwell.library.search.names import named
from deepwell.library.search.resident import MODALITIES, Resident
from deepwell.library.search.scoring import Pool, Scoring
from deepwell.library.search.understand import Intent, understand
from deepwell.threads import blas_on_free_cores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deepwell.library.search.wordindex import WordIndex
    from deepwell.library.store import Scope, Store

TEXT, IMAGE = "text", "image"


class Searcher:
    """Answers queries over a store.

    Args:
        store: Where passages and vectors are.
        text_encoder: Opens the encoder of space ``text``; called once, at the first query that needs it. May raise a
            ``DeepwellError`` (model not pulled): the search then goes by words and says so. None: no encoder.
        image_encoder: The same for space ``image``.
        senses: For recordings given as a query.
        labels: Vectors of labels in the text encoder's space (ConSE), for what is heard in them.
        feedback: Take the first results as examples and look again.
    """

    def __init__(
        self,
        store: Store,
        text_encoder: Callable[[], TextEncoder] | None = None,
        image_encoder: Callable[[], ImageEncoder] | None = None,
        senses: Senses | None = None,
        *,
        labels: Callable[[Sequence[Sequence[Label]], TextEncoder], NDArray[np.float32]] | None = None,
        feedback: bool = True,
    ) -> None:
        self._store = store
        self._openers: dict[str, Callable[[], TextEncoder | ImageEncoder] | None] = {
            TEXT: text_encoder,
            IMAGE: image_encoder,
        }
        self._encoders: dict[str, TextEncoder | ImageEncoder] = {}
        self._opening = Lock()
        self._senses = senses
        self._labels = labels
        self._feedback = feedback
        self._resident = Resident(store)
        self._scoring = Scoring(store, self._resident)
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="deepwell-search")

    def warm(self) -> None:
        """Load encoders and build the word index now, for a process that is about to answer many queries."""
        for space in (TEXT, IMAGE):
            self._encoder(space, [])
        self._resident.build()

    def close(self) -> None:
        """Let background work end. The searcher cannot be used afterwards."""
        self._threads.shutdown(wait=True)
        self._resident.close()

    def __enter__(self) -> Searcher:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def search(self, query: Query) -> Results:
        """The passages that fit the query best.

        Raises:
            DeepwellError: A picture or recording given as the query cannot be read, or nothing is here to read it.
        """
        started = time.perf_counter()
        notices: list[str] = []
        with blas_on_free_cores(), self._store.reading():
            self._resident.census(renew=True)
            scope = self._store.scope(query.filters)
            ranked = Ranking((), None)
            if scope is None or scope.contents:
                ranked = self._search(query, scope, notices)
            found = arrange(self._store, ranked, query, scope)
        took = (time.perf_counter() - started) * 1000
        return Results(query, found, took, tuple(dict.fromkeys(notices)))

    def confidence(self, results: Results, *, first: int = 5) -> Confidence:
        """How well the first hits fit their query in absolute terms; see ``confidence.py`` for what to make of it."""
        text, hits = results.query.text or "", results.hits[:first]
        index = self._resident.words()
        covered = coverage(text, [f"{hit.title}\n{hit.text}" for hit in hits], index.rarity if index else lambda _: 1.0)
        encoder = self._encoder(TEXT, []) if text.strip() and hits else None
        if not isinstance(encoder, TextEncoder):
            return Confidence(covered)
        vector = encoder.encode([text], query=True)[0]
        vectors = self._store.vectors(TEXT, [hit.passage_id for hit in hits])
        cosines = vectors @ vector if vectors.shape[1] == len(vector) else np.zeros(0, np.float32)
        cosines = cosines[np.isfinite(cosines)]
        if not len(cosines):
            return Confidence(covered)
        best_cosine = float(cosines.max())
        company = self._resident.background(TEXT, 0) @ vector
        far = (best_cosine - float(company.mean())) / max(float(company.std()), 1e-3) if len(company) >= 8 else None
        return Confidence(covered, best_cosine, far)

    # -- the steps -------------------------------------------------------------------------------------------------

    def _search(self, query: Query, scope: Scope | None, notices: list[str]) -> Ranking:
        said, heard = self._listen(query, notices)
        text = " ".join(part for part in (query.text or "", said) if part.strip())
        intent = understand(text)
        depth = max(DEPTH, 3 * query.limit)
        index = self._resident.words()
        words = self._words_arm(intent, index, scope)
        pending = None
        if words and words.index is not None:
            words.retrieve(self._store, depth, scope)  # a fraction of a millisecond: less than a thread's switch
        elif words:
            pending = self._threads.submit(words.retrieve, self._store, depth, scope)
        arms = self._vector_arms(query, text, heard, scope, notices)
        for arm in arms:
            arm.retrieve(self._store, depth)
        if pending is not None:
            pending.result()
        names = self._named(intent, scope)
        openings = [f"{content}-0" for content in names]
        pool = self._scoring.pool([words.found if words else (), *(arm.found for arm in arms), openings])
        if not pool.ids:
            return Ranking((), None)
        if words:
            self._scoring.complete_words(words, pool)
        self._scoring.score(pool, words, arms, intent)
        if words and arms and not names and "words" not in pool.shares:
            where = "the library" if scope is None else "the part of the library that was searched"
            notices.append(f"none of the words stands in {where}; these are the nearest in meaning")
        if self._feedback and len(pool.ids) > 1 and intent.text:
            pool = self._look_again(pool, words, arms, intent, depth)
        self._scoring.lift_named(pool, names)
        return self._ranked(pool, depth)

    def _named(self, intent: Intent, scope: Scope | None) -> dict[str, float]:
        found = named(self._store, intent)
        return found if scope is None else {c: fit for c, fit in found.items() if c in scope.contents}

    def _words_arm(self, intent: Intent, index: WordIndex | None, scope: Scope | None) -> WordsArm | None:
        if not intent.terms:
            return None
        allowed = self._resident.mask(index, scope) if index is not None and scope is not None else None
        return WordsArm(intent.terms, intent.match_text, index, allowed)

    def _vector_arms(
        self, query: Query, text: str, heard: Sequence[Label], scope: Scope | None, notices: list[str]
    ) -> list[VectorArm]:
        arms = []
        if text.strip() and (encoder := self._encoder(TEXT, notices)) and isinstance(encoder, TextEncoder):
            scopes = self._scopes(query.filters, scope)
            arms.append(VectorArm("meaning", TEXT, encoder.encode([text], query=True)[0], scopes=scopes))
        if (
            heard
            and self._labels is not None
            and (encoder := self._encoder(TEXT, notices))
            and isinstance(encoder, TextEncoder)
        ):
            arms.append(VectorArm("sound", TEXT, self._labels([heard], encoder)[0]))
        if (
            query.image is not None
            and (pictures := self._encoder(IMAGE, notices))
            and isinstance(pictures, ImageEncoder)
        ):
            vector = pictures.encode_images([query.image])[0]
            arms.append(VectorArm("likeness", IMAGE, vector, scopes=(scope,)))
        if text.strip() and self._store.active_encoder(IMAGE) is not None and self._openers[IMAGE] is not None:
            both = self._encoder(IMAGE, [])
            if isinstance(both, TextEncoder):
                arms.append(VectorArm("sight", IMAGE, both.encode([text], query=True)[0], scopes=(scope,)))
        for arm in arms:
            if arm.name == "sound":
                arm.scopes = (scope,)
        self._tell_progress(notices, {arm.space for arm in arms})
        return arms

    def _scopes(self, filters: Filters, scope: Scope | None) -> tuple[Scope | None, ...]:
        """The whole scope, and pictures and sounds by themselves where the library has them among other things."""
        census = self._resident.census()
        scopes: list[Scope | None] = [scope]
        if not census.count(0):
            return tuple(scopes)
        for number, name in enumerate(MODALITIES):
            if number and census.count(number) and (not filters.kinds or name in filters.kinds):
                kind: Kind = "image" if name == "image" else "audio"
                scopes.append(self._store.scope(dataclasses.replace(filters, kinds=(kind,))))
        return tuple(scopes)

    def _look_again(
        self, pool: Pool, words: WordsArm | None, arms: list[VectorArm], intent: Intent, depth: int
    ) -> Pool:
        order = np.argsort(-pool.score, kind="stable")
        more: list[str] = []
        meaning = next((arm for arm in arms if arm.name == "meaning"), None)
        if meaning is not None:
            first = order[: feedback.EXAMPLES]
            examples = self._store.vectors(TEXT, [pool.ids[row] for row in first])
            meaning.vector = feedback.moved_vector(meaning.vector, examples, pool.score[first])
            before = set(meaning.found)
            meaning.retrieve(self._store, depth)
            more += [i for i in meaning.found if i not in before]
        # Where none of the query's own words stands, words taken from the nearest in meaning would be shown as its own.
        if words is not None and words.index is not None and "words" in pool.shares:
            first = order[: feedback.TERM_EXAMPLES]
            rows = np.asarray([words.index.rows.get(pool.ids[row], -1) for row in first], dtype=np.int64)
            here = rows >= 0
            words.terms = feedback.expanded_terms(words.index, words.terms, rows[here], pool.score[first][here])
            if words.match_text and len(words.index) == len(self._resident.census().ids):
                more += words.best(depth)
        wider = self._widened(pool, more) if more else pool
        if wider is not pool and words is not None and words.index is not None:
            self._index_more(words, wider, intent)
        self._scoring.score(wider, words, arms, intent, smooth=True)
        first = order[: feedback.KEPT]
        kept = np.asarray([wider.rows[pool.ids[row]] for row in first], dtype=np.int64)
        feedback.keep_first(wider.score, kept, pool.score[first])
        return wider

    def _widened(self, pool: Pool, more: Sequence[str]) -> Pool:
        wider = self._scoring.pool([pool.ids, more])
        led = dict(zip(pool.ids, pool.leading, strict=True))
        wider.leading = np.fromiter((led.get(i, True) for i in wider.ids), dtype=bool, count=len(wider.ids))
        return wider

    def _index_more(self, words: WordsArm, pool: Pool, intent: Intent) -> None:
        """Count passages that joined the candidates, when the index holds candidates only."""
        assert words.index is not None
        missing = [i for i in pool.ids if i not in words.index.rows]
        if missing:
            terms = words.terms
            words.terms, words.index = intent.terms, None
            self._scoring.complete_words(words, pool)
            words.terms = terms

    def _ranked(self, pool: Pool, limit: int) -> Ranking:
        order = np.argsort(-pool.score, kind="stable")[:limit]
        ids = [pool.ids[row] for row in order]
        places = dict(zip(ids, order.tolist(), strict=True))

        def explain(passage_id: str) -> Scored:
            row = places[passage_id]
            return Scored(
                passage_id,
                float(pool.score[row]),
                {name: float(share[row]) for name, share in pool.shares.items() if share[row] > 0},
                {name: float(raw[row]) for name, raw in pool.raw.items() if np.isfinite(raw[row])},
            )

        return Ranking(ids, explain)

    # -- what is at hand -------------------------------------------------------------------------------------------

    def _encoder(self, space: str, notices: list[str]) -> TextEncoder | ImageEncoder | None:
        opener = self._openers[space]
        if opener is None:
            return None
        encoder = self._encoders.get(space)
        if encoder is None:
            with self._opening:
                encoder = self._encoders.get(space)
                if encoder is None:
                    try:
                        encoder = self._encoders[space] = opener()
                    except DeepwellError as error:
                        notices.append(f"words only: {error.message}" + (f"; {error.hint}" if error.hint else ""))
                        return None
        return encoder

    def _tell_progress(self, notices: list[str], spaces: set[str]) -> None:
        for space in self._store.spaces():
            if space.active and space.space in spaces and space.done < space.total:
                waiting = f"{space.total - space.done} of {space.total} passages"
                notices.append(f"vectors for {waiting} are still to come ({space.space})")

    def _listen(self, query: Query, notices: list[str]) -> tuple[str, list[Label]]:
        """What is said in a recording given as the query, and what else is heard in it."""
        if query.audio is None or self._senses is None:
            return "", []
        heard: list[Label] = []
        said, failure = "", None
        try:
            said = " ".join(u.text for u in self._senses.transcribe(query.audio).utterances).strip()
        except DeepwellError as error:
            failure = error
        try:
            totals: dict[str, float] = {}
            for tag in self._senses.sounds(query.audio):
                for label in tag.labels:
                    totals[label.name] = totals.get(label.name, 0.0) + label.score * (tag.end - tag.start)
            heard = [Label(name, total) for name, total in sorted(totals.items(), key=lambda pair: -pair[1])[:5]]
        except DeepwellError as error:
            if failure is not None:
                raise failure from error
            notices.append(f"sounds other than speech were not compared: {error.message}")
        if failure is not None:
            notices.append(f"speech in the recording was not understood: {failure.message}; {failure.hint}")
        return said, heard
