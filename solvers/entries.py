"""What a name in SOLVERS stands for: a planned solver, a plan, an adaptive pair, or an integrator of torchdiffeq.

All have the same face: name, order, what a step costs, options; nfe(grid) says what a grid costs, solve(model, x, grid) runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, get_args, get_type_hints

import numpy as np
from torch import Tensor

from diffode.errors import InputError
from diffode.model import EpsModel
from diffode.noise import Noise
from diffode.schedule import Array, Schedule
from solvers import adaptive, blackbox
from solvers.execute import OnCommit, OnStep, Result, run
from solvers.plan import Plan

Options = dict[str, Any]


@dataclass(frozen=True)
class Solver:
    """A planned solver.

    build(grid, schedule, **options) -> Plan. evaluations: a step. source: paper and equation.
    order: of the global error for h → 0, in distribution (weak) if it is stochastic by default.
    started: the order that its default start leaves, if less: a ramp of orders 1, 2, ... costs a multistep method all beyond 2.
    unic: its order with UniC on top, as NAME+unic, if it can be had.
    spend: (evaluations, denoise) -> (steps, options), if that is not a matter of steps alone.
    """

    name: str
    build: Callable[..., Plan]
    order: int
    evaluations: int
    source: str
    started: int = 0
    unic: int = 0
    stochastic: bool = False
    spend: Callable[[int, bool], tuple[int, Options]] | None = None
    adaptive: ClassVar[bool] = False

    @property
    def options(self) -> dict[str, type]:
        """Its options, and the type of each."""
        return keywords(self.build)

    def plan(self, grid: Array, schedule: Schedule, **options: Any) -> Plan:
        """The table; InputError for an option that this solver does not have."""
        refuse_unknown(self.name, self.options, options)
        grid = np.asarray(grid, np.float64)
        if grid.ndim != 1 or len(grid) < 2 or not (np.all(grid[1:] > grid[:-1]) or np.all(grid[1:] < grid[:-1])):
            raise InputError(f"{self.name} takes a grid of two or more λ, all increasing or all decreasing, not {grid.tolist()}")
        with named(self.name):
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
        on_step: OnStep | None = None,
        trajectory: bool = False,
        **options: Any,
    ) -> Result:
        plan = self.plan(grid, model.schedule, **options)
        return run(plan, model, x, noise=noise, on_commit=on_commit, on_step=on_step, trajectory=trajectory)


@dataclass(frozen=True)
class Planned:
    """A plan as a solver: one grid, no options."""

    made: Plan
    name: str
    order: ClassVar[int] = 0
    adaptive: ClassVar[bool] = False
    source: ClassVar[str] = "a plan"

    @property
    def evaluations(self) -> int:
        return self.made.nfe

    @property
    def stochastic(self) -> bool:
        return self.made.stochastic

    @property
    def options(self) -> dict[str, type]:
        return {}

    @property
    def grid(self) -> list[float]:
        """The only grid it can be run on."""
        return self.made.grid

    def plan(self, grid: Array, schedule: Schedule, **options: Any) -> Plan:
        """The plan; InputError for a grid that is not its own, another path, or any option."""
        refuse_unknown(self.name, {}, options)
        if list(grid) != self.grid or schedule.path != self.made.path:
            raise InputError(
                f"{self.name} is a plan for its own grid on the path {self.made.path.name}: leave --grid, --steps, --nfe and "
                f"--denoise out, and take a model on that path (this one is on {schedule.path.name})"
            )
        return self.made

    def nfe(self, grid: Array, schedule: Schedule, **options: Any) -> int:
        """What it spends."""
        return self.plan(grid, schedule, **options).nfe

    def solve(self, model: EpsModel, x: Tensor, grid: Array, *, noise: Noise | None = None, **how: Any) -> Result:
        return run(self.plan(grid, model.schedule), model, x, noise=noise, **how)


@dataclass(frozen=True)
class Adaptive:
    """An embedded pair: it chooses its own steps, for each sample."""

    name: str
    pair: adaptive.Pair
    source: str
    stochastic: ClassVar[bool] = False
    adaptive: ClassVar[bool] = True
    evaluations: ClassVar[int] = 0

    @property
    def order(self) -> int:
        return self.pair.order

    @property
    def options(self) -> dict[str, type]:
        return {"rtol": float, "atol": float, "max_nfe": int}

    def plan(self, grid: Array, schedule: Schedule, **options: Any) -> Plan:
        """InputError: its plan is known when it has been taken."""
        raise InputError(f"{self.name} chooses its steps as it goes: the plan it took is in the result (--save-plan)")

    def nfe(self, grid: Array, schedule: Schedule, **options: Any) -> int:
        """InputError: not known beforehand."""
        raise InputError(_CHOOSES.format(self.name))

    def solve(
        self,
        model: EpsModel,
        x: Tensor,
        grid: Array,
        *,
        noise: Noise | None = None,
        on_commit: OnCommit | None = None,
        on_step: OnStep | None = None,
        trajectory: bool = False,
        **options: Any,
    ) -> Result:
        refuse_unknown(self.name, self.options, options)
        if on_commit is not None or on_step is not None or trajectory:
            raise InputError(
                f"{self.name} steps each sample on its own and has no common states to hand to a callback or a trajectory: "
                "run the plan that it took, or use a planned solver"
            )
        with named(self.name):
            return adaptive.integrate(self.pair, model, x, grid, **options)


@dataclass(frozen=True)
class BlackBox:
    """An integrator of torchdiffeq. Its grid gives the ends; to a fixed-step method also the steps, to an adaptive one the λ of
    its trajectory, if that is asked for."""

    name: str
    method: blackbox.Method
    source: str = "torchdiffeq"
    stochastic: bool = False

    @property
    def options(self) -> dict[str, type]:
        """Those that the method heeds."""
        tolerances = {"rtol": float, "atol": float, "max_nfe": int, "per_sample": bool}
        return {"variable": str, **(tolerances if self.adaptive or self.method.name == "implicit_adams" else {})}

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
            raise InputError(_CHOOSES.format(self.name))
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
        on_step: OnStep | None = None,
        trajectory: bool = False,
        **options: Any,
    ) -> Result:
        refuse_unknown(self.name, self.options, options)
        if on_commit is not None or on_step is not None:
            raise InputError(f"{self.name} is a black box and has no commits: use a planned solver")
        if self.adaptive and np.isfinite(grid).sum() > 2 and not trajectory:
            raise InputError(
                f"{self.name} chooses its own steps: leave --steps and inner values of --grid out, or ask for --trajectory there"
            )
        with named(self.name):
            return blackbox.integrate(self.method, model, x, grid, trajectory=trajectory, **options)


Entry = Solver | Planned | Adaptive | BlackBox

_CHOOSES = "{} is adaptive and chooses its own number of evaluations: leave --nfe out and give --rtol and --atol"


@contextmanager
def named(solver: str) -> Iterator[None]:
    """Whatever is refused within says which solver it was."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error) if solver in str(error) else f"{solver}: {error}") from error


