"""A model bound to the λ of a run: what its network predicts there, by one call or as many as its guidance takes.

`bind` does the host's work: which calls each evaluation makes, with which weights and conditions, for calls that are made as one
their conditions joined, and all conversions. The loop then computes nothing on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from diffode import prediction
from diffode.calling import Call, dtype_of
from diffode.conditions import cloned, joined, on_device
from diffode.errors import InputError, shown
from diffode.evaluation import KEEP, Coefficient, Conversion, Counter, Evaluator, Native, columns, conversion, convert
from diffode.guidance import Guidance, Steering
from diffode.rules import Rule
from diffode.schedule import Array
from diffode.weights import aligned, weights_at

if TYPE_CHECKING:
    from diffode.model import EpsModel

Lams = Sequence[float] | Array
Branch = Callable[[Tensor, int], Tensor]  # (x, i) -> its prediction at the i-th λ
Active = tuple[int, ...]  # the branches that an evaluation calls, by number; the last of all is that away


@dataclass
class Once:
    """One call of the network, whose output is handed on as it is."""

    branch: Branch
    counter: Counter
    predicts: str
    passes_through: bool = True
    has_memory: bool = False

    def __call__(self, x: Tensor, i: int, out: Tensor | None) -> Tensor:
        self.counter.add(calls=1)
        return self.branch(x, i)


@dataclass
class Guided:
    """The branches that each evaluation calls, with their weights, and what is done to their sum.

    joint: for each set of branches that are called as one, the call and its condition. rules: with the conversions to the
    prediction in which each acts, for each evaluation. ruled: the weights that they are given there, and the samples that they
    change, None for all. gradients: what is added last, with its coefficients.
    """

    active: Sequence[tuple[Active, Sequence[Coefficient]]]
    branches: Mapping[int, Branch]
    joint: Mapping[Active, tuple[Call, Mapping[str, Any]]]
    rules: Sequence[tuple[Rule, Sequence[Conversion]]]
    ruled: Sequence[tuple[Coefficient, Tensor | None]]
    gradients: Sequence[tuple[Branch, Sequence[Coefficient]]]
    counter: Counter
    predicts: str
    has_memory: bool
    passes_through: bool = False

    def __post_init__(self) -> None:
        self.run = [rule.start() for rule, _ in self.rules]

    def __call__(self, x: Tensor, i: int, out: Tensor | None) -> Tensor:
        active, weights = self.active[i]
        outputs = self._outputs(x, i, active)
        m = conditional = away = next(outputs)
        if len(active) > 1:  # a single one has weight 1
            conditional = m.clone() if self.rules else m  # a network may write to the same memory at its next call
            m = torch.mul(m, weights[0], out=out)
            for away, weight in zip(outputs, weights[1:], strict=True):
                m = m.add_(weight * away) if isinstance(weight, Tensor) else m.add_(away, alpha=weight)
        if i == 0 and self.has_memory:  # a run begins
            self.run = [rule.begin() for rule, _ in self.rules]
        for combine, (rule, conversions) in zip(self.run, self.rules, strict=True):
            m = _converted(m, x, conversions[i])
            if len(active) > 1:
                conditional, away = (_converted(one, x, conversions[i]) for one in (conditional, away))
                weight, rows = self.ruled[i]
                changed = combine(conditional, away, m, weight)
                rule.check_returned(changed, m)
                m = changed if rows is None else torch.where(rows, changed, m)
        for gradient, coefficients in self.gradients:
            m = m + coefficients[i] * gradient(x, i)
        return m

    def _outputs(self, x: Tensor, i: int, active: Active) -> Iterator[Tensor]:
        """Of the active branches, one call after the other, or all by one."""
        if active in self.joint:
            call, condition = self.joint[active]
            self.counter.add(calls=1)
            yield from call(torch.cat([x] * len(active)), i, condition).chunk(len(active))
            return
        for number in active:
            self.counter.add(calls=1)
            yield self.branches[number](x, i)


def bind(model: EpsModel, lams: Lams, like: Tensor, predicts: str, counter: Counter) -> Evaluator:
    """A model at these λ, for states like `like` (batch, *shape); see EpsModel.bind."""
    ends = np.stack([model.schedule.alpha(lams), model.schedule.sigma(lams)], -1)
    if model.guidance is None:
        native: Native = Once(_branch(model.call_at(lams, like), model.handed(model.condition, like)), counter, model.predicts)
    else:
        native = _guided(model, model.guidance, lams, ends, like, counter)
    target = "data" if model.hooks else predicts
    return Evaluator(
        native=native,
        lams=[float(np.min(lam)) for lam in lams],
        hooks=model.hooks,
        to_hooks=[conversion(native.predicts, target, end, like) for end in ends],
        to_wanted=[conversion(target, predicts, end, like) for end in ends],
        watches=model.watches,
        counter=counter,
    )


def _guided(model: EpsModel, guidance: Guidance, lams: Lams, ends: Array, like: Tensor, counter: Counter) -> Guided:
    """The network of a guided model; ends: α and σ at each λ, (evaluations, 2) or (evaluations, batch, 2)."""
    call, table = model.call_at(lams, like), guidance.weights(lams, len(like))
    active = [_terms(column, like) for column in np.moveaxis(table, 1, 0)]
    sets = {numbers for numbers, _ in active}
    conditions = {number: _condition(model, guidance, number) for number in sorted({n for numbers in sets for n in numbers})}
    branches = {number: _branch(call, model.handed(condition, like)) for number, condition in conditions.items()}
    away = len(guidance.towards)
    if guidance.other is not None and away in conditions:
        other = guidance.other.replace(condition=conditions[away], autocast=model.autocast or guidance.other.autocast)
        branches[away] = other.bind(lams, like, model.predicts)
    several = [numbers for numbers in sets if guidance.batched and len(numbers) > 1]
    joint = {numbers: _joint(model, lams, like, [conditions[n] for n in numbers]) for numbers in several}
    rules, predicts = [], model.predicts
    for rule in guidance.rules:
        wanted = rule.predicts or model.predicts
        rules.append((rule, [conversion(predicts, wanted, end, like) for end in ends]))
        predicts = wanted
    return Guided(
        active=active,
        branches=branches,
        joint=joint,
        rules=rules,
        ruled=[_ruled(column, like) for column in np.moveaxis(table, 1, 0)] if rules else [],
        gradients=[_gradient(model, steering, predicts, lams, ends, like) for steering in guidance.steering],
        counter=counter,
        predicts=predicts,
        has_memory=guidance.has_memory,
    )


def _branch(call: Call, condition: Mapping[str, Any]) -> Branch:
    return lambda x, i: call(x, i, condition)


def _terms(weights: Array, like: Tensor) -> tuple[Active, Sequence[Coefficient]]:
    """The branches whose weights, (branches,) or (branches, batch), are not 0, and these."""
    numbers = tuple(number for number, weight in enumerate(weights) if np.any(weight))
    kept = weights[list(numbers)]
    return numbers, kept.tolist() if kept.ndim == 1 else columns(kept, like)


def _ruled(weights: Array, like: Tensor) -> tuple[Coefficient, Tensor | None]:
    """The weight that rules are given, of (2,) or (2, batch), and the samples with both branches, None for all: rules leave the
    others as they are."""
    both = weights.all(0)
    if weights.ndim == 1:
        return float(weights[0]), None
    weight, rows = columns(np.stack([np.where(both, weights[0], 1.0), both]), like)
    return weight, None if both.all() else rows.bool()


def _condition(model: EpsModel, guidance: Guidance, number: int) -> dict[str, Any]:
    """Of the call of a branch; InputError where that away has nothing to leave out."""
    if number < len(guidance.towards):
        return {**model.condition, **guidance.towards[number][1]}
    if guidance.other is not None:
        return {**model.condition, **guidance.other.condition, **guidance.null}
    if guidance.null:
        return {**model.condition, **guidance.null}
    model.labels.check_left_out(model.network)
    labels = {name: value for _, changes in guidance.towards for name, value in changes.items() if name == model.label}
    return model.labels.left_out({**model.condition, **labels})


def _joint(model: EpsModel, lams: Lams, like: Tensor, conditions: Sequence[Mapping[str, Any]]) -> tuple[Call, Mapping[str, Any]]:
    """The call of the network for the samples with each of these conditions, and its condition."""
    k, dtype = len(conditions), dtype_of(model.network)
    tiled = np.tile(lams, (1, k)) if np.ndim(lams) == 2 else lams
    rows = [model.labels.rows(condition, like.device, dtype or like.dtype) for condition in conditions]
    return model.call_at(tiled, like[:1].expand(k * len(like), *like.shape[1:])), joined(rows, like, dtype)


def _converted(m: Tensor, x: Tensor, pair: Conversion) -> Tensor:
    return m if pair is KEEP else convert(m, x, pair, None)


@torch.inference_mode(False)  # whose tensors take no gradients
def _gradient(
    model: EpsModel, steering: Steering, predicts: str, lams: Lams, ends: Array, like: Tensor
) -> tuple[Branch, Sequence[Coefficient]]:
    """∇ log p; and −s σ dm/dε at each evaluation, m being the prediction that it is added to."""
    call = Call.of(steering.log_p, model.schedule, model.clock, lams, like, name="log_p")
    condition = on_device(cloned(steering.condition), like, dtype_of(steering.log_p))
    try:
        slopes = [prediction.convert("noise", predicts, *end)[1] for end in ends.reshape(-1, 2).tolist()]
    except InputError as error:
        raise InputError(
            f"steering changes ε, of which the {predicts} of a network does not say anything at λ = −∞: begin at a finite λ"
        ) from error
    scales, changes = aligned(weights_at(steering.scale, lams, len(like)), -ends[..., 1] * np.reshape(slopes, ends.shape[:-1]))
    coefficients = scales * changes

    def gradient(x: Tensor, i: int) -> Tensor:
        differentiable = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            if not (differentiable and x.requires_grad):
                x = x.clone().detach().requires_grad_()
            log_p, found = call.evaluated(x, i, condition), None
            if isinstance(log_p, Tensor) and log_p.shape == x.shape[:1] and log_p.requires_grad:
                (found,) = torch.autograd.grad(log_p.sum(), x, create_graph=differentiable, allow_unused=True)
            if found is None:
                raise InputError(
                    f"log_p must return one number per sample, ({len(x)},), differentiable in x, not {shown(log_p)}: sum over "
                    "all axes but the first, and leave torch.no_grad out"
                )
        return found

    return gradient, coefficients.tolist() if coefficients.ndim == 1 else [columns(row[None], like)[0] for row in coefficients]
