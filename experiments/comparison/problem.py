"""The problem that contenders are given: the ODE of one model, from one x_T to one end, whoever follows it.

With `denoise` all end with a step to σ = 0. What is done to x̂0, and guidance, belong to the model and so to the problem.
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
from experiments.comparison.cells import OWN, parse
from experiments.comparison.cost import metered
from experiments.sampling import generate, jobs
from experiments.sampling.recipe import Recipe
from solvers import sample
from solvers.entries import BlackBox, Options
from solvers.registry import find
from solvers.sampling import choose_grid

Planning = tuple[str, Array, Options]


@dataclass(frozen=True)
class Settings:
    """What decides a problem. n samples of seeds seed, seed + 1, ..., `batch` at a time; all else as `cli.py sample` has it."""

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
    def state(self) -> torch.dtype:
        """Of x."""
        return self.recipe.state_dtype


@dataclass(frozen=True)
class Run:
    """Where a contender came, x (n, *shape) on the CPU, and what it took: evaluations and network calls, each the mean over
    samples; seconds of all samples; and the peak of memory (see meter.Taken)."""

    x: Tensor
    spent: float
    calls: float
    seconds: float
    peak_mib: float | None


class Problem:
    """See the module docstring. InputError for settings that the model cannot have, and for a model whose ODE has no solution
    between the ends: one that takes whole labels only, or whose schedule ends at λ = ±∞."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        loaded = self.loaded = pretrained.load(settings.model, settings.state)
        self.schedule, self.seeds = loaded.model.schedule, list(range(settings.seed, settings.seed + settings.n))
        if loaded.model.clock == "label" or not np.isfinite([self.schedule.lam_min, self.schedule.lam_max]).all():
            why = "takes whole labels" if loaded.model.clock == "label" else f"is on {self.schedule.name}, which ends at λ = ±∞"
            raise InputError(f"{settings.model} {why}: it has no ODE between finite ends, whose solution could be compared with")
        self.labels = jobs.choose_labels(settings.label, loaded.classes, self.seeds)
        settings.recipe.require_labels(self.labels)
        if settings.device.startswith("cuda"):  # what tf32 rounds would be taken for an error of the solver
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

    @cached_property
    def model(self) -> EpsModel:
        """Where it is run, warmed up: the first call of a network prepares what the others find."""
        model, rows = self.settings.recipe.apply(self.loaded.model), self.batches[0]
        self.of(model, rows)(self.start(rows, self.settings.state, self.settings.device), self.schedule.lam_min)
        return model

    @property
    def batches(self) -> list[slice]:
        n, batch = self.settings.n, self.settings.batch
        return [slice(first, min(first + batch, n)) for first in range(0, n, batch)]

    def start(self, rows: slice, dtype: torch.dtype, device: str) -> Tensor:
        """x_T of these samples."""
        seeds = self.seeds[rows]
        like = torch.empty((len(seeds), *self.loaded.image), dtype=dtype, device=device)
        return SeededNoise(seeds)(0, like) * float(self.schedule.sigma(self.schedule.lam_min))

    def of(self, model: EpsModel, rows: slice) -> EpsModel:
        """The model with the labels of these samples."""
        return model if self.labels is None else model.labelled(self.labels[rows])

    def plan(self, solver: str, grid: str | Sequence[float], nfe: int | None = None, rtol: float | None = None) -> Planning:
        """Name, grid and options of a contender; InputError if it cannot spend exactly nfe evaluations, or not end where all do.

        grid: a name, OWN, or the finite λ themselves. rtol: both tolerances of an adaptive solver.
        """
        if not isinstance(grid, str):  # what the budget decides beside the steps is the same on all grids
            name, _, options = self.plan(solver, "logsnr", nfe)
            return name, grids.make(grid, self.schedule, denoise=self.settings.denoise), options
        name, options = parse(solver)
        options = options if rtol is None else {**options, "rtol": rtol, "atol": rtol}
        spacing = "logsnr" if grid == OWN else grid  # of which an adaptive solver takes the ends
        lams, options = choose_grid(
            find(name), self.schedule, nfe=nfe, steps=None, grid=spacing, denoise=self.settings.denoise, **options
        )
        if isinstance(find(name), BlackBox) and self.settings.denoise:
            raise InputError(f"{solver} is an integrator of torchdiffeq, and cannot take the step to σ = 0")
        return name, lams, options

    def run(self, solver: str, grid: str | Sequence[float], nfe: int | None = None, rtol: float | None = None) -> Run:
        """What `plan` says, done; InputError for a state that is not finite."""
        name, lams, options = self.plan(solver, grid, nfe, rtol)
        xs, counts, taken = [], [], []
        for rows in self.batches:
            model, x = self.of(self.model, rows), self.start(rows, self.settings.state, self.settings.device)
            with metered(self.settings.device) as took:
                result = sample(model, x=x, solver=name, grid=lams.tolist(), **options)
            if not result.finished:
                raise InputError(f"{solver} was stopped by max_nfe before the end")
            xs.append(result.x.cpu())
            counts.append(generate.counts(model, result, bool(options.get("per_sample"))))
            taken.append(took)
        spent, calls = (float(np.concatenate([count[name] for count in counts]).mean()) for name in ("nfe", "calls"))
        peaks = [took.peak_mib for took in taken if took.peak_mib is not None]
        return Run(torch.cat(xs), spent, calls, sum(took.seconds for took in taken), max(peaks, default=None))
