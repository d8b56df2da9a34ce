"""Hooks: what takes part in a run of a solver, and what looks on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffode import checks
from diffode.errors import InputError
from diffode.noise import Noise
from diffode.prediction import convert
from solvers.plan import Plan, Stage

OnCommit = Callable[[Tensor, float], Tensor]  # (state, λ) -> state: projection, inpainting


@dataclass(frozen=True)
class Committed:
    """A committed state, as `on_step` is given it: its index, its λ, the state x (batch, *shape), and x0, the model's x̂0 at the
    last evaluation (None at the start). x is the loop's own buffer: clone it to keep it."""

    index: int
    lam: float
    x: Tensor
    x0: Tensor | None


OnStep = Callable[[Committed], None]


@dataclass(frozen=True)
class Hooks:
    """noise: (draw, like) -> N(0, I), for stochastic plans. on_commit: may replace a committed state before it is evaluated.
    on_step: is given every committed state. trajectory: whether the committed states are returned.
    """

    noise: Noise | None = None
    on_commit: OnCommit | None = None
    on_step: OnStep | None = None
    trajectory: bool = False

    def __post_init__(self) -> None:
        for name, arguments in (("noise", "(draw, like)"), ("on_commit", "(state, λ)"), ("on_step", "a Committed")):
            if getattr(self, name) is not None:
                checks.function(name, getattr(self, name), f"a function of {arguments}")
        checks.flag("trajectory", self.trajectory)

    @property
    def used(self) -> set[str]:
        """Names of those that are set, but for the noise."""
        return {name for name in ("on_commit", "on_step", "trajectory") if getattr(self, name) not in (None, False)}


NO_HOOKS = Hooks()


class Observers:
    """What the hooks are given during a run."""

    def __init__(self, plan: Plan, hooks: Hooks = NO_HOOKS) -> None:
        self.hooks, self.plan, self.count = hooks, plan, 0
        self.x0: Tensor | None = None
        self.states: list[tuple[float, Tensor]] = []

    def draw(self, stage: Stage, like: Tensor) -> Tensor | None:
        """The noise of a stage, if it has any."""
        return None if stage.draw is None or self.hooks.noise is None else self.hooks.noise(stage.draw, like)

    def committed(self, stage: Stage, u: Tensor, reuse: bool) -> Tensor:
        """The state, or what on_commit replaces it with, after everybody has seen it."""
        if self.hooks.on_commit is not None:
            new = _checked(self.hooks.on_commit(u, stage.lam), u)
            u = u.copy_(new) if reuse else new
        if self.hooks.on_step is not None:
            self.hooks.on_step(Committed(self.count, stage.lam, u, self.x0))
            self.count += 1
        if self.hooks.trajectory:
            self.states.append((stage.lam, u.detach().to("cpu", copy=True)))
        return u

    def evaluated(self, stage: Stage, u: Tensor, m: Tensor) -> None:
        """Keep x̂0 for the next Committed."""
        if self.hooks.on_step is not None:
            a, b = convert(self.plan.prediction, "data", *self.plan.path.at(stage.lam))
            self.x0 = b * m + a * u if a else b * m


def _checked(new: Any, u: Tensor) -> Tensor:
    """What on_commit returned; InputError if it is not a state."""
    if not isinstance(new, Tensor) or new.shape != u.shape:
        raise InputError(
            f"on_commit must return a state of shape {tuple(u.shape)}, not {getattr(new, 'shape', type(new).__name__)}"
        )
    return new
