"""How far samples are from an exact mixture: its moments and the weights of its components are known, so that nothing is
estimated but what the samples themselves are.

    moments     Fréchet distance of the samples' mean and covariance, over all pixels, from
                μ = Σ π_k μ_k,  Σ = Σ π_k (Σ_k + μ_k μ_kᵀ) − μ μᵀ
    components  total variation between π and the share of the samples that falls to each component, by its posterior
    log p       mean log-density of the samples less that of exact ones; above zero where they lack noise, below where they have
                too much
"""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from diffode.mixture import Mixture, log_weights
from experiments.metrics.frechet import Moments, frechet_distance
from experiments.metrics.measurement import Measurement, jackknife

EXACT, CHUNK = 50_000, 5_000  # exact samples whose mean log-density stands for the expectation, and how many are drawn at a time


def moments(mixture: Mixture) -> Moments:
    """Mean (pixels,) and covariance (pixels, pixels) of the mixture, Σ π_k μ_k and Σ π_k (Σ_k + μ_k μ_kᵀ) − μ μᵀ, in float64."""
    pi, means = mixture.log_pi.double().exp(), mixture.mean.double()
    basis = rearrange(mixture.basis.double(), "pixels (k rank) -> k pixels rank", k=len(pi))
    mean = pi @ means
    covariance = torch.einsum("kpr,kr,kqr->pq", basis, pi[:, None] * mixture.along.double(), basis)
    covariance += (pi[:, None] * means).T @ means - torch.outer(mean, mean)
    covariance += pi @ mixture.floor.double() * torch.eye(len(mean), dtype=torch.float64, device=mean.device)
    return Moments(mean.cpu().numpy(), covariance.cpu().numpy())


class MixtureReference:
    """An exact mixture as what samples are compared with: its moments, weights and mean log-density, computed once."""

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture
        self.moments = moments(mixture)
        exact = torch.cat([self._log_density(mixture.sample(CHUNK, seed=seed)) for seed in range(EXACT // CHUNK)])
        self.log_density, self.log_density_error = float(exact.mean()), float(exact.std()) / EXACT**0.5

    def measure(self, x: Tensor) -> dict[str, Measurement]:
        """The three numbers of the module docstring for samples x (n, *image), with the jackknife's standard errors."""
        pixels, pi = x.flatten(1).double().cpu().numpy(), self.mixture.log_pi.double().exp().cpu().numpy()
        posterior = torch.softmax(log_weights(self.mixture, x.flatten(1)), 1).cpu().numpy()
        log_density = self._log_density(x).cpu().numpy()
        statistics = {
            "moments": lambda rows: frechet_distance(pixels[rows], self.moments),
            "components": lambda rows: 0.5 * float(np.abs(posterior[rows].mean(0) - pi).sum()),
            "log p": lambda rows: float(log_density[rows].mean()) - self.log_density,
        }
        values = {name: jackknife(len(x), statistic)[:2] for name, statistic in statistics.items()}
        values["log p"] = values["log p"][0], float(np.hypot(values["log p"][1], self.log_density_error))
        return {name: Measurement(name, *pair, len(x), EXACT if name == "log p" else 0) for name, pair in values.items()}

    def _log_density(self, x: Tensor) -> Tensor:
        return self.mixture.log_density(x, torch.full((len(x),), torch.inf)).double()
