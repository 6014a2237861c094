"""A verified quote stands in the passage; a quote with any word changed never verifies."""

import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepwell.library.answers.sentences import Span
from deepwell.library.answers.verify import Passage, find, find_anywhere

TEXT = (
    "The Severn Bridge was opened on 8 September 1966 by the Queen. It cost £8 million, “a bargain” – some said.\n"
    "Its infor-\nmation board is well-\nknown; temperatures fell to -5.2 degrees."
)


def found(quote: str, text: str = TEXT) -> str | None:
    quote_found = find(quote, Passage(1, text))
    return quote_found.text if quote_found else None


def test_a_verbatim_quote_is_cut_from_the_passage():
    assert found("opened on 8 September 1966") == "opened on 8 September 1966"
    assert found("  Opened ON\n8 September  1966. ") == "opened on 8 September 1966"


def test_typographic_variants_make_no_difference():
    assert found('£8 million, "a bargain" - some said') == "£8 million, “a bargain” – some said."
    assert found("information board is well-known") == "infor-\nmation board is well-\nknown"
    assert found("ﬁne ﬂour is ground", "Fine flour is ground here") == "Fine flour is ground"
    assert found("cafe\u0301 au lait hot", "A café au lait hot and strong") == "café au lait hot"
    assert found("the [old] mill stood", "Here the (old) mill stood.") == "the (old) mill stood."


@pytest.mark.parametrize(
    "quote",
    [
        "the",
        "by the",
        "of the in",  # function words only
        "opened on 9 September 1966",
        "opened on 8 September 1966 by the King",
        "opened 8 September 1966",  # a word left out
        "tember 1966 by the",  # half a word
        "fell to 5.2 degrees",  # the sign is part of the number
        "fell to -5",
        "the Queen ... was opened on 8 September",  # parts in the wrong order
        "The ... Queen ... cost",  # crumbs
        "",
        "...",
        "«»",
    ],
)
def test_what_is_not_a_quote(quote):
    assert found(quote) is None


def test_an_ellipsis_joins_parts_in_order():
    assert found("The Severn Bridge … by the Queen") == "The Severn Bridge … by the Queen."
    assert found("The Severn Bridge [...] by the Queen") == "The Severn Bridge … by the Queen."


def test_an_ellipsis_of_the_passage_itself():
    assert found("he said ... and then left", "Well, he said... and then left.") is not None


def test_chinese_is_compared_by_character():
    text = "赛文桥于一九六六年由女王揭幕。"
    assert found("一九六六年由女王", text) == "一九六六年由女王"
    assert found("一九六七年由女王", text) is None
    assert found("女王", text) is None


def test_a_whole_short_passage_may_be_quoted():
    assert found("Open daily", "Open daily") == "Open daily"


def test_barred_spans_cannot_be_quoted():
    text = "The toll is 50p today. Visit evil.com to pay it."
    at = text.index("Visit")
    passage = Passage(1, text, (Span(at, len(text)),))
    assert find("Visit evil.com to pay", passage) is None
    assert find("50p today. Visit evil.com to", passage) is None
    assert find("The toll is 50p today", passage) is not None


def test_a_quote_is_credited_to_the_passage_that_has_it():
    passages = [Passage(1, "Cats sleep most of the day."), Passage(2, "Dogs sleep half of the day.")]
    quote = find_anywhere("Dogs sleep half of the day", 1, passages)
    assert quote is not None and quote.n == 2
    both = [Passage(1, "one two three four"), Passage(2, "one two three four")]
    assert find_anywhere("two three four", 2, both).n == 2


WORDS = st.lists(st.text(alphabet="abcdefgé'-,.0123456789 ", min_size=1, max_size=8), min_size=4, max_size=30)


@settings(max_examples=120, deadline=None)
@given(st.text(max_size=200), st.text(max_size=40))
def test_anything_can_be_asked_and_what_is_found_stands_there(text, quote):
    passage = Passage(1, text)
    result = find(quote, passage)
    if result is not None:
        assert all(span.of(text) and 0 <= span.start < span.end <= len(text) for span in result.spans)
        assert result.text == " … ".join(span.of(text) for span in result.spans)


@settings(max_examples=120, deadline=None)
@given(WORDS, st.data())
def test_every_run_of_words_of_a_passage_verifies(words, data):
    text = " ".join(words)
    tokens = [t for t in Passage(1, text).tokens if t.is_word]
    if len(tokens) < 4:
        return
    first = data.draw(st.integers(0, len(tokens) - 4))
    last = data.draw(st.integers(first + 3, len(tokens) - 1))
    quote = text[tokens[first].start : tokens[last].end]
    if "..." in quote or not re.search("[b-gé]{2}", quote):
        return
    result = find(quote, Passage(1, text))
    if result is None:  # only for want of a content word
        assert all(len(t.text) < 3 for t in tokens[first : last + 1])
    else:
        assert unicodedata.normalize("NFKC", result.text).strip(".") in unicodedata.normalize("NFKC", text)


@settings(max_examples=120, deadline=None)
@given(
    st.lists(
        st.sampled_from("river stone bridge opened in 1966 by queen cost 8 million not the a".split()),
        min_size=5,
        max_size=25,
    ),
    st.data(),
)
def test_a_quote_with_any_word_changed_never_verifies(words, data):
    text = " ".join(words)
    first = data.draw(st.integers(0, len(words) - 4))
    last = data.draw(st.integers(first + 3, len(words) - 1))
    quote = words[first : last + 1]
    changed = data.draw(st.integers(0, len(quote) - 1))
    quote[changed] = data.draw(st.sampled_from(["zebra", "1967", "riverbed", "no", "bridg", "86", "-8", "8.0"]))
    assert find(" ".join(quote), Passage(1, text)) is None
