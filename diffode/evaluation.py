"""The Evaluator: an EpsModel with all of the host's work done, as the sampling loop calls it.

`EpsModel.bind` makes it for the λ at which the model will be evaluated: clocks on the device, conversions as pairs of float64
numbers (a, b) with wanted = a x + b native. A call then makes no scalar arithmetic, no transfer and no synchronisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from diffode import prediction
from diffode.errors import InputError
from diffode.schedule import Array

Coefficient = float | Tensor  # the same for all samples, or one per sample, (batch, 1, ...)
Conversion = tuple[Coefficient, Coefficient]
Hook = Callable[[Tensor], Tensor]
Watch = Callable[[int, float, Tensor], None]
KEEP: Conversion = (0.0, 1.0)  # the conversion that changes nothing


@dataclass
class Counter:
    """nfe: evaluations of ε(x, λ); calls: the network calls they took (guidance takes several per evaluation)."""

    nfe: int = 0
    calls: int = 0

    def add(self, nfe: int = 0, calls: int = 0) -> None:
        """Not in a compiled loop, which would be compiled again for every count; its plan says what it evaluates."""
        if not torch.compiler.is_compiling():
            self.nfe += nfe
            self.calls += calls


class Native(Protocol):
    """native(x, i, out): what the network predicts at the i-th λ, guided, in the prediction `predicts`.

    passes_through: whether it is the network's own output; if not, it may be in `out`, if that is given. has_memory: whether it
    depends on the evaluations before it.
    """

    predicts: str
    passes_through: bool
    has_memory: bool

    def __call__(self, x: Tensor, i: int, out: Tensor | None) -> Tensor: ...


class Evaluate(Protocol):
    """What the sampling loop needs of a model: evaluate(x, i, out), as Evaluator has it."""

    counter: Counter
    passes_through: bool
    has_memory: bool

    def __call__(self, x: Tensor, i: int = 0, out: Tensor | None = None) -> Tensor: ...


@dataclass
class Evaluator:
    """evaluate(x, i, out): the prediction at the i-th λ that was bound, for x (batch, *shape).

    The result is written to `out` if it is given and anything has to be computed. Where nothing has to be (`passes_through`), the
    network's own output is returned as it is, which may lie in memory that the network will use again, or in that of x.

    native: the network at each λ, guided. to_hooks, to_wanted: conversions for each λ, before and after the hooks, which act on
    x̂0. lams: handed to the watches.
    """

    native: Native
    lams: Sequence[float]
    hooks: tuple[Hook, ...]
    to_hooks: Sequence[Conversion]
    to_wanted: Sequence[Conversion]
    watches: tuple[Watch, ...]
    counter: Counter
    passes_through: bool = field(init=False)
    has_memory: bool = field(init=False)

    def __post_init__(self) -> None:
        self.has_memory = self.native.has_memory
        self.passes_through = self.native.passes_through and not self.hooks and all(pair is KEEP for pair in self.to_hooks)

    def __call__(self, x: Tensor, i: int = 0, out: Tensor | None = None) -> Tensor:
        self.counter.add(nfe=1)
        m = self.native(x, i, out)
        if not self.passes_through:
            m = convert(m, x, self.to_hooks[i], out)
        if self.hooks:
            for hook in self.hooks:
                m = hook(m)
            m = convert(m, x, self.to_wanted[i], out)
        for watch in self.watches:
            watch(self.counter.nfe, self.lams[i], m)
        return m


def evaluate_once(evaluate: Evaluate, x: Tensor) -> Tensor:
    """An evaluation in memory of its own, so that the caller may write to it; InputError where it depends on those before it."""
    if evaluate.has_memory:
        raise InputError(
            "guidance with momentum depends on the evaluations before: take a solver with a plan, or guidance without momentum"
        )
    return evaluate(x).clone() if evaluate.passes_through else evaluate(x)


def convert(m: Tensor, x: Tensor, pair: Conversion, out: Tensor | None) -> Tensor:
    """a x + b m, in `out` or in new memory, since m may be the network's own; a term with coefficient 0 is not touched, since
    0 · NaN is NaN."""
    a, b = pair
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return torch.mul(m, b, out=out).add_(a * x)
    if b != 1:
        m = torch.mul(m, b, out=out)
        return m.add_(x, alpha=a) if a != 0 else m
    if a != 0:
        return torch.add(m, x, alpha=a, out=out)
    if out is None:
        return m.clone()
    return m if m is out else out.copy_(m)


def conversion(native: str, wanted: str, ends: Array, like: Tensor) -> Conversion:
    """(a, b) with wanted = a x + b native, for ends = (α, σ); or for ends (batch, 2), with a pair for each sample."""
    if native == wanted:
        return KEEP
    if ends.ndim == 1:
        return prediction.convert(native, wanted, *ends.tolist())
    a, b = columns(np.array([prediction.convert(native, wanted, *one) for one in ends.tolist()]).T, like)
    return a, b


def columns(values: Array, like: Tensor) -> tuple[Tensor, ...]:
    """Coefficients (k, batch) as k tensors (batch, 1, ...), to be multiplied with states like `like` (batch, *shape)."""
    return tuple(torch.as_tensor(values, dtype=like.dtype).to(like.device).view(len(values), -1, *[1] * (like.ndim - 1)))


def column(values: Tensor, like: Tensor) -> Tensor:
    """A number per sample, (batch,), as (batch, 1, ...), to be multiplied with states like `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))


def share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether writing to one changes the other."""
    try:
        return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    except RuntimeError as error:  # a CUDA graph has overwritten one; or, within torch.func, no tensor has memory of its own
        return "overwritten" in str(error)


def threshold(x0: Tensor, quantile: float, bound: float, most: float | None = None) -> Tensor:
    """x̂0 with dynamic thresholding, see EpsModel.thresholded; most: the largest s, if any."""
    s = column(torch.quantile(x0.reshape(len(x0), -1).abs(), quantile, dim=1).clamp(bound, most), x0)
    return x0.clamp(-s, s) * (bound / s)
