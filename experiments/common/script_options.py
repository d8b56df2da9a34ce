"""The options that several experiments have, and how a command gets all of its options as one value."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

Command = Callable[..., Any]
Options = TypeVar("Options")


def model(default: str = "fashion") -> Callable[[Command], Command]:
    """The model that is sampled, as `name`."""
    return click.option("--model", "name", default=default, show_default=True, help="As `cli.py sample` takes it.")


def solvers(default: tuple[str, ...]) -> Callable[[Command], Command]:
    """Any number of solvers, as `solvers`."""
    text = f"May be given again. [default: {', '.join(default)}]"
    return click.option("--solver", "solvers", multiple=True, default=default, help=text)


def seed(text: str = "The first; sample i has seed + i.") -> Callable[[Command], Command]:
    """The seed of the first sample."""
    return click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help=text)


def out(default: str | None, text: str = "OUT.csv, OUT.json and OUT.png: a name without suffix.") -> Callable[[Command], Command]:
    """Where the results go, a name without suffix."""
    return click.option("--out", default=default, show_default=default is not None, type=click.Path(path_type=Path), help=text)


def overwrite(command: Command) -> Command:
    """Whether rows that are there are discarded."""
    return click.option("--overwrite", is_flag=True, help="Discard existing rows.")(command)


def fast(text: str) -> Callable[[Command], Command]:
    """Whether to run only a little; text: how little."""
    return click.option("--fast", is_flag=True, help=f"Only to see that it runs: {text}.")


def as_one(kind: Callable[..., Options]) -> Callable[[Callable[[Options], None]], Command]:
    """Hand a command its options as one value of this dataclass, whose fields have the names of the options."""

    def decorate(command: Callable[[Options], None]) -> Command:
        @wraps(command)
        def main(**values: Any) -> None:
            command(kind(**values))

        return main

    return decorate
