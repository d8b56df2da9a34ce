"""EpsModel: ε(x, λ) for any network, device, prediction, condition and guidance.

A network is any callable `network(x, clock, **condition)` that returns something of the shape of x. An EpsModel says what
it predicts (prediction.py), on which schedule it was trained, what its second argument is (clocks.py), and how it takes labels
(labels.py). A module gets x in the dtype of its weights, and answers in that of the state, whatever the two are (calling.py).

What acts on x̂0 (clipping, dynamic thresholding) and on the pair of conditional and unconditional outputs (guidance) happens
here, before any solver sees a number, and ε is re-derived from the x̂0 that came out, so the pair stays consistent.

An EpsModel is a value: its methods return another one, and evaluating it changes nothing in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from diffode import binding, checks, clocks, prediction
from diffode.calling import HALF, Call, check_device, check_state, dtype_of, module_of, weights_of
from diffode.conditions import numbers_of, on_device, rows_of
from diffode.errors import InputError, in_words
from diffode.evaluation import Counter, Evaluate, Hook, Watch, evaluate_once, threshold
from diffode.guidance import Guidance, guided, steered
from diffode.labels import Labels
from diffode.rules import Combine, Rule
from diffode.schedule import Array, Schedule
from diffode.weights import Weight


@dataclass(frozen=True, eq=False, repr=False)
class EpsModel:
    """One interface for every network; see the module docstring.

    clock: a name of clocks.CLOCKS, or a function of λ. classes: how many labels the network knows, 0 if it takes none; labels are
    checked against it. label: the keyword by which it takes them; null_label: the one that means none; one_hot: as rows.
    learned_variance: whether half of its channels are variances, to be cut off.
    shape: that of one sample, as (channels, height, width), if it is known; what samples by the model's name needs it.
    decode: from samples (batch, *shape) to images in [−1, 1], (batch, 3, h, w) or (batch, frames, 3, h, w); None for what is one.

    The methods set the other fields: condition, guidance, hooks on x̂0 (clipped, thresholded), watches and autocast.
    """

    network: Callable[..., Any]
    schedule: Schedule
    predicts: str = "noise"
    _: dataclasses.KW_ONLY
    clock: clocks.Clock = "t"
    classes: int = 0
    label: str = "y"
    null_label: int | None = None
    one_hot: bool = False
    learned_variance: bool = False
    shape: Sequence[int] | None = None
    decode: Callable[[Tensor], Tensor] | None = None
    condition: Mapping[str, Any] = field(default_factory=dict)
    guidance: Guidance | None = None
    hooks: tuple[Hook, ...] = ()
    watches: tuple[Watch, ...] = ()
    autocast: torch.dtype | None = None

    def __post_init__(self) -> None:
        checks.function("network", self.network, "a torch module or a function of x and its clock")
        checks.instance("schedule", self.schedule, Schedule, "a Schedule, as schedules.ddpm_linear() makes one")
        prediction.check(self.predicts, self.schedule.path.name)
        clocks.check(self.clock, self.schedule)
        object.__setattr__(self, "classes", self.labels.classes)
        object.__setattr__(self, "null_label", self.labels.null)
        checks.flag("learned_variance", self.learned_variance)
        checks.instance("condition", self.condition, Mapping, "a dict of what the network is given by keyword")
        checks.instance("decode", self.decode, Callable | None, "a function from samples to images, or None")
        checks.instance("guidance", self.guidance, Guidance | None, "what `guided` makes, or None")
        for name in ("hooks", "watches"):
            if not isinstance(found := getattr(self, name), tuple | list) or not all(map(callable, found)):
                raise checks.wrong(name, "a tuple of functions", found)
        if self.autocast is not None and self.autocast not in HALF:
            raise checks.wrong("autocast", "a dtype to autocast to, torch.bfloat16 or torch.float16", self.autocast)
        if self.shape is not None:
            object.__setattr__(self, "shape", checks.sizes("shape", self.shape, "(1, 28, 28)", least=0))

    def replace(self, **changes: Any) -> Self:
        """This model with other values of its fields."""
        return dataclasses.replace(self, **changes)

    def conditioned(self, **condition: Any) -> Self:
        """This model with `condition` handed to every network call by keyword; tensors are (batch, ...), or (1, ...) for all."""
        return self.replace(condition={**self.condition, **condition})

    def labelled(self, y: Tensor | Sequence[int]) -> Self:
        """This model conditioned on class labels y, integers (batch,); InputError for a label out of range."""
        return self.conditioned(**{self.label: self.labels.check(y)})

    def taking(self, rows: Sequence[int]) -> Self:
        """This model for these samples of its batch, in this order: every tensor of the conditions is indexed by `rows`."""
        rows = numbers_of(rows)
        return self.replace(condition=rows_of(self.condition, rows), guidance=self.guidance and self.guidance.taking(rows))

    def guided(
        self,
        weight: Weight,
        *,
        network: Callable[..., Any] | EpsModel | None = None,
        rules: Sequence[Rule | Combine] = (),
        batched: bool = False,
        **null: Any,
    ) -> Self:
        """Classifier-free guidance (Ho and Salimans, 2022): unconditional + weight (conditional − unconditional).

        weight: a number, one per sample, or a function of λ (guidance.interval, .cfgpp); where it is 1, one call is made. null:
        replaces what it names of the condition in the unconditional call; without it labels are left out there. network: what is
        called instead there, with the same condition (autoguidance, Karras et al., 2024). rules: guidance.rescaled, .apg.
        batched: both calls as one.
        """
        if network is not None and not isinstance(network, EpsModel):
            network = self.replace(network=network, condition={}, guidance=None, hooks=(), watches=())
        return self.replace(guidance=guided(self, [(weight, {})], network, rules, batched, null))

    def composed(self, branches: Sequence[tuple[Weight, Mapping[str, Any]]], *, batched: bool = False, **null: Any) -> Self:
        """Several conditions (Liu et al., 2022, Eq. 11): unconditional + Σ weight (conditional − unconditional).

        branches: (weight, what it changes of the condition) of each. The rest is as in `guided`.
        """
        return self.replace(guidance=guided(self, branches, None, (), batched, null))

    def steered(self, log_p: Callable[..., Tensor], scale: Weight = 1.0, **condition: Any) -> Self:
        """Classifier guidance (Dhariwal and Nichol, 2021, Alg. 2): ε − scale σ ∇ log p, beside any other guidance.

        log_p(x, clock, **condition), (batch,), is differentiated; it is given the clock that the network is, and counts as no
        network call. scale: as the weight of `guided`.
        """
        return self.replace(guidance=steered(self.guidance, log_p, scale, condition))

    def clipped(self, bound: float = 1.0) -> Self:
        """This model with x̂0 clipped to [−bound, bound]."""
        bound = checks.number("bound", bound, positive=True)
        return self.replace(hooks=(*self.hooks, partial(torch.clamp, min=-bound, max=bound)))

    def thresholded(self, quantile: float = 0.995, bound: float = 1.0) -> Self:
        """This model with dynamic thresholding (Saharia et al., 2022): with s the quantile of |x̂0| of a sample, at least
        `bound`, x̂0 is clipped to [−s, s] and scaled by bound/s."""
        quantile, bound = checks.number("quantile", quantile, 0, 1, positive=True), checks.number("bound", bound, positive=True)
        return self.replace(hooks=(*self.hooks, partial(threshold, quantile=quantile, bound=bound)))

    def autocasted(self, dtype: torch.dtype = torch.bfloat16) -> Self:
        """This model with its network called under autocast; the state keeps its dtype. InputError but for bfloat16, float16."""
        return self.replace(autocast=checks.instance("dtype", dtype, torch.dtype, "torch.bfloat16 or torch.float16"))

    def watched(self, watch: Watch) -> Self:
        """This model, calling watch(evaluation, λ, prediction) after every evaluation, for progress and checks.

        The prediction is in the form that was asked for, and valid during the call: clone it to keep it. Where each sample
        has a λ of its own (see `at`) the watch is given the smallest, which is how far the slowest has come.
        """
        checks.function("watch", watch, "a function of (evaluation, λ, prediction)")
        return self.replace(watches=(*self.watches, watch))

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> Self:
        """Move its modules themselves to a device (and floating dtype); returns this model."""
        place = check_device("device", device)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise checks.wrong("dtype", "a floating dtype of torch, as torch.float32", dtype)
        for module in self.modules:
            try:
                module.to(device=place, dtype=dtype)
            except NotImplementedError as error:
                raise InputError(f"the network cannot be moved to {place}: {in_words(error)}") from error
        if (decoder := module_of(self.decode)) is not None:
            decoder.to(place)  # in its own dtype: autoencoders overflow in half precision
        return self

    @cached_property  # since every binding asks, and adaptive solvers bind at every evaluation
    def labels(self) -> Labels:
        """How the network takes labels."""
        return Labels(self.classes, self.label, self.null_label, self.one_hot)

    @property
    def modules(self) -> list[torch.nn.Module]:
        """The torch modules that are called: the network, and those of guidance."""
        called = map(module_of, (self.network, *(self.guidance.networks if self.guidance else ())))
        return [module for module in called if module is not None]

    @property
    def device(self) -> torch.device:
        """Where the network is, if it is a module; else the CPU."""
        return next((tensor.device for tensor in weights_of(self.network)), torch.device("cpu"))

    def __call__(self, x: Tensor, lam: float, predicts: str = "noise", counter: Counter | None = None) -> Tensor:
        """The prediction at λ, ε unless asked otherwise, for x (batch, *shape)."""
        return evaluate_once(self.bind([lam], x, predicts, counter=counter), x)

    def at(
        self,
        x: Tensor,
        lams: Sequence[float] | Array,
        predicts: str = "noise",
        rows: Sequence[int] | None = None,
        counter: Counter | None = None,
    ) -> Tensor:
        """The prediction for x (batch, *shape) at a λ of its own for each sample, lams (batch,): one evaluation, counted once.

        rows: which samples of this model's batch these are, if not all.
        """
        return evaluate_once(self.bind(np.asarray(lams, np.float64)[None], x, predicts, rows, counter), x)

    def call_at(self, lams: Sequence[float] | Array, like: Tensor) -> Call:
        """The network at these λ, for states like `like`."""
        settings = self.autocast, self.predicts, self.learned_variance
        return Call.of(self.network, self.schedule, self.clock, lams, like, *settings)

    def handed(self, condition: Mapping[str, Any], like: Tensor) -> Mapping[str, Any]:
        """A condition as the network is handed it, for states like `like`."""
        dtype = dtype_of(self.network)
        return on_device(self.labels.rows(condition, like.device, dtype or like.dtype), like, dtype)

    def bind(
        self,
        lams: Sequence[float] | Array,
        like: Tensor,
        predicts: str = "noise",
        rows: Sequence[int] | None = None,
        counter: Counter | None = None,
    ) -> Evaluate:
        """Do the host's work for evaluations at these λ once; what the sampling loop calls.

        lams: (evaluations,), or (evaluations, batch) with a λ for each sample; rows: see `at`. like: a state (batch, *shape),
        for its batch, device and dtype. counter: what counts, a new one unless it is given.
        """
        if rows is not None:
            return self.taking(rows).bind(lams, like, predicts, counter=counter)
        prediction.check(predicts)
        check_state("x", like)
        return binding.bind(self, lams, like, predicts, counter or Counter())

    def __repr__(self) -> str:
        """A line that a person reads: network, prediction, schedule, and what has been set."""
        name = getattr(self.network, "__name__", type(self.network).__name__)
        count = sum(tensor.numel() for tensor in self.network.parameters()) if isinstance(self.network, torch.nn.Module) else 0
        parts = [f"{name}{f' ({count:,} parameters)' if count else ''} predicts {self.predicts} on {self.schedule.name}"]
        parts += [f"shape {self.shape}"] * (self.shape is not None) + [f"{self.classes} classes"] * bool(self.classes)
        parts += self.labels.as_given()
        parts += [f"condition {', '.join(self.condition)}"] * bool(self.condition)
        parts += [str(self.guidance)] * bool(self.guidance)
        parts += [f"{len(self.hooks)} hooks on x̂0"] * bool(self.hooks) + [f"autocast to {self.autocast}"] * bool(self.autocast)
        return f"EpsModel({', '.join(parts)})"
