"""What pretraining achieves: ``pretrain-tiny`` and what it is worth to leave out its parts, each from nothing.

    python benchmarks/corpus.py --to out/corpus
    python benchmarks/pretraining.py [--variants full,unbalanced,dense,no-mtp] [--corpus out/corpus]
        [--to out/pretraining] [--set batch.tokens=1_000_000 ...]
        [--only-table] [--svg docs/images/pretrain-tiny.svg]

- **full**: the recipe as it is.
- **unbalanced**: no bias that moves, and no balance loss (``balance.speed`` and ``balance.alpha`` are 0).
- **dense**: one feed-forward layer in place of experts, as wide as the experts that a token takes: the same active
  parameters within 2%, the same tokens in the same order.
- **no-mtp**: without the module that guesses the token after the next.

Every variant has a folder of its own in ``--to``. One that is done is read from its journal, and one that was stopped
goes on, so the table can be had again at any time. All figures come from the journals:

- *bits a byte* of the held-back text, which no tokenizer can flatter, and the mean main loss of the last 50 steps;
- *load*: the fullest expert's load over the mean load of its layer; once of all the last 50 steps together and once
  for the worst single step of these, the worst layer in each case;
- *second token*: how often the MTP module's best guess of the token after the next is right, on held-back text.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from deepwell.lm.model.accounting import Account
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.training import journal
from deepwell.lm.training.charts import Series, line_chart
from deepwell.lm.training.figures import centred
from deepwell.lm.training.reading import Read, read
from deepwell.lm.training.recipe import Recipe
from deepwell.lm.training.records import Ended, Record, Started, Stepped, Validated

RECIPE = "pretrain-tiny"
COLOURS = ("#1f6feb", "#d1242f", "#2da44e", "#8250df")
LAST = 50
"""Steps that the figures at the end are taken over."""


def shape(recipe: Recipe) -> ModelConfig:
    """The network of a recipe for a tokenizer that uses up its vocabulary."""
    fields: dict[str, Any] = {"vocab_size": recipe.tokenizer.vocab_size, **recipe.model.config}
    named = recipe.model.named
    return ModelConfig.named(named).replace(**fields) if named else ModelConfig(**fields)


def dense_width(config: ModelConfig) -> int:
    """The width of dense layers, a multiple of 16, at which a network without experts is as active as this one."""
    wanted = Account.of(config).active_parameters

    def miss(width: int) -> int:
        dense = config.replace(n_routed_experts=0, intermediate_size=width)
        return abs(Account.of(dense).active_parameters - wanted)

    width = min(range(16, 64 * config.hidden_size, 16), key=miss)
    if miss(width) > 0.02 * wanted:
        sys.exit(f"no dense network comes within 2% of {wanted:,} active parameters")
    return width


def variants(recipe: Recipe) -> dict[str, list[str]]:
    """What each variant changes, as ``--set`` takes it."""
    return {
        "full": [],
        "unbalanced": ["balance.speed=[[0.0, 0.0]]", "balance.alpha=0.0"],
        "dense": ["model.config.n_routed_experts=0", f"model.config.intermediate_size={dense_width(shape(recipe))}"],
        "no-mtp": ["model.config.num_nextn_predict_layers=0"],
    }


def run(found: Read, folder: Path) -> list[Record]:
    """Train, or go on, or do nothing where all is done; the journal."""
    path = folder / "journal.jsonl"
    records = journal.timeline(journal.read(path)) if path.exists() else []
    if not any(isinstance(record, Ended) and record.finished for record in records):
        from deepwell.lm.training.run import train

        begun = folder.exists() and any(folder.iterdir())
        train(found.recipe, folder, base=found.base, name=folder.name, resume=begun, watchers=[tell])
        records = journal.timeline(journal.read(path))
    return records


def tell(record: Record) -> None:
    """A line for every 50th step and every look at what is held back."""
    if isinstance(record, Stepped) and record.step % LAST == 0:
        print(
            f"  step {record.step}: loss {record.loss:.3f}, {record.tokens_per_second:,.0f} tokens/s", file=sys.stderr
        )
    elif isinstance(record, Validated):
        print(f"  step {record.step}: {record.bits_per_byte:.3f} bits a byte held back", file=sys.stderr)


def figures(records: list[Record], config: ModelConfig) -> dict[str, Any]:
    """The row of a variant."""
    steps = [record for record in records if isinstance(record, Stepped)]
    looks = [record for record in records if isinstance(record, Validated)]
    started = [record for record in records if isinstance(record, Started)]
    ended = [record for record in records if isinstance(record, Ended)]
    last = steps[-LAST:]
    account = Account.of(config)
    layers = list(zip(*(step.loads for step in last if not step.skipped), strict=True))
    """For each layer with experts the shares of every step."""
    together = [len(layer[0]) * max(statistics.mean(shares) for shares in zip(*layer, strict=True)) for layer in layers]
    single = [len(layer[0]) * max(max(shares) for shares in layer) for layer in layers]
    return {
        "parameters": started[-1].parameters if started else account.parameters + account.mtp_parameters,
        "active": account.active_parameters,
        "tokens": steps[-1].tokens,
        "steps": steps[-1].step,
        "bits_per_byte": looks[-1].bits_per_byte if looks else None,
        "validation_loss": looks[-1].loss if looks else None,
        "loss": statistics.mean(step.loss for step in last),
        "load": [round(value, 3) for value in together],
        "load_single": [round(value, 3) for value in single],
        "second_token": looks[-1].mtp_right[0] if looks and looks[-1].mtp_right else None,
        "tokens_per_second": statistics.median(step.tokens_per_second for step in steps),
        "minutes": ended[-1].seconds / 60 if ended else None,
        "finished": bool(ended and ended[-1].finished),
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """What is printed."""

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    lines = [
        "| variant | parameters | active | bits a byte | loss | load, 50 steps | load, one step | second token | tokens/s | minutes |",  # noqa: E501
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        cells = [
            f"{name}{'' if row['finished'] else ' (not finished)'}",
            f"{row['parameters'] / 1e6:.2f}M",
            f"{row['active'] / 1e6:.2f}M",
            number(row["bits_per_byte"], ".3f"),
            number(row["loss"], ".3f"),
            number(max(row["load"], default=None), ".2f"),
            number(max(row["load_single"], default=None), ".2f"),
            number(row["second_token"], ".1%"),
            number(row["tokens_per_second"], ",.0f"),
            number(row["minutes"], ".1f"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for name, row in rows.items():
        if row["load"]:
            lines.append(
                f"\n{name}: fullest expert over mean, by layer: {row['load']}, in single steps {row['load_single']}"
            )
    return "\n".join(lines)


def picture(told: dict[str, list[Record]]) -> str:
    """One SVG: the main loss of every variant over steps, and below it the fullest expert of the worst layer."""
    losses, loads = [], []
    for colour, (name, records) in enumerate(told.items()):
        steps = [record for record in records if isinstance(record, Stepped) and not record.skipped]
        at = [float(step.step) for step in steps]
        losses.append(Series(name, at, centred([step.loss for step in steps], 25), colour))
        if steps and steps[0].loads:
            worst = [max(len(layer) * max(layer) for layer in step.loads) for step in steps]
            loads.append(Series(name, at, centred(worst, 9), colour))
    charts = [
        ("Loss, nats a token (mean of 25 steps)", line_chart(losses, label="loss", show=lambda v: f"{v:.2f}")),
        ("Fullest expert over mean, worst layer", line_chart(loads, label="load", show=lambda v: f"{v:.2f}", log=True)),
    ]
    parts = []
    for place, (title, chart) in enumerate(one for one in charts if one[1]):
        names = "".join(
            f'<tspan dx="14" fill="{COLOURS[one.colour]}">{one.name}</tspan>' for one in (losses, loads)[place]
        )
        parts.append(f'<text class="title" x="12" y="{22 + place * 290}">{title}{names}</text>')
        parts.append(chart.replace("<svg ", f'<svg x="0" y="{30 + place * 290}" width="640" height="250" ', 1))
    colours = "".join(f"--c{number}:{one};" for number, one in enumerate(COLOURS))
    style = (
        f"svg{{{colours}font:12px sans-serif;fill:#555}}path{{fill:none;stroke:#ccc}}"
        ".line{stroke-width:1.6}.title{font-size:14px;fill:#222}"
    )
    height = 290 * len(parts) // 2
    frame = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {height}" width="640" height="{height}">'
    return f'{frame}<style>{style}</style><rect width="640" height="{height}" fill="#fff"/>{"".join(parts)}</svg>\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", default="full,unbalanced,dense,no-mtp")
    parser.add_argument("--corpus", type=Path, default=Path("out/corpus"), help="folder of text, see corpus.py")
    parser.add_argument("--to", type=Path, default=Path("out/pretraining"), help="folder of the runs' folders")
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=VALUE")
    parser.add_argument("--only-table", action="store_true", help="train nothing; what the journals have so far")
    parser.add_argument("--svg", type=Path, help="draw losses and loads into this file")
    arguments = parser.parse_args()
    if not arguments.corpus.exists():
        print(f"no text in {arguments.corpus}; make it with: python benchmarks/corpus.py --to {arguments.corpus}")
        return
    common = [f"data.sources.0.path={json.dumps(str(arguments.corpus.absolute()))}", *arguments.sets]
    changes = variants(read(arguments.recipe, common).recipe)
    rows: dict[str, dict[str, Any]] = {}
    told: dict[str, list[Record]] = {}
    for name in arguments.variants.split(","):
        if name not in changes:
            sys.exit(f"there is no variant {name!r}; known are {', '.join(changes)}")
        found = read(arguments.recipe, [*common, *changes[name]])
        folder = arguments.to / name
        if arguments.only_table and not (folder / "journal.jsonl").exists():
            continue
        print(f"{name}: {' '.join(changes[name]) or 'as the recipe is'}", file=sys.stderr)
        records = (
            journal.timeline(journal.read(folder / "journal.jsonl")) if arguments.only_table else run(found, folder)
        )
        told[name] = records
        rows[name] = figures(records, shape(found.recipe))
        arguments.to.mkdir(parents=True, exist_ok=True)
        (arguments.to / "table.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))
    if arguments.svg:
        arguments.svg.write_text(picture(told), encoding="utf-8")


if __name__ == "__main__":
    main()
