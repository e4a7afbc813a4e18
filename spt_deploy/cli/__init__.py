"""The command ``spt-deploy``: a table of commands, each imported when it is called and not before.

A command's module holds one click command named ``command``. What goes wrong in any of them ends here: as one
sentence on stderr and the error's exit code, with the traceback above it when ``--debug`` asks for one.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from typing import Any, NoReturn, cast

import click

from spt_deploy.cli.machine_errors import machine_error
from spt_deploy.errors import SptError, notes_of
from spt_deploy.version import __version__

# How long PyTorch's OpenMP threads (libgomp) spin for each other before they sleep. By default so long that, beside
# other work on the same cores, training drops to a tenth: the spinning thread holds up the one it waits for. At 3000
# an idle machine is as fast as before.
SPIN = ("GOMP_SPINCOUNT", "3000")
INTERRUPTED = 130  # 128 + SIGINT, as shells report it

# command -> (the module that holds it, what `spt-deploy --help` says of it)
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("spt_deploy.cli.train", "Train an SPT on a data set."),
    "data": ("spt_deploy.cli.data", "Split a data set, or make a sparse one of it."),
    "convert": ("spt_deploy.cli.convert", "Turn Swin weights into a checkpoint to start from."),
    "export": ("spt_deploy.cli.export", "Write a checkpoint as one ONNX file for every runtime."),
    "build-engine": ("spt_deploy.cli.build_engine", "Build a TensorRT or TensorRT-RTX engine of an ONNX file."),
    "validate": ("spt_deploy.cli.validate", "Prove that artefacts and runtimes say the same."),
    "infer": ("spt_deploy.cli.infer", "Run a model on images, videos, cameras and streams."),
    "bench": ("spt_deploy.cli.bench", "Time artefacts and runtimes side by side."),
    "info": ("spt_deploy.cli.info", "Say what an artefact is: task, classes, size, work."),
    "doctor": ("spt_deploy.cli.doctor", "Try every runtime here, and say what to install."),
}


class LazyGroup(click.Group):
    """A group that imports a command's module when that command is called, and turns errors into sentences."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now; None when there is none."""
        if cmd_name not in COMMANDS:
            return None
        return cast(click.Command, importlib.import_module(COMMANDS[cmd_name][0]).command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with the known commands in the error."""
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"there is no command {args[0]!r}; known are {', '.join(COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table: their modules stay unread."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, help_line) in COMMANDS.items()])

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """As click's, with errors of the group's own options in one sentence."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            _end(error)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; what it raises is printed as one sentence and becomes an exit code."""
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click ends these quietly; a closed pipe is `spt-deploy ... | head`
        except Exception as error:
            if ctx.params["debug"] and not isinstance(error, click.ClickException):
                import traceback

                traceback.print_exception(error)
            _end(error)
        except KeyboardInterrupt as error:
            click.echo("\n".join(["error: interrupted before the job was done", *notes_of(error)]), err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None


def _end(error: Exception) -> NoReturn:
    """Print ``error``, with the notes that were added to it, and leave with its exit code."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        raise error
    sentence, exit_code = _sentence(error)
    click.echo("\n".join([f"error: {sentence}", *notes_of(error)]), err=True)
    raise click.exceptions.Exit(exit_code) from error


def _sentence(error: Exception) -> tuple[str, int]:
    """What the user reads of an error, and the exit code."""
    if isinstance(error, click.UsageError):
        hint = f"; see '{error.ctx.command_path} --help'" if error.ctx else ""
        return error.format_message().rstrip(".") + hint, error.exit_code
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if not isinstance(error, SptError):
        error = machine_error(error) or error
    if isinstance(error, SptError):
        return str(error), error.exit_code
    # No error of ours: named in one line, so that it can be searched for and reported.
    message = " ".join(str(error).split()) or "no message"
    return f"unexpected {type(error).__name__}: {message}; run again with --debug for the traceback", 1


@click.group("spt-deploy", cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", prog_name="spt-deploy")
@click.option("--debug", is_flag=True, envvar="SPT_DEBUG", show_envvar=True, help="Show a traceback with every error.")
def main(debug: bool) -> None:
    """From a trained Select and Pack Transformer to something that runs.

    train -> checkpoint -> export -> model.onnx -> build-engine -> model.engine; validate and infer take all three.

    A model that is not named is the newest artefact here or under runs/, the best kind first.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a file's name need not be UTF-8: it is given back as it is
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault(*SPIN)  # before a command imports torch, which reads it once


__all__ = ["COMMANDS", "LazyGroup", "main"]
