"""Calls of a pipeline's modules: kept by hooks, answered from memory, and where the state is among their arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from diffode.calling import output_of
from diffode.pipelines.trees import mapped, tensors_of


@dataclass(frozen=True)
class Called:
    """A call of a module of the pipeline: its component's name, its arguments by name, and what it returned."""

    name: str
    module: nn.Module
    given: Mapping[str, Any]
    output: Any


class Modules:
    """Keeps the calls of modules by name: `calls`, which begin anew with `taken`, and what each module returned in turn."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.calls: list[Called] = []
        self.outputs: dict[nn.Module, list[Any]] = {}
        self.missed = False  # whether one was computed that `answer` names, since its arguments have other shapes
        self._named = modules
        self._given: dict[nn.Module, dict[str, Any]] = {}  # of the call that is under way
        self._forwards = {module: module.forward for module in modules.values()}

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """The modules with hooks that keep their calls."""
        hooks = []
        try:
            for name, module in self._named.items():
                hooks.append(module.register_forward_pre_hook(self._keep, with_kwargs=True))
                hooks.append(module.register_forward_hook(self._hook(name)))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def taken(self) -> list[Called]:
        """The calls since the last time."""
        calls, self.calls = self.calls, []
        return calls

    def compute(self, calls: Sequence[Called]) -> None:
        """The modules of these calls are computed from now on."""
        for call in calls:
            call.module.forward = self._forwards[call.module]

    def answer(self, calls: Sequence[Called]) -> None:
        """The modules of these calls answer like ones as they were answered here, one after the other; others are computed."""
        self.missed = False
        for module in {call.module: None for call in calls}:
            module.forward = self._answering(module, iter([call for call in calls if call.module is module]))

    def _answering(self, module: nn.Module, answers: Iterator[Called]) -> Callable[..., Any]:
        own = self._forwards[module]

        @wraps(own)
        def forward(*args: Any, **kwargs: Any) -> Any:
            call = next(answers, None)
            if call and _shapes(call.given) == _shapes(_named(module, args, kwargs)):
                return call.output
            self.missed = True
            return own(*args, **kwargs)

        return forward

    def _keep(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Arguments before the call, in containers of their own, since networks take items out of lists."""
        self._given[module] = mapped(_named(module, args, kwargs), lambda tensor: tensor)

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self.calls.append(Called(name, module, self._given.pop(module), output))
            self.outputs.setdefault(module, []).append(output)

        return hook


def _named(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name."""
    return {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}


def _shapes(given: Mapping[str, Any]) -> list[torch.Size]:
    return [tensor.shape for tensor in tensors_of(given)]


def leading(output: Any, shape: Sequence[int]) -> Any:
    """The output of a network, where it is longer than x its beginning: variances, and what follows x, are left out."""
    m = output_of(output)
    for axis, size in enumerate(shape):
        m = m.narrow(axis, 0, size) if m.ndim == len(shape) and m.shape[axis] > size else m
    return m


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
