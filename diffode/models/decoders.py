"""From latents to images by an autoencoder of diffusers, from FOLDER or hub:NAME: what a model of latents is shown with.

    model = model.replace(decode=autoencoder("hub:stabilityai/sd-vae-ft-ema"))

Models were trained on x = scaling_factor (z − shift_factor) of the encoder's z, so that z = x/scaling_factor + shift_factor is
decoded. A vector-quantized autoencoder (VQModel, that of latent diffusion) moves every latent to the nearest of its codebook.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from diffode.checks import number
from diffode.errors import InputError, in_words, shown
from diffode.models import diffusers_models

PLACES = ("", "vae", "vqvae")  # where a folder, or that of a pipeline, holds its autoencoder
FILES = [str(Path(place, name)) for place in PLACES for name in ("config.json", diffusers_models.WEIGHTS)]
KINDS = ("AutoencoderKL", "VQModel")
ROWS = 4  # latents that are decoded at once: a 512 × 512 image takes a few GB


class Decoder(nn.Module):
    """Images (batch, 3, h, w), about in [−1, 1], of latents x (batch, *shape): network.decode(x/scale + shift), where x was."""

    def __init__(self, network: nn.Module, scale: float, shift: float) -> None:
        super().__init__()
        self.network, self.scale, self.shift = network, scale, shift

    def forward(self, x: Tensor) -> Tensor:
        weight, decode = next(self.network.parameters()), cast(Any, self.network.decode)
        return torch.cat([decode(rows.to(weight) / self.scale + self.shift).sample for rows in x.split(ROWS)]).to(x)


def autoencoder(
    place: str | Path,
    dtype: torch.dtype = torch.float32,
    *,
    scaling_factor: float | None = None,
    shift_factor: float | None = None,
) -> Decoder:
    """The decoder of an AutoencoderKL or VQModel: FOLDER, that of a pipeline with one, or hub:NAME; on the CPU, in `dtype`.

    scaling_factor, shift_factor: those of its configuration, unless they are given. InputError for a folder without one, for
    weights that are no safetensors or do not fit, and for latents that are scaled channel by channel.
    """
    name = str(place)
    if name == "hub:" or not (name.startswith("hub:") or any((Path(name) / one / "config.json").is_file() for one in PLACES)):
        raise InputError(f"no autoencoder {shown(name)}: expected a folder with its config.json, that of a pipeline, or hub:NAME")
    diffusers_models.require()
    folder = diffusers_models.fetch(name.removeprefix("hub:"), FILES) if name.startswith("hub:") else Path(name)
    try:
        return _autoencoder(folder, scaling_factor, shift_factor).to(dtype)
    except MemoryError:
        raise
    except Exception as error:  # of files that do not fit each other, diffusers raises all kinds
        raise InputError(f"{shown(name)} is no autoencoder of diffusers: {in_words(error)}") from error


def of_pipeline(folder: Path) -> bool:
    """Whether a folder is that of a pipeline with an autoencoder."""
    return any((folder / place / "config.json").is_file() for place in PLACES if place)


def _autoencoder(folder: Path, scaling_factor: float | None, shift_factor: float | None) -> Decoder:
    import diffusers

    found = next((folder / one for one in PLACES if (folder / one / "config.json").is_file()), folder)
    config = diffusers_models.config_of(found)
    kind = config.get("_class_name")
    if kind not in KINDS:
        raise InputError(f"its config.json is of {shown(kind)}, and {' or '.join(KINDS)} is expected")
    if config.get("latents_mean") or config.get("latents_std"):
        raise InputError("its latents are scaled channel by channel, which is not known here")
    network = diffusers_models.network_of(getattr(diffusers, kind), found, config).requires_grad_(False).eval()
    made: Any = network.config
    scale = number("scaling_factor", made.scaling_factor if scaling_factor is None else scaling_factor)
    shift = number("shift_factor", (made.get("shift_factor") or 0.0) if shift_factor is None else shift_factor)
    if not scale:
        raise InputError("its scaling_factor is 0")
    return Decoder(network, scale, shift)
