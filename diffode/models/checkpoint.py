"""Checkpoints: tensors as safetensors, with a JSON object in the file's own header that says what they are.

`kind` says which: a model to sample from (whose object is its Card), a classifier, the state of a training run, statistics of
images. So one file is all there is to keep.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from diffode.errors import InputError, one_line, shown
from diffode.files import atomic
from diffode.models.card import Card
from diffode.reading import MOST_JSON, open_regular, parse_json, reading

Network = TypeVar("Network", bound=nn.Module)
Header = Mapping[str, Any]
TORCH = (".ckpt", ".pt", ".pth", ".bin")  # files of torch.save, which torch_files.py reads


def save(path: str | Path, tensors: Mapping[str, Tensor], header: Card | Header) -> None:
    """Write tensors and their header, a card or a JSON object with a `kind`, as one safetensors file, atomically."""
    written = header.to_json() if isinstance(header, Card) else header
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with atomic(path) as part:
        try:
            save_file(contiguous, part, {"diffode": json.dumps(written, ensure_ascii=False)})
        except safetensors.SafetensorError as error:  # what safetensors raises on a full disk
            raise OSError(None, str(error), str(path)) from error


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors (on the CPU) and the metadata of any safetensors file.

    InputError for a file that is absent, corrupt, or of another format.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"no checkpoint at {one_line(str(path), 200)}")
    if path.suffix in TORCH:
        raise InputError(
            f"{one_line(str(path), 200)} is no checkpoint of diffode, which is a safetensors file: of weights in PyTorch's own "
            "files a preset or a format says whose they are, as cifar10:FILE or guided:FILE (docs/networks.md)"
        )
    with reading(path, "safetensors file", "a whole one, and no other format"):
        with open_regular(path) as file:
            if (length := int.from_bytes(file.read(8), "little")) > MOST_JSON:
                raise InputError(f"it is corrupt: its header would have {length:,} bytes")
        try:
            with safetensors.safe_open(path, framework="pt") as weights:
                names = weights.keys()
                return {name: weights.get_tensor(name) for name in names}, weights.metadata() or {}
        except safetensors.SafetensorError as error:
            raise InputError(f"it is corrupt: {one_line(str(error))}") from error


def read(path: str | Path, kind: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and the header of a file that diffode wrote; InputError for any other, or another `kind`."""
    tensors, metadata = read_tensors(path)
    with reading(path, "checkpoint of diffode", "one whose header holds a card"):
        header = parse_json(metadata.get("diffode", "null"), infinite=True)
    if not isinstance(header, dict) or not isinstance(header.get("kind"), str):
        raise InputError(
            f"{path} is a safetensors file without a diffode card: only checkpoints written by diffode say what "
            "their tensors mean; of others a preset says it (cifar10:FILE, see docs/networks.md)"
        )
    if kind is not None and header["kind"] != kind:
        raise InputError(f"{path} holds a {shown(header['kind'])}, where a {kind!r} is expected")
    return tensors, header


def misfit(tensors: Mapping[str, Tensor], network: nn.Module) -> str:
    """The first weight that is not of the same shape in both, in words; "" if there is none."""
    found, expected = (
        {name: tuple(tensor.shape) for name, tensor in weights.items()} for weights in (tensors, network.state_dict())
    )
    for name in [*expected, *found]:
        if found.get(name) != expected.get(name):
            return one_line(
                f"{name} is {found.get(name, 'absent')} in the file and {expected.get(name, 'absent')} in the network", 160
            )
    return ""


def filled(kind: Callable[[Any], Network], config: Any, tensors: Mapping[str, Tensor]) -> Network:
    """The network kind(config) with these weights; InputError, before memory is taken, unless they have its names and shapes."""
    with torch.device("meta"):
        network = kind(config)
    if why := misfit(tensors, network):
        raise InputError(why)
    network.load_state_dict(tensors, assign=True)
    return network


def read_model(path: str | Path, kind: str | None = None) -> tuple[dict[str, Tensor], Card]:
    """`read` of a model's file: its tensors and its Card; InputError, too, for a card that lacks a field."""
    tensors, header = read(path, kind)
    return tensors, Card.from_json(header, path)
