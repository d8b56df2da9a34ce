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
from diffode.schedule import Array
from experiments.metrics.distances import Number, frechet_distance, jackknife, points

EXACT, CHUNK = 50_000, 5_000  # samples of the mixture whose mean log-density is taken for that of all, and at a time


def moments(mixture: Mixture) -> tuple[Array, Array]:
    """Mean (pixels,) and covariance (pixels, pixels) of the data, in float64."""
    pi, mean = mixture.log_pi.double().exp(), mixture.mean.double()
    basis = rearrange(mixture.basis.double(), "pixels (k rank) -> k pixels rank", k=len(pi))
    whole = pi @ mean
    covariance = torch.einsum("kpr,kr,kqr->pq", basis, pi[:, None] * mixture.along.double(), basis)
    covariance += (pi[:, None] * mean).T @ mean - torch.outer(whole, whole)
    covariance += pi @ mixture.floor.double() * torch.eye(len(whole), dtype=torch.float64, device=whole.device)
    return whole.cpu().numpy(), covariance.cpu().numpy()


class Truth:
    """What a mixture's samples are compared with."""

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture
        self.exact = points(*moments(mixture))
        exact = [self._log_density(mixture.sample(CHUNK, seed=seed)) for seed in range(EXACT // CHUNK)]
        self.log_density, self.error = float(torch.cat(exact).mean()), float(torch.cat(exact).std()) / EXACT**0.5

    def measure(self, x: Tensor) -> dict[str, Number]:
        """The three numbers of the module docstring, for samples x (n, *image), with their standard errors by the jackknife."""
        flat, share = x.flatten(1).double().cpu().numpy(), torch.softmax(log_weights(self.mixture, x.flatten(1)), 1).cpu().numpy()
        log_density, pi = self._log_density(x).cpu().numpy(), self.mixture.log_pi.double().exp().cpu().numpy()
        statistics = {
            "moments": lambda rows: frechet_distance(flat[rows], self.exact),
            "components": lambda rows: 0.5 * float(np.abs(share[rows].mean(0) - pi).sum()),
            "log p": lambda rows: float(log_density[rows].mean()) - self.log_density,
        }
        found = {name: jackknife(len(x), statistic)[:2] for name, statistic in statistics.items()}
        found["log p"] = found["log p"][0], float(np.hypot(found["log p"][1], self.error))
        return {name: Number(name, *pair, len(x), EXACT if name == "log p" else 0) for name, pair in found.items()}

    def _log_density(self, x: Tensor) -> Tensor:
        return self.mixture.log_density(x, torch.full((len(x),), torch.inf)).double()
