"""The sentences and tables of a report on one comparison: what was compared, the best at each budget, all cells, provenance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from diffode.errors import one_line
from diffode.images import drawings
from experiments.common.results import Row
from experiments.comparison.limits import is_limited, limit_of
from experiments.comparison.ranking import (
    BASELINE,
    MEASURES,
    at_budget,
    cell_name,
    format_ratio,
    magnitude,
    measured,
    pareto,
)


class Column(NamedTuple):
    """Of the table of all cells. title: its explanation; number: whether it holds numbers."""

    key: str
    label: str
    title: str = ""
    number: bool = True


COLUMNS = (
    Column("solver", "solver", number=False),
    Column("grid", "grid", "the spacing of the steps; an adaptive solver chooses its own steps, by its tolerance", number=False),
    Column("spent", "NFE", "evaluations per sample, the mean over samples"),
    *(Column(key, measure.head, measure.title) for key, measure in MEASURES.items()),
    Column(
        "ssim",
        "SSIM",
        "structural similarity to the images of the reference solution, the mean over samples; 1 for equal ones",
    ),
    Column("calls", "calls", "network calls per sample, the mean over samples"),
    Column("seconds", "seconds", "for all samples together"),
    Column("peak_mib", "MiB", "the most memory held at a time"),
    Column(
        "front",
        "front",
        "● on the Pareto front: no other cell has less rmse for at most as many evaluations, or the same rmse for fewer",
    ),
)


class TableRow(NamedTuple):
    """A row of that table. position: of its cell among the rows; texts: one per column; with a reason, only the first texts, and
    why there are no numbers."""

    position: int
    texts: list[str]
    reason: str = ""


def format_number(number: float) -> str:
    """Three digits: 1,230; 12.3; 0.0123; 1.23e-05; with a minus sign as wide as a plus."""
    if number < 0:
        return f"−{format_number(-number)}"
    if number and not 1e-3 <= number < 999.5:
        return f"{number:,.0f}" if number > 1 else f"{number:.2e}"
    return f"{number:#.3g}".rstrip(".") if number else "0"


def setting(about: Mapping[str, Any]) -> str:
    """What is the same for all contenders."""
    low, high = (f"{float(lam):.2f}".replace("-", "−") for lam in about["lam"])
    seeds, threshold = f"{about['seed']} to {about['seed'] + about['n'] - 1}", about["threshold"]
    own = about.get("own", "")
    sentences = [
        _pipeline(about),
        f"Every solver follows the same equation from the same {about['n']} states x_T (seeds {seeds}), from λ = {low} to "
        f"λ = {high}{', and from there takes a step to σ = 0, whose evaluation is counted' if about['denoise'] else ''}.",
        f"Classes: {about['labels']}." if about["labels"] else "",
        _guidance(about),
        f"The model has of its own: {own}. All of it belongs to the equation, and all network calls are counted." if own else "",
    ]
    changes = [*(["clipped"] if about["clip"] else []), *([f"thresholded at {threshold:g}"] if threshold is not None else [])]
    if changes:
        sentences.append(f"Predictions of x0 are {' and '.join(changes)}, in the reference too: recipes are compared.")
    else:
        sentences.append("Nothing is clipped or thresholded: solvers are compared, not recipes." * ("x̂0" not in own))
    return " ".join(filter(None, sentences))


def _pipeline(about: Mapping[str, Any]) -> str:
    """What a pipeline is called with."""
    call = about.get("pipeline")
    if not isinstance(call, Mapping):
        return ""
    prompts = [f"“{one_line(str(prompt))}”" for prompt in call.get("prompts", ())]
    prompts = [*prompts[:8], *[f"and {len(prompts) - 8} more"] * (len(prompts) > 8)]
    said = f"{'Prompts, in turn' if len(prompts) > 1 else 'Prompt'}: {', '.join(prompts)}." if prompts else ""
    rest = [
        f"{name.replace('_', ' ')} {value:g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
        for name, value in call.items()
        if name != "prompts" and value is not None
    ]
    return " ".join(filter(None, [said, f"The pipeline is called with {', '.join(rest)}." if rest else ""]))


def _guidance(about: Mapping[str, Any]) -> str:
    """How it is guided, and what an evaluation costs."""
    if "guid" in about.get("own", ""):
        return ""
    if about["guidance"] == 1:
        return "Without guidance: an evaluation is one network call."
    ends, phi = about.get("guidance_interval"), about.get("guidance_rescale")
    where = f" for λ from {ends[0]:g} to {ends[1]:g}".replace("-", "−") if ends else ""
    how = f", rescaled by φ = {phi:g}" if phi else ""
    there = "there " if ends else ""
    return f"Guidance is {about['guidance']:g}{where}{how}: an evaluation {there}is two network calls, and both are counted."


def reference_accuracy(about: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """How the reference solution was found, and how well it is known."""
    solution = about["solution"]
    method = f"The reference solution is by {solution['method']} at tolerance {solution['tolerance']:g}"
    sentence = f"{method}, {solution['nfe']:,} evaluations"
    own_error = magnitude(solution, "rmse")
    if own_error is None:
        return f"{sentence}; its own error is not known."
    rounding = magnitude(solution.get("rounding", {}), "rmse")
    by = f", that by the rounding of its network as {format_number(rounding)}" if rounding else ""
    least = min((row["rmse"] for row in measured(rows, "rmse")), default=0)
    ratio = least / own_error if own_error else 0
    better = f", {format_ratio(ratio)} times less than that of any cell below" if ratio > 1 else ""
    known = f"its own root mean square error is estimated as {format_number(own_error)}{by}{better}"
    return f"{sentence}; {known}. {limit_of(about, rows)}".strip()


def best_per_budget(rows: Sequence[Row]) -> list[dict[str, str]]:
    """The best cell at each budget, and as `ratio` how many times ddim's error is larger there."""
    lines = []
    for nfe in sorted({row["nfe"] for row in rows if row["nfe"] is not None}):
        if not (ranked := at_budget(rows, nfe)):
            continue
        best, *others = ranked
        ratios = [row["rmse"] / best["rmse"] for row in others if row["solver"] == BASELINE != best["solver"] and best["rmse"]]
        solver, grid = _solver_and_grid(best)
        ratio = format_ratio(ratios[0]) if ratios else ""
        lines.append({"nfe": f"{nfe}", "solver": solver, "grid": grid, "rmse": format_number(best["rmse"]), "ratio": ratio})
    return lines


