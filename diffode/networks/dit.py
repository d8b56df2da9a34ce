"""DiT, the transformer of Peebles and Xie (2023), under the names of its published weights; that of SiT (Ma et al., 2024), too.

    x: (batch, channels, side, side), a latent   t: (batch,)   y: (batch,) labels, `classes` for none
    ->  (batch, channels, side, side), or twice the channels, of which the second half are variances

Patches of `patch` × `patch` pixels become tokens with positions of fixed sinusoids. Each of the `depth` blocks is attention and a
perceptron, both on a layer norm without weights of its own; t and the label, summed as one vector, give the shift and the scale
after the norm and the gate of what is added to the tokens, the gates being zero before training (adaLN-Zero, section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from diffode.errors import InputError
from diffode.networks import sizes
from diffode.networks.adm import attended
from diffode.networks.embeddings import sinusoids

FREQUENCIES = 256  # sinusoids of t


@dataclass(frozen=True)
class DiTConfig:
    """The shape of the network. The default is XL/2 at 256 × 256, of latents of 32 × 32."""

    image: tuple[int, int, int] = (4, 32, 32)
    patch: int = 2
    width: int = 1152
    depth: int = 28
    heads: int = 16
    classes: int = 1000
    learned_variance: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "image", tuple(self.image))  # a card from JSON has a list
        sizes.check(self.image, (), (), self.patch, width=self.width, classes=self.classes)
        sizes.check(self.image, (), (), heads=self.heads, depth=self.depth)
        sizes.positive(
            image=self.image, patch=self.patch, width=self.width, depth=self.depth, heads=self.heads, classes=self.classes
        )
        if self.image[1] != self.image[2] or self.image[1] % self.patch:
            raise InputError(f"a DiT takes squares of whole patches of {self.patch}, not {self.image}")
        if self.width % 4 or self.width % self.heads:
            raise InputError(f"the width of a DiT must be a multiple of 4 and of its {self.heads} heads, not {self.width}")
        if self.tokens > sizes.MOST_CELLS:
            raise InputError(f"{self.tokens} patches attend to each other, where {sizes.MOST_CELLS} are the most")

    @property
    def tokens(self) -> int:
        """How many patches there are."""
        return (self.image[1] // self.patch) ** 2


def positions(side: int, width: int) -> Tensor:
    """The fixed embedding of the patches of a square, (1, side², width): sin and cos of the column, then of the row, for
    ω_k = 10000^(−k/(width/4))."""
    cells = torch.arange(side, dtype=torch.float64)
    angles = cells[:, None] * 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    one = torch.cat([angles.sin(), angles.cos()], 1)  # (side, width/2)
    row, column = one[:, None].expand(side, side, -1), one[None].expand(side, side, -1)
    return torch.cat([column, row], 2).reshape(1, side * side, width).to(torch.get_default_dtype())


class Attention(nn.Module):
    """Self-attention over the tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(attended(self.qkv(x).mT, "(three n c)", self.heads).mT)


class Perceptron(nn.Module):
    """Two linear maps around a GELU, in its approximation by tanh."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def modulation(width: int, parts: int) -> nn.Sequential:
    """The vector of t and label to `parts` vectors of `width`, zero before training."""
    last = nn.Linear(width, parts * width)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.SiLU(), last)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """norm(x) (1 + scale) + shift; x: (batch, tokens, width), shift and scale: (batch, 1, width)."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class Block(nn.Module):
    """Attention and perceptron with adaLN-Zero, see the module docstring."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn, self.mlp, self.adaLN_modulation = Attention(width, heads), Perceptron(width), modulation(width, 6)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(c)[:, None].chunk(6, 2)
        x = x + gate * self.attn(modulated(x, shift, scale))
        return x + gate_mlp * self.mlp(modulated(x, shift_mlp, scale_mlp))


class Final(nn.Module):
    """Tokens to patches, zero before training."""

    def __init__(self, width: int, numbers: int) -> None:
        super().__init__()
        self.linear, self.adaLN_modulation = nn.Linear(width, numbers), modulation(width, 2)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.linear(modulated(x, *self.adaLN_modulation(c)[:, None].chunk(2, 2)))


class DiT(nn.Module):
    """The network of the module docstring; `config` says its shape, and its modules have the names of the published weights."""

    pos_embed: Tensor

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        channels, side, _ = config.image
        width, label = config.width, torch.empty(config.classes + 1, config.width)
        proj = nn.Conv2d(channels, width, config.patch, stride=config.patch)
        mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        table = nn.Embedding.from_pretrained(label if label.is_meta else label.normal_(std=0.02), freeze=False)
        self.x_embedder, self.t_embedder = nn.ModuleDict({"proj": proj}), nn.ModuleDict({"mlp": mlp})
        self.y_embedder = nn.ModuleDict({"embedding_table": table})
        self.register_buffer("pos_embed", positions(side // config.patch, width))
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.depth))
        self.final_layer = Final(width, config.patch**2 * (1 + config.learned_variance) * channels)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        p, side = self.config.patch, self.config.image[1] // self.config.patch
        c = self.t_embedder["mlp"](sinusoids(t, FREQUENCIES).to(self.pos_embed.dtype)) + self.y_embedder["embedding_table"](y)
        h = self.x_embedder["proj"](x).flatten(2).mT + self.pos_embed
        for block in self.blocks:
            h = block(h, c)
        return rearrange(self.final_layer(h, c), "b (h w) (p q c) -> b c (h p) (w q)", h=side, p=p, q=p)
