"""The judge of samples: a small residual classifier, whose pooled activations are the features that samples are compared in.

    x: (batch, channels, height, width) in [−1, 1]  ->  logits (batch, classes);  features(x) -> (batch, FEATURES)

Fréchet and kernel distances in these features are of this classifier and of nothing else; they are not FID or KID, which are
defined by one Inception network (Heusel et al., 2017; Bińkowski et al., 2018).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffode.errors import InputError
from diffode.files import ASSETS
from diffode.models import checkpoint

FEATURES = 64
REFERENCE = ASSETS / "reference"  # where the shipped weights and statistics lie


def _conv(width_in: int, width_out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(width_in, width_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width_out))


class Residual(nn.Module):
    """Two convolutions beside a shortcut (He et al., 2016)."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(width_in, width_out, stride=stride), _conv(width_out, width_out)
        self.shortcut = nn.Identity() if (width_in, stride) == (width_out, 1) else _conv(width_in, width_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class Classifier(nn.Module):
    """Convolutions to a quarter of the resolution; the features are means over the cells of what the last one gives."""

    def __init__(self, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(_conv(channels, 32), nn.ReLU(), Residual(32, 64, 2), Residual(64, 128, 2)),
            *(_conv(128, FEATURES, 1), nn.ReLU()),
        )
        self.head = nn.Linear(FEATURES, classes)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def load(path: str | Path = REFERENCE / "classifier.safetensors") -> tuple[Classifier, checkpoint.Card, str]:
    """The classifier of a file, the shipped one by default, ready to judge, with its card and its file's SHA-256.

    InputError for a file that is missing, corrupt, or does not hold what its card says.
    """
    tensors, card = checkpoint.read(path, "classifier")
    try:
        with torch.device("meta"):  # no weights are drawn
            network = Classifier(**card["config"])
        network.load_state_dict(tensors, assign=True)
    except (KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{path} does not hold what its card says: it is incomplete, or of another version") from error
    return network.eval().requires_grad_(False), card, hashlib.sha256(Path(path).read_bytes()).hexdigest()
