"""What every command does with bad input, a disk that refuses, too little memory, and signals: one sentence, and exit code 2, or
130 after Ctrl-C.

The library names parameters, `grid="time"`; what a command prints of it names options, --grid time.
"""

from __future__ import annotations

import errno
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import cloup
from click.exceptions import Exit, NoArgsIsHelpError

from diffode.errors import InputError
from experiments.common import interrupts, terminal

PARAMETER = re.compile(r'`(?P<name>[a-z_]+)`|\b(?P<key>[a-z_]+)=(?P<value>True|False|"[^"]*"|[-+]?[\d.][\w.+-]*\w|\d)')
OUT_OF_MEMORY = re.compile("can't allocate memory|not enough memory|out of memory|Storage size calculation overflow|ALLOC_FAILED")
IN_MEMORY = ("batch", "width", "blocks", "n", "completions", "per_class", "rank")  # options by which memory grows


@contextmanager
def cli_errors(command: click.Command, *, resumable: bool = False, ctx: click.Context | None = None) -> Iterator[None]:
    """Turn InputError, OSError and want of memory into click's usage errors, in at most 400 characters; signals into 128 + their
    number as exit code, which 130 is of Ctrl-C; and a reader of the output that left into 141.

    resumable: whether the same command continues where it was interrupted, which is then said.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        goes_on = ": the same command goes on where it was" if resumable else ""
        with suppress(OSError):  # of a terminal that is gone
            click.echo(f"{interrupts.in_words(error)}{goes_on}.", err=True)
        raise Exit(128 + interrupts.number_of(error)) from None
    except BrokenPipeError:
        terminal.abandon()
        raise Exit(141) from None
    except NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        raise click.UsageError(terminal.bounded(error.format_message()), error.ctx) from error
    except (InputError, OSError, MemoryError, RuntimeError) as error:
        message = _in_words(error, command, ctx.params if ctx else {})
        if message is None:
            raise
        raise click.UsageError(terminal.bounded(message)) from error


def _in_words(error: Exception, command: click.Command, typed: Mapping[str, Any]) -> str | None:
    """What is printed of an error; None for one that is nobody's but ours. typed: the command's parameters."""
    if isinstance(error, InputError):
        return with_flags(str(error), command)
    if is_out_of_memory(error):
        options = {option.name: max(option.opts, key=len) for option in command.params if isinstance(option, click.Option)}
        lower = [f"{options[name]} ({typed[name]})" for name in IN_MEMORY if name in options and typed.get(name) is not None]
        return f"out of memory{': lower ' * bool(lower)}{' or '.join(lower)}"
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is Python, NumPy, torch on whatever device, or the system for want of memory."""
    if isinstance(error, RuntimeError):
        return bool(OUT_OF_MEMORY.search(str(error)))
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)


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
        terminal.say(f"Warning: {terminal.bounded(with_flags(warning, ctx.command))}", err=True)


class Reporting(click.Command):
    """A command that reports errors as `cli_errors` does, and refuses words that are no text.

    resumable: whether the same command continues where it was interrupted, unless it is told to overwrite.
    """

    resumable = False

    def main(self, *args: Any, **kwargs: Any) -> Any:
        with terminal.prepared(), interrupts.raised():
            try:
                return super().main(*args, **kwargs)
            except OSError:  # not even the error can be printed
                terminal.abandon()
                sys.exit(2)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with cli_errors(self):
            return super().make_context(*args, **kwargs)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for word in args:
            if "\0" in word or (not word.isascii() and re.search("[\ud800-\udfff]", word)):
                raise click.UsageError(f"{word!r} holds bytes that are no text: give a name without them", ctx)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with cli_errors(self, resumable=self.resumable and not ctx.params.get("overwrite"), ctx=ctx):
            return super().invoke(ctx)


class Script(Reporting, cloup.Command):
    """A command: `@click.command(cls=Script)`."""

    def __init__(self, *args: Any, resumable: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.resumable = resumable


class Commands(Reporting, cloup.Group):
    """A group of Scripts."""


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
