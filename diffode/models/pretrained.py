"""Models by name, file or folder: `load` gives the network, its weights and its card as one EpsModel.

    fashion, mixture      what comes with diffode
    FILE.safetensors      a checkpoint of diffode, which holds its own card (checkpoint.py)
    PRESET:FILE           published weights without a card: the preset is their card (presets.py)
    FORMAT:FILE           weights of other projects in their own files, as edm:FILE (formats.py)
    FOLDER, hub:NAME      a UNet2DModel of diffusers and its scheduler's configuration, on the disk or from the Hugging Face hub;
                          of a pipeline in latents, as LDMPipeline, with its autoencoder as `decode`;
                          PRESET:FOLDER and PRESET:hub:NAME are the same, and see that its images are of the preset's size
                          (diffusers_models.py)
    MODULE:NAME           a user's EpsModel: NAME in MODULE.py of the working directory, or in any module that Python finds
                          (user_modules.py)

Each of these modules reads a place into tensors (or a network) and a Card; `_assembled` makes the network, and `_evaluated` the
EpsModel, which it evaluates once. A network of diffusers was trained on the labels of a DDPM table; its clock is t, fractional
between two labels, since its sinusoids are. Variances that it may have learned are cut off. Nothing in a file is run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from diffode import clocks
from diffode.errors import InputError, in_words, one_line, shown
from diffode.files import ASSETS
from diffode.mixture import Mixture
from diffode.model import EpsModel
from diffode.models import checkpoint, decoders, diffusers_models, presets, user_modules
from diffode.models.card import Card
from diffode.models.formats import FORMATS
from diffode.models.presets import PRESETS
from diffode.models.turns import in_turn
from diffode.networks.adm import ADM, ADMConfig
from diffode.networks.ddpm_unet import DDPMUNet, DDPMUNetConfig
from diffode.networks.dit import DiT, DiTConfig
from diffode.networks.edm2_unet import EDM2UNet, EDM2UNetConfig
from diffode.networks.edm_unet import EDMUNet, EDMUNetConfig
from diffode.networks.unet import UNet, UNetConfig
from diffode.reading import sha256_of
from diffode.schedule import Schedule

WEIGHTS = ASSETS / "weights"
Build = Callable[[dict[str, Tensor], Card, Schedule, torch.dtype], nn.Module]


@dataclass(frozen=True)
class Pretrained:
    """A model, its card, and the SHA-256 of its file, or of all that a user's model is identified by (user_modules.digest)."""

    model: EpsModel
    card: Card
    sha256: str

    @property
    def image(self) -> tuple[int, ...]:
        """The shape of one sample, of images (channels, height, width)."""
        return self.card.image

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the labels, () without."""
        return self.card.classes


def names() -> list[str]:
    """The models that come with diffode."""
    cards = (path.with_suffix(".json") for path in WEIGHTS.glob("*.safetensors"))
    return sorted(path.stem for path in cards if json.loads(path.read_text(encoding="utf-8"))["kind"] in NETWORKS)


def load(name: str | Path, dtype: torch.dtype = torch.float32) -> Pretrained:
    """The model of that name, file or folder (see the module docstring), on the CPU, its weights in `dtype` (float32 or float64).

    InputError for an unknown name, for files that are corrupt, foreign, or do not fit their own card, and for a module
    that fails or holds no such model.
    """
    shipped, path = WEIGHTS / f"{name}.safetensors", Path(name)
    kind, _, rest = str(name).partition(":")
    if kind.endswith(".py"):
        return _user_module(f"{kind}:{rest or 'model'}", dtype)  # which refuses it, and says what to type
    if shipped.is_file() or path.is_file():
        return _checkpoint(shipped if shipped.is_file() else path, dtype)
    if kind in PRESETS and rest and (Path(rest).is_dir() or rest.startswith("hub:")):
        return _of_size(PRESETS[kind].image, rest, dtype)
    if kind in PRESETS and rest:
        return _assembled(*presets.read(kind, Path(rest)), Path(rest), dtype, f"the preset {kind} says")
    if kind in FORMATS and rest and (Path(rest).exists() or not rest.isidentifier()):  # edm:model may be a module of a user
        return _assembled(*FORMATS[kind](Path(rest)), Path(rest), dtype, "its arguments or shapes say")
    if kind == "hub" and rest:
        return _diffusers(diffusers_models.fetch(rest), dtype)
    if (diffusers_models.unet_folder(path) / "config.json").is_file():
        return _diffusers(path, dtype)
    if rest.isidentifier():
        return _user_module(str(name), dtype)
    raise InputError(
        f"no model {shown(str(name))}: known are {', '.join(names())}, any checkpoint file (.safetensors) of diffode, "
        f"PRESET:FILE with a preset for published weights ({', '.join(PRESETS)}), FORMAT:FILE ({', '.join(FORMATS)}), a "
        "folder with a UNet2DModel of diffusers, hub:NAME, and MODULE:NAME for an EpsModel of your own"
    )


def _checkpoint(path: Path, dtype: torch.dtype) -> Pretrained:
    """A checkpoint of diffode."""
    tensors, header = checkpoint.read(path)
    if header["kind"] not in NETWORKS:
        raise InputError(
            f"{path} holds a {shown(header['kind'])}, which cannot be sampled from; expected {' or '.join(NETWORKS)}"
        )
    return _assembled(tensors, Card.from_json(header, path), path, dtype)


def _of_size(image: tuple[int, int, int], name: str, dtype: torch.dtype) -> Pretrained:
    """A network of diffusers in the place of a preset's; InputError if its images are of another size."""
    loaded = load(name, dtype)
    if loaded.image != image:
        raise InputError(f"{name} makes images of {loaded.image}, where the preset has {image}")
    return loaded


