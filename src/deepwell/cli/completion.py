"""``deepwell completion SHELL``: the script that a shell reads to complete our commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_WHERE = {
    "bash": 'Add to ~/.bashrc:  eval "$(deepwell completion bash)"',
    "zsh": 'Add to ~/.zshrc:  eval "$(deepwell completion zsh)"',
    "fish": "Save as ~/.config/fish/completions/deepwell.fish",
}


@click.command()
@click.argument("shell", type=click.Choice(list(_WHERE)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes deepwell's commands and options in a shell.

    \b
      bash   add to ~/.bashrc:  eval "$(deepwell completion bash)"
      zsh    add to ~/.zshrc:   eval "$(deepwell completion zsh)"
      fish   deepwell completion fish > ~/.config/fish/completions/deepwell.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None  # click.Choice let through only shells that click knows
    root = ctx.find_root()
    click.echo(f"# {_WHERE[shell]}")
    click.echo(kind(root.command, {}, "deepwell", "_DEEPWELL_COMPLETE").source())
