"""The rows of an experiment, one per cell, each written as soon as it is computed: interrupted, the same command continues.

A cell is a mapping of names to values that says what is computed (solver, nfe, ...); its row is the cell and its results.
OUT.json holds {"about", "made", "rows"}: the settings that all rows share, the provenance of each run, and the rows in the order
of the cells, each with the index `made` of its run; runs that agree in all their provenance are one. OUT.csv holds the rows
without that index, so it is the same however often a run was interrupted. A cell that fails is a row with its `error`, and is
computed again by the next run.

OUT.json is written first, before the first row, and says that the other files of its name are those of the experiment.
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

from diffode.errors import InputError, in_words, one_line, shown
from diffode.files import as_json, atomic, folder_for, json_value, locked
from diffode.reading import read_json
from experiments.common.commands import is_out_of_memory
from experiments.common.destinations import refuse_existing, require_name
from experiments.common.progress import announce, progress
from experiments.common.terminal import say

Row = dict[str, Any]
OUT_OF_MEMORY = "out of memory: lower the batch, or the samples"
ELSEWHERE = "give `out` another name, or overwrite=True"


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
    require_name(out, "results/mine, without suffix")
    return out.with_name(out.name + suffix)


def fill(
    out: Path,
    cells: Sequence[Mapping[str, Any]],
    compute: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    *,
    about: Mapping[str, Any],
    command: str,
    overwrite: bool = False,
    also: Sequence[str] = (),
) -> list[Row]:
    """Compute the row of every cell that OUT.json does not have yet, and write OUT.json and OUT.csv after each.

    about: the settings that decide all rows (model, number of samples, ...); InputError if the file was made with others, unless
    `overwrite`. also: the suffixes of what will be drawn from the rows. A cell that is impossible (InputError) or fails
    (RuntimeError: out of memory, an error in a user's network) is a row with its error. Returns the rows of the cells, in their
    order.
    """
    about, names = as_json(dict(about)), list(cells[0])
    wanted = {key_of(cell, names): cell for cell in cells}
    with folder_for(out), locked(out.with_name(f".{with_suffix(out, '.json').name}.lock"), f"writing {out}"):
        table = _begin(out, about, names, also, overwrite)
        rows = {key_of(row, names): row for row in table["rows"] if "error" not in row}
        run = provenance(command)
        made = table["made"] if run in table["made"] else [*table["made"], run]

        def write() -> None:
            others = [row for key, row in rows.items() if key not in wanted]
            _write(out, {**table, "rows": [rows[key] for key in wanted if key in rows] + others}, names)

        write()  # the last run may have been killed between its two files
        lacking = [key for key in wanted if key not in rows]
        announce(f"{out.name}: {len(lacking)} of {len(wanted)} cells are to be computed")
        with progress(len(lacking), out.name, "cells") as bar:
            for key in lacking:
                rows[key], table["made"] = _row(wanted[key], compute, made.index(run)), made
                write()
                bar.update()
    return [rows[key] for key in wanted]


def _begin(out: Path, about: Mapping[str, Any], names: Sequence[str], also: Sequence[str], overwrite: bool) -> Row:
    """What OUT.json holds, or a new table; InputError for a file that is of another experiment, or of none."""
    table = None if overwrite else _load(out)
    refuse_existing((with_suffix(out, each) for each in (".json", ".csv", *also)), overwrite=overwrite or table is not None)
    if table is None:
        return {"about": about, "made": [], "rows": []}
    check(out, about, all_settings=True)
    if lacking := [name for row in table["rows"] for name in names if name not in row]:
        raise InputError(f"{with_suffix(out, '.json')} has a row without {lacking[0]}: {ELSEWHERE}")
    return table


def missing(cells: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> list[Mapping[str, Any]]:
    """The cells that have no row, or one that failed."""
    names = list(cells[0])
    known = {key_of(row, names) for row in rows if "error" not in row}
    return [cell for cell in cells if key_of(cell, names) not in known]


def key_of(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """What tells the cell of a row from others: its values under these names."""
    return json.dumps([json_value(row.get(name)) for name in names])


def _row(cell: Mapping[str, Any], compute: Callable[[Mapping[str, Any]], Mapping[str, Any]], run: int) -> Row:
    """The cell and what `compute` returns for it, or its error, as they are read back from JSON."""
    try:
        found = dict(compute(cell))
    except OSError:  # of the disk that the rows are written to
        raise
    except Exception as error:
        found = {"error": OUT_OF_MEMORY if is_out_of_memory(error) else in_words(error)}
    return json.loads(json.dumps({name: json_value(value) for name, value in {**cell, **found, "made": run}.items()}))


def known_settings(out: Path) -> Row | None:
    """The `about` of the rows at OUT; None if there are no rows."""
    table = _load(out)
    return table["about"] if table else None


def check(out: Path, about: Mapping[str, Any], *, all_settings: bool = False) -> None:
    """InputError if the rows at OUT have other settings than `about` names, or, with all_settings, more than it names."""
    wanted = as_json(dict(about))
    existing = known_settings(out) or wanted
    names = {*wanted, *existing} if all_settings else wanted.keys()
    if differing := sorted(name for name in names if wanted.get(name) != existing.get(name)):
        others = one_line(", ".join(differing), 160)
        raise InputError(f"{with_suffix(out, '.json')} was made with another {others}: {ELSEWHERE}")


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
    table = _load(out)
    if table is None:
        raise InputError(f"no results at {with_suffix(out, '.json')}")
    return {**table["about"], "made": table["made"]}, table["rows"]


def _load(out: Path) -> Row | None:
    """What OUT.json holds, None if it does not exist; InputError for another file, and for one that is damaged."""
    file = with_suffix(out, ".json")
    if not file.exists():
        return None
    expected = f"what an experiment wrote; {ELSEWHERE}"
    table = read_json(file, "file of rows", expected, infinite=True)
    if why := _damage(table):
        raise InputError(f"{file} is not a file of rows ({why}): expected {expected}")
    return table


def _damage(table: Any) -> str:
    """What keeps a JSON value from being what `_write` writes, in words; nothing if that is what it is."""
    if not isinstance(table, dict) or not isinstance(table.get("about"), dict):
        return "it lacks the settings `about`"
    for name in ("made", "rows"):
        if not isinstance(table.get(name), list) or not all(isinstance(item, dict) for item in table[name]):
            return f"it lacks a list of objects `{name}`"
    for row in table["rows"]:
        if "made" in row and (type(row["made"]) is not int or not 0 <= row["made"] < len(table["made"])):
            return f"a row is of run {shown(row['made'])} of {len(table['made'])}"
        if not isinstance(row.get("error", ""), str):
            return "the error of a row is no text"
    return ""


def _write(out: Path, table: Row, names: Sequence[str]) -> None:
    """OUT.json, a line per row, and OUT.csv, whose first columns have these names."""
    made, rows = (",\n".join(f"  {json.dumps(item, ensure_ascii=False)}" for item in table[name]) for name in ("made", "rows"))
    about = json.dumps(table["about"], ensure_ascii=False)
    with atomic(with_suffix(out, ".json")) as part:
        part.write_text(f'{{\n "about": {about},\n "made": [\n{made}\n ],\n "rows": [\n{rows}\n ]\n}}\n', encoding="utf-8")
    columns = list(dict.fromkeys([*names, *(name for row in table["rows"] for name in row if name != "made")]))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table["rows"])
    with atomic(with_suffix(out, ".csv")) as part:
        part.write_text(text.getvalue(), encoding="utf-8")
