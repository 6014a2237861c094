"""The paper that a report is written on: its style, light and dark, and the pieces that it is made of.

Everything that is put in as text is escaped here; a report shows what a network wrote, and that can be anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["card", "cards", "definitions", "folded", "legend", "page", "pre", "section", "table", "tiles"]

_STYLE = """
:root {
  color-scheme: light dark;
  --paper: #f7f7f5; --card: #ffffff; --ink: #16181d; --soft: #5d6470; --hair: #e4e5e3; --grid: #ececea;
  --c0: #2a78d6; --c1: #d9541e; --c2: #12946a; --c3: #a06a00; --c4: #7d4fc9; --c5: #b83280; --bad: #c92a2a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #121315; --card: #1b1d20; --ink: #eceef1; --soft: #9aa2ad; --hair: #2c2f34; --grid: #27292d;
    --c0: #5a9df0; --c1: #f08250; --c2: #3cc495; --c3: #dfa93a; --c4: #a98af0; --c5: #ec7bb6; --bad: #ff7b72;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
}
main { max-width: 1240px; margin: 0 auto; padding: 36px 24px 64px; }
header h1 { margin: 0; font-size: 30px; line-height: 1.2; letter-spacing: -0.015em; overflow-wrap: anywhere; }
header p { margin: 6px 0 0; color: var(--soft); }
header .state { display: inline-block; margin-left: 10px; padding: 2px 10px; border-radius: 99px; font-size: 13px;
  font-weight: 600; vertical-align: 5px; letter-spacing: 0; border: 1px solid currentColor; }
.state.good { color: var(--c2); } .state.open { color: var(--c3); }
h2 { margin: 40px 0 12px; font-size: 19px; letter-spacing: -0.01em; }
h3 { margin: 0; font-size: 14px; font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(178px, 1fr)); gap: 12px; margin-top: 24px; }
.tile, .card { background: var(--card); border: 1px solid var(--hair); border-radius: 10px; }
.tile { padding: 14px 16px; }
.tile .label { color: var(--soft); font-size: 13px; }
.tile .value { font-size: 23px; font-weight: 650; white-space: nowrap; line-height: 1.25; letter-spacing: -0.02em; }
.tile .more { color: var(--soft); font-size: 13px; }
.cards { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 12px; }
.cards.small { grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); }
.card { padding: 14px 16px; min-width: 0; }
.card.wide { grid-column: 1 / -1; }
.about { margin: 0 0 6px; color: var(--soft); font-size: 13px; }
.cards + .about { margin: 14px 0 10px; }
.plot { overflow-x: auto; }
svg { display: block; width: 100%; height: auto; min-width: 480px; }
.wide svg { min-width: 820px; }
svg text { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
svg text.end { font-weight: 600; }
svg .grid { stroke: var(--grid); } svg .axis { stroke: var(--soft); opacity: .5; }
svg path { fill: none; }
svg .line { stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg .faint { stroke-width: 1; opacity: .32; stroke-linejoin: round; stroke-linecap: round; }
svg .mark { stroke: var(--bad); stroke-width: 2; }
svg .dot { stroke: var(--card); stroke-width: 1.5; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 2px 0 6px; font-size: 13px; color: var(--soft); }
.legend i { display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin-right: 6px;
  vertical-align: 3px; }
.heat { display: block; width: 100%; height: 130px; image-rendering: pixelated; background: var(--paper);
  border-radius: 4px; }
.ramp { display: inline-block; width: 180px; height: 10px; margin: 0 8px; border-radius: 5px; vertical-align: -1px;
  background: linear-gradient(90deg, rgb(42,120,214), rgba(42,120,214,0) 50%, rgba(226,90,40,0) 50%, rgb(226,90,40)); }
.axisnote { display: flex; justify-content: space-between; color: var(--soft); font-size: 12px; margin-top: 3px; }
blockquote { margin: 0 0 12px; padding: 10px 16px; border-left: 3px solid var(--c0); background: var(--card);
  border-radius: 0 8px 8px 0; white-space: pre-wrap; overflow-wrap: anywhere; }
blockquote b { font-weight: 650; } blockquote .empty { color: var(--soft); }
pre { margin: 0; padding: 14px 16px; overflow-x: auto; background: var(--card); border: 1px solid var(--hair);
  border-radius: 10px; font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th { text-align: right; color: var(--soft); font-weight: 500; } th:first-child, td:first-child { text-align: left; }
th, td { padding: 4px 22px 4px 0; border-bottom: 1px solid var(--hair); text-align: right; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 3px 18px; margin: 0; font-size: 14px; }
dt { color: var(--soft); font-variant-numeric: tabular-nums; text-align: right; }
dd { margin: 0; overflow-wrap: anywhere; }
details { margin: 10px 0; } summary { cursor: pointer; color: var(--soft); margin-bottom: 8px; }
footer { margin-top: 48px; color: var(--soft); font-size: 13px; }
@media (max-width: 820px) { .cards { grid-template-columns: minmax(0, 1fr); } main { padding: 24px 14px 48px; } }
@media print { .card, .tile { break-inside: avoid; } body { background: none; } }
"""


def page(title: str, body: str) -> str:
    """A whole document. It may load nothing at all from elsewhere, and run no script."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n"
        "</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading and what stands below it; nothing where all parts are empty."""
    inside = "\n".join(part for part in parts if part)
    return f"<h2>{escape(title)}</h2>\n{inside}" if inside else ""


def tiles(shown: Iterable[tuple[str, str, str]]) -> str:
    """Label, value and a further line of each figure that one looks for first."""
    inside = "".join(
        f'<div class="tile"><div class="label">{escape(label)}</div><div class="value">{escape(value)}</div>'
        f'<div class="more">{escape(more)}</div></div>'
        for label, value, more in shown
    )
    return f'<div class="tiles">{inside}</div>'


def card(title: str, picture: str, *, about: str = "", above: str = "", below: str = "", wide: bool = False) -> str:
    """A chart with its title; nothing where there is no picture. ``above`` and ``below`` are HTML."""
    if not picture:
        return ""
    told = f'<p class="about">{escape(about)}</p>' if about else ""
    kind = "card wide" if wide else "card"
    return f'<div class="{kind}"><h3>{escape(title)}</h3>{told}{above}<div class="plot">{picture}</div>{below}</div>'


def cards(made: Iterable[str], *, small: bool = False) -> str:
    """Cards side by side; those that are empty are left out."""
    inside = "\n".join(one for one in made if one)
    return f'<div class="cards{" small" if small else ""}">{inside}</div>' if inside else ""


def legend(names: Iterable[tuple[str, int]]) -> str:
    """Which colour is which line."""
    inside = "".join(
        f'<span><i style="background:var(--c{colour})"></i>{escape(name)}</span>' for name, colour in names
    )
    return f'<div class="legend">{inside}</div>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of text."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    inside = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{inside}</tbody></table>"


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """Short terms and what is said of them, in two columns."""
    inside = "".join(f"<dt>{escape(term)}</dt><dd>{escape(said)}</dd>" for term, said in pairs)
    return f"<dl>{inside}</dl>" if inside else ""


def folded(title: str, inside: str) -> str:
    """What is shown on a click; nothing where there is nothing inside."""
    return f"<details><summary>{escape(title)}</summary>{inside}</details>" if inside else ""


def pre(text: str) -> str:
    """Text as it is, in letters of one width."""
    return f"<pre>{escape(text)}</pre>"