def _diffusers(folder: Path, dtype: torch.dtype) -> Pretrained:
    diffusers_models.require()
    with _mismatches_of(folder, "its configuration says"):
        loaded = _evaluated(*diffusers_models.read(folder), dtype)
    if not decoders.of_pipeline(folder):
        return loaded
    return replace(loaded, model=loaded.model.replace(decode=decoders.autoencoder(folder, dtype)))


def _user_module(name: str, dtype: torch.dtype) -> Pretrained:
    """MODULE:NAME."""
    model, card, digest = user_modules.read(name, dtype)
    try:
        _evaluate(model, dtype)
    except Exception as error:
        given = [*model.condition, *[model.label] * bool(model.classes)]
        call = f"network({', '.join(['x', clocks.name_of(model.clock), *(f'{name}=...' for name in given)])})"
        what = f"{call} with x of shape {(1, *card.image)} in {str(dtype).removeprefix('torch.')}"
        raise InputError(f"{name} fails as {what}: {in_words(error)}") from error
    return Pretrained(model, card, digest)


def _assembled(tensors: dict[str, Tensor], card: Card, path: Path, dtype: torch.dtype, said: str = "its card says") -> Pretrained:
    """The model of tensors and their card; path: their file; said: where the card comes from, for messages."""
    with _mismatches_of(path, said):
        schedule = card.make_schedule()
        return _evaluated(NETWORKS[card.kind](tensors, card, schedule, dtype), card, schedule, path, dtype)


def _evaluated(network: nn.Module, card: Card, schedule: Schedule, path: Path, dtype: torch.dtype) -> Pretrained:
    """The model of a network, after one evaluation that shows whether shapes and labels fit; path: the file of its weights."""
    if len(card.image) != 3:
        raise InputError(f"{path}: 'image' of its card is {card.image}, where (channels, height, width) is expected")
    model = card.model(network.to(dtype).requires_grad_(False).eval(), schedule)
    _evaluate(model, dtype)
    return Pretrained(model, card, sha256_of(path))


def _evaluate(model: EpsModel, dtype: torch.dtype) -> None:
    """Evaluate a model once, at the clean end, with its last label if it knows any."""
    conditioned, shape = in_turn(model, [0]), model.shape
    assert shape is not None
    conditioned = conditioned.labelled([model.classes - 1]) if model.classes else conditioned
    conditioned(torch.zeros(1, *shape, dtype=dtype), model.schedule.lam_max, model.predicts)


@contextmanager
def _mismatches_of(path: Path, said: str) -> Iterator[None]:
    """Turn any error that follows where weights and their description do not fit each other into an InputError."""
    errors = KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError, OSError, safetensors.SafetensorError
    try:
        yield
    except errors as error:
        if isinstance(error, InputError) and str(error).startswith(str(path)):
            raise  # it names the file already
        why = one_line(in_words(error), 160)
        raise InputError(f"{path} does not hold what {said} ({why}): it is incomplete, or of another version") from error


def _unet(tensors: dict[str, Tensor], card: Card, schedule: Schedule, dtype: torch.dtype) -> nn.Module:
    copies = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
    return checkpoint.filled(UNet, UNetConfig(**card.network_config()), copies)


def _with_config(kind: Callable[[Any], nn.Module], config: Callable[..., Any]) -> Build:
    """How a network is made that is its configuration and its weights."""

    def build(tensors: dict[str, Tensor], card: Card, schedule: Schedule, dtype: torch.dtype) -> nn.Module:
        return checkpoint.filled(kind, config(**card.network_config()), tensors)

    return build


def _mixture(tensors: dict[str, Tensor], card: Card, schedule: Schedule, dtype: torch.dtype) -> nn.Module:
    if math.prod(card.image) != tensors["mean"].shape[1]:
        raise InputError(f"its components have {tensors['mean'].shape[1]} pixels, and images {card.image} another number")
    return Mixture(tensors, card.image, schedule.path.name, dtype)


NETWORKS: dict[str, Build] = {
    "unet": _unet,
    "mixture": _mixture,
    "ddpm-unet": _with_config(DDPMUNet, DDPMUNetConfig),
    "edm": _with_config(EDMUNet, EDMUNetConfig),
    "adm": _with_config(ADM, ADMConfig),
    "dit": _with_config(DiT, DiTConfig),
    "edm2": _with_config(EDM2UNet, EDM2UNetConfig),
}
