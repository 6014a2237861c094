"""The nouns check themselves where they are made, and survive the way to JSON and back."""

import json
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepwell.errors import DeepwellError, MissingModelError, UsageError
from deepwell.library.records import (
    Box,
    Document,
    Filters,
    Hit,
    Place,
    Query,
    Results,
    to_json,
)

fractions = st.floats(0, 1)
boxes = st.builds(
    lambda a, b, c, d: Box(min(a, b), min(c, d), max(a, b), max(c, d)), fractions, fractions, fractions, fractions
)
pairs = st.tuples(st.integers(1, 10**6), st.integers(1, 10**6))
seconds = st.floats(0, 1e6)
places = st.builds(
    Place,
    page=st.none() | st.integers(1, 9999),
    boxes=st.lists(boxes, max_size=3).map(tuple),
    start=st.none() | seconds,
    end=st.none() | seconds,
    rows=st.none() | pairs,
    lines=st.none() | pairs,
    section=st.lists(st.text(), max_size=3).map(tuple),
)


@given(places)
def test_a_place_survives_json(place: Place) -> None:
    assert Place.from_json(json.loads(json.dumps(to_json(place)))) == place


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (Place(), ""),
        (Place(page=3), "page 3"),
        (Place(start=12.9, end=61), "0:12–1:01"),
        (Place(start=3725), "1:02:05"),
        (Place(rows=(5, 20), section=("Sales",)), "rows 5–20, Sales"),
        (Place(lines=(1, 2), section=("Guide", "Setup")), "lines 1–2, Guide › Setup"),
    ],
)
def test_a_place_reads_well(place: Place, words: str) -> None:
    assert place.describe() == words


def test_a_box_has_its_corners_in_order() -> None:
    with pytest.raises(ValueError, match="out of order"):
        Box(0.5, 0, 0.4, 1)


def test_an_unknown_kind_is_refused_where_it_is_made() -> None:
    with pytest.raises(ValueError, match="unknown kind 'film'"):
        Document("film", "x", ())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="unknown kind 'film'"):
        Filters(kinds=("film",))  # type: ignore[arg-type]


@pytest.mark.parametrize("query", [{}, {"text": "  "}, {"text": "a", "limit": 0}, {"text": "a", "limit": 1001}])
def test_a_query_that_makes_no_sense_is_a_usage_error(query: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Query(**query)  # type: ignore[arg-type]


def test_an_empty_time_range_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="empty"):
        Filters(since=2.0, until=2.0)


def test_filters_are_true_only_when_they_filter() -> None:
    assert not Filters()
    assert Filters(kinds=("pdf",))
    assert Filters(since=0.0)
    assert Filters(where={"author": "x"})


def test_results_are_a_sequence_of_hits() -> None:
    hit = Hit("d", "p-0", "/a.txt", "text", "words", Place(), 0.5, {"words": 1.0})
    results = Results(Query(text="a"), (hit,), 1.5)
    assert list(results) == [hit]
    assert results[0] is hit
    assert len(results) == 1


def test_numbers_that_json_lacks_become_null() -> None:
    assert to_json({"a": math.nan, "b": [math.inf], "c": (1.5, "x")}) == {"a": None, "b": [None], "c": [1.5, "x"]}


def test_errors_cross_process_borders_whole() -> None:
    error = pickle.loads(pickle.dumps(MissingModelError("no model", hint="Run: x")))
    assert isinstance(error, MissingModelError)
    assert (error.message, error.hint, str(error)) == ("no model", "Run: x", "no model\n  Run: x")


def test_every_error_has_a_code_of_its_own() -> None:
    classes = DeepwellError.__subclasses__()
    codes = [cls.code for cls in (DeepwellError, *classes)]
    assert len(set(codes)) == len(codes)
    assert UsageError.exit_code == 2
