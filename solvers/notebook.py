"""How a Plan and a Result look in a notebook."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from diffode.images import drawings, writers
from diffode.images.datasets import to_pixels
from solvers.plan import value

if TYPE_CHECKING:
    from solvers.plan import Plan
    from solvers.result import Result

MOST_COLUMNS, MOST_IMAGES = 24, 64
CELL = "padding:2px 6px;text-align:right;font-family:monospace;font-size:11px;color:{};background:{}"


def plan_html(plan: Plan) -> str:
    """The table, one row per stage, with its heat map: red is positive, blue is negative, darker is larger (logarithmic)."""
    columns = ["x", "noise", *(f"m{j}" for j in range(plan.nfe))]
    shown = columns if len(columns) <= MOST_COLUMNS else [*columns[: MOST_COLUMNS - 1], "…"]
    head = "".join(f"<th>{name}</th>" for name in ("", "λ", "E", "K", *shown))
    sizes = abs(plan.matrix())
    largest, least = sizes.max(), max(sizes[sizes > 0].min(), sizes.max() / 1e3)
    rows = []
    for i, stage in enumerate(plan.stages):
        live: dict[str, float] = {"x": value(stage.x)} | {f"m{j}": value(c) for j, c in stage.c.items()}
        live |= {"noise": value(stage.noise)} if stage.draw is not None else {}
        flags = f"<td>{'E' if stage.evaluate else '·'}</td><td>{'K' if stage.commit else '·'}</td>"
        cells = "".join(_cell(live.get(name), least, largest) for name in shown)
        rows.append(f"<tr><td>{i}</td><td>{stage.lam:+.3f}</td>{flags}{cells}</tr>")
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f"<div style='overflow-x:auto'><b>{escape(repr(plan))}</b>{table}</div>"


def _cell(number: float | None, least: float, largest: float) -> str:
    if number is None:
        return "<td style='background:#f1f1ef'></td>"
    size = np.log(max(abs(number), least) / least) / max(np.log(largest / least), 1e-12)
    depth = 0.15 + 0.75 * size if number else 0.0
    strong, weak = 255, round(255 * (1 - depth))
    colour = f"rgb({strong},{weak},{weak})" if number > 0 else f"rgb({weak},{weak},{strong})"
    return f"<td style='{CELL.format('#ffffff' if depth > 0.7 else '#222222', colour)}'>{number:.3g}</td>"


def result_html(result: Result) -> str:
    """The images of a result, if its samples are images, and its line."""
    line = f"<div><code>{escape(repr(result))}</code></div>"
    if not drawings.are_images(tuple(result.x.shape[1:])):
        return line
    stream = io.BytesIO()
    writers.grid(to_pixels(result.x[:MOST_IMAGES])).save(stream, format="PNG")
    return f"{line}<img alt='samples' src='data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}'>"
