"""How small an error can be known: what the reference solution's own error, and its limit if it has one, mean for rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from diffode.errors import InputError
from experiments.common.results import Row
from experiments.comparison.ground_truth import MARGIN
from experiments.comparison.ranking import MEASURES, cell_name, magnitude, measured


def is_limited(about: Mapping[str, Any], row: Row, measure: str) -> bool:
    """Whether the row's number is the limit of the reference solution: its error is as small as can be known."""
    return row.get(measure) == about["solution"].get("limit", {}).get(measure, math.nan)


def limit_of(about: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """What the limit of the reference solution means for these rows, in a sentence; "" where it means nothing."""
    found = [row for row in measured(rows, "rmse") if is_limited(about, row, "rmse")]
    if not found:
        return ""
    said = f"{cell_name(found[0])} is" if len(found) == 1 else f"{len(found)} cells are"
    return (
        f"{said} as good as can be known: errors below {about['solution']['limit']['rmse']:.2g}, {MARGIN} times the reference "
        "solution's own, are given as that."
    )


def check_solution(about: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """InputError unless the reference solution has a limit, or its own rmse, and its median error, are 10 times smaller than
    those of any row."""
    if about["solution"].get("limit"):
        return
    for measure in ("rmse", "median"):
        if not (found := measured(rows, measure)):
            continue
        best, own_error = min(found, key=lambda row: row[measure]), magnitude(about["solution"], measure)
        if own_error is None or not MARGIN * own_error <= best[measure]:
            raise InputError(
                f"the reference solution is not known well enough to judge {cell_name(best)}: its own {MEASURES[measure].noun} "
                f"is {about['solution'].get(measure)}, more than a {MARGIN}th of that row's {best[measure]:.3g}; give a smaller "
                f"tolerance than {about['solution']['tolerance']:g} (or auto), and overwrite=True or another out"
            )
