"""The report of every kind of run: whole, stopped, dense, of one step, without looks, with numbers that are none."""

import itertools
import math
import re
from collections.abc import Iterable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from deepwell.errors import TrainingError, UsageError
from deepwell.lm.training.journal import Journal
from deepwell.lm.training.recipe import BatchSection, DataSection, ModelSection, Recipe, SourceSection
from deepwell.lm.training.records import Ended, Noted, Record, Sampled, Started, Stepped, Validated
from deepwell.lm.training.report import write_report

from . import made_up


class _Page(HTMLParser):
    """Text and tags; says which tags were not closed."""

    VOID = ("meta", "img")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def report(folder: Path, records: Iterable[Record]) -> _Page:
    told = Journal(folder / "journal.jsonl")
    for record in records:
        told(record)
    told.close()
    path = write_report(folder)
    assert path == folder / "report.html"
    assert not list(folder.glob("*.new"))
    return _Page(path.read_text(encoding="utf-8"))


def test_a_whole_run(tmp_path: Path) -> None:
    page = report(tmp_path, made_up.run(steps=60, skipped=(33,)))
    for part in (
        "tales finished", "42.3M parameters · 12.4M active for a token · 60 steps · 5.00M tokens a pass · bf16 on cpu",
        "training loss", "held-back loss", "bits per byte", "tokens 246k 0.049 passes", "29.5 TFLOP 120 MFLOP a token",
        "training time 30 s", "tokens a second 8,192", "31% of 440 GFLOP/s", "memory 1.83 GB",
        "cost 0.0033 at 0.4 an hour; 0.014 a million tokens", "Learning rate", "Norm of the gradient",
        "Multi-token prediction: right", "red ticks below", "Balance", "MoE 3", "MTP 1",
        "step 33 skipped: the loss is not finite", "step 0 began on cpu", "step 60 finished model", "Earlier (2)",
    ):  # fmt: skip
        assert part in page.words
    assert page.tags.count("img") == 4
    assert page.tags.count("svg") == 9
    assert page.tags.count("script") == 0
    assert all(link.startswith("data:image/png;base64,") for link in page.links)


def test_what_the_network_writes_stays_text(tmp_path: Path) -> None:
    start, step, *_ = made_up.run()
    evil = "</blockquote><script>alert(1)</script>"
    page = report(tmp_path, [start, step, Sampled(step=1, prompt=evil, text=evil), Noted(step=1, message=evil)])
    assert "script" not in page.tags
    assert page.words.count("alert(1)") == 3


def test_a_dense_run_without_looks_or_price(tmp_path: Path) -> None:
    page = report(tmp_path, made_up.run(layers=0, mtp=0, look_every=0, price=0))
    for part in (
        "Experts",
        "held back",
        "bits per byte",
        "cost",
        "Multi-token",
        "What it writes",
        "active",
        "red ticks",
    ):
        assert part not in page.words
    assert page.tags.count("svg") == 4


def test_a_stopped_run_and_one_that_broke_off(tmp_path: Path) -> None:
    stopped = report(tmp_path / "a", made_up.run(steps=20, until=7))
    assert "stopped at step 7 of 20" in stopped.words
    broken = report(tmp_path / "b", itertools.islice(made_up.run(steps=20, look_every=0), 6))
    assert "under way at step 5 of 20" in broken.words
    assert "training time 2.5 s" in broken.words


@pytest.mark.parametrize("number", [1, 2])
def test_the_first_steps(tmp_path: Path, number: int) -> None:
    page = report(tmp_path, made_up.run(steps=number, look_every=1))
    assert f"{number} step{'s' * (number > 1)} ·" in page.words
    assert page.tags.count("svg") == 9


def test_before_the_first_step(tmp_path: Path) -> None:
    page = report(tmp_path, [next(made_up.run())])
    assert "under way at step 0 of 60" in page.words
    assert "svg" not in page.tags


