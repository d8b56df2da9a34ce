"""Rules of guidance: what is done to the guided prediction, in the prediction that each rule acts in, one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffode import checks

Combine = Callable[[Tensor, Tensor, float | Tensor], Tensor]  # (conditional, guided, weight) -> guided
RULES = "rescaled(0.7), apg(), or functions of (conditional, guided, weight)"


@dataclass(frozen=True)
class Rule:
    """What is done to the guided prediction, in the prediction `predicts`, by default that of the network.

    begin() makes the function of a run, (conditional, guided, weight) -> guided; weight is a number, or (batch, 1, ...).
    has_memory: whether that function depends on what it was given before.
    """

    begin: Callable[[], Combine]
    predicts: str | None = None
    has_memory: bool = False

    @classmethod
    def of(cls, rule: Rule | Combine) -> Rule:
        """A rule itself, or a function (conditional, guided, weight) -> guided as one."""
        if isinstance(rule, Rule):
            return rule
        checks.function("rules", rule, RULES)
        return cls(lambda: rule)


def rescaled(phi: float = 0.7) -> Rule:
    """The guided prediction m scaled towards the spread of the conditional one c (Lin et al., 2024, Eq. 14 to 16):

        φ m std(c)/std(m) + (1 − φ) m

    with the standard deviation over all of a sample, in the network's own prediction, as diffusers does it.
    """
    phi = checks.number("phi", phi, 0, 1)

    def rescale(conditional: Tensor, guided: Tensor, weight: float | Tensor) -> Tensor:
        had, has = (_flat(m).std(-1, correction=0) for m in (conditional, guided))
        ratio = torch.where(has > 0, had / has, 1.0)  # where all numbers of a sample are equal there is nothing to scale
        return guided * _column(1 + phi * (ratio - 1), guided)

    return Rule(lambda: rescale)


def apg(eta: float = 0.0, norm: float = math.inf, momentum: float = 0.0) -> Rule:
    """Adaptive projected guidance (Sadat et al., 2025, Alg. 1): of d = x̂0(c) − x̂0(null), c + (w − 1)(d⊥ + η d∥).

    d∥ is the part of d along the conditional x̂0, which saturates; d is first shortened to length `norm` (r), and before that made
    the average d + β d̄ over the evaluations of a run, with β = momentum. A momentum takes a solver with a plan. The paper: η = 0,
    β = −0.5, r from 2.5 (EDM2) to 15 (SDXL).
    """
    eta, momentum = checks.number("eta", eta), checks.number("momentum", momentum, -1, 1)
    norm = checks.number("norm", norm, positive=True, finite=False)

    def begin() -> Combine:
        average: list[Tensor] = []

        def project(conditional: Tensor, guided: Tensor, weight: float | Tensor) -> Tensor:
            gain = weight - 1  # guided = conditional + gain d
            safe = torch.where(gain == 0, 1.0, gain) if isinstance(gain, Tensor) else gain
            d = (guided - conditional) / safe
            if momentum:
                d = d + momentum * average.pop() if average else d
                average.append(d)
            d = d * _column((norm / _flat(d).norm(dim=-1)).clamp(max=1), d)
            unit = conditional / _column(_flat(conditional).norm(dim=-1).clamp(min=1e-12), d)
            along = _column((_flat(d) * _flat(unit)).sum(-1), d) * unit
            return conditional + gain * (d + (eta - 1) * along)

        return project

    return Rule(begin, "data", has_memory=momentum != 0)


def _flat(m: Tensor) -> Tensor:
    """(batch, numbers of a sample)."""
    return m.reshape(len(m), -1)


def _column(values: Tensor, like: Tensor) -> Tensor:
    """(batch,) as (batch, 1, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))
