"""The file that a training run resumes from: tensors and where the run is, with a checksum; read whole, or refused."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffode.errors import InputError, shown
from diffode.models import checkpoint


def save(path: Path, kind: str, tensors: Mapping[str, Tensor], where: Mapping[str, Any]) -> None:
    """Write the tensors and `where` (what decides the run, and how far it is) atomically."""
    checkpoint.save(path, tensors, {"kind": kind, **where, "checksum": checksum(tensors)})


def read(path: Path, kind: str, fields: Mapping[str, type]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save` wrote, with these fields; InputError for a file that is anything else, or is damaged."""
    tensors, where = checkpoint.read(path, kind)
    for name, of in fields.items():
        if not isinstance(where.get(name), of) or (of is int and where[name] < 0):
            raise damaged(path, f"its {name} is {shown(where.get(name))}")
    if where.get("checksum", "") not in ("", checksum(tensors)):  # files of earlier versions have none
        raise damaged(path, "its checksum is another")
    return tensors, where


def damaged(path: Path, why: str) -> InputError:
    """The error of a file that cannot be resumed from."""
    return InputError(f"{path} is damaged ({why}): remove it, or train in another folder (out)")


def require_like(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """InputError for tensors of other names, shapes or types than are expected."""
    found, wanted = ({name: (t.shape, t.dtype) for name, t in each.items()} for each in (tensors, expected))
    if differing := sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name)):
        raise damaged(path, f"its {shown(differing[0])} is missing, or of another shape")


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Of the bytes of tensors and their names."""
    sha256 = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha256.update(name.encode())
        sha256.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return sha256.hexdigest()
