"""The panel: what it shows for every kind of network, on every size of terminal, and where there is none."""

import io
import itertools
import math
from collections.abc import Iterable
from dataclasses import replace

import pytest
from rich.console import Console

from deepwell.lm.training.panel import Panel, sparkline
from deepwell.lm.training.records import Noted, Record, Sampled, Started, Stepped, Validated

from . import made_up


def drawn(records: Iterable[Record], width: int = 100, height: int = 40) -> str:
    """The panel after these records, as text without colours."""
    panel = Panel(Console(width=width, height=height, file=io.StringIO(), force_terminal=True), quiet=True)
    for record in records:
        panel(record)
    out = Console(width=width, height=height, file=io.StringIO(), record=True)
    out.print(panel.render())
    return out.export_text()


def lines(records: Iterable[Record], *, every: float = 10.0, tick: float = 4.0) -> list[str]:
    """What is printed where no terminal is."""
    file = io.StringIO()
    clock = itertools.count(0.0, tick).__next__
    with Panel(Console(file=file, width=80), every=every, now=clock) as panel:
        for record in records:
            panel(record)
    return file.getvalue().splitlines()


def test_the_panel_shows_how_far_how_well_how_fast_and_how_even() -> None:
    shown = drawn(made_up.run(steps=60, until=50))
    for part in (
        "tales", "42.3M parameters · 12.4M active · bf16 · cpu", "step 50 of 60", "83%", "stopped after 25 s",
        "bits per byte", "at step 40", "MTP loss", "25% right", "8,192  205k", "31% of 440 GFLOP/s", "1.83 GB",
        "2.00e-04", "0.700  (8 rows)", "the busiest gets", "MoE 1", "MoE 3", "MTP 1", "“Once <upon> a time",
    ):  # fmt: skip
        assert part in shown
    assert "█" in shown


def test_time_left_is_that_of_the_last_steps() -> None:
    shown = drawn(itertools.islice(made_up.run(steps=200, look_every=0), 101))
    assert "0:50 gone, 0:50 left" in shown


def test_the_loss_is_smoothed_and_a_skipped_step_does_not_hide_it() -> None:
    shown = drawn(itertools.islice(made_up.run(skipped=(9, 10), look_every=0), 13))
    assert "nan" not in shown
    assert "inf" in shown  # the gradient's norm of the skipped step, as it was
    assert "step 10: skipped: the loss is not finite" in shown


def test_only_skipped_steps_show_that_there_is_no_loss() -> None:
    assert "nan" in drawn(itertools.islice(made_up.run(skipped=(1, 2, 3)), 6))


def test_a_dense_network_has_no_lines_of_experts_and_of_mtp() -> None:
    shown = drawn(made_up.run(layers=0, mtp=0))
    assert "expert" not in shown
    assert "MTP" not in shown
    assert "active" not in shown
    assert "done after 30 s" in shown


def test_an_unknown_peak_is_not_shown() -> None:
    start, step, *_ = made_up.run()
    assert isinstance(step, Stepped)
    assert "peak" not in drawn([start, replace(step, share_of_peak=0.0)])


@pytest.mark.parametrize("width", [1, 3, 20, 59, 60, 80, 200])
@pytest.mark.parametrize("height", [1, 5, 12, 16, 60])
@pytest.mark.parametrize("layers", [0, 61])
def test_nothing_is_wider_or_higher_than_the_terminal(width: int, height: int, layers: int) -> None:
    records = [*made_up.run(layers=layers, experts=90, skipped=(2,), steps=2, look_every=1)][:-1]
    records += [Noted(step=2, message="a very long note " * 20)] * 3
    for shown in (drawn(records, width, height), drawn([], width, height), drawn(records[:1], width, height)):
        found = shown.splitlines()
        assert max(map(len, found)) <= width
        assert len(found) <= max(1, height)


