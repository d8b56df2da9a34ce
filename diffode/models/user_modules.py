"""An EpsModel of one's own: `NAME = EpsModel(network, schedule, predicts, shape=...)` in MODULE.py, asked for as MODULE:NAME."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from diffode.errors import InputError, in_words
from diffode.model import EpsModel
from diffode.models.checkpoint import Card
from diffode.models.importing import imported

HOW = "EpsModel(network, schedule, predicts, shape=(channels, height, width))"


def read(name: str, dtype: torch.dtype) -> tuple[EpsModel, Card, str]:
    """The model with a copy of its network, if that is a torch module, on the CPU and in that dtype; its card, and its digest.

    Any other network is called as it is, with states of that dtype. InputError for what cannot be imported or copied, is no
    EpsModel, does not say its shape, or has been told already what commands tell it.
    """
    module, model = imported(name, EpsModel, HOW)
    if model.shape is None:
        raise InputError(f"{name} does not say what it makes: give its EpsModel shape=(channels, height, width)")
    if model.condition or model.guidance or model.hooks or model.watches or model.autocast:
        raise InputError(
            f"{name} has been conditioned, guided, clipped, watched or autocast: give the {HOW} alone, and leave these to the "
            "command, or to the network"
        )
    try:
        known_by, network = digest(module, model), model.network
        if isinstance(network, nn.Module):
            network = copy.deepcopy(network).to("cpu", dtype).requires_grad_(False).eval()
    except Exception as error:
        raise InputError(f"the network of {name} cannot be copied: {in_words(error)}") from error
    card = {
        "kind": "module",
        "name": name,
        "image": list(model.shape),
        "classes": [str(label) for label in range(model.classes)],
        "schedule": {"name": model.schedule.name, "options": dict(model.schedule.options)},
        "predicts": model.predicts,
        "clock": model.clock,
    }
    return model._with(network=network), card, known_by


def digest(module: ModuleType, model: EpsModel) -> str:
    """The SHA-256 of what the model says of itself, of the module's file, and of the weights and buffers of the network and of
    all torch modules that have a name in the module, for a network may be a function that calls them."""
    s = model.schedule
    said = model.predicts, model.clock, model.classes, model.shape, s.name, s.options, s.path.name, s.lam_min, s.lam_max
    found = hashlib.sha256(repr(said).encode())
    found.update(b"" if s.knots is None else s.knots.tobytes())
    file = Path(getattr(module, "__file__", None) or "")  # __main__ may have none
    found.update(file.read_bytes() if file.is_file() else b"")
    for network in dict.fromkeys(value for value in (model.network, *vars(module).values()) if isinstance(value, nn.Module)):
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
