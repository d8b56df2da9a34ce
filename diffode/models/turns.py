"""Conditions in turn: of a model with conditions for B samples, the sample of seed s takes row s mod B.

So it depends on its seed alone, whatever is sampled beside it, as labels in turn have it. What has one row belongs to all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from diffode import conditions
from diffode.calling import module_of
from diffode.errors import InputError
from diffode.model import EpsModel
from diffode.weights import Weight, rows_of_weight


def in_turn(model: EpsModel, seeds: Sequence[int]) -> EpsModel:
    """The model for the samples of these seeds; itself if it has no conditions, guidance's among them."""
    rows = rows_of(model)
    return model.taking([seed % rows for seed in seeds]) if rows else model


def rows_of(model: EpsModel) -> int:
    """B, for how many samples the conditions and weights of a model are, 0 if it has none; InputError where they disagree."""
    found: dict[str, int] = {}

    def of_condition(tree: Mapping[str, Any]) -> Mapping[str, Any]:
        found.update(conditions.row_counts(tree))
        return tree

    def of_weight(weight: Weight) -> Weight:
        found.update({"the guidance weight": len(weight)} if isinstance(weight, np.ndarray) else {})
        return weight

    _changed(model, of_condition, of_weight)
    most = max(found.values(), default=0)
    if odd := {name: rows for name, rows in found.items() if rows not in (1, most)}:
        name, rows = next(iter(odd.items()))
        full = next(name for name, rows in found.items() if rows == most)
        raise InputError(
            f"its condition {name} has {rows} rows, and {full} has {most}: give each as many, or one for all samples"
        )
    return most


def prepared(model: EpsModel, dtype: torch.dtype) -> EpsModel:
    """The model with copies of its modules on the CPU in `dtype`, with the floats of its conditions in it, too, and with B rows
    where it has one for all samples."""
    rows = rows_of(model)
    memo: dict[int, Any] = {}

    def copied(network: Any) -> Any:
        copied = copy.deepcopy(network, memo) if module_of(network) else network  # of a method, with its module
        if module := module_of(copied):
            module.to("cpu", dtype).requires_grad_(False).eval()
        return copied

    def of_condition(tree: Mapping[str, Any]) -> Mapping[str, Any]:
        return conditions.repeated(conditions.in_dtype(tree, dtype), rows)

    def of_weight(weight: Weight) -> Weight:
        return rows_of_weight(weight, [0] * rows) if isinstance(weight, np.ndarray) and len(weight) == 1 else weight

    changed = _changed(model.replace(network=copied(model.network)), of_condition, of_weight)
    if (guidance := changed.guidance) is None:
        return changed
    other = guidance.other and guidance.other.replace(network=copied(guidance.other.network))
    steering = tuple(replace(each, log_p=copied(each.log_p)) for each in guidance.steering)
    return changed.replace(guidance=replace(guidance, other=other, steering=steering))


def _changed(
    model: EpsModel, condition: Callable[[Mapping[str, Any]], Mapping[str, Any]], weight: Callable[[Weight], Weight]
) -> EpsModel:
    """The model with all of its conditions and weights changed, those of its guidance, too."""
    guidance = model.guidance and model.guidance.changed(condition, weight)
    return model.replace(condition=condition(model.condition), guidance=guidance)
