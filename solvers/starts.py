"""What a run begins with: noise, a state, or data that is noised to where the run begins.

noise   x_T = σ z          (n or shape)
state   x                  (x)
data    x_λ = α x + σ z    (x, and from_lam or strength)        z: draw 0; α and σ at the first λ of the grid
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffode import checks
from diffode.brownian import BrownianNoise, Interval
from diffode.calling import check_device, check_state
from diffode.errors import InputError, in_words
from diffode.generators import GeneratorNoise
from diffode.model import EpsModel
from diffode.noise import Noise, SeededNoise, seeds_of
from diffode.schedule import Schedule
from solvers.budget import Prepared
from solvers.intervals import intervals

Seed = int | Sequence[int] | torch.Generator | Sequence[torch.Generator]  # of `sample`
NOISES = "seeded", "brownian"


@dataclass(frozen=True)
class Start:
    """shape: of the whole batch, (n, ...). x: a state, or data; None for noise, in `dtype` on `device`."""

    shape: tuple[int, ...]
    x: Tensor | None
    dtype: torch.dtype
    device: torch.device

    def __len__(self) -> int:
        return self.shape[0]

    def state(self, prepared: Prepared, schedule: Schedule, rows: slice, noise: Noise | None) -> Tensor:
        """The state of these samples, (rows, ...), at the first λ of the grid."""
        alpha, sigma = float(schedule.alpha(prepared.grid[0])), float(schedule.sigma(prepared.grid[0]))
        if self.x is None:
            assert noise is not None
            return noise(0, self._empty(rows.stop - rows.start)) * sigma
        x = self.x[rows]
        return x if noise is None or not prepared.noised else alpha * x + sigma * noise(0, x)

    def _empty(self, n: int) -> Tensor:
        """A state of n samples; InputError if it does not fit into memory."""
        shape = (n, *self.shape[1:])
        try:
            return torch.empty(shape, dtype=self.dtype, device=self.device)
        except RuntimeError as error:
            raise InputError(
                f"a state of shape {shape} does not fit into the memory of {self.device}: {in_words(error)}"
            ) from error


def begin(
    model: EpsModel,
    prepared: Prepared,
    n: int | None,
    shape: Sequence[int] | None,
    x: Tensor | None,
    dtype: torch.dtype,
    device: str | torch.device | None,
) -> Start:
    """The start that these say; InputError unless one of n, shape and x is given, and for noise where data is needed."""
    if sum(given is not None for given in (n, shape, x)) != 1:
        raise InputError("give one of n (how many), shape (batch, ...), to draw noise of, and x, a state or data to begin with")
    if x is not None:
        check_shape("x", check_state("x", x).shape, model)
        return Start(tuple(x.shape), x, x.dtype, x.device)
    if prepared.noised:
        raise InputError("from_lam and strength begin with data that is noised: give it as x, or leave them out")
    if prepared.grid[-1] < prepared.grid[0]:
        raise InputError(f"{prepared.solver.name} is a plan from data to noise: give the data as x")
    if n is not None:
        if model.shape is None:
            raise InputError("the model does not say its shape: give shape=(batch, ...), or EpsModel(..., shape=...)")
        shape = (checks.whole("n", n, 1), *model.shape)
    place = check_device("device", model.device if device is None else device)
    if device is None and place.type == "meta":
        raise InputError("the network is on meta, where tensors hold no numbers: load its weights onto a device")
    shape = checks.sizes("shape", shape, "(batch, 1, 28, 28)")
    check_shape("shape", shape, model)
    return Start(shape, None, dtype, place)


def check_shape(name: str, shape: Sequence[int], model: EpsModel) -> None:
    """InputError for a batch of this shape, if the model says another of its samples."""
    if model.shape is not None and tuple(shape[1:]) != model.shape:
        raise InputError(
            f"`{name}` has samples of shape {tuple(shape[1:])}, and those of the model are {model.shape}: give such, or say what "
            f"the network takes, as model.replace(shape={tuple(shape[1:])})"
        )


@dataclass(frozen=True)
class Draws:
    """The noise of a whole batch, of which every part takes that of its rows.

    seeds: whole numbers, one per sample; or generators, one per sample, or one for all. kind: one of NOISES, None if nothing is
    drawn. intervals: those of Brownian paths that the draws are.
    """

    seeds: Any
    kind: str | None = "seeded"
    intervals: Mapping[int, Interval] = field(default_factory=dict)

    @classmethod
    def of(cls, seed: Any, noise: str | None, start: Start, prepared: Prepared, parts: int) -> Draws:
        """Those that `sample` is asked for; InputError for seeds that do not fit, and for noise that cannot be drawn so."""
        if noise is None and start.x is None:
            raise InputError("noise=None draws nothing, and the run begins with noise: give x, the state to begin with")
        check_noise(noise, prepared)
        generators = _generators(seed)
        if noise == "brownian" and generators:
            raise InputError("a Brownian path is drawn from a whole number, at any λ first: give seeds, not generators")
        if isinstance(seed, torch.Generator) and parts > 1:
            raise InputError("one torch.Generator draws for a whole batch: give seeds, or one per sample, or leave batch out")
        if not isinstance(generators, torch.Generator) and len(generators or start) != len(start):
            raise InputError(f"{len(generators)} generators were given for {len(start)} samples")
        steps = intervals(prepared.plan) if noise == "brownian" and prepared.plan is not None else {}
        return cls(generators or seeds_of(seed, len(start)), noise, steps)

    def of_rows(self, rows: slice) -> Noise | None:
        """The noise of these samples; None if none is to be drawn."""
        if self.kind is None:
            return None
        if isinstance(self.seeds, torch.Generator):
            return GeneratorNoise(self.seeds)
        seeds = self.seeds[rows]
        if isinstance(seeds[0], torch.Generator):
            return GeneratorNoise(seeds)
        return BrownianNoise(seeds, self.intervals) if self.kind == "brownian" else SeededNoise(seeds)


def _generators(seed: Any) -> Any:
    """The generators that are given in the place of seeds, one or a list; [] if they are none."""
    if isinstance(seed, torch.Generator):
        return seed
    found = isinstance(seed, list | tuple) and all(isinstance(each, torch.Generator) for each in seed)
    if found and len(set(map(id, seed))) < len(seed):
        raise InputError("a generator is given twice, and draws for one sample only: give one per sample, or one for all")
    return list(seed) if found else []


def check_noise(noise: str | None, prepared: Prepared) -> None:
    """InputError for a noise that there is not, or that this solver cannot draw."""
    if noise is not None:
        checks.choice("noise", noise, NOISES)
    if noise == "brownian" and prepared.plan is None:
        raise InputError(f'{prepared.solver.name} has no plan whose draws noise="brownian" could be: leave `noise` out')
    if noise is None and prepared.plan is not None and prepared.plan.stochastic:
        raise InputError(
            f'{prepared.solver.name} draws noise, and noise=None none: give noise="seeded"; x is a state, which is not noised, '
            "without from_lam and strength, too, at the first λ of `grid`"
        )
