"""DDPM++ and NCSN++, the U-Nets of Song et al. (2021b), as EDM has them (Karras et al., 2022, Tables 1 and 7).

    x: (batch, in_channels, side, side)   t: (batch,)   y: (batch, label_dim), rows with one 1, or None
    ->  (batch, out_channels, side, side)

Modules have the names that they have in EDM's files. A level i of `model_channels * channel_mult[i]` channels has `num_blocks`
residual blocks going down and one more going up; its resolution is halved and doubled within a block, with `resample_filter` in
each direction ((1, 1) is the mean of four pixels and the nearest pixel). What is easily got wrong, and shows only in the samples:

    blocks      their sum is divided by √2, after attention once more; the embedding is added between the convolutions
    embedding   "positional": sin and cos of t ω_k, both ends of ω_k there; "fourier": sin and cos of 2π f t, f in the file
    labels      one-hot rows times √label_dim, added to the sinusoids
    encoder     "skip": the image itself, made smaller, is added to each level; "residual": so are states, by convolutions
    decoder     "skip": each level draws an image, the sum of which is the output; "standard": the last level does
    attention   q, k, v are every third channel; on the way up it follows the last block of a level alone

Weights for EDM's augmentation labels are read and not used: without augmentation the labels are zero, and there is no bias.
With `ve` the network is one of Song et al. that was trained on VE data in [0, 1]: it is called with log σ for data in [−1, 1], so
t − log 2 is embedded, and its last layer gives σ ∇ log p, so −1 times that is ε.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from diffode.checks import choice
from diffode.errors import InputError, shown
from diffode.networks import sizes
from diffode.networks.edm_layers import Fourier, Positional, Resample, ResampledConv, conv, norm


@dataclass(frozen=True)
class EDMUNetConfig:
    """The shape of the network, with the argument names of EDM's files; ve: see the module docstring."""

    img_resolution: int = 32
    in_channels: int = 3
    out_channels: int = 3
    label_dim: int = 0
    augment_dim: int = 0
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    channel_mult_emb: int = 4
    channel_mult_noise: int = 1
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    embedding_type: str = "positional"
    encoder_type: str = "standard"
    decoder_type: str = "standard"
    resample_filter: tuple[float, ...] = (1, 1)
    ve: bool = False

    def __post_init__(self) -> None:
        for name in ("channel_mult", "attn_resolutions", "resample_filter"):  # a card from JSON has lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        choice("embedding_type", self.embedding_type, ("positional", "fourier"))
        choice("encoder_type", self.encoder_type, ("standard", "skip", "residual"))
        choice("decoder_type", self.decoder_type, ("standard", "skip"))
        image = self.in_channels, self.img_resolution, self.img_resolution
        sizes.check(
            *(image, self.channel_mult, self.attn_resolutions),
            num_res_blocks=self.num_blocks,
            width=self.model_channels,
            classes=self.label_dim,
        )
        for name in ("out_channels", "augment_dim", "channel_mult_emb", "channel_mult_noise"):
            sizes.check((1, 1, 1), (), (), width=getattr(self, name))
        sizes.positive(image=image, out_channels=self.out_channels, num_blocks=self.num_blocks, channel_mult=self.channel_mult)
        if self.model_channels < 4 or self.model_channels % 4:
            raise InputError(
                f"model_channels must be a positive multiple of 4, as sinusoids and norms need, not {self.model_channels}"
            )
        sizes.halved(self.img_resolution, len(self.channel_mult))
        if self.resample_filter not in ((1, 1), (1, 3, 3, 1)):
            raise InputError(f"resample_filter must be [1, 1] or [1, 3, 3, 1], not {shown(self.resample_filter)}")


class Block(nn.Module):
    """Residual block: norm, SiLU, conv, plus the embedding; norm, SiLU, conv; the sum over √2; attention, if any, alike.

    resample: whether it doubles (True) or halves (False) the resolution, before its first convolution; None: neither.
    """

    def __init__(
        self, config: EDMUNetConfig, before: int, after: int, attend: bool = False, resample: bool | None = None
    ) -> None:
        super().__init__()
        self.norm0 = norm(before)
        self.affine = nn.Linear(config.model_channels * config.channel_mult_emb, after)
        self.norm1 = norm(after)
        self.conv1 = conv(after, after, 3)
        if resample is None:
            self.conv0: nn.Module = conv(before, after, 3)
            self.skip: nn.Module = nn.Identity() if before == after else conv(before, after, 1)
        else:
            self.conv0, self.skip = (ResampledConv(before, after, kernel, config.resample_filter, resample) for kernel in (3, 1))
        self.attends = attend
        if attend:
            self.norm2, self.qkv, self.proj = norm(after), conv(after, 3 * after, 1), conv(after, after, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x))) + self.affine(emb)[:, :, None, None]
        x = (self.skip(x) + self.conv1(F.silu(self.norm1(h)))) / math.sqrt(2)
        return (x + self.proj(self._attended(x))) / math.sqrt(2) if self.attends else x

    def _attended(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm2(x)), "b (c three) h w -> three b 1 (h w) c", three=3)
        return rearrange(F.scaled_dot_product_attention(q, k, v), "b 1 (h w) c -> b c h w", h=x.shape[2])


