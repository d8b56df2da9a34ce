"""Which guidance a pipeline does: the weights by which what its network returned became what its scheduler was given.

With outputs o_k of the branches and what reached the scheduler m, at all points together,

    m = s Σ w_k o_k      Σ w_k = 1      s = ±1

by least squares in float64, and then as the roundest numbers that explain m as well. What reached the scheduler may also be
rescaled (Lin et al., 2024): then each sample has another sum of weights, as rules.rescaled says, with one φ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from diffode.errors import InputError
from diffode.rules import Rescaled
from diffode.schedule import Array

MOST_DIGITS = 6  # behind the point of a weight
Point = tuple[Tensor, Tensor, float]  # outputs (branches, rows, *shape), what was made of them (rows, *shape), their rounding
Make = Callable[[Tensor, Array], Tensor]  # (outputs, weights) -> what is made of them


def weigh(outputs: Sequence[Sequence[Tensor]], made: Sequence[Tensor]) -> tuple[list[float], int, float]:
    """(weights, s, φ) for the outputs of the branches at each point and what was made of them, all (rows, *shape).

    φ: of `rescaled`, 0 without. InputError where no weights explain what was made.
    """
    points = [(torch.stack(list(o)).double(), m.double(), _rounding(*o, m)) for o, m in zip(outputs, made, strict=True)]
    weights = _solved(torch.cat([o.flatten(1) for o, _, _ in points], 1), torch.cat([m.flatten() for _, m, _ in points]))
    sign = -1 if weights.sum() < 0 else 1
    weights = _roundest(points, lambda o, some: sign * _summed(o, some), sign * weights)
    if _explain(points, _summed, sign * weights):
        return weights.tolist(), sign, 0.0
    if len(weights) == 2 and (found := _rescaled(points)):
        return found[0], 1, found[1]
    raise InputError(
        f"what the pipeline hands to its scheduler is no weighted sum of the {len(weights)} outputs of its network with the same "
        "weights at all t, nor one that is rescaled: leave out what changes it further"
    )


def _rescaled(points: Sequence[Point]) -> tuple[list[float], float] | None:
    """(weights, φ) of two branches, None where there are none; their sum in each sample is 1 + φ (std(c)/std(m) − 1)."""
    each = np.array([[_solved(o[:, row].flatten(1), m[row].flatten()) for row in range(len(m))] for o, m, _ in points])
    totals = each.sum(-1)
    weights = np.median(each / totals[..., None], (0, 1))
    text = int(weights.argmax())
    ratios = np.array([[float(o[text, i].std() / _summed(o, weights)[i].std()) for i in range(len(m))] for o, m, _ in points])
    phi = round(float(np.median((totals - 1) / (ratios - 1))), 3)
    if not 0 < phi <= 1:
        return None

    def scaled(o: Tensor, weights: Array) -> Tensor:
        return Rescaled(phi)(o[text], o[1 - text], _summed(o, weights), 0.0)

    weights = _roundest(points, scaled, weights)
    return (weights.tolist(), phi) if _explain(points, scaled, weights) else None


def _summed(outputs: Tensor, weights: Array) -> Tensor:
    return torch.einsum("k,k...->...", torch.as_tensor(weights).to(outputs), outputs)


def _explain(points: Sequence[Point], make: Make, weights: Array) -> bool:
    """Whether, within rounding, these weights make of the outputs what was made."""
    allowed = 2 * (1 + abs(weights).sum())
    return all(float((make(o, weights) - m).abs().max()) <= allowed * near for o, m, near in points)


def _solved(outputs: Tensor, made: Tensor) -> Array:
    """The weights of outputs (branches, numbers) by least squares."""
    return np.linalg.lstsq(outputs.T.numpy(force=True), made.numpy(force=True), rcond=None)[0]


def _roundest(points: Sequence[Point], make: Make, weights: Array) -> Array:
    """The weights of sum 1 with the fewest digits that explain what was made as well as these do, within five standard errors;
    with MOST_DIGITS if none do. The smallest makes up the sum."""

    def loss(some: Array) -> float:
        return sum(float((make(o, some) - m).square().sum()) for o, m, _ in points)

    allowed = loss(weights) * (1 + 25 / sum(m.numel() for _, m, _ in points))
    least = int(weights.argmin())
    for digits in range(MOST_DIGITS + 1):
        rounded = weights.round(digits)
        rounded[least] = 1 - np.delete(rounded, least).sum()
        if loss(rounded) <= allowed:
            break
    return rounded


def _rounding(*tensors: Tensor) -> float:
    """What numbers of this size and dtype are rounded by, a few times."""
    return 4 * max(torch.finfo(one.dtype).eps for one in tensors) * max(float(one.abs().max()) for one in tensors)
