"""Labels: the condition that most networks know, under the name and in the form in which a network takes it.

A model holds them as whole numbers, (batch,), whatever the form; `rows` makes of them what the network is handed. What means "no
label", in the unconditional call of guidance, is one of three:

    null_label given     that label, as 1000 of DiT
    one_hot              a row of zeros, as in EDM
    else                 the label is left out, which the network must allow
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffode import checks
from diffode.errors import InputError

WHOLE = torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64
MOST_CLASSES = 10_000_000


@dataclass(frozen=True)
class Labels:
    """How a network takes labels. classes: how many it knows, 0 if that is not said; name: its keyword; null: the label that
    means none, if one does; one_hot: float rows (batch, classes), with a column more if `null` is the number after the last.

    InputError for a null or for one-hot rows without classes, and for a name that is no keyword.
    """

    classes: int
    name: str = "y"
    null: int | None = None
    one_hot: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", checks.whole("classes", self.classes, 0, MOST_CLASSES))
        if not checks.text("label", self.name).isidentifier():
            raise checks.wrong("label", "the keyword by which the network takes labels, as class_labels", self.name)
        checks.flag("one_hot", self.one_hot)
        if self.null is not None:
            object.__setattr__(self, "null", checks.whole("null_label", self.null, 0, MOST_CLASSES))
        if not self.classes and (self.one_hot or self.null is not None):
            given = "one_hot" if self.one_hot else "null_label"
            raise InputError(f"`{given}` says how labels are handed over, and there are none: give `classes`, how many it knows")

    @property
    def columns(self) -> int:
        """Of one-hot rows."""
        return max(self.classes, -1 if self.null is None else self.null + 1)

    def check(self, y: Any) -> Tensor:
        """The labels y as int64 (batch,); or rows (batch, columns) as they are, where labels are one-hot. InputError
        unless they are whole numbers, one per sample, that the network knows, or such rows."""
        try:
            y = torch.as_tensor(y)
        except (TypeError, ValueError, RuntimeError):
            raise checks.wrong("y", "labels, whole numbers, one per sample", y) from None
        if y.is_meta:
            raise InputError("labels on meta are no numbers: put them onto the CPU")
        if self.one_hot and y.shape[1:] == (self.columns,):
            return y
        if y.dtype not in WHOLE or y.ndim != 1:
            rows = f", or rows (batch, {self.columns})" * self.one_hot
            raise InputError(f"labels are whole numbers, one per sample{rows}, not {y.dtype} {tuple(y.shape)}")
        y = y.long()
        if self.classes:
            unknown = (y < 0) | (y >= self.classes)
            if self.null is not None:
                unknown &= y != self.null
            if bool(unknown.any()):
                none = "" if self.null is None or self.null < self.classes else f", and {self.null} for none"
                raise InputError(f"label {int(y[unknown][0])} is out of range: this model knows 0 to {self.classes - 1}{none}")
        return y

    def checked(self, condition: Mapping[str, Any]) -> Mapping[str, Any]:
        """The condition with whole labels as int64; all else, as rows of floats and texts, as it is. InputError as `check`."""
        y: Any = condition.get(self.name)
        whole = (isinstance(y, Tensor) and y.dtype in WHOLE) or (isinstance(y, np.ndarray) and y.dtype.kind in "iu")
        if (whole and y.ndim == 1) or (isinstance(y, list) and y and all(isinstance(one, int | np.integer) for one in y)):
            return {**condition, self.name: self.check(y)}
        return condition

    def rows(self, condition: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> Mapping[str, Any]:
        """The condition as the network is handed it: labels as int64, or as rows on this device and of this dtype if it takes
        them one-hot. InputError as `check`."""
        y = condition.get(self.name)
        if not self.one_hot or y is None:
            return self.checked(condition) if isinstance(y, list) else condition
        y = self.check(y)
        y = torch.nn.functional.one_hot(y, self.columns) if y.ndim == 1 else y
        return {**condition, self.name: y.to(device, dtype)}

    def left_out(self, condition: Mapping[str, Any]) -> dict[str, Any]:
        """The condition without its labels, as the module docstring says; InputError if it has none, or they are wrong."""
        if self.name not in condition:
            raise InputError("guidance needs labels (labelled) to leave out, or null=... to say what else to replace")
        if self.null is None and not self.one_hot:
            return {name: value for name, value in condition.items() if name != self.name}
        batch = len(self.check(condition[self.name]))
        none = torch.zeros(batch, self.columns) if self.null is None else torch.full((batch,), self.null)
        return {**condition, self.name: none}

    def check_left_out(self, network: Callable[..., Any]) -> None:
        """InputError if guidance would leave out labels that the network cannot be called without."""
        if self.null is not None or self.one_hot:
            return
        try:
            taken = inspect.signature(getattr(network, "forward", network)).parameters.get(self.name)
        except (TypeError, ValueError):  # it has no signature
            return
        if taken is not None and taken.default is taken.empty and taken.kind not in (taken.VAR_KEYWORD, taken.VAR_POSITIONAL):
            raise InputError(
                f"guidance leaves out {self.name}, without which the network cannot be called: say which label means none, "
                f"EpsModel(..., null_label=1000), or guided(2, {self.name}=...)"
            )

    def as_given(self) -> Sequence[str]:
        """What of this is not the default, as EpsModel's arguments."""
        given = {"label": (self.name, "y"), "null_label": (self.null, None), "one_hot": (self.one_hot, False)}
        return [f"{name}={value!r}" for name, (value, default) in given.items() if value != default]