def test_numbers_that_are_none_do_not_break_it(tmp_path: Path) -> None:
    start, step, *_ = made_up.run()
    assert isinstance(step, Stepped)
    bad = replace(
        step, loss=math.nan, mtp=(math.inf,), grad_norm=math.nan, tokens_per_second=math.inf, balance=math.nan,
        loads=((math.nan,) * 8,) * 4,
    )  # fmt: skip
    look = Validated(step=1, loss=math.inf, bits_per_byte=math.nan, predictions=0, mtp_right=(math.nan,))
    page = report(tmp_path, [start, bad, look])
    assert "training loss nan" in page.words
    assert "held-back loss inf perplexity –" in page.words
    drawn = re.findall(r"<svg.*?</svg>", (tmp_path / "report.html").read_text())
    assert not any("nan" in one or "inf" in one for one in drawn)
    assert "img" not in page.tags


def test_steps_that_a_rollback_made_void_are_not_drawn(tmp_path: Path) -> None:
    start, *steps = itertools.islice(made_up.run(look_every=0), 5)
    lost = replace(steps[3], loss=12345.0)  # type: ignore[type-var]
    page = report(tmp_path, [start, *steps[:3], lost, Noted(step=3, message="went back to step 3"), steps[3]])
    assert "went back to step 3" in page.words
    assert "12345" not in page.words


def test_many_layers_are_one_chart_with_the_worst_and_the_mean(tmp_path: Path) -> None:
    page = report(tmp_path, made_up.run(steps=5, layers=9))
    assert "mean of layers" in page.words
    assert "worst at the end: M" in page.words
    assert page.tags.count("img") == 10


def test_many_notes_are_folded(tmp_path: Path) -> None:
    start, *_ = made_up.run()
    page = report(tmp_path, [start, *(Noted(step=step, message=f"note {step}!") for step in range(99))])
    assert "60 earlier" in page.words
    assert "note 98!" in page.words
    assert "note 0!" in page.words


def test_the_recipe_is_shown_as_toml_and_one_of_another_version_as_it_is(tmp_path: Path) -> None:
    from deepwell.lm.training import reading

    recipe = Recipe(
        model=ModelSection(named="debug"), data=DataSection(sources=(SourceSection(path="a.txt"),)),
        batch=BatchSection(steps=60), about="a <small> one",
    )  # fmt: skip
    start = next(made_up.run())
    assert isinstance(start, Started)
    page = report(tmp_path / "a", [replace(start, recipe=reading.to_dict(recipe))])
    assert '[[data.sources]] path = "a.txt"' in page.words
    assert "a <small> one" in page.words
    assert '{ "later": [ 1 ] }' in report(tmp_path / "b", [replace(start, recipe={"later": [1]})]).words


def test_a_run_in_two_sittings_says_where_it_went_on(tmp_path: Path) -> None:
    start, *rest = made_up.run(steps=8, look_every=0)
    assert isinstance(start, Started)
    again = replace(start, step=4, device="cuda:0", processes=8, peak_flops=8e15)
    page = report(tmp_path, [start, *rest[:4], again, *rest[4:]])
    assert "in 2 sittings" in page.words
    assert "31% timed anew in each sitting" in page.words
    assert "step 4 went on, on 8 x cuda:0" in page.words


def test_the_time_of_earlier_sittings_counts(tmp_path: Path) -> None:
    *records, end = made_up.run(steps=3)
    assert isinstance(end, Ended)
    assert "training time 2 h 0 min" in report(tmp_path, [*records, replace(end, seconds=7200.0)]).words


def test_a_report_that_cannot_be_written_says_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "report.html.new").mkdir()
    with pytest.raises(TrainingError, match=r"cannot be written.*\n.*deepwell runs"):
        report(tmp_path, made_up.run(steps=3))


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run"):
        write_report(tmp_path)
    (tmp_path / "journal.jsonl").touch()
    with pytest.raises(UsageError, match="not begun"):
        write_report(tmp_path)
