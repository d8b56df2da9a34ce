"""Result: what a solver returns, and what an adaptive one did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from diffode.evaluation import Counter
from solvers.plan import Plan


@dataclass(frozen=True)
class AdaptiveSteps:
    """What an adaptive solver did, one value per sample: accepted and rejected steps, evaluations, the network calls that they
    would have taken for it alone, the λ of its states.

    make_plan: the λ of a sample -> the plan that takes the same way, or None for one that never moved.
    """

    accepted: tuple[int, ...]
    rejected: tuple[int, ...]
    nfe: tuple[int, ...]
    calls: tuple[int, ...]
    grids: tuple[tuple[float, ...], ...]
    make_plan: Callable[[tuple[float, ...]], Plan | None]

    @property
    def lam(self) -> tuple[float, ...]:
        """The λ that each sample reached."""
        return tuple(grid[-1] for grid in self.grids)

    @cached_property
    def plans(self) -> tuple[Plan | None, ...]:
        """The plan of each sample, made when they are first asked for."""
        made = {grid: self.make_plan(grid) for grid in dict.fromkeys(self.grids)}
        return tuple(made[grid] for grid in self.grids)


@dataclass(frozen=True, repr=False)
class Result:
    """x: the final state, (batch, *shape). nfe: evaluations of ε(x, λ), the most of any sample. calls: network calls they took.

    planned: the table that was run, None if there was none. trajectory: the committed states with their λ, on the host, if asked
    for. adaptive: the steps of an adaptive solver. finished: False if max_nfe stopped it before the end. counters: evaluations
    and calls of each sample, where they were integrated one after the other.
    """

    x: Tensor
    nfe: int
    calls: int
    planned: Plan | None = None
    trajectory: tuple[tuple[float, Tensor], ...] = ()
    adaptive: AdaptiveSteps | None = None
    finished: bool = True
    counters: tuple[Counter, ...] = ()

    @property
    def plan(self) -> Plan | None:
        """The table that was run; of an adaptive solver that which all samples took, None if they took different ones."""
        if self.planned is None and self.adaptive is not None and len(set(self.adaptive.grids)) == 1:
            return self.adaptive.plans[0]
        return self.planned

    def __repr__(self) -> str:
        """A line that a person reads."""
        how = self.planned.solver if self.planned else "adaptive" if self.adaptive else "a black box"
        state = f"x {tuple(self.x.shape)} {str(self.x.dtype).removeprefix('torch.')} on {self.x.device}"
        return f"Result({state}, {self.nfe} NFE, {self.calls} network calls, {how}{', unfinished' * (not self.finished)})"

    def _repr_html_(self) -> str:
        from solvers.notebook import result_html

        return result_html(self)
