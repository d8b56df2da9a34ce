"""run: the one loop that executes a Plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffode.errors import InputError
from diffode.model import EpsModel
from diffode.noise import Noise
from solvers.plan import Plan

OnCommit = Callable[[Tensor, float], Tensor]  # (state, λ) -> state: projection, inpainting


@dataclass(frozen=True)
class Result:
    """x: the final state, (batch, *shape). nfe: evaluations of ε(x, λ). calls: network calls they took.

    plan: the table that was run; None where an adaptive or black-box integrator drove.
    trajectory: the committed states with their λ, on the host, if asked for.
    """

    x: Tensor
    nfe: int
    calls: int
    plan: Plan | None = None
    trajectory: tuple[tuple[float, Tensor], ...] = ()


def refuse_nonfinite(evaluation: int, lam: float, m: Tensor) -> None:
    """InputError, with the λ and the number of the evaluation, if `m` is not finite; to be given to EpsModel.watched."""
    if not torch.isfinite(m).all():
        raise InputError(
            f"the network's output is not finite at λ = {lam:.6g}, evaluation {evaluation}: "
            "check the checkpoint, or use a wider --dtype"
        )


@torch.no_grad()
def run(
    plan: Plan,
    model: EpsModel,
    x: Tensor,
    *,
    noise: Noise | None = None,
    on_commit: OnCommit | None = None,
    trajectory: bool = False,
) -> Result:
    """Execute a plan from the state x (batch, *shape) at the plan's first λ.

    noise: (draw, like) -> N(0, I), for stochastic plans. on_commit: may replace a committed state before it is evaluated.
    After the first steps the loop reuses its buffers; x itself is left alone.
    """
    if plan.stochastic and noise is None:
        raise InputError(f"{plan.solver} draws noise: give run(..., noise=SeededNoise(seeds))")
    if plan.path != model.schedule.path:
        raise InputError(f"a plan for the path {plan.path.name} cannot drive a model on the path {model.schedule.path.name}")
    nfe, calls = model.nfe, model.calls
    evaluate = model.bind([stage.lam for stage in plan.stages if stage.evaluate], x, plan.prediction)
    last_use = plan.last_use
    anchor, u = x, torch.empty_like(x)
    m: dict[int, Tensor] = {}
    free: list[Tensor] = []
    states = []
    made = 0
    for row, stage in enumerate(plan.stages):
        torch.mul(anchor, stage.x, out=u) if stage.x else u.zero_()
        for j, c in stage.c.items():
            u.add_(m[j], alpha=c)
        if stage.noise and noise is not None:
            u.add_(noise(stage.draw or 0, u), alpha=stage.noise)
        free += [m.pop(j) for j in list(m) if last_use.get(j, -1) <= row]
        if stage.commit:
            if on_commit is not None:
                u.copy_(on_commit(u, stage.lam))
            if trajectory:
                states.append((stage.lam, u.to("cpu", copy=True)))
            anchor, spare = u, anchor
        if stage.evaluate:
            m[made] = evaluate(u, made, free.pop() if free else None)
            made += 1
        if stage.commit:
            u = torch.empty_like(x) if spare is x else spare
    return Result(anchor, model.nfe - nfe, model.calls - calls, plan, tuple(states))
