"""The layers of DDPM++ and NCSN++ (edm_unet.py): convolutions with a change of resolution, norms, and embeddings of the clock.

Buffers are made on the CPU wherever weights are: arithmetic on meta imports PyTorch's compiler, which takes seconds.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Resample(nn.Module):
    """Twice or half the resolution: a filter of `taps` in each direction, zeros outside, and every second pixel."""

    resample_filter: Tensor

    def __init__(self, taps: tuple[float, ...], up: bool) -> None:
        super().__init__()
        row, self.up = torch.tensor(taps, dtype=torch.float32, device="cpu"), up
        self.register_buffer("resample_filter", torch.outer(row, row)[None, None] / row.sum() ** 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.filtered(x, (self.resample_filter.shape[-1] - 1) // 2)

    def filtered(self, x: Tensor, padding: int) -> Tensor:
        """With so many zeros around x."""
        taps = self.resample_filter.to(x.dtype).expand(x.shape[1], 1, -1, -1)
        if self.up:
            return F.conv_transpose2d(x, 4 * taps, stride=2, padding=padding, groups=len(taps))
        return F.conv2d(x, taps, stride=2, padding=padding, groups=len(taps))


class ResampledConv(Resample):
    """A convolution after the resolution was doubled or halved; or `fused` with it, before it, with the zeros of both at once."""

    def __init__(self, before: int, after: int, kernel: int, taps: tuple[float, ...], up: bool, fused: bool = False) -> None:
        super().__init__(taps, up)
        conv = nn.Conv2d(before, after, kernel)
        self.weight, self.bias, self.fused = conv.weight, conv.bias, fused

    def forward(self, x: Tensor) -> Tensor:
        padding = self.weight.shape[-1] // 2
        if self.fused:
            around = padding + (self.resample_filter.shape[-1] - 1) // 2
            return self.filtered(F.conv2d(x, self.weight, self.bias, padding=around), 0)
        return F.conv2d(super().forward(x), self.weight, self.bias, padding=padding)


def conv(before: int, after: int, kernel: int) -> nn.Conv2d:
    """A convolution that keeps the resolution."""
    return nn.Conv2d(before, after, kernel, padding=kernel // 2)


def norm(width: int) -> nn.GroupNorm:
    """The normalisation of all blocks: 32 groups, or of four channels each if that is fewer."""
    return nn.GroupNorm(min(32, width // 4), width, eps=1e-6)


class Fourier(nn.Module):
    """sin and cos of 2π f t, (batch, width); f: (width/2,), drawn before training."""

    freqs: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(width // 2, device="cpu"))

    def forward(self, t: Tensor) -> Tensor:
        angles = torch.outer(t, 2 * math.pi * self.freqs.to(t.dtype))
        return torch.cat([angles.sin(), angles.cos()], 1)


class Positional(nn.Module):
    """sin and cos of t 10000^(−k/(width/2 − 1)), (batch, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.count = width // 2

    def forward(self, t: Tensor) -> Tensor:
        k = torch.arange(self.count, dtype=torch.float32, device=t.device) / max(self.count - 1, 1)
        angles = torch.outer(t, (1e-4**k).to(t.dtype))  # of float32, as the network was trained with, whatever t is in
        return torch.cat([angles.sin(), angles.cos()], 1)
