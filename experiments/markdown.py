"""What reports are made of: a table, and the sentence that says what made it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def provenance(about: Mapping[str, Any]) -> str:
    """What made the rows that rows.read hands back: model, command, versions, machine, commit and date of the last run."""
    made = about["made"][-1]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    runs = f" ({len(about['made'])} runs, of which this is the last)" if len(about["made"]) > 1 else ""
    return (
        f"Model `{about['model']}` (SHA-256 {about['sha256'][:12]}). Made by `{made['command']}`{runs}: "
        f"{versions}, {made['machine']}, commit {made['commit']}, {made['date']}."
    )
