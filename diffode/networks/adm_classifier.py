"""The classifier of noisy images by which ADM is guided (Dhariwal and Nichol, 2021, section 4): the encoder of its U-Net, pooled.

    x: (batch, channels, height, width)   t: (batch,)   y: (batch,) labels   ->   log p(y | x, t), (batch,)

The lowest level is pooled by attention, as in CLIP: its mean is put before its pixels, all of them have learned positions, and
the classes are read off what the mean has attended to.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from diffode.networks.adm import ADMConfig, Encoder, attended, norm


class Pool(nn.Module):
    """(batch, width, height, width) to (batch, classes), see the module docstring; cells: how many pixels there are."""

    def __init__(self, width: int, cells: int, heads: int, classes: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.zeros(width, cells + 1))
        self.qkv_proj, self.c_proj = nn.Conv1d(width, 3 * width, 1), nn.Conv1d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = rearrange(x, "b c h w -> b c (h w)")
        h = torch.cat([h.mean(2, keepdim=True), h], 2) + self.positional_embedding
        return self.c_proj(attended(self.qkv_proj(h), "(three n c)", self.heads))[:, :, 0]


class ADMClassifier(Encoder):
    """The network of the module docstring, of the encoder of `config`, whose `classes` it tells apart."""

    def __init__(self, config: ADMConfig) -> None:
        super().__init__(config)
        width, step = config.widths[-1], 2 ** (len(config.widths) - 1)
        cells = (config.image[1] // step) * (config.image[2] // step)
        self.out = nn.Sequential(norm(width), nn.SiLU(), Pool(width, cells, width // config.head_channels, config.classes))

    def logits(self, x: Tensor, t: Tensor) -> Tensor:
        """(batch, classes)."""
        return self.out(self.encoded(x, self.embedded(t))[-1])

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        logits = self.logits(x.to(self.dtype), t)
        return logits.log_softmax(1).gather(1, y[:, None])[:, 0].to(x.dtype)
