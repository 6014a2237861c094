"""What is equal or similar is found, what is not is not, and the measure is Jaccard's."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepwell.lm.training.data.duplicates import SIMILAR, WORDS, Duplicates, _bands, fingerprint, normalised


def jaccard(one: str, other: str) -> float:
    """By the definition, on the 5-grams themselves."""

    def grams(text: str) -> set[tuple[str, ...]]:
        said = normalised(text)
        size = max(min(WORDS, len(said)), 1)
        return {tuple(said[place : place + size]) for place in range(max(len(said) - size + 1, 0))}

    return len(grams(one) & grams(other)) / max(len(grams(one) | grams(other)), 1)


def found(first: str, second: str, *, near: bool = True) -> bool:
    with Duplicates(near=near) as duplicates:
        assert duplicates.compare(first)[1] == []
        duplicates.hold()
        return bool(duplicates.compare(second)[1])


@pytest.mark.parametrize("near", [False, True])
def test_case_and_white_space_make_no_difference(near: bool) -> None:
    assert found("The  well\nis deep", " the well is DEEP ", near=near)
    assert not found("the well is deep", "the well is dry", near=near)


def test_similar_texts_are_found_and_others_not(make_words: Callable[[int, int], str]) -> None:
    for seed in range(30):
        text = make_words(seed, 300)
        said = text.split()
        near = " ".join([*said[:100], "changed", *said[101:]])
        far = " ".join("changed" if place % 12 == 0 else word for place, word in enumerate(said))
        assert jaccard(text, near) > 0.9
        assert jaccard(text, far) < SIMILAR
        assert found(text, near)
        assert not found(text, near, near=False)
        assert not found(text, far)


@given(st.integers(0, 2**32), st.integers(20, 120), st.lists(st.integers(0, 119), max_size=6))
def test_what_is_found_is_similar_by_the_definition(seed: int, count: int, changed: list[int]) -> None:
    dice = np.random.default_rng(seed)
    said = [f"w{number}" for number in dice.integers(0, 60, size=count)]
    other = ["new" if place in changed else word for place, word in enumerate(said)]
    one, two = " ".join(said), " ".join(other)
    if found(one, two):
        assert jaccard(one, two) >= SIMILAR


def test_most_pairs_just_above_the_border_are_found(make_words: Callable[[int, int], str]) -> None:
    hits = tries = 0
    for seed in range(60):
        said = make_words(seed + 1000, 230).split()
        # One changed word in five grams of 226: five such make 201 of 251.
        other = ["changed" if place in {20, 60, 100, 140, 180} else word for place, word in enumerate(said)]
        one, two = " ".join(said), " ".join(other)
        if SIMILAR <= jaccard(one, two) < 0.82:
            tries += 1
            hits += found(one, two)
    assert tries > 20
    assert hits / tries > 0.95


def test_minima_agree_as_often_as_the_sets_are_similar() -> None:
    dice = np.random.default_rng(0)
    agree = []
    for _ in range(40):
        pool = np.unique(dice.integers(0, 2**32, size=1500, dtype=np.uint32))
        one, two = np.sort(pool[:1200]), np.sort(pool[300:])
        agree.append(np.mean(_bands(one) == _bands(two)))
    similarity = 900 / 1500
    assert np.mean(agree) == pytest.approx(similarity**6, abs=0.03)


def test_only_held_documents_are_compared_with(make_words: Callable[[int, int], str]) -> None:
    texts = [make_words(seed, 50) for seed in (1, 2)]
    with Duplicates() as duplicates:
        duplicates.compare(texts[0])
        duplicates.compare(texts[1])
        assert duplicates.hold() == 0
        assert duplicates.compare(texts[0])[1] == []
        assert duplicates.compare(texts[1])[1] == [0]


def test_fingerprints_do_not_change() -> None:
    # The split goes by them: another number would move documents from one side to the other.
    assert fingerprint(normalised("The well is  deep")) == 11179909164912679961
