"""The mixture for tests that call it thousands of times: the formula of diffode/mixture.py in numpy, whose calls of small arrays
cost a quarter of torch's. test_mixture.py compares the two; what is about the mixture itself uses the original."""

import numpy as np
import torch
from scipy.special import expit

from diffode.mixture import Mixture

ALPHA = {"vp": lambda lam: np.sqrt(expit(2 * lam)), "ve": np.ones_like, "flow": expit}


def quick(model):
    """The same EpsModel of a mixture, quick; one of float32 as it is, since tests of float32 are about roundings."""
    return model.replace(network=QuickMixture.of(model.network)) if model.network.mean.dtype == torch.float64 else model


class QuickMixture(Mixture):
    """`forward` alone is in numpy, without labels and without gradients; how a sample is rounded depends on its batch."""

    @classmethod
    def of(cls, mixture):
        """The same mixture, quick."""
        quick = cls.__new__(cls)
        quick.__dict__.update(mixture.__dict__)
        quick._prepare()
        return quick

    def _prepare(self):
        """What does not depend on x or λ, as arrays; of this dtype."""
        self.arrays = [getattr(self, name).numpy() for name in ("log_pi", "mean", "basis", "offset", "along", "floor")]
        mean = self.arrays[1]
        self.mean_squared, self.constant = np.square(mean).sum(1), mean.shape[1] * np.log(2 * np.pi)

    def forward(self, x, lam, y=None):
        if y is not None or x.requires_grad:
            return super().forward(x, lam, y)
        flat, lam = x.detach().reshape(len(x), -1).numpy(), lam.detach().numpy().astype(self.arrays[0].dtype)
        same = lam[:1] if (lam == lam[0]).all() else lam  # where λ is that of all samples, what depends on it is computed once
        return torch.from_numpy(self._numpy(flat, same[:, None])).view_as(x)

    def _numpy(self, x, lam):
        log_pi, mean, basis, offset, s, floor = self.arrays
        alpha, variance = ALPHA[self.path](lam), np.exp(-2 * lam)  # (rows, 1), as `spread`, and (rows, components)
        spread = floor + variance
        spread_along = spread[:, :, None] + s  # (rows, components, rank)
        y = x / alpha
        p = (y @ basis).reshape(len(x), *s.shape) - offset
        p_squared = p * p
        outside = np.maximum((y * y).sum(1, keepdims=True) - 2 * y @ mean.T + self.mean_squared - p_squared.sum(2), 0)
        log_det = np.log(spread_along).sum(2) + (x.shape[1] - s.shape[1]) * np.log(spread)
        log_weight = log_pi - 0.5 * (outside / spread + (p_squared / spread_along).sum(2) + log_det)
        r = np.exp(log_weight - log_weight.max(1, keepdims=True))
        r /= r.sum(1, keepdims=True)
        along = r[:, :, None] * (s * (1 + variance)[:, :, None] / (spread[:, :, None] * spread_along)) * p
        weight = r * ((1 - floor) / spread)
        difference = weight.sum(1, keepdims=True) * y - (weight + r) @ mean - along.reshape(len(x), -1) @ basis.T
        return (alpha * np.sqrt(variance)) * difference
