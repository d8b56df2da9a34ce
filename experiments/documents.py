"""Write results into the documents that show them, docs/ddim.md and experiments/README.md: python -m experiments.documents

The prose is written by hand; between `<!-- NAME -->` and `<!-- /NAME -->` stands the report that the experiment of that name
makes of its committed rows, experiments/results/NAME.json. Nothing is computed again. Where an experiment has several results, a
block is called NAME_OTHER.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import click

from diffode.errors import InputError
from diffode.files import atomic
from experiments.common.commands import Script

HERE = Path(__file__).parent
DOCUMENTS, RESULTS = (HERE.parent / "docs" / "ddim.md", HERE / "README.md"), HERE / "results"
PAPER = ("consistency", "interpolation", "likelihood", "table1", "table2", "theorem1")
CLAIMS = ("order", "nfe_error", "grids", "guidance", "adaptive", "speed")
MODULES = {name: f"experiments.ddim_paper.{name}" for name in PAPER} | {name: f"experiments.claims.{name}" for name in CLAIMS}
BLOCK = re.compile(r"<!-- (?P<name>\w+) -->\n.*?<!-- /(?P=name) -->", re.DOTALL)


def filled(text: str) -> str:
    """A document with every block made again; InputError for a block that no experiment makes."""

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        module = next((module for module in MODULES if name == module or name.startswith(f"{module}_")), None)
        if module is None:
            raise InputError(f"no experiment makes the block {name!r}: expected a name that begins with {', '.join(MODULES)}")
        report = import_module(MODULES[module]).report(RESULTS / name)
        return f"<!-- {name} -->\n{report.strip()}\n<!-- /{name} -->"

    return BLOCK.sub(block, text)


@click.command(cls=Script, resumable=False)
@click.option("--check", is_flag=True, help="Write nothing; exit code 1 if a document is out of date.")
def main(check: bool) -> None:
    """Write the reports of the experiments into the documents."""
    for document in DOCUMENTS:
        before = document.read_text(encoding="utf-8")
        after = filled(before)
        if check and after != before:
            raise click.ClickException(f"{document.name} is out of date: run python -m experiments.documents")
        if after != before:
            with atomic(document) as part:
                part.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
