"""Stop strings are found wherever tokens cut them, and nothing of one is ever shown."""

from hypothesis import given
from hypothesis import strategies as st

from deepwell.lm.engine.stopping import StopStrings, begins_at

LETTERS = st.text(alphabet="ab\n", max_size=24)


def passed(pieces: list[str], stops: list[str]) -> tuple[str, str | None]:
    watch = StopStrings(stops)
    text = "".join(watch.push(piece) for piece in pieces)
    return text + watch.finish(), watch.found


def test_a_stop_string_over_several_pieces_ends_the_text_before_it() -> None:
    watch = StopStrings(["END", "\n\n"])
    assert watch.push("one E") == "one "
    assert watch.push("N") == ""
    assert watch.push("D two") == ""
    assert watch.found == "END"
    assert watch.push("more") == ""
    assert watch.finish() == ""


def test_what_looked_like_one_and_was_not_comes_after_all() -> None:
    watch = StopStrings(["END"])
    assert watch.push("EN") == ""
    assert watch.push("ENE") == "EN" + "EN"
    assert watch.finish() == "E"
    assert watch.found is None


@given(text=LETTERS, stops=st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3), data=st.data())
def test_the_cut_into_pieces_changes_nothing(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = passed(list(text), stops)
    assert passed(pieces, stops) == whole
    ends = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in stops if stop in text]
    assert whole == ((text[: min(ends)[1]], min(ends)[2]) if ends else (text, None))


def test_what_is_held_back_is_only_what_may_begin_a_mark() -> None:
    assert begins_at("ab</th", ("</think>",)) == 2
    assert begins_at("ab</thx", ("</think>",)) == 7
    assert begins_at("aab", ("ab", "b!")) == 2
    assert begins_at("</think>", ("</think>",)) == 8
    assert begins_at("x", ()) == 1
