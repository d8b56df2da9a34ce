"""Checkpoints of score_sde_pytorch (Song et al., 2021b): DDPM++ and NCSN++ trained on continuous time, as tensors and a card.

A checkpoint of training holds the weights, in the order in which its network runs, and their moving averages, which are taken. Of
the network it says nothing but shapes. What follows from them, as in all published configurations:

    embedding    frequencies in the file: the VE SDE, from σ_max to σ_min of its `sigmas`; none: the VP SDE, t times 999
    image        attention is at 16 × 16 alone, which gives the resolution
    filters      (1, 3, 3, 1) where images or states go down beside the blocks (NCSN++), else (1, 1) (DDPM++)

The VE networks see data in [0, 1] as 2x − 1 and divide by σ. In [−1, 1] that is `ve` of networks/edm_unet.py with twice the σ.
What nothing in a file tells: the sub-VP SDE has the network of VP and another path, and networks that were trained on whole
labels look like those of continuous time. Both are read as the latter's, which is wrong for sub-VP and for VE of labels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffode import schedules
from diffode.errors import InputError, shown
from diffode.models import torch_files
from diffode.models.card import Card
from diffode.networks.edm_layers import Resample
from diffode.networks.edm_unet import Block, EDMUNet, EDMUNetConfig
from diffode.reading import reading

WHAT, EXPECTED = "checkpoint of score_sde_pytorch", "a .pth with the model and its ema, of ddpmpp or ncsnpp trained continuously"
ATTENDS = 16  # the resolution at which all published networks attend
KINDS = {  # of a module of the network, by parameters that it alone has
    "W": "fourier",
    "NIN_3.W": "attention",
    "Dense_0.weight": "block",
    "Conv2d_0.weight": "residual",
    "Conv_0.weight": "skip",
}
PLAIN = {4: "conv", 2: "linear", 1: "norm"}  # of weight and bias, by the dimensions of the weight
LAYERS = {"GroupNorm_0": "norm0", "Conv_0": "conv0", "Dense_0": "affine"}  # of a block, and their names in ours
LAYERS |= {"GroupNorm_1": "norm1", "Conv_1": "conv1", "Conv_2": "skip"}
Module = dict[str, Tensor]


def read(path: Path) -> tuple[dict[str, Tensor], Card]:
    """The averaged weights under our names, and the card; InputError for what torch_files.load refuses, and other networks."""
    with reading(path, WHAT, EXPECTED):
        weights = _averaged(torch_files.load(path))
        config, tensors = mapped(weights)
        schedule, clock = schedules.vp_linear(), "999t"
        if config.ve:
            ends = (float(f"{2 * float(sigma):.6g}") for sigma in weights["sigmas"][[-1, 0]])  # which are float32
            schedule, clock = schedules.edm(*ends), "log_sigma_bar"
        card = Card(
            "edm",
            (config.in_channels, config.img_resolution, config.img_resolution),
            schedule=schedule.name,
            schedule_options=dict(schedule.options),
            predicts="noise",
            clock=clock,
            config=asdict(config),
            provenance={"file": path.name},
        )
        return tensors, card


def mapped(weights: Mapping[str, Tensor]) -> tuple[EDMUNetConfig, dict[str, Tensor]]:
    """The configuration that a state dict of theirs belongs to, and its tensors under our names; InputError if there is none."""
    modules = _modules({name: tensor for name, tensor in weights.items() if name != "sigmas"})
    try:
        config = _config(modules)
        return config, _renamed(config, iter(modules))
    except (StopIteration, LookupError, AttributeError) as error:
        raise InputError("its modules are not in the order, or of the shapes, of ddpmpp and ncsnpp") from error


def _averaged(held: Any) -> dict[str, Tensor]:
    """The state dict of a checkpoint, its parameters replaced by their averages, which are a list in the same order."""
    match held:
        case {"model": dict() as model, "ema": {"shadow_params": list() as averages}}:
            named = all(isinstance(name, str) for name in model)
        case _:
            named = False
    if not named or not all(isinstance(one, Tensor) for one in [*model.values(), *averages]):
        raise InputError("it has no dict `model` of tensors, or no list `ema.shadow_params` of their averages")
    weights = {name.removeprefix("module."): tensor for name, tensor in model.items()}
    trained = [name for name, tensor in weights.items() if name != "sigmas" and not (name.endswith(".W") and tensor.ndim == 1)]
    if len(averages) != len(trained) or any(
        weights[name].shape != each.shape for name, each in zip(trained, averages, strict=True)
    ):
        raise InputError(f"its {len(averages)} averages are not those of its {len(trained)} parameters")
    return {**weights, **dict(zip(trained, averages, strict=True))}


def _modules(weights: Mapping[str, Tensor]) -> list[tuple[str, Module]]:
    """The modules in the order in which the network runs, each with its kind."""
    modules: dict[int, Module] = {}
    for name, tensor in weights.items():
        found = re.fullmatch(r"all_modules\.([0-9]{1,4})\.(.+)", name)
        if not found:
            raise InputError(f"its network has {shown(name)}, which ddpmpp and ncsnpp do not")
        modules.setdefault(int(found[1]), {})[found[2]] = tensor
    return [(_kind(module), module) for _, module in sorted(modules.items())]


def _kind(module: Module) -> str:
    for parameter, kind in KINDS.items():
        if parameter in module:
            return kind
    if "weight" not in module or module["weight"].ndim not in PLAIN:
        raise InputError(f"a module of its network has {shown([*module])}, as none of ddpmpp and ncsnpp")
    return PLAIN[module["weight"].ndim]


def _config(modules: list[tuple[str, Module]]) -> EDMUNetConfig:
    """The configuration of a network from the shapes of its modules."""
    kinds = [kind for kind, _ in modules]
    stem = next((module["weight"] for kind, module in modules if kind == "conv"), None)
    if stem is None:
        raise InputError("its network has no convolutions")
    blocks = [i for i, kind in enumerate(kinds) if kind == "block"]
    halves = [i for i in blocks if "Conv_2.weight" in modules[i][1] and _widths(modules[i][1])[0] == _widths(modules[i][1])[1]]
    levels = 1 + len(halves) // 2  # as many go down as up
    per_level = (len(blocks) - 3 * levels) // (2 * levels)  # levels (2 n + 1) + 2 (levels - 1) + 2 in all
    first = blocks[: levels * (per_level + 1) : per_level + 1]  # of each level on the way down
    attends = [level for level, i in enumerate(first) if kinds[i + 1] == "attention"]
    if len(first) != levels or len(attends) != 1 or per_level < 1:
        raise InputError(f"its {len(blocks)} blocks and attention at {len(attends)} levels are not of ddpmpp or ncsnpp")
    encoder = next((kind for kind in kinds if kind in ("skip", "residual")), "standard")
    fourier = "fourier" in kinds
    return EDMUNetConfig(
        img_resolution=ATTENDS << attends[0],
        in_channels=stem.shape[1],
        out_channels=stem.shape[1],
        model_channels=len(stem),
        channel_mult=tuple(_widths(modules[i][1])[1] // len(stem) for i in first),
        channel_mult_noise=2 if fourier else 1,
        num_blocks=per_level,
        attn_resolutions=(ATTENDS,),
        embedding_type="fourier" if fourier else "positional",
        encoder_type=encoder,
        decoder_type="skip" if kinds.count("norm") == levels > 1 else "standard",
        resample_filter=(1, 1) if encoder == "standard" else (1, 3, 3, 1),
        ve=fourier,
    )


def _widths(block: Module) -> tuple[int, int]:
    after, before = block["Conv_0.weight"].shape[:2]
    return before, after


def _renamed(config: EDMUNetConfig, modules: Iterator[tuple[str, Module]]) -> dict[str, Tensor]:
    """The weights under our names: both networks run their modules in the same order."""
    with torch.device("meta"):
        network = EDMUNet(config)
    found = {"map_noise.freqs": next(modules)[1]["W"]} if config.embedding_type == "fourier" else {}
    named = [(f"map_layer{i}", layer) for i, layer in enumerate((network.map_layer0, network.map_layer1))]
    named += [(f"{part}.{name}", module) for part in ("enc", "dec") for name, module in getattr(network, part).items()]
    for name, ours in named:
        parts = {} if type(ours) is Resample else _parts(next(modules)[1], ours)
        if isinstance(ours, Block) and ours.attends:
            parts |= _attention(next(modules)[1])
        found |= {f"{name}.{parameter}": tensor.contiguous().clone() for parameter, tensor in parts.items()}
        filters = (parameter for parameter in ours.state_dict() if parameter.endswith("resample_filter"))
        found |= {f"{name}.{parameter}": Resample(config.resample_filter, True).resample_filter for parameter in filters}
    if left := len(list(modules)):
        raise InputError(f"its network has {left} modules more than ddpmpp and ncsnpp of its widths")
    return found


def _parts(theirs: Module, ours: nn.Module) -> Module:
    """The weights of a block, or of a single layer whose name in theirs is Conv_0 or Conv2d_0."""
    if not isinstance(ours, Block):
        return {name.split(".")[-1]: tensor for name, tensor in theirs.items()}
    return {
        f"{LAYERS[layer]}.{name}": tensor for (layer, name), tensor in ((key.split("."), value) for key, value in theirs.items())
    }


def _attention(theirs: Module) -> Module:
    """q, k and v are three maps in theirs, and every third channel of one in ours; a map's weight is (in, out)."""
    weight, bias = (torch.stack([theirs[f"NIN_{i}.{name}"] for i in range(3)], -1) for name in ("W", "b"))
    return {
        "norm2.weight": theirs["GroupNorm_0.weight"],
        "norm2.bias": theirs["GroupNorm_0.bias"],
        "qkv.weight": weight.flatten(1).T[:, :, None, None],
        "qkv.bias": bias.flatten(),
        "proj.weight": theirs["NIN_3.W"].T[:, :, None, None],
        "proj.bias": theirs["NIN_3.b"],
    }
