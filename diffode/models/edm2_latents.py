"""The latents of EDM2 as images: channels of their own mean and deviation, and an autoencoder of images in [0, 1].

EDM2 takes the encoder of Stable Diffusion, trained on images in [−1, 1], for images in [0, 1], and moves every channel of its
latents z to mean 0 and deviation 0.5: x = (z − mean)/(2 std). So an image is 2 decode(2 std x + mean) − 1. Its files have mean
and std.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffode.checks import numbers
from diffode.models.card import Card
from diffode.models.decoders import Decoder, autoencoder
from diffode.models.pickle_machine import Part

MEAN, STD = (5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28)  # of ImageNet-512, the defaults of its code


class Whitened(nn.Module):
    """Images (batch, 3, h, w) in [−1, 1] of latents x (batch, channels, h, w), 2 decode(x/scale + shift) − 1, wherever x is."""

    scale: Tensor
    shift: Tensor

    def __init__(self, decode: Callable[[Tensor], Tensor], mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.decode = decode
        self.register_buffer("scale", 0.5 / torch.tensor(std)[:, None, None])
        self.register_buffer("shift", torch.tensor(mean)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        self.to(x.device)
        return 2 * self.decode(x / self.scale.to(x.dtype) + self.shift.to(x.dtype)) - 1


def of_encoder(encoder: Any) -> dict[str, Any]:
    """What a card keeps of the encoder in a file: `latents`, their mean and deviation; nothing for one of images."""
    if not isinstance(encoder, Part) or encoder.name != "StabilityVAEEncoder":
        return {}
    given = encoder.plain()
    return {"latents": _latents({"mean": given.get("raw_mean", MEAN), "std": given.get("raw_std", STD)})}


def _latents(given: Any) -> dict[str, list[float]]:
    """Mean and deviation of the channels; InputError unless they are lists of numbers."""
    return {name: numbers(name, given[name], 64).tolist() for name in ("mean", "std")}


def decoder(card: Card, place: str | Path, dtype: torch.dtype = torch.float32) -> Decoder | Whitened:
    """The autoencoder of a FOLDER or hub:NAME for the latents of a model: as its card says, or as decoders.autoencoder has it.

    model = model.replace(decode=decoder(card, "hub:stabilityai/sd-vae-ft-mse")). InputError as `autoencoder`.
    """
    if card.kind != "edm2" or "latents" not in card.provenance:
        return autoencoder(place, dtype)
    return Whitened(autoencoder(place, dtype, scaling_factor=1.0, shift_factor=0.0), **_latents(card.provenance["latents"]))
