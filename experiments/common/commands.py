"""What every command does with bad input, a disk that refuses, and Ctrl-C: one sentence, exit code 2 or 130."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click


@contextmanager
def told(ctx: click.Context, goes_on: Callable[[], bool]) -> Iterator[None]:
    """Turn InputError and OSError into click's usage errors; goes_on: whether the same command, typed again, does."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"Interrupted{': the same command goes on where it was' if goes_on() else ''}.", err=True)
        ctx.exit(130)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise click.UsageError(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}") from error
    except ValueError as error:
        from diffode.errors import InputError  # so that --help does not wait for torch

        if isinstance(error, InputError):
            raise click.UsageError(str(error)) from error
        raise


class Script(click.Command):
    """An experiment as a command: `@click.command(cls=Script)`. goes_on: whether it does when it is typed again."""

    def __init__(self, *args: Any, goes_on: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.goes_on = goes_on

    def invoke(self, ctx: click.Context) -> Any:
        with told(ctx, lambda: self.goes_on):
            return super().invoke(ctx)


def typed(module: str) -> str:
    """The command as it can be typed again."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])
