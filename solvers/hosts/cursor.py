"""Cursor: a Plan for a host that calls the network itself, one evaluation at a time.

The loop of execute.py asks the model; here the host brings each prediction, and is told the next state to be evaluated:

    cursor = Cursor(plan)
    while not cursor.done:
        x = cursor.advance(x, m, fresh)     m: the prediction at (x, cursor.lam), in that of the plan; x: the next such state

The host may change x between: a changed committed state is the new anchor, as with Hooks.on_commit; a changed state of a stage is
evaluated, and no more. The arithmetic is that of the loop (`combine`), in float32 unless x is float64; gradients flow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffode.errors import InputError
from solvers.execute import combine
from solvers.plan import Plan, Stage

Fresh = Callable[[Tensor], Tensor]  # like -> the next N(0, I) of its shape


@dataclass
class Cursor:
    """Where a run of a plan stands: `count` evaluations are made. It can be copied (copy.deepcopy), and goes on from there."""

    plan: Plan
    count: int = 0
    _row: int = 0
    _anchor: Tensor | None = None
    _state: Tensor | None = None  # what `advance` returned last, in full precision
    _predictions: dict[int, Tensor] = field(default_factory=dict)
    _draws: dict[int, Tensor] = field(default_factory=dict)
    _drawn: int = 0

    def __post_init__(self) -> None:
        self._last_use = self.plan.last_use
        self._last_draw = {stage.draw: row for row, stage in enumerate(self.plan.stages)}

    @property
    def done(self) -> bool:
        """Whether the last state has been reached."""
        return self._row == len(self.plan.stages) - 1

    @property
    def lam(self) -> float:
        """The λ at which the next state is evaluated; InputError at the end."""
        if self.done:
            raise InputError(f"{self.plan.solver} has made its {self.count} evaluations: begin a new run, as set_timesteps does")
        return self.plan.stages[self._row].lam

    @property
    def remaining(self) -> int:
        """How many evaluations are still to be made."""
        return self.plan.nfe - self.count

    def widened(self, x: Tensor) -> Tensor:
        """A state of the host in full precision: the numbers that it has not changed are those that were rounded for it."""
        if x.dtype in (torch.float32, torch.float64):
            return x
        wide = x.float()
        return wide if self._state is None else torch.where(self._state.to(x.dtype) == x, self._state, wide)

    def advance(self, x: Tensor, m: Tensor, fresh: Fresh) -> Tensor:
        """The next state to be evaluated, or the last, in full precision: row after row, from the prediction m at the state x
        (see `widened`), which must not be written to later. InputError for another shape than before."""
        if self._state is not None and x.shape != self._state.shape:
            raise InputError(
                f"a run began with a batch {tuple(self._state.shape)} and goes on with {tuple(x.shape)}: begin again"
            )
        if self._anchor is None or self.plan.stages[self._row].commit:
            self._anchor = x
        self._predictions[self.count] = m
        self.count += 1
        while True:
            self._row += 1
            stage = self.plan.stages[self._row]
            z = self._draw(stage, fresh)
            out = None if torch.is_grad_enabled() else torch.empty_like(self._anchor)
            u = combine(stage, self._anchor, self._predictions, z, out)
            self._predictions = {j: m for j, m in self._predictions.items() if self._last_use.get(j, -1) > self._row}
            self._draws = {k: z for k, z in self._draws.items() if self._last_draw.get(k, -1) > self._row}
            if stage.evaluate or self.done:
                self._state = u
                return u
            self._anchor = u if stage.commit else self._anchor

    def _draw(self, stage: Stage, fresh: Fresh) -> Tensor | None:
        """The noise of a stage, if it has any: draw k is the k-th that is made, whatever the order of use."""
        assert self._anchor is not None
        while self._drawn < (stage.draw or 0):
            self._drawn += 1
            self._draws[self._drawn] = fresh(self._anchor)
        return None if stage.draw is None else self._draws[stage.draw]
