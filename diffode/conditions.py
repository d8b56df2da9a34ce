"""Conditions: what a network is called with beside the state and its clock, by keyword, and what guidance leaves out of them.

A tensor with dimensions has one row per sample, (batch, ...); everything else belongs to all samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from diffode.errors import InputError


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance. null: what replaces parts of the condition in the unconditional call; if it is empty, the labels
    `y` are left out there."""

    weight: float
    null: Mapping[str, Any] = field(default_factory=dict)

    def unconditional(self, condition: Mapping[str, Any]) -> dict[str, Any]:
        """The condition of the unconditional call; InputError if it would be the conditional one again."""
        if self.null:
            return {**condition, **self.null}
        if "y" not in condition:
            raise InputError("guidance needs labels (labelled) to leave out, or null=... to say what else to replace")
        return {name: value for name, value in condition.items() if name != "y"}


def rows_of(condition: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """The condition of these rows; a tensor without dimensions is of no row, and stays."""
    chosen = list(rows)
    return {name: value[chosen] if isinstance(value, Tensor) and value.ndim else value for name, value in condition.items()}


def on_device(condition: Mapping[str, Any], like: Tensor) -> dict[str, Any]:
    """The condition on the device of `like`; InputError for a tensor of another batch."""
    for name, value in condition.items():
        if isinstance(value, Tensor) and value.ndim and len(value) != len(like):
            raise InputError(f"the condition {name} is for a batch of {len(value)}, the state has {len(like)}")
    return {name: value.to(like.device) if isinstance(value, Tensor) else value for name, value in condition.items()}
