"""Models by name or by file: what a checkpoint's card means, as an EpsModel."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from diffode import checkpoint, schedule
from diffode.errors import InputError
from diffode.mixture import Mixture
from diffode.model import EpsModel
from diffode.schedule import Schedule
from diffode.unet import UNet, UNetConfig

WEIGHTS = Path(__file__).with_name("weights")


@dataclass(frozen=True)
class Pretrained:
    """A model, the shape of its images (channels, height, width), the names of its labels, its card and its file's SHA-256."""

    model: EpsModel
    image: tuple[int, int, int]
    classes: tuple[str, ...]
    card: checkpoint.Card
    sha256: str


def names() -> list[str]:
    """The models that come with diffode."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def load(name: str | Path, dtype: torch.dtype = torch.float32) -> Pretrained:
    """The model of a shipped name or of a checkpoint file, on the CPU, its weights in `dtype` (float32 or float64).

    InputError for an unknown name and for a file that is corrupt, foreign, or does not fit its own card.
    """
    path = WEIGHTS / f"{name}.safetensors"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        raise InputError(
            f"no model {str(name)!r}: known are {', '.join(names())}, and any checkpoint file (.safetensors) of diffode"
        )
    tensors, card = checkpoint.read(path)
    if card["kind"] not in NETWORKS:
        raise InputError(f"{path} holds a {card['kind']!r}, which cannot be sampled from; expected {' or '.join(NETWORKS)}")
    try:
        noise_schedule = schedule.make(card["schedule"]["name"], **card["schedule"]["options"])
        network = NETWORKS[card["kind"]](tensors, card, noise_schedule, dtype)
        classes, image = tuple(card["classes"]), tuple(card["image"])
        if len(image) != 3 or not all(isinstance(name, str) for name in classes):
            raise ValueError(f"image {image}, classes {classes}")
        model = EpsModel(network, noise_schedule, card["predicts"], clock=card["clock"], classes=len(classes))
        whole = model.labelled([len(classes) - 1]) if classes else model
        whole(torch.zeros(1, *image, dtype=dtype), noise_schedule.lam_max)  # that the shapes and the labels fit
    except (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        why = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        raise InputError(f"{path} does not hold what its card says ({why}): it is incomplete, or of another version") from error
    return Pretrained(model, image, classes, card, hashlib.sha256(path.read_bytes()).hexdigest())


def _unet(tensors: dict[str, Tensor], card: checkpoint.Card, noise_schedule: Schedule, dtype: torch.dtype) -> nn.Module:
    network = UNet(UNetConfig(**card["config"]))
    network.load_state_dict(tensors)
    return network.to(dtype).requires_grad_(False)


def _mixture(tensors: dict[str, Tensor], card: checkpoint.Card, noise_schedule: Schedule, dtype: torch.dtype) -> nn.Module:
    return Mixture(tensors, card["image"], noise_schedule.path.name, dtype)


NETWORKS = {"unet": _unet, "mixture": _mixture}
