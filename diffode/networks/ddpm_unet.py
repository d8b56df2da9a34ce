"""The U-Net of the DDPM authors, under the names that its published weights have in PyTorch.

    x: (batch, in_channels, resolution, resolution)   t: (batch,), the label of the DDPM table, 0 to T − 1   ->  ε, like x

Ho et al. (2020), appendix B, as in `models/diffusion.py` of github.com/ermongroup/ddim, which the DDIM paper samples from. A
level i of `ch * ch_mult[i]` channels has `num_res_blocks` residual blocks going down and one more going up; t is added between
the two convolutions of a block, as W SiLU(temb). Attention has one head. What is easily got wrong, and shows only in the samples:

    temb     sin and cos of t ω_k, ω_k = 10000^(−k / (ch/2 − 1)), k = 0 ... ch/2 − 1: both ends are there
    down     a stride of 2 with zeros at the right and below alone, as TensorFlow pads
    norm     32 groups, eps 1e-6

t may be fractional: the sinusoids are smooth, though training saw only whole labels.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from diffode.errors import InputError
from diffode.networks import sizes


@dataclass(frozen=True)
class DDPMUNetConfig:
    """The shape of the network, with the field names of the authors' configuration files."""

    resolution: int = 32
    in_channels: int = 3
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("ch_mult", "attn_resolutions"):  # a card from JSON has lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        sizes.check(self.image, self.ch_mult, self.attn_resolutions, num_res_blocks=self.num_res_blocks, ch=self.ch)
        sizes.positive(image=self.image, num_res_blocks=self.num_res_blocks, ch_mult=self.ch_mult)
        if self.ch < 32 or self.ch % 32:
            raise InputError(f"ch must be a positive multiple of 32, the groups of the norms, not {self.ch}")
        sizes.halved(self.resolution, len(self.ch_mult))

    @property
    def image(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.in_channels, self.resolution, self.resolution


def norm(width: int) -> nn.GroupNorm:
    """The normalisation of all blocks."""
    return nn.GroupNorm(32, width, eps=1e-6)


class Block(nn.Module):
    """Residual block: norm, SiLU, conv, plus t; norm, SiLU, dropout, conv; a 1×1 convolution around it if the width changes."""

    def __init__(self, width_in: int, width_out: int, temb: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = norm(width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.temb_proj = nn.Linear(temb, width_out)
        self.norm2 = norm(width_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.nin_shortcut = nn.Identity() if width_in == width_out else nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.temb_proj(emb)[:, :, None, None]
        return self.nin_shortcut(x) + self.conv2(self.dropout(F.silu(self.norm2(h))))


class Attention(nn.Module):
    """Self-attention over the pixels with one head: x + W softmax(q k / sqrt(width)) v."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (rearrange(of(h), "b c h w -> b 1 (h w) c") for of in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(attended, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Down(nn.Module):
    """A level on the way down: `num_res_blocks` blocks, then half the resolution, with zeros at the right and below."""

    def __init__(self, config: DDPMUNetConfig, level: int, width_in: int) -> None:
        super().__init__()
        width = config.ch * config.ch_mult[level]
        self.block, self.attn = blocks(config, level, [width_in, *[width] * (config.num_res_blocks - 1)])
        self.downsample = None
        if level < len(config.ch_mult) - 1:
            conv = nn.Conv2d(width, width, 3, stride=2)
            self.downsample = nn.Sequential(OrderedDict(pad=nn.ZeroPad2d((0, 1, 0, 1)), conv=conv))

    def forward(self, skips: list[Tensor], emb: Tensor) -> None:
        """Start from the last of the skips, and append every state."""
        for block, attn in zip(self.block, self.attn, strict=True):
            skips.append(attn(block(skips[-1], emb)))
        if self.downsample is not None:
            skips.append(self.downsample(skips[-1]))


class Up(nn.Module):
    """A level on the way up: a block for every skip of `widths_in`, then, except at the top, twice the resolution."""

    def __init__(self, config: DDPMUNetConfig, level: int, widths_in: list[int]) -> None:
        super().__init__()
        width = config.ch * config.ch_mult[level]
        self.block, self.attn = blocks(config, level, widths_in)
        self.upsample: nn.Module = nn.Identity()
        if level:
            conv = nn.Conv2d(width, width, 3, padding=1)
            self.upsample = nn.Sequential(OrderedDict(nearest=nn.Upsample(scale_factor=2), conv=conv))

    def forward(self, h: Tensor, skips: list[Tensor], emb: Tensor) -> Tensor:
        """Concatenate one of the skips, the last first, to the input of every block."""
        for block, attn in zip(self.block, self.attn, strict=True):
            h = attn(block(torch.cat([h, skips.pop()], 1), emb))
        return self.upsample(h)


class DDPMUNet(nn.Module):
    """The network of the module docstring; `config` says its shape, and its modules have the names of the published weights."""

    def __init__(self, config: DDPMUNetConfig) -> None:
        super().__init__()
        self.config = config
        ch, temb = config.ch, 4 * config.ch
        dense = OrderedDict([("0", nn.Linear(ch, temb)), ("silu", nn.SiLU()), ("1", nn.Linear(temb, temb))])
        self.temb = nn.ModuleDict({"dense": nn.Sequential(dense)})
        self.conv_in = nn.Conv2d(config.in_channels, ch, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips = [ch]
        for level, multiple in enumerate(config.ch_mult):
            down = Down(config, level, skips[-1])
            skips += [ch * multiple] * (config.num_res_blocks + (down.downsample is not None))
            self.down.append(down)
        width = skips[-1]
        block_1, block_2 = (Block(width, width, temb, config.dropout) for _ in range(2))
        self.mid = nn.ModuleDict({"block_1": block_1, "attn_1": Attention(width), "block_2": block_2})
        for level, multiple in reversed(list(enumerate(config.ch_mult))):
            arrive = [width, *[ch * multiple] * config.num_res_blocks]
            self.up.insert(0, Up(config, level, [one + skips.pop() for one in arrive]))
            width = ch * multiple
        self.norm_out = norm(width)
        self.conv_out = nn.Conv2d(width, config.in_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        emb = F.silu(self.temb["dense"](self._sinusoids(t).to(x.dtype)))
        skips = [self.conv_in(x)]
        for level in self.down:
            level(skips, emb)
        h = self.mid["attn_1"](self.mid["block_1"](skips[-1], emb))
        h = self.mid["block_2"](h, emb)
        for level in reversed(self.up):
            h = level(h, skips, emb)
        return self.conv_out(F.silu(self.norm_out(h)))

    def _sinusoids(self, t: Tensor) -> Tensor:
        """temb of the module docstring, (batch, ch), in at least float32 whatever the weights are in."""
        dtype, half = torch.promote_types(t.dtype, torch.float32), self.config.ch // 2
        omega = torch.exp(torch.arange(half, dtype=dtype, device=t.device) * (-math.log(10000) / (half - 1)))
        angles = t.to(dtype)[:, None] * omega
        return torch.cat([angles.sin(), angles.cos()], 1)


def blocks(config: DDPMUNetConfig, level: int, widths_in: list[int]) -> tuple[nn.ModuleList, nn.ModuleList]:
    """The residual blocks of a level, one per input width in `widths_in`, and what follows each: attention, or the identity."""
    width, attends = config.ch * config.ch_mult[level], config.resolution // 2**level in config.attn_resolutions
    block = nn.ModuleList(Block(one, width, 4 * config.ch, config.dropout) for one in widths_in)
    return block, nn.ModuleList(Attention(width) if attends else nn.Identity() for _ in block)
