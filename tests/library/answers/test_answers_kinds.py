"""Headings, table descriptions, heads of letters and labels are no answers; what stands above a sentence helps it."""

from deepwell.library.answers import Extractive, ask
from deepwell.library.answers.evidence import judge
from deepwell.library.answers.gather import gather, has_words
from deepwell.library.answers.ranking import rank
from deepwell.library.answers.sentences import split_sentences
from deepwell.library.answers.words import terms, with_iso_dates
from deepwell.library.protocols import Evidence
from deepwell.library.records import Box, Filters, Hit, Place, Results

_NOWHERE = Place()
HOARD = (
    "The hoard under the pear tree\n\nReport to the museum\n\nHow it was found\n\nOn 12 May 2021 Oluwaseun Adeyemi dug "
    "up the coin hoard with his spade. The jar held 24 silver coins."
)
RAIN = (
    "Table rain: 3 rows, 3 columns.\nyear: number, 2019 to 2021\nmonth: April, May\nrain_mm: number, 3.1 to 60.2\n"
    "Sample rows:\nyear: 2019; month: April; rain_mm: 60.2"
)
ROWS = (
    "year: 2020; month: May; rain_mm: 12.5; remark: a mild month without any wind at all\n"
    "year: 2021; month: April; rain_mm: 3.1; remark: the driest month, and washing was forbidden\n"
    "year: 2021; month: May; rain_mm: 44.0; remark: "
)


def best(question, *evidence):
    return Extractive().choose(question, evidence)[0].text


def test_a_heading_is_not_an_answer():
    piece = Evidence(1, HOARD, "/hoard.docx", "", about="The hoard under the pear tree")
    assert best("Who found the coin hoard under the pear tree?", piece).startswith("On 12 May 2021")


def test_a_heading_answers_when_nothing_else_is_there():
    piece = Evidence(1, "# The hoard under the pear tree", "/hoard.md", "")
    assert best("What is under the pear tree?", piece) == piece.text


def test_a_row_is_a_sentence_and_beats_the_description_of_its_table():
    assert len(split_sentences(ROWS)) == 3
    chosen = best(
        "How many mm of rain fell in April 2021?", Evidence(1, RAIN, "/r.csv", ""), Evidence(2, ROWS, "/r", "")
    )
    assert chosen.startswith("year: 2021; month: April; rain_mm: 3.1")


def test_labels_of_a_photograph_answer_only_questions_about_pictures():
    picture = Evidence(1, "Egyptian cat, tabby cat, tiger cat", "/a.jpg", "", words=False)
    text = Evidence(2, "The cat of the station is called Biscuit, and it sleeps in the library.", "/a.txt", "")
    assert best("Which cat is there?", picture, text) == text.text
    assert best("Which photograph is of a tabby cat?", picture, text) == picture.text


def test_the_head_of_a_letter_is_not_an_answer_unless_letters_are_asked_for():
    text = "From: Ruth Okafor <ruth@example.org>\nSubject: A visit\n\nIn 188 days Ruth passed over the island often."
    piece = Evidence(1, text, "/a.eml", "")
    assert best("How long was Ruth Okafor up there?", piece).startswith("In 188 days")
    assert best("Who sent the letter of Ruth Okafor?", piece).startswith("From: Ruth")


def test_what_only_repeats_the_question_is_not_an_answer():
    text = "Ruth Okafor\nFrom the station I saw them from above, and I counted 188 days in space."
    assert "188" in best("How many days was Ruth Okafor in space?", Evidence(1, text, "/a.txt", ""))


def test_labels_do_not_take_the_place_of_words():
    def hit(n, kind, text):
        return Hit(f"d{n}", f"d{n}-0", f"/{n}", kind, text, _NOWHERE, 1 / n, {})

    hits = [hit(n, "image", f"tabby cat, thing {n}") for n in range(1, 9)]
    hits.append(hit(9, "text", "The tabby cat weighs four kilograms."))

    def search(query):
        return Results(query, tuple(hits), 1.0)

    def shown(question):
        return gather(question, search, filters=Filters(), tokens=2400, most=4).evidence

    assert shown("What does the tabby cat weigh?")[0].path == "/9"
    assert shown("Which photographs show a tabby cat?")[0].path == "/1"


def test_a_figure_is_preferred_when_one_is_asked_for():
    text = "The comet stood low in the sky after dusk. The comet will be back in the summer of 2061."
    assert best("When will the comet in the sky be back?", Evidence(1, text, "/a.txt", "")).endswith("2061.")


def test_what_stands_above_lends_its_words():
    page = "The barometer fell to 27.94 inches. The goat is missing."
    other = "The barometer fell to 29.01 inches on the way."
    pieces = [Evidence(1, other, "/b", ""), Evidence(2, page, "/a", "", about="keepers journal 1911")]
    ranked = rank("How far did the barometer fall in 1911?", pieces)
    assert ranked[0].n == 2 and "27.94" in ranked[0].text


def test_it_is_told_what_it_points_to():
    text = "The moth trap held a hawk-moth. It squeaked at Ines. The lamp was cleaned."
    hit = Hit("d", "d-0", "/m.txt", "text", text, Place(), 1.0, {})
    answer = ask("What squeaked at Ines in the moth trap?", lambda query: Results(query, (hit,), 1.0))
    assert answer.text.startswith("The moth trap held a hawk-moth.") and "It squeaked at Ines." in answer.text


def test_which_hits_hold_words():
    def hit(kind, text, place=_NOWHERE):
        return Hit("d", "d-0", "/a", kind, text, place, 1.0, {})

    assert not has_words(hit("image", "cat\nEgyptian cat, tabby cat"))
    assert has_words(hit("image", "HARROW SKERRY LIGHT", Place(boxes=(Box(0, 0, 1, 1),))))
    assert has_words(hit("audio", "The engine stopped twice. It is the filter.", Place(start=0.0, end=9.0)))
    assert not has_words(hit("audio", "rain, thunder", Place(start=0.0, end=9.0)))
    assert has_words(hit("table", "a: 1; b: 2"))


def test_dates_and_irregular_verbs_meet():
    assert set(terms("4 June 2024")) <= set(terms("2024-06-04"))
    assert (
        with_iso_dates("on 4 June 2024 and May 5th, 2023?") == "on 4 June 2024 and May 5th, 2023? 2024-06-04 2023-05-05"
    )
    assert with_iso_dates("in June 2024") == "in June 2024"
    assert terms("fell fallen sent mice millimetres") == terms("fall falls send mouse mm")


def test_a_figure_that_is_nowhere_is_doubted():
    def strength(question, text):
        piece = [Evidence(1, text, "/a.txt", "")]
        return judge(question, piece, (), rank(question, piece)).score

    question = "How many burrows of puffins are on the west slope?"
    without = strength(question, "The burrows of puffins are on the west slope.")
    assert without < 0.75 < strength(question, "On the west slope are 438 burrows of puffins.")
    assert strength("Are burrows of puffins on the west slope?", "The burrows of puffins are on the west slope.") == 1.0
