"""The solution of a problem, which its contenders are compared with, and how well it is known.

By SciPy's DOP853, an integrator of order 8 that shares no code with the solvers compared, in float64 with rtol = atol =
`tolerance`. Its own error is estimated from above: by its distance from the solution at ten times the tolerance.

The error of a contender at x, x* being the solution and ‖·‖ the root mean square over the numbers of a sample, is

    rmse = sqrt(mean ‖x − x*‖²)      median ‖x − x*‖      worst = max ‖x − x*‖      over samples
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diffode.errors import InputError, in_words
from diffode.files import atomic
from diffode.model import EpsModel
from diffode.models import pretrained
from diffode.ode import accurate
from diffode.schedule import Array
from experiments.comparison.problem import Problem
from solvers.execute import refuse_nonfinite

TOLERANCE = 1e-8


@dataclass(frozen=True)
class Solution:
    """x: (n, *shape), float64, on the CPU. off: the estimated ‖error‖ of each, (n,). nfe: the most evaluations of any sample.

    about: how it was found, and its own error in the measures of `errors`.
    """

    x: Tensor
    off: Array
    nfe: int
    about: dict[str, Any]

    def errors(self, x: Tensor) -> dict[str, float]:
        """How far samples (n, *shape) are from it; see the module docstring."""
        return measures((x.double().cpu() - self.x).flatten(1).square().mean(1).sqrt().numpy())


def measures(off: Array) -> dict[str, float]:
    """rmse, median and worst of the ‖x − x*‖ of samples, (n,)."""
    return {"rmse": float(np.sqrt(np.mean(off**2))), "median": float(np.median(off)), "worst": float(off.max())}


def measure(
    problem: Problem, solution: Solution, cell: Mapping[str, Any], also: Callable[[Tensor], dict[str, float]] = lambda x: {}
) -> dict[str, Any]:
    """The row of a cell (contenders.py), whose grid may be given as its λ: what it took, its errors, and what `also` says of its
    samples; or why it was skipped."""
    try:
        problem.plan(**cell)
    except InputError as error:
        return {"skipped": str(error)}
    run = problem.run(**cell)
    took = {name: getattr(run, name) for name in ("spent", "calls", "seconds", "peak_mib")}
    return {**took, **solution.errors(run.x), **also(run.x)}


def solve(problem: Problem, folder: Path, tolerance: float = TOLERANCE) -> Solution:
    """The solution, whose batches are kept in `folder`: each is computed once.

    InputError for a model that cannot be followed: one whose output is not finite, or not smooth at all.
    """
    if not 0 < tolerance < 1:
        raise InputError(f"the tolerance of the solution is a small positive number, not {tolerance:g}: give 1e-8")
    dtype, model = _exact(problem)
    parts = []
    with tqdm(total=problem.settings.n, desc="solution", unit="sample", disable=None, leave=False) as bar:
        watched = model.watched(refuse_nonfinite).watched(lambda _, lam, m: bar.set_postfix_str(f"λ = {lam:+.2f}"))
        for rows in problem.batches:
            file = folder / f"{_digest(problem, rows, tolerance, dtype)}.npz"
            if not file.exists():
                try:
                    _batch(problem, watched, rows, tolerance, file)
                except (InputError, OSError):
                    raise
                except Exception as error:  # out of memory, or a network of one's own
                    raise InputError(
                        f"{problem.settings.model} fails at --batch {len(problem.seeds[rows])}: {in_words(error)}"
                    ) from error
            try:
                with np.load(file, allow_pickle=False) as part:
                    parts.append({name: part[name] for name in ("x", "off", "nfe")})
            except (ValueError, KeyError, EOFError, BadZipFile) as error:
                raise InputError(f"{file} is damaged: remove it, and the same command computes it again") from error
            bar.update(rows.stop - rows.start)
    x, off = (np.concatenate([part[name] for part in parts]) for name in ("x", "off"))
    nfe = max(int(part["nfe"]) for part in parts)
    about = {"method": "DOP853", "tolerance": tolerance, "dtype": dtype, "nfe": nfe, **measures(off)}
    return Solution(torch.from_numpy(x), off, nfe, about)


def _exact(problem: Problem) -> tuple[str, EpsModel]:
    """The model in float64; a network that cannot be is called in float32, whose rounding the estimate of the error then sees."""
    name, recipe = problem.settings.model, replace(problem.settings.recipe, dtype="float64", device=_device(problem))
    try:
        return "float64", recipe.apply(pretrained.load(name, torch.float64).model)
    except InputError:
        model = recipe.apply(pretrained.load(name).model)
    network = model.network

    def single(x: Tensor, clock: Tensor, **condition: Any) -> Tensor:
        narrow = clock.float() if clock.is_floating_point() else clock
        m = network(x.float(), narrow, **condition)
        return getattr(m, "sample", m).double()  # as EpsModel takes it

    model.network = single
    return "float32", model


def _device(problem: Problem) -> str:
    """Where it is solved: mps has no float64."""
    return "cpu" if problem.settings.device.startswith("mps") else problem.settings.device


def _digest(problem: Problem, rows: slice, tolerance: float, dtype: str) -> str:
    """Of all that decides the solution of these samples."""
    settings = asdict(problem.settings)
    how = {name: settings[name] for name in ("guidance", "clip", "threshold", "device", "denoise")}
    said = [problem.loaded.sha256, how, problem.seeds[rows], problem.labels and problem.labels[rows], tolerance, dtype]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


@torch.no_grad()
def _batch(problem: Problem, model: EpsModel, rows: slice, tolerance: float, file: Path) -> None:
    """Solve for these samples, twice."""
    model, x, schedule = problem.of(model, rows), problem.start(rows, torch.float64, _device(problem)), problem.schedule
    found = []
    for each in (10 * tolerance, tolerance):
        before = model.nfe
        end = accurate(model, x, schedule.lam_min, schedule.lam_max, each)
        found.append(model(end, schedule.lam_max, "data") if problem.settings.denoise else end)
    off = (found[1] - found[0]).flatten(1).square().mean(1).sqrt()
    with atomic(file) as part, open(part, "wb") as stream:
        np.savez(stream, x=found[1].cpu().numpy(), off=off.cpu().numpy(), nfe=model.nfe - before)
