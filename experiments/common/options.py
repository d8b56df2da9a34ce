"""What the command line reads: types of its parameters, and options that several commands share."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import cloup
from click.core import ParameterSource

MOST_IMAGES = 10_000_000  # of one command
COUNT = click.IntRange(1, MOST_IMAGES)
SEED = click.IntRange(0, 2**32 - 1)
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class FileName(click.ParamType):
    """The name of a file or a folder, as a Path; as text (to=str) where it may also be a name of another kind.

    longest: the bytes of a name, as file systems take them.
    """

    name, longest = "path", 255

    def __init__(self, to: type[Path] | type[str] = Path) -> None:
        self.to = to

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value).strip():
            self.fail(f"{str(value)!r} is no name", param, ctx)
        if max(len(part.encode()) for part in re.split("[/,]", str(value))) > self.longest:
            self.fail(f"{str(value)!r} is too long: the name of a file has at most {self.longest} bytes", param, ctx)
        return self.to(value)


class OutputName(FileName):
    """The name of a file or folder that is to be written, refused before any work where nothing can be written.

    There is room for the names of what is written beside it.
    """

    longest = 200

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from diffode.files import check_writable  # so that --help does not wait for numpy

        path = super().convert(value, param, ctx)
        try:
            check_writable(path)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            self.fail(f"{str(path)!r} cannot be written ({why}): give another name", param, ctx)
        return path


class Numbers(click.ParamType):
    """Comma-separated whole numbers and ranges: 7 or 1,2,5 or 0-49999."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        matches = [re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", part.strip()) for part in str(value).split(",")]
        ranges = [range(int(match[1]), int(match[2] or match[1]) + 1) for match in matches if match]
        count = sum(len(part) if part else 1 for part in ranges)
        if len(ranges) < len(matches) or not all(ranges):
            self.fail(f"{value!r} is not a list of whole numbers and ranges, as 7 or 1,2,5 or 0-49999", param, ctx)
        if count > MOST_IMAGES:
            self.fail(f"{value!r} is {count} numbers, more than the {MOST_IMAGES} that one command takes", param, ctx)
        numbers = [number for part in ranges for number in part]
        if len(set(numbers)) < count:
            self.fail(f"{value!r} is not a list of different whole numbers: it names one twice", param, ctx)
        return numbers


class GridSpec(click.ParamType):
    """A grid's name, a .json file with one, or its values of λ, comma-separated, noisy to clean."""

    name = "name|list|file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value.endswith(".json"):
            from diffode import grid

            return grid.load(value)
        try:
            return [float(part) for part in value.split(",")] if not value[0].isalpha() else value
        except (ValueError, IndexError):
            self.fail(f"{value!r} is neither the name of a grid nor a comma-separated list of λ, as -5,-2,0,2,4.6", param, ctx)


class Interval(click.ParamType):
    """Two numbers, LO,HI."""

    name = "lo,hi"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            lo, hi = (float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not two numbers with a comma, as -0.5,1.6", param, ctx)
        return lo, hi


class NameValue(click.ParamType):
    """NAME=VALUE, an option of a solver."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        name, equals, text = value.partition("=")
        if not (name.strip() and equals and text.strip()):
            self.fail(f"{value!r} is not NAME=VALUE, as eta=0.5; `solvers` lists the options of each solver", param, ctx)
        return name.strip().replace("-", "_"), text.strip()


def path(*names: str, **settings: Any) -> Any:
    """An option that is a path."""
    return cloup.option(*names, type=OutputName(), **settings)


def examples(*commands: str) -> str:
    """The last part of a help text: what may be typed after `python cli.py`, a line each."""
    return "\b\nExamples:\n" + "\n".join(f"  python cli.py {command}" for command in commands)


def together(*decorators: Any) -> Decorator:
    """Several options, or groups of options, as one decorator."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def as_one(name: str, build: Callable[..., Any], parts: Sequence[str] = ()) -> Decorator:
    """Hand the parameters `parts`, or else those of `build`, to the command as one: `name`, what `build` returns for them."""
    taken = parts or list(inspect.signature(build).parameters)

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def call(*args: Any, **parameters: Any) -> Any:
            one = build(**{part: parameters.pop(part) for part in taken})
            return command(*args, **parameters, **{name: one})

        return call

    return decorate


def from_command_line(ctx: click.Context) -> dict[str, Any]:
    """The options that were typed, and their values."""
    names = [parameter.name or "" for parameter in ctx.command.params]
    return {name: ctx.params[name] for name in names if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
