"""The models of Theorem 1 (experiments/ddim_paper/theorem1.py): an exact mixture and the shipped network, each with its data and
the ε_θ that are made of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from diffode.mixture import Mixture
from diffode.model import EpsModel
from diffode.models import pretrained
from experiments.common.examples import real_images

Eps = Callable[[Tensor, float], Tensor]
POOLED = 4  # the mixture is of images averaged over 4 × 4 pixels


@dataclass(frozen=True)
class Theorem1Model:
    """A model, data x0 (n, *image) in float64 and labels y, the dtype that the model is evaluated in, and names in VARIANTS."""

    model: EpsModel
    x0: Tensor
    y: Tensor
    dtype: torch.dtype
    variants: tuple[str, ...]


VARIANTS: dict[str, Callable[[EpsModel, Tensor], Eps]] = {  # (model, labels of the batch) -> ε_θ
    "its own": lambda model, y: model.labelled(y),
    "0.9 of it": lambda model, y: lambda x, lam: 0.9 * model.labelled(y)(x, lam),
    "of twice the variance": lambda model, y: of_twice_the_variance(model).labelled(y),
    "without labels": lambda model, y: model,
    "guided by 2": lambda model, y: model.labelled(y).guided(2.0),
    "zero": lambda model, y: lambda x, lam: torch.zeros_like(x),
}
OF_NETWORK = ("its own", "without labels", "guided by 2", "zero")


def mixture(n: int, seed: int) -> Theorem1Model:
    """The exact ε of a mixture, on samples of it, its classes in turn."""
    model = pretrained.load("mixture", torch.float64).model
    assert isinstance(model.network, Mixture)
    small, classes = model.network.pooled(POOLED), model.classes
    each = [small.sample(-(-n // classes), seed + label, label) for label in range(classes)]
    variants = tuple(name for name in VARIANTS if name != "guided by 2")
    x0, y = torch.stack(each, 1).flatten(0, 1)[:n], torch.arange(n) % classes
    return Theorem1Model(model.replace(network=small, shape=small.image), x0, y, torch.float64, variants)


def fashion(n: int, seed: int) -> Theorem1Model:
    """The shipped network, on real test images."""
    x0, y = real_images(n)
    return Theorem1Model(pretrained.load("fashion").model, x0.double(), y, torch.float32, OF_NETWORK)


MODELS: dict[str, Callable[[int, int], Theorem1Model]] = {"mixture": mixture, "fashion": fashion}


def of_twice_the_variance(model: EpsModel) -> EpsModel:
    """The exact ε of another distribution: of the mixture with all covariances doubled."""
    old = model.network
    assert isinstance(old, Mixture)
    tensors = {"log_pi": old.log_pi, "mean": old.mean, "along": 2 * old.along, "floor": 2 * old.floor, "label": old.label}
    tensors["basis"] = rearrange(old.basis, "pixels (k rank) -> k pixels rank", k=len(old.mean))
    return model.replace(network=Mixture(tensors, old.image, old.path, old.mean.dtype, old.rows))
