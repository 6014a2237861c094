"""``deepwell models inspect``: what is inside a language model, without loading it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from deepwell.cli import model_rounding
from deepwell.cli.models import ModelName, as_json, print_object, readable

if TYPE_CHECKING:
    from deepwell.lm.model.accounting import LayerAccount
    from deepwell.lm.weights.inspecting import Inspection
    from deepwell.lm.weights.quantising import Quantisation


class NetworkName(ModelName):
    """A model on this machine, the name of a shape, a folder or a file."""

    def __init__(self) -> None:
        super().__init__(here=True)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Models here, shapes, then files."""
        from deepwell.lm.model.named import NAMES

        names = super().shell_complete(ctx, param, incomplete)
        names += [CompletionItem(name, help="a shape") for name in NAMES if name.startswith(incomplete)]
        return names or [CompletionItem(incomplete, type="file")]


@click.command()
@click.argument("name", type=NetworkName())
@click.option("--context", default=4096, show_default=True, metavar="N", help="Tokens that the counted one sees.")
@click.option("--quantise", type=click.Choice(["int8", "int4"]), help="Read the weights too: what would these lose?")
@as_json
def inspect(name: str, context: int, quantise: str | None, as_json: bool) -> None:
    """Show what is inside a language model, and what it costs to run.

    NAME is a model on this machine, a folder with config.json and safetensors, a GGUF file, or the name of a shape such
    as deepseek-v3, which needs no file. Only headers are read, never the weights, unless --quantise asks what rounding
    them would lose.
    """
    from deepwell.lm.weights.inspecting import inspect_model

    found = inspect_model(name, context=context)
    rounded = model_rounding.measured(name, quantise) if quantise else None
    if as_json:
        quantised = {} if rounded is None else {"quantised": model_rounding.rounding_json(rounded)}
        print_object(_as_json(found) | quantised)
    else:
        _show(found, rounded)


def _as_json(found: Inspection) -> dict[str, Any]:
    account, config = found.account, found.config
    return {
        "name": found.name,
        "source": found.source,
        "path": None if found.path is None else str(found.path),
        "config": config.to_hf(),
        "parameters": {
            "all": account.parameters,
            "active": account.active_parameters,
            "multi_token_prediction": account.mtp_parameters,
            "by_part": account.by_part,
        },
        "bytes": {
            "all": sum(found.bytes_by_part.values()),
            "by_part": found.bytes_by_part,
            "by_kind": found.bytes_by_kind,
        },
        "cache_bytes_per_token": {
            "latent": account.cache_bytes_per_token,
            "plain": account.plain_cache_bytes_per_token,
            "grouped": account.grouped_cache_bytes_per_token,
        },
        "flops_per_token": {
            "context": account.context,
            "all": account.flops_per_token,
            "attention": account.attention_flops_per_token,
        },
        "layers": [
            {**asdict(layer), "parameters": layer.parameters, "bytes": found.bytes_by_layer.get(layer.layer, 0)}
            for layer in account.layers
        ],
        "max_position_embeddings": config.max_position_embeddings,
        "tokenizer": None if found.tokenizer is None else asdict(found.tokenizer),
    }


def _show(found: Inspection, rounded: Quantisation | None) -> None:
    """Facts and tables: by part, by layer, of rounding. Piped, a line is one fact or row, its cells apart by tabs."""
    from deepwell.cli.render import console, plain

    facts = [(label, plain(value)) for label, value in _facts(found)]  # a file's own name may hold anything
    tables = [list(_parts(found)), list(_layers(found))]
    if rounded is not None:
        facts.append((f"as int{rounded.bits}", model_rounding.rounding_fact(rounded)))
        tables.append(list(model_rounding.parts_table(rounded)))
        if rounded.error.lost:
            tables.append(list(model_rounding.worst_table(rounded)))
    if not sys.stdout.isatty():
        # The tables of rounding keep their heads: they have rows of the same names as those above.
        for row in [*facts, *tables[0][1:], *tables[1][1:], *(row for table in tables[2:] for row in table)]:
            click.echo("\t".join(row))
        return
    from rich.table import Table
    from rich.text import Text

    screen = console()
    grid = Table.grid(padding=(0, 2))
    for label, value in facts:
        grid.add_row(Text(label, "dim"), Text(value))
    screen.print(grid)
    for rows in tables:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for number, head in enumerate(rows[0]):
            table.add_column(head, justify="left" if number == 0 or head == "kind" else "right", no_wrap=True)
        for row in rows[1:]:
            table.add_row(*(Text(cell) for cell in row))
        screen.print()
        screen.print(table)


