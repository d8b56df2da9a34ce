"""The Fréchet distance between Gaussians of means m and covariances C (Dowson and Landau, 1982; Heusel et al., 2017):

    d² = |m_x − m_y|² + tr C_x + tr C_y − 2 tr (C_x C_y)^½

C_x C_y is not symmetric, but has the eigenvalues of C_y^½ C_x C_y^½, which is. With D the n samples less their mean, divided by
sqrt(n − 1), C_x is DᵀD, and but for zeros they are also the eigenvalues of (D C_y^½)(D C_y^½)ᵀ, (n, n), which is the smaller
matrix for fewer samples than dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from experiments.metrics.features import Floats


@dataclass(frozen=True, eq=False)
class Moments:
    """mean (d,) and covariance (d, d), float64."""

    mean: Floats
    covariance: Floats

    @classmethod
    def of(cls, x: Floats) -> Moments:
        """Those of samples x, (n, d), the covariance with n − 1."""
        return cls(x.mean(0), np.atleast_2d(np.cov(x, rowvar=False)))

    @cached_property
    def root(self) -> Floats:
        """The symmetric square root of the covariance, computed once. Variances below zero, by rounding, count as zero."""
        variances, axes = np.linalg.eigh(self.covariance)
        return (axes * np.sqrt(np.maximum(variances, 0))) @ axes.T


def frechet_distance(x: Floats, reference: Moments) -> float:
    """d² of the module docstring, between samples x (n, d), n > 1, and the reference.

    Its rounding error is about 1e-16 tr C where n > d and the covariances are of full rank; each eigenvalue that is zero in
    theory adds up to sqrt(1e-16) times the largest.
    """
    (n, d), mean, root = x.shape, x.mean(0), reference.root
    deviations = (x - mean) / (n - 1) ** 0.5
    if n <= d:
        product = deviations @ root
        overlap = product @ product.T
    else:
        overlap = root @ (deviations.T @ deviations) @ root
    trace_of_root = np.sqrt(np.maximum(np.linalg.eigvalsh(overlap), 0)).sum()
    total_variance = np.square(deviations).sum() + np.trace(reference.covariance)
    return float(np.square(mean - reference.mean).sum() + total_variance - 2 * trace_of_root)
