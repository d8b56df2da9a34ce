"""Pickles of networks, read as data: EDM's and EDM2's .pkl (Karras et al., 2022, 2024), whose classes bring their source code.

A pickle is a program for a stack machine, and Python's runs whatever it names. This machine knows the operations that picklers
write for values, and NAMES, a list of names with a function of ours for each: tensors are made of the bytes in the file, and an
object of any class becomes a `Part`, its name, the arguments that it was made with and its state. Nothing of the file is
imported or run, its source code is not looked at, and all other names and operations are refused. A storage of a GPU is read
onto the CPU.

Every length is compared with what is left of the file, a tensor's numbers with its storage, and all weights together with the
storages that they lie in. So what is made takes the size of the file, copies of its weights as much again, and a few hundred
bytes for each operation, of which there are at most 200,000: less than 200 MB.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from diffode.checks import text
from diffode.errors import InputError, shown
from diffode.models.pickle_machine import Name, Part, Stream, load
from diffode.reading import open_regular, reading

MOST_NAMES, MOST_LEVELS = 100_000, 16  # of a network: weights and modules, and modules within each other
MOST_LETTERS = 500  # of the name of a weight
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # what torch.save began with
INTEGERS = {"Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8}
FLOATS = {"Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16, "Double": torch.float64}
DTYPES = {f"torch.{name}Storage": dtype for name, dtype in {**FLOATS, **INTEGERS, "Bool": torch.bool}.items()}
SCALARS = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i", "b1": "<?"}  # of NumPy, as struct has them


def read(path: str | Path, what: str, expected: str) -> Any:
    """The value of a pickle: dicts, lists, numbers, texts, tensors on the CPU, and a Part for every object.

    what, expected: what the file should be, for messages (reading.reading). InputError for whatever the module docstring refuses.
    """
    with reading(path, what, expected), open_regular(path) as file:
        if file.peek(1)[:1] != b"\x80":  # of every protocol since the second
            raise InputError("it is no pickle")
        stream = Stream(file)
        value = load(stream, {**NAMES, STORAGE: _storages()})
        if stream.left:
            raise InputError(f"{stream.left:,} bytes follow its end")
        return value


def tensors_of(network: Part) -> dict[str, Tensor]:
    """The weights and buffers of a network and of all modules within it, under the names of its state dict, as copies.

    InputError for one whose modules are too many, and for weights that share memory, which copies would multiply.
    """
    found: dict[str, Tensor] = {}
    waiting, names = [("", network, 0)], 0
    while waiting:
        prefix, part, level = waiting.pop()
        tensors, modules = {**part.named("_parameters"), **part.named("_buffers")}, part.named("_modules")
        names += 1 + len(tensors) + len(modules)
        if level > MOST_LEVELS or names > MOST_NAMES:
            raise InputError(
                f"its weights and modules are more than {MOST_NAMES:,}, or within each other more than {MOST_LEVELS} times"
            )
        if len(prefix) + max(map(len, (*tensors, *modules)), default=0) > MOST_LETTERS:
            raise InputError(f"its weights have names of more than {MOST_LETTERS} letters")
        found |= {prefix + name: value for name, value in tensors.items() if isinstance(value, Tensor)}
        waiting += [(f"{prefix}{name}.", one, level + 1) for name, one in reversed([*modules.items()]) if isinstance(one, Part)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in found.values()}
    if sum(tensor.nbytes for tensor in found.values()) > sum(storages.values()):
        raise InputError("several of its weights share their memory")
    return {name: tensor.clone() for name, tensor in found.items()}


def legacy(file: BinaryIO, buffer: Any, names: Mapping[str, Callable[..., Any]]) -> Any:
    """What torch.save wrote before PyTorch 1.6: five pickles, and the numbers of the storages, which stay in `buffer`, the file.

    The fifth, which names the storages in the order of their numbers, is needed for the fourth, which is read twice.
    """
    stream = Stream(file)
    if load(stream, {}) != MAGIC:
        raise InputError("it is a pickle, and no file of torch.save")
    version, system = load(stream, {}), load(stream, {})
    if version != VERSION or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise InputError("it is of another version, or of a machine that has the high byte first")
    begin, expected = stream.at(), dict[str, tuple[torch.dtype, int]]()

    def announce(stored: Any) -> None:
        key, dtype, count = storage_of(stored)
        expected[key] = dtype, count

    load(stream, {**names, TENSOR: lambda *_: None}, announce)
    found: dict[str, Tensor] = {}
    for key in load(stream, {}):
        dtype, count = expected[key]
        (again,) = struct.unpack("<q", stream.read(8))
        at = stream.at()
        stream.move(at + count * dtype.itemsize)
        if again != count:
            raise InputError(f"a storage of it has {again:,} numbers, where {count:,} are announced")
        found[key] = in_buffer(buffer, dtype, count, at)
    if stream.left:
        raise InputError(f"{stream.left:,} bytes follow its end")
    stream.move(begin)
    return load(stream, names, lambda stored: found[storage_of(stored)[0]])


def storage_of(stored: Any) -> tuple[str, torch.dtype, int]:
    """The key, the dtype and the count of the numbers of a storage, from its persistent id."""
    match stored:
        case ("storage", Name() as kind, str() as key, _, int() as count, *view) if kind in DTYPES and view in ([], [None]):
            return key, DTYPES[kind], count
    raise InputError(f"a storage of it is {shown(stored)}, of a format that torch does not write")


def in_buffer(buffer: Any, dtype: torch.dtype, count: int, at: int) -> Tensor:
    """Numbers that lie in a buffer, (count,); InputError beyond its end."""
    if not 0 <= count * dtype.itemsize <= len(buffer) - at:
        raise InputError(f"a storage of it would have {count:,} numbers, more than are there")
    return torch.frombuffer(buffer, dtype=dtype, count=count, offset=at) if count else torch.empty(0, dtype=dtype)


def _storages() -> Callable[[bytes], Tensor]:
    """The numbers of storages, each pickled as torch.save once wrote it; what bytes hold is made once, however often named."""
    made: dict[int, tuple[bytes, Tensor]] = {}

    def storage(data: bytes) -> Tensor:
        if id(data) not in made:
            made[id(data)] = data, legacy(BytesIO(data), data, TENSORS)
        return made[id(data)][1]

    return storage


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """A view of a storage, of no more numbers than that has."""
    fits = isinstance(storage, Tensor) and len(size) == len(stride) <= 8
    if not fits or not all(type(number) is int and 0 <= number <= 2**40 for number in (offset, *size, *stride)):
        raise InputError(f"a tensor of it is {shown((offset, size, stride))} of {shown(storage)}")
    count, last = 1, offset
    for sides, step in zip(size, stride, strict=True):
        count, last = count * sides, last + (sides - 1) * step
    if count and (count > len(storage) or last >= len(storage)):
        raise InputError(f"a tensor of {shown(size)} does not lie in its storage of {len(storage):,} numbers")
    return storage.as_strided(size, stride, offset) if count else torch.empty(size, dtype=storage.dtype)


def _object(meta: Any) -> Part:
    """An object of a class that brings its source code (torch_utils.persistence)."""
    name, state = (meta.get(key) for key in ("class_name", "state")) if isinstance(meta, dict) else (None, None)
    arguments = (state.get("_init_kwargs") or {}) if isinstance(state, dict) else None
    if not isinstance(name, str) or not isinstance(state, dict) or not isinstance(arguments, dict):
        raise InputError(f"an object of it is {shown(name)} of {shown(state)}, made with {shown(arguments)}")
    return Part(name, arguments, state)


def _dict() -> dict[str, Any]:
    """An empty dict, whose items follow."""
    return {}


def _scalar(dtype: Any, data: Any) -> Any:
    """A number of NumPy."""
    (value,) = struct.unpack(SCALARS[text("the type of a number", dtype.arguments["kind"])], data)
    return value


def _opaque(name: str) -> Callable[..., Part]:
    return lambda *_: Part(name)


STORAGE, TENSOR = "torch.storage._load_from_bytes", "torch._utils._rebuild_tensor_v2"
CLASSES = [f"torch.nn.modules.container.{name}" for name in ("ModuleDict", "ModuleList", "Sequential")]
NUMPY = [f"numpy.{core}.{name}" for core in ("core", "_core") for name in ("multiarray._reconstruct", "numeric._frombuffer")]
TENSORS: dict[str, Callable[..., Any]] = {
    **{name: _opaque(name) for name in (*DTYPES, *map(str, DTYPES.values()), "torch.Size", "torch.device")},
    "collections.OrderedDict": _dict,
    TENSOR: _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
}
NAMES: dict[str, Callable[..., Any]] = {
    **TENSORS,
    **{name: _opaque(name) for name in (*CLASSES, *NUMPY, "numpy.ndarray")},
    "torch_utils.persistence._reconstruct_persistent_obj": _object,
    "dnnlib.util.EasyDict": _dict,
    "numpy.dtype": lambda kind, *_: Part("numpy.dtype", {"kind": kind}),
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
}
