"""The calls of a pipeline's modules as one network(x, clock, **condition), replayed as they were recorded.

Of a module's arguments x is found by value: it is an argument, or the beginning of one along some axis, what lies beyond being a
condition (the mask of inpainting, an image to begin with). The clock is the argument that follows t, as p/q t + b. Arguments
without tensors are constants; all others are conditions, with a row per sample where they have as many rows as x, and shared
where they do not.

A module whose outputs are arguments of another, as those of a ControlNet, is replayed with it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from diffode.calling import HALF
from diffode.conditions import Shared
from diffode.errors import InputError
from diffode.pipelines.calls import Called, find_x, leading
from diffode.pipelines.recording import Step
from diffode.pipelines.trees import mapped, tensors_of

BEYOND = "beyond_x"  # the condition that an argument continues with after x


@dataclass(frozen=True)
class Form:
    """How a module is called: the argument that x begins, and along which axis, None where it is all of it; the argument that
    the clock becomes, as scale · clock + shift with the axes `tail` after the first; and the constants."""

    x: str
    axis: int | None
    clock: str
    scale: Fraction
    shift: float
    tail: tuple[int, ...]
    half: torch.dtype | None
    constants: Mapping[str, Any]

    def arguments(self, x: Tensor, clock: Tensor, condition: Mapping[str, Any]) -> dict[str, Any]:
        """All of the module's arguments; clock: (batch,)."""
        condition = dict(condition)
        if self.axis is not None:
            x = torch.cat([x, condition.pop(BEYOND).to(x.dtype)], self.axis)
        t = clock.to(self.half) if self.half else clock
        t = t * self.scale.numerator / self.scale.denominator
        t = t + self.shift if self.shift else t
        t = t.view(-1, *[1] * len(self.tail)).expand(-1, *self.tail)
        given = mapped({**self.constants, **condition}, lambda tensor: tensor)  # since networks take items out of lists
        return {**given, self.x: x, self.clock: t}


class Replay(nn.Module):
    """network(x, clock, **condition): the denoiser of a pipeline, and what helps it, as the pipeline calls them.

    helper: what is called first, by name, with the condition of that name; its outputs of the numbers `links` become arguments.
    sign: what the pipeline multiplies the output by.
    """

    helper: nn.Module | None
    helped: Form | None

    def __init__(
        self,
        denoiser: nn.Module,
        form: Form,
        helper: tuple[str, nn.Module, Form] | None = None,
        links: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.denoiser, self.form, self.sign, self.links = denoiser, form, 1, links or {}
        self.name, self.helper, self.helped = helper or ("", None, None)
        self.training = denoiser.training

    def forward(self, x: Tensor, clock: Tensor, **condition: Any) -> Tensor:
        if self.helper is not None and self.helped is not None:
            outputs = self.helper(**self.helped.arguments(x, clock, condition.pop(self.name)))
            condition |= {name: outputs[number] for name, number in self.links.items()}
        m = leading(self.denoiser(**self.form.arguments(x, clock, condition)), x.shape)
        return m if self.sign == 1 else -m


def find_form(
    steps: Sequence[Step], calls: Sequence[Called], changed: Collection[str], links: Collection[str] = ()
) -> tuple[Form, int]:
    """The form of a call, one of each step, and how many copies of x it has.

    changed: the arguments that change from step to step. InputError where x is none of them, or none follows t, and where there
    are others, but for `links`.
    """
    found = [find_x(step.x, call) for step, call in zip(steps, calls, strict=True)]
    first = calls[0]
    if found[0] is None or len(set(found)) > 1:
        raise InputError(f"the state is not always the same argument of the pipeline's {first.name}")
    x, axis, copies = found[0]
    clock, scale, shift = _find_clock(steps, calls)
    if others := sorted(set(changed) - {x, clock, *links}):
        raise InputError(
            f"the argument {others[0]} of the pipeline's {first.name} changes from step to step, so the network is no function "
            "of x and t alone: leave out what changes it"
        )
    t = first.given[clock]
    tail, half = (tuple(t.shape[1:]), t.dtype if t.dtype in HALF else None) if isinstance(t, Tensor) else ((), None)
    rest = {name: value for name, value in first.given.items() if name not in (x, clock, *links)}
    constants = {name: value for name, value in rest.items() if not tensors_of(value)}
    return Form(x, axis, clock, scale, shift, tail, half, constants), copies


def _find_clock(steps: Sequence[Step], calls: Sequence[Called]) -> tuple[str, Fraction, float]:
    """(argument, scale, shift) of the one that follows t."""
    ts = [step.t for step in steps]
    for name in calls[0].given:
        values = [_number(call.given.get(name)) for call in calls]
        if None in values or values[0] == values[-1]:
            continue
        exact = (values[0] - values[-1]) / (ts[0] - ts[-1])  # type: ignore[operator]
        scale = Fraction(exact).limit_denominator(10_000)
        size = max(map(abs, values))  # type: ignore[arg-type]
        coarse = isinstance(t := calls[0].given[name], Tensor) and t.dtype in HALF
        near = (1e-2 if coarse else 1e-5) * size
        shift = round(values[0] - float(scale) * ts[0], 5)  # type: ignore[operator]
        shift = 0.0 if abs(shift) <= near else shift
        if all(abs(float(scale) * t + shift - v) <= near for t, v in zip(ts, values, strict=True)):  # type: ignore[operator]
            return name, scale, shift
    raise InputError(
        f"no argument of the pipeline's {calls[0].name} follows the scheduler's t, so it cannot be called at another"
    )


def _number(value: Any) -> float | None:
    """A number, or that which all entries of a tensor are."""
    if isinstance(value, Tensor) and value.numel() and not value.is_complex():
        first = value.flatten()[0]
        return float(first) if bool((value == first).all()) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def conditions_of(form: Form, call: Called, x: Tensor, copies: int, links: Mapping[str, int]) -> list[dict[str, Any]]:
    """The conditions of each copy of x, (rows, *shape), in a call, with tensors of their own."""
    given = {name: value for name, value in call.given.items() if name not in (form.x, form.clock, *form.constants, *links)}
    if form.axis is not None:
        value, size = call.given[form.x], x.shape[form.axis]
        given[BEYOND] = value.narrow(form.axis, size, value.shape[form.axis] - size)

    def of_copy(number: int) -> Callable[[Tensor], Any]:
        def change(tensor: Tensor) -> Any:
            if tensor.ndim and len(tensor) == copies * len(x):
                return tensor.split(len(x))[number].clone()
            return Shared(tensor.clone()) if tensor.ndim else tensor.clone()

        return change

    return [mapped(given, of_copy(number)) for number in range(copies)]
