"""A measured number with its standard error, and the two ways in which the error is estimated.

The error is that of drawing the samples anew: the binomial law's for shares, the jackknife's over ten blocks for all else. With θ
the statistic of all n samples and θ₁ to θ₁₀ that of all but one block each (Quenouille, 1956; Tukey, 1958):

    error² = 9/10 Σ (θ_b − mean θ_b)²        unbiased = 10 θ − 9 mean θ_b, without a bias of 1/n
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffode.errors import InputError

BLOCKS = 10
MIN_IMAGES = 2 * BLOCKS


@dataclass(frozen=True)
class Measurement:
    """error: the standard error; images: the number of samples; against: the number of reference images, 0 if none or unknown."""

    name: str
    value: float
    error: float
    images: int
    against: int


def jackknife(n: int, statistic: Callable[[NDArray[np.int64]], float]) -> tuple[float, float, float]:
    """The statistic of all n rows, its standard error, and its value without a bias of 1/n.

    statistic(rows): its value for the samples of these indices. The blocks are of the rows in random order.
    """
    order = np.random.default_rng(0).permutation(n)
    blocks = np.array_split(order, BLOCKS)
    without = np.array([statistic(np.concatenate([*blocks[:i], *blocks[i + 1 :]])) for i in range(BLOCKS)])
    value, error = statistic(order), ((BLOCKS - 1) * without.var()) ** 0.5
    return value, float(error), float(BLOCKS * value - (BLOCKS - 1) * without.mean())


def share(name: str, hits: NDArray[np.bool_], images: int, against: int) -> Measurement:
    """The share of True among hits, p, and its standard error, sqrt(p (1 − p) / len(hits))."""
    p = float(hits.mean())
    return Measurement(name, p, (p * (1 - p) / len(hits)) ** 0.5, images, against)


def require_enough(n: int, images: str) -> None:
    """InputError for fewer than MIN_IMAGES of the images so named."""
    if n < MIN_IMAGES:
        raise InputError(
            f"{images}: {n} images say nothing of a distribution: at least {MIN_IMAGES} are needed, and 10,000 are usual"
        )
