"""Conditions: what a network is called with beside the state and its clock, by keyword.

They are trees of dicts, lists and tuples, whose leaves all follow the same rules, however deep they lie:

    a tensor or NumPy array with dimensions     one row per sample, (batch, ...), or one row for all; an array becomes a tensor
    a list of numbers or texts                  one entry per sample, as [3, 1, 2] or ["a coat", "a bag"], or one for all
    shared(tensor), shared(array)               belongs to all samples, whatever its dimensions; the network gets the bare tensor
    anything else                               belongs to all samples: tensors without dimensions, numbers, texts, tuples of them
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffode import checks
from diffode.errors import InputError

Rows = Tensor | list[Any]  # a row per sample
Change = Callable[[str, Rows], Any]  # (where it lies in the tree, rows) -> what takes its place


@dataclass(frozen=True, eq=False)
class Shared:
    """What belongs to all samples of a batch, as `shared` makes it."""

    tensor: Tensor


def shared(value: Tensor | np.ndarray) -> Shared:
    """A tensor or array that belongs to all samples, as positions or a codebook: conditioned(ids=shared(ids)).

    It is moved to the device of the state, never taken by rows, nor doubled for guidance. InputError for anything else, which
    belongs to all without this, as a tuple of numbers, or is a list: a tuple is meant, or a tensor.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        value = torch.from_numpy(np.array(value))
    return Shared(checks.instance("value", value, Tensor, "a tensor, or an array of numbers"))


def numbers_of(rows: Any) -> list[int]:
    """Which samples of a batch are meant, by their numbers; InputError for what are none, as a mask of True and False."""
    try:
        asked = list(rows)
    except TypeError:
        raise checks.wrong("rows", "a list of the numbers of samples, as [0, 2]", rows) from None
    return [checks.whole("each of rows", row) for row in asked]


def rows_of(condition: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """The condition of these rows, one for all as it is; InputError where it has fewer."""
    chosen, most = list(rows), max(rows, default=0)

    def taken(name: str, value: Rows) -> Rows:
        if len(value) == 1:
            return value
        if len(value) <= most:
            raise InputError(f"the condition {name} is for a batch of {len(value)}, and sample {most} is asked for")
        return [value[i] for i in chosen] if isinstance(value, list) else value[chosen]

    return _changed(condition, taken)


def on_device(condition: Mapping[str, Any], like: Tensor, weights: torch.dtype | None = None) -> dict[str, Any]:
    """The condition on the device of `like`, as a network is given it; InputError where it is of another batch.

    weights: the dtype of a module's weights, which floating tensors get; but in half precision, where autocast sees to that, and
    positions would be rounded.
    """
    return _bare(_placed(condition, like, weights))


def joined(conditions: Sequence[Mapping[str, Any]], like: Tensor, weights: torch.dtype | None = None) -> dict[str, Any]:
    """One condition for the samples of `like` with each of these, one after the other: (k batch, ...), what is shared once.

    weights: as in on_device. InputError where they differ in more than their rows.
    """
    form, *others = map(_form, conditions)
    if odd := {name for other in others for name in {**form, **other} if form.get(name) != other.get(name)}:
        raise InputError(
            f"batched guidance needs the same conditions in every call, and they differ in {', '.join(sorted(odd))}: say what "
            "takes its place where it is left out, as guided(2, batched=True, y=...) or a null_label; or leave batched out"
        )
    first, *rest = (_placed(condition, like, weights) for condition in conditions)
    rows = [_rows(tree) for tree in rest]

    def join(name: str, value: Rows) -> Rows:
        parts: list[Any] = [value, *(tree[name] for tree in rows)]
        if isinstance(value, list):
            return [item for part in parts for item in part]
        if len({part.shape[1:] for part in parts}) > 1:
            shapes = " and ".join(str(tuple(part.shape)) for part in parts)
            raise InputError(f"the condition {name} is {shapes}, which do not go into one call: pad them, or leave batched out")
        return torch.cat(parts)

    return _bare(_changed(first, join))


def _placed(condition: Mapping[str, Any], like: Tensor, weights: torch.dtype | None) -> dict[str, Any]:
    """The condition on the device of `like`, see on_device; InputError where it is of another batch."""
    wide = weights if weights in (torch.float32, torch.float64) else None

    def place(value: Tensor) -> Tensor:
        return value.to(like.device, wide if value.is_floating_point() else None)

    def moved(name: str, value: Rows) -> Rows:
        _require(name, len(value), len(like))
        value = _rows_for(value, len(like))
        return value if isinstance(value, list) else place(value)

    return _changed(condition, moved, place)


def _rows(condition: Mapping[str, Any]) -> dict[str, Rows]:
    """Where it lies in the tree -> what has a row per sample."""
    found: dict[str, Rows] = {}
    _changed(condition, found.__setitem__)
    return found


def _form(condition: Mapping[str, Any]) -> dict[str, Any]:
    """The condition without its rows; of tensors that belong to all which they are."""
    return _changed(condition, lambda name, value: type(value), id, lambda which: which)


def _bare(condition: Mapping[str, Any]) -> dict[str, Any]:
    """The condition with tensors in the place of what is shared."""
    return _changed(condition, lambda name, value: value, wrap=lambda value: value)


def _rows_for(value: Rows, batch: int) -> Rows:
    """These rows, or the one for all of so many samples."""
    if len(value) == batch:
        return value
    if isinstance(value, list):
        return value * batch
    return value.expand(batch, *value.shape[1:]).contiguous()  # since networks view what they are given in other shapes


def _require(name: str, rows: int, batch: int) -> None:
    if rows not in (1, batch):
        raise InputError(
            f"the condition {name} is for a batch of {rows}, the state has {batch}: give it a row per sample, one for all, or "
            "what belongs to all samples as shared(tensor), a number or a tuple of numbers"
        )


def of_batch(condition: Mapping[str, Any], batch: int) -> Mapping[str, Any]:
    """The condition itself; InputError where it is of another batch."""
    for name, rows in row_counts(condition).items():
        _require(name, rows, batch)
    return condition


def row_counts(condition: Mapping[str, Any]) -> dict[str, int]:
    """Where it lies in the tree -> the rows of what has a row per sample."""
    return {name: len(value) for name, value in _rows(condition).items()}


def repeated(condition: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """The condition for so many samples, where it has one row that belongs to all of them."""
    return _changed(condition, lambda name, value: _rows_for(value, rows) if len(value) == 1 else value)


def in_dtype(condition: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The condition on the CPU, with floating tensors in this dtype."""

    def cast(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.detach().to("cpu", dtype if value.is_floating_point() else None)

    return _changed(condition, lambda name, value: cast(value), cast)


def cloned(condition: Mapping[str, Any]) -> dict[str, Any]:
    """The condition with tensors of its own."""
    return _changed(condition, lambda name, value: value if isinstance(value, list) else value.clone(), torch.clone)


def _changed(
    tree: Mapping[str, Any],
    change: Change,
    change_shared: Callable[[Tensor], Any] = lambda value: value,
    wrap: Callable[[Any], Any] = Shared,
) -> dict[str, Any]:
    """A tree of the same form, with `change` of what has a row per sample, and change_shared of tensors that belong to all; those
    that are marked so are marked again by `wrap`."""

    def visit(name: str, value: Any) -> Any:
        if isinstance(value, np.ndarray):  # a copy, since the array may be read only; what torch has no numbers for, as a list
            value = torch.from_numpy(np.array(value)) if value.dtype.kind in "biufc" else value.tolist()
        if isinstance(value, Shared):
            return wrap(change_shared(value.tensor))
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
