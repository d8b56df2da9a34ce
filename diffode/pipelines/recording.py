"""What passes between a pipeline's loop, its modules and its scheduler.

A pipeline's loop asks its scheduler for timesteps and for the scaled state, calls its modules, combines what they return, and
hands the result to the scheduler's `step`. So what the network is called with, and what is made of its output, can be read
without knowing the pipeline: from hooks on its modules, and from a copy of its scheduler that keeps what it is given.

Networks are computed at POINTS of the steps. At the others they answer as before, which costs nothing, and what is made of the
same answers must be the same: so a guidance that changes with t is seen, on whichever steps it does.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from diffode.errors import InputError
from diffode.pipelines.calls import Called, Modules, find_x, leading
from diffode.pipelines.running import Enough, modules_of, run, untouched
from diffode.pipelines.trees import same

POINTS = 3  # at which networks are computed: at both ends of the trajectory and in the middle


@dataclass(frozen=True)
class Step:
    """A step of a pipeline: its t, the state as networks are given it, what reached the scheduler, and the calls with the state.

    x and m are (rows, *shape), without the copies that guidance makes.
    """

    t: float
    x: Tensor
    m: Tensor
    calls: Sequence[Called]


def record(pipe: Any, call: Mapping[str, Any]) -> Recorder:
    """What passes in a run of the pipeline; InputError where it has too few steps, or changes what it does between them."""
    with untouched(pipe) as scheduler:
        modules = Modules(modules_of(pipe))
        found = Recorder(modules)
        found.watch(scheduler)
        with modules.hooked():
            run(pipe, call)
    if len(found.steps) < POINTS:
        raise InputError(
            f"the pipeline calls step() of its scheduler {found.number} times, and its whole trajectory is needed to tell what "
            "it does: leave out what ends it early (denoising_end), and take a pipeline whose loop calls scheduler.step"
        )
    return found


class Recorder:
    """Keeps the steps at POINTS, mu of set_timesteps, and which arguments of each module change meanwhile."""

    def __init__(self, modules: Modules) -> None:
        self.steps: list[Step] = []
        self.changed: defaultdict[str, set[str]] = defaultdict(set)
        self.mu: float | None = None
        self.number = 0  # of the step that comes
        self._modules = modules
        self._points: set[int] = {0}  # the numbers of the steps at which networks are computed
        self._scaled: list[Tensor] = []  # since the last step
        self._returned: Tensor | None = None  # by the last step

    @property
    def outputs(self) -> Mapping[nn.Module, Sequence[Any]]:
        """What each module returned, in turn."""
        return self._modules.outputs

    def watch(self, scheduler: Any) -> None:
        """Its step, set_timesteps and scale_model_input tell what they are given, and do the same."""
        own_step, own_set = scheduler.step, scheduler.set_timesteps
        own_scale: Any = getattr(scheduler, "scale_model_input", None)
        signature = inspect.signature(own_step)

        @wraps(own_step)
        def step(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            t = float(given["timestep" if "timestep" in given else "t"])
            self._seen(given["model_output"], given["sample"], t, scheduler.timesteps)
            result = own_step(*args, **kwargs)
            self._returned = result[0].clone()
            return result

        @wraps(own_set)
        def set_timesteps(*args: Any, **kwargs: Any) -> Any:
            self.mu = kwargs.get("mu")
            return own_set(*args, **kwargs)

        def scale(*args: Any, **kwargs: Any) -> Any:
            self._scaled.append(own_scale(*args, **kwargs))
            return self._scaled[-1]

        scheduler.step, scheduler.set_timesteps = step, set_timesteps
        if own_scale:
            scheduler.scale_model_input = scale

    def _seen(self, m: Tensor, sample: Tensor, t: float, timesteps: Sequence[Any]) -> None:
        """A step, with what its networks are called with; the run ends where it is the last."""
        if self._returned is not None and not torch.equal(sample, self._returned.to(sample.dtype)):
            raise InputError(
                "the pipeline changes the state between its steps, as inpainting with a mask does: such a run is "
                "no solution of an equation"
            )
        if not (sample.isfinite().all() and m.isfinite().all()):
            raise InputError(f"the state of the pipeline, or what its network makes of it, is not finite at t = {t:g}")
        whole = leading(self._scaled[-1] if self._scaled else sample, sample.shape)
        made_since = self._modules.taken()
        x = whole[: _rows(sample, m, [call for call in made_since if find_x(whole, call)])]
        calls = [call for call in made_since if find_x(x, call)]
        if not calls or x.shape[1:] != sample.shape[1:] or (made := leading(m[: len(x)], x.shape)).shape != x.shape:
            raise InputError(
                f"the pipeline calls no network with the state that its scheduler steps, {tuple(sample.shape)}: it reshapes the "
                "state, or steps only a part of it, as image to video with held frames does"
            )
        step = Step(t, x.clone(), made.clone(), calls)
        if self.steps:
            self._compare(step, self.steps[-1])
        if self.number in self._points:
            self.steps.append(step)
        self._plan_next(t, timesteps)
        self._scaled = []

    def _compare(self, step: Step, last: Step) -> None:
        """InputError where this step calls other networks than the last one computed, or makes other things of its answers."""
        names, before = ([call.name for call in each.calls] for each in (step, last))
        if names != before:
            raise InputError(
                f"the pipeline calls {_listed(before)} with the state at t = {last.t:g} and {_listed(names)} at t = {step.t:g}, "
                "and a model is of one network that is called in one way"
            )
        for call, own in zip(step.calls, last.calls, strict=True):
            self.changed[call.name] |= {name for name, value in call.given.items() if not same(value, own.given.get(name))}
        if self.number in self._points or torch.equal(step.m, last.m):
            return
        if self._modules.missed:
            raise InputError(
                f"the pipeline calls its {names[0]} with arguments of other shapes at t = {last.t:g} than at t = {step.t:g}, and "
                "a model is of one network that is called in one way"
            )
        raise InputError(
            f"the guidance of the pipeline changes with t: of the same outputs it makes one prediction at t = {last.t:g} and "
            f"another at t = {step.t:g}; leave that out of the call, and give the model a weight that changes, as "
            "model.guided(guidance.interval(...), ...)"
        )

    def _plan_next(self, t: float, timesteps: Sequence[Any]) -> None:
        """Whether networks are computed at the step that comes, or answer as they last did; ends the run after the last point."""
        if len(self.steps) == POINTS:
            raise Enough
        if not self.number:
            times = [float(one) for one in timesteps]
            total = len(times) - (times.index(t) if t in times else 0)
            self._points = {total // 2, total - 1}
        self.number += 1
        (self._modules.compute if self.number in self._points else self._modules.answer)(self.steps[-1].calls)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names) or "no network"


def _rows(sample: Tensor, m: Tensor, calls: Sequence[Called]) -> int:
    """How many rows a state has, half of them where the pipeline steps both copies that guidance makes: then a network of as many
    rows answers the same state differently, which becomes the same."""
    half = len(sample) // 2
    if len(sample) % 2 or not all(torch.equal(rows[:half], rows[half:]) for rows in (sample, m)):
        return len(sample)
    outputs = [leading(call.output, (2 * len(sample), *sample.shape[1:])) for call in calls]
    doubled = any(len(output) == len(sample) and not torch.equal(output[:half], output[half:]) for output in outputs)
    return half if doubled else len(sample)
