"""Features: the numbers an image becomes before two sets of images are compared.

    extract: uint8 (n, height, width, channels) -> float64 features (n, dimension), and probabilities (n, classes) or None

`classifier` is the small network that comes with diffode, for images of Fashion-MNIST's shape; distances in its features are of
this network alone. `inception` is the network that FID and KID are defined by (Heusel et al., 2017; Bińkowski et al., 2018), with
the weights and the resizing of the original TensorFlow code, through torchmetrics and torch-fidelity; it takes any size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from diffode.errors import InputError
from diffode.images.datasets import to_tensor
from diffode.models import classifiers
from diffode.networks.classifier import FEATURES as CLASSIFIER_FEATURES

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Features:
    """identity: decides whether numbers may be compared, which need the same; names: what the Fréchet and the kernel distance are
    called in these features; of_batch: pixels -> features and class probabilities, or None; takes: the (channels, height, width)
    of its images, or None for any; classes: the names of the classes it tells apart."""

    name: str
    dimension: int
    identity: str
    names: tuple[str, str]
    of_batch: Callable[[Pixels], tuple[Tensor, Tensor | None]] = field(repr=False)
    takes: tuple[int, ...] | None = None
    classes: tuple[str, ...] = ()

    @torch.no_grad()
    def extract(self, pixels: Pixels, batch: int = 100) -> tuple[Floats, Floats | None]:
        """The features of images, and the probabilities of their classes or None; InputError for images it does not take."""
        self._check(pixels)
        results = [self.of_batch(pixels[start : start + batch]) for start in range(0, len(pixels), batch)]
        features = torch.cat([values.cpu().double() for values, _ in results]).numpy()
        probabilities = [p.cpu().double() for _, p in results if p is not None]
        return features, torch.cat(probabilities).numpy() if probabilities else None

    def _check(self, pixels: Pixels) -> None:
        """InputError for anything but uint8 images of the size and the number of channels that are taken."""
        shape = (pixels.shape[3], *pixels.shape[1:3]) if pixels.ndim == 4 else pixels.shape
        right_kind = pixels.dtype == np.uint8 and pixels.ndim == 4 and shape[0] in (1, 3)
        if not right_kind or shape != (self.takes or shape):
            expected = " × ".join(map(str, self.takes or ("n", "height", "width", "channels")))
            raise InputError(
                f"the {self.name} takes uint8 images of {expected} (channels, height, width), not {pixels.dtype} of "
                f"{' × '.join(map(str, shape))}: give such images, or take the features of inception, which takes all"
            )


def classifier(device: str = "cpu", path: str | Path = classifiers.REFERENCE / "classifier.safetensors") -> Features:
    """The features of a classifier's file, the shipped one by default."""
    network, card, sha256 = classifiers.load(path)
    network = network.to(device)

    def of_batch(pixels: Pixels) -> tuple[Tensor, Tensor]:
        features = network.features(to_tensor(pixels).to(device))
        return features, network.head(features).softmax(1)

    names = "Fréchet distance (classifier)", "kernel distance (classifier)"
    return Features("classifier", CLASSIFIER_FEATURES, sha256, names, of_batch, card.image, card.classes)


def inception(device: str = "cpu") -> Features:
    """The last pooled activations of the Inception network; grey images become three equal channels.

    InputError where torchmetrics or torch-fidelity is not installed, or the weights are neither there nor to be fetched.
    """
    try:
        import torch_fidelity  # noqa: F401
        from torchmetrics.image.fid import FrechetInceptionDistance

        network = FrechetInceptionDistance(feature=2048, antialias=False).inception.to(device)
    except OSError as error:
        raise InputError(
            f"the weights of the Inception network could not be fetched ({error}): try again where there is a network, or take "
            "the features of the classifier"
        ) from error
    except (ImportError, RuntimeError) as error:  # torchvision, which torch-fidelity imports, must fit torch
        raise InputError(
            "the features of inception need torchmetrics and torch-fidelity, which cannot be imported "
            f"({error}): pip install 'diffode[inception]'"
        ) from error

    def of_batch(pixels: Pixels) -> tuple[Tensor, None]:
        colour = np.repeat(pixels, 3 // pixels.shape[3], axis=3)
        return network(rearrange(torch.from_numpy(colour), "n h w c -> n c h w").to(device)), None

    return Features("inception", 2048, "inception-v3-compat, 2048", ("FID", "KID"), of_batch)


FEATURES: dict[str, Callable[[str], Features]] = {"classifier": classifier, "inception": inception}


def load_features(name: str, device: str = "cpu") -> Features:
    """The features of that name; InputError for an unknown one."""
    if name not in FEATURES:
        raise InputError(f"unknown features {name!r}: expected one of {', '.join(FEATURES)}")
    return FEATURES[name](device)