def keywords(build: Callable[..., Plan]) -> dict[str, type]:
    """The keyword-only parameters of a function and their types, those of `**policy: Unpack[Policy]` among them."""
    known: dict[str, type] = {}
    for name, parameter in inspect.signature(build, eval_str=True).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            known.update(get_type_hints(get_args(parameter.annotation)[0]) if get_args(parameter.annotation) else {})
        elif parameter.kind is parameter.KEYWORD_ONLY:
            kinds = [kind for kind in get_args(parameter.annotation) or (parameter.annotation,) if kind is not type(None)]
            known[name] = kinds[0] if kinds[0] in (bool, int, float) else str
    return known


def refuse_unknown(name: str, known: dict[str, type], given: Options) -> None:
    """InputError for an option that is not known, with those that are."""
    if unknown := [option for option in given if option not in known]:
        raise InputError(f"{name} has no option {unknown[0]!r}: it has {', '.join(known) or 'none'}")


def parse(entry: Entry, given: dict[str, str]) -> Options:
    """Options typed as text, each as the type that the solver takes; InputError for one that is not."""
    refuse_unknown(entry.name, entry.options, given)
    values: Options = {}
    for option, text in given.items():
        kind = entry.options[option]
        try:
            values[option] = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
        except (ValueError, KeyError):
            wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
            raise InputError(f"the option {option} of {entry.name} is {wanted}, not {text!r}") from None
    return values
