"""``deepwell``: the list of commands, and the one place where errors become messages and exit codes.

Exit codes: 0 done, 1 failed, 2 bad usage, 3 partly done (some files failed), 130 stopped by Ctrl-C, 141 the reader of
our output went away (``deepwell search x | head -1``), as other Unix programs do.

With ``--json`` a failure is one object on standard output, ``{"error": {"code", "message", "hint"}}``, so a script
parses one stream whatever happens; without it the message goes to standard error.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

from deepwell import __version__
from deepwell.cli.options import Settings, print_json
from deepwell.errors import DeepwellError, TrainingError

COMMANDS = {
    "add": ("deepwell.cli.index:add", "Read files and folders into the library."),
    "sync": ("deepwell.cli.index:sync", "Bring the library up to date with its folders."),
    "remove": ("deepwell.cli.index:remove", "Forget files or folders; the files themselves stay."),
    "status": ("deepwell.cli.index:status", "Say what the library holds and what is still to do."),
    "search": ("deepwell.cli.search:search", "Find passages by words, a picture or a recording."),
    "ask": ("deepwell.cli.ask:ask", "Answer a question, with sources."),
    "chat": ("deepwell.cli.chat:chat", "Talk to a language model of this machine."),
    "serve": ("deepwell.cli.serve:serve", "Serve a language model to OpenAI's clients over HTTP."),
    "keys": ("deepwell.cli.keys:keys", "Make, list and remove the keys of a server."),
    "models": ("deepwell.cli.models:models", "List, fetch, check and remove models."),
    "train": ("deepwell.cli.train:train", "Train a language model by a recipe."),
    "runs": ("deepwell.cli.runs:runs", "List what was trained, and write reports."),
    "completion": ("deepwell.cli.completion:completion", "Print the script that completes commands in your shell."),
}


class _ReaderGoneError(Exception):
    """Nobody reads our output any more. Not an ``OSError``, which click would turn into exit code 1."""


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of use, not of the alphabet."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command, or None for a name that is not one."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; a broken pipe is told apart from every other error."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError as error:
            raise _ReaderGoneError from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in ``--help``, from the table above, so that no command is imported for it."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 failed, 2 bad usage, 3 partly done (some files failed).",
)
@click.option("--library", type=click.Path(path_type=Path), help="The library's folder [env: DEEPWELL_LIBRARY].")
@click.version_option(__version__, "-V", "--version", prog_name="deepwell", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, library: Path | None) -> None:
    """Search, ask and analyse your own text, images and audio on your own machine.

    \b
      deepwell models pull starter      fetch the small models, once
      deepwell add ~/Documents          read everything in a folder
      deepwell search "heat pump cost"  find it again, by meaning
      deepwell ask "what did it cost?"  and be told, with sources
    """
    ctx.obj = Settings(library)


def run(args: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's own) and return its exit code."""
    arguments = list(sys.argv[1:] if args is None else args)
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    as_json = "--json" in options
    try:
        code = cli.main(arguments, prog_name="deepwell", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except (click.ClickException, DeepwellError) as error:
        if _is_told_by_the_first(error):
            return error.exit_code
        if isinstance(error, DeepwellError):
            return _fail(error.code, error.message, error.hint, error.exit_code, as_json)
        return _fail("bad-usage", error.format_message(), _usage_hint(error), error.exit_code, as_json)
    except (KeyboardInterrupt, click.Abort):
        click.echo("Stopped.", err=True)  # click has ended the line that ^C stands on
        return 130
    except (_ReaderGoneError, BrokenPipeError):
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if os.environ.get("DEEPWELL_DEBUG"):
            traceback.print_exc()
        hint = "This is a fault in Deepwell. Set DEEPWELL_DEBUG=1 and run it again to see where, then please report it."
        return _fail("internal", f"{type(error).__name__}: {error}", hint, 1, as_json)


def _is_told_by_the_first(error: Exception) -> bool:
    """Whether torchrun has started several of us here, and all of them find the same wrong: a command line, a recipe, a
    model that is missing. The first one of each machine says so; what happens in training can be one's own misfortune.
    """
    is_another = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("LOCAL_RANK", "0") != "0"
    return is_another and not isinstance(error, TrainingError)


def _usage_hint(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"See: {context.command_path} --help" if context else ""


def _fail(code: str, message: str, hint: str, exit_code: int, as_json: bool) -> int:
    if as_json:
        print_json({"error": {"code": code, "message": message, "hint": hint}})
    else:
        click.echo(click.style("error: ", fg="red", bold=True) + message, err=True)
        if hint:
            click.echo(f"  {hint}", err=True)
    return exit_code


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        # A file name that is not UTF-8 must not end the list that it stands in; escaped so, it is valid JSON too.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run())


if __name__ == "__main__":
    main()
