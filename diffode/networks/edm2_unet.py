"""The U-Net of EDM2 (Karras et al., 2024, Figure 21, config G), on latents or images.

    x: (batch, img_channels, side, side)   t: (batch,), c_noise = log(σ)/4   y: (batch, label_dim), rows with one 1, or None
    ->  (batch, img_channels, side, side), F of EDM

Every layer keeps the magnitude of its input, 1 per number. Modules have the names that they have in EDM2's files, and no biases.

    weights     w/(ε √fan + ‖w‖) per output (Eq. 47, 66), which no input changes: `normalised` does it once, when they are read
    SiLU        divided by 0.596 (Eq. 81)
    sum         ((1 − τ) a + τ b)/√((1 − τ)² + τ²) (Eq. 88), τ = 0.3 for residual branches and attention, 0.5 for labels
    concat      both sides weighted so that neither's magnitude depends on its width (Eq. 103)
    pixel norm  x/(ε + rms over the channels), of blocks on the way down, and of q, k, v
    embedding   √2 cos(f t + φ) (Eq. 75); it multiplies the residual branch by 1 + gain · linear
    input       one channel more, of ones, in place of biases
    resolution  the mean of four pixels, the nearest pixel

ε = 1e-4. A network without labels takes y, too, and leaves it: that is how it guides another (autoguidance).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from diffode.checks import number
from diffode.networks import sizes

EPS = 1e-4


@dataclass(frozen=True)
class EDM2UNetConfig:
    """The shape of the network, with the argument names of EDM2's files; channel_mult_noise and _emb: None for the first and the
    largest of channel_mult."""

    img_resolution: int
    img_channels: int
    label_dim: int
    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    channel_mult_noise: int | None = None
    channel_mult_emb: int | None = None
    num_blocks: int = 3
    attn_resolutions: tuple[int, ...] = (16, 8)
    label_balance: float = 0.5
    concat_balance: float = 0.5
    channels_per_head: int = 64
    res_balance: float = 0.3
    attn_balance: float = 0.3
    clip_act: float | None = 256

    def __post_init__(self) -> None:
        for name in ("channel_mult", "attn_resolutions"):  # a card from JSON has lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        image = self.img_channels, self.img_resolution, self.img_resolution
        sizes.check(
            *(image, self.channel_mult, self.attn_resolutions),
            num_res_blocks=self.num_blocks,
            width=self.model_channels,
            classes=self.label_dim,
        )
        for name in ("label_balance", "concat_balance", "res_balance", "attn_balance"):
            number(name, getattr(self, name), 0, 1)
        if self.clip_act is not None:
            number("clip_act", self.clip_act, positive=True)
        for times in (self.channel_mult_noise, self.channel_mult_emb):
            sizes.check((1, 1, 1), () if times is None else (times,), ())
        sizes.check((1, 1, 1), (), (), width=self.channels_per_head)
        sizes.positive(image=image, num_blocks=self.num_blocks, channel_mult=self.channel_mult)
        sizes.positive(model_channels=self.model_channels, channels_per_head=self.channels_per_head)
        sizes.halved(self.img_resolution, len(self.channel_mult))


def normalised(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a file as the network applies them, in float32 or wider; gains and buffers as they are."""
    return {name: _normalised(tensor) if name.endswith("weight") else tensor.float() for name, tensor in tensors.items()}


def _normalised(weight: Tensor) -> Tensor:
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    norm = torch.linalg.vector_norm(weight.flatten(1), dim=1).view(-1, *[1] * (weight.ndim - 1))
    return weight / (EPS * math.sqrt(weight[0].numel()) + norm)


def silu(x: Tensor) -> Tensor:
    """SiLU that keeps the magnitude."""
    return F.silu(x) / 0.596


def mixed(a: Tensor, b: Tensor, tau: float) -> Tensor:
    """The sum of two tensors that keeps the magnitude; tau: the share of the second."""
    return (a * (1 - tau) + b * tau) / math.hypot(1 - tau, tau)  # lerp takes no two dtypes, as autocast makes


def joined(a: Tensor, b: Tensor, tau: float) -> Tensor:
    """Two tensors as channels of one; tau: the share of the second in the magnitude."""
    scale = math.sqrt(a.shape[1] + b.shape[1]) / math.hypot(1 - tau, tau)
    return torch.cat([a * (scale * (1 - tau) / math.sqrt(a.shape[1])), b * (scale * tau / math.sqrt(b.shape[1]))], 1)


def pixel_norm(x: Tensor, dim: int = 1) -> Tensor:
    """x over its root mean square along a dimension, and ε."""
    return x / (EPS + torch.linalg.vector_norm(x, dim=dim, keepdim=True) / math.sqrt(x.shape[dim]))


def linear(before: int, after: int) -> nn.Linear:
    """A linear map without bias."""
    return nn.Linear(before, after, bias=False)


def conv(before: int, after: int, kernel: int) -> nn.Conv2d:
    """A convolution that keeps the resolution, without bias."""
    return nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False)