def _facts(found: Inspection) -> Iterator[tuple[str, str]]:
    account, config = found.account, found.config
    kind = config.to_hf()["model_type"]
    origin = {"shape": "a shape, no file", "safetensors": "safetensors", "gguf": "GGUF"}[found.source]
    yield "model", f"{found.name} ({kind}; {origin})"
    if found.path is not None:
        yield "path", str(found.path)
    prediction = f", and {counted(account.mtp_parameters)} for multi-token prediction" if account.mtp_parameters else ""
    yield (
        "parameters",
        f"{counted(account.parameters)}, {counted(account.active_parameters)} active for a token{prediction}",
    )
    size = readable(sum(found.bytes_by_part.values()))
    kinds = ", ".join(f"{word} {readable(size)}" for word, size in found.bytes_by_kind.items())
    yield "weights", f"{size} ({kinds})" if kinds else f"{size} in bf16"
    yield "cache", _cache(found)
    yield (
        "compute",
        f"{counted(account.flops_per_token, ' ')}FLOPs for a token that sees {account.context:,}, "
        f"{counted(account.attention_flops_per_token, ' ')}FLOPs of it attention",
    )
    window = f", sliding window {config.sliding_window:,}" if config.sliding_window else ""
    yield "context", f"{config.max_position_embeddings:,} tokens{window}{_stretched(found)}"
    if found.tokenizer is not None:
        yield "tokenizer", _tokenizer(found)


def _cache(found: Inspection) -> str:
    account = found.account
    own, plain = account.cache_bytes_per_token, account.plain_cache_bytes_per_token
    said = f"{own:,} B a token in bf16; plain attention {plain:,} B, {plain / own:.1f} times as much"
    grouped = account.grouped_cache_bytes_per_token
    return said if grouped is None else f"{said}; grouped attention {grouped:,} B"


def _stretched(found: Inspection) -> str:
    scaling = found.config.rope_scaling
    if scaling is None:
        return ""
    return f", rope stretched {scaling.factor:g} times by {scaling.kind}"


def _tokenizer(found: Inspection) -> str:
    facts = found.tokenizer
    assert facts is not None
    if facts.problem:
        return f"cannot be read: {facts.problem}"
    template = {"own": "its own chat template", "family": "its family's chat template", "": "no chat template"}
    ends = ", ".join(map(str, facts.eos_token_ids)) or "none"
    begins = "none" if facts.bos_token_id is None else facts.bos_token_id
    return f"{facts.vocab_size:,} tokens, bos {begins}, eos {ends}, {template[facts.chat_template]}"


def _parts(found: Inspection) -> Iterator[tuple[str, ...]]:
    yield "part", "parameters", "bytes"
    sizes = found.bytes_by_part
    for part in dict.fromkeys((*found.account.by_part, *sizes)):
        yield part, counted(found.account.by_part.get(part, 0)), readable(sizes.get(part, 0))


def _layers(found: Inspection) -> Iterator[tuple[str, ...]]:
    """Runs of equal layers are one row."""
    yield "layers", "kind", "attention", "feed-forward", "parameters", "active", "bytes"
    sizes = found.bytes_by_layer
    rows: list[tuple[LayerAccount, LayerAccount, tuple[str, ...]]] = []
    for layer in found.account.layers:
        cells: tuple[str, ...] = (
            layer.kind, counted(layer.attention), counted(layer.feed_forward), counted(layer.parameters),
            counted(layer.active), readable(sizes.get(layer.layer, 0)),
        )  # fmt: skip
        if rows and rows[-1][2] == cells:
            rows[-1] = (rows[-1][0], layer, cells)
        else:
            rows.append((layer, layer, cells))
    for first, last, cells in rows:
        yield str(first.layer) if first is last else f"{first.layer}-{last.layer}", *cells


def counted(number: float, gap: str = "") -> str:
    """A count as people write it: ``671.0B``, ``134.5M``, ``576``; with a gap, ahead of a unit: ``93.7 G``."""
    for mark, unit in (("T", 1e12), ("G" if gap else "B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= unit:
            return f"{number / unit:.1f}{gap}{mark}"
    return f"{number:.0f}{gap}"
