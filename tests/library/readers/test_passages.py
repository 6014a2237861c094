"""The cutter: sizes, borders, places, and linear time on text made to hurt."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from deepwell.library.readers.passages import MAX_TOKENS, MIN_TOKENS, Block, cut
from deepwell.library.readers.sentences import cut_long, sentence_spans
from deepwell.library.readers.tokens import estimate_tokens
from deepwell.library.records import Box

SENTENCE = "The quick brown fox jumps over the lazy dog near the river bank. "


def words(text: str) -> list[str]:
    return text.split()


def test_long_prose_is_cut_into_equal_passages_of_the_right_size() -> None:
    passages = cut([Block(SENTENCE * 100)])
    sizes = [estimate_tokens(passage.text) for passage in passages]
    assert all(MIN_TOKENS <= size <= MAX_TOKENS for size in sizes)
    assert max(sizes) - min(sizes) < 60
    assert all(passage.text.startswith("The quick") and passage.text.endswith("bank.") for passage in passages)


def test_nothing_is_lost_or_doubled() -> None:
    text = " ".join(f"word{number}" + ("." if number % 9 == 0 else "") for number in range(3000))
    assert words(" ".join(passage.text for passage in cut([Block(text)]))) == words(text)


def test_short_documents_stay_whole() -> None:
    assert [passage.text for passage in cut([Block("One."), Block("Two.")])] == ["One.\n\nTwo."]
    assert cut([]) == []
    assert cut([Block("  \n ")]) == []


def test_pages_are_never_crossed() -> None:
    passages = cut([Block("First page.", page=1), Block("Second page.", page=2)])
    assert [(passage.place.page, passage.text) for passage in passages] == [(1, "First page."), (2, "Second page.")]


def test_a_heading_stays_with_its_text_and_a_section_is_its_own_passage() -> None:
    blocks = []
    for name in ("Alpha", "Beta"):
        blocks += [Block(name, ("Top", name), "heading"), Block(SENTENCE * 14, ("Top", name))]
    passages = cut(blocks)
    assert [passage.place.section for passage in passages] == [("Top", "Alpha"), ("Top", "Beta")]
    assert passages[1].text.startswith("Beta\n\nThe quick")


def test_small_sections_share_a_passage_under_their_common_heading() -> None:
    blocks = []
    for name in "ABCD":
        blocks += [Block(name, ("Top", name), "heading"), Block(SENTENCE, ("Top", name))]
    (passage,) = cut(blocks)
    assert passage.place.section == ("Top",)


def test_a_heading_without_text_goes_with_the_section_below() -> None:
    blocks = [Block("Part", ("Part",), "heading"), Block("One", ("Part", "One"), "heading")]
    passages = cut([*blocks, Block(SENTENCE * 40, ("Part", "One"))])
    assert passages[0].text.startswith("Part\n\nOne\n\nThe quick")
    assert {passage.place.section for passage in passages} == {("Part", "One")}


def test_a_crumb_at_the_end_is_shared_out() -> None:
    passages = cut([Block(SENTENCE * 22)])
    assert len(passages) == 2
    assert min(estimate_tokens(passage.text) for passage in passages) > 120


def test_lines_and_boxes_follow_the_text() -> None:
    lines = [SENTENCE.strip() for _ in range(60)]
    starts, at = [], 0
    for line in lines:
        starts.append(at)
        at += len(line) + 1
    boxes = tuple(Box(0, number / 100, 1, number / 100) for number in range(60))
    passages = cut([Block(" ".join(lines), page=1, line=11, starts=tuple(starts), boxes=boxes)])
    assert passages[0].place.lines is not None and passages[0].place.lines[0] == 11
    assert passages[-1].place.lines is not None and passages[-1].place.lines[1] == 70
    for before, after in pairwise(passages):
        assert before.place.lines and after.place.lines and before.place.lines[1] + 1 == after.place.lines[0]
    assert [box for passage in passages for box in passage.place.boxes] == list(boxes)


def test_verbatim_lines_keep_their_indentation() -> None:
    (passage,) = cut([Block("def f():\n    return 1\n\n\n", role="lines", line=3)])
    assert passage.text == "def f():\n    return 1"
    assert passage.place.lines == (3, 4)


def test_one_long_line_without_spaces_is_cut_in_linear_time() -> None:
    passages = cut([Block("x" * 400_000)])
    assert "".join(passage.text for passage in passages) == "x" * 400_000
    assert max(estimate_tokens(passage.text) for passage in passages) <= MAX_TOKENS


def test_a_long_sentence_is_cut_after_a_clause() -> None:
    text = "this clause has some words in it and goes on, " * 60
    pieces = [text[start:end] for start, end in cut_long(text, 0, len(text), 120)]
    assert "".join(pieces) == text
    assert all(piece.rstrip().endswith(",") for piece in pieces)


def test_sentences() -> None:
    text = 'Dr. Smith went to Washington, D.C. in Jan. 1999. "Really?" she said. It was 3.5 km, e.g. far. '
    text += "深い。井戸です。End"
    assert [text[start:end].strip() for start, end in sentence_spans(text)] == [
        "Dr. Smith went to Washington, D.C. in Jan. 1999.",
        '"Really?" she said.',
        "It was 3.5 km, e.g. far.",
        "深い。",
        "井戸です。",
        "End",
    ]


def test_tokens_of_many_scripts() -> None:
    # Counted with the tokenizer of all-MiniLM-L6-v2.
    for text, counted in (
        ("The tool searches text, images and sound on your own computer.", 13),
        ("深井是一个在本地机器上搜索的工具。", 17),
        ("Поиск текстов на вашем компьютере", 28),
    ):
        assert abs(estimate_tokens(text) - counted) <= 0.2 * counted


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(alphabet="ab .,。\n!?'x深", max_size=300), max_size=12), st.sampled_from(["prose", "lines"]))
def test_any_text_survives_in_order(texts: list[str], role: str) -> None:
    blocks = [Block(text, role=role, line=1) for text in texts]  # type: ignore[arg-type]
    passages = cut(blocks)
    assert "".join("".join(p.text for p in passages).split()) == "".join("".join(texts).split())
    assert all(estimate_tokens(passage.text) <= MAX_TOKENS * 1.05 for passage in passages)
    assert passages == cut(blocks)
