"""Dates as people write them."""

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepwell.cli.times import parse_span
from deepwell.errors import UsageError

NOW = datetime(2024, 3, 9, 21, 40, tzinfo=timezone(timedelta(hours=2)))
DAY = 86400


def local(*parts: int) -> float:
    return datetime(*parts).timestamp()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("2024", (local(2024, 1, 1), local(2025, 1, 1))),
        ("2024-02", (local(2024, 2, 1), local(2024, 3, 1))),
        ("2023-12", (local(2023, 12, 1), local(2024, 1, 1))),
        ("2024-02-29", (local(2024, 2, 29), local(2024, 3, 1))),
        ("2024-03-09T21:40", (local(2024, 3, 9, 21, 40),) * 2),
        ("2024-03-09T21:40:00+02:00", (NOW.timestamp(),) * 2),
        ("now", (NOW.timestamp(),) * 2),
        ("2 weeks ago", (NOW.timestamp() - 14 * DAY,) * 2),
        ("3 days", (NOW.timestamp() - 3 * DAY,) * 2),
        ("an hour ago", (NOW.timestamp() - 3600,) * 2),
        ("Last  Week", (NOW.timestamp() - 7 * DAY, NOW.timestamp())),
    ],
)
def test_a_date_means_a_span(text: str, span: tuple[float, float]) -> None:
    assert parse_span(text, now=NOW) == span


def test_yesterday_is_the_day_before_today() -> None:
    today, yesterday = parse_span("today", now=NOW), parse_span("yesterday", now=NOW)
    assert today[0] == datetime(2024, 3, 9, tzinfo=NOW.tzinfo).timestamp()
    assert yesterday[1] == today[0]
    assert today[0] < NOW.timestamp() < today[1]


@pytest.mark.parametrize(
    "text", ["", "soon", "2024-13", "2024-02-30", "0000", "999999 years ago", "9999", "12/03/2024"]
)
def test_what_is_not_a_date_says_how_to_write_one(text: str) -> None:
    with pytest.raises(UsageError) as failed:
        parse_span(text, now=NOW)
    assert "weeks ago" in failed.value.hint


@given(st.text(max_size=20))
def test_any_text_is_a_span_or_a_usage_error(text: str) -> None:
    try:
        start, end = parse_span(text, now=NOW)
    except UsageError:
        return
    assert start <= end
