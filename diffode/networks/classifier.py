"""A small residual classifier, whose pooled activations are the features that samples are compared in.

    x: (batch, channels, height, width) in [−1, 1]  ->  logits (batch, classes);  features(x) -> (batch, FEATURES)

Fréchet and kernel distances in these features are of this classifier and of nothing else; they are not FID or KID, which are
defined by one Inception network (Heusel et al., 2017; Bińkowski et al., 2018).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from diffode.networks import sizes

FEATURES = 64


def _conv(width_in: int, width_out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(width_in, width_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width_out))


class Residual(nn.Module):
    """Two convolutions and a shortcut around them (He et al., 2016)."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(width_in, width_out, stride=stride), _conv(width_out, width_out)
        self.shortcut = nn.Identity() if (width_in, stride) == (width_out, 1) else _conv(width_in, width_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class Classifier(nn.Module):
    """Convolutions down to a quarter of the resolution; the features are the last one's output, averaged over its cells."""

    def __init__(self, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        sizes.check((channels, 1, 1), (), (), classes=classes)
        self.body = nn.Sequential(
            *(_conv(channels, 32), nn.ReLU(), Residual(32, 64, 2), Residual(64, 128, 2)),
            *(_conv(128, FEATURES, 1), nn.ReLU()),
        )
        self.head = nn.Linear(FEATURES, classes)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