class EDMUNet(nn.Module):
    """The network of the module docstring; `config` says its shape."""

    def __init__(self, config: EDMUNetConfig) -> None:
        super().__init__()
        self.config = config
        noise, emb = (config.model_channels * times for times in (config.channel_mult_noise, config.channel_mult_emb))
        self.map_noise = Positional(noise) if config.embedding_type == "positional" else Fourier(noise)
        if config.label_dim:
            self.map_label = nn.Linear(config.label_dim, noise)
        if config.augment_dim:
            self.map_augment = nn.Linear(config.augment_dim, noise, bias=False)
        self.map_layer0, self.map_layer1 = nn.Linear(noise, emb), nn.Linear(emb, emb)
        self.enc, skips = _encoder(config)
        self.dec = _decoder(config, skips)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        emb = self._embedded(t, y, x.dtype)
        skips: list[Tensor] = []
        image = x
        for name, block in self.enc.items():
            if name.endswith("aux_down"):
                image = block(image)
            elif name.endswith("aux_skip"):
                x = skips[-1] = x + block(image)
            elif name.endswith("aux_residual"):
                x = skips[-1] = image = (x + block(image)) / math.sqrt(2)
            else:
                x = block(x, emb) if isinstance(block, Block) else block(x)
                skips.append(x)
        drawn: Tensor | None = None
        for name, block in self.dec.items():
            if name.endswith("aux_up"):
                drawn = block(drawn)
            elif name.endswith("aux_norm"):
                normed = block(x)
            elif name.endswith("aux_conv"):
                drawn = block(F.silu(normed)) + (0 if drawn is None else drawn)
            else:
                x = block(torch.cat([x, skips.pop()], 1) if "block" in name else x, emb)
        assert drawn is not None
        return -drawn if self.config.ve else drawn

    def _embedded(self, t: Tensor, y: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The embedding of the clock and the labels, (batch, model_channels * channel_mult_emb)."""
        emb = self.map_noise(t - math.log(2) if self.config.ve else t).to(dtype)
        if self.config.label_dim:
            rows = emb.new_zeros(1, self.config.label_dim) if y is None else y
            emb = emb + self.map_label(rows * math.sqrt(self.config.label_dim))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))


def _encoder(config: EDMUNetConfig) -> tuple[nn.ModuleDict, list[int]]:
    """The blocks on the way down, by resolution, and the widths of their states."""
    enc, width, image = nn.ModuleDict(), config.model_channels, config.in_channels
    enc[f"{config.img_resolution}x{config.img_resolution}_conv"] = conv(config.in_channels, width, 3)
    skips = [width]
    for level, multiple in enumerate(config.channel_mult):
        side = config.img_resolution >> level
        at = f"{side}x{side}"
        if level:
            enc[f"{at}_down"] = Block(config, width, width, resample=False)
            skips.append(width)
            if config.encoder_type == "skip":
                enc[f"{at}_aux_down"] = Resample(config.resample_filter, up=False)
                enc[f"{at}_aux_skip"] = conv(image, width, 1)
            if config.encoder_type == "residual":
                enc[f"{at}_aux_residual"] = ResampledConv(image, width, 3, config.resample_filter, up=False, fused=True)
                image = width
        for i in range(config.num_blocks):
            before, width = width, config.model_channels * multiple
            enc[f"{at}_block{i}"] = Block(config, before, width, side in config.attn_resolutions)
            skips.append(width)
    return enc, skips


def _decoder(config: EDMUNetConfig, skips: list[int]) -> nn.ModuleDict:
    """The blocks on the way up, which take the widths of `skips` from its end."""
    dec, width, top = nn.ModuleDict(), skips[-1], len(config.channel_mult) - 1
    for level, multiple in reversed(list(enumerate(config.channel_mult))):
        side = config.img_resolution >> level
        at = f"{side}x{side}"
        if level == top:
            dec[f"{at}_in0"] = Block(config, width, width, attend=True)
            dec[f"{at}_in1"] = Block(config, width, width)
        else:
            dec[f"{at}_up"] = Block(config, width, width, resample=True)
        for i in range(config.num_blocks + 1):
            before, width = width + skips.pop(), config.model_channels * multiple
            dec[f"{at}_block{i}"] = Block(config, before, width, i == config.num_blocks and side in config.attn_resolutions)
        if config.decoder_type == "skip" or level == 0:
            if config.decoder_type == "skip" and level < top:
                dec[f"{at}_aux_up"] = Resample(config.resample_filter, up=True)
            dec[f"{at}_aux_norm"], dec[f"{at}_aux_conv"] = norm(width), conv(width, config.out_channels, 3)
    return dec
