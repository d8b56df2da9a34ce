"""The problem that all contenders are given: one model's ODE, from one x_T to one end.

With `denoise` every contender ends with a step to σ = 0. Guidance and what is done to x̂0 belong to the model, and so to the
problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffode.calling import output_of
from diffode.errors import InputError
from diffode.model import EpsModel
from diffode.models.turns import in_turn
from diffode.noise import SeededNoise
from experiments.comparison.cells import OWN_STEPS, parse_contender
from experiments.comparison.cost import metered
from experiments.sampling import jobs
from experiments.sampling.decoding import decoded, image_of
from experiments.sampling.recipe import Recipe, nested
from experiments.sampling.source import Source
from experiments.sampling.summary import counts as counts_per_image
from solvers import Budget, Prepared, sample


@dataclass(frozen=True)
class Settings:
    """What decides a problem: n samples with seeds seed, seed + 1, ..., `batch` at a time; all else as in `cli.py sample`.

    source: also the name of a model. InputError for samples that are not equally many of each prompt.
    """

    source: Source
    n: int = 32
    seed: int = 0
    label: str | None = None
    recipe: Recipe = field(default_factory=Recipe)
    denoise: bool = False
    batch: int = 32

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", Source.of(self.source))
        prompts = len(self.source.pipeline.prompts) if self.source.pipeline else 0
        if prompts and self.n % prompts:
            fitting = max(1, round(self.n / prompts)) * prompts
            raise InputError(
                f"`n` is {self.n}, and rows are the mean over {prompts} prompts in turn: give a multiple, as {fitting}"
            )

    @property
    def model(self) -> str:
        """The name of the model, or of its pipeline."""
        return self.source.model

    @classmethod
    def from_flat(cls, **values: Any) -> Settings:
        """From fields as JSON and cells have them, those of the recipe (guidance, clip, ...) among the others."""
        return cls(**nested(values))


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
        loaded = self.loaded = settings.source.load(settings.recipe.state_dtype)
        self.schedule, self.seeds = loaded.model.schedule, list(range(settings.seed, settings.seed + settings.n))
        if loaded.model.clock == "label" or not np.isfinite([self.schedule.lam_min, self.schedule.lam_max]).all():
            why = "takes whole labels" if loaded.model.clock == "label" else f"is on {self.schedule.name}, which ends at λ = ±∞"
            raise InputError(f"{settings.model} {why}: its ODE has no solution between finite ends to compare with")
        self.labels = jobs.choose_labels(settings.label, loaded.classes, self.seeds)
        settings.recipe.check(loaded.model, self.labels)
        if settings.recipe.device.startswith("cuda"):  # the rounding of tf32 would be taken for an error of the solver
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

    @cached_property
    def model(self) -> EpsModel:
        """The model on its device, after one warm-up call, so that no contender pays for the first."""
        recipe, rows = self.settings.recipe, self.batches[0]
        model, x = recipe.apply(self.loaded.model), self.initial_state(rows, recipe.state_dtype, recipe.device)
        self.labelled(model, rows)(x, self.schedule.lam_min)
        return model

    @cached_property
    def reference(self) -> tuple[str, EpsModel]:
        """What the solution is of: ("float64", the model in float64); for a network that cannot be, ("float32", a model that
        calls it in float32)."""
        source, recipe = self.settings.source, replace(self.settings.recipe, dtype="float64", device=self.reference_device)
        try:
            return "float64", recipe.apply(source.load(torch.float64).model)
        except InputError:
            model = recipe.apply(source.load().model)
        network = model.network

        def in_float32(x: Tensor, clock: Tensor, **condition: Any) -> Tensor:
            narrow = clock.float() if clock.is_floating_point() else clock
            return output_of(network(x.float(), narrow, **condition)).double()

        return "float32", model.replace(network=in_float32)

    @property
    def reference_device(self) -> str:
        """Where the solution is computed: mps has no float64."""
        return "cpu" if self.settings.recipe.device.startswith("mps") else self.settings.recipe.device

    @cached_property
    def image(self) -> tuple[int, ...]:
        """The shape of what a person looks at of a sample (decoding.py)."""
        return image_of(self.loaded)

    def images(self, x: Tensor) -> Tensor:
        """What a person looks at of samples (n, *shape)."""
        return decoded(self.loaded.model, x, self.settings.batch)

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
        """The model with the labels of these samples, if it takes any, and with their rows of its own conditions."""
        model = in_turn(model, self.seeds[rows])
        return model if self.labels is None else model.labelled(self.labels[rows])

    def prepare(self, solver: str, grid: str | Sequence[float], nfe: int | None = None, rtol: float | None = None) -> Prepared:
        """The solver of a cell (cells.py), planned.

        grid: a name, OWN_STEPS, or the finite λ themselves. rtol: both tolerances of an adaptive solver.
        InputError if the contender cannot make exactly nfe evaluations, or cannot end where all do.
        """
        entry, options = parse_contender(solver)
        if rtol is not None:
            options = {**options, "rtol": rtol, "atol": rtol}
        if entry.split_nfe is not None and nfe is not None and not isinstance(grid, str):  # decided by nfe alone, on any grid
            options = {**options, **entry.split_nfe(nfe, self.settings.denoise)[1]}
        spacing = None if grid == OWN_STEPS else grid  # an adaptive solver takes the ends of the default grid
        return entry.prepare(Budget(nfe=nfe, grid=spacing, denoise=self.settings.denoise), self.schedule, **options)

    def run(self, prepared: Prepared, batches: Sequence[slice] | None = None) -> Outcome:
        """Run a prepared contender from x_T, batch by batch, or these alone; InputError for a state that is not finite."""
        recipe, name = self.settings.recipe, prepared.solver.name
        xs, counts, costs = [], [], []
        for rows in self.batches if batches is None else batches:
            model, x = self.labelled(self.model, rows), self.initial_state(rows, recipe.state_dtype, recipe.device)
            with metered(recipe.device) as cost:
                result = sample(model, x=x, solver=prepared)
            if not result.finished:
                raise InputError(f"{name} was stopped by max_nfe before the end")
            xs.append(result.x.cpu())
            counts.append(counts_per_image(result))
            costs.append(cost)
        nfe, calls = (float(np.concatenate([count[name] for count in counts]).mean()) for name in ("nfe", "calls"))
        peaks = [cost.peak_mib for cost in costs if cost.peak_mib is not None]
        return Outcome(torch.cat(xs), nfe, calls, sum(cost.seconds for cost in costs), max(peaks, default=None))
