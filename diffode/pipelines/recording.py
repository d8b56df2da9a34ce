"""What passes between a pipeline's loop, its modules and its scheduler.

A pipeline's loop asks its scheduler for timesteps and for the scaled state, calls its modules, combines what they return, and
hands the result to the scheduler's `step`. So what the network is called with, and what is made of its output, can be read
without knowing the pipeline: from hooks on its modules, and from a copy of its scheduler that keeps what it is given.

Networks are computed at POINTS of the steps. At the others they answer as before, which costs nothing, and what is made of the
same answers must be the same: so a guidance that changes with t is seen, on whichever steps it does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from diffode.errors import InputError
from diffode.pipelines.running import Enough, modules_of, run, untouched
from diffode.pipelines.trees import mapped, same, tensors_of

POINTS = 3  # at which networks are computed: at both ends of the trajectory and in the middle


@dataclass(frozen=True)
class Called:
    """A call of a module of the pipeline: its component's name, its arguments by name, and what it returned."""

    name: str
    module: nn.Module
    given: Mapping[str, Any]
    output: Any


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
        found = Recorder(pipe, scheduler)
        with found.hooked():
            run(pipe, call)
    if len(found.steps) < POINTS:
        raise InputError(
            f"the pipeline calls step() of its scheduler {found.number} times, and its whole trajectory is needed to tell what "
            "it does: leave out what ends it early (denoising_end), and take a pipeline whose loop calls scheduler.step"
        )
    return found


class Recorder:
    """Keeps the steps at POINTS, what each module returned in turn, mu of set_timesteps, and which arguments change meanwhile."""

    def __init__(self, pipe: Any, scheduler: Any) -> None:
        self.modules = modules_of(pipe)
        self.steps: list[Step] = []
        self.outputs: dict[nn.Module, list[Any]] = {}
        self.mu: float | None = None
        self.changed: dict[str, set[str]] = {name: set() for name in self.modules}
        self._scheduler, self._step, self._signature = scheduler, scheduler.step, inspect.signature(scheduler.step)
        self._calls: list[Called] = []  # since the last step
        self._scaled: list[Tensor] = []
        self._returned: Tensor | None = None
        self._forwards = {module: module.forward for module in self.modules.values()}
        self.number, self._computed = 0, True  # of the step that comes, and whether its networks are computed
        self._given: dict[nn.Module, dict[str, Any]] = {}  # of the call that is under way
        self._points: set[int] = set()

        @wraps(scheduler.step)
        def step(*args: Any, **kwargs: Any) -> Any:
            given = self._signature.bind(*args, **kwargs).arguments
            self._seen(given["model_output"], given["sample"], float(given["timestep" if "timestep" in given else "t"]))
            result = self._step(*args, **kwargs)
            self._returned = result[0].clone()
            return result

        @wraps(scheduler.set_timesteps)
        def set_timesteps(*args: Any, own: Any = scheduler.set_timesteps, **kwargs: Any) -> Any:
            self.mu = kwargs.get("mu")
            return own(*args, **kwargs)

        scheduler.step, scheduler.set_timesteps = step, set_timesteps
        if own_scale := getattr(scheduler, "scale_model_input", None):

            def scale(*args: Any, **kwargs: Any) -> Any:
                self._scaled.append(own_scale(*args, **kwargs))
                return self._scaled[-1]

            scheduler.scale_model_input = scale

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """The modules with hooks that keep their calls."""
        hooks = []
        try:
            for name, module in self.modules.items():
                hooks.append(module.register_forward_pre_hook(self._keep, with_kwargs=True))
                hooks.append(module.register_forward_hook(self._hook(name)))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _keep(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Arguments before the call, in containers of their own, since networks take items out of lists."""
        self._given[module] = mapped(_named(module, args, kwargs), lambda tensor: tensor)

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._calls.append(Called(name, module, self._given.pop(module), output))
            self.outputs.setdefault(module, []).append(output)

        return hook

    def _seen(self, m: Tensor, sample: Tensor, t: float) -> None:
        """A step, with what its networks are called with; the run ends where it is the last."""
        if self._returned is not None and not torch.equal(sample, self._returned.to(sample.dtype)):
            raise InputError(
                "the pipeline changes the state between its steps, as inpainting with a mask or a callback does: such a run is "
                "no solution of an equation"
            )
        if not (sample.isfinite().all() and m.isfinite().all()):
            raise InputError(f"the state of the pipeline, or what its network makes of it, is not finite at t = {t:g}")
        whole = leading(self._scaled[-1] if self._scaled else sample, sample.shape)
        x = whole[: _rows(sample, m, [call for call in self._calls if find_x(whole, call)])]
        calls = [call for call in self._calls if find_x(x, call)]
        if not calls or x.shape[1:] != sample.shape[1:] or (made := leading(m[: len(x)], x.shape)).shape != x.shape:
            raise InputError(
                f"the pipeline calls no network with the state that its scheduler steps, {tuple(sample.shape)}: it reshapes the "
                "state, or steps only a part of it, as image to video with held frames does"
            )
        step = Step(t, x.clone(), made.clone(), calls)
        if self.steps:
            self._compare(step, self.steps[-1])
        if self._computed:
            self.steps.append(step)
        self._plan_next(t)
        self._calls, self._scaled = [], []

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
        if not self._computed and not torch.equal(step.m, last.m):
            raise InputError(
                f"the guidance of the pipeline changes with t: of the same outputs it makes one prediction at t = {last.t:g} and "
                f"another at t = {step.t:g}; leave that out of the call, and give the model a weight that changes, as "
                "model.guided(guidance.interval(...), ...)"
            )

    def _plan_next(self, t: float) -> None:
        """Whether networks are computed at the step that comes, or answer as they last did; ends the run after the last point."""
        if len(self.steps) == POINTS:
            raise Enough
        if not self.number:
            times = [float(one) for one in self._scheduler.timesteps]
            total = len(times) - (times.index(t) if t in times else 0)
            self._points = {total // 2, total - 1}
        self.number += 1
        self._computed = self.number in self._points
        for module in {call.module: None for call in self.steps[-1].calls}:
            own = self._forwards[module]
            module.forward = own if self._computed else self._answering(module, own)

    def _answering(self, module: nn.Module, own: Callable[..., Any]) -> Callable[..., Any]:
        """A function that answers like calls of the last step as they were answered there, one after the other."""
        answers = iter([call for call in self.steps[-1].calls if call.module is module])

        @wraps(own)
        def forward(*args: Any, **kwargs: Any) -> Any:
            call = next(answers, None)
            if call and _shapes(call.given) == _shapes(_named(module, args, kwargs)):
                return call.output
            return own(*args, **kwargs)

        return forward


def _named(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name."""
    return {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}


def _shapes(given: Mapping[str, Any]) -> list[torch.Size]:
    return [tensor.shape for tensor in tensors_of(given)]


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names) or "no network"


