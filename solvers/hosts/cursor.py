"""Cursor: a Plan for a host that calls the network itself, one evaluation at a time.

The loop of execute.py asks the model; here the host brings each prediction, and is told the next state to be evaluated:

    cursor = Cursor(plan)
    while cursor.lam is not None:           the λ at which the state is to be evaluated
        x = cursor.advance(x, m, fresh)     m: the prediction at (x, λ), in that of the plan; x: the next such state, or the last

The host may change x between: a changed committed state is the new anchor, as with Hooks.on_commit; a changed state of a stage is
evaluated, and no more. The arithmetic is that of the loop (`combine`), in float32 unless x is float64.
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

    @property
    def lam(self) -> float | None:
        """The λ at which the next state is evaluated; None at the end."""
        return self.plan.stages[self._row].lam if self._row < len(self.plan.stages) - 1 else None

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
        (see `widened`), which must not be written to later. InputError at the end, and for another shape than before."""
        if self.lam is None:
            raise InputError(f"{self.plan.solver} is at its end, after {self.count} evaluations: begin again")
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
            u = combine(stage, self._anchor, self._predictions, z, torch.empty_like(self._anchor))
            self._forget()
            if stage.evaluate or self.lam is None:
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

    def _forget(self) -> None:
        """What no later row uses."""
        later = self.plan.stages[self._row + 1 :]
        used = {j for stage in later for j in stage.c}
        self._predictions = {j: m for j, m in self._predictions.items() if j in used}
        self._draws = {k: z for k, z in self._draws.items() if any(stage.draw == k for stage in later)}
