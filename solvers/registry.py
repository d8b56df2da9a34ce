"""SOLVERS: what every name means, how it spends evaluations, and how it is run."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from diffode.errors import InputError
from diffode.model import EpsModel
from diffode.noise import Noise
from diffode.schedule import Array, Schedule
from solvers import blackbox, ddim, dpm_solver
from solvers.execute import OnCommit, Result, run
from solvers.plan import Plan


@dataclass(frozen=True)
class Solver:
    """A planned solver.

    build(grid, schedule, **options) -> Plan. evaluations: a step. order: of the global error for h → 0; 0 for a solver that
    is stochastic by default and converges in distribution only. source: paper and equation.
    """

    name: str
    build: Callable[..., Plan]
    order: int
    evaluations: int
    source: str
    stochastic: bool = False
    adaptive: ClassVar[bool] = False

    @property
    def options(self) -> tuple[str, ...]:
        return _keywords(self.build)

    def plan(self, grid: Array, schedule: Schedule, **options: Any) -> Plan:
        """The table; InputError for an option that this solver does not have."""
        _refuse_unknown(self.name, self.options, options)
        return self.build(grid, schedule, **options)

    def nfe(self, grid: Array, schedule: Schedule, **options: Any) -> int:
        """What it spends on this grid."""
        return self.plan(grid, schedule, **options).nfe

    def solve(
        self,
        model: EpsModel,
        x: Tensor,
        grid: Array,
        *,
        noise: Noise | None = None,
        on_commit: OnCommit | None = None,
        trajectory: bool = False,
        **options: Any,
    ) -> Result:
        plan = self.plan(grid, model.schedule, **options)
        return run(plan, model, x, noise=noise, on_commit=on_commit, trajectory=trajectory)


@dataclass(frozen=True)
class BlackBox:
    """An integrator of torchdiffeq, on dx/dλ. Its grid gives the ends, and to a fixed-step method the steps."""

    name: str
    method: blackbox.Method
    source: str = "torchdiffeq, on dx/dλ"
    stochastic: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """Those that the method heeds."""
        return ("rtol", "atol", "max_nfe") if self.adaptive or self.method.name == "implicit_adams" else ()

    @property
    def adaptive(self) -> bool:
        return self.method.adaptive

    @property
    def order(self) -> int:
        return self.method.order

    @property
    def evaluations(self) -> int:
        return self.method.evaluations

    def plan(self, grid: Array, schedule: Schedule, **options: Any) -> Plan:
        """InputError: a black box has no table."""
        raise InputError(f"{self.name} is driven by torchdiffeq and has no plan")

    def nfe(self, grid: Array, schedule: Schedule, **options: Any) -> int:
        """What it spends on this grid; InputError for methods whose evaluations are not known beforehand."""
        if self.method.adaptive:
            raise InputError(
                f"{self.name} is adaptive and chooses its own number of evaluations: leave --nfe out and give --rtol and --atol"
            )
        if not self.evaluations:
            raise InputError(
                f"{self.name} does not spend the same number of evaluations on each step: give --steps instead of --nfe"
            )
        return (len(grid) - 1) * self.evaluations

    def solve(
        self,
        model: EpsModel,
        x: Tensor,
        grid: Array,
        *,
        noise: Noise | None = None,
        on_commit: OnCommit | None = None,
        trajectory: bool = False,
        **options: Any,
    ) -> Result:
        _refuse_unknown(self.name, self.options, options)
        if on_commit is not None or trajectory:
            raise InputError(f"{self.name} is a black box: it has no commits and no trajectory; use a planned solver")
        return blackbox.integrate(self.method, model, x, grid, **options)


Entry = Solver | BlackBox

ENTRIES: tuple[Entry, ...] = (
    Solver("ddpm", ddim.ddpm, 0, 1, "Ho et al. 2020, Alg. 2", stochastic=True),
    Solver("ddim", ddim.ddim, 1, 1, "Song et al. 2021a, Eq. 12"),
    Solver("euler", ddim.euler, 1, 1, "Song et al. 2021a, Eq. 14"),
    Solver("dpm1", dpm_solver.dpm1, 1, 1, "Lu et al. 2022a, Eq. 3.7"),
    Solver("dpm2", dpm_solver.dpm2, 2, 2, "Lu et al. 2022a, Alg. 4"),
    Solver("dpm3", dpm_solver.dpm3, 3, 3, "Lu et al. 2022a, Alg. 5"),
    Solver("dpmpp2m", dpm_solver.dpmpp2m, 2, 1, "Lu et al. 2022b, Alg. 2"),
    BlackBox("euler-lambda", blackbox.Method("euler", 1, 1)),
    *(BlackBox(method.name, method) for method in blackbox.METHODS),
)
SOLVERS = {entry.name: entry for entry in ENTRIES}
assert len(SOLVERS) == len(ENTRIES), "two solvers share a name"


def find(name: str) -> Entry:
    """The solver of that name; InputError that lists the known ones and suggests the nearest."""
    if name not in SOLVERS:
        near = difflib.get_close_matches(name, SOLVERS, 1)
        raise InputError(f"unknown solver {name!r}{f': did you mean {near[0]}?' if near else ','} known are {', '.join(SOLVERS)}")
    return SOLVERS[name]


def _keywords(build: Callable[..., Plan]) -> tuple[str, ...]:
    return tuple(
        name for name, parameter in inspect.signature(build).parameters.items() if parameter.kind is parameter.KEYWORD_ONLY
    )


def _refuse_unknown(name: str, known: tuple[str, ...], given: dict[str, Any]) -> None:
    if unknown := [option for option in given if option not in known]:
        raise InputError(f"{name} has no option {unknown[0]!r}: it has {', '.join(known) or 'none'}")


def table() -> str:
    """The solvers as a Markdown table: what `cli.py solvers` and the README show."""
    rows = [("name", "order", "NFE a step", "stochastic", "options", "source")]
    for entry in SOLVERS.values():
        evaluations = str(entry.evaluations) if entry.evaluations else "adaptive" if entry.adaptive else "varies"
        weak = "yes" if entry.stochastic else ""
        rows.append((entry.name, str(entry.order or "weak"), evaluations, weak, ", ".join(entry.options), entry.source))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
