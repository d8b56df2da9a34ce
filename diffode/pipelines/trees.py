"""Trees of dicts, lists and tuples, as the arguments of networks are: their tensors, and whether two are equal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from diffode.conditions import Shared


def mapped(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    """The tree with its tensors changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        return {name: mapped(value, change) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        items = [mapped(value, change) for value in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return tree


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors of a tree."""
    found: list[Tensor] = []
    mapped(tree, found.append)
    return found


def same(a: Any, b: Any) -> bool:
    """Whether two trees are equal, number by number."""
    if isinstance(a, Shared) and isinstance(b, Shared):
        a, b = a.tensor, b.tensor
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and not isinstance(a, Tensor) and bool(a == b)
