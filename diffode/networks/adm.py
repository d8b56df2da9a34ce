"""ADM, the U-Net of Dhariwal and Nichol (2021), and that of Nichol and Dhariwal (2021), under the names of its published weights.

    x: (batch, channels, height, width)   t: (batch,), the label of the table, which may be fractional   y: (batch,) labels
    ->  (batch, channels, height, width), or twice the channels, of which the second half are variances

Per level of `widths` channels there are `blocks` residual blocks on the way down and one more on the way up, with attention at
the heights in `attention` and always in the middle. t and the label are one vector, from which a block takes the scale and shift
of its second norm ("adaptive group normalisation", section 3) or, without `scale_shift`, what it adds before it. Half and twice
the resolution are taken inside residual blocks of their own (`resample_blocks`), as in BigGAN, or by convolutions. What the
shapes of the weights do not say:

    heads        as many as fit of `head_channels` each, else `heads`; 64 channels in ADM but at 128 × 128, where 4 heads are
    qkv          one 1×1 convolution gives queries, keys and values of all heads: split into the three first and into heads then
                 (`qkv_first`, ADM at 64 × 64 and Karras et al., 2022), or into heads first
    clock_scale  the network sees clock_scale · t, as where labels of 4000 steps were scaled to 1000
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from diffode.errors import InputError, shown
from diffode.networks import sizes
from diffode.networks.embeddings import sinusoids


@dataclass(frozen=True)
class ADMConfig:
    """The shape of the network, see above. width: of the sinusoids of t; the vector of t and label is 4 times it."""

    image: tuple[int, int, int] = (3, 64, 64)
    width: int = 192
    widths: tuple[int, ...] = (192, 384, 576, 768)
    blocks: int = 3
    attention: tuple[int, ...] = (32, 16, 8)
    classes: int = 0
    learned_variance: bool = True
    scale_shift: bool = True
    resample_blocks: bool = True
    head_channels: int = 64
    heads: int = 4
    qkv_first: bool = False
    clock_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("image", "widths", "attention"):  # a card from JSON has lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        sizes.check(self.image, (1,) * len(self.widths), self.attention, blocks=self.blocks, classes=self.classes)
        for width in (self.width, *self.widths, self.heads, self.head_channels):
            sizes.check((1, 1, 1), (), (), width=width)
        sizes.positive(image=self.image, widths=self.widths, blocks=self.blocks, heads=self.heads)
        if any(width < 32 or width % 32 for width in self.widths) or self.width < 2 or self.width % 2:
            raise InputError(
                f"ADM needs an even width, and levels of multiples of 32 channels, the groups of its norms, not {self.width} "
                f"and {self.widths}"
            )
        if any(side % 2 ** (len(self.widths) - 1) for side in self.image[1:]):
            raise InputError(f"{len(self.widths)} levels halve the sides of the image to no whole number: {self.image[1:]}")
        for width in {self.widths[-1], *(wide for wide, yes in zip(self.widths, self.attends, strict=True) if yes)}:
            if width % (self.head_channels or self.heads):
                raise InputError(f"{width} channels are no whole number of heads of {self.head_channels or width / self.heads:g}")
        if not (isinstance(self.clock_scale, int | float) and math.isfinite(self.clock_scale)):
            raise InputError(f"clock_scale must be a number, not {shown(self.clock_scale)}")

    @property
    def attends(self) -> list[bool]:
        """Whether each level has attention."""
        return [self.image[1] // 2**level in self.attention for level in range(len(self.widths))]


def norm(width: int) -> nn.GroupNorm:
    """The normalisation of all blocks."""
    return nn.GroupNorm(32, width)


class Block(nn.Module):
    """Residual block: norm, SiLU, resample, conv; norm, scale and shift, SiLU, conv (zero before training); x resampled, too."""

    def __init__(self, config: ADMConfig, width_in: int, width_out: int, resample: nn.Module | None = None) -> None:
        super().__init__()
        self.scale_shift, self.resample = config.scale_shift, resample or nn.Identity()
        self.in_layers = nn.Sequential(norm(width_in), nn.SiLU(), nn.Conv2d(width_in, width_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * config.width, (1 + self.scale_shift) * width_out))
        last = nn.Conv2d(width_out, width_out, 3, padding=1)  # at 3: training has dropout before it
        self.out_layers = nn.Sequential(norm(width_out), nn.SiLU(), nn.Identity(), last)
        self.skip_connection = nn.Identity() if width_in == width_out else nn.Conv2d(width_in, width_out, 1)
        nn.init.zeros_(last.weight)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers[2](self.resample(self.in_layers[:2](x)))
        added = self.emb_layers(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = added.chunk(2, 1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + added)
        return self.skip_connection(self.resample(x)) + h


class Attention(nn.Module):
    """Self-attention over the pixels: x + W softmax(q k / sqrt(channels per head)) v; it adds zero before training."""

    def __init__(self, config: ADMConfig, width: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj_out = norm(width), nn.Conv1d(width, 3 * width, 1), nn.Conv1d(width, width, 1)
        self.heads = width // config.head_channels if config.head_channels else config.heads
        self.order = "(three n c)" if config.qkv_first else "(n three c)"
        nn.init.zeros_(self.proj_out.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(2)
        qkv = self.qkv(self.norm(h))
        return (h + self.proj_out(attended(qkv, self.order, self.heads))).reshape(x.shape)


def attended(qkv: Tensor, order: str, heads: int) -> Tensor:
    """Attention of `heads` heads over queries, keys and values (batch, 3 channels, length), whose channels are in this order."""
    q, k, v = rearrange(qkv, f"b {order} l -> three b n l c", three=3, n=heads)
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b n l c -> b (n c) l")


class Half(nn.Module):
    """Half the resolution by a convolution of stride 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Double(nn.Module):
    """Twice the resolution by copies, and a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0))


class Encoder(nn.Module):
    """The way down and the middle, which the U-Net and the classifier have; skips: the widths of all states on the way."""

    def __init__(self, config: ADMConfig) -> None:
        super().__init__()
        self.config = config
        wide = 4 * config.width
        self.time_embed = nn.Sequential(nn.Linear(config.width, wide), nn.SiLU(), nn.Linear(wide, wide))
        stem = nn.Conv2d(config.image[0], config.widths[0], 3, padding=1)
        self.input_blocks, self.skips = nn.ModuleList([nn.ModuleList([stem])]), [config.widths[0]]
        for level, width in enumerate(config.widths):
            if level:
                self.input_blocks.append(nn.ModuleList([self.down(self.skips[-1])]))
                self.skips.append(self.skips[-1])
            for _ in range(config.blocks):
                self.input_blocks.append(nn.ModuleList(self.layers(self.skips[-1], width, level)))
                self.skips.append(width)
        self.middle_block = nn.ModuleList([Block(config, width, width), Attention(config, width), Block(config, width, width)])

    @property
    def dtype(self) -> torch.dtype:
        """That of the weights."""
        return next(self.parameters()).dtype

    def layers(self, width_in: int, width: int, level: int) -> list[nn.Module]:
        """A residual block of a level, and attention if it has any."""
        attention = [Attention(self.config, width)] if self.config.attends[level] else []
        return [Block(self.config, width_in, width), *attention]

    def down(self, width: int) -> nn.Module:
        """Half the resolution."""
        return Block(self.config, width, width, nn.AvgPool2d(2)) if self.config.resample_blocks else Half(width)

    def embedded(self, t: Tensor) -> Tensor:
        """t as a vector, in the dtype of the weights."""
        return self.time_embed(sinusoids(self.config.clock_scale * t, self.config.width).to(self.dtype))

    def encoded(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """All states on the way down, and that of the middle."""
        states = [x]
        for layers in [*self.input_blocks, self.middle_block]:
            states.append(through(layers, states[-1], emb))
        return states[1:]


def through(layers: nn.Module, h: Tensor, emb: Tensor) -> Tensor:
    """The layers of a list one after the other; residual blocks take the vector of t and the label, too."""
    for layer in layers.children():
        h = layer(h, emb) if isinstance(layer, Block) else layer(h)
    return h


class ADM(Encoder):
    """The U-Net of the module docstring; `config` says its shape, and its modules have the names of the published weights."""

    def __init__(self, config: ADMConfig) -> None:
        super().__init__(config)
        if config.classes:
            label = torch.empty(config.classes, 4 * config.width)
            self.label_emb = nn.Embedding.from_pretrained(label if label.is_meta else label.normal_(), freeze=False)
        skips, width = [*self.skips], config.widths[-1]
        self.output_blocks = nn.ModuleList()
        for level, wide in reversed([*enumerate(config.widths)]):
            for i in range(config.blocks + 1):
                layers = self.layers(width + skips.pop(), wide, level)
                width = wide
                if level and i == config.blocks:
                    layers.append(self.up(width))
                self.output_blocks.append(nn.ModuleList(layers))
        last = nn.Conv2d(width, (1 + config.learned_variance) * config.image[0], 3, padding=1)
        self.out = nn.Sequential(norm(width), nn.SiLU(), last)
        nn.init.zeros_(last.weight)

    def up(self, width: int) -> nn.Module:
        """Twice the resolution."""
        return Block(self.config, width, width, nn.Upsample(scale_factor=2)) if self.config.resample_blocks else Double(width)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """y: labels, or rows of one-hot labels, zeros for none."""
        emb = self.embedded(t)
        if self.config.classes:
            if y is None:
                raise InputError("this network takes labels and knows none that means no label: give labels, and no guidance")
            emb = emb + (y.to(emb.dtype) @ self.label_emb.weight if y.is_floating_point() else self.label_emb(y))
        *skips, h = self.encoded(x, emb)
        for layers in self.output_blocks:
            h = through(layers, torch.cat([h, skips.pop()], 1), emb)
        return self.out(h)
