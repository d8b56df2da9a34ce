"""Comparisons as one HTML file: the answer, curves, pictures and all cells.

    python -m experiments.comparison.report DIR... --out report.html  (--overwrite, if it exists)

The file loads nothing: its style, script, numbers and pictures are inside. Its Content-Security-Policy names its own style and
script by their hashes and forbids the browser everything else. The templates are in experiments/comparison/templates.
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

from diffode.files import atomic
from diffode.images import drawings
from experiments.common.commands import Script
from experiments.common.destinations import refuse_existing
from experiments.common.options import FileName, OutputName
from experiments.common.results import Row
from experiments.common.terminal import say
from experiments.comparison import report_tables
from experiments.comparison.cells import OWN_STEPS, cell_filename
from experiments.comparison.ranking import MEASURES, answer, magnitude, measured, median_answer
from experiments.comparison.rows import read_rows
from experiments.comparison.thumbnails import Thumbnails, load_thumbnails

SCRIPTS = ("report.js", "chart.js", "wall.js", "table.js")


def write_report(folders: Sequence[Path], out: Path) -> None:
    """Write the comparisons in these folders as one HTML file, one tab each; InputError for a folder that holds none."""
    text = render(folders)
    with atomic(out) as part:
        part.write_text(text, encoding="utf-8")


def render(folders: Sequence[Path]) -> str:
    """The text of that file."""
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
    comparisons = [template_values(folder, f"comparison-{i}") for i, folder in enumerate(folders, 1)]
    models = Counter(comparison["name"] for comparison in comparisons)
    for comparison, folder in zip(comparisons, folders, strict=True):
        comparison["name"] += f" ({folder.name})" if models[comparison["name"]] > 1 else ""
    policy = {
        "default-src": "'none'",
        "img-src": "blob:",
        "style-src": _source_hash(style),
        "script-src": _source_hash(script),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return environment.get_template("report.html").render(
        comparisons=comparisons,
        policy="; ".join(f"{directive} {allowed}" for directive, allowed in policy.items()),
        style=Markup(style),
        script=Markup(script),
    )


def template_values(folder: Path, identifier: str) -> dict[str, Any]:
    """The values that the template needs for the comparison in one folder; identifier: its id in the page."""
    about, rows = read_rows(folder)
    shape: list[int] = about.get("image") or about["shape"]
    height, width = drawings.size_of(shape)
    names = ["reference", *map(cell_filename, measured(rows, "spent"))]
    thumbnails = load_thumbnails(folder / "pictures", names, height, width, not drawings.are_drawn(shape))
    best = report_tables.best_per_budget(rows)
    return {
        "id": identifier,
        "name": about["model"],
        "answer": answer(rows),
        "median_answer": median_answer(rows),
        "setting": report_tables.setting(about),
        "reference": report_tables.reference_accuracy(about, rows),
        "best": best,
        "has_baseline": any(line["ratio"] for line in best),
        "has_adaptive": any(row["nfe"] is None for row in rows),
        "pictures": report_tables.pictures(shape),
        "drawn": drawings.are_drawn(shape),
        "reduction": thumbnails.reduction if thumbnails else 1,
        "columns": report_tables.columns(rows),
        "rows": report_tables.table_rows(about, rows),
        "failures": report_tables.failures(rows),
        "provenance": report_tables.provenance(about),
        "data": script_data(about, rows, thumbnails, identifier),
    }


def script_data(about: Mapping[str, Any], rows: Sequence[Row], thumbnails: Thumbnails | None, identifier: str) -> dict[str, Any]:
    """The values that the scripts need: unrounded numbers, and the thumbnails by the file names of their cells."""
    measures, front = [key for key in MEASURES if measured(rows, key)], report_tables.on_front(rows)
    numbers = [column.key for column in report_tables.columns(rows) if column.number and column.key != "front"]
    encoded = dict(thumbnails.encoded) if thumbnails else {}
    return {
        "id": identifier,
        "model": about["model"],
        "n": about["n"],
        "seed": about["seed"],
        "measures": [{"key": key, "label": MEASURES[key].label} for key in measures],
        "rows": [
            {
                **{key: row[key] for key in ("solver", "grid", "nfe", "rtol")},
                **{key: row[key] if magnitude(row, key) is not None else None for key in numbers},
                **{key: row[key] for key in ("error", "skipped") if key in row},
                "front": is_on_front,
                "picture": cell_filename(row),
            }
            for row, is_on_front in zip(rows, front, strict=True)
        ],
        "solvers": list(dict.fromkeys(row["solver"] for row in rows)),
        "grids": list(dict.fromkeys(row["grid"] for row in rows if row["grid"] != OWN_STEPS)),
        "budgets": sorted({row["nfe"] for row in rows if row["nfe"] is not None}),
        "reference": encoded.pop("reference", None),
        "pictures": encoded,
        "strip": {key: getattr(thumbnails, key) for key in ("width", "height", "count")} if thumbnails else None,
        "together": drawings.are_drawn_together(about.get("image") or about["shape"]),
    }


def _source_hash(text: str) -> str:
    """The hash by which a Content-Security-Policy allows an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@click.command(cls=Script, resumable=False)
@click.argument("folders", nargs=-1, required=True, metavar="DIR...", type=FileName())
@click.option("--out", default="report.html", show_default=True, type=OutputName())
@click.option("--screenshot", type=OutputName(), help="Also a PNG of the page; takes selenium and Chromium.")
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
def main(folders: tuple[Path, ...], out: Path, screenshot: Path | None, overwrite: bool) -> None:
    """Write comparisons, which `cli.py compare --out DIR` made, as one HTML file that loads nothing."""
    refuse_existing([out, *([screenshot] if screenshot else [])], overwrite=overwrite)
    write_report(folders, out)
    say(f"{out}: {out.stat().st_size / 2**20:.1f} MiB")
    if screenshot is not None:
        from experiments.comparison.browser import save_screenshot

        save_screenshot(out, screenshot)
        say(f"{screenshot}")


if __name__ == "__main__":
    main()
