"""Step-size control: how long the next step is, from the error of the last.

The PI controller of Gustafsson (1991), with the exponents of Hairer and Wanner (1996, IV.2): the next step is h times

    0.9 error^(−0.7/p) previous^(0.4/p) after an accepted step,    0.9 error^(−1/p) after a rejected one,

within [0.2, 5], and no longer right after a rejection; p is the order of the error estimate, and a step is accepted if its error
is at most 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from diffode.checks import number, whole
from diffode.errors import InputError

TIGHTEST, LOOSEST = 1e-15, 1e6  # tolerances: rounding in float64 is 1e-16 per operation


@dataclass(frozen=True)
class PIController:
    """The controller for an error estimate of order p = `order`."""

    order: int
    safety: float = 0.9
    shortest: float = 0.2
    longest: float = 5.0

    def accepted(self, error: float, previous: float, after_rejection: bool) -> float:
        """The factor after an accepted step; previous: the error of the accepted step before."""
        factor = self.safety * max(error, 1e-10) ** (-0.7 / self.order) * previous ** (0.4 / self.order)
        return min(max(factor, self.shortest), 1.0 if after_rejection else self.longest)

    def rejected(self, error: float) -> float:
        """The factor after a rejected step; in this order the shortest for NaN, from a state that overflowed."""
        return max(self.shortest, self.safety * error ** (-1 / self.order))


def tolerances(rtol: float, atol: float, max_nfe: int) -> tuple[float, float, int]:
    """The three, checked; InputError for those with which no step, or any step, would be accepted."""
    rtol, atol = number("rtol", rtol, 0, 1, positive=True), number("atol", atol, 0, LOOSEST, positive=True)
    if max(rtol, atol) < TIGHTEST:
        raise InputError(
            f"rtol = {rtol:g} and atol = {atol:g} are below {TIGHTEST:g}, which float64 cannot meet: make one of them larger"
        )
    return rtol, atol, whole("max_nfe", max_nfe, 1)


@dataclass
class Walk:
    """The way of one sample to `end`: the λ of its accepted states, the step h > 0 that it tries next, and what it has cost."""

    grid: list[float]
    end: float
    h: float
    controller: PIController
    error: float = field(default=1.0, init=False)  # of the last accepted step
    nfe: int = field(default=0, init=False)
    calls: int = field(default=0, init=False)  # that it would have taken alone
    rejections: int = field(default=0, init=False)
    was_rejected: bool = field(default=False, init=False)  # the last step, whose first evaluation is still there

    @property
    def lam(self) -> float:
        """Where it is."""
        return self.grid[-1]

    def target(self) -> float:
        """Where the next step goes: to the very end if that is at most 5 % further."""
        left = self.end - self.lam
        return self.end if abs(left) <= 1.05 * self.h else self.lam + math.copysign(self.h, left)

    def judge(self, lam: float, error: float) -> bool:
        """Accept the step to λ or reject it, and choose the length of the next."""
        h, accepted = abs(lam - self.lam), error <= 1
        if accepted:
            self.h = h * self.controller.accepted(error, self.error, self.was_rejected)
            self.error = max(error, 1e-4)  # a step that was far too short says little of the next
            self.grid.append(lam)
        else:
            self.h = h * self.controller.rejected(error)
            self.rejections += 1
        self.was_rejected = not accepted
        return accepted
