"""The training examples of every step, as a pure function of its number: so a run can be resumed exactly.

Generators seeded with the number of the step alone decide its images, times, noise and dropped labels. Images come in epochs,
each in its own random order. Times are uniform on the clock, and stratified over the batch (Kingma et al., 2021); but on the
variance-exploding path ln σ is normal, N(−1.2, 1.2²), as in EDM (Karras et al., 2022, Table 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from diffode.images.datasets import ImageSet, to_tensor
from diffode.schedule import Array, Schedule


def noise_levels(schedule: Schedule, u: Array) -> Array:
    """λ of the training examples of quantiles u in [0, 1), (batch,); see the module docstring."""
    if schedule.path.name == "ve":
        return np.clip(1.2 - 1.2 * ndtri(u), schedule.lam_min, schedule.lam_max)  # of u = 0 the clean end
    if schedule.knots is not None:
        return schedule.knots[(u * len(schedule.knots)).astype(int)]
    return schedule.lam(schedule.t_clean + u * (schedule.t_noisy - schedule.t_clean))


@dataclass(frozen=True)
class Batch:
    """One step's x0 (batch, c, h, w), ε of the same shape, λ (batch,) in float64 on the host, and labels y (batch,)."""

    x0: Tensor
    eps: Tensor
    lam: Array
    y: Tensor

    def to(self, device: str) -> Batch:
        return Batch(self.x0.to(device), self.eps.to(device), self.lam, self.y.to(device))


class Stream:
    """stream(step) is the Batch of that step. Labels become `no_label` with probability `drop_label`, or where there are none."""

    def __init__(self, data: ImageSet, schedule: Schedule, batch: int, seed: int, drop_label: float, no_label: int) -> None:
        self.schedule, self.batch, self.seed, self.drop_label, self.no_label = schedule, batch, seed, drop_label, no_label
        self.images = to_tensor(data.pixels)
        labels = np.full(len(self.images), no_label) if data.labels is None else data.labels
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self._epoch: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __call__(self, step: int) -> Batch:
        rng = np.random.default_rng([self.seed, step])
        index = self._indices(step * self.batch, self.batch)
        lam = noise_levels(self.schedule, (rng.random() + rng.permutation(self.batch) / self.batch) % 1)
        generator = torch.Generator().manual_seed(int(rng.integers(2**32)))
        x0 = self.images[index]
        dropped = torch.from_numpy(rng.random(self.batch) < self.drop_label)
        y = torch.where(dropped, self.no_label, self.labels[index])
        return Batch(x0, torch.randn(x0.shape, generator=generator), lam, y)

    def _indices(self, start: int, count: int) -> Tensor:
        """The indices of the images at `count` consecutive places of the endless sequence of epochs."""
        parts = []
        while count:
            epoch, at = divmod(start, len(self.images))
            parts.append(self._order(epoch)[at : at + count])
            start, count = start + len(parts[-1]), count - len(parts[-1])
        return torch.from_numpy(np.concatenate(parts))

    def _order(self, epoch: int) -> np.ndarray:
        """The order of the images in an epoch; that of the last epoch asked for is kept."""
        if self._epoch[0] != epoch:
            self._epoch = epoch, np.random.default_rng([self.seed, epoch, 1]).permutation(len(self.images))
        return self._epoch[1]
