"""Models by name, file or folder: what a card means, as an EpsModel.

    fashion, mixture      what comes with diffode
    FILE.safetensors      a checkpoint of diffode, which holds its own card
    PRESET:FILE           published weights without a card, in safetensors: the preset is their card (PRESETS)
    FOLDER, hub:NAME      a UNet2DModel of diffusers and its scheduler's configuration, on the disk or from the Hugging Face hub;
                          PRESET:FOLDER and PRESET:hub:NAME are the same, and see that its images are of the preset's size
    MODULE:NAME           an EpsModel of one's own: NAME in MODULE.py of the working directory, or in any module that Python finds

A network of the last but one was trained on the labels of a DDPM table; its clock is t, fractional between two labels, since its
sinusoids are. What it learned of variances, if it did, is cut off. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import safetensors
import torch
from torch import Tensor, nn

from diffode import schedule
from diffode.errors import InputError, in_words
from diffode.files import ASSETS
from diffode.mixture import Mixture
from diffode.model import EpsModel
from diffode.models import checkpoint, diffusers_models, user_modules
from diffode.networks.ddpm_unet import DDPMUNet, DDPMUNetConfig
from diffode.networks.unet import UNet, UNetConfig
from diffode.schedule import Schedule

WEIGHTS = ASSETS / "weights"
PICKLED = (".ckpt", ".pt", ".pth", ".bin")
CONVERT = (
    'import sys, torch, safetensors.torch as s; w = torch.load(sys.argv[1], "cpu", weights_only=True); '
    "w = w[-1] if isinstance(w, list) else w; s.save_file({k: v.contiguous() for k, v in w.items()}, sys.argv[2])"
)  # a list is a checkpoint of the ddim repository's training, which ends with the averaged weights


@dataclass(frozen=True)
class Pretrained:
    """A model, the shape of its samples (of images: channels, height, width), the names of its labels, its card, and the SHA-256
    of its file, or of all that a model of one's own is known by (user_modules.digest)."""

    model: EpsModel
    image: tuple[int, ...]
    classes: tuple[str, ...]
    card: checkpoint.Card
    sha256: str


