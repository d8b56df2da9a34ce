"""docs/ddim.md, the paper beside what its claims come to here: python -m experiments.ddim_report

The prose is written in the document; between `<!-- NAME -->` and `<!-- /NAME -->` stands what the experiment of that name
reports of its committed rows, experiments/results/NAME.json; nothing is computed. An experiment of several results has them as
NAME_OTHER.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import click

from diffode.errors import InputError
from diffode.files import atomic
from experiments.script import Script

ROOT = Path(__file__).parent.parent
DOCUMENT, RESULTS = ROOT / "docs" / "ddim.md", Path(__file__).parent / "results"
MODULES = ("consistency", "ddim_table", "interpolation", "lemmas", "likelihood", "reconstruction")
BLOCK = re.compile(r"<!-- (?P<name>\w+) -->\n.*?<!-- /(?P=name) -->", re.DOTALL)


def filled(text: str) -> str:
    """The document with every block made anew; InputError for a block that no experiment makes."""

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        module = next((module for module in MODULES if name == module or name.startswith(f"{module}_")), None)
        if module is None:
            raise InputError(f"no experiment makes the block {name!r}: expected a name that begins with {', '.join(MODULES)}")
        report = import_module(f"experiments.{module}").report(RESULTS / name)
        return f"<!-- {name} -->\n{report.strip()}\n<!-- /{name} -->"

    return BLOCK.sub(block, text)


@click.command(cls=Script, goes_on=False)
@click.option("--check", is_flag=True, help="Write nothing; exit code 1 if the document is not what the results say.")
def main(check: bool) -> None:
    """Put what the experiments report into docs/ddim.md."""
    before = DOCUMENT.read_text(encoding="utf-8")
    after = filled(before)
    if check and after != before:
        raise click.ClickException(f"{DOCUMENT.name} is not what the results say: python -m experiments.ddim_report")
    if not check:
        with atomic(DOCUMENT) as part:
            part.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
