"""``deepwell models`` convert, compress, split, upcycle and export: another network from one that is here."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deepwell.cli.models import ModelName, as_json, print_object
from deepwell.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from deepwell.lm.model.transformer import Transformer
    from deepwell.lm.weights.tokenizer import Tokenizer

Progress = Callable[[int, int], None]
F = TypeVar("F", bound=Callable[..., Any])

_HELD_OUT = 5
"""Without a text to measure on, the last fifth of the calibration text is left out of the calibration and taken."""
_DTYPES = {"bf16": "bf16", "f16": "f16", "f32": "f32", "fp8": "bf16"}
"""What weights are in memory for what they become on disk."""


def _places(command: F) -> F:
    """Add SOURCE, TARGET and ``--precision``."""
    precision = click.option(
        "--precision", type=click.Choice(["bf16", "f16", "f32", "fp8"]), default="bf16", show_default=True,
        help="Of the weights on disk.",
    )  # fmt: skip
    target = click.argument("target", type=click.Path(path_type=Path))
    return click.argument("source", type=ModelName(here=True))(target(precision(as_json(command))))


def _texts(command: F) -> F:
    """Add the texts that a conversion looks at and is measured on."""
    file = click.Path(exists=True, dir_okay=False, path_type=Path)
    for option in reversed(
        [
            click.option("--calibration", type=file, help="A text like those that the model will see."),
            click.option("--evaluate", type=file, help="A text to measure on; else the calibration text's last fifth."),
            click.option("--tokens", default=16384, show_default=True, help="Measure on so many tokens at most."),
            click.option("--window", default=1024, show_default=True, help="Tokens that a prediction can see."),
        ]
    ):
        command = option(command)
    return command


@click.command()
@_places
@click.option("--exact", is_flag=True, required=True, help="Lose nothing but rounding.")
def convert(source: str, target: Path, precision: str, exact: bool, as_json: bool) -> None:
    """Turn a Llama, Mistral, Qwen2 or SmolLM into multi-head latent attention (MLA).

    The logits and the size of the cache stay the same. To make the cache smaller, see 'deepwell models compress'.
    """
    del exact
    model, tokenizer = _open(source, target, _DTYPES[precision])
    from deepwell.lm.weights.conversions.exact import to_mla

    converted = to_mla(model)
    _save(converted, target, "deepseek", precision, tokenizer)
    _tell(as_json, source, target, _facts(model, converted))


@click.command()
@_places
@click.option("--kv-rank", type=int, required=True, help="Width of the latent.")
@click.option("--rope-dims", type=int, required=True, help="Width of the rotary key that all heads share.")
@click.option("--refit/--no-refit", default=False, show_default=True, help="Fit output matrices again: long texts.")
@_texts
def compress(
    source: str, target: Path, precision: str, kv_rank: int, rope_dims: int, refit: bool, as_json: bool, **texts: Any
) -> None:
    """Make the cache of a Llama, Mistral, Qwen2 or SmolLM smaller: MLA with a latent of low rank.

    A token then caches KV_RANK + ROPE_DIMS values in a layer. Nothing is trained; what is lost is printed.
    """
    model, tokenizer = _open(source, target)
    from deepwell.lm.weights.conversions.compress import compress as compress_network

    calibration, evaluation = _read_texts(tokenizer, **texts)
    with counting_bar("looking at the text") as progress:
        smaller = compress_network(
            model, kv_rank=kv_rank, rope_dims=rope_dims, calibration=calibration, refit=refit, on_progress=progress
        )
    facts = _facts(model, smaller) | _measured(model, smaller, evaluation, texts["window"])
    _save(smaller, target, "deepseek", precision, tokenizer)
    _tell(as_json, source, target, facts)


@click.command()
@_places
@click.option("--experts", type=int, required=True, help="Parts of each feed-forward layer, shared ones included.")
@click.option("--top-k", type=int, required=True, help="Parts that a token takes, shared ones included.")
@click.option("--shared", type=int, default=0, show_default=True, help="Parts that every token takes.")
@click.option(
    "--refit/--no-refit", default=True, show_default=True, help="Fit down_proj again where not all parts run."
)
@_texts
def split(
    source: str, target: Path, precision: str, experts: int, top_k: int, shared: int, refit: bool, as_json: bool,
    **texts: Any,
) -> None:  # fmt: skip
    """Split the dense feed-forward layers of a model into experts.

    With all experts taken it computes what it did; with fewer it loses some and gains speed. Both are printed.
    """
    model, tokenizer = _open(source, target)
    from deepwell.lm.weights.conversions.measure import tokens_per_second
    from deepwell.lm.weights.conversions.split import split as split_network

    calibration, evaluation = _read_texts(tokenizer, **texts)
    with counting_bar("splitting") as progress:
        mixed = split_network(
            model, experts=experts, top_k=top_k, shared=shared, calibration=calibration, refit=refit,
            on_progress=progress,
        )  # fmt: skip
    facts = _facts(model, mixed) | _measured(model, mixed, evaluation, texts["window"])
    before, after = tokens_per_second([model, mixed], evaluation, window=min(512, len(evaluation)))
    facts["tokens_per_second"] = {"before": before, "after": after}
    _save(mixed, target, "deepseek", precision, tokenizer)
    _tell(as_json, source, target, facts)


@click.command()
@_places
@click.option("--experts", type=int, required=True, help="Copies of each feed-forward layer.")
@click.option("--top-k", type=int, required=True, help="Of them that a token takes.")
@click.option("--noise", default=0.0, show_default=True, help="Added to the copies, as a share of their own spread.")
def upcycle(source: str, target: Path, precision: str, experts: int, top_k: int, noise: float, as_json: bool) -> None:
    """Copy the dense feed-forward layers of a model into experts, to be trained further.

    Without noise the new model computes exactly what the old one did.
    """
    model, tokenizer = _open(source, target, _DTYPES[precision])
    from deepwell.lm.weights.conversions.upcycle import upcycle as upcycle_network

    mixed = upcycle_network(model, experts=experts, top_k=top_k, noise=noise)
    _save(mixed, target, "deepseek", precision, tokenizer)
    _tell(as_json, source, target, _facts(model, mixed))


@click.command()
@_places
@click.option(
    "--format", "file_format", type=click.Choice(["deepseek", "gguf"]), default="deepseek", show_default=True,
    help="A folder of safetensors, or one GGUF file.",
)  # fmt: skip
def export(source: str, target: Path, precision: str, file_format: str, as_json: bool) -> None:
    """Write a model in another format or precision, for other tools."""
    model, tokenizer = _open(source, target, _DTYPES[precision])
    _save(model, target, file_format, precision, tokenizer)
    if file_format == "gguf":
        from deepwell.lm.weights.gguf.writing import notes

        for note in notes(model.config):
            click.echo(f"note: {note}", err=True)
    _tell(as_json, source, target, {})


def _open(source: str, target: Path, dtype: str = "f32") -> tuple[Transformer, Tokenizer]:
    """Load what is to be converted, after a look at where the result goes."""
    if target.is_file() or target.is_symlink() or (target.is_dir() and any(target.iterdir())):
        raise UsageError(f"{target} is there already", hint="name another place, or delete it first")
    from deepwell.lm.weights.opening import load

    with counting_bar("reading", quiet_units=True) as progress:
        return load(source, dtype=dtype, on_progress=progress)


def _save(model: Transformer, target: Path, file_format: Any, precision: Any, tokenizer: Tokenizer) -> None:
    from deepwell.lm.weights.saving import save

    save(model, target, format=file_format, precision=precision, tokenizer=tokenizer)


def _read_texts(
    tokenizer: Tokenizer, *, calibration: Path | None, evaluate: Path | None, tokens: int, window: int
) -> tuple[Tensor, Tensor]:
    """Tokens of the text to look at and of the text to measure on."""
    import torch

    if window < 2 or tokens < window:
        raise UsageError(f"--window is {window} and --tokens {tokens}: a window has at least 2, and one must fit")
    if calibration is None:
        from deepwell.lm.weights.conversions.default_text import default_text

        click.echo("no --calibration: Deepwell's own documentation is taken; a text of your own is better", err=True)
        text = default_text()
    else:
        text = _read(calibration)
    seen = torch.tensor(tokenizer.encode(text), dtype=torch.int64)
    if evaluate is not None:
        measured = torch.tensor(tokenizer.encode(_read(evaluate)), dtype=torch.int64)
    else:
        border = len(seen) - min(len(seen) // _HELD_OUT, tokens)
        seen, measured = seen[:border], seen[border:]
    if len(measured) < window:
        name = "--evaluate" if evaluate is not None else "the last fifth of the calibration text"
        raise UsageError(
            f"{name} has {len(measured):,} tokens, fewer than a window of {window:,}",
            hint="give a longer text, or a smaller --window",
        )
    return seen, measured[:tokens]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8 text (byte {error.start})", hint="give a plain text file") from error
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error


def _measured(before: Transformer, after: Transformer, tokens: Tensor, window: int) -> dict[str, Any]:
    from deepwell.lm.weights.conversions.measure import compare

    with counting_bar("measuring") as progress:
        found = compare(before, after, tokens, window=window, on_progress=progress)
    return {
        "perplexity": {"before": found.before.perplexity, "after": found.after.perplexity},
        "kl": found.kl,
        "same_top": found.same_top,
        "measured_on": {"tokens": found.before.tokens, "window": window},
    }


def _facts(before: Transformer, after: Transformer) -> dict[str, Any]:
    from deepwell.lm.model.accounting import Account

    old, new = Account.of(before.config), Account.of(after.config)
    return {
        "config": after.config.to_hf(),
        "parameters": {"before": old.parameters, "after": new.parameters},
        "active_parameters": {"before": old.active_parameters, "after": new.active_parameters},
        "cache_bytes_per_token": {"before": old.cache_bytes_per_token, "after": new.cache_bytes_per_token},
    }


_ROWS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "perplexity": ("perplexity", lambda value: f"{value:.2f}"),
    "cache_bytes_per_token": ("cache, B a token in bf16", lambda value: f"{value:,}"),
    "parameters": ("parameters", lambda value: f"{value:,}"),
    "active_parameters": ("active for a token", lambda value: f"{value:,}"),
    "tokens_per_second": ("tokens/s, forward", lambda value: f"{value:,.0f}"),
}


def _tell(as_json: bool, source: str, target: Path, facts: dict[str, Any]) -> None:
    """The report: before and after, and where it is. Piped, cells are apart by tabs."""
    if as_json:
        print_object({"source": source, "path": str(target), **facts})
        return
    rows = [
        (label, shown(facts[key]["before"]), shown(facts[key]["after"]))
        for key, (label, shown) in _ROWS.items()
        if key in facts
    ]
    if rows and not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join(row))
    elif rows:
        from rich.table import Table

        from deepwell.cli.render import console

        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("")
        table.add_column("before", justify="right")
        table.add_column("after", justify="right")
        for row in rows:
            table.add_row(*row)
        console().print(table)
    if "kl" in facts:
        on = facts["measured_on"]
        click.echo(
            f"KL {facts['kl']:.4f} nats a token; same first token at {facts['same_top']:.1%}; "
            f"measured on {on['tokens']:,} tokens in windows of {on['window']:,}"
        )
    click.echo(f"written: {target}")


@contextlib.contextmanager
def counting_bar(doing: str, *, quiet_units: bool = False) -> Iterator[Progress | None]:
    """A bar on the terminal for what calls with steps done and steps there are; nothing where nobody is watching."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    from deepwell.cli.render import console

    columns: list[Any] = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24)]
    if not quiet_units:
        columns.append(MofNCompleteColumn())
    with Bars(*columns, TimeRemainingColumn(compact=True), console=console(stderr=True), transient=True) as bars:
        task = bars.add_task(doing, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total or None)
