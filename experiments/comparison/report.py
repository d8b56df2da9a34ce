"""Comparisons as one HTML file: the answer, curves, pictures and all cells. python -m experiments.comparison.report DIR... --out report.html

The file loads nothing: style, script, numbers and pictures are in it, and its policy, which names its own style and script by
their hashes, forbids the browser any other. The templates lie in experiments/comparison/templates.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from diffode.errors import InputError
from diffode.files import atomic
from experiments.common import results
from experiments.common.commands import Script
from experiments.common.results import Row
from experiments.comparison import report_tables, thumbnails
from experiments.comparison.cells import OWN, stem
from experiments.comparison.ranking import MEASURES, answer, measured, size, typical

SCRIPTS = ("report.js", "chart.js", "wall.js", "table.js")
NEEDED = {"model", "sha256", "shape", "n", "seed", "labels", "guidance", "clip", "threshold", "denoise", "lam", "solution"}


def report(folders: Sequence[Path], out: Path) -> None:
    """Write the comparisons of these folders as one HTML file, a tab each; InputError for a folder that holds none."""
    text = page(folders)
    with atomic(out) as part:
        part.write_text(text, encoding="utf-8")


def page(folders: Sequence[Path]) -> str:
    """That file's text."""
    environment = Environment(
        loader=PackageLoader("experiments.comparison"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    assert environment.loader is not None
    style, *scripts = (environment.loader.get_source(environment, name)[0] for name in ("report.css", *SCRIPTS))
    script = "\n".join(scripts)
    comparisons = [comparison(folder, f"comparison-{i}") for i, folder in enumerate(folders, 1)]
    models = Counter(each["name"] for each in comparisons)
    for each, folder in zip(comparisons, folders, strict=True):
        each["name"] += f" ({folder.name})" if models[each["name"]] > 1 else ""
    policy = {"default-src": "'none'", "img-src": "blob:", "style-src": _hash(style), "script-src": _hash(script)}
    return environment.get_template("report.html").render(
        comparisons=comparisons,
        policy="; ".join(
            f"{name} {allowed}" for name, allowed in {**policy, "base-uri": "'none'", "form-action": "'none'"}.items()
        ),
        style=Markup(style),
        script=Markup(script),
    )


def comparison(folder: Path, name: str) -> dict[str, Any]:
    """What the template is given of one folder; name: its id in the page."""
    about, rows = results.read(folder / "rows")
    if missing := sorted(NEEDED - about.keys()):
        raise InputError(f"{folder / 'rows.json'} is of no comparison: it does not say {', '.join(missing)}; name another folder")
    shape: list[int] = about["shape"]
    height, width = [1, 1, *shape][-2:]
    pictures = thumbnails.load(folder / "pictures", ["reference", *map(stem, measured(rows, "spent"))], height, width)
    return {
        "id": name,
        "name": about["model"],
        "answer": answer(rows),
        "typical": typical(rows),
        "how": report_tables.how(about),
        "solution": report_tables.solution(about, rows),
        "best": (best := report_tables.best(rows)),
        "baseline": any(line["times"] for line in best),
        "adaptive": any(row["nfe"] is None for row in rows),
        "reduced": pictures.reduced if pictures else 1,
        "columns": report_tables.columns(rows),
        "lines": report_tables.lines(rows),
        "failed": report_tables.failed(rows),
        "made": report_tables.made(about),
        "data": data(about, rows, pictures, name),
    }


def data(about: Mapping[str, Any], rows: Sequence[Row], pictures: thumbnails.Strips | None, name: str) -> dict[str, Any]:
    """What the scripts are given: numbers as they are, and the pictures of rows by their stems."""
    measures, front = [key for key in MEASURES if measured(rows, key)], report_tables.marked(rows)
    numbers = [column.key for column in report_tables.columns(rows) if column.number and column.key != "front"]
    encoded = dict(pictures.encoded) if pictures else {}
    return {
        "id": name,
        "model": about["model"],
        "n": about["n"],
        "seed": about["seed"],
        "measures": [{"key": key, "label": MEASURES[key].label} for key in measures],
        "rows": [
            {
                **{key: row[key] for key in ("solver", "grid", "nfe", "rtol")},
                **{key: row[key] if size(row, key) is not None else None for key in numbers},
                **{key: row[key] for key in ("error", "skipped") if key in row},
                "front": on_it,
                "stem": stem(row),
            }
            for row, on_it in zip(rows, front, strict=True)
        ],
        "solvers": list(dict.fromkeys(row["solver"] for row in rows)),
        "grids": list(dict.fromkeys(row["grid"] for row in rows if row["grid"] != OWN)),
        "budgets": sorted({row["nfe"] for row in rows if row["nfe"] is not None}),
        "reference": encoded.pop("reference", None),
        "pictures": encoded,
        "strip": {key: getattr(pictures, key) for key in ("width", "height", "count")} if pictures else None,
    }


def _hash(text: str) -> str:
    """As a Content-Security-Policy names what it allows."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@click.command(cls=Script, resumable=False)
@click.argument("folders", nargs=-1, required=True, metavar="DIR...", type=click.Path(path_type=Path))
@click.option("--out", default="docs/report.html", show_default=True, type=click.Path(path_type=Path))
@click.option("--screenshot", type=click.Path(path_type=Path), help="A PNG of the page, too; takes selenium and Chromium.")
def main(folders: tuple[Path, ...], out: Path, screenshot: Path | None) -> None:
    """Write comparisons, which `cli.py compare --out DIR` made, as one HTML file that loads nothing."""
    report(folders, out)
    click.echo(f"{out}: {out.stat().st_size / 2**20:.1f} MiB")
    if screenshot is not None:
        from experiments.comparison.browser import picture

        picture(out, screenshot)
        click.echo(f"{screenshot}")


if __name__ == "__main__":
    main()
