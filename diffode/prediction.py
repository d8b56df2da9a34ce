"""What a network predicts, as a pair (p0, p1): m = p0 x0 + p1 ε.

With x = α x0 + σ ε, two such combinations of x0 and ε determine every third, so one 2×2 solve converts any prediction to
any other, straight from the network's native output: a network that predicts data or velocity never has its x̂0 divided
by α, and one that predicts noise never has its ε̂ divided by σ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from diffode.checks import unknown
from diffode.errors import InputError

Pair = tuple[float, float]


@dataclass(frozen=True)
class Prediction:
    """One way to say what the network predicts.

    pair: (α, σ) -> (p0, p1). constant: the same pair where it does not depend on (α, σ), else None; only such predictions can
    be averaged over λ, so only for these are plans made.
    """

    name: str
    pair: Callable[[float, float], Pair]
    constant: Pair | None = None


def _constant(name: str, p0: float, p1: float) -> Prediction:
    return Prediction(name, lambda alpha, sigma: (p0, p1), (p0, p1))


PREDICTIONS = {
    prediction.name: prediction
    for prediction in (
        _constant("noise", 0.0, 1.0),
        _constant("data", 1.0, 0.0),
        Prediction("velocity", lambda alpha, sigma: (-sigma, alpha)),  # Salimans and Ho (2022), on the vp path
        Prediction("tangent", lambda alpha, sigma: (-sigma, alpha)),  # on any path: (α, σ) turned by 90°, never degenerate
        _constant("flow", -1.0, 1.0),  # Liu et al. (2023), x1 − x0 with x1 the noise
        Prediction("score", lambda alpha, sigma: (0.0, -1 / sigma if sigma else -np.inf)),  # ∇ log p(x), Song et al. (2021b)
    )
}
CONSTANT: dict[str, Pair] = {name: p.constant for name, p in PREDICTIONS.items() if p.constant is not None}


def check(predicts: str) -> str:
    """The name itself if it is known; else InputError."""
    if not isinstance(predicts, str) or predicts not in PREDICTIONS:
        raise unknown("prediction", predicts, PREDICTIONS)
    return predicts


def convert(native: str, wanted: str, alpha: float, sigma: float) -> Pair:
    """(a, b) with wanted = a x + b native, for x = α x0 + σ ε; InputError where the native prediction leaves it open.

    It is left open where x and the native prediction are the same thing but for a factor: a noise network at α = 0 says
    nothing of x0, a data network at σ = 0 nothing of ε.
    """
    if check(native) == check(wanted):
        return 0.0, 1.0
    p0, p1 = PREDICTIONS[native].pair(alpha, sigma)
    q0, q1 = PREDICTIONS[wanted].pair(alpha, sigma)
    if p0 * q1 == p1 * q0:  # one is a multiple of the other, as are noise and score
        scale = q1 / p1 if p1 else q0 / p0
        if np.isfinite(scale):
            return 0.0, scale
    det = alpha * p1 - sigma * p0
    if det == 0 or not np.isfinite([det, q0, q1]).all():
        raise InputError(
            f"a network that predicts {native} does not determine {wanted} where α = {alpha:g} and σ = {sigma:g}: "
            "use a velocity or flow network, or a grid that stops short of this end"
        )
    return (q0 * p1 - q1 * p0) / det, (alpha * q1 - sigma * q0) / det
