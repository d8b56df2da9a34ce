"""EpsModel: ε(x, λ) for any network, device, prediction, condition and guidance; it counts evaluations.

A network is any callable `network(x, clock, **condition)` that returns something of the shape of x. An EpsModel says what
it predicts (prediction.PREDICTIONS), on which schedule it was trained, and what its second argument is:

    clock="t"      t(λ) of the schedule as float, fractional where λ falls between two labels
    clock="label"  the same as int64; an error unless λ is snapped to the labels (grid.snap)
    clock="lam"    λ itself

What acts on x̂0 (clipping, dynamic thresholding) and on the pair of conditional and unconditional outputs (guidance) happens
here, before any solver sees a number, and ε is re-derived from the x̂0 that came out, so the pair stays consistent.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from diffode import prediction
from diffode.errors import InputError
from diffode.schedule import Array, Schedule

Hook = Callable[[Tensor], Tensor]
Watch = Callable[[int, float, Tensor], None]
Coefficient = float | Tensor  # the same for all samples, or one for each, (batch, 1, ...)


class Evaluate(Protocol):
    """evaluate(x, i, out): the prediction at the i-th λ that was bound, for x (batch, *shape), written to `out` if given."""

    def __call__(self, x: Tensor, i: int = 0, out: Tensor | None = None) -> Tensor: ...


class EpsModel:
    """One interface for every network; see the module docstring.

    classes: how many labels the network knows, 0 if it takes none; labels are checked against it.
    shape: that of one sample, as (channels, height, width), if it is known; what samples by the model's name needs it.
    nfe, calls: evaluations of ε(x, λ), and network calls they took (guidance takes two an evaluation).
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        schedule: Schedule,
        predicts: str = "noise",
        *,
        clock: str = "t",
        classes: int = 0,
        shape: Sequence[int] | None = None,
    ) -> None:
        if clock not in ("t", "label", "lam"):
            raise InputError(f"unknown clock {clock!r}: expected t, label or lam")
        if predicts == "velocity" and schedule.path.name != "vp":
            raise InputError(
                f"velocity is α ε − σ x0 on the vp path; on the {schedule.path.name} path it is called flow (ε − x0) or tangent"
            )
        if clock == "label" and schedule.knots is None:
            raise InputError(f"the clock of {schedule.name} is continuous and has no labels: use clock='t' or 'lam'")
        self.network = network
        self.schedule = schedule
        self.predicts = prediction.check(predicts)
        self.clock = clock
        self.classes = classes
        self.shape = None if shape is None else _sizes(shape)
        self.autocast: torch.dtype | None = None
        self.condition: dict[str, Any] = {}
        self.guidance: tuple[float, dict[str, Any]] | None = None
        self.hooks: tuple[Hook, ...] = ()
        self.watches: tuple[Watch, ...] = ()
        self.nfe = 0
        self.calls = 0

    def conditioned(self, **condition: Any) -> EpsModel:
        """This model with `condition` handed to every network call by keyword; tensors are (batch, ...)."""
        return self._with(condition={**self.condition, **condition})

    def labelled(self, y: Tensor | Sequence[int]) -> EpsModel:
        """This model conditioned on class labels y, integers (batch,); InputError for a label out of range."""
        y = torch.as_tensor(y)
        if y.is_floating_point() or y.ndim != 1:
            raise InputError(f"labels are whole numbers, one a sample, not {y.dtype} {tuple(y.shape)}")
        y = y.long()
        if self.classes and not bool(((y >= 0) & (y < self.classes)).all()):
            wrong = int(y[(y < 0) | (y >= self.classes)][0])
            raise InputError(f"label {wrong} is out of range: this model knows 0 to {self.classes - 1}")
        return self.conditioned(y=y)

    def taking(self, rows: Sequence[int]) -> EpsModel:
        """This model for these samples of its batch, in this order: every tensor of the conditions is indexed by `rows`."""
        weight, null = self.guidance or (1.0, {})
        guidance = (weight, _taken(null, rows)) if self.guidance else None
        return self._with(condition=_taken(self.condition, rows), guidance=guidance)

    def guided(self, weight: float, **null: Any) -> EpsModel:
        """Classifier-free guidance (Ho and Salimans, 2022): unconditional + weight (conditional − unconditional).

        `null` replaces what it names of the condition in the unconditional call; without it the labels are left out there.
        Weight 1 is the conditional model itself.
        """
        if not abs(weight) <= 1e6:
            raise InputError(f"the guidance weight must be a finite number of moderate size, such as 2, not {weight}")
        return self._with(guidance=None if weight == 1 else (float(weight), null))

    def clipped(self, bound: float = 1.0) -> EpsModel:
        """This model with x̂0 clipped to [−bound, bound]."""
        if not bound > 0:
            raise InputError(f"x̂0 can be clipped to a positive bound only, not {bound}")
        return self._with(hooks=(*self.hooks, lambda x0: x0.clamp(-bound, bound)))

    def thresholded(self, quantile: float = 0.995, bound: float = 1.0) -> EpsModel:
        """This model with dynamic thresholding (Saharia et al., 2022): with s the quantile of |x̂0| of a sample, at least
        `bound`, x̂0 is clipped to [−s, s] and scaled by bound/s."""
        if not (0 < quantile <= 1 and bound > 0):
            raise InputError(f"dynamic thresholding takes 0 < quantile ≤ 1 and bound > 0, not {quantile} and {bound}")

        def threshold(x0: Tensor) -> Tensor:
            s = torch.quantile(x0.flatten(1).abs(), quantile, dim=1).clamp(min=bound)
            s = s.view(-1, *[1] * (x0.ndim - 1))
            return x0.clamp(-s, s) * (bound / s)

        return self._with(hooks=(*self.hooks, threshold))

    def autocasted(self, dtype: torch.dtype) -> EpsModel:
        """This model with its network, and nothing else, autocast to bfloat16 or float16."""
        if dtype not in (torch.bfloat16, torch.float16):
            raise InputError(f"a network is autocast to bfloat16 or float16, not to {dtype}")
        return self._with(autocast=dtype)

    def watched(self, watch: Watch) -> EpsModel:
        """This model, calling watch(evaluation, λ, prediction) after every evaluation, for progress and checks.

        The prediction is in the form that was asked for, and valid during the call: clone it to keep it. Where each sample
        has a λ of its own (see `at`) the watch is given the smallest, which is how far the slowest has come.
        """
        return self._with(watches=(*self.watches, watch))

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> EpsModel:
        """Move the network itself, if it is a module, to a device (and floating dtype); returns this model."""
        if isinstance(self.network, torch.nn.Module):
            self.network.to(device=device, dtype=dtype)
        return self

    @property
    def device(self) -> torch.device:
        """Where the network is, if it is a module; else the CPU."""
        return next((tensor.device for tensor in self._tensors()), torch.device("cpu"))

    def __call__(self, x: Tensor, lam: float, predicts: str = "noise") -> Tensor:
        """The prediction at λ, ε unless asked otherwise, for x (batch, *shape)."""
        return self.bind([lam], x, predicts)(x)

    def at(self, x: Tensor, lams: Sequence[float] | Array, predicts: str = "noise", rows: Sequence[int] | None = None) -> Tensor:
        """The prediction for x (batch, *shape) at a λ of its own for each sample, lams (batch,): one evaluation, counted once.

        rows: which samples of this model's batch these are, if not all: as `taking` them, but counted and watched here.
        """
        return self.bind(np.asarray(lams, np.float64)[None], x, predicts, rows)(x)

    def bind(
        self, lams: Sequence[float] | Array, like: Tensor, predicts: str = "noise", rows: Sequence[int] | None = None
    ) -> Evaluate:
        """Do the host's work for evaluations at these λ once: clocks on the device, conversions as pairs of numbers.

        lams: (evaluations,), or (evaluations, batch) with a λ for each sample; rows: see `at`. like: a state (batch, *shape),
        for its batch, device and dtype. Returns the function that the sampling loop calls.
        """
        batch = len(like)
        clocks = self._clocks(lams, like)
        target = "data" if self.hooks else prediction.check(predicts)
        ends = np.stack([self.schedule.alpha(lams), self.schedule.sigma(lams)], -1)
        direct = [_conversion(self.predicts, target, end, like) for end in ends]
        after = [_conversion(target, predicts, end, like) for end in ends]
        watched = [float(np.min(lam)) for lam in lams]
        model = self if rows is None else self.taking(rows)
        condition = _on(like.device, model.condition, batch)
        weight, null = model.guidance or (1.0, {})
        null = _on(like.device, model._unconditional(null), batch) if model.guidance else {}
        # A module is given x in the dtype of its weights; what it returns comes back in that of the state.
        dtype = next((tensor.dtype for tensor in self._tensors() if tensor.is_floating_point()), like.dtype)

        def call(x: Tensor, i: int, condition: dict[str, Any]) -> Tensor:
            self.calls += 1
            with torch.autocast(x.device.type, self.autocast) if self.autocast else nullcontext():
                m = self.network(x.to(dtype), clocks[i], **condition)
            m = getattr(m, "sample", m)  # what the networks of diffusers return
            if not isinstance(m, Tensor):
                raise InputError(f"the network returned a {type(m).__name__}: wrap it, so that it returns a tensor")
            if m.shape != x.shape:
                raise InputError(
                    f"the network returned {tuple(m.shape)} for a state of {tuple(x.shape)}: a network that "
                    "learns variances must hand back its mean alone"
                )
            return m

        def evaluate(x: Tensor, i: int = 0, out: Tensor | None = None) -> Tensor:
            self.nfe += 1
            m = call(x, i, condition).to(x.dtype)
            if weight != 1:
                m = torch.mul(m, weight, out=out).add_(call(x, i, null), alpha=1 - weight)
            m = _combine(m, x, direct[i], out)
            if self.hooks:
                for hook in self.hooks:
                    m = hook(m)
                m = _combine(m, x, after[i], out)
            for watch in self.watches:
                watch(self.nfe, watched[i], m)
            return m

        return evaluate

    def _unconditional(self, null: dict[str, Any]) -> dict[str, Any]:
        """The condition of the unconditional call; InputError if it would be the conditional one again."""
        if null:
            return {**self.condition, **null}
        if "y" not in self.condition:
            raise InputError("guidance needs labels (labelled) to leave out, or null=... to say what else to replace")
        return {name: value for name, value in self.condition.items() if name != "y"}

    def _tensors(self) -> Iterator[Tensor]:
        """The weights and buffers of the network, if it is a module."""
        if isinstance(self.network, torch.nn.Module):
            yield from self.network.parameters()
            yield from self.network.buffers()

    def _clocks(self, lams: Sequence[float] | Array, like: Tensor) -> Tensor:
        """The network's second argument for each evaluation, (evaluations, batch)."""
        if np.shape(lams)[1:] not in ((), (len(like),)):
            raise InputError(f"λ is one for all or one a sample: {np.shape(lams)[1]} do not go with a batch of {len(like)}")
        t = self.schedule.t(lams)  # InputError outside the schedule, whatever the clock
        exact = np.asarray(lams, np.float64) if self.clock == "lam" else t
        clocks = torch.as_tensor(exact, dtype=torch.promote_types(like.dtype, torch.float32))
        if self.clock == "label":
            if not np.allclose(t, np.round(t), rtol=0, atol=1e-6):
                raise InputError(
                    f"the grid asks for label {t.flat[np.argmax(abs(t - np.round(t)))]:.4f} of a network that takes "
                    "whole labels: snap the grid (grid.snap), and take a solver whose stages are all on it, or clock='t'"
                )
            clocks = torch.as_tensor(np.round(t), dtype=torch.int64)
        clocks = clocks.to(like.device)
        return clocks if clocks.ndim == 2 else clocks[:, None].repeat(1, len(like))

    def _with(self, **changes: Any) -> EpsModel:
        other = copy.copy(self)
        other.__dict__.update(changes, nfe=0, calls=0)
        return other


