"""The options that several experiments have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from experiments.common.options import SEED, Decorator, FileName, OutputName


def model(default: str = "fashion") -> Decorator:
    """The model that is sampled, as `name`."""
    return click.option(
        "--model", "name", type=FileName(str), default=default, show_default=True, help="As `cli.py sample` takes it."
    )


def solvers(default: tuple[str, ...]) -> Decorator:
    """Any number of solvers, as `solvers`."""
    text = f"May be given again. [default: {', '.join(default)}]"
    return click.option("--solver", "solvers", multiple=True, default=default, help=text)


def seed(text: str = "The first; sample i has seed + i.") -> Decorator:
    """The seed of the first sample."""
    return click.option("--seed", default=0, show_default=True, type=SEED, help=text)


def out(default: str | None, text: str = "OUT.csv, OUT.json and OUT.png: a name without suffix.") -> Decorator:
    """Where the results go, a name without suffix."""
    return click.option("--out", default=default, show_default=default is not None, type=OutputName(), help=text)


def overwrite(command: Callable[..., Any]) -> Callable[..., Any]:
    """Whether rows that are there are discarded."""
    return click.option("--overwrite", is_flag=True, help="Discard existing rows.")(command)


def fast(text: str) -> Decorator:
    """Whether to run only a little; text: how little."""
    return click.option("--fast", is_flag=True, help=f"Only to see that it runs: {text}.")
