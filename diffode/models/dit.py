"""Weights of DiT (Peebles and Xie, 2023) and SiT (Ma et al., 2024), whose shapes say all but their heads.

Heads are of 64 channels but in XL, of 1152, where they are of 72. Both work on latents of 4 channels and an eighth of the size of
the image: decoders.autoencoder makes images of them. The label `classes` means none.

    dit    noise, on the linear table of 1000 labels
    sit    x0 − ε at t from 0, noise, to 1, data: α = t, σ = 1 − t. λ is infinite at both ends, so that the clock begins at 0.001
           and ends at 0.999 (schedules.flow); the published sampler goes from 0 to 1
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from diffode.errors import InputError, shown
from diffode.models import torch_files
from diffode.models.card import Card
from diffode.networks.dit import DiTConfig
from diffode.reading import reading

HEADS = {1152: 16}  # of a width; of any other as many as there are 64 channels


def read_dit(path: Path) -> tuple[dict[str, Tensor], Card]:
    """The weights of DiT in a file and their card; InputError for what torch_files.state_dict refuses and for another network."""
    return _read(path, "DiT", schedule="ddpm_linear", predicts="noise", clock="t")


def read_sit(path: Path) -> tuple[dict[str, Tensor], Card]:
    """The weights of SiT in a file, and their card; InputError as `read_dit`."""
    return _read(path, "SiT", schedule="flow", schedule_options={"reverse": True}, predicts="reverse-flow", clock="t")


def _read(path: Path, name: str, **trained: Any) -> tuple[dict[str, Tensor], Card]:
    tensors = torch_files.state_dict(path)
    with reading(path, f"file of {name}", "the weights of its transformer (docs/networks.md)"):
        config = config_of(torch_files.shapes_of(tensors))
    changed: dict[str, Any] = {"null_label": config.classes}
    changed |= {"learned_variance": True} if config.learned_variance else {}
    classes = tuple(map(str, range(config.classes)))
    return tensors, Card(
        "dit", config.image, classes, config=asdict(config), provenance={"file": path.name}, changed=changed, **trained
    )


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> DiTConfig:
    """The configuration of weights by their names and shapes; InputError where one is of another kind.

    Published tables of labels have a row more than a round number of classes, for none.
    """
    for name, sides in {
        "x_embedder.proj.weight": 4,
        "pos_embed": 3,
        "y_embedder.embedding_table.weight": 2,
        "final_layer.linear.weight": 2,
    }.items():
        shape = shapes[name]
        if len(shape) != sides or min(shape) < 1:
            raise InputError(f"its {name} has the shape {shown(shape)}, where {sides} sides of at least 1 are expected")
    width, channels, patch, _ = shapes["x_embedder.proj.weight"]
    tokens, labels = shapes["pos_embed"][1], shapes["y_embedder.embedding_table.weight"][0]
    numbers = shapes["final_layer.linear.weight"][0] // patch**2
    depth = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
    if not depth or labels < 2:
        raise InputError(f"it has {depth} `blocks.` and {labels} labels, one of which is for none: both are needed")
    if width % 64 and width not in HEADS:
        raise InputError(f"its width of {width} is no whole number of heads of 64")
    if numbers not in (channels, 2 * channels):
        raise InputError(f"it gives {numbers} channels for {channels}")
    side = math.isqrt(tokens) * patch
    return DiTConfig(
        image=(channels, side, side),
        patch=patch,
        width=width,
        depth=depth,
        heads=HEADS.get(width, width // 64),
        classes=labels - 1,
        learned_variance=numbers == 2 * channels,
    )
