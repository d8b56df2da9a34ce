"""Tensors of the files that torch.save writes (.pt, .pth, .ckpt), read as data: nothing in them is run or imported.

Such a file is a zip archive of a pickle and the bytes of its tensors, before PyTorch 1.6 a row of pickles and the bytes. Before
anything is unpickled, every member of the archive must be stored as it is, so that nothing unpacks to more than the file has, and
the pickles may name nothing but tensors, their types, ordered dictionaries and argparse's Namespace, in which training scripts
keep their options. The file is then read by torch.load(weights_only=True), PyTorch's own reader of an allow-list, and mapped into
memory if it is an archive, so that only what is used is copied.

safetensors are taken everywhere in their place.
"""

from __future__ import annotations

import argparse
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffode.errors import InputError, shown
from diffode.models import checkpoint
from diffode.reading import MOST_JSON, open_regular, reading, size_of

WHAT, EXPECTED = "file of weights", "a state dict, that is a dictionary of tensors"
NAMED = re.compile(  # what the pickles may name; a subset of what weights_only allows, and Namespace
    r"collections OrderedDict|argparse Namespace|torch (Size|device)|torch\._utils _rebuild_(tensor_v2|parameter)"
    r"|torch (Float|Double|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage"
)
OTHER_NAMES = "STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"  # operations by which a pickle names what torch.save does not
WRAPPERS = (
    "ema",
    "model_ema",
    "state_dict",
    "model",
)  # keys of training checkpoints that hold a state dict, averaged weights first
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
            raise InputError(f"it holds a {type(found).__name__} without names of tensors")
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

    The tensors may be views of the file: copy those that are kept. InputError for a file that is no such file, is damaged or
    compressed, and for one that names anything but tensors.
    """
    path = Path(path)
    with reading(path, WHAT, EXPECTED):
        with open_regular(path) as file:
            size, zipped = size_of(file), file.peek(4)[:4] == ZIP
            pickles = BytesIO(_pickle(file, size) if zipped else file.read(MOST_JSON))
        for _ in range(1 if zipped else 5):  # magic number, version, byte order, what was saved, the names of its storages
            _check_pickle(pickles)
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(str(path), "cpu", weights_only=True, mmap=zipped)
        needed = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(found))
        if needed > 2 * size:  # views that repeat what is stored; weights that are tied are there twice
            raise InputError(f"its {size:,} bytes hold tensors of {float(needed):.3g}")
        return found


def _pickle(file: BufferedReader, size: int) -> bytes:
    """The pickle of an archive; InputError for members that are compressed or too large, and unless there is one pickle."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise InputError("it is compressed, and torch.save compresses nothing")
        if sum(member.file_size for member in members) > size:
            raise InputError("its members are more than the file has bytes")
        pickles = [member for member in members if re.fullmatch(r"[^/]+/data\.pkl", member.filename)]
        if len(pickles) != 1 or pickles[0].file_size > MOST_JSON:
            raise InputError(f"it has no data.pkl of at most {MOST_JSON:,} bytes")
        return archive.read(pickles[0])


def _check_pickle(file: BytesIO) -> None:
    """Go to the end of a pickle; InputError if it names what is not in NAMED."""
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in OTHER_NAMES or (opcode.name == "GLOBAL" and not NAMED.fullmatch(str(argument))):
            name = shown(str(argument).replace(" ", ".")) if opcode.name == "GLOBAL" else "a class"
            raise InputError(
                f"it is pickled and holds an object of {name}, and only tensors are read: "
                "if you trust it, load it where that class is known, and save its state_dict()"
            )


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
