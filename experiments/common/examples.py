"""Images for experiments: real ones, each class in turn, and exact samples of a mixture."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffode.images import datasets
from diffode.images.datasets import to_tensor
from diffode.mixture import Mixture


def real_images(n: int) -> tuple[Tensor, Tensor]:
    """n test images of Fashion-MNIST in [−1, 1], (n, 1, 28, 28), one of each class in turn, and their labels.

    From Debian's package, or else from the 1,000 that come with diffode, which are its first.
    """
    images = datasets.load(None, "test") if datasets.FASHION_MNIST.is_dir() else datasets.packaged()
    assert images.labels is not None
    classes = [np.flatnonzero(images.labels == label) for label in range(len(images.classes))]
    chosen = np.array([classes[i % len(classes)][i // len(classes)] for i in range(n)])
    return to_tensor(images.pixels[chosen]), torch.from_numpy(images.labels[chosen])


def exact_samples(mixture: Mixture, labels: Tensor | None, n: int, seed: int = 0) -> Tensor:
    """n exact samples, (n, *image), the i-th of class labels[i] and of seed + i; without labels, of any class."""
    classes: list[int | None] = [None] * n if labels is None else labels.tolist()
    return torch.cat([mixture.sample(1, seed + i, label) for i, label in enumerate(classes)])
