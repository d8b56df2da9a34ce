"""Weights of guidance: numbers, one per sample, or functions of λ, all computed in float64 before a run begins."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from diffode import checks
from diffode.errors import InputError, in_words, named
from diffode.schedule import Array

LARGEST_WEIGHT = 1e6
Weight = float | Array | Callable[[float], Any]


def check_weight(name: str, weight: Any) -> Weight:
    """A weight, an array as a copy; InputError for what is neither a number of moderate size, nor one per sample, nor a
    function."""
    if callable(weight):
        return weight
    value = weight.detach().cpu() if isinstance(weight, Tensor) and not weight.is_meta else weight
    scalar = (not isinstance(value, Sequence) and not getattr(value, "ndim", 0)) or isinstance(value, str)
    expected = "of moderate size, such as 2"
    found = (
        np.asarray(checks.number(name, value)) if scalar else checks.array(name, value, f"numbers, one per sample, {expected}")
    )
    if found.ndim > 1 or not found.size or not (abs(found) <= LARGEST_WEIGHT).all():
        raise checks.wrong(name, expected if scalar else f"numbers, one per sample, {expected}", weight)
    return found.copy() if found.ndim else float(found)


def value_at(weight: Weight, lam: float) -> Weight:
    """The number or numbers of a weight at λ; InputError, with the λ, for a function that fails or returns anything else."""
    if not callable(weight):
        return weight
    try:
        found = weight(lam)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"the weight {said(weight)} fails at λ = {lam:g}: {in_words(error)}") from error
    if callable(found):
        raise InputError(f"the weight {said(weight)} must return numbers, not a function, as at λ = {lam:g}")
    return check_weight(f"the weight that {said(weight)} returns at λ = {lam:g}", found)


def weights_at(weight: Weight, lams: Sequence[float] | Array, batch: int) -> Array:
    """A weight at λ (evaluations,) or (evaluations, batch): of the same shape, or (evaluations, batch) where samples differ."""
    lams = np.asarray(lams, np.float64)
    if not callable(weight):
        return np.broadcast_to(_of_batch(weight, batch), (len(lams), *np.shape(weight)))
    each = [_of_batch(value_at(weight, lam), batch) for lam in lams.ravel().tolist()]
    if lams.ndim == 1:
        return np.array(np.broadcast_arrays(*each))
    return np.reshape([found[i % batch] if found.ndim else found for i, found in enumerate(each)], lams.shape)


def aligned(*numbers: Array) -> Sequence[Array]:
    """Numbers (evaluations,) or (evaluations, batch), all as the latter if one of them is."""
    wide = any(found.ndim == 2 for found in numbers)
    return np.broadcast_arrays(*(found[:, None] if wide and found.ndim == 1 else found for found in numbers))


def _of_batch(weight: Any, batch: int) -> Array:
    """The weight as an array; InputError where it is of another batch."""
    found = np.asarray(weight)
    if found.ndim and len(found) != batch:
        raise InputError(f"weights of guidance are for a batch of {len(found)}, the state has {batch}: give one per sample")
    return found


def rows_of_weight(weight: Weight, rows: Sequence[int]) -> Weight:
    """The weight of these rows of the batch; InputError where it is of a smaller one."""
    if callable(weight):
        return OfRows(weight, tuple(rows))
    if not isinstance(weight, np.ndarray):
        return weight
    if len(weight) <= max(rows, default=0):
        raise InputError(f"weights of guidance are for a batch of {len(weight)}, and sample {max(rows)} is asked for")
    return weight[list(rows)]


def said(weight: Weight) -> str:
    """The weight in a word or two."""
    if callable(weight):
        return named(weight)
    return "per sample" if isinstance(weight, np.ndarray) else f"{weight:g}"


@dataclass(frozen=True, eq=False, repr=False)
class OfRows:
    """A function of λ for some rows of its batch."""

    weight: Weight
    rows: Sequence[int]

    def __call__(self, lam: float) -> Weight:
        return rows_of_weight(value_at(self.weight, lam), self.rows)

    def __repr__(self) -> str:
        return said(self.weight)


@dataclass(frozen=True, eq=False, repr=False)
class Interval:
    """What `interval` returns: a weight where lam_lo ≤ λ < lam_hi, and 1 elsewhere."""

    weight: Weight
    lam_lo: float
    lam_hi: float

    def __call__(self, lam: float) -> Weight:
        return value_at(self.weight, lam) if self.lam_lo <= lam < self.lam_hi else 1.0

    def __repr__(self) -> str:
        return f"interval({said(self.weight)}, {self.lam_lo:g}, {self.lam_hi:g})"


def interval(weight: Weight, lam_lo: float, lam_hi: float) -> Interval:
    """`weight` where lam_lo ≤ λ < lam_hi, and 1 elsewhere (Kynkäänniemi et al., 2024, Eq. 5).

    The paper's interval (σ_lo, σ_hi] is of σ̄ = e^(−λ): lam_lo = −log σ_hi, lam_hi = −log σ_lo. InputError for an empty one.
    """
    weight = check_weight("weight", weight)
    lo, hi = checks.number("lam_lo", lam_lo, finite=False), checks.number("lam_hi", lam_hi, finite=False)
    if not lo < hi:
        raise InputError(f"the interval of guidance from λ = {lo:g} to {hi:g} is empty: `lam_lo` must be below `lam_hi`")
    return Interval(weight, lo, hi)


@dataclass(frozen=True, eq=False, repr=False)
class CFGPP:
    """What `cfgpp` returns: the weight of the step of a grid, (n,), that contains λ."""

    omega: float
    grid: Array

    def __call__(self, lam: float) -> float:
        rounding = 1e-9 * (1 + abs(lam)) if math.isfinite(lam) else 0.0  # a λ that rounding moved is of its step
        step = int(np.searchsorted(self.grid, lam + rounding, "right")) - 1
        lengths = np.diff(self.grid)
        return float(self.omega / -np.expm1(-lengths[min(max(step, 0), len(lengths) - 1)]))

    def __repr__(self) -> str:
        return f"cfgpp({self.omega:g}, ...)"


def cfgpp(omega: float, lams: Sequence[float] | Array) -> CFGPP:
    """CFG++ (Chung et al., 2024, Alg. 2) of strength omega, from 0 to 1, for ddim on the grid `lams`.

    CFG++ takes x̂0 of the guided ε and adds σ_t times the unconditional one. That is ddim with the weight ω/(1 − e^(−h)) in
    the step s → t of length h = λ_t − λ_s, which this returns for λ_s ≤ λ < λ_t. InputError for a grid that does not increase.
    """
    omega = checks.number("omega", omega, -LARGEST_WEIGHT, LARGEST_WEIGHT)
    grid = checks.numbers("lams", lams, checks.LARGEST, least=2).copy()
    if not (np.diff(grid) > 0).all():
        raise InputError("`lams` of CFG++ must be the increasing λ of the steps, from noisy to clean")
    return CFGPP(omega, grid)
