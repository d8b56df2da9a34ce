"""Tensors of the files that torch.save writes (.pt, .pth, .ckpt), read as data: no code of the file is run, and nothing is imported.

Such a file is a zip archive of a pickle and the bytes of its tensors. Before anything is unpickled, every member must be stored as
it is (so that nothing unpacks to more than the file has), and the pickle may name nothing but tensors, their types, ordered
dictionaries and argparse's Namespace, in which training scripts keep their options. It is then read by
torch.load(weights_only=True), PyTorch's own reader of an allow-list, and mapped into memory, so that only what is used is copied.

safetensors are taken everywhere in their place.
"""

from __future__ import annotations

import argparse
import pickletools
import re
import shlex
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffode.errors import InputError, shown
from diffode.models import checkpoint
from diffode.reading import MOST_JSON, open_regular, reading, size_of

WHAT, EXPECTED = "file of torch.save", "a state dict: a dictionary of tensors, in the format of PyTorch 1.6 and later"
REWRITE = "import sys, torch; torch.save(torch.load(sys.argv[1], 'cpu', weights_only=True), sys.argv[2])"
NAMED = re.compile(  # what the pickle may name; a subset of what weights_only allows, and Namespace
    r"collections OrderedDict|argparse Namespace|torch (Size|device)|torch\._utils _rebuild_(tensor_v2|parameter)"
    r"|torch (Float|Double|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage"
)
WRAPPERS = (
    "ema",
    "model_ema",
    "state_dict",
    "model",
)  # keys of training checkpoints that hold a state dict, averaged weights first
MOST_MEMBERS = 100_000


def state_dict(path: str | Path, wrappers: Sequence[str] = WRAPPERS) -> dict[str, Tensor]:
    """The state dict of a file of torch.save or of safetensors, on the CPU: names without the `module.` of DataParallel.

    wrappers: the keys under which a training checkpoint may hold it, the first that is there. InputError for what `load` and
    checkpoint.read_tensors refuse, and for a file that holds no such dictionary.
    """
    path = Path(path)
    if not path.exists() or not is_torch_file(path):
        found: Any = checkpoint.read_tensors(path)[0]
    else:
        found = load(path)
        for _ in range(2):  # {"state_dict": {"model": ...}} exists, too
            inner = [found[key] for key in wrappers if isinstance(found, dict) and isinstance(found.get(key), dict)]
            found = inner[0] if inner else found
    with reading(path, WHAT, EXPECTED):
        if not isinstance(found, dict) or not found or not all(isinstance(key, str) for key in found):
            raise InputError(f"it holds {shown(type(found).__name__)} of {len(found) if hasattr(found, '__len__') else 1} items")
        if others := [key for key, value in found.items() if not isinstance(value, Tensor)]:
            raise InputError(f"its {shown(others[0])} is no tensor")
    return {key.removeprefix("module."): tensor.detach().clone() for key, tensor in found.items()}


def is_torch_file(path: Path) -> bool:
    """Whether a file is a zip archive, or is called as torch.save's files are; InputError, as `reading` says it, for no file."""
    with reading(path, "checkpoint", "a file"), open_regular(path) as file:
        return file.read(4) == b"PK\x03\x04" or path.suffix in checkpoint.PICKLED


def load(path: str | Path) -> Any:
    """All that a file of torch.save holds, on the CPU: dictionaries, lists, numbers, texts and tensors.

    The tensors are views of the file: copy those that are kept. InputError for a file that is no such archive, is damaged,
    compressed or in the format before PyTorch 1.6, and for one that names anything but tensors.
    """
    path = Path(path)
    with reading(path, WHAT, EXPECTED):
        with open_regular(path) as file:
            if file.read(4) != b"PK\x03\x04":
                raise InputError(_no_archive(path))
            size = size_of(file)
            with zipfile.ZipFile(file) as archive:
                _check_pickle(_pickle(archive, size), size)
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(str(path), "cpu", weights_only=True, mmap=True)
        needed = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(found))
        if needed > 2 * size:  # views that repeat what is stored; weights that are tied are there twice
            raise InputError(f"its {size:,} bytes hold tensors of {float(needed):.3g}")
        return found


def _no_archive(path: Path) -> str:
    with open_regular(path) as file:
        if file.read(2) != b"\x80\x02":  # a pickle of protocol 2
            return "it is no zip archive"
    command = shlex.join(["python", "-c", REWRITE, str(path), str(path.with_stem(f"{path.stem}-new"))])
    return f"it is in the format before PyTorch 1.6; {command} rewrites it"


def _pickle(archive: zipfile.ZipFile, size: int) -> bytes:
    """The pickle of the archive; InputError for members that are compressed, overlap, or are too many, and unless there is one."""
    members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise InputError("it is compressed, and torch.save compresses nothing")
    if len(members) > MOST_MEMBERS or sum(member.file_size for member in members) > size:
        raise InputError("its members are more than the file has bytes")
    pickles = [member for member in members if re.fullmatch(r"[^/]+/data\.pkl", member.filename)]
    if len(pickles) != 1 or pickles[0].file_size > MOST_JSON:
        raise InputError(f"it has no data.pkl of at most {MOST_JSON:,} bytes")
    return archive.read(pickles[0])


def _check_pickle(pickled: bytes, size: int) -> None:
    """InputError for a pickle that names what is not in NAMED, or has a way to name it that torch.save does not use."""
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "GLOBAL" and not NAMED.fullmatch(str(argument)):
            raise InputError(
                f"it is pickled and holds an object of {shown(str(argument).replace(' ', '.'))}, and only tensors are read: "
                "if you trust it, load it where that class is known, and save its state_dict()"
            )
        if opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
            raise InputError("its pickle names objects in a way that torch.save does not use")


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