@dataclass(frozen=True)
class Preset:
    """What published weights of the DDPM authors' U-Net do not say; table: their column in Table 1 of the DDIM paper, if any."""

    config: DDPMUNetConfig
    table: str | None = None
    schedule: Schedule = field(default_factory=schedule.ddpm_linear)

    @property
    def image(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.config.image

    @property
    def card(self) -> checkpoint.Card:
        """The card that the file lacks."""
        return {
            "kind": "ddpm-unet",
            "config": checkpoint.as_json(asdict(self.config)),
            "image": list(self.image),
            "classes": [],
            "schedule": {"name": self.schedule.name, "options": dict(self.schedule.options)},
            "predicts": "noise",
            "clock": "t",
        }


LSUN = DDPMUNetConfig(resolution=256, ch_mult=(1, 1, 2, 2, 4, 4), dropout=0.0)
PRESETS = {  # configs/*.yml of github.com/ermongroup/ddim
    "cifar10": Preset(DDPMUNetConfig(), "CIFAR-10"),
    "celeba": Preset(DDPMUNetConfig(resolution=64, ch_mult=(1, 2, 2, 2, 4)), "CelebA"),
    "bedroom": Preset(LSUN),
    "church": Preset(LSUN),
}


def names() -> list[str]:
    """The models that come with diffode."""
    twins = (path.with_suffix(".json") for path in WEIGHTS.glob("*.safetensors"))
    return sorted(path.stem for path in twins if json.loads(path.read_text(encoding="utf-8"))["kind"] in NETWORKS)


def load(name: str | Path, dtype: torch.dtype = torch.float32) -> Pretrained:
    """The model of that name, file or folder (see the module docstring), on the CPU, its weights in `dtype` (float32 or float64).

    InputError for an unknown name, for files that are corrupt, foreign, pickled, or do not fit their own card, and for a module
    that fails or holds no such model.
    """
    shipped, path = WEIGHTS / f"{name}.safetensors", Path(name)
    kind, _, rest = str(name).partition(":")
    if kind.endswith(".py"):
        return _own(f"{kind}:{rest or 'model'}", dtype)  # which says how it is typed
    if shipped.is_file() or path.is_file():
        return _checkpoint(shipped if shipped.is_file() else path, dtype)
    if kind in PRESETS and rest and (Path(rest).is_dir() or rest.startswith("hub:")):
        return _of_size(PRESETS[kind].image, rest, dtype)
    if kind in PRESETS and rest:
        return _published(kind, Path(rest), dtype)
    if kind == "hub" and rest:
        return _diffusers(diffusers_models.fetch(rest), dtype)
    if (diffusers_models.unet_of(path) / "config.json").is_file():
        return _diffusers(path, dtype)
    if rest.isidentifier():
        return _own(str(name), dtype)
    raise InputError(
        f"no model {str(name)!r}: known are {', '.join(names())}, any checkpoint file (.safetensors) of diffode, PRESET:FILE "
        f"with a preset for published weights ({', '.join(PRESETS)}), a folder with a UNet2DModel of diffusers, hub:NAME, and "
        "MODULE:NAME for an EpsModel of your own"
    )


def _checkpoint(path: Path, dtype: torch.dtype) -> Pretrained:
    """A checkpoint of diffode."""
    _refuse_pickle(path)
    tensors, card = checkpoint.read(path)
    if card["kind"] not in NETWORKS:
        raise InputError(f"{path} holds a {card['kind']!r}, which cannot be sampled from; expected {' or '.join(NETWORKS)}")
    return _of_card(tensors, card, path, dtype)


def _published(name: str, path: Path, dtype: torch.dtype) -> Pretrained:
    """Weights without a card, whose keys may begin with the `module.` of DataParallel; InputError for the first that does not fit
    the preset."""
    _refuse_pickle(path)
    tensors = {key.removeprefix("module."): tensor for key, tensor in checkpoint.tensors_of(path)[0].items()}
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    with torch.device("meta"):
        expected = {key: tuple(tensor.shape) for key, tensor in DDPMUNet(PRESETS[name].config).state_dict().items()}
    for key in [*expected, *found]:
        if found.get(key) != expected.get(key):
            raise InputError(
                f"{path} is not the network of the preset {name}: {key} is {found.get(key, 'absent')} in the file and "
                f"{expected.get(key, 'absent')} in the network; known presets are {', '.join(PRESETS)}"
            )
    return _of_card(tensors, {**PRESETS[name].card, "preset": name, "file": path.name}, path, dtype)


def _of_size(image: tuple[int, int, int], name: str, dtype: torch.dtype) -> Pretrained:
    """A network of diffusers in the place of a preset's; InputError if its images are of another size."""
    loaded = load(name, dtype)
    if loaded.image != image:
        raise InputError(f"{name} makes images of {loaded.image}, where the preset has {image}")
    return loaded


def _diffusers(folder: Path, dtype: torch.dtype) -> Pretrained:
    diffusers_models.require()
    with _fitting(folder, "configuration"):
        network, noise_schedule, card, file = diffusers_models.read(folder)
        return _tried(network, noise_schedule, {**card, "folder": folder.name}, file, dtype)


def _refuse_pickle(path: Path) -> None:
    if path.suffix in PICKLED and path.is_file():
        command = shlex.join(["python", "-c", CONVERT, str(path), str(path.with_suffix(".safetensors"))])
        raise InputError(f"{path} is pickled, and diffode never unpickles: convert it, if you trust it, with {command}")


def _of_card(tensors: dict[str, Tensor], card: checkpoint.Card, path: Path, dtype: torch.dtype) -> Pretrained:
    with _fitting(path, "card"):
        noise_schedule = schedule.make(card["schedule"]["name"], **card["schedule"]["options"])
        network = NETWORKS[card["kind"]](tensors, card, noise_schedule, dtype)
        return _tried(network, noise_schedule, card, path, dtype)


@contextmanager
def _fitting(path: Path, card: str) -> Iterator[None]:
    """Turn what goes wrong where files do not fit each other into an InputError."""
    wrong = KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError, OSError, safetensors.SafetensorError
    try:
        yield
    except wrong as error:
        if isinstance(error, InputError) and str(error).startswith(str(path)):
            raise  # it says which file it is of
        why = in_words(error)
        raise InputError(f"{path} does not hold what its {card} says ({why}): it is incomplete, or of another version") from error


def _tried(network: nn.Module, noise_schedule: Schedule, card: checkpoint.Card, path: Path, dtype: torch.dtype) -> Pretrained:
    """The model of a network, evaluated once to see that shapes and labels fit; path: the file of its weights."""
    classes, image = tuple(card["classes"]), tuple(card["image"])
    if len(image) != 3 or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"image {image}, classes {classes}")
    network = network.to(dtype).requires_grad_(False).eval()
    model = EpsModel(network, noise_schedule, card["predicts"], clock=card["clock"], classes=len(classes), shape=image)
    _evaluate(model, image, dtype)
    with open(path, "rb") as file:
        return Pretrained(model, image, classes, card, hashlib.file_digest(file, "sha256").hexdigest())


def _evaluate(model: EpsModel, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Evaluate a model once, at the clean end, with its last label if it knows any."""
    whole = model.labelled([model.classes - 1]) if model.classes else model.conditioned()
    whole(torch.zeros(1, *shape, dtype=dtype), model.schedule.lam_max, model.predicts)


def _own(name: str, dtype: torch.dtype) -> Pretrained:
    """MODULE:NAME."""
    model, card, digest = user_modules.read(name, dtype)
    image = tuple(card["image"])
    try:
        _evaluate(model, image, dtype)
    except Exception as error:
        call = f"network(x, {model.clock}{', y=label' * bool(model.classes)})"
        what = f"{call} with x of shape {(1, *image)} in {str(dtype).removeprefix('torch.')}"
        raise InputError(f"{name} fails as {what}: {in_words(error)}") from error
    return Pretrained(model, image, tuple(card["classes"]), card, digest)


def _unet(tensors: dict[str, Tensor], card: checkpoint.Card, noise_schedule: Schedule, dtype: torch.dtype) -> nn.Module:
    network = UNet(UNetConfig(**card["config"]))
    network.load_state_dict(tensors)
    return network


def _ddpm_unet(tensors: dict[str, Tensor], card: checkpoint.Card, noise_schedule: Schedule, dtype: torch.dtype) -> nn.Module:
    with torch.device("meta"):
        network = DDPMUNet(DDPMUNetConfig(**card["config"]))
    network.load_state_dict(tensors, assign=True)
    return network


def _mixture(tensors: dict[str, Tensor], card: checkpoint.Card, noise_schedule: Schedule, dtype: torch.dtype) -> nn.Module:
    return Mixture(tensors, card["image"], noise_schedule.path.name, dtype)


NETWORKS = {"unet": _unet, "mixture": _mixture, "ddpm-unet": _ddpm_unet}
