"""Conditions: what a network is called with beside the state and its clock, by keyword, and what guidance leaves out of them.

They are trees of dicts, lists and tuples, whose leaves all follow the same rules, however deep they lie:

    a tensor or NumPy array with dimensions     one row per sample, (batch, ...); an array becomes a tensor
    a list of numbers or texts                  one entry per sample, as [3, 1, 2] or ["a coat", "a bag", "a shirt"]
    anything else                               belongs to all samples: tensors without dimensions, numbers, texts, tuples of them
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffode.errors import InputError
from diffode.labels import Labels

Rows = Tensor | list[Any]  # a row per sample
Change = Callable[[str, Rows], Any]  # (where it lies in the tree, rows) -> what takes its place


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance. null: what replaces parts of the condition in the unconditional call; if it is empty, the labels
    are left out there (Labels.left_out)."""

    weight: float
    null: Mapping[str, Any] = field(default_factory=dict)

    def unconditional(self, condition: Mapping[str, Any], labels: Labels) -> dict[str, Any]:
        """The condition of the unconditional call; InputError if it would be the conditional one again."""
        return {**condition, **self.null} if self.null else labels.left_out(condition)


def rows_of(condition: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """The condition of these rows."""
    chosen = list(rows)
    return _changed(condition, lambda name, value: [value[i] for i in chosen] if isinstance(value, list) else value[chosen])


def on_device(condition: Mapping[str, Any], like: Tensor) -> dict[str, Any]:
    """The condition on the device of `like`; InputError where it is of another batch."""

    def moved(name: str, value: Rows) -> Rows:
        if len(value) != len(like):
            raise InputError(
                f"the condition {name} is for a batch of {len(value)}, the state has {len(like)}: give it a row per sample, or "
                "what belongs to all samples as a number or a tuple of numbers"
            )
        return value if isinstance(value, list) else value.to(like.device)

    return _changed(condition, moved, lambda value: value.to(like.device))


def cloned(condition: Mapping[str, Any]) -> dict[str, Any]:
    """The condition with tensors of its own."""
    return _changed(condition, lambda name, value: value if isinstance(value, list) else value.clone(), torch.clone)


def _changed(
    tree: Mapping[str, Any], change: Change, change_shared: Callable[[Tensor], Tensor] = lambda value: value
) -> dict[str, Any]:
    """A tree of the same form, with `change` of what has a row per sample, and change_shared of tensors that belong to all."""

    def visit(name: str, value: Any) -> Any:
        if isinstance(value, np.ndarray):  # a copy, since the array may be read only; what torch has no numbers for, as a list
            value = torch.from_numpy(np.array(value)) if value.dtype.kind in "biufc" else value.tolist()
        if isinstance(value, Tensor):
            return change(name, value) if value.ndim else change_shared(value)
        if isinstance(value, list) and value and _is_plain(value):
            return change(name, value)
        if isinstance(value, Mapping):
            same: Any = value  # of the same class, if that can be
            changed = {key: visit(f"{name}[{key!r}]", item) for key, item in value.items()}
            return same | changed if hasattr(same, "__or__") else changed
        if isinstance(value, list | tuple):
            items = [visit(f"{name}[{i}]", item) for i, item in enumerate(value)]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        return value

    try:
        return {name: visit(name, value) for name, value in tree.items()}
    except RecursionError as error:
        raise InputError("a condition holds itself, or is nested too deeply: give a tree of dicts, lists and tuples") from error


def _is_plain(value: Any) -> bool:
    """Whether it is a number or a text, or a list or tuple of these."""
    return all(map(_is_plain, value)) if isinstance(value, list | tuple) else isinstance(value, Number | str)
