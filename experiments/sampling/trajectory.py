"""The trajectory of a batch: its states, as they are written to OUT-trajectory.npz and drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers import Committed, Result

STATES = ("lam", "x", "x0")
Arrays = dict[str, Any]  # of numpy


class Recorder:
    """Keeps every committed state of a batch on the host, in float32; to be handed to `sample` as on_step."""

    def __init__(self) -> None:
        self.states: list[tuple[float, Tensor, Tensor]] = []

    def __call__(self, state: Committed) -> None:
        x0 = torch.full_like(state.x, torch.nan) if state.x0 is None else state.x0  # at the start there is no x̂0 yet
        x, x0 = (each.to("cpu", torch.float32, copy=True) for each in (state.x, x0))
        self.states.append((state.lam, x, x0))

    def arrays(self) -> Arrays:
        """lam (steps + 1,); x and x0 (images, steps + 1, *shape)."""
        return _stacked(self.states)


def arrays_of(result: Result) -> Arrays:
    """lam and x of the trajectory that a result has; nothing if it has none."""
    return _stacked([(lam, x.float()) for lam, x in result.trajectory])


def _stacked(states: Any) -> Arrays:
    named = dict(zip(STATES, zip(*states, strict=True), strict=False))
    return {name: np.array(column) if name == "lam" else torch.stack(column, 1).numpy() for name, column in named.items()}
