"""EDM's ADM (Karras et al., 2022, for ImageNet at 64 × 64) under the names of guided-diffusion: it is the same network.

Its blocks are called by resolution and kind, as `32x32_block1`, ours by number; a change of resolution on the way up begins a
level there and ends one here. Queries, keys and values alternate from channel to channel, and labels are one-hot rows for a
linear map, of which zeros mean none. Augmentations, of which sampling has none, are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from einops import rearrange
from torch import Tensor

from diffode.checks import numbers, whole
from diffode.errors import InputError, shown
from diffode.networks.adm import ADMConfig
from diffode.networks.sizes import MOST_LEVELS

BLOCK = {"norm0": "in_layers.0", "conv0": "in_layers.2", "affine": "emb_layers.1", "norm1": "out_layers.0"}
BLOCK |= {"conv1": "out_layers.3", "skip": "skip_connection"}
ATTENTION = {"norm2": "norm", "qkv": "qkv", "proj": "proj_out"}
ENDS = {"map_layer0": "time_embed.0", "map_layer1": "time_embed.2", "out_norm": "out.0", "out_conv": "out.2"}
NARROWEST = 128  # channels, of which its norms have 32 groups like ours; below it fewer


@dataclass(frozen=True)
class Arguments:
    """Those of its network, with their defaults."""

    img_resolution: int
    in_channels: int
    out_channels: int
    label_dim: int = 0
    augment_dim: int = 0
    model_channels: int = 192
    channel_mult: Sequence[int] = (1, 2, 3, 4)
    channel_mult_emb: int = 4
    num_blocks: int = 3
    attn_resolutions: Sequence[int] = (32, 16, 8)

    def config(self) -> ADMConfig:
        """The configuration of ours; InputError for what ours has not."""
        for name in ("img_resolution", "in_channels", "out_channels", "label_dim", "model_channels", "num_blocks"):
            whole(name, getattr(self, name))
        for name in ("channel_mult", "attn_resolutions"):
            numbers(name, getattr(self, name), MOST_LEVELS, least=0)
        if self.out_channels not in (self.in_channels, 2 * self.in_channels) or self.channel_mult_emb != 4:
            given = f"{self.out_channels} and {shown(self.channel_mult_emb)}"
            raise InputError(
                f"its out_channels and channel_mult_emb are {given}, where {self.in_channels} or twice as many and 4 are known"
            )
        widths = tuple(self.model_channels * multiple for multiple in self.channel_mult)
        if min(widths, default=0) < NARROWEST:
            raise InputError(f"its levels have {widths} channels, where {NARROWEST} are the fewest")
        return ADMConfig(
            (self.in_channels, self.img_resolution, self.img_resolution),
            *(self.model_channels, widths, self.num_blocks, tuple(self.attn_resolutions), self.label_dim),
            learned_variance=self.out_channels != self.in_channels,
            qkv_first=True,
        )


def converted(config: ADMConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Its tensors under our names; KeyError for one that has no place in this configuration."""
    parts = {**ENDS, **dict(_places(config))}
    found = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if kind == "resample_filter" or module == "map_augment":
            continue
        if module == "map_label":
            found["label_emb.weight"] = tensor.mT
            continue
        if module.endswith(".qkv"):
            tensor = rearrange(tensor, "(n c three) ... -> (three n c) ...", three=3, c=config.head_channels)
        found[f"{parts[module]}.{kind}"] = tensor[..., 0] if module.endswith((".qkv", ".proj")) and tensor.ndim == 4 else tensor
    return found


def _places(config: ADMConfig) -> Iterator[tuple[str, str]]:
    """(its name, ours) of every layer of the way down, the middle and the way up."""
    sides = [config.image[1] >> level for level in range(len(config.widths))]
    step, lowest = config.blocks + 1, sides[-1]
    yield f"enc.{sides[0]}x{sides[0]}_conv", "input_blocks.0.0"
    for level, side in enumerate(sides):
        if level:
            yield from _layers(f"enc.{side}x{side}_down", f"input_blocks.{level * step}.0")
        for i in range(config.blocks):
            place = f"input_blocks.{level * step + 1 + i}"
            yield from _layers(f"enc.{side}x{side}_block{i}", f"{place}.0", f"{place}.1")
    yield from _layers(f"dec.{lowest}x{lowest}_in0", "middle_block.0", "middle_block.1")
    yield from _layers(f"dec.{lowest}x{lowest}_in1", "middle_block.2")
    for n, (side, attends) in enumerate(reversed([*zip(sides, config.attends, strict=True)])):
        for i in range(step):
            place = f"output_blocks.{n * step + i}"
            yield from _layers(f"dec.{side}x{side}_block{i}", f"{place}.0", f"{place}.1")
        yield from _layers(f"dec.{2 * side}x{2 * side}_up", f"output_blocks.{n * step + config.blocks}.{1 + attends}")


def _layers(its: str, block: str, attention: str | None = None) -> Iterator[tuple[str, str]]:
    """Those of a residual block, and of the attention that may follow."""
    yield from ((f"{its}.{name}", f"{block}.{ours}") for name, ours in BLOCK.items())
    if attention:
        yield from ((f"{its}.{name}", f"{attention}.{ours}") for name, ours in ATTENTION.items())
