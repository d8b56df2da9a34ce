"""What every command does with bad input, a disk that refuses, and Ctrl-C: one sentence, exit code 2 or 130.

The library names parameters, `grid="time"`; what a command prints of it names options, --grid time.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import cloup

PARAMETER = re.compile(r'`(?P<name>[a-z_]+)`|\b(?P<key>[a-z_]+)=(?P<value>True|False|"[^"]*"|[-+]?[\d.][\w.+-]*\w|\d)')


@contextmanager
def cli_errors(ctx: click.Context, *, resumable: bool = False) -> Iterator[None]:
    """Turn InputError and OSError into click's usage errors, and Ctrl-C into exit code 130.

    resumable: whether the same command continues where it was interrupted, which is then said.
    """
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"Interrupted{': the same command goes on where it was' if resumable else ''}.", err=True)
        ctx.exit(130)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise click.UsageError(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}") from error
    except ValueError as error:
        from diffode.errors import InputError  # so that --help does not wait for torch

        if isinstance(error, InputError):
            raise click.UsageError(with_flags(str(error), ctx.command)) from error
        raise


def with_flags(message: str, command: click.Command) -> str:
    """The message with the parameters that are options of the command written as these.

    `grid` is --grid, grid="time" is --grid time, denoise=True is --denoise, and denoise=False is --no-denoise.
    """
    options = {option.name: option for option in command.params if isinstance(option, click.Option)}

    def flag(match: re.Match[str]) -> str:
        option = options.get(match["name"] or match["key"])
        if option is None:
            return match[0]
        if match["value"] == "False" and option.secondary_opts:
            return option.secondary_opts[0]
        name = max(option.opts, key=len)
        return name if match["name"] or option.is_flag else f"{name} {match['value'].strip(chr(34))}"

    return PARAMETER.sub(flag, message)


def warn(ctx: click.Context, warnings: Sequence[str]) -> None:
    """Print warnings on stderr, a line each."""
    for warning in warnings:
        click.echo(f"Warning: {with_flags(warning, ctx.command)}", err=True)


class Script(cloup.Command):
    """A command that reports errors as `cli_errors` does: `@click.command(cls=Script)`.

    resumable: whether the same command continues where it was interrupted, unless it is told to overwrite.
    """

    def __init__(self, *args: Any, resumable: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.resumable = resumable

    def invoke(self, ctx: click.Context) -> Any:
        with cli_errors(ctx, resumable=self.resumable and not ctx.params.get("overwrite")):
            return super().invoke(ctx)


class Commands(cloup.Group):
    """A group of Scripts, whose own errors, of parsing, are reported in the same way."""

    def invoke(self, ctx: click.Context) -> Any:
        with cli_errors(ctx):
            return super().invoke(ctx)


def command_line() -> str:
    """The running command as it was typed, and can be typed again: without --resume, which its first run did not have.

    `python cli.py ...`, `python -m diffode ...`, `diffode ...` or `python -m experiments.ROOM.NAME ...`.
    """
    spec = sys.modules["__main__"].__spec__  # of `python -m`; sys.argv[0] is then the path of the module's file
    if spec is not None:
        program = ["python", "-m", spec.name.removesuffix(".__main__")]
    elif sys.argv[0].endswith(".py"):
        program = ["python", sys.argv[0]]
    else:  # a console script, which is typed without its folder
        program = [Path(sys.argv[0]).name]
    return shlex.join([*program, *(word for word in sys.argv[1:] if word != "--resume")])
