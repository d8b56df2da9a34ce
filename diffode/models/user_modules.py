"""A user's EpsModel: `NAME = EpsModel(network, schedule, predicts, shape=...)` in MODULE.py, given as MODULE:NAME."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from diffode import clocks
from diffode.errors import InputError, in_words
from diffode.importing import import_object
from diffode.model import EpsModel
from diffode.models import turns
from diffode.models.card import Card
from diffode.models.identity import parts

ADDED = (("shift", 1.0), ("reverse", False))  # to options of schedules: where they say nothing new, the digest stays what it was
EXAMPLE = "EpsModel(network, schedule, predicts, shape=(channels, height, width))"


def read(name: str, dtype: torch.dtype) -> tuple[EpsModel, Card, str]:
    """The model, its card, and its digest. Its network, if it is a torch module, is a copy on the CPU in `dtype`, as are other
    networks of its guidance, and the floats of its conditions.

    Any other network is called as it is, with states of that dtype. InputError for what cannot be imported or copied, is no
    EpsModel, does not say its shape, has conditions of different numbers of rows, or has labels, watches or autocast, which
    commands add.
    """
    module, model = import_object(name, EpsModel, EXAMPLE)
    if model.shape is None:
        raise InputError(f"{name} does not say what it makes: give its EpsModel shape=(channels, height, width)")
    if model.watches or model.autocast or (model.classes and model.label in model.condition):
        raise InputError(
            f"{name} has been labelled, watched or autocast: give the EpsModel without, and leave these to the command"
        )
    try:
        turns.rows_of(model)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    try:
        identity, own = digest(module, model), turns.prepared(model, dtype)
    except (Exception, SystemExit, GeneratorExit) as error:
        raise InputError(f"the network of {name} cannot be copied: {in_words(error)}") from error
    return own, Card.of(model, "module", name=name), identity


def digest(module: ModuleType, model: EpsModel) -> str:
    """The SHA-256 of the model's description, of its module's file, and of weights and buffers: those of the network, and of all
    torch modules that have a name in the file, for a network may be a function that calls them; and of its conditions, guidance
    and hooks, if it has any (identity.py)."""
    s, clock = model.schedule, clocks.name_of(model.clock)
    options = tuple(
        option for option in s.options if option not in ADDED and not isinstance(option[1], tuple)
    )  # knots tell tables
    description = model.predicts, clock, model.classes, model.shape, s.name, options, s.path.name, s.lam_min, s.lam_max
    changed = [*model.labels.as_given(), *["learned_variance=True"] * model.learned_variance]
    sha256 = hashlib.sha256("".join([repr(description), *changed]).encode())
    sha256.update(b"" if s.knots is None else s.knots.tobytes())
    file = Path(getattr(module, "__file__", None) or "")  # __main__ may have none
    sha256.update(file.read_bytes() if file.is_file() else b"")
    for network in dict.fromkeys(value for value in (model.network, *vars(module).values()) if isinstance(value, nn.Module)):
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            sha256.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    if model.condition or model.guidance or model.hooks:
        for part in parts([model.condition, model.guidance, model.hooks]):
            sha256.update(part)
    return sha256.hexdigest()
