"""The rows of an experiment, one per cell, each written as soon as it is computed: interrupted, the same command continues.

A cell is a mapping of names to values that says what is computed (solver, nfe, ...); its row is the cell and its results.
OUT.json holds {"about", "made", "rows"}: the settings that all rows share, the provenance of each run, and the rows in the order
of the cells, each with the index `made` of its run. OUT.csv holds the rows without that index, so it is the same however often a
run was interrupted. A cell that fails is a row with its `error`, and is computed again by the next run.
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

import numpy as np
import torch
from tqdm import tqdm

from diffode.errors import InputError, in_words
from diffode.files import atomic, folder_for, json_value, locked
from experiments.common.terminal import say

Row = dict[str, Any]


def provenance(command: str) -> Row:
    """What a result was computed with: command, versions, machine, commit and date."""
    return {
        "command": command,
        "versions": versions(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def versions() -> dict[str, str]:
    """Of Python, torch and numpy."""
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}


def commit() -> str:
    """The commit of this code, "+changes" if it was changed since, or "unknown"."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude=*", "--dirty=+changes"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def with_suffix(out: Path, suffix: str) -> Path:
    """OUT with a suffix added, whatever dots are in OUT; InputError if OUT has no file name."""
    if not out.name or out.name == "..":
        raise InputError(f"{str(out)!r} is not a name for results: give one without suffix, as results/mine")
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

    about: the settings that decide all rows (model, number of samples, ...); InputError if the file was made with others, unless
    `overwrite`. A cell that is impossible (InputError) or fails (RuntimeError: out of memory, an error in a user's network) is a
    row with its error. Returns the rows of the cells, in their order.
    """
    file, about, names = with_suffix(out, ".json"), json.loads(json.dumps(dict(about))), list(cells[0])

    def key(row: Mapping[str, Any]) -> str:
        return json.dumps([json_value(row.get(name)) for name in names])

    wanted = {key(cell): cell for cell in cells}
    with folder_for(out), locked(file.with_name(f".{file.name}.lock"), f"writing {out}"):
        if not overwrite:
            check(out, about, all_settings=True)
        table = (None if overwrite else _load(file)) or {"about": about, "made": [], "rows": []}
        rows = {key(row): row for row in table["rows"] if "error" not in row}
        made = [*table["made"], provenance(command)]

        def write() -> None:
            others = [row for key, row in rows.items() if key not in wanted]
            _write(out, {**table, "rows": [rows[key] for key in wanted if key in rows] + others})

        for missing in tqdm([key for key in wanted if key not in rows], desc=out.name, disable=None):
            rows[missing] = _row(wanted[missing], compute, len(made) - 1)
            table["made"] = made
            write()
        write()  # the last run may have been killed between its two files
    return [rows[key] for key in wanted]


def _row(cell: Mapping[str, Any], compute: Callable[[Mapping[str, Any]], Mapping[str, Any]], run: int) -> Row:
    """The cell and what `compute` returns for it, or its error, as they are read back from JSON."""
    try:
        found = dict(compute(cell))
    except OSError:  # of the disk that the rows are written to
        raise
    except Exception as error:
        found = {"error": in_words(error)}
    return json.loads(json.dumps({name: json_value(value) for name, value in {**cell, **found, "made": run}.items()}))


def known_settings(out: Path) -> Row | None:
    """The `about` of the rows at OUT; None if there are no rows."""
    table = _load(with_suffix(out, ".json"))
    return table["about"] if table else None


def check(out: Path, about: Mapping[str, Any], *, all_settings: bool = False) -> None:
    """InputError if the rows at OUT have other settings than `about` names, or, with all_settings, more than it names."""
    wanted = json.loads(json.dumps(dict(about)))
    existing = known_settings(out) or wanted
    names = {*wanted, *existing} if all_settings else wanted.keys()
    if differing := sorted(name for name in names if wanted.get(name) != existing.get(name)):
        file = with_suffix(out, ".json")
        raise InputError(f"{file} was made with another {', '.join(differing)}: give `out` another name, or overwrite=True")


def finish(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Print where the rows are and which cells failed; exit code 1 if any did."""
    failed = [row for row in rows if "error" in row]
    say(f"{len(rows) - len(failed)} of {len(rows)} cells: {out}.csv, .json")
    for row in failed:
        cell = ", ".join(f"{name} {value}" for name, value in row.items() if name not in ("error", "made") and value is not None)
        say(f"Failed: {cell}: {row['error']}", err=True)
    if failed:
        raise SystemExit(1)


def read(out: Path) -> tuple[Row, list[Row]]:
    """The settings that the rows of OUT.json share, with `made`, the provenance of its runs; and the rows.

    InputError if there are none.
    """
    table = _load(with_suffix(out, ".json"))
    if table is None:
        raise InputError(f"no results at {with_suffix(out, '.json')}")
    return {**table["about"], "made": table["made"]}, table["rows"]


def _load(file: Path) -> Row | None:
    """What a file of rows holds, None if it does not exist; InputError for another file."""
    if not file.exists():
        return None
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(table, dict) and {"about", "made", "rows"} <= table.keys():
            return table
    except (OSError, ValueError):
        pass
    raise InputError(f"{file} does not hold the rows of an experiment: give `out` another name, or overwrite=True")


def _write(out: Path, table: Row) -> None:
    """OUT.json, a line per row, and OUT.csv."""
    made, rows = (",\n".join(f"  {json.dumps(item, ensure_ascii=False)}" for item in table[name]) for name in ("made", "rows"))
    about = json.dumps(table["about"], ensure_ascii=False)
    with atomic(with_suffix(out, ".json")) as part:
        part.write_text(f'{{\n "about": {about},\n "made": [\n{made}\n ],\n "rows": [\n{rows}\n ]\n}}\n', encoding="utf-8")
    columns = list(dict.fromkeys(name for row in table["rows"] for name in row if name != "made"))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table["rows"])
    with atomic(with_suffix(out, ".csv")) as part:
        part.write_text(text.getvalue(), encoding="utf-8")
