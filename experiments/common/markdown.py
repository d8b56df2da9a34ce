"""What reports are written with: a table of Markdown, and the sentence on what computed their rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def provenance_sentence(about: Mapping[str, Any]) -> str:
    """The sentence that names the model and the run that computed rows last. about: what results.read returns first."""
    runs = f" ({len(about['made'])} runs, of which this is the last)" if len(about["made"]) > 1 else ""
    return f"Model `{about['model']}` (SHA-256 {about['sha256'][:12]}). Made by {run_sentence(about['made'][-1], runs)}."


def run_sentence(run: Mapping[str, Any], remark: str = "") -> str:
    """A run, as results.provenance has it: command, versions, machine, commit and date."""
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    return f"`{run['command']}`{remark}: {versions}, {run['machine']}, commit {run['commit']}, {run['date']}"
