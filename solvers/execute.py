"""run: the one loop that executes a Plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffode.errors import InputError
from diffode.model import EpsModel
from diffode.noise import Noise
from diffode.prediction import convert
from solvers.plan import Plan, Stage, value

OnCommit = Callable[[Tensor, float], Tensor]  # (state, λ) -> state: projection, inpainting


@dataclass(frozen=True)
class Step:
    """What a callback is given at every committed state: the how-manieth, its λ, the state x (batch, *shape), and x0, the
    model's x̂0 at the last evaluation (None at the start). x is the loop's own buffer: clone it to keep it."""

    index: int
    lam: float
    x: Tensor
    x0: Tensor | None


OnStep = Callable[[Step], None]


@dataclass(frozen=True)
class Taken:
    """What an adaptive solver did, a value a sample: accepted and rejected steps, evaluations, the λ reached, and the plan."""

    accepted: tuple[int, ...]
    rejected: tuple[int, ...]
    nfe: tuple[int, ...]
    lam: tuple[float, ...]
    plans: tuple[Plan | None, ...]


@dataclass(frozen=True)
class Result:
    """x: the final state, (batch, *shape). nfe: evaluations of ε(x, λ), the most of any sample. calls: network calls they took.

    plan: the table that was run; None where there is none, or one a sample. trajectory: the committed states with their λ, on
    the host, if asked for. taken: what an adaptive solver did. finished: False if max_nfe stopped it before the end.
    """

    x: Tensor
    nfe: int
    calls: int
    plan: Plan | None = None
    trajectory: tuple[tuple[float, Tensor], ...] = ()
    taken: Taken | None = None
    finished: bool = True


def refuse_nonfinite(evaluation: int, lam: float, m: Tensor) -> None:
    """InputError, with the λ and the number of the evaluation, if `m` is not finite; to be given to EpsModel.watched."""
    if not torch.isfinite(m).all():
        raise InputError(
            f"the network's output is not finite at λ = {lam:.6g}, evaluation {evaluation}: "
            "check the checkpoint, or use a wider --dtype"
        )


def run(
    plan: Plan,
    model: EpsModel,
    x: Tensor,
    *,
    noise: Noise | None = None,
    on_commit: OnCommit | None = None,
    on_step: OnStep | None = None,
    trajectory: bool = False,
    differentiable: bool = False,
) -> Result:
    """Execute a plan from the state x (batch, *shape) at the plan's first λ.

    noise: (draw, like) -> N(0, I), for stochastic plans. on_commit: may replace a committed state before it is evaluated.
    on_step: sees every committed state. After the first steps the loop reuses its buffers; x itself is left alone.
    differentiable: gradients flow to x, to the network and to those numbers of the plan that are tensors, and nothing is reused.
    """
    if plan.stochastic and noise is None:
        raise InputError(f"{plan.solver} draws noise: give run(..., noise=SeededNoise(seeds))")
    if plan.path != model.schedule.path:
        raise InputError(f"a plan for the path {plan.path.name} cannot drive a model on the path {model.schedule.path.name}")
    with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
        nfe, calls = model.nfe, model.calls
        where = [stage.lam for stage in plan.stages if stage.evaluate]
        evaluate = model.bind(where, x, plan.prediction)
        last_use, made, committed, states = plan.last_use, 0, 0, []
        anchor, u, x0 = x, torch.empty_like(x), None
        m: dict[int, Tensor] = {}
        free: list[Tensor] = []
        for row, stage in enumerate(plan.stages):
            u = _row(stage, anchor, m, noise, None if differentiable else u)
            free += [m.pop(j) for j in list(m) if last_use.get(j, -1) <= row]
            if stage.commit:
                if on_commit is not None:
                    new = _replaced(on_commit(u, stage.lam), u)
                    u = new if differentiable else u.copy_(new)
                if on_step is not None:
                    on_step(Step(committed, stage.lam, u, x0))
                if trajectory:
                    states.append((stage.lam, u.detach().to("cpu", copy=True)))
                anchor, spare, committed = u, anchor, committed + 1
            if stage.evaluate:
                m[made] = evaluate(u, made, free.pop() if free and not differentiable else None)
                if on_step is not None:
                    x0 = _data(plan, where[made], u, m[made])
                made += 1
            if stage.commit and not differentiable:
                u = torch.empty_like(x) if spare is x else spare
        return Result(anchor, model.nfe - nfe, model.calls - calls, plan, tuple(states))


def _row(stage: Stage, anchor: Tensor, m: dict[int, Tensor], noise: Noise | None, out: Tensor | None) -> Tensor:
    """x · anchor + Σ c_j m_j + n · z, written to `out`; without it, nothing is overwritten, for autograd's sake."""
    z = noise(stage.draw, anchor) if stage.draw is not None and noise is not None else None
    if out is None:
        u = stage.x * anchor
        for j, c in stage.c.items():
            u = u + c * m[j]
        return u if z is None else u + stage.noise * z
    x = value(stage.x)
    torch.mul(anchor, x, out=out) if x else out.zero_()
    for j, c in stage.c.items():
        out.add_(m[j], alpha=value(c))
    return out if z is None else out.add_(z, alpha=value(stage.noise))


def _replaced(new: Tensor, u: Tensor) -> Tensor:
    """What on_commit gave; InputError if it is not a state."""
    if not isinstance(new, Tensor) or new.shape != u.shape:
        raise InputError(
            f"on_commit must return a state of shape {tuple(u.shape)}, not {getattr(new, 'shape', type(new).__name__)}"
        )
    return new


def _data(plan: Plan, lam: float, x: Tensor, m: Tensor) -> Tensor:
    """x̂0 of an evaluation m at x."""
    a, b = convert(plan.prediction, "data", *plan.path.at(lam))
    return b * m + a * x if a else b * m