def test_a_small_terminal_gets_the_most_important() -> None:
    shown = drawn(itertools.islice(made_up.run(), 31), 40, 24).splitlines()
    assert shown[0].startswith("28/60 47%")
    assert shown[1].startswith("loss ")
    assert "bits per byte" in shown[2]


def test_loads_without_tokens_are_left_out() -> None:
    start, step, *_ = made_up.run()
    assert isinstance(step, Stepped)
    assert "busiest" not in drawn([start, replace(step, loads=((0.0, 0.0),) * 4)])


def test_a_terminal_is_drawn_in_place_and_keeps_the_last_state() -> None:
    file = io.StringIO()
    with Panel(Console(file=file, width=90, height=30, force_terminal=True)) as panel:
        assert not file.getvalue()
        for record in made_up.run():
            panel(record)
    last = file.getvalue().rsplit("\x1b[1A", 1)[-1]
    assert "done after 30 s" in file.getvalue()
    assert last.count("╰") <= 1


def test_a_terminal_without_records_stays_empty() -> None:
    file = io.StringIO()
    with Panel(Console(file=file, width=90, height=30, force_terminal=True)):
        pass
    assert not file.getvalue()


def test_quiet_says_nothing() -> None:
    for terminal in (True, False):
        file = io.StringIO()
        with Panel(Console(file=file, force_terminal=terminal), quiet=True) as panel:
            for record in made_up.run():
                panel(record)
        assert not file.getvalue()


def test_a_pipe_gets_a_line_now_and_then_and_each_event_at_once() -> None:
    found = lines(made_up.run(steps=30, skipped=(7,), look_every=10), every=20.0, tick=4.0)
    assert found[0].startswith("tales  42.3M parameters")
    assert found[0].endswith("steps 0 to 30")
    steps = [int(line.split("/")[0].removeprefix("step ")) for line in found if "tokens/s" in line]
    assert {1, 7, 30} < set(steps)
    assert 4 < len(steps) < 20
    assert any(line.startswith("step 10  validation loss") and "25% right" in line for line in found)
    assert any(line == "step 7  skipped: the loss is not finite" for line in found)
    assert any(line.startswith("step 10  Once <upon> > a time & [31m there was") for line in found)
    assert found[-1] == "done at step 30: 123k tokens, 15 s"
    assert not any("\x1b" in line for line in found)


def test_a_plain_line_is_not_cut_at_the_consoles_width() -> None:
    assert max(map(len, lines(made_up.run(steps=3)))) > 80


def test_a_run_that_goes_on_says_from_where() -> None:
    (start, *_) = made_up.run(steps=30)
    assert isinstance(start, Started)
    assert lines([replace(start, step=12)])[0].endswith("steps 12 to 30")
    assert "step 12 of 30" in drawn([replace(start, step=12)])


def test_a_look_before_any_step_is_shown() -> None:
    (start, *_) = made_up.run()
    assert "0.900" in drawn([start, Validated(step=0, loss=2.0, bits_per_byte=0.9, predictions=5)])


@pytest.mark.parametrize(
    ("values", "width", "bars"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8], 8, "▁▂▃▄▅▆▇█"),
        ([1, 2, 3], 2, "▁█"),
        ([5, 5], 9, "▁▁"),
        ([1, math.nan, 2], 9, "▁ █"),
        ([math.nan, math.inf], 9, "  "),
        ([], 9, ""),
        ([1, 2], 0, ""),
    ],
)
def test_sparklines(values: list[float], width: int, bars: str) -> None:
    assert sparkline(values, width) == bars


def test_sparklines_from_zero_and_in_ascii() -> None:
    assert sparkline([1, 1], 5, lowest=0) == "██"
    assert sparkline([0, 1], 5, ascii_only=True) == "_#"


def test_a_sample_without_a_prompt_is_only_its_text() -> None:
    assert lines([Sampled(step=5, prompt="", text="so it\nbegins")]) == ["step 5  so it begins"]
