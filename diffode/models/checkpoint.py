"""Checkpoints: tensors as safetensors, and a card (a JSON object) in the file's own header, so that one file is a model.

The card says what is needed to use the numbers: `kind` ("unet", "mixture", "training"), `config`, `schedule`, `predicts`,
`image`, `classes`; and where they come from: data, images seen, loss, command, date. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save_file
from torch import Tensor

from diffode.errors import InputError
from diffode.files import atomic

Card = dict[str, Any]


def save(path: str | Path, tensors: Mapping[str, Tensor], card: Card) -> None:
    """Write tensors and card as one safetensors file, atomically."""
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with atomic(path) as part:
        try:
            save_file(whole, part, {"diffode": json.dumps(card, ensure_ascii=False)})
        except safetensors.SafetensorError as error:  # what it makes of a full disk
            raise OSError(None, str(error), str(path)) from error


def tensors_of(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors (on the CPU) and the metadata of any safetensors file; InputError if it is none."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    with open(path, "rb"):  # a file that may not be read says so itself
        pass
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 (not a mapping)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is corrupt or not a safetensors file ({error}): diffode reads no other format and never unpickles"
        ) from error


def read(path: str | Path, kind: str | None = None) -> tuple[dict[str, Tensor], Card]:
    """The tensors (on the CPU) and the card of a file of diffode; InputError if it is none, or not of that kind."""
    tensors, metadata = tensors_of(path)
    try:
        card = json.loads(metadata.get("diffode", "null"))
    except ValueError:
        card = None
    if not isinstance(card, dict) or not isinstance(card.get("kind"), str):
        raise InputError(
            f"{path} is a safetensors file without a diffode card: only checkpoints written by diffode say what "
            "their tensors mean; of others a preset says it (cifar10:FILE, see docs/networks.md)"
        )
    if kind is not None and card["kind"] != kind:
        raise InputError(f"{path} holds a {card['kind']!r}, where a {kind!r} is expected")
    return tensors, card


def as_json(value: Any) -> Any:
    """`value` as it comes back from a JSON file: tuples are lists, keys are strings."""
    return json.loads(json.dumps(value))