def columns(rows: Sequence[Row]) -> list[Column]:
    """The columns that are not empty; network calls only where they are not the evaluations."""
    shown = {column.key for column in COLUMNS if measured(rows, column.key)} | {"solver", "grid", "spent", "front"}
    if all(row["calls"] == row["spent"] for row in measured(rows, "calls", "spent")):
        shown.discard("calls")
    return [column for column in COLUMNS if column.key in shown]


def on_front(rows: Sequence[Row]) -> list[bool]:
    """For each row whether it is on the Pareto front."""
    front = set(map(id, pareto(rows)))
    return [id(row) in front for row in rows]


def table_rows(about: Mapping[str, Any], rows: Sequence[Row]) -> list[TableRow]:
    """All cells by their evaluations, those without a result last. A number that is no more than a limit has ≤ before it."""
    shown, front = columns(rows), on_front(rows)

    def table_row(position: int) -> TableRow:
        row = rows[position]
        if magnitude(row, "spent") is None:
            return TableRow(position, [*_solver_and_grid(row), _budget(row)], _reason(row))
        return TableRow(position, [*_solver_and_grid(row), *_numbers(about, row, shown, front[position])])

    def cost_and_error(position: int) -> tuple[float, float]:
        spent, error = (magnitude(rows[position], key) for key in ("spent", "rmse"))
        return math.inf if spent is None else spent, math.inf if error is None else error

    return [table_row(position) for position in sorted(range(len(rows)), key=cost_and_error)]


def failures(rows: Sequence[Row]) -> list[str]:
    """The cells that failed, each with why."""
    return [f"{cell_name(row)}: {row['error']}" for row in rows if "error" in row]


def provenance(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What made the rows: names and values."""
    last = about["made"][-1] if about["made"] else {}
    data = about.get("data")
    values = {
        "command": last.get("command"),
        "model": f"{about['model']}, SHA-256 {about['sha256'][:16]}",
        "precision": f"{about.get('dtype')} on {about.get('device')}",
        "features": about.get("features"),
        "decoder": about.get("decoder"),
        "data": ", ".join(f"{name} {value}" for name, value in data.items()) if isinstance(data, Mapping) else data,
        "versions": ", ".join(f"{name} {value}" for name, value in last.get("versions", {}).items()),
        "machine": last.get("machine"),
        "commit": last.get("commit"),
        "date": last.get("date"),
        "runs": f"{len(about['made'])}, of which this is the last" if len(about["made"]) > 1 else None,
    }
    return [(name, str(value)) for name, value in values.items() if value]


def pictures(shape: Sequence[int]) -> str:
    """What the pictures of samples of this shape show."""
    rows = "One row per seed, one column per solver."
    if drawings.are_drawn_together(shape):
        return "All samples in one picture, one column per solver; grey, behind them, is the reference."
    if drawings.are_drawn(shape):
        return f"{rows} Grey, behind each, is the reference."
    if drawings.are_images(shape):
        return rows
    return f"{rows} Samples are {'×'.join(map(str, shape))}; shown are {drawings.what_is_seen(shape)}."


def _solver_and_grid(row: Row) -> list[str]:
    """Its solver, and its grid or tolerance."""
    return [row["solver"], row["grid"] if row["nfe"] is not None else f"rtol {row['rtol']:g}"]


def _budget(row: Row) -> str:
    return "" if row["nfe"] is None else f"{row['nfe']}"


def _reason(row: Row) -> str:
    return f"failed: {row['error']}" if "error" in row else f"left out: {row.get('skipped', 'no numbers')}"


def _numbers(about: Mapping[str, Any], row: Row, shown: Sequence[Column], on_front: bool) -> Iterator[str]:
    """The texts of a row from its evaluations on."""
    for column in shown[2:]:
        value = row.get(column.key)
        if column.key == "front":
            yield "●" if on_front else ""
        elif column.key in ("spent", "calls") and value is not None:
            yield f"{value:g}" if float(value).is_integer() else f"{value:.1f}"
        elif column.key == "ssim" and value is not None:
            yield f"{value:.4f}"
        elif magnitude(row, column.key) is None:
            yield "" if value is None else str(value)  # inf, nan
        else:
            error = f" ± {row['frechet_se']:.2g}" if column.key == "frechet" and magnitude(row, "frechet_se") is not None else ""
            limited = "≤ " * is_limited(about, row, column.key)
            yield f"{limited}{format_number(row[column.key])}{error}"
