"""What a value of Python is, as bytes: for the digest of what a user's model is made of, its conditions, weights and hooks.

Tensors, arrays and modules are their numbers; trees and dataclasses are their parts; a function is its name, its line, and
what it holds, that is closure and defaults. The code of functions is not looked at: that of a user's module is in the digest as
a file.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PLAIN = str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device


def parts(value: Any, seen: frozenset[int] = frozenset()) -> Iterator[bytes]:
    """The parts of a value, in order; a value within itself is named once."""
    if isinstance(value, PLAIN):
        yield repr(value).encode()
        return
    if id(value) in seen:
        return
    seen |= {id(value)}
    yield f"{type(value).__module__}.{type(value).__qualname__}".encode()
    if isinstance(value, set | frozenset):  # in an order that every process has
        yield from sorted(b" ".join(parts(part, seen)) for part in value)
        return
    for part in _inside(value):
        yield from [part] if isinstance(part, bytes) else parts(part, seen)


def _inside(value: Any) -> Iterator[Any]:
    """What a value is made of: bytes, and other values."""
    if isinstance(value, Tensor | np.ndarray):
        array = value.detach().cpu() if isinstance(value, Tensor) else value
        yield repr((str(array.dtype), tuple(array.shape)))
        if isinstance(array, np.ndarray) and array.dtype.hasobject:  # whose bytes are addresses
            yield array.tolist()
            return
        yield array.contiguous().flatten().view(torch.uint8).numpy().tobytes() if isinstance(array, Tensor) else array.tobytes()
    elif isinstance(value, nn.Module):
        yield from ([name, tensor] for name, tensor in (*value.named_parameters(), *value.named_buffers()))
    elif isinstance(value, Mapping):
        yield from ([key, item] for key, item in value.items())
    elif isinstance(value, list | tuple):
        yield from value
    elif isinstance(value, FunctionType):
        own = value.__module__.partition(".")[0] != "diffode"  # whose lines move from version to version
        yield repr((value.__module__, value.__qualname__, value.__code__.co_firstlineno if own else None))
        yield [cell.cell_contents for cell in value.__closure__ or () if _is_full(cell)]
        yield [value.__defaults__, value.__kwdefaults__]
    elif isinstance(value, MethodType):
        yield [value.__func__, value.__self__]
    elif isinstance(value, functools.partial):
        yield [value.func, value.args, value.keywords]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from ([field.name, getattr(value, field.name)] for field in dataclasses.fields(value))
    elif isinstance(value, type) or not hasattr(value, "__dict__"):
        yield str(getattr(value, "__qualname__", ""))
    else:
        yield vars(value)


def _is_full(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a name that was never bound
        return False
