"""The rows of a comparison, read from its folder: as `compare` wrote them, or one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffode.errors import InputError, shown
from experiments.common import results
from experiments.common.results import Row

NUMBER = int | float
MEASURED = NUMBER | str | None  # inf and nan are text
SETTINGS = {
    "model": str,
    "sha256": str,
    "shape": list,
    "n": int,
    "seed": int,
    "labels": str | None,
    "guidance": NUMBER,
    "clip": bool,
    "threshold": NUMBER | None,
    "denoise": bool,
    "lam": list,
    "solution": dict,
}
OPTIONAL = {"image": list, "pipeline": dict, "decoder": str}
SOLUTION = {"method": str, "tolerance": NUMBER, "nfe": int, "rmse": MEASURED, "median": MEASURED}
CELL = {"solver": str, "grid": str, "nfe": int | None, "rtol": NUMBER | None}


def read_rows(folder: Path) -> tuple[Row, list[Row]]:
    """The settings that the rows of a comparison share, with `made`, and its rows; InputError if the folder holds none."""
    about, rows = results.read(folder / "rows")
    if why := _damage(about, rows):
        raise InputError(f"{folder / 'rows.json'} is of no comparison ({why}): name another folder, or give overwrite=True")
    return about, rows


def known_rows(folder: Path) -> tuple[Row, list[Row]] | None:
    """The same; None if there are no rows."""
    return None if results.known_settings(folder / "rows") is None else read_rows(folder)


def _damage(about: Row, rows: list[Row]) -> str:
    """What is not as `compare` writes it, in words; nothing if all is."""
    if why := _lacking(about, SETTINGS) or _lacking(about["solution"], SOLUTION):
        return why
    if why := _lacking(about, {name: kind for name, kind in OPTIONAL.items() if name in about}):
        return why
    if not isinstance(prompts := about.get("pipeline", {}).get("prompts", []), list):
        return f"its prompts are {shown(prompts)}"
    for name in ("limit", "rounding"):
        numbers = about["solution"].get(name, {})
        if not isinstance(numbers, dict) or not all(isinstance(value, NUMBER) for value in numbers.values()):
            return f"the {name} of its solution is {shown(numbers)}"
    shape, ends = [*about["shape"], *about.get("image", [])], about["lam"]
    if not all(type(size) is int for size in shape) or len(ends) != 2 or not all(type(lam) in (int, float) for lam in ends):
        return f"its shape is {shown(shape)}, and its ends are {shown(ends)}"
    if not all(isinstance(run.get("versions", {}), dict) for run in about["made"]):
        return "the versions of a run are no object"
    for row in rows:
        if why := _lacking(row, CELL):
            return why
        if (row["nfe"] is None) == (row["rtol"] is None):
            return f"a row has nfe {shown(row['nfe'])} and rtol {shown(row['rtol'])}, of which one is to be null"
        if not all(isinstance(value, MEASURED) for value in row.values()) or not isinstance(row.get("skipped", ""), str):
            return f"a row has {shown(row)}"
    return ""


def _lacking(held: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    """The first field that is not of its type, in words."""
    for name, kind in fields.items():
        if name not in held or not isinstance(held[name], kind) or (isinstance(held[name], bool) and kind is not bool):
            return f"its {name} is {shown(held[name])}" if name in held else f"it does not say {name}"
    return ""
