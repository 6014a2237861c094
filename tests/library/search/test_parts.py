"""The pieces of a search by themselves: terms, BM25, completion, fusing, feedback."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepwell.library.search import feedback, fuse, neighbours
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
    assert intent.literals == {"boundary layer": 1.0, "config.yaml": 1.0, "b-1207": 1.0}
    assert "what" not in intent.terms
    assert "the" in understand("the").terms
    assert not understand("10-20 of 3.14 and/or").literals
    assert not understand("in the 1960s, i.e. the 3rd U.S. census of 200m people").literals


def test_a_quoted_word_in_a_long_description_is_meant_little():
    assert understand('"force majeure"').literals == {"force majeure": 1.0}
    long = understand('how "virtual" storage is managed by paging when several programs share one computer memory')
    assert 0 < long.literals["virtual"] < 0.3


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


def test_words_are_believed_by_what_their_best_passage_holds():
    assert fuse.trust(0.1, 1) < 0.5
    assert fuse.trust(1.0, 1) == 1.0  # one word, and it is there
    assert fuse.trust(0.15, 6) == 1.0  # six words of a long description


def test_likes_lend_each_other_score():
    likeness = np.array([[1, 0.9, 0, 0], [0.9, 1, 0, 0], [0, 0, 1, 0.1], [0, 0, 0.1, 1]], np.float32)
    scores = np.array([1.0, 0.2, 0.6, 0.6], np.float32)
    mixed = neighbours.smoothed(scores, likeness)
    assert mixed[1] > 0.2 and mixed[0] < 1.0
    np.testing.assert_allclose(mixed[2:], 0.6, rtol=1e-6)
    assert mixed.min() >= scores.min() and mixed.max() <= scores.max()
    alone = np.zeros((4, 4), np.float32)
    np.testing.assert_array_equal(neighbours.smoothed(scores, alone), scores)
    np.testing.assert_array_equal(neighbours.smoothed(scores[:1], alone[:1, :1]), scores[:1])


def test_likeness_of_words_is_the_cosine_of_bm25_weights():
    index = WordIndex.build([("a", "red fox runs"), ("b", "red fox runs"), ("c", "the blue fox"), ("d", "the owl")])
    found = neighbours.likeness_of_words(index, np.arange(4))
    np.testing.assert_allclose(found[0, 1], 1.0, rtol=1e-5)
    assert 0 < found[0, 2] < 0.6
    assert found[2, 3] == 0  # they share a stop word only
    both = neighbours.likeness(np.full((4, 2), np.nan, np.float32), index, np.arange(4))
    np.testing.assert_allclose(both, found)
    assert neighbours.likeness(None, None, None) is None


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
