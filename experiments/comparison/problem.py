"""The problem that all contenders are given: one model's ODE, from one x_T to one end.

With `denoise` every contender ends with a step to σ = 0. Guidance and what is done to x̂0 belong to the model, and so to the
problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from diffode import grid as grids
from diffode.errors import InputError
from diffode.model import EpsModel
from diffode.models import pretrained
from diffode.noise import SeededNoise
from diffode.schedule import Array
from experiments.comparison.cells import OWN_STEPS, parse_contender
from experiments.comparison.cost import metered
from experiments.sampling import generate, jobs
from experiments.sampling.recipe import Recipe
from solvers import Budget, sample
from solvers.options import Options
from solvers.registry import find

Planning = tuple[str, Array, Options]


@dataclass(frozen=True)
class Settings:
    """What decides a problem: n samples with seeds seed, seed + 1, ..., `batch` at a time; all else as in `cli.py sample`."""

    model: str
    n: int = 32
    seed: int = 0
    label: str | None = None
    guidance: float = 1.0
    clip: bool = False
    threshold: float | None = None
    dtype: str = "float32"
    device: str = "cpu"
    denoise: bool = False
    batch: int = 32

    @property
    def recipe(self) -> Recipe:
        """How the model is run."""
        return Recipe(self.guidance, self.clip, self.threshold, self.dtype, self.device)

    @property
    def state_dtype(self) -> torch.dtype:
        """Of x."""
        return self.recipe.state_dtype


@dataclass(frozen=True)
class Outcome:
    """Where a contender arrived and what it cost.

    x: (n, *shape), on the CPU. nfe, calls: evaluations and network calls, the mean over samples. seconds: of all samples
    together. peak_mib: see cost.Cost.
    """

    x: Tensor
    nfe: float
    calls: float
    seconds: float
    peak_mib: float | None


class Problem:
    """See the module docstring.

    InputError for settings that the model cannot have, and for a model whose ODE has no solution between finite ends: one that
    takes whole labels only, or whose schedule ends at λ = ±∞.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        loaded = self.loaded = pretrained.load(settings.model, settings.state_dtype)
        self.schedule, self.seeds = loaded.model.schedule, list(range(settings.seed, settings.seed + settings.n))
        if loaded.model.clock == "label" or not np.isfinite([self.schedule.lam_min, self.schedule.lam_max]).all():
            why = "takes whole labels" if loaded.model.clock == "label" else f"is on {self.schedule.name}, which ends at λ = ±∞"
            raise InputError(f"{settings.model} {why}: its ODE has no solution between finite ends to compare with")
        self.labels = jobs.choose_labels(settings.label, loaded.classes, self.seeds)
        settings.recipe.require_labels(self.labels)
        if settings.device.startswith("cuda"):  # the rounding of tf32 would be taken for an error of the solver
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

    @cached_property
    def model(self) -> EpsModel:
        """The model on its device, after one warm-up call, so that no contender pays for the first."""
        model, rows = self.settings.recipe.apply(self.loaded.model), self.batches[0]
        x = self.initial_state(rows, self.settings.state_dtype, self.settings.device)
        self.labelled(model, rows)(x, self.schedule.lam_min)
        return model

    @property
    def batches(self) -> list[slice]:
        """The samples of each batch."""
        n, batch = self.settings.n, self.settings.batch
        return [slice(first, min(first + batch, n)) for first in range(0, n, batch)]

    def initial_state(self, rows: slice, dtype: torch.dtype, device: str) -> Tensor:
        """x_T of these samples, (len(rows), *shape)."""
        seeds = self.seeds[rows]
        like = torch.empty((len(seeds), *self.loaded.image), dtype=dtype, device=device)
        return SeededNoise(seeds)(0, like) * float(self.schedule.sigma(self.schedule.lam_min))

    def labelled(self, model: EpsModel, rows: slice) -> EpsModel:
        """The model with the labels of these samples, if it takes any."""
        return model if self.labels is None else model.labelled(self.labels[rows])

    def plan(self, solver: str, grid: str | Sequence[float], nfe: int | None = None, rtol: float | None = None) -> Planning:
        """The solver's name, grid and options for one cell.

        grid: a name, OWN_STEPS, or the finite λ themselves. rtol: both tolerances of an adaptive solver.
        InputError if the contender cannot make exactly nfe evaluations, or cannot end where all do.
        """
        if not isinstance(grid, str):  # apart from the steps, what a budget decides is the same on all grids
            name, _, options = self.plan(solver, "logsnr", nfe)
            return name, grids.make(grid, self.schedule, denoise=self.settings.denoise), options
        name, options = parse_contender(solver)
        options = options if rtol is None else {**options, "rtol": rtol, "atol": rtol}
        spacing = "logsnr" if grid == OWN_STEPS else grid  # of which an adaptive solver takes the ends
        prepared = find(name).prepare(Budget(nfe=nfe, grid=spacing, denoise=self.settings.denoise), self.schedule, **options)
        return name, prepared.grid, prepared.options

    def run(self, solver: str, grid: str | Sequence[float], nfe: int | None = None, rtol: float | None = None) -> Outcome:
        """Run one cell, described as for `plan`; InputError for a state that is not finite."""
        name, lams, options = self.plan(solver, grid, nfe, rtol)
        xs, counts, costs = [], [], []
        for rows in self.batches:
            model = self.labelled(self.model, rows)
            x = self.initial_state(rows, self.settings.state_dtype, self.settings.device)
            with metered(self.settings.device) as cost:
                result = sample(model, x=x, solver=name, grid=lams.tolist(), **options)
            if not result.finished:
                raise InputError(f"{solver} was stopped by max_nfe before the end")
            xs.append(result.x.cpu())
            counts.append(generate.counts(model, result, bool(options.get("per_sample"))))
            costs.append(cost)
        evaluations, calls = (float(np.concatenate([count[name] for count in counts]).mean()) for name in ("nfe", "calls"))
        peaks = [cost.peak_mib for cost in costs if cost.peak_mib is not None]
        return Outcome(torch.cat(xs), evaluations, calls, sum(cost.seconds for cost in costs), max(peaks, default=None))
