"""Images to try things on, a class in turn: real ones, and exact samples of a mixture."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffode.images import datasets
from diffode.images.datasets import to_tensor
from diffode.mixture import Mixture


def real_images(n: int) -> tuple[Tensor, Tensor]:
    """n test images of Fashion-MNIST in [−1, 1], (n, 1, 28, 28), one of each class in turn, and their labels.

    All that Debian's package has, or those that come with diffode, which are the first of them.
    """
    found = datasets.load(None, "test") if datasets.FASHION_MNIST.is_dir() else datasets.packaged()
    assert found.labels is not None
    classes = [np.flatnonzero(found.labels == label) for label in range(len(found.classes))]
    chosen = np.array([classes[i % len(classes)][i // len(classes)] for i in range(n)])
    return to_tensor(found.pixels[chosen]), torch.from_numpy(found.labels[chosen])


def own_images(mixture: Mixture, labels: Tensor | None, n: int, seed: int = 0) -> Tensor:
    """n exact samples, (n, *image), the i-th of class labels[i] and of seed + i; of any class without labels."""
    each = [None] * n if labels is None else labels.tolist()
    return torch.cat([mixture.sample(1, seed + i, label) for i, label in enumerate(each)])
