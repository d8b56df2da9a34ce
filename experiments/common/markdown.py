"""What reports are made of: a table, and the sentence that says what made it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def provenance(about: Mapping[str, Any]) -> str:
    """What made the rows that rows.read hands back: the model, and the last run."""
    runs = f" ({len(about['made'])} runs, of which this is the last)" if len(about["made"]) > 1 else ""
    return f"Model `{about['model']}` (SHA-256 {about['sha256'][:12]}). Made by {run(about['made'][-1], runs)}."


def run(made: Mapping[str, Any], remark: str = "") -> str:
    """A run, as rows.made_by has it: command, versions, machine, commit and date."""
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return f"`{made['command']}`{remark}: {versions}, {made['machine']}, commit {made['commit']}, {made['date']}"
