"""φ-functions and interpolatory weights, for the exact integration of an exponential times a polynomial.

    φ_0(z) = e^z,    φ_k(z) = (φ_{k−1}(z) − 1/(k−1)!)/z,    φ_k(0) = 1/k!

They are the weights of ∫ e^((1−τ)z) τ^(k−1)/(k−1)! dτ over [0, 1] (Hochbruck and Ostermann, 2010, Eq. 2.10).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from diffode.errors import InputError
from diffode.schedule import Array

LONGEST = 700.0  # e^709 is the largest of float64


@lru_cache(maxsize=1024)  # the moments of a step, and those of its corrector, ask for the same few
def phi(k: int, z: float) -> float:
    """φ_k(z) in float64, to a few units in the last place for |z| ≤ 1 and to 1e-12 relative beyond (k ≤ 4).

    InputError for z above LONGEST.
    """
    if z > LONGEST:
        raise InputError(
            f"a step of length {z:.3g} in λ is too long for an exponential integrator: take more steps, or another grid"
        )
    if k == 0:
        return math.exp(z)
    if abs(z) < 1:  # by the series: the recursion loses 1/z^k
        term = total = 1 / math.factorial(k)
        for n in range(1, 25):
            term *= z / (n + k)
            total += term
        return total
    if k == 1:
        return math.expm1(z) / z
    return (phi(k - 1, z) - 1 / math.factorial(k - 1)) / z


def moments(n: int, z: float) -> list[float]:
    """μ_k = ∫ e^((1−τ)z) τ^k dτ / ∫ e^((1−τ)z) dτ = k! φ_{k+1}(z)/φ_1(z) for k < n: the mean of τ^k over an exponential step."""
    return [math.factorial(k) * phi(k + 1, z) / phi(1, z) for k in range(n)]


def interpolatory(c: Array, mu: Sequence[float] | Array) -> Array:
    """The weights w with Σ_j w_j c_j^k = μ_k, k < len(c): Σ_j w_j m_j integrates the polynomial through the points (c_j, m_j)."""
    powers = [np.ones_like(c)]
    while len(powers) < len(c):
        powers.append(powers[-1] * c)
    return np.asarray(np.linalg.solve(powers, mu))
