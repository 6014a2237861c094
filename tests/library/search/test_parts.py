"""The pieces of a search by themselves: terms, BM25, completion, fusing, feedback."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepwell.library.search import feedback, fuse
from deepwell.library.search.pool import index_pool
from deepwell.library.search.tokens import terms
from deepwell.library.search.understand import understand
from deepwell.library.search.wordindex import K1, B, WordIndex


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cats are running", ["the", "cat", "are", "run"]),
        ("getUserName()", ["getusernam", "get", "name", "user"]),
        ("ERR_CONN_17", ["err_conn_17", "17", "conn", "err"]),
        ("北京大学", ["北京", "京大", "大学"]),
        ("猫", ["猫"]),
        ("Python入門", ["python", "入門"]),
        ("Müller", ["muller"]),
    ],
)
def test_terms(text, expected):
    assert terms(text) == expected


@given(st.text(max_size=80))
@settings(max_examples=200, deadline=None)
def test_any_text_can_be_searched_and_indexed(text):
    index = WordIndex.build([("a", text), ("b", "something else")])
    intent = understand(text)
    scores = index.scores(intent.terms)
    assert scores.shape == (2,)
    assert np.isfinite(scores).all()
    if intent.terms and scores.max() > 0:
        assert scores[0] >= scores[1] or set(terms("something else")) & set(intent.terms)


def test_understanding():
    intent = understand('What does "boundary  layer" mean in config.yaml of well-known B-1207?')
    assert intent.literals == ("boundary layer", "config.yaml", "b-1207")
    assert "what" not in intent.terms
    assert "the" in understand("the").terms
    assert understand("10-20 of 3.14 and/or").literals == ()


def test_bm25_against_the_formula():
    texts = ["red fox red", "lazy dog", "red dog sleeps long today"]
    index = WordIndex.build(zip("abc", texts, strict=True))
    mean = (3 + 2 + 5) / 3
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    tf = 2
    expected = 1.5 * idf * tf * (K1 + 1) / (tf + K1 * (1 - B + B * 3 / mean))
    assert index.scores({"red": 1.5})[0] == pytest.approx(expected, rel=1e-5)
    assert index.scores({"red": 1.5})[1] == 0
    assert index.scores({"absent": 1.0}).tolist() == [0, 0, 0]


def test_extending_equals_building():
    texts = {f"p{k}": f"word{k % 7} word{k % 3} common" for k in range(30)}
    old = WordIndex.build((i, t) for i, t in texts.items() if i != "p29")
    keep = [i for i in texts if i not in ("p3", "p29")]
    new = old.extended([("p29", texts["p29"])], keep)
    fresh = WordIndex.build((i, texts[i]) for i in [*keep, "p29"])
    query = {"word1": 1.0, "common": 0.5}
    assert new.ids == fresh.ids
    np.testing.assert_allclose(new.scores(query), fresh.scores(query), rtol=1e-6)
    assert len(old) == 29


def test_a_pool_learns_the_librarys_idf_from_the_stores_scores():
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{w}" for w in np.minimum(rng.zipf(1.5, 30), 400)) for _ in range(2000)]
    library = WordIndex.build((str(k), t) for k, t in enumerate(texts))
    query = {"w2": 1.0, "w17": 1.0, "w60": 1.0}
    scores = library.scores(query)
    first = np.argsort(-scores)[:60]
    matched = {str(k): float(scores[k]) for k in first}
    extra = [str(k) for k in range(40)]
    ids = list(dict.fromkeys([*matched, *extra]))
    pool = index_pool(ids, [texts[int(i)] for i in ids], query, matched, len(texts))
    completed = pool.scores(query)
    truth = scores[[int(i) for i in ids]]
    assert np.corrcoef(completed, truth)[0, 1] > 0.97


def test_surprise_sets_names_apart_from_prose():
    library = 3000
    rare = fuse.surprise(8.0, [1.0], [8.0])
    prose = fuse.surprise(20.0, [1.0] * 8, [3.0] * 8) / 8**0.5
    assert fuse.words_weight(prose, library) == 0.5
    assert fuse.words_weight(rare, library) > 0.8
    assert fuse.words_weight(1e9, library) == fuse.MOST


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=20))
def test_spread_out_keeps_order_and_range(values):
    scores = np.asarray(values, np.float32)
    spread = fuse.spread_out(scores)
    assert spread.min() >= 0
    assert spread.max() == 1
    order = np.argsort(scores, kind="stable")
    assert (np.diff(spread[order]) >= 0).all()


def test_a_candidate_an_arm_cannot_judge_is_judged_by_the_others():
    shares = {"words": np.array([1.0, 0.0], np.float32), "meaning": np.array([np.nan, 1.0], np.float32)}
    np.testing.assert_allclose(fuse.weighted(shares, {"words": 0.5, "meaning": 0.5}), [1.0, 0.5])


def test_modalities_are_measured_against_their_own_kind():
    cosines = np.array([0.6, 0.55], np.float32)
    level = fuse.standardised(cosines, np.array([0, 1], np.int8), {0: (0.1, 0.1), 1: (0.5, 0.05)})
    np.testing.assert_allclose(level, [5.0, 1.0], rtol=1e-5)


def test_feedback_takes_the_terms_that_examples_share():
    texts = [f"lift wing aileron author{name}" for name in "abcdef"] + [f"other thing{k}" for k in range(20)]
    index = WordIndex.build((str(k), t) for k, t in enumerate(texts))
    rows, scores = np.arange(6), np.linspace(1, 0.8, 6).astype(np.float32)
    wider = feedback.expanded_terms(index, {"lift": 2.0}, rows, scores)
    assert {"wing", "aileron"} <= wider.keys()
    assert not any(term.startswith("author") for term in wider)
    assert wider["lift"] >= 1.0
    assert sum(wider.values()) == pytest.approx(1 + feedback.TERM_SHARE)
    assert feedback.expanded_terms(index, {"lift": 2.0}, rows[:2], scores[:2]) == {"lift": 1.0}
    query = np.array([1.0, 0.0], np.float32)
    examples = np.array([[0.0, 1.0], [np.nan, np.nan]], np.float32)
    moved = feedback.moved_vector(query, examples, np.array([1.0, 1.0], np.float32))
    assert np.linalg.norm(moved) == pytest.approx(1.0)
    assert moved @ query == pytest.approx(1 / math.hypot(1, feedback.PULL))


def test_the_first_results_keep_their_places():
    scores = np.array([0.2, 0.9, 0.95, 0.1, 0.5], np.float32)
    feedback.keep_first(scores, np.array([3, 0]), np.array([0.8, 0.7], np.float32))
    assert np.argsort(-scores).tolist() == [3, 0, 2, 1, 4]
    assert scores.max() == pytest.approx(0.8)