def columns(values: Array, like: Tensor) -> tuple[Tensor, ...]:
    """Coefficients (k, batch) as k tensors (batch, 1, ...), to be multiplied with states like `like` (batch, *shape)."""
    return tuple(torch.as_tensor(values, dtype=like.dtype).to(like.device).view(len(values), -1, *[1] * (like.ndim - 1)))


def _sizes(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape as a tuple of positive int; InputError if it is none."""
    try:
        sizes = tuple(map(operator.index, shape))
    except TypeError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise InputError(f"the shape of one sample is positive whole numbers, as (1, 28, 28), not {shape!r}")
    return sizes


def _conversion(native: str, wanted: str, end: Array, like: Tensor) -> tuple[Coefficient, Coefficient]:
    """(a, b) with wanted = a x + b native, for end = (α, σ), or (batch, 2) with a pair for each sample."""
    if native == wanted:
        return 0.0, 1.0
    if end.ndim == 1:
        return prediction.convert(native, wanted, *end.tolist())
    a, b = columns(np.array([prediction.convert(native, wanted, *one) for one in end.tolist()]).T, like)
    return a, b


def _combine(m: Tensor, x: Tensor, pair: tuple[Coefficient, Coefficient], out: Tensor | None) -> Tensor:
    """a x + b m in `out`, or in memory of its own, since m may be the network's; terms that are not there are not touched, since
    0 · NaN is NaN."""
    a, b = pair
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return torch.mul(m, b, out=out).add_(a * x)
    if b != 1:
        m = torch.mul(m, b, out=out)
    elif out is None:
        m = m.clone()
    elif m is not out:
        m = out.copy_(m)
    return m.add_(x, alpha=a) if a != 0 else m


def _taken(condition: dict[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """The condition of these rows; a tensor without dimensions is of no row, and stays."""
    chosen = list(rows)
    return {name: value[chosen] if isinstance(value, Tensor) and value.ndim else value for name, value in condition.items()}


def _on(device: torch.device, condition: dict[str, Any], batch: int) -> dict[str, Any]:
    for name, value in condition.items():
        if isinstance(value, Tensor) and value.ndim and len(value) != batch:
            raise InputError(f"the condition {name} is for a batch of {len(value)}, the state has {batch}")
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in condition.items()}
