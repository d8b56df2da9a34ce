"""A UNet2DModel of diffusers: a folder as save_pretrained writes it, on the disk or fetched from the Hugging Face hub.

    config.json, diffusion_pytorch_model.safetensors    in FOLDER, or in FOLDER/unet of a pipeline
    scheduler_config.json                               in FOLDER, or in FOLDER/scheduler; without it the table of DDPM is taken

The scheduler's configuration says on which schedule the network was trained and what it predicts (scheduler_config.py). Needs the
optional diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from diffode import schedules
from diffode.errors import InputError, shown
from diffode.models.card import Card
from diffode.networks import sizes
from diffode.reading import read_json, reading
from diffode.schedule import Schedule
from diffode.scheduler_config import TrainedAs, trained_as

WEIGHTS = "diffusion_pytorch_model.safetensors"
FILES = [f"{place}{name}" for place in ("", "unet/", "vqvae/", "vae/") for name in ("config.json", WEIGHTS)]
SCHEDULERS = ["scheduler/scheduler_config.json", "scheduler_config.json"]


class MeanOnly(nn.Module):
    """A UNet2DModel without its learned variances, if any, the second half of its channels (Nichol and Dhariwal, 2021)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x, t).sample[:, : x.shape[1]]


def unet_folder(folder: Path) -> Path:
    """The folder of the network: of a pipeline its `unet`, else the folder itself."""
    return folder / "unet" if (folder / "unet").is_dir() else folder


def fetch(name: str, files: Sequence[str] = (*FILES, *SCHEDULERS), without: Sequence[str] = ()) -> Path:
    """The local folder of NAME of the Hugging Face hub, downloaded unless it is cached; InputError if that fails.

    files, without: which are fetched and which of them are not, as patterns; by default those of a network and its scheduler.
    """
    require("huggingface_hub")
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=[*files], ignore_patterns=[*without]))
    except (OSError, ValueError, RuntimeError) as error:
        why = f"{type(error).__name__}: {shorten(str(error), 160)}"
        raise InputError(
            f"hub:{name} cannot be fetched from the Hugging Face hub ({why}): check the name and the connection, or give "
            "the path of its folder"
        ) from error


def require(package: str = "diffusers") -> None:
    """InputError if the package is not installed."""
    try:
        __import__(package)
    except ImportError as error:
        raise InputError(f"networks of diffusers take {package}, which is not installed: pip install 'diffode[hub]'") from error


def read(folder: Path) -> tuple[nn.Module, Card, Schedule, Path]:
    """The network, its card, its schedule, and the file of its weights.

    InputError for a folder without the weights in safetensors, and for networks of another kind; what diffusers raises of files
    that do not fit each other is left to the caller.
    """
    from diffusers import UNet2DModel

    place = unet_folder(folder)
    config = config_of(place)
    _check_config(folder, config)
    network = MeanOnly(network_of(UNet2DModel, place, config))
    trained = _trained_on(folder)
    schedule = trained["schedule"]
    card = Card(
        "diffusers",
        _image(config),
        schedule=schedule.name,
        schedule_options=dict(schedule.options),
        predicts=trained["predicts"],
        clock=trained["clock"],
        config=config,
        provenance={"folder": folder.name},
    )
    return network, card, schedule, place / WEIGHTS


def _image(config: Mapping[str, Any]) -> tuple[int, ...]:
    """(channels, height, width)."""
    side = config["sample_size"]
    return (config["in_channels"], *(side if isinstance(side, list) else [side, side]))


def network_of(kind: Any, place: Path, config: Mapping[str, Any]) -> nn.Module:
    """The network of a class of diffusers in a folder with its config.json and WEIGHTS.

    InputError for weights that are not there, are fewer than the configuration says, or do not fit; and for what makes diffusers
    read or import more than this one file of weights.
    """
    from diffusers.utils import logging

    file = place / WEIGHTS
    if config.get("quantization_config") or (place / f"{WEIGHTS}.index.json").exists():
        raise InputError(f"{place} holds quantized weights, or several files of them: write one with save_pretrained")
    if not file.is_file():
        raise InputError(
            f"{place} has no {WEIGHTS}, and diffode unpickles no .bin: if you trust it, load it with diffusers and write it "
            "with save_pretrained"
        )
    logging.set_verbosity_error()  # it would print names that stand in the files
    with torch.device("meta"):
        numbers = sum(weight.numel() for weight in kind.from_config(config).parameters())
    if numbers > (size := file.stat().st_size):  # before memory is taken for them
        raise InputError(f"{place} has {size} bytes of weights, and the network of its config.json has {numbers} weights")
    network, loading = kind.from_pretrained(
        place, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True
    )
    if mismatched := [key for keys in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in loading[keys]]:
        raise InputError(f"{file} does not hold the network of its config.json: {mismatched[0]} is in one of them only")
    return network


def config_of(place: Path) -> dict[str, Any]:
    """The config.json of a folder; InputError for one that is no JSON object, or is of an absurdly large network of blocks."""
    config = _json(place / "config.json")
    with reading(place / "config.json", "configuration of diffusers", "what save_pretrained writes"):
        sizes.check((1, 1, 1), (), (), blocks=config.get("layers_per_block", 2))
        for name in ("block_out_channels", "down_block_types", "up_block_types"):
            values = config.get(name, ())
            if not isinstance(values, list | tuple) or len(values) > sizes.MOST_LEVELS:
                raise InputError(f"its {name} is {shown(values)}")
        for width in config.get("block_out_channels", ()):
            sizes.check((1, 1, 1), (), (), width=width)
    return config


def _check_config(folder: Path, config: dict[str, Any]) -> None:
    """InputError for a network that is not a function of x and of a label of a DDPM table alone, or of absurdly large images."""
    kind, time = config.get("_class_name"), config.get("time_embedding_type", "positional")
    if kind != "UNet2DModel" or time != "positional":
        raise InputError(f"{folder} holds a {kind} with a {time} clock: expected is a UNet2DModel with a positional one")
    if config.get("num_class_embeds") or config.get("class_embed_type"):
        raise InputError(f"{folder} holds a network of labelled images, whose labels it does not name: wrap it in an EpsModel")
    if config["out_channels"] not in (config["in_channels"], 2 * config["in_channels"]):
        raise InputError(f"{folder} gives {config['out_channels']} channels for {config['in_channels']}: wrap it in an EpsModel")
    if not config.get("sample_size"):
        raise InputError(f"{folder} does not say the size of its images: add sample_size to its config.json")
    with reading(unet_folder(folder) / "config.json", "configuration of a UNet2DModel", "what save_pretrained writes"):
        sizes.check(_image(config), (), ())


def _trained_on(folder: Path) -> TrainedAs:
    """The schedule, prediction and clock that the folder's scheduler says; those of DDPM if it configures none."""
    file = next((folder / name for name in SCHEDULERS if (folder / name).is_file()), None)
    if file is None:
        return {"schedule": schedules.ddpm_linear(), "predicts": "noise", "clock": "t"}
    try:
        return trained_as(_json(file))
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    """The JSON object of a file; InputError if it holds none."""
    config = read_json(path, "configuration of diffusers", "what save_pretrained writes", infinite=True)
    if not isinstance(config, dict):
        raise InputError(f"{path} holds no JSON object, and is no configuration of diffusers")
    return config
