"""The report's paper: what is put in as text stays text."""

from deepwell.lm.training import report_page

EVIL = "<script>alert('x')</script>&\""


def test_text_is_escaped_everywhere() -> None:
    made = [
        report_page.page(EVIL, ""),
        report_page.section(EVIL, "x"),
        report_page.tiles([(EVIL, EVIL, EVIL)]),
        report_page.card(EVIL, "x", about=EVIL),
        report_page.legend([(EVIL, 1)]),
        report_page.table([EVIL], [[EVIL]]),
        report_page.definitions([(EVIL, EVIL)]),
        report_page.folded(EVIL, "x"),
        report_page.pre(EVIL),
    ]
    for html in made:
        assert "<script" not in html
        assert "&lt;script&gt;" in html


def test_what_is_empty_is_left_out() -> None:
    assert report_page.section("title", "", "") == ""
    assert report_page.card("title", "") == ""
    assert report_page.cards(["", ""]) == ""
    assert report_page.folded("title", "") == ""
    assert report_page.definitions([]) == ""
    assert report_page.cards(["a", "", "b"], small=True) == '<div class="cards small">a\nb</div>'


def test_the_page_may_load_nothing() -> None:
    html = report_page.page("t", "b")
    assert "default-src 'none'" in html
    assert "http" not in html.replace("http-equiv", "")
    assert "prefers-color-scheme: dark" in html