class Fourier(nn.Module):
    """√2 cos(f t + φ), (batch, width); f and φ: (width,), drawn before training."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(width, device="cpu"))  # see edm_layers.py
        self.register_buffer("phases", 2 * math.pi * torch.rand(width, device="cpu"))

    def forward(self, t: Tensor) -> Tensor:
        return math.sqrt(2) * torch.cos(torch.outer(t, self.freqs.to(t.dtype)) + self.phases.to(t.dtype))


class Block(nn.Module):
    """Residual block, then attention if asked for. A block on the way up, `up`, adds its skip connection late and has no norm.

    resample: whether it doubles (True) or halves (False) the resolution first; None: neither.
    """

    def __init__(
        self,
        config: EDM2UNetConfig,
        before: int,
        after: int,
        emb: int,
        up: bool,
        attend: bool = False,
        resample: bool | None = None,
    ) -> None:
        super().__init__()
        self.config, self.up = config, up
        self.resample = {None: nn.Identity(), True: nn.Upsample(scale_factor=2), False: nn.AvgPool2d(2)}[resample]
        self.emb_gain = nn.Parameter(torch.zeros(()))
        self.conv_res0, self.conv_res1 = conv(before if up else after, after, 3), conv(after, after, 3)
        self.emb_linear = linear(emb, after)
        self.conv_skip = nn.Identity() if before == after else conv(before, after, 1)
        self.heads = after // config.channels_per_head if attend else 0
        if self.heads:
            self.attn_qkv, self.attn_proj = conv(after, 3 * after, 1), conv(after, after, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        x = self.resample(x)
        if not self.up:
            x = pixel_norm(self.conv_skip(x))
        scale = 1 + self.emb_gain * self.emb_linear(emb)
        h = self.conv_res1(silu(self.conv_res0(silu(x)) * scale[:, :, None, None]))
        x = mixed(self.conv_skip(x) if self.up else x, h, self.config.res_balance)
        if self.heads:
            x = mixed(x, self.attn_proj(self._attended(x)), self.config.attn_balance)
        return x if self.config.clip_act is None else x.clamp(-self.config.clip_act, self.config.clip_act)

    def _attended(self, x: Tensor) -> Tensor:
        qkv = rearrange(self.attn_qkv(x), "b (n c three) h w -> three b n (h w) c", n=self.heads, three=3)
        q, k, v = pixel_norm(qkv, -1)
        return rearrange(F.scaled_dot_product_attention(q, k, v), "b n (h w) c -> b (n c) h w", h=x.shape[2])


class EDM2UNet(nn.Module):
    """The network of the module docstring, whose weights are `normalised`; `config` says its shape."""

    def __init__(self, config: EDM2UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.model_channels * multiple for multiple in config.channel_mult]
        noise, emb = (
            widths_of if times is None else config.model_channels * times
            for times, widths_of in ((config.channel_mult_noise, widths[0]), (config.channel_mult_emb, max(widths)))
        )
        self.emb_fourier, self.emb_noise = Fourier(noise), linear(noise, emb)
        if config.label_dim:
            self.emb_label = linear(config.label_dim, emb)
        self.enc, self.dec, width = nn.ModuleDict(), nn.ModuleDict(), widths[0]
        sides = [config.img_resolution >> level for level in range(len(widths))]
        self.enc[f"{sides[0]}x{sides[0]}_conv"] = conv(config.img_channels + 1, width, 3)
        skips = [width]
        for level, (side, wide) in enumerate(zip(sides, widths, strict=True)):
            if level:
                self.enc[f"{side}x{side}_down"] = Block(config, width, width, emb, up=False, resample=False)
                skips.append(width)
            for i in range(config.num_blocks):
                attend = side in config.attn_resolutions
                self.enc[f"{side}x{side}_block{i}"] = Block(config, width, wide, emb, up=False, attend=attend)
                width = wide
                skips.append(width)
        for level, (side, wide) in reversed(list(enumerate(zip(sides, widths, strict=True)))):
            if level == len(widths) - 1:
                self.dec[f"{side}x{side}_in0"] = Block(config, width, width, emb, up=True, attend=True)
                self.dec[f"{side}x{side}_in1"] = Block(config, width, width, emb, up=True)
            else:
                self.dec[f"{side}x{side}_up"] = Block(config, width, width, emb, up=True, resample=True)
            for i in range(config.num_blocks + 1):
                attend = side in config.attn_resolutions
                self.dec[f"{side}x{side}_block{i}"] = Block(config, width + skips.pop(), wide, emb, up=True, attend=attend)
                width = wide
        self.out_conv, self.out_gain = conv(width, config.img_channels, 3), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        emb = self.emb_noise(self.emb_fourier(t).to(x.dtype))
        if self.config.label_dim:
            rows = emb.new_zeros(len(x), self.config.label_dim) if y is None else y
            emb = mixed(emb, self.emb_label(rows * math.sqrt(self.config.label_dim)), self.config.label_balance)
        emb = silu(emb)
        h = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        skips = []
        for block in self.enc.values():
            h = block(h, emb) if isinstance(block, Block) else block(h)
            skips.append(h)
        for name, block in self.dec.items():
            h = block(joined(h, skips.pop(), self.config.concat_balance) if "block" in name else h, emb)
        return self.out_gain * self.out_conv(h)
