"""The rows of an experiment, one a cell, each written when it is finished: killed at any moment, the same command goes on.

A cell is a mapping of names to values that says what is computed (solver, nfe, ...); its row is the cell and what came of it.
OUT.json holds {"about", "made", "rows"}: what all rows have in common, the runs that made them, and the rows in the order of the
cells, each with the index `made` of its run; OUT.csv holds the rows without it, the same however often a run was interrupted. A
cell that fails is a row with its `error`, and is tried again by the next run.
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from tqdm import tqdm

from diffode.errors import InputError, in_words
from diffode.files import alone, atomic, folder_for, json_value

Row = dict[str, Any]


def made_by(command: str) -> Row:
    """What a result was made with: the command, versions, machine, commit and date."""
    return {
        "command": command,
        "versions": versions(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def versions() -> dict[str, str]:
    """Of what computes."""
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}


def commit() -> str:
    """The commit of this code, "+changes" if it was changed since, or "unknown"."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude=*", "--dirty=+changes"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def beside(out: Path, suffix: str) -> Path:
    """OUT and a suffix, whatever dots are in OUT; InputError for what is no name."""
    if not out.name or out.name == "..":
        raise InputError(f"{str(out)!r} is no name for results: give --out a name without suffix, as results/mine")
    return out.with_name(out.name + suffix)


def fill(
    out: Path,
    cells: Sequence[Mapping[str, Any]],
    compute: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    *,
    about: Mapping[str, Any],
    command: str,
    overwrite: bool = False,
) -> list[Row]:
    """Compute the row of every cell that OUT.json does not have yet, and write OUT.json and OUT.csv after each.

    about: what decides all rows beside their cells (model, samples, ...); InputError if the file was made with another, unless
    `overwrite`. What a cell cannot do (InputError), or fails at (RuntimeError: out of memory, a network of one's own), is a row
    with its error. Returns the rows of the cells, in their order.
    """
    file, mine = beside(out, ".json"), made_by(command)
    about = json.loads(json.dumps(dict(about)))
    with folder_for(out), alone(file.with_name(f".{file.name}.lock"), f"writing {out}"):
        if not overwrite:
            check(out, about, whole=True)
        held = (None if overwrite else _held(file)) or {"about": about, "made": [], "rows": []}
        names = list(cells[0])

        def key(row: Mapping[str, Any]) -> str:
            return json.dumps([json_value(row.get(name)) for name in names])

        cells = list({key(cell): cell for cell in cells}.values())
        done = {key(row): row for row in held["rows"] if "error" not in row}
        others = [row for row in done.values() if key(row) not in set(map(key, cells))]
        run = len(held["made"])

        def keep() -> None:
            _write(out, {**held, "rows": [done[key(cell)] for cell in cells if key(cell) in done] + others})

        for cell in tqdm([cell for cell in cells if key(cell) not in done], desc=out.name, disable=None):
            try:
                row = dict(compute(cell))
            except OSError:  # of the disk, which the rows are written to
                raise
            except Exception as error:
                row = {"error": in_words(error)}
            if run == len(held["made"]):
                held["made"].append(mine)
            whole = {name: json_value(value) for name, value in {**cell, **row, "made": run}.items()}
            done[key(cell)] = json.loads(json.dumps(whole))  # as the next run will read it
            keep()
        keep()  # a kill may have come between its two files
    return [done[key(cell)] for cell in cells]


def known(out: Path) -> Row | None:
    """The `about` of the rows at OUT, if there are any."""
    held = _held(beside(out, ".json"))
    return held["about"] if held else None


def check(out: Path, about: Mapping[str, Any], *, whole: bool = False) -> None:
    """InputError if there are rows at OUT, and of another `about`: in what it names, or, if this is the whole, at all."""
    said = json.loads(json.dumps(dict(about)))
    before = known(out) or said
    if differing := sorted(key for key in ({*said, *before} if whole else said) if said.get(key) != before.get(key)):
        file = beside(out, ".json")
        raise InputError(f"{file} was made with another {', '.join(differing)}: give --out another name, or --overwrite")


def finish(made: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Say where the rows are, and what failed; exit code 1 if any did."""
    failed = [row for row in made if "error" in row]
    click.echo(f"{len(made) - len(failed)} of {len(made)} cells: {out}.csv, .json")
    for row in failed:
        cell = ", ".join(f"{name} {value}" for name, value in row.items() if name not in ("error", "made") and value is not None)
        click.echo(f"Failed: {cell}: {row['error']}", err=True)
    if failed:
        raise SystemExit(1)


def read(out: Path) -> tuple[Row, list[Row]]:
    """What is common to the rows of OUT.json, and the rows; InputError if there are none."""
    held = _held(beside(out, ".json"))
    if held is None:
        raise InputError(f"no results at {beside(out, '.json')}")
    return {**held["about"], "made": held["made"]}, held["rows"]


def _held(file: Path) -> Row | None:
    if not file.exists():
        return None
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(held, dict) and {"about", "made", "rows"} <= held.keys():
            return held
    except (OSError, ValueError):
        pass
    raise InputError(f"{file} does not hold the rows of an experiment: give --out another name, or --overwrite")


def _write(out: Path, held: Row) -> None:
    """OUT.json, a row a line, and OUT.csv."""
    lines = [",\n".join(f"  {json.dumps(item, ensure_ascii=False)}" for item in held[name]) for name in ("made", "rows")]
    about = json.dumps(held["about"], ensure_ascii=False)
    with atomic(beside(out, ".json")) as part:
        part.write_text(
            f'{{\n "about": {about},\n "made": [\n{lines[0]}\n ],\n "rows": [\n{lines[1]}\n ]\n}}\n', encoding="utf-8"
        )
    columns = list(dict.fromkeys(name for row in held["rows"] for name in row if name != "made"))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(held["rows"])
    with atomic(beside(out, ".csv")) as part:
        part.write_text(text.getvalue(), encoding="utf-8")
