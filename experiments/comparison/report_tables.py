"""The words and tables of a report on one comparison: what was compared, the best at each budget, every cell, what made them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.common.results import Row
from experiments.comparison.ranking import BASELINE, MEASURES, at_budget, in_full, measured, pareto, size, times


class Column(NamedTuple):
    """Of the table of all cells. title: what it is; number: whether it holds numbers."""

    key: str
    label: str
    title: str = ""
    number: bool = True


COLUMNS = (
    Column("solver", "solver", number=False),
    Column("grid", "grid", "where evaluations are spent; an adaptive solver chooses for itself, by its tolerance", number=False),
    Column("spent", "NFE", "evaluations of a sample, the mean over samples"),
    *(Column(key, measure.head, measure.title) for key, measure in MEASURES.items()),
    Column("calls", "calls", "network calls of a sample, the mean over samples"),
    Column("seconds", "seconds", "of all samples together"),
    Column("peak_mib", "MiB", "the most memory held"),
    Column("front", "front", "● where no cell has less rmse for as few evaluations, or as much for fewer"),
)


class Line(NamedTuple):
    """A row of that table, or the first of its cells and the reason why there are no others."""

    row: int
    cells: list[str]
    reason: str = ""


def digits(number: float) -> str:
    """Three digits: 1,230; 12.3; 0.0123; 1.23e-05; with a minus sign as wide as a plus."""
    if number < 0:
        return f"−{digits(-number)}"
    if number and not 1e-3 <= number < 999.5:
        return f"{number:,.0f}" if number > 1 else f"{number:.2e}"
    return f"{number:#.3g}".rstrip(".") if number else "0"


def how(about: Mapping[str, Any]) -> str:
    """What was compared, and what is the same for all."""
    low, high = (f"{float(lam):.2f}".replace("-", "−") for lam in about["lam"])
    seeds, guidance, threshold = f"{about['seed']} to {about['seed'] + about['n'] - 1}", about["guidance"], about["threshold"]
    sentences = [
        f"Every solver follows the same equation from the same {about['n']} states x_T (seeds {seeds}), from λ = {low} to "
        f"λ = {high}{', and from there takes a step to σ = 0, whose evaluation is counted' if about['denoise'] else ''}.",
        f"Classes: {about['labels']}." if about["labels"] else "",
        f"Guidance is {guidance:g}, and an evaluation two network calls; both are counted."
        if guidance != 1
        else "Without guidance: an evaluation is one network call.",
    ]
    done = [*(["clipped"] if about["clip"] else []), *([f"thresholded at {threshold:g}"] if threshold is not None else [])]
    if done:
        sentences.append(f"Predictions of x0 are {' and '.join(done)}, in the reference too: what is compared is a recipe.")
    else:
        sentences.append("Nothing is clipped or thresholded: a solver is compared, not a recipe.")
    return " ".join(filter(None, sentences))


def solution(about: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """How well the reference is known."""
    it = about["solution"]
    known = f"The reference solution is that of {it['method']} at tolerance {it['tolerance']:g}, {it['nfe']:,} evaluations"
    own, found = size(it, "rmse"), measured(rows, "rmse")
    if own is None:
        return f"{known}; its own error is not known."
    ratio = min((row["rmse"] for row in found), default=0) / own if own else 0
    better = f", {times(ratio)} times less than that of any cell below" if ratio > 1 else ""
    return f"{known}; its own root mean square error is estimated as {digits(own)}{better}."


def best(rows: Sequence[Row]) -> list[dict[str, str]]:
    """The best at each budget, beside ddim at the same."""
    lines = []
    for nfe in sorted({row["nfe"] for row in rows if row["nfe"] is not None}):
        if not (there := at_budget(rows, nfe)):
            continue
        first, *others = there
        ratios = [row["rmse"] / first["rmse"] for row in others if row["solver"] == BASELINE != first["solver"] and first["rmse"]]
        solver, grid = _cell(first)
        than = times(ratios[0]) if ratios else ""
        lines.append({"nfe": f"{nfe}", "solver": solver, "grid": grid, "rmse": digits(first["rmse"]), "times": than})
    return lines


def columns(rows: Sequence[Row]) -> list[Column]:
    """Those with anything in them; network calls only where they are not the evaluations."""
    there = {column.key for column in COLUMNS if measured(rows, column.key)} | {"solver", "grid", "spent", "front"}
    if all(row["calls"] == row["spent"] for row in measured(rows, "calls", "spent")):
        there.discard("calls")
    return [column for column in COLUMNS if column.key in there]


def marked(rows: Sequence[Row]) -> list[bool]:
    """Whether each row is on the front."""
    front = set(map(id, pareto(rows)))
    return [id(row) in front for row in rows]


def lines(rows: Sequence[Row]) -> list[Line]:
    """All cells by their evaluations, those without result last."""
    shown, front = columns(rows), marked(rows)

    def line(index: int) -> Line:
        row = rows[index]
        if size(row, "spent") is None:
            return Line(index, [*_cell(row), _budget(row)], _reason(row))
        return Line(index, [*_cell(row), *_numbers(row, shown, front[index])])

    def place(index: int) -> tuple[float, float]:
        spent, error = (size(rows[index], key) for key in ("spent", "rmse"))
        return math.inf if spent is None else spent, math.inf if error is None else error

    return [line(index) for index in sorted(range(len(rows)), key=place)]


def failed(rows: Sequence[Row]) -> list[str]:
    """The cells that failed, each with why."""
    return [f"{in_full(row)}: {row['error']}" for row in rows if "error" in row]


def made(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What made the rows: name and value."""
    last = about["made"][-1] if about["made"] else {}
    data = about.get("data")
    said = {
        "command": last.get("command"),
        "model": f"{about['model']}, SHA-256 {about['sha256'][:16]}",
        "precision": f"{about.get('dtype')} on {about.get('device')}",
        "features": about.get("features"),
        "data": ", ".join(f"{name} {value}" for name, value in data.items()) if isinstance(data, Mapping) else data,
        "versions": ", ".join(f"{name} {value}" for name, value in last.get("versions", {}).items()),
        "machine": last.get("machine"),
        "commit": last.get("commit"),
        "date": last.get("date"),
        "runs": f"{len(about['made'])}, of which this is the last" if len(about["made"]) > 1 else None,
    }
    return [(name, str(value)) for name, value in said.items() if value]


def _cell(row: Row) -> list[str]:
    """Solver, and grid or tolerance."""
    return [row["solver"], row["grid"] if row["nfe"] is not None else f"rtol {row['rtol']:g}"]


def _budget(row: Row) -> str:
    return "" if row["nfe"] is None else f"{row['nfe']}"


def _reason(row: Row) -> str:
    return f"failed: {row['error']}" if "error" in row else f"left out: {row.get('skipped', 'no numbers')}"


def _numbers(row: Row, shown: Sequence[Column], on_front: bool) -> Iterator[str]:
    """The cells of a row from its evaluations on."""
    for column in shown[2:]:
        value = row.get(column.key)
        if column.key == "front":
            yield "●" if on_front else ""
        elif column.key in ("spent", "calls") and value is not None:
            yield f"{value:g}" if float(value).is_integer() else f"{value:.1f}"
        elif size(row, column.key) is None:
            yield "" if value is None else str(value)  # inf, nan
        else:
            error = f" ± {row['frechet_se']:.2g}" if column.key == "frechet" and size(row, "frechet_se") is not None else ""
            yield f"{digits(row[column.key])}{error}"
