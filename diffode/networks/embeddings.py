"""The sinusoids by which ADM and DiT see their clock."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoids(t: Tensor, width: int) -> Tensor:
    """cos and sin of t ω_k, ω_k = 10000^(−k/n), k = 0 ... n − 1, n = width/2, (batch, width), for t (batch,).

    In at least float32, whatever the weights are in; t may be fractional.
    """
    dtype, half = torch.promote_types(t.dtype, torch.float32), width // 2
    omega = torch.exp(torch.arange(half, dtype=dtype, device=t.device) * (-math.log(10000) / half))
    angles = t.to(dtype)[:, None] * omega
    return torch.cat([angles.cos(), angles.sin()], 1)
