"""Butcher tables, and Runge–Kutta steps in the variable in which the equation has no linear part.

In noise form that is σ̄ = σ/α = e^(−λ), where dy/dσ̄ = ε for y = x/α; in data form its inverse, where d(x/σ)/d(1/σ̄) = x̂0.
In either, a step of v by Δv puts stage i at v + c_i Δv with the state y + Δv Σ_j a_ij m_j: the transfer law with weights
a_ij/c_i, so every explicit table is a Plan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffode.errors import InputError
from diffode.schedule import Array
from solvers.singlestep import SIGN, Method, Rows, first, second, third


@dataclass(frozen=True)
class ButcherTable:
    """An explicit Runge–Kutta method. a: the rows of the lower triangle; b: the weights; order: that of the error for h → 0.

    The constructor checks c_i = Σ_j a_ij > 0, Σ b_i = 1, and the order conditions up to order 5 (Hairer, Nørsett and Wanner,
    1993, II.2). InputError if one does not hold.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int
    source: str

    def __post_init__(self) -> None:
        if len(self.a) != len(self.b) - 1 or any(len(row) != i + 1 for i, row in enumerate(self.a)):
            raise InputError(f"an explicit table of {len(self.b)} stages has {len(self.b) - 1} rows of 1, 2, ... numbers")
        if any(c <= 0 for c in self.c[1:]):
            raise InputError("every stage of an explicit table but the first must be at c > 0")
        b, c, a = np.array(self.b), self.c, np.zeros((len(self.b),) * 2)
        for i, row in enumerate(self.a, 1):
            a[i, :i] = row
        trees: list[tuple[int, list[tuple[Any, float]]]] = [
            (1, [(b.sum(), 1)]),
            (2, [(b @ c, 1 / 2)]),
            (3, [(b @ c**2, 1 / 3), (b @ a @ c, 1 / 6)]),
            (4, [(b @ c**3, 1 / 4), (b @ (c * (a @ c)), 1 / 8), (b @ a @ c**2, 1 / 12), (b @ a @ a @ c, 1 / 24)]),
            (5, [(b @ c**4, 1 / 5), (b @ (c**2 * (a @ c)), 1 / 10), (b @ (c * (a @ c**2)), 1 / 15), (b @ a @ c**3, 1 / 20)]),
            (5, [(b @ (c * (a @ a @ c)), 1 / 30), (b @ (a @ c) ** 2, 1 / 20), (b @ a @ (c * (a @ c)), 1 / 40)]),
            (5, [(b @ a @ a @ c**2, 1 / 60), (b @ a @ a @ a @ c, 1 / 120)]),
        ]
        for order, conditions in trees:
            if order <= self.order and any(abs(value - wanted) > 1e-12 for value, wanted in conditions):
                raise InputError(f"the table is said to be of order {self.order} and breaks a condition of order {order}")

    @property
    def c(self) -> Array:
        """Where the stages are, in units of the step: c_i = Σ_j a_ij, (stages,)."""
        return np.array([0.0, *(sum(row) for row in self.a)])

    def steps(self, prediction: str) -> Method:
        """The method (h -> rows) in σ̄ for prediction "noise", in 1/σ̄ for "data"."""
        sign = -SIGN[prediction]

        def rows(h: float) -> Rows:
            where = np.log1p(self.c[1:] * np.expm1(sign * h)) / (sign * h)  # v = e^(sign λ) at v_s + c Δv, in units of h
            stages: Rows = [
                (1.0 if c == 1 else float(r), {j: w / c for j, w in enumerate(row) if w})
                for r, c, row in zip(where, self.c[1:], self.a, strict=True)
            ]
            return [*stages, (1.0, {j: w for j, w in enumerate(self.b) if w})]

        return rows


def _two(c: float) -> tuple[tuple[tuple[float, ...], ...], tuple[float, ...], int]:
    """a, b and order of the two-stage method of order 2 whose second stage is at c."""
    return ((c,),), (1 - 1 / (2 * c), 1 / (2 * c)), 2


TABLES: dict[str, ButcherTable] = {
    "euler": ButcherTable((), (1.0,), 1, "Euler"),
    "midpoint": ButcherTable(*_two(1 / 2), "Runge 1895"),
    "heun2": ButcherTable(*_two(1.0), "Heun 1900"),
    "ralston": ButcherTable(*_two(2 / 3), "Ralston 1962"),
    "heun3": ButcherTable(((1 / 3,), (0, 2 / 3)), (1 / 4, 0, 3 / 4), 3, "Heun 1900"),
    "kutta3": ButcherTable(((1 / 2,), (-1, 2)), (1 / 6, 2 / 3, 1 / 6), 3, "Kutta 1901"),
    "ralston3": ButcherTable(((1 / 2,), (0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9), 3, "Ralston 1962"),
    "ssprk3": ButcherTable(((1,), (1 / 4, 1 / 4)), (1 / 6, 1 / 6, 2 / 3), 3, "Shu and Osher 1988"),
    "rk4": ButcherTable(((1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 4, "Kutta 1901"),
    "rk38": ButcherTable(((1 / 3,), (-1 / 3, 1), (1, -1, 1)), (1 / 8, 3 / 8, 3 / 8, 1 / 8), 4, "Kutta 1901, 3/8 rule"),
    "dopri5": ButcherTable(
        (
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        ),
        (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        5,
        "Dormand and Prince 1980",
    ),
}


def single_step(order: int, prediction: str) -> Method:
    """The single step that starts a multistep method of this order, 1 to 5: exponential up to 3, Runge–Kutta for 4 and 5."""
    exponential: dict[int, Callable[[float], Rows]] = {1: first, 2: second, 3: third}
    if order in exponential:
        return lambda h: exponential[order](SIGN[prediction] * h)
    return TABLES[{4: "rk4", 5: "dopri5"}[order]].steps(prediction)