def leading(output: Any, shape: Sequence[int]) -> Any:
    """The output of a network, where it is longer than x its beginning: variances, and what follows x, are left out."""
    m = getattr(output, "sample", output)
    m = m[0] if isinstance(m, tuple | list) else m
    for axis, size in enumerate(shape):
        m = m.narrow(axis, 0, size) if m.ndim == len(shape) and m.shape[axis] > size else m
    return m


def _rows(sample: Tensor, m: Tensor, calls: Sequence[Called]) -> int:
    """How many rows a state has, half of them where the pipeline steps both copies that guidance makes: then a network of as many
    rows answers the same state differently, which becomes the same."""
    half = len(sample) // 2
    if len(sample) % 2 or not all(torch.equal(rows[:half], rows[half:]) for rows in (sample, m)):
        return len(sample)
    outputs = [leading(call.output, (2 * len(sample), *sample.shape[1:])) for call in calls]
    doubled = any(len(output) == len(sample) and not torch.equal(output[:half], output[half:]) for output in outputs)
    return half if doubled else len(sample)


def find_x(x: Tensor, call: Called) -> tuple[str, int | None, int] | None:
    """(argument, axis along which x is its beginning, None where it is all of it, copies of x); None if there is none."""
    rows = len(x)
    for name, value in call.given.items():
        if not isinstance(value, Tensor) or value.ndim != x.ndim or len(value) % rows:
            continue
        longer = [i for i in range(1, value.ndim) if value.shape[i] != x.shape[i]]
        if len(longer) > 1 or any(value.shape[i] < x.shape[i] for i in longer):
            continue
        parts = value.narrow(longer[0], 0, x.shape[longer[0]]) if longer else value
        if all(torch.equal(part, x.to(part)) for part in parts.split(rows)):
            return name, next(iter(longer), None), len(value) // rows
    return None
