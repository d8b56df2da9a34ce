"""Plan: a fixed-step solver as a table of numbers, in float64, that checks its own mathematics.

A stage moves the anchor (the last committed state) from λ_s to λ_t, with stored predictions m_j and fresh noise z:

    u = x · anchor + Σ_j c_j m_j + noise · z

Then, if it evaluates, the model's prediction at (u, λ_t) is appended to the m_j; if it commits, u becomes the anchor. The
first stage is the start itself (x = 1, no c). Indices j count evaluations from 0, so a plan is a strictly causal banded
matrix, and its band is the memory that running it takes.

Being made, a plan proves the transfer law (see transfer.py): a point mass stays a point mass, so x, noise and the sum of the c
of each row are right to 1e-10. Errors whose sum is zero are left to the tests of moments and order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from diffode.errors import InputError
from diffode.prediction import PREDICTIONS
from diffode.schedule import Path

CONSTANT = ("noise", "data", "flow")  # predictions whose pair does not depend on λ, so that they may be averaged over λ


@dataclass(frozen=True)
class Stage:
    """One row.

    lam: where the new state lives, and where the model is evaluated.     x: coefficient of the anchor.
    c: evaluation index -> coefficient.     noise: std of the fresh noise.     draw: which N(0, I) tensor, 1, 2, ...
    evaluate: append the model's prediction here.     commit: the new state becomes the anchor.
    """

    lam: float
    x: float
    c: Mapping[int, float] = field(default_factory=dict)
    noise: float = 0.0
    draw: int | None = None
    evaluate: bool = True
    commit: bool = True

    def __post_init__(self) -> None:
        for name in ("lam", "x", "noise"):
            object.__setattr__(self, name, float(getattr(self, name)))
        object.__setattr__(self, "c", {j: float(c) for j, c in self.c.items() if c != 0})  # 0 · NaN is NaN: live entries only
        if (self.noise != 0) != (self.draw is not None) or (self.draw or 1) < 1:
            raise InputError(
                f"the stage at λ = {self.lam:g} has noise {self.noise:g} and draw {self.draw}: give both or neither, "
                "and draws from 1 on, 0 being the initial state"
            )


@dataclass(frozen=True)
class Plan:
    """A solver, planned. `exact_marginals` is False for the one published rule that adds more noise than its mean allows."""

    solver: str
    path: Path
    prediction: str
    stages: tuple[Stage, ...]
    exact_marginals: bool = True

    def __post_init__(self) -> None:
        if self.prediction not in CONSTANT:
            raise InputError(
                f"a plan is made for one of {', '.join(CONSTANT)}, not for {self.prediction!r}, whose pair changes with λ"
            )
        if len(self.stages) < 2 or not _is_start(self.stages[0]):
            raise InputError("a plan begins with its start: x = 1, no c, no noise, committed; and has a stage after it")
        evaluations, anchor = 0, self.stages[0]
        for row, stage in enumerate(self.stages):
            if any(not 0 <= j < evaluations for j in stage.c):
                raise InputError(
                    f"stage {row} of {self.solver} uses evaluations {sorted(stage.c)} where {evaluations} have been made"
                )
            self._check_transfer(row, anchor, stage)
            evaluations += stage.evaluate
            anchor = stage if stage.commit else anchor
        if not self.stages[-1].commit or self.stages[-1].evaluate:
            raise InputError("a plan ends with a stage that commits and does not evaluate")

    def _check_transfer(self, row: int, anchor: Stage, stage: Stage) -> None:
        """α_s X + p0 ΣC = α_t and σ_s X + p1 ΣC = sqrt(σ_t² − n²), to 1e-10 of the largest term."""
        (alpha_s, alpha_t), (sigma_s, sigma_t) = (
            f(np.array([anchor.lam, stage.lam])) for f in (self.path.alpha, self.path.sigma)
        )
        p0, p1 = PREDICTIONS[self.prediction](0.0, 0.0)
        total = sum(stage.c.values())
        variance = sigma_t**2 - stage.noise**2
        law = [(alpha_s * stage.x, p0 * total, alpha_t)]
        if self.exact_marginals:
            law.append((sigma_s * stage.x, p1 * total, np.sqrt(variance) if variance > 0 else 0.0))
        finite = np.isfinite([stage.x, stage.noise, *stage.c.values(), *law[0]]).all()
        off = max(abs(a + b - c) / max(abs(a), abs(b), abs(c), 1e-300) for a, b, c in law)
        if not finite or off > 1e-10 or (self.exact_marginals and variance < -1e-10 * sigma_t**2):
            raise InputError(
                f"stage {row} of {self.solver}, λ = {anchor.lam:g} to {stage.lam:g}, breaks the transfer law by {off:.1e}: "
                f"x = {stage.x:g}, c = {dict(stage.c)}, noise = {stage.noise:g} do not carry a point mass to a point mass"
            )

    @property
    def nfe(self) -> int:
        """Evaluations of the model."""
        return sum(stage.evaluate for stage in self.stages)

    @property
    def grid(self) -> list[float]:
        """λ of the committed states, the start included."""
        return [stage.lam for stage in self.stages if stage.commit]

    @property
    def stochastic(self) -> bool:
        return any(stage.noise for stage in self.stages)

    @property
    def last_use(self) -> dict[int, int]:
        """Evaluation index -> the last stage that uses it."""
        return {j: row for row, stage in enumerate(self.stages) for j in stage.c}

    @property
    def memory(self) -> int:
        """The largest number of evaluations that have to be kept at a time."""
        made = np.cumsum([stage.evaluate for stage in self.stages])
        last = self.last_use
        return max(sum(last.get(j, -1) > row for j in range(n)) for row, n in enumerate(made))

    def __str__(self) -> str:
        """The table: a stage a line, E where it evaluates, K where it commits."""
        spent = f"{len(self.grid) - 1} steps, {self.nfe} NFE, memory {self.memory}"
        head = f"{self.solver}: {spent}, prediction {self.prediction}, path {self.path.name}"
        lines = [head, f"{'':4}{'λ':>10} {'σ/α':>10}  E K {'x':>14} {'noise':>11}  c"]
        for row, stage in enumerate(self.stages):
            flags = ("E" if stage.evaluate else "-") + (" K" if stage.commit else " -")
            c = "  ".join(f"m{j}: {c:+.8g}" for j, c in sorted(stage.c.items()))
            lines.append(
                f"{row:<4}{stage.lam:10.5f} {np.exp(-stage.lam):10.5g}  {flags} {stage.x:14.8g} {stage.noise:11.6g}  {c}".rstrip()
            )
        return "\n".join(lines)


def _is_start(stage: Stage) -> bool:
    return stage.x == 1 and not stage.c and not stage.noise and stage.commit and stage.evaluate
