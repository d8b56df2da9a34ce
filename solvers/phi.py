"""φ-functions of exponential integrators, stable near 0.

    φ_0(z) = e^z,    φ_k(z) = (φ_{k−1}(z) − 1/(k−1)!)/z,    φ_k(0) = 1/k!

They are the weights of ∫ e^((1−τ)z) τ^(k−1)/(k−1)! dτ over [0, 1] (Hochbruck and Ostermann, 2010, Eq. 2.10).
"""

from __future__ import annotations

import math


def phi(k: int, z: float) -> float:
    """φ_k(z) in float64, to a few units in the last place for |z| ≤ 1 and to 1e-12 relative beyond (k ≤ 4)."""
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
