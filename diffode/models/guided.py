"""Weights of OpenAI's U-Nets: guided-diffusion (ADM), improved-diffusion, and the EDM models of consistency_models.

`read` finds the network in the shapes of its weights: channels, levels, blocks, attention, labels, learned variances. What these
do not say (the size of the images, the heads, the table of β) is that of the published network with the same multipliers of its
channels and the same kind of resampling, so the name of the file does not matter:

    multipliers             resampling    images    heads        schedule
    1, 2, 3, 4              in blocks     64        of 64        squared cosine, 1000 labels          ADM
    1, 1, 2, 3, 4           in blocks     128       4            linear
    1, 1, 2, 2, 4, 4        in blocks     256       of 64        linear                               also LSUN
    1/2, 1, 1, 2, 2, 4, 4   in blocks     512       of 64        linear
    1, 2, 2, 2              by conv       32        4            squared cosine, 4000 labels          improved-diffusion
    1, 2, 3, 4              by conv       64        4            squared cosine, 4000 labels
    1, 1, 2, 2, 4, 4        by conv       256       1            linear

Of 4000 labels a network without classes sees t/4, as it was trained (`rescale_timesteps`), and that of labelled images t itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffode.errors import InputError, shown
from diffode.models import checkpoint, torch_files
from diffode.models.card import Card
from diffode.networks.adm import ADMConfig
from diffode.networks.adm_classifier import ADMClassifier
from diffode.reading import reading

Options = Mapping[str, Any]
LINEAR: tuple[str, Options] = "ddpm_linear", {}  # schedules by name and options
COSINE: tuple[str, Options] = "squared_cosine", {"steps": 1000}
COSINE_4000: tuple[str, Options] = "squared_cosine", {"steps": 4000}


@dataclass(frozen=True)
class Published:
    """What the shapes do not say. side: of the images; heads: see ADMConfig."""

    side: int
    schedule: tuple[str, Options]
    heads: Options


OF_64, FOUR, ONE = {"head_channels": 64}, {"head_channels": 0, "heads": 4}, {"head_channels": 0, "heads": 1}
PUBLISHED: dict[tuple[bool, tuple[float, ...]], Published] = {  # by whether blocks resample, and multipliers
    (True, (1, 2, 3, 4)): Published(64, COSINE, OF_64 | {"qkv_first": True}),
    (True, (1, 1, 2, 3, 4)): Published(128, LINEAR, FOUR),
    (True, (1, 1, 2, 2, 4, 4)): Published(256, LINEAR, OF_64),
    (True, (0.5, 1, 1, 2, 2, 4, 4)): Published(512, LINEAR, OF_64),
    (False, (1, 2, 2, 2)): Published(32, COSINE_4000, FOUR),
    (False, (1, 2, 3, 4)): Published(64, COSINE_4000, FOUR),
    (False, (1, 1, 2, 2, 4, 4)): Published(256, LINEAR, ONE),
}


def read(path: Path) -> tuple[dict[str, Tensor], Card]:
    """The weights of a file and their card; InputError for what torch_files.state_dict refuses, and for another network."""
    tensors, config, published = _read(path, "guided-diffusion or improved-diffusion")
    if not config.learned_variance:
        raise InputError(
            f"{path} holds a U-Net without learned variances, which guided-diffusion published none of: one of EDM's kind is "
            f"openai-edm:{path}, and for one of your own make an EpsModel of networks.adm.ADM"
        )
    if published.schedule is COSINE_4000 and not config.classes:
        config = replace(config, clock_scale=0.25)
    name, options = published.schedule
    return tensors, _card(path, config, schedule=name, schedule_options=options, predicts="noise", clock="t")


def read_edm(path: Path) -> tuple[dict[str, Tensor], Card]:
    """The weights and card of an EDM model of consistency_models (Song et al., 2023): ADM with EDM's preconditioning, whose heads
    are of 64 channels, and which sees 1000 c_noise. A consistency model has the same shapes, and is no such model."""
    tensors, config, _ = _read(path, "consistency_models")
    if config.learned_variance:
        raise InputError(f"{path} holds a U-Net of learned variances, which is none of EDM's kind: give guided:{path}")
    config = replace(config, head_channels=64, qkv_first=True, clock_scale=1000.0)
    return tensors, _card(path, config, schedule="edm", predicts="edm", clock="c_noise")


def read_classifier(path: str | Path, dtype: torch.dtype = torch.float32) -> ADMClassifier:
    """The classifier of guided-diffusion in a file, for EpsModel.steered: a module log_p(x, t, y).

        model = pretrained.load("guided:64x64_diffusion.pt").model.labelled(y)
        model = model.steered(guided.read_classifier("64x64_classifier.pt"), 1.0, y=y)

    InputError for what torch_files.state_dict refuses, and for another network.
    """
    path = Path(path)
    tensors, config, _ = _read(path, "guided-diffusion's classifiers")
    with reading(path, "classifier", "one of guided-diffusion"):
        network = checkpoint.filled(ADMClassifier, replace(config, head_channels=64, qkv_first=False), tensors)
        return network.to(dtype).requires_grad_(False).eval()


def _card(path: Path, config: ADMConfig, **trained: Any) -> Card:
    changed = {"learned_variance": True} if config.learned_variance else {}
    classes = tuple(map(str, range(config.classes)))
    provenance = {"file": path.name}
    return Card("adm", config.image, classes, config=asdict(config), provenance=provenance, changed=changed, **trained)


def _read(path: Path, source: str) -> tuple[dict[str, Tensor], ADMConfig, Published]:
    """The weights, the configuration that they have, and what was published of it."""
    tensors = torch_files.state_dict(path)
    with reading(path, f"file of {source}", "the weights of a published U-Net (docs/networks.md)"):
        config, published = config_of(torch_files.shapes_of(tensors))
    flat = (".qkv.weight", ".proj_out.weight")  # convolutions of two dimensions in consistency_models, of one elsewhere
    wide = [name for name, one in tensors.items() if name.endswith(flat) and one.ndim == 4]
    return tensors | {name: tensors[name][..., 0] for name in wide}, config, published


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> tuple[ADMConfig, Published]:
    """The configuration of the weights of a U-Net or classifier, by names and shapes, and what was published of it.

    InputError if no published network has its channels, or a weight is of another kind.
    """
    for name, sides in {"time_embed.0.weight": 2, "input_blocks.0.0.weight": 4}.items():
        if len(shapes[name]) != sides:
            raise InputError(f"its {name} has the shape {shown(shapes[name])}, where {sides} sides are expected")
    width, stem = shapes["time_embed.0.weight"][1], shapes["input_blocks.0.0.weight"]
    if stem[1] != 3:
        raise InputError(f"it takes images of {stem[1]} channels: networks that enlarge images are not read")
    count = len({name.split(".")[1] for name in shapes if name.startswith("input_blocks.")})
    names = [f"input_blocks.{n}.0" for n in range(1, count)]
    channels = [stem[0], *((shapes.get(f"{name}.op.weight") or shapes[f"{name}.in_layers.2.weight"])[0] for name in names)]
    resampling = not any(f"{name}.op.weight" in shapes for name in names)
    found = [
        (published, widths, count // len(widths) - 1)
        for (in_blocks, multipliers), published in PUBLISHED.items()
        if in_blocks == resampling
        and _channels(widths := tuple(int(width * one) for one in multipliers), count // len(widths) - 1) == channels
    ]
    if not found:
        raise InputError(f"no published U-Net has channels like these on its way down: {shown(channels, 120)}")
    ((published, widths, blocks),) = found
    attends = [f"input_blocks.{1 + level * (blocks + 1)}.1.qkv.weight" in shapes for level in range(len(widths))]
    return ADMConfig(
        (3, published.side, published.side),
        *(width, widths, blocks, tuple(published.side // 2**level for level, yes in enumerate(attends) if yes)),
        classes=shapes.get("label_emb.weight", shapes.get("out.2.c_proj.weight", (0,)))[0],
        learned_variance=shapes.get("out.2.weight", (0,))[0] == 6,
        scale_shift=shapes["input_blocks.1.0.emb_layers.1.weight"][0] == 2 * widths[0],
        resample_blocks=resampling,
        **published.heads,
    ), published


def _channels(widths: Sequence[int], blocks: int) -> list[int]:
    """Of all states on the way down."""
    found = [widths[0]]
    for level, width in enumerate(widths):
        found += [widths[level - 1]] * bool(level) + [width] * blocks
    return found
