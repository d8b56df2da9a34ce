"""Which guidance a pipeline does: the weights by which what its network returned became what its scheduler was given.

With outputs o_k of the branches and what reached the scheduler m, at all points together,

    m = s Σ w_k o_k      Σ w_k = 1      s = ±1

by least squares in float64, and then as the roundest numbers that explain m as well. What reached the scheduler may also be
rescaled (Lin et al., 2024): then each sample has another sum of weights, as rules.rescaled says, with one φ.

In half precision other weights, and guidance that is another function, explain m within its rounding. Two branches are therefore
combined there as pipelines do it, u + w (c − u) or c + (w − 1) (c − u) in the dtype of the outputs or of m: the weights are the
roundest by which nearly all numbers of m come out bit by bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from diffode.calling import HALF
from diffode.errors import InputError
from diffode.rules import Rescaled
from diffode.schedule import Array

MOST_DIGITS = 6  # behind the point of a weight
NEARLY = 0.99  # of the numbers
Point = tuple[Tensor, Tensor, float]  # outputs (branches, rows, *shape), what was made of them (rows, *shape), their rounding
Make = Callable[[Tensor, Array], Tensor]  # (outputs, weights) -> what is made of them


def weigh(outputs: Sequence[Sequence[Tensor]], made: Sequence[Tensor]) -> tuple[list[float], int, float]:
    """(weights, s, φ) for the outputs of the branches at each point and what was made of them, all (rows, *shape).

    φ: of `rescaled`, 0 without. InputError where no weights explain what was made.
    """
    points = [(torch.stack(list(o)).double(), m.double(), _rounding(*o, m)) for o, m in zip(outputs, made, strict=True)]
    weights = _solved(torch.cat([o.flatten(1) for o, _, _ in points], 1), torch.cat([m.flatten() for _, m, _ in points]))
    sign = -1 if weights.sum() < 0 else 1
    if half := _half_of(outputs[0][0], made):
        if found := _in_few_digits(outputs, [sign * m for m in made], points, sign * weights, half):
            return found[0], sign, found[1]
    else:
        weights = _roundest(points, lambda o, some: sign * _summed(o, some), sign * weights)
        if _explain(points, _summed, sign * weights):
            return weights.tolist(), sign, 0.0
        if len(weights) == 2 and (found := _rescaled(points)):
            return found[0], 1, found[1]
    raise InputError(
        f"what the pipeline hands to its scheduler is no weighted sum of the {len(weights)} outputs of its network with the same "
        "weights at all t, nor one that is rescaled: leave out what changes it further, as normalization (Lumina2: "
        "cfg_normalization=False; QwenImage: true_cfg_scale=1) and a weight for each frame (StableVideoDiffusion: "
        "min_guidance_scale=max_guidance_scale)"
    )


def _half_of(output: Tensor, made: Sequence[Tensor]) -> torch.dtype | None:
    """The half precision that what was made is in, or was in before it became wider; None where it is neither."""
    halves = [dtype for dtype in (made[0].dtype, output.dtype) if dtype in HALF]
    return next((half for half in halves if all(torch.equal(m.to(half).to(m.dtype), m) for m in made)), None)


def _in_few_digits(
    outputs: Sequence[Sequence[Tensor]], made: Sequence[Tensor], points: Sequence[Point], weights: Array, half: torch.dtype
) -> tuple[list[float], float] | None:
    """(weights, φ) by which what was made comes out bit by bit, for two branches; for others within the size of its rounding."""
    if len(weights) != 2:
        weights = _roundest([(o, m.double(), near) for (o, _, near), m in zip(points, made, strict=True)], _summed, weights)
        likely = all(
            _is_rounding(o, m.double(), weights, torch.finfo(half).eps) for (o, _, _), m in zip(points, made, strict=True)
        )
        return (weights.tolist(), 0.0) if likely else None
    text = int(weights.argmax())
    pairs = [(o[text], o[1 - text], m) for o, m in zip(outputs, made, strict=True)]
    apart = torch.cat([(c.double() - u.double()).flatten() for c, u, _ in pairs])
    changed = torch.cat([(m.double() - u.double()).flatten() for _, u, m in pairs])
    plain = float((apart * changed).sum() / apart.square().sum()) if apart.any() else 1.0
    best, found = NEARLY, None
    dtypes = dict.fromkeys((pairs[0][0].dtype, made[0].dtype))
    for w, phi in _candidates(plain, points):
        for dtype, from_text in itertools.product(dtypes, (False,) if phi else (False, True)):
            equal = 1.0
            for c, u, m in pairs:
                again = _combined(c.to(dtype), u.to(dtype), w, phi, from_text).to(m)
                equal = min(equal, float((again == m).double().mean()))
                if equal <= best:
                    break
            else:
                best, found = equal, ([w, 1 - w] if text == 0 else [1 - w, w], phi)
        if best == 1:
            break
    return found


def _candidates(plain: float, points: Sequence[Point]) -> Iterator[tuple[float, float]]:
    """(weight, φ): the roundest first without rescaling, then the likeliest with it. plain: the weight without, unrounded."""
    for digits in range(MOST_DIGITS + 1):
        yield round(plain, digits), 0.0
    for tenths in sorted(range(round(10 * plain) - 5, round(10 * plain) + 6), key=lambda one: abs(one - 10 * plain)):
        yield tenths / 10, 0.0  # of branches that differ in few of their last digits, whose weight is estimated badly
    scaled, phi = _likely_rescaling(points)
    weights = dict.fromkeys(round(float(weight), digits) for weight in (scaled.max(), plain) for digits in range(3))
    for near in sorted((k / 100 for k in range(1, 101)), key=lambda one: abs(one - phi)):
        yield from ((weight, near) for weight in weights)


def _combined(c: Tensor, u: Tensor, weight: float, phi: float, from_text: bool) -> Tensor:
    """Guidance in the order of operations of pipelines."""
    m = c + (weight - 1) * (c - u) if from_text else u + weight * (c - u)
    if not phi:
        return m
    axes = list(range(1, m.ndim))
    return phi * (m * (c.std(axes, keepdim=True) / m.std(axes, keepdim=True))) + (1 - phi) * m


def _is_rounding(outputs: Tensor, made: Tensor, weights: Array, eps: float) -> bool:
    """Whether the weighted sum differs from what was made by no more than differences, products and sums are rounded by: each by
    half of eps of its size, in the root of the mean square over all numbers."""
    apart = outputs - outputs[int(weights.argmin())]
    sizes = [made, made, *(w * part for w, part in zip(weights, apart, strict=True) for _ in range(2))]
    off = (_summed(outputs, weights) - made).square().mean()
    return bool(off <= (eps / 2) ** 2 * sum(size.square().mean() for size in sizes))


def _likely_rescaling(points: Sequence[Point]) -> tuple[Array, float]:
    """(weights, φ) of two branches if they are rescaled: their sum in each sample is 1 + φ (std(c)/std(m) − 1)."""
    each = np.array([[_solved(o[:, row].flatten(1), m[row].flatten()) for row in range(len(m))] for o, m, _ in points])
    totals = each.sum(-1)
    weights = np.median(each / totals[..., None], (0, 1))
    text = int(weights.argmax())
    ratios = np.array([[float(o[text, i].std() / _summed(o, weights)[i].std()) for i in range(len(m))] for o, m, _ in points])
    with np.errstate(all="ignore"):
        return weights, float(np.nan_to_num(np.median((totals - 1) / (ratios - 1))))


def _rescaled(points: Sequence[Point]) -> tuple[list[float], float] | None:
    """(weights, φ) of two branches, None where there are none."""
    weights, phi = _likely_rescaling(points)
    text, phi = int(weights.argmax()), round(phi, 3)
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
    """What the last of these, made of numbers of the size of all, is rounded by, a few times."""
    return 4 * torch.finfo(tensors[-1].dtype).eps * max(float(one.abs().max()) for one in tensors)
