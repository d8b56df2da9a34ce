"""run: the one loop that executes a Plan."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from diffode import checks
from diffode.calling import check_state
from diffode.errors import InputError
from diffode.evaluation import Evaluate, share_memory
from diffode.model import EpsModel
from solvers.hooks import NO_HOOKS, Hooks, Observers
from solvers.plan import Plan, Stage, value
from solvers.result import Result

Solve = Callable[[EpsModel, Tensor, Hooks], Result]


def refuse_nonfinite(evaluation: int, lam: float, m: Tensor, *, of: EpsModel | None = None) -> None:
    """InputError, with the λ and the number of the evaluation, if `m` is not finite; to be given to EpsModel.watched."""
    if not torch.isfinite(m).all():
        steered = " or the gradient of log_p" if of and of.guidance and of.guidance.steering else ""
        raise InputError(
            f"the network's output{steered} is not finite at λ = {lam:.6g}, evaluation {evaluation}: "
            "check the checkpoint, or use a wider dtype"
        )


def is_finite(x: Tensor) -> bool:
    """Whether a state and its range are finite, at one pass, without another tensor of its size; True where it has no numbers."""
    if x.is_meta:
        return True
    low, high = torch.aminmax(x.detach())
    return math.isfinite(high - low)


def guarded(solver: str, solve: Solve, model: EpsModel, x: Tensor, hooks: Hooks) -> Result:
    """solve(model, x, hooks), in float32 if x is of less, whose result is given back in the dtype of x.

    The result is looked at once, at the end; if it is not finite, all is done again with a look at every evaluation. InputError
    with the first that is not finite, and for an x that is not.
    """
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    result = solve(model, wide, hooks)
    if is_finite(result.x):
        return result if wide is x else replace(result, x=result.x.to(x.dtype))
    if not is_finite(x):
        raise InputError("the state to begin with, x, is not finite")
    solve(model.watched(partial(refuse_nonfinite, of=model)), wide, Hooks(hooks.noise))
    raise InputError(
        f"the state of {solver} overflowed though every network output was finite: use more evaluations or another grid"
    )


def run(plan: Plan, model: EpsModel, x: Tensor, hooks: Hooks = NO_HOOKS, *, differentiable: bool = False) -> Result:
    """Execute a plan from the state x (batch, *shape) at the plan's first λ, in float32 if that of x is less; see guarded.

    After the first steps the loop reuses its buffers; x itself is left alone. differentiable: gradients flow to x, to the network
    and to those numbers of the plan that are tensors, and nothing is reused, nor looked at.

    InputError for a stochastic plan without noise, for a model on another path than the plan's, and for a network output that is
    not finite.
    """
    checks.instance("plan", plan, Plan, "a Plan, as the function of a solver makes it")
    checks.instance("model", model, EpsModel, "an EpsModel, as EpsModel(network, schedule)")
    checks.instance("hooks", hooks, Hooks, "Hooks(noise, ...)")
    check_state("x", x)
    if plan.stochastic and hooks.noise is None:
        raise InputError(f"{plan.solver} draws noise: give run(..., Hooks(noise=SeededNoise(seeds)))")
    if plan.path != model.schedule.path:
        raise InputError(f"a plan for the path {plan.path.name} cannot drive a model on the path {model.schedule.path.name}")
    if differentiable:
        return _run(plan, model, x, hooks, differentiable=True)
    return guarded(plan.solver, partial(_run, plan), model, x, hooks)


def _run(plan: Plan, model: EpsModel, x: Tensor, hooks: Hooks, *, differentiable: bool = False) -> Result:
    """Bound to the λ of the plan, with gradients or without."""
    evaluate = model.bind([stage.lam for stage in plan.stages if stage.evaluate], x, plan.prediction)
    observers = Observers(plan, hooks)
    with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
        final = loop(plan, evaluate, x, observers, reuse=not differentiable)
    return Result(final, evaluate.counter.nfe, evaluate.counter.calls, plan, tuple(observers.states))


def loop(plan: Plan, evaluate: Evaluate, x: Tensor, observers: Observers, *, reuse: bool = True) -> Tensor:
    """The algorithm, after all of the host's work: the final state. With reuse=False nothing is overwritten, and
    torch.compile(fullgraph=True) takes the loop of a deterministic plan."""
    memory, anchor = Memory(plan, evaluate, x, reuse), x
    for row, stage in enumerate(plan.stages):
        z = observers.draw(stage, anchor)
        u = combine(stage, anchor, memory.predictions, z, memory.state())
        memory.forget(row)
        if stage.commit:
            u = observers.committed(stage, u, reuse)
        if stage.evaluate:
            m = memory.store(evaluate(u, memory.evaluations, memory.buffer()), u)
            observers.evaluated(stage, u, m)
        memory.release(anchor if stage.commit else u)
        anchor = u if stage.commit else anchor
    return anchor


def combine(stage: Stage, anchor: Tensor, m: dict[int, Tensor], z: Tensor | None, out: Tensor | None) -> Tensor:
    """x · anchor + Σ c_j m_j + n · z, written to `out`; without it nothing is overwritten, for autograd's sake."""
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


class Memory:
    """The predictions that later rows use, and the buffers that the loop writes to: states, and predictions of no more use.

    Without `reuse`, every result is a new tensor. The caller's x and the network's own outputs are never written to.
    """

    def __init__(self, plan: Plan, evaluate: Evaluate, x: Tensor, reuse: bool) -> None:
        self.x, self.reuse, self.last_use, self.passes_through = x, reuse, plan.last_use, evaluate.passes_through
        self.predictions: dict[int, Tensor] = {}
        self.evaluations = 0
        self._states: list[Tensor] = []  # free
        self._buffers: list[Tensor] = []  # free, of predictions
        self._networks: set[int] = set()  # predictions that are the network's own outputs
        self._first: Tensor | None = None
        self._network_reuses_memory: bool | None = None

    def state(self) -> Tensor | None:
        """Where the next state is to be written, if not to new memory."""
        if not self.reuse:
            return None
        return self._states.pop() if self._states else torch.empty_like(self.x)

    def release(self, state: Tensor) -> None:
        """This state is of no more use."""
        if self.reuse and state is not self.x:
            self._states.append(state)

    def buffer(self) -> Tensor | None:
        """Where the next prediction may be written."""
        return None if self.passes_through or not self._buffers else self._buffers.pop()

    def store(self, m: Tensor, u: Tensor) -> Tensor:
        """Keep the prediction at u; the network's own output as it is, unless that memory will be overwritten."""
        if self.passes_through and self._will_be_overwritten(m, u):
            m = self._buffers.pop().copy_(m) if self._buffers else m.clone()
        elif self.passes_through:
            self._networks.add(self.evaluations)
        self.predictions[self.evaluations] = m
        self.evaluations += 1
        return m

    def forget(self, row: int) -> None:
        """Release the predictions that no row after this one uses."""
        for j in [j for j in self.predictions if self.last_use.get(j, -1) <= row]:
            m = self.predictions.pop(j)
            if self.reuse and j not in self._networks:
                self._buffers.append(m)

    def _will_be_overwritten(self, m: Tensor, u: Tensor) -> bool:
        """By the loop, where it lies in u; or by the network, if its second output lies where its first did, as with CUDA graphs:
        therefore the first is copied."""
        if torch.compiler.is_compiling():  # a compiled loop overwrites nothing
            return False
        if self._first is None:
            self._first = m
            return True
        if self._network_reuses_memory is None:
            self._network_reuses_memory, self._first = share_memory(m, self._first), m.new_empty(0)
        return self._network_reuses_memory or (self.reuse and share_memory(m, u))
