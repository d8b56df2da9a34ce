"""What an output took, in numbers, in words, and on its card."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from diffode.files import json_value
from diffode.grid import name_of
from experiments.common.results import versions
from experiments.sampling.jobs import Job, PreparedJob
from experiments.sampling.trajectory import Arrays
from solvers import Result


@dataclass(frozen=True)
class Summary:
    """per_image: nfe and calls, evaluations and network calls of every image; of an adaptive pair also its steps, accepted and
    rejected, and lam_reached. seconds: of sampling, in this run and those that it resumed. resumed: batches that were there.
    warnings: sentences on what did not come as far as was asked."""

    per_image: Arrays
    seconds: float
    resumed: int
    warnings: tuple[str, ...] = ()

    @property
    def nfe(self) -> float:
        return float(self.per_image["nfe"].mean())

    @property
    def calls(self) -> float:
        return float(self.per_image["calls"].mean())

    def cost(self, unit: str) -> str:
        """NFE, network calls where they differ, and steps, in words; unit: what they are of, as Job.unit."""
        low, high = self.per_image["nfe"].min(), self.per_image["nfe"].max()
        calls = f"{self.calls:.6g} network calls" if abs(self.calls - self.nfe) > 1e-9 else ""
        if low < high:
            text = f"{low:g} to {high:g} NFE per {unit} (mean {', '.join(filter(None, [f'{self.nfe:.1f}', calls]))})"
        else:
            text = f"{low:g} NFE{calls and f' ({calls})'} per {unit}"
        if "accepted" in self.per_image:
            accepted, rejected = (self.per_image[name].mean() for name in ("accepted", "rejected"))
            text += f", {accepted:.1f} steps accepted, {rejected:.1f} rejected"
        return text


def counts(result: Result) -> Arrays:
    """What each image of a batch took, see Summary."""
    n = len(result.x)
    if result.adaptive is not None:
        taken = {name: np.array(getattr(result.adaptive, name)) for name in ("nfe", "calls", "accepted", "rejected")}
        return {**taken, "lam_reached": np.array(result.adaptive.lam)}
    if result.counters:
        return {name: np.array([getattr(counter, name) for counter in result.counters]) for name in ("nfe", "calls")}
    return {"nfe": np.full(n, result.nfe), "calls": np.full(n, result.calls)}


def warnings_of(job: Job, per_image: Arrays, save_plan: Path | None, plan: str | None) -> Iterator[str]:
    """What did not come as far as was asked. plan: the text of the plan to be saved, if there is one."""
    if save_plan is not None and plan is None:
        yield f"no step was accepted within `max_nfe`: there is no plan to write to {save_plan}"
    short = per_image["lam_reached"][per_image["lam_reached"] != job.lams[-1]] if "lam_reached" in per_image else np.empty(0)
    if len(short):
        where = f"λ = {short.min():.6g}" + (f" to {short.max():.6g}" if short.min() < short.max() else "")
        yield (
            f"{len(short)} of {len(job.seeds)} {job.unit}s stopped at {where} of {job.lams[-1]:.6g}, with max_nfe="
            f"{job.options.get('max_nfe', 100_000)}: the last state of each is written; raise `max_nfe`, or loosen "
            "`rtol` and `atol`"
        )


def card(task: PreparedJob, summary: Summary, command: str) -> dict[str, Any]:
    """What is needed to make the output again, and what it was made with."""
    lists = {name: [json_value(value) for value in array.tolist()] for name, array in summary.per_image.items()}
    steps = {name: lists[name] for name in lists if name not in ("nfe", "calls")}
    schedule, loaded = task.loaded.model.schedule, task.loaded.card
    options = {name: json_value(value) for name, value in loaded.schedule_options.items()}
    of_grid = schedule if task.job.init is None else schedule.starting_at(task.job.lams[0])
    return {
        **task.job.as_json(),
        "schedule": {
            "name": loaded.schedule,
            "options": options,
            "lam": [*map(json_value, (schedule.lam_min, schedule.lam_max))],
        },
        "grid_name": name_of([*map(float, task.job.grid)], of_grid, denoise=task.job.denoise),
        "order": task.prepared.solver.order or None,
        "nfe": summary.nfe,
        "network_calls": summary.calls,
        **({**steps, "nfe_of_each": lists["nfe"]} if steps else {}),
        "seconds": round(summary.seconds, 3),
        "command": command,
        "versions": versions(),
        "machine": platform.machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
