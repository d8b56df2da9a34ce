"""What a network predicts, as a pair (p0, p1): m = p0 x0 + p1 ε.

With x = α x0 + σ ε, two such combinations of x0 and ε determine every third, so one 2×2 solve converts any prediction to
any other, straight from the network's native output: a network that predicts data or velocity never has its x̂0 divided
by α, and one that predicts noise never has its ε̂ divided by σ.

    noise, data     ε; x0                                 velocity    α ε − σ x0, on the vp path (Salimans and Ho, 2022)
    flow            ε − x0 (Liu et al., 2023)             tangent     α ε − σ x0 on any path: (α, σ) turned by 90°
    reverse-flow    x0 − ε, t from noise to data (SiT)    score       ∇ log p(x) = −ε/σ (Song et al., 2021b)
    edm             F of Karras et al. (2022), Eq. 7, with σ_data = 0.5; edm(0.6) with another

F is what the network of EDM itself returns: D(x; σ) = c_skip x + c_out F(c_in x; c_noise). In y = x/α, whose noise is σ̄ = σ/α,
that is so on any path, with c_in y = x/hypot(σ, α σ_data): such a network is called with x times this `input_scale`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from diffode.checks import number, unknown
from diffode.errors import InputError

Pair = tuple[float, float]
SIGMA_DATA = 0.5  # the standard deviation of the data that EDM's preconditioning assumes (Karras et al., 2022, Table 1)


@dataclass(frozen=True)
class Prediction:
    """One way to say what the network predicts.

    pair: (α, σ) -> (p0, p1). constant: the same pair where it does not depend on (α, σ), else None; only such predictions can
    be averaged over λ, so only for these are plans made. scale: (α, σ) -> c, elementwise, where the network is called with c x.
    """

    name: str
    pair: Callable[[float, float], Pair]
    constant: Pair | None = None
    scale: Callable[[Any, Any], Any] | None = None


def _constant(name: str, p0: float, p1: float) -> Prediction:
    return Prediction(name, lambda alpha, sigma: (p0, p1), (p0, p1))


def edm(name: str = "edm", sigma_data: float = SIGMA_DATA) -> Prediction:
    """F = (σ x0/σ_data − σ_data α ε)/n with n = hypot(σ, α σ_data), of a network that is called with x/n: Karras et al. (2022),
    Eq. 7, with σ/α as its σ. σ_data: the standard deviation of the data, from 1e-6 to 1e6."""
    sigma_data = number("sigma_data", sigma_data, 1e-6, 1e6)

    def pair(alpha: float, sigma: float) -> Pair:
        n = float(np.hypot(sigma, alpha * sigma_data))
        return sigma / sigma_data / n, -sigma_data * alpha / n

    return Prediction(name, pair, scale=lambda alpha, sigma: 1 / np.hypot(sigma, np.multiply(alpha, sigma_data)))


PREDICTIONS = {
    prediction.name: prediction
    for prediction in (
        _constant("noise", 0.0, 1.0),
        _constant("data", 1.0, 0.0),
        Prediction("velocity", lambda alpha, sigma: (-sigma, alpha)),
        Prediction("tangent", lambda alpha, sigma: (-sigma, alpha)),  # never degenerate
        _constant("flow", -1.0, 1.0),
        _constant("reverse-flow", 1.0, -1.0),
        Prediction("score", lambda alpha, sigma: (0.0, -1 / sigma if sigma else -np.inf)),
        edm(),
    )
}
CONSTANT: dict[str, Pair] = {name: p.constant for name, p in PREDICTIONS.items() if p.constant is not None}


@lru_cache(maxsize=256)
def _find(name: str) -> Prediction:
    if name in PREDICTIONS:
        return PREDICTIONS[name]
    if not (given := re.fullmatch(r"edm\(([^()]{1,40})\)", name)):
        raise unknown("prediction", name, [*PREDICTIONS, "edm(σ_data)"])
    try:
        return edm(name, float(given[1]))
    except ValueError:
        raise InputError(f"the prediction {name} must have a number from 1e-6 to 1e6 in its brackets, as edm(0.5)") from None


def find(predicts: str) -> Prediction:
    """The prediction of that name; InputError for an unknown one."""
    if not isinstance(predicts, str):
        raise unknown("prediction", predicts, [*PREDICTIONS, "edm(σ_data)"])
    return _find(predicts)


def check(predicts: str, path: str = "vp") -> str:
    """The name itself if it is known, and is called so on this path; else InputError."""
    find(predicts)
    if predicts == "velocity" and path != "vp":
        raise InputError(f"velocity is α ε − σ x0 on the vp path; on the {path} path it is called flow (ε − x0) or tangent")
    return predicts


def input_scale(predicts: str, alpha: Any, sigma: Any) -> Any:
    """c at (α, σ), numbers or arrays of one shape: the network is called with c x. 1 but for edm."""
    scale = find(predicts).scale
    return np.ones_like(alpha, np.float64) if scale is None else scale(alpha, sigma)


def convert(native: str, wanted: str, alpha: float, sigma: float) -> Pair:
    """(a, b) with wanted = a x + b native, for x = α x0 + σ ε; InputError where the native prediction leaves it open.

    It is left open where x and the native prediction are the same thing but for a factor: a noise network at α = 0 says
    nothing of x0, a data network at σ = 0 nothing of ε.
    """
    if check(native) == check(wanted):
        return 0.0, 1.0
    p0, p1 = find(native).pair(alpha, sigma)
    q0, q1 = find(wanted).pair(alpha, sigma)
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
