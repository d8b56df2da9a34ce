"""Rules of guidance: what is done to the guided prediction, in the prediction that each rule acts in, one after the other."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffode import checks, prediction
from diffode.errors import InputError, named, shown
from diffode.evaluation import column

Combine = Callable[[Tensor, Tensor, Tensor, float | Tensor], Tensor]  # (conditional, away, guided, weight) -> guided
RULES = "rescaled(0.7), apg(), or functions of (conditional, away, guided, weight)"


@dataclass(frozen=True)
class Rule:
    """What is done to the guided prediction, in the prediction `predicts`, by default that of the network.

    begin() makes the function of a run, (conditional, away, guided, weight) -> guided. away: what the branch away predicts.
    weight: a number, or (batch, 1, ...), and then 1 for the samples that rules leave as they are, whose own weight is 0 or 1.
    has_memory: whether that function depends on what it was given before.
    """

    begin: Callable[[], Combine]
    predicts: str | None = None
    has_memory: bool = False

    def __post_init__(self) -> None:
        checks.function("begin", self.begin, "a function that makes the rule's function of a run")
        if self.predicts is not None:
            prediction.check(self.predicts)
        checks.flag("has_memory", self.has_memory)

    @classmethod
    def of(cls, rule: Rule | Combine) -> Rule:
        """A rule itself, or a function (conditional, away, guided, weight) -> guided as one."""
        return rule if isinstance(rule, Rule) else cls(Always(_checked("rules", rule)))

    def start(self) -> Combine:
        """The function of a run; InputError where begin() makes none."""
        return _checked(f"what {self} begins with", self.begin())

    def check_returned(self, found: object, guided: Tensor) -> None:
        """InputError where what its function returned is no prediction like the guided one."""
        if not isinstance(found, Tensor) or found.shape != guided.shape:
            what = tuple(found.shape) if isinstance(found, Tensor) else shown(found)
            raise InputError(f"the rule {self} must return the guided prediction, {tuple(guided.shape)}, not {what}")

    def __str__(self) -> str:
        """Its name."""
        return named(self.begin)


def _checked(name: str, combine: Combine) -> Combine:
    """A function of a run; InputError for what is none, or takes other arguments."""
    checks.function(name, combine, RULES)
    try:
        inspect.signature(combine).bind("conditional", "away", "guided", "weight")
    except TypeError as misfit:
        raise checks.wrong(name, RULES, f"{named(combine)}{inspect.signature(combine)}") from misfit
    except ValueError:  # it has no signature
        pass
    return combine


@dataclass(frozen=True, repr=False)
class Always:
    """The beginning of a rule without memory."""

    combine: Combine

    def __call__(self) -> Combine:
        return self.combine

    def __repr__(self) -> str:
        return named(self.combine)


@dataclass(frozen=True, repr=False)
class Rescaled:
    """See `rescaled`."""

    phi: float

    def __call__(self, conditional: Tensor, away: Tensor, guided: Tensor, weight: float | Tensor) -> Tensor:
        had, has = (_flat(m).std(-1, correction=0) for m in (conditional, guided))
        ratio = torch.where(has > 0, had / has, 1.0)  # where all numbers of a sample are equal there is nothing to scale
        return guided * column(1 + self.phi * (ratio - 1), guided)

    def __repr__(self) -> str:
        return f"rescaled({self.phi:g})"


def rescaled(phi: float = 0.7) -> Rule:
    """The guided prediction m scaled towards the spread of the conditional one c (Lin et al., 2024, Eq. 14 to 16):

        φ m std(c)/std(m) + (1 − φ) m

    with the standard deviation over all of a sample, in the network's own prediction, as diffusers does it.
    """
    return Rule(Always(Rescaled(checks.number("phi", phi, 0, 1))))


@dataclass(frozen=True)
class Projected:
    """See `apg`."""

    eta: float
    norm: float
    momentum: float

    def __call__(self) -> Combine:
        average: float | Tensor = 0.0

        def project(conditional: Tensor, away: Tensor, guided: Tensor, weight: float | Tensor) -> Tensor:
            nonlocal average
            gain, d = weight - 1, conditional - away
            changed = d
            if self.momentum:
                changed = d + self.momentum * average
                average = torch.where(gain == 0, average, changed) if isinstance(gain, Tensor) else changed
            changed = changed * column((self.norm / _flat(changed).norm(dim=-1)).clamp(max=1), d)
            unit = conditional / column(_flat(conditional).norm(dim=-1).clamp(min=1e-12), d)
            along = column((_flat(changed) * _flat(unit)).sum(-1), d) * unit
            return guided + gain * (changed + (self.eta - 1) * along - d)

        return project

    def __repr__(self) -> str:
        return f"apg({self.eta:g}, {self.norm:g}, {self.momentum:g})"


def apg(eta: float = 0.0, norm: float = math.inf, momentum: float = 0.0) -> Rule:
    """Adaptive projected guidance (Sadat et al., 2025, Alg. 1): of d = x̂0(c) − x̂0(null), c + (w − 1)(d⊥ + η d∥).

    d∥ is the part of d along the conditional x̂0, which saturates; d is first shortened to length `norm` (r), and before that made
    the average d + β d̄ over the evaluations of a run, with β = momentum. A momentum takes a solver with a plan. The paper: η = 0,
    β = −0.5, r from 2.5 (EDM2) to 15 (SDXL). After other rules, what this changes of (w − 1) d is added to theirs.
    """
    eta, momentum = checks.number("eta", eta), checks.number("momentum", momentum, -1, 1)
    norm = checks.number("norm", norm, positive=True, finite=False)
    return Rule(Projected(eta, norm, momentum), "data", has_memory=momentum != 0)


def _flat(m: Tensor) -> Tensor:
    """(batch, numbers of a sample)."""
    return m.reshape(len(m), -1)
