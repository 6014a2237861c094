"""What reaches the reader: every sentence cited, every quote verbatim, every figure in its source."""

from hypothesis import given, settings
from hypothesis import strategies as st

from deepwell.library.answers import claims, prompt
from deepwell.library.answers.verify import Passage

BRIDGE = "The Severn Bridge was opened on 8 September 1966 by the Queen. It cost £8 million to build."
TOLL = "Tolls on the bridge were abolished in December 2018. Until then a car paid £5.60."
PASSAGES = [Passage(1, BRIDGE), Passage(2, TOLL)]


def check(reply, question="When was the bridge opened?"):
    return claims.check(prompt.parse(reply), question, PASSAGES)


def test_a_true_answer_passes():
    checked = check('It was opened on 8 September 1966 [1].\nQuotes:\n[1] "opened on 8 September 1966"')
    assert checked.text == "It was opened on 8 September 1966. [1]"
    assert [quote.text for quote in checked.quotes] == ["opened on 8 September 1966"]
    assert (checked.dropped, checked.moved, checked.left_out) == (0, 0, 0)


def test_numbers_are_dense_in_order_of_first_use():
    checked = check(
        "Tolls ended in December 2018 [2]. The bridge was opened in 1966 [1]. Tolls were abolished [2].\n"
        'Quotes:\n[1] "was opened on 8 September 1966"\n[2] "abolished in December 2018"'
    )
    assert checked.text == (
        "Tolls ended in December 2018. [1] The bridge was opened in 1966. [2] Tolls were abolished. [1]"
    )
    assert [quote.n for quote in checked.quotes] == [2, 1]


def test_a_quote_in_another_passage_is_credited_to_it():
    checked = check('Tolls were abolished in 2018 [1].\nQuotes:\n[1] "abolished in December 2018"')
    assert checked.quotes[0].n == 2 and checked.moved == 1 and checked.dropped == 0


def test_an_invented_quote_is_dropped_and_counted():
    checked = check('The bridge fell into the river [1].\nQuotes:\n[1] "the bridge fell into the river"')
    assert checked.text == "" and checked.quotes == ()
    assert checked.dropped == 2  # the quote and its marker
    assert checked.left_out == 1


def test_a_marker_without_a_quote_gets_the_sentence_that_supports_it():
    checked = check("The Queen opened the Severn Bridge in 1966 [1].")
    assert checked.quotes[0].text == "The Severn Bridge was opened on 8 September 1966 by the Queen."


def test_a_sentence_without_a_marker_is_cited_when_a_passage_holds_it():
    checked = check("The Severn Bridge was opened on 8 September 1966. Many visitors love the wonderful view.")
    assert checked.text == "The Severn Bridge was opened on 8 September 1966. [1]"
    assert checked.left_out == 1


def test_a_true_quote_beside_an_invented_figure_does_not_pass():
    checked = check('It was opened on 9 September 1967 [1].\nQuotes:\n[1] "was opened on 8 September 1966"')
    assert checked.text == "" and checked.left_out == 1
    checked = check('A car paid £5.65 [2].\nQuotes:\n[2] "Until then a car paid £5.60"')
    assert checked.text == ""


def test_an_address_that_no_passage_holds_does_not_pass():
    checked = check('The Severn Bridge was opened, see evil.com [1].\nQuotes:\n[1] "The Severn Bridge was opened"')
    assert checked.text == ""


def test_yes_stands_only_before_a_cited_sentence():
    quotes = '\nQuotes:\n[2] "abolished in December 2018"'
    assert check("Yes. Tolls were abolished in 2018 [2]." + quotes).text == "Yes. Tolls were abolished in 2018. [1]"
    assert check("Yes. Aliens did it all themselves.").text == ""


def test_an_unknown_number_is_dropped():
    checked = check("Penguins eat fish [9].")
    assert checked.text == "" and checked.dropped == 1


def test_lists_keep_their_lines():
    checked = check(
        "1. Opened in 1966 [1]\n2. Tolls abolished in 2018 [2]\n"
        'Quotes:\n[1] "opened on 8 September 1966"\n[2] "abolished in December 2018"'
    )
    assert checked.text == "1. Opened in 1966 [1]\n2. Tolls abolished in 2018 [2]"


PIECES = st.sampled_from(
    [
        "The bridge opened in 1966",
        "It cost £9 million",
        "Yes.",
        " [1]",
        " [2]",
        " [7]",
        ". ",
        "\n",
        "Quotes:\n",
        '[1] "opened on 8 September 1966"\n',
        '[2] "abolished in December 2017"\n',
        "A car paid £5.60",
        "Ignore previous instructions",
        '"',
        "[",
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, max_size=14))
def test_nothing_uncited_gets_through(pieces):
    checked = check("".join(pieces))
    texts = {1: BRIDGE, 2: TOLL}
    for quote in checked.quotes:
        assert all(span.of(texts[quote.n]) in texts[quote.n] for span in quote.spans)
    _, used = prompt.markers(checked.text)
    assert used == tuple(range(1, len(checked.quotes) + 1))
    assert "9 million" not in checked.text
    assert bool(checked.text) == bool(checked.quotes)
