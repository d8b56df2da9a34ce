"""Guidance: several calls of networks at one (x, λ), made into one prediction.

With branches towards a condition, of weights w_k and outputs m_k, and a branch away from another, of output m:

    m_guided = Σ w_k m_k + (1 − Σ w_k) m = m + Σ w_k (m_k − m)

in the network's own prediction; in any other it is the same, since the weights sum to 1. A branch whose weight is 0 is neither
called nor counted. One branch is classifier-free guidance (Ho and Salimans, 2022), several are composed (Liu et al., 2022). The
branch away leaves labels out, or has another condition (a negative prompt), or another network (Karras et al., 2024).

A weight is a number, one per sample (batch,), or a function of λ that returns either (interval, cfgpp). A function of λ keeps the
order of a solver if it is smooth. All weights are computed when the model is bound, in float64.

A rule changes the guided prediction (rescaled, apg), and steering adds a gradient (Dhariwal and Nichol, 2021). `EpsModel` has
methods for all of it (guided, composed, steered); docs/guidance.md has an example of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from diffode import checks
from diffode.conditions import cloned, rows_of
from diffode.errors import InputError
from diffode.rules import Combine, Rule, apg, rescaled
from diffode.schedule import Array
from diffode.weights import Weight, aligned, cfgpp, check_weight, interval, rows_of_weight, said, weights_at

if TYPE_CHECKING:
    from diffode.model import EpsModel

__all__ = ["Guidance", "Rule", "Steering", "Weight", "apg", "calls_of", "cfgpp", "guided", "interval", "rescaled", "steered"]

Condition = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Steering:
    """The gradient of log_p(x, clock, **condition), (batch,), times `scale`."""

    log_p: Callable[..., Tensor]
    scale: Weight
    condition: Condition


@dataclass(frozen=True, eq=False)
class Guidance:
    """How an evaluation is made of calls; the default is one call of the network, as without guidance.

    towards: (weight, what it changes of the model's condition) of each branch. null: what the branch away changes of it; if it is
    empty, labels are left out there. other: the model of the branch away, if it is another. batched: whether all calls are made
    as one. steering: see Steering; all are added.
    """

    towards: tuple[tuple[Weight, Condition], ...] = ((1.0, {}),)
    null: Condition = field(default_factory=dict)
    other: EpsModel | None = None
    rules: tuple[Rule, ...] = ()
    batched: bool = False
    steering: tuple[Steering, ...] = ()

    def __post_init__(self) -> None:
        if not self.towards:
            raise checks.wrong("towards", "at least one (weight, {condition})", self.towards)
        if self.rules and len(self.towards) > 1:
            raise InputError("rules are of one condition and what it is guided away from: leave them out of what is composed")

    @property
    def networks(self) -> tuple[Callable[..., Any], ...]:
        """What is called beside the model's own network."""
        return (*(() if self.other is None else (self.other.network,)), *(steering.log_p for steering in self.steering))

    @property
    def has_memory(self) -> bool:
        """Whether an evaluation depends on those before it."""
        return any(rule.has_memory for rule in self.rules)

    def weights(self, lams: Sequence[float] | Array, batch: int) -> Array:
        """Of each branch, last of that away: (branches, evaluations), or (branches, evaluations, batch) where samples differ."""
        weights = np.stack(aligned(*(weights_at(weight, lams, batch) for weight, _ in self.towards)))
        away = 1 - weights.sum(0)
        away[abs(away) < 4 * np.finfo(float).eps * abs(weights).sum(0)] = 0  # the rounding of weights that sum to 1
        return np.concatenate([weights, away[None]])

    def taking(self, rows: Sequence[int]) -> Guidance:
        """That of these rows of the batch."""
        return self.changed(lambda condition: rows_of(condition, rows), lambda weight: rows_of_weight(weight, rows))

    def cloned(self) -> Guidance:
        """That with tensors of its own."""
        return self.changed(cloned, lambda weight: weight)

    def changed(self, condition: Callable[[Condition], Condition], weight: Callable[[Weight], Weight]) -> Guidance:
        """That with all of its conditions and weights changed."""
        return replace(
            self,
            towards=tuple((weight(w), condition(changes)) for w, changes in self.towards),
            null=condition(self.null),
            other=self.other and self.other.replace(condition=condition(self.other.condition)),
            steering=tuple(replace(s, scale=weight(s.scale), condition=condition(s.condition)) for s in self.steering),
        )

    def __str__(self) -> str:
        """In a few words."""
        weights = " and ".join(said(weight) for weight, _ in self.towards)
        return f"guidance {weights}{', steered' * bool(self.steering)}"


def calls_of(guidance: Guidance | None, lams: Sequence[float] | Array, batch: int = 1) -> Array:
    """How many network calls an evaluation takes at each λ, (evaluations,) or (evaluations, batch), for each sample alone."""
    if guidance is None:
        return np.ones(np.shape(lams), int)
    calls = np.count_nonzero(guidance.weights(lams, batch), axis=0)
    return np.minimum(calls, 1) if guidance.batched else calls


def guided(
    model: EpsModel,
    branches: Any,
    other: EpsModel | None = None,
    rules: Sequence[Rule | Combine] = (),
    batched: bool = False,
    null: Mapping[str, Any] | None = None,
) -> Guidance | None:
    """The guidance that EpsModel.guided and .composed ask for; None where it is one call with the model's own condition.

    other: the model of the branch away, if it is another.
    """
    expected = "a list of (weight, {condition}), at least one"
    pairs = [*checks.instance("branches", branches, Sequence, expected)]
    if not pairs or not all(isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], Mapping) for pair in pairs):
        raise checks.wrong("branches", expected, branches)
    checked = tuple((check_weight("the guidance weight", weight), model.labels.checked(changes)) for weight, changes in pairs)
    if other is not None:
        _check_other(model, other)
        if checks.flag("batched", batched):
            raise InputError("two networks take two calls: leave batched out where guidance takes another network")
    found = Guidance(
        towards=checked,
        null=model.labels.checked(null or {}),
        other=other,
        rules=tuple(Rule.of(rule) for rule in checks.instance("rules", rules, Sequence, "a list of rules")),
        batched=checks.flag("batched", batched),
        steering=model.guidance.steering if model.guidance else (),
    )
    (weight, changes), *more = checked
    if not more and not changes and isinstance(weight, float) and weight == 1:
        return found if found.steering else None
    return found


def steered(guidance: Guidance | None, log_p: Callable[..., Tensor], scale: Weight, condition: Mapping[str, Any]) -> Guidance:
    """That guidance with another gradient."""
    checks.function("log_p", log_p, "a function of (x, clock, ...) that returns log p, one per sample")
    guidance = guidance or Guidance()
    return replace(guidance, steering=(*guidance.steering, Steering(log_p, check_weight("scale", scale), condition)))


def _check_other(model: EpsModel, other: EpsModel) -> None:
    """InputError for a model of the branch away that does not go with this one."""
    if other.schedule.path != model.schedule.path:
        raise InputError(
            f"guidance by a model on the path {other.schedule.path.name} does not go with one on {model.schedule.path.name}"
        )
    if other.guidance is not None:
        raise InputError("the other model of guidance is guided itself: give it as it is without")
