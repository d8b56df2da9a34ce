"""The reference solution of a problem, how well it is known, and how far a contender's samples are from it.

It is found by SciPy's DOP853, an integrator of order 8 that shares no code with the solvers compared, in float64 with rtol = atol
= `tolerance`. Its own error is estimated from above, by its distance from the solution at ten times the tolerance.

With x* the solution and ‖·‖ the root mean square over the numbers of a sample, the error of samples x is

    rmse = sqrt(mean ‖x − x*‖²)      median ‖x − x*‖      worst = max ‖x − x*‖      over samples
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffode.errors import InputError, in_words
from diffode.evaluation import Counter
from diffode.files import atomic
from diffode.model import EpsModel
from diffode.models import pretrained
from diffode.ode import accurate
from diffode.reading import read_npz, reading
from diffode.schedule import Array
from experiments.common.commands import is_out_of_memory
from experiments.common.progress import progress
from experiments.comparison.problem import Problem
from experiments.sampling.recipe import LATER, flat
from solvers.execute import refuse_nonfinite

TOLERANCE = 1e-8


@dataclass(frozen=True)
class Solution:
    """x: (n, *shape), float64, on the CPU. own_error: the estimated ‖error‖ of each sample, (n,). nfe: the most evaluations that
    any sample took. about: how it was found, and its own error as in `error_summary`.
    """

    x: Tensor
    own_error: Array
    nfe: int
    about: dict[str, Any]

    def errors(self, x: Tensor) -> dict[str, float]:
        """The errors of samples (n, *shape); see the module docstring."""
        return error_summary(_distance(x.double().cpu(), self.x).numpy())


def error_summary(distances: Array) -> dict[str, float]:
    """rmse, median and worst of the distances ‖x − x*‖ of samples, (n,)."""
    return {"rmse": float(np.sqrt(np.mean(distances**2))), "median": float(np.median(distances)), "worst": float(distances.max())}


def measure_cell(
    problem: Problem,
    solution: Solution,
    cell: Mapping[str, Any],
    further_measures: Callable[[Tensor], dict[str, float]] = lambda x: {},
) -> dict[str, Any]:
    """The row of a cell (cells.py), whose grid may be given as its λ: its cost, its errors, and what `further_measures` returns
    for its samples; or {"skipped": why}, if the contender cannot be run so."""
    try:
        prepared = problem.prepare(**cell)
    except InputError as error:
        return {"skipped": str(error)}
    outcome = problem.run(prepared)
    cost = {"spent": outcome.nfe, "calls": outcome.calls, "seconds": outcome.seconds, "peak_mib": outcome.peak_mib}
    return {**cost, **solution.errors(outcome.x), **further_measures(outcome.x)}


def find_solution(problem: Problem, folder: Path, tolerance: float = TOLERANCE) -> Solution:
    """The reference solution. Each of its batches is computed once, and read from `folder` afterwards, unless it is damaged.

    InputError for a tolerance that is not in (0, 1), and for a model that cannot be integrated: one that fails, whose output is
    not finite, or that is not smooth at all.
    """
    check_tolerance(tolerance)
    dtype, model = _in_float64(problem)
    batches = []
    with progress(problem.settings.n, "solution", "samples", leave=False) as bar:
        watched = model.watched(refuse_nonfinite).watched(lambda _, lam, m: bar.set_postfix_str(f"λ = {lam:+.2f}"))
        for rows in problem.batches:
            file = folder / f"{_digest(problem, rows, tolerance, dtype)}.npz"
            if (known := _read_batch(file, problem, rows)) is None:
                _solve_batch(problem, watched, rows, tolerance, file)
                known = _read_batch(file, problem, rows)
            assert known is not None
            batches.append(known)
            bar.update(rows.stop - rows.start)
    x, own_error = (np.concatenate([batch[name] for batch in batches]) for name in ("x", "off"))
    nfe = max(int(batch["nfe"]) for batch in batches)
    about = {"method": "DOP853", "tolerance": tolerance, "dtype": dtype, "nfe": nfe, **error_summary(own_error)}
    return Solution(torch.from_numpy(x), own_error, nfe, about)


def check_tolerance(tolerance: float) -> None:
    """InputError for a tolerance that is not in (0, 1)."""
    if not 0 < tolerance < 1:
        raise InputError(f"the tolerance of the solution is a small positive number, not {tolerance:g}: give 1e-8")


def _in_float64(problem: Problem) -> tuple[str, EpsModel]:
    """("float64", the model in float64); for a network that cannot be, ("float32", a model that calls it in float32). The
    estimate of the solution's own error then includes that rounding."""
    name, recipe = problem.settings.model, replace(problem.settings.recipe, dtype="float64", device=_device(problem))
    try:
        return "float64", recipe.apply(pretrained.load(name, torch.float64).model)
    except InputError:
        model = recipe.apply(pretrained.load(name).model)
    network = model.network

    def in_float32(x: Tensor, clock: Tensor, **condition: Any) -> Tensor:
        narrow = clock.float() if clock.is_floating_point() else clock
        m = network(x.float(), narrow, **condition)
        return getattr(m, "sample", m).double()  # as EpsModel takes it

    model = model.replace(network=in_float32)
    return "float32", model


