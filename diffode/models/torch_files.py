"""Tensors of the files that torch.save writes (.pt, .pth, .ckpt), read as data: nothing in them is run or imported.

Such a file is a zip archive of a pickle and the bytes of its tensors, before PyTorch 1.6 a row of pickles and the bytes. The
pickles are read by the machine of pickle_machine.py, which may name nothing but tensors, their types, ordered dictionaries and
argparse's Namespace, in which training scripts keep their options; torch.load is not asked. Members of an archive are stored as
they are, and the file is mapped into memory, so that only what is used is copied.

safetensors are taken everywhere in their place.
"""

from __future__ import annotations

import mmap
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

from torch import Tensor

from diffode.errors import InputError, shown
from diffode.models import checkpoint, pickle_machine, pickles
from diffode.reading import MOST_JSON, open_regular, reading, size_of

WHAT, EXPECTED = "file of weights", "a state dict, as torch.save(model.state_dict(), FILE) writes it"
WRAPPERS = ("ema", "model_ema", "state_dict", "model")  # keys of training checkpoints, averaged weights first
NAMES = {**pickles.TENSORS, "argparse.Namespace": lambda *_: pickle_machine.Part("argparse.Namespace")}
ZIP = b"PK\x03\x04"


def state_dict(path: str | Path, wrappers: Sequence[str] = WRAPPERS) -> dict[str, Tensor]:
    """The state dict of a file of torch.save or of safetensors, on the CPU: names without the `module.` of DataParallel.

    wrappers: the keys under which a training checkpoint may hold it, the first that is there; of a list, as the ddim repository
    saves one, the last entry is taken, the averaged weights. InputError for what `load` and checkpoint.read_tensors refuse, and
    for a file that holds no such dictionary.
    """
    path = Path(path)
    if not path.exists() or path.suffix == ".safetensors":
        found: Any = checkpoint.read_tensors(path)[0]
    else:
        found = load(path)
        for _ in range(2):  # {"state_dict": {"model": ...}} exists, too
            found = found[-1] if isinstance(found, list) and found else found
            inner = [found[key] for key in wrappers if isinstance(found, dict) and isinstance(found.get(key), dict)]
            found = inner[0] if inner else found
    with reading(path, WHAT, EXPECTED):
        if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
            kind = found.name if isinstance(found, pickle_machine.Part) else type(found).__name__
            raise InputError(f"it holds a {kind} without names of tensors")
        if others := [key for key, value in found.items() if not isinstance(value, Tensor)]:
            raise InputError(f"its {shown(others[0])} is no tensor")
    return {key.removeprefix("module."): tensor.detach().clone() for key, tensor in found.items()}


class Shapes(dict[str, tuple[int, ...]]):
    """The shapes of tensors by their names; InputError for a name that is not there."""

    def __missing__(self, name: str) -> tuple[int, ...]:
        raise InputError(f"it has no {name}")


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """The shapes of a state dict."""
    return Shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()})


def load(path: str | Path) -> Any:
    """All that a file of torch.save holds, on the CPU: dictionaries, lists, numbers, texts and tensors.

    The tensors are views of the file: copy those that are kept. InputError for a file that is no such file, is damaged or
    compressed, and for one that names anything but tensors.
    """
    with reading(path, WHAT, EXPECTED), open_regular(path) as file:
        if not (size := size_of(file)):
            raise InputError("it is empty")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        found = _archived(file, mapped) if mapped[:4] == ZIP else pickles.legacy(file, mapped, NAMES)
        needed = sum(tensor.nbytes for tensor in _tensors(found))
        if needed > 2 * size:  # views that repeat what is stored; weights that are tied are there twice
            raise InputError(f"its {size:,} bytes hold tensors of {float(needed):.3g}")
        return found


def _archived(file: BufferedReader, mapped: mmap.mmap) -> Any:
    """What an archive holds; InputError for members that are compressed or too large, and unless there is one pickle."""
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            raise InputError("it is compressed, and torch.save compresses nothing")
        names = [name for name in members if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(names) != 1 or members[names[0]].file_size > MOST_JSON:
            raise InputError(f"it has no data.pkl of at most {MOST_JSON:,} bytes")
        folder, data = names[0].removesuffix("data.pkl"), archive.read(names[0])
        if f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") != b"little":
            raise InputError("it is of a machine that has the high byte first")
    made: dict[str, Tensor] = {}

    def storage(stored: Any) -> Tensor:
        key, dtype, count = pickles.storage_of(stored)
        if key not in made:
            member = members.get(f"{folder}data/{key}")
            if member is None or member.file_size < count * dtype.itemsize:
                raise InputError(f"its storage {shown(key)} is absent or too small")
            lengths = struct.unpack_from("<HH", mapped, member.header_offset + 26)  # of the name and of what fills up
            made[key] = pickles.in_buffer(mapped, dtype, count, member.header_offset + 30 + sum(lengths))
        return made[key]

    return pickle_machine.load(pickle_machine.Stream(BytesIO(data)), NAMES, storage)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in dictionaries and lists, each as often as it is there; containers, which may hold themselves, once."""
    seen, waiting = set(), [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, dict | list | tuple) and id(one) not in seen:
            seen.add(id(one))
            waiting += one.values() if isinstance(one, dict) else one
