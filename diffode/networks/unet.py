"""The network: a class-conditional U-Net, conditioned on λ, that scales by configuration.

    x: (batch, channels, height, width)   lam: (batch,), half the log-SNR   y: (batch,) labels, or None
    ->  (batch, channels, height, width), whatever the network was trained to predict

It is the U-Net of DDPM (Ho et al., 2020, appendix B) made for few cores: space-to-depth at the input (`patch`) halves
the resolution of everything that follows, the residual blocks take their scale and shift from λ and the label (Dhariwal
and Nichol, 2021), and the skips are concatenated. The last label, `classes`, stands for "no label": training drops the
label at random, so that one network is both the conditional and the unconditional model (classifier-free guidance, Ho and
Salimans, 2022). There is no dropout: a training step is a pure function of its batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from diffode.errors import InputError
from diffode.networks import sizes


@dataclass(frozen=True)
class UNetConfig:
    """The shape of a U-Net. `attention` lists the resolutions, in cells after space-to-depth, that get self-attention."""

    image: tuple[int, int, int] = (1, 28, 28)
    classes: int = 10
    patch: int = 2
    width: int = 64
    multipliers: tuple[int, ...] = (1, 2)
    blocks: int = 1
    attention: tuple[int, ...] = (7,)

    def __post_init__(self) -> None:
        for name in ("image", "multipliers", "attention"):  # a card from JSON has lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        sizes.check(
            *(self.image, self.multipliers, self.attention, self.patch),
            blocks=self.blocks,
            width=self.width,
            classes=self.classes,
        )
        if (
            min((self.patch, self.blocks, *self.multipliers, *self.image), default=0) < 1
            or not self.multipliers
            or self.classes < 0
        ):
            raise InputError(f"a U-Net needs patch, blocks, multipliers and image sides of at least 1, not {self}")
        step = self.patch * 2 ** (len(self.multipliers) - 1)
        if any(side % step for side in self.image[1:]):
            raise InputError(
                f"a U-Net of patch {self.patch} and {len(self.multipliers)} levels needs image sides divisible by "
                f"{step}, not {self.image[1:]}"
            )
        if self.width < 16 or self.width % 16:
            raise InputError(f"the width of a U-Net must be a positive multiple of 16 (its groups and heads), not {self.width}")


class Embedding(nn.Module):
    """λ and the label as one vector: sinusoids of λ (periods 0.8 to 80, as λ ranges over about 20) and a table of labels."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.lam = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        label = torch.empty(classes + 1, width)  # normal, as nn.Embedding has it, which without memory takes seconds
        self.label = nn.Embedding.from_pretrained(label if label.is_meta else label.normal_(), freeze=False)

    def forward(self, lam: Tensor, y: Tensor | None) -> Tensor:
        lam = lam.to(torch.promote_types(lam.dtype, torch.float32))  # whatever the weights are in
        periods = torch.logspace(math.log10(0.8), math.log10(80), 32, dtype=lam.dtype, device=lam.device)
        angles = 2 * math.pi * lam[:, None] / periods
        none = self.label.num_embeddings - 1
        label = self.label(torch.full_like(lam, none, dtype=torch.long) if y is None else y)
        return F.silu(self.lam(torch.cat([angles.sin(), angles.cos()], 1).to(label.dtype)) + label)


class Block(nn.Module):
    """Residual block: norm, SiLU, conv; norm, scale and shift, SiLU, conv (zero before training); then attention if asked for."""

    def __init__(self, width_in: int, width_out: int, embedding: int, attention: bool) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(16, width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * width_out)
        self.norm2 = nn.GroupNorm(16, width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.skip = nn.Identity() if width_in == width_out else nn.Conv2d(width_in, width_out, 1)
        self.attention = Attention(width_out) if attention else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = rearrange(self.film(emb), "b (two c) -> two b c 1 1", two=2)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.attention(self.skip(x) + h)


class Attention(nn.Module):
    """Self-attention over the cells, with 32 channels per head; it adds zero before training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // 32)
        self.norm = nn.GroupNorm(16, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm(x)), "b (three n c) h w -> three b n (h w) c", three=3, n=self.heads)
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(rearrange(attended, "b n (h w) c -> b (n c) h w", h=x.shape[2]))


class UNet(nn.Module):
    """The network of the module docstring; `config` is all that is needed to build it again."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        channels, side, _ = config.image
        widths = [config.width * m for m in config.multipliers]
        sides = [side // config.patch // 2**level for level in range(len(widths))]
        embedding = 4 * config.width
        self.embedding = Embedding(config.classes, embedding)
        cell = channels * config.patch**2
        self.stem = nn.Conv2d(cell, config.width, 3, padding=1)

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        width, skips = config.width, [config.width]
        for level, (wide, cells) in enumerate(zip(widths, sides, strict=True)):
            if level:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
            for _ in range(config.blocks):
                self.down.append(Block(width, wide, embedding, cells in config.attention))
                width = wide
                skips.append(width)
        self.middle = nn.ModuleList(Block(width, width, embedding, attention) for attention in (True, False))
        for level, (wide, cells) in reversed(list(enumerate(zip(widths, sides, strict=True)))):
            for _ in range(config.blocks + 1):
                self.up.append(Block(width + skips.pop(), wide, embedding, cells in config.attention))
                width = wide
            if level:
                self.up.append(nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1)))
        last = nn.Conv2d(width, cell, 3, padding=1)
        nn.init.zeros_(last.weight)
        self.head = nn.Sequential(nn.GroupNorm(16, width), nn.SiLU(), last)

    def forward(self, x: Tensor, lam: Tensor, y: Tensor | None = None) -> Tensor:
        patch = self.config.patch
        emb = self.embedding(lam, y)
        h = self.stem(rearrange(x, "b c (h p) (w q) -> b (c p q) h w", p=patch, q=patch))
        skips = [h]
        for layer in self.down:
            h = layer(h, emb) if isinstance(layer, Block) else layer(h)
            skips.append(h)
        for block in self.middle:
            h = block(h, emb)
        for layer in self.up:
            h = layer(torch.cat([h, skips.pop()], 1), emb) if isinstance(layer, Block) else layer(h)
        return rearrange(self.head(h), "b (c p q) h w -> b c (h p) (w q)", p=patch, q=patch)
