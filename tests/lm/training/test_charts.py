"""Charts: lines where values are, gaps where none are, and maps whose every pixel says how busy an expert was."""

import base64
import itertools
import math
import re
import struct
import zlib
from xml.etree import ElementTree

import pytest

from deepwell.lm.training.charts import Series, heat_map, line_chart, ticks


def show(value: float) -> str:
    return f"{value:.2f}"


def elements(svg: str, kind: str, look: str = "") -> list[ElementTree.Element]:
    return [one for one in ElementTree.fromstring(svg).iter(kind) if not look or one.get("class") == look]


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)]


@pytest.mark.parametrize(
    ("low", "high", "log", "found"),
    [
        (0, 10, False, [0, 2, 4, 6, 8, 10]),
        (1.3, 2.1, False, [1.4, 1.6, 1.8, 2.0]),
        (-5, 5, False, [-4, -2, 0, 2, 4]),
        (0.1, 1000, True, [0.1, 1, 10, 100, 1000]),
        (0.2, 8, True, [0.3, 1, 3]),
        (2, 4.5, True, [2, 3, 4]),
    ],
)
def test_ticks_are_round(low: float, high: float, log: bool, found: list[float]) -> None:
    assert ticks(low, high, log=log) == pytest.approx(found)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("high", [1.0001, 1.5, 17, 3e4, 1e12])
def test_there_are_a_few_ticks_for_any_range(high: float, log: bool) -> None:
    found = ticks(1.0, high, log=log)
    assert len(found) <= 10
    assert all(1 - 1e-9 * high <= value <= high * (1 + 1e-9) for value in found)
    assert found or log


def test_a_line_falls_where_its_values_fall() -> None:
    svg = line_chart([Series("loss", [1, 2, 3], [4.0, 2.0, 1.0])], label="loss", show=show)
    (path,) = elements(svg, "path", "line")
    (x1, y1), (x2, y2), (x3, y3) = points(str(path.get("d")))
    assert x1 < x2 < x3
    assert y1 < y2 < y3  # pixels count from the top
    assert (y2 - y1) == pytest.approx(2 * (y3 - y2), abs=0.2)
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    (end,) = elements(svg, "text", "end")
    assert end.text == "1.00"


def test_a_logarithmic_axis_spaces_factors_evenly_and_leaves_zeros_out() -> None:
    svg = line_chart([Series("norm", [1, 2, 3, 4], [100.0, 10.0, 0.0, 1.0])], label="n", show=show, log=True)
    (path,) = elements(svg, "path", "line")
    (_, y1), (_, y2), (_, y4) = points(str(path.get("d")))
    assert y2 - y1 == pytest.approx(y4 - y2, abs=0.2)
    assert str(path.get("d")).count("M") == 2


def test_what_is_not_finite_is_a_gap() -> None:
    y = [1.0, 2.0, math.nan, math.inf, 3.0]
    svg = line_chart([Series("loss", [1, 2, 3, 4, 5], y)], label="loss", show=show)
    path = str(elements(svg, "path", "line")[0].get("d"))
    assert path.count("M") == 2
    assert len(points(path)) == 3
    assert "nan" not in svg
    assert "inf" not in svg


@pytest.mark.parametrize("y", [[], [math.nan, math.inf], [math.nan]])
def test_nothing_to_draw_is_no_chart(y: list[float]) -> None:
    assert line_chart([Series("loss", list(range(len(y))), y)], label="loss", show=show) == ""
    assert line_chart([Series("loss", [1], [0.0])], label="loss", show=show, log=True) == ""


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("value", [5.0, 1e-30, 1e30])
def test_a_single_value_is_a_dot(value: float, log: bool) -> None:
    svg = line_chart([Series("loss", [7], [value])], label="loss", show=show, log=log)
    (dot,) = elements(svg, "circle")
    assert 0 < float(str(dot.get("cx"))) < 640
    assert 0 < float(str(dot.get("cy"))) < 250


def test_equal_values_and_zeros_have_an_axis_too() -> None:
    for value in (0.0, -3.0, 3.0):
        for from_zero in (False, True):
            svg = line_chart([Series("s", [1, 2], [value] * 2)], label="s", show=show, from_zero=from_zero)
            assert len(elements(svg, "path", "grid")) >= 2