def _device(problem: Problem) -> str:
    """Where the solution is computed: mps has no float64."""
    return "cpu" if problem.settings.recipe.device.startswith("mps") else problem.settings.recipe.device


def _digest(problem: Problem, rows: slice, tolerance: float, dtype: str) -> str:
    """Of all that decides the solution of these samples."""
    settings = flat(problem.settings)
    deciding = ("guidance", "clip", "threshold", "device", "denoise", *LATER)
    recipe = {name: settings[name] for name in deciding if name in settings}
    labels = problem.labels and problem.labels[rows]
    content = [problem.loaded.sha256, recipe, problem.seeds[rows], labels, tolerance, dtype]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _solve_batch(problem: Problem, model: EpsModel, rows: slice, tolerance: float, file: Path) -> None:
    """Solve for these samples, and write the file; InputError if the network fails."""
    try:
        x, own_error, nfe = _solve(problem, problem.labelled(model, rows), rows, tolerance)
    except (InputError, OSError):
        raise
    except Exception as error:  # a user-defined network
        if is_out_of_memory(error):
            raise InputError(f"out of memory in the solution, {problem.settings.model} in float64: lower `batch`") from error
        raise InputError(f"{problem.settings.model} fails with batch {len(problem.seeds[rows])}: {in_words(error)}") from error
    with atomic(file) as part, open(part, "wb") as stream:
        np.savez(stream, x=x.cpu().numpy(), off=own_error.cpu().numpy(), nfe=nfe)


@torch.no_grad()
def _solve(problem: Problem, model: EpsModel, rows: slice, tolerance: float) -> tuple[Tensor, Tensor, int]:
    """The solution of these samples, its distance from that at ten times the tolerance, and its evaluations."""
    x, schedule, nfe, ends = problem.initial_state(rows, torch.float64, _device(problem)), problem.schedule, 0, []
    for each in (10 * tolerance, tolerance):
        counter = Counter()
        end = accurate(model, x, schedule.lam_min, schedule.lam_max, each, counter)
        ends.append(model(end, schedule.lam_max, "data", counter) if problem.settings.denoise else end)
        nfe = counter.nfe
    return ends[1], _distance(*ends), nfe


def _distance(x: Tensor, other: Tensor) -> Tensor:
    """‖x − other‖ of each sample, (n,)."""
    return (x - other).reshape(len(x), -1).square().mean(1).sqrt()


def _read_batch(file: Path, problem: Problem, rows: slice) -> dict[str, Any] | None:
    """The arrays of a solution's batch; None if there are none, or others than are written (the archive has checksums)."""
    n = rows.stop - rows.start
    shapes = {"x": (n, *problem.loaded.image), "off": (n,), "nfe": ()}
    try:
        with reading(file, "solution", "what compare wrote"):
            arrays = read_npz(file, shapes)
            good = all(arrays[name].shape == shape and np.isfinite(arrays[name]).all() for name, shape in shapes.items())
    except InputError:
        return None
    return arrays if good and arrays["x"].dtype == arrays["off"].dtype == np.float64 else None