def test_one_spike_does_not_flatten_the_rest_and_no_spike_is_lost() -> None:
    y = [2.0 + 0.1 * (step % 10) for step in range(5000)]
    y[2500] = 1e6
    svg = line_chart([Series("loss", list(range(5000)), y)], label="loss", show=show)
    found = points(str(elements(svg, "path", "line")[0].get("d")))
    assert len(found) < 1500
    ordinary = [height for _, height in found if height > 0]
    assert max(ordinary) - min(ordinary) > 100
    assert min(height for _, height in found) < -1000  # above the picture: a line that leaves it at the top


def test_labels_at_the_ends_do_not_overlap_and_stay_inside() -> None:
    series = [Series(f"s{number}", [1, 2], [0.0, 1 + number / 1e4], number) for number in range(6)]
    series.append(Series("low", [1, 2], [1.0, 0.0]))
    heights = sorted(
        float(str(text.get("y"))) for text in elements(line_chart(series, label="", show=show), "text", "end")
    )
    assert len(heights) == 7
    assert all(after - before >= 13.9 for before, after in itertools.pairwise(heights))
    assert 0 < heights[0] <= heights[-1] < 250


def test_dots_say_their_value_and_faint_lines_have_no_label() -> None:
    dots = Series("held <back>", [10], [2.0], 1, "dots")
    svg = line_chart([Series("each", [9, 10, 11], [1.0, 2, 3], 0, "faint"), dots], label='"a" <b>', show=show)
    (title,) = elements(svg, "title")
    assert title.text == "held <back>, step 10: 2.00"
    assert ElementTree.fromstring(svg).get("aria-label") == '"a" <b>'
    assert len(elements(svg, "text", "end")) == 1
    assert len(elements(svg, "path", "faint")) == 1


def test_only_faint_lines_are_a_chart_without_labels() -> None:
    assert not elements(line_chart([Series("s", [1, 2], [1, 2], 0, "faint")], label="", show=show), "text", "end")


def test_marks_stand_at_their_steps() -> None:
    svg = line_chart([Series("s", [0, 10], [0.0, 1.0])], label="", show=show, marks=[5])
    (mark,) = elements(svg, "path", "mark")
    assert str(mark.get("d")).startswith("M316.0 ")  # the middle between the margins


# ---- maps ----


def pixels(html: str) -> tuple[list[list[int]], bytes, bytes]:
    """Levels by row, palette and alphas of the PNG in an img element; checksums are checked."""
    content = base64.b64decode(re.findall(r"base64,([^\"]+)", html)[0])
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        kind, body = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        assert zlib.crc32(kind + body) == struct.unpack(">I", content[at + 8 + length : at + 12 + length])[0]
        chunks[kind] = body
        at += 12 + length
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    raw = zlib.decompress(chunks[b"IDAT"])
    rows = [list(raw[row * (width + 1) + 1 : (row + 1) * (width + 1)]) for row in range(height)]
    return rows, chunks[b"PLTE"], chunks[b"tRNS"]


def test_each_row_is_an_expert_and_each_column_a_step() -> None:
    rows, palette, alphas = pixels(heat_map([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.25, 0.125, 0.125]], label="l"))
    assert rows == [[127, 254, 191], [127, 0, 127], [127, 0, 63], [127, 0, 63]]
    assert (alphas[127], alphas[0], alphas[254]) == (0, 255, 255)
    assert palette[:3] != palette[-3:]
    assert len(palette) == 3 * len(alphas)


def test_many_steps_are_averaged_and_what_is_missing_is_passed_over() -> None:
    even, one = [0.5, 0.5], [1.0, 0.0]
    rows, *_ = pixels(heat_map([even, one, (), [0.0, 0.0], [math.nan, 1.0], one, even], label="l", columns=2))
    assert [len(row) for row in rows] == [2, 2]
    assert rows[0] == [127 + round(127 * math.log2(1.5) / 2)] * 2
    assert heat_map([], label="l") == heat_map([(), [0.0]], label="l") == ""


def test_the_description_is_escaped() -> None:
    assert 'alt="&lt;l&gt;"' in heat_map([[1.0]], label="<l>")
