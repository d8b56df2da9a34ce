"""How a network is called: with which numbers, and what is said where that fails.

A module is given x in the dtype of its weights, and a clock in that dtype or float32, whichever is wider, whatever the dtype of
the state: in bfloat16 t = 999 would be 1000. A module in half precision is therefore called under autocast to its own dtype, so
that what it computes from its clock in float32, as sinusoids, may meet its weights. Any other callable is given x as it is, and a
clock in the dtype of x or float32. A network that predicts EDM's F is given c_in x (prediction.input_scale).

A network returns a tensor, an object whose `sample` is one, or a tuple or list that begins with one, of the shape of x; with
`learned_variance` it has twice the channels, of which the first half are taken (Nichol and Dhariwal, 2021). It comes back in the
dtype of the state.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffode import prediction
from diffode.checks import wrong
from diffode.clocks import Clock, clocks_at
from diffode.errors import InputError, shown
from diffode.schedule import Array, Schedule

HALF = torch.bfloat16, torch.float16


def check_state(name: str, x: Any) -> Tensor:
    """x itself, a state (batch, *shape); InputError for what is no tensor of real floating numbers, or has no rows."""
    if not isinstance(x, Tensor):
        raise InputError(f"`{name}` must be a tensor (batch, *shape), not {shown(type(x).__name__)}: torch.as_tensor makes one")
    if x.is_complex():
        raise InputError(f"`{name}` must be real, not {x.dtype}: torch.view_as_real makes two real numbers of a complex one")
    if not x.is_floating_point():
        raise InputError(f"`{name}` must be of floating numbers, not {x.dtype}: pixels are x = pixels / 127.5 - 1")
    if x.ndim == 0 or x.numel() == 0:
        raise InputError(f"`{name}` must be (batch, *shape) with at least one sample and one number each, not {tuple(x.shape)}")
    return x


def check_device(name: str, device: Any) -> torch.device:
    """The device; InputError for one that torch does not know, or that is not there."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (TypeError, ValueError, RuntimeError, AssertionError, NotImplementedError):  # the last three where it is not there
        raise wrong(name, 'a device that is here, as "cpu" or "cuda"', device) from None
    return found


def module_of(function: Any) -> torch.nn.Module | None:
    """The module that a function is, or whose method it is."""
    found = getattr(function, "__self__", function)
    return found if isinstance(found, torch.nn.Module) else None


def weights_of(network: Any) -> Iterator[Tensor]:
    """The weights and buffers of a network, if it is a module or a method of one."""
    if module := module_of(network):
        yield from module.parameters()
        yield from module.buffers()


def dtype_of(network: Any) -> torch.dtype | None:
    """The dtype of a network's weights; None for what is no module or has none."""
    weights = _floating(network)
    return None if weights is None else weights.dtype


def _floating(network: Any) -> Tensor | None:
    return next((tensor for tensor in weights_of(network) if tensor.is_floating_point()), None)


@dataclass(frozen=True)
class Call:
    """call(x, i, condition): the network's output at the i-th clock, as the module docstring says.

    clocks: (evaluations, batch). dtype: that of the weights, None for what is no module or has none. autocast: to which dtype the
    network is autocast, if at all. scales: what x is multiplied by before each call, a number or (batch, 1, ...); None for 1.
    learned_variance: whether half of the channels are cut off. name: what messages call it.
    """

    network: Callable[..., Any]
    clocks: Tensor
    dtype: torch.dtype | None
    autocast: torch.dtype | None
    scales: Sequence[float | Tensor] | None = None
    learned_variance: bool = False
    name: str = "the network"

    @classmethod
    def of(
        cls,
        network: Callable[..., Any],
        schedule: Schedule,
        clock: Clock,
        lams: Sequence[float] | Array,
        like: Tensor,
        autocast: torch.dtype | None = None,
        predicts: str = "noise",
        learned_variance: bool = False,
        name: str = "the network",
    ) -> Call:
        """That of a network on this schedule at these λ, for states like `like`; InputError as `clocks_at`, and for a module
        without numbers."""
        weights = _floating(network)
        own = None if weights is None else weights.dtype
        offloaded = hasattr(network, "_hf_hook")  # accelerate's, which brings the weights
        if weights is not None and weights.is_meta and not (like.is_meta or offloaded):
            raise InputError(f"{name} is on meta, where tensors hold no numbers: load its weights onto a device")
        clocks = clocks_at(schedule, clock, lams, len(like), torch.promote_types(own or like.dtype, torch.float32))
        scales = None
        if prediction.find(predicts).scale is not None:
            c = prediction.input_scale(predicts, schedule.alpha(lams), schedule.sigma(lams))
            scales = c.tolist() if c.ndim == 1 else list(torch.as_tensor(c).to(like).view(*c.shape, *[1] * (like.ndim - 1)))
        autocast = autocast or (own if own in HALF else None)
        return cls(network, clocks.to(like.device), own, autocast, scales, learned_variance, name)

    def __call__(self, x: Tensor, i: int, condition: Mapping[str, Any]) -> Tensor:
        """The output, (batch, *shape), in the dtype of x; InputError if it is none."""
        scaled = x if self.scales is None else x * self.scales[i]
        m = output_of(self.evaluated(scaled, i, condition))
        if self.learned_variance:
            m = _mean(m, x)
        if not isinstance(m, Tensor) or m.shape != x.shape or (i == 0 and (m.device != x.device or m.is_complex())):
            raise _unfit(m, x)
        return m.to(x.dtype)

    def evaluated(self, x: Tensor, i: int, condition: Mapping[str, Any]) -> Any:
        """What it returns, whatever that is."""
        try:
            with torch.autocast(x.device.type, self.autocast) if self.autocast else nullcontext():
                return self.network(x if self.dtype is None else x.to(self.dtype), self.clocks[i], **condition)
        except (TypeError, RuntimeError) as error:
            _refuse(self, x, condition, error)
            raise


def output_of(returned: Any) -> Any:
    """The tensor of what a network returned: itself, its `sample`, as of the networks of diffusers, or the first of several."""
    if isinstance(returned, Tensor):
        return returned
    m = getattr(returned, "sample", returned)
    return m[0] if isinstance(m, tuple | list) and m else m


def _mean(m: Any, x: Tensor) -> Tensor:
    """The first half of the channels of an output with learned variances; InputError if it has not twice those of x."""
    if isinstance(m, Tensor) and x.ndim > 1 and m.shape == (len(x), 2 * x.shape[1], *x.shape[2:]):
        return m[:, : x.shape[1]]
    found = tuple(m.shape) if isinstance(m, Tensor) else f"a {type(m).__name__}"
    raise InputError(
        f"with learned_variance=True the network must return twice the channels of its state {tuple(x.shape)}, not {found}: "
        "leave learned_variance out if it learned none"
    )


def _unfit(m: Any, x: Tensor) -> InputError:
    """What is wrong with an output."""
    if not isinstance(m, Tensor):
        return InputError(f"the network returned a {type(m).__name__}: wrap it, so that it returns a tensor")
    if m.shape != x.shape:
        twice = x.ndim > 1 and m.shape == (len(x), 2 * x.shape[1], *x.shape[2:])
        advice = "say learned_variance=True if half are variances" if twice else "wrap it, so that the two are the same"
        return InputError(f"the network returned {tuple(m.shape)} for a state of {tuple(x.shape)}: {advice}")
    if m.is_complex():
        return InputError("the network returned complex numbers for a real state: return their real part, or both as channels")
    return InputError(f"the network returned a tensor on {m.device} for a state on {x.device}: move it there (EpsModel.to)")


def _refuse(call: Call, x: Tensor, condition: Mapping[str, Any], error: Exception) -> None:
    """InputError if the network failed since it takes other arguments, or is on another device, than it is called with."""
    function = call.network
    said = f"{call.name.removeprefix('the ')}({', '.join(['x', 't', *(f'{name}=...' for name in condition)])})"
    try:
        inspect.signature(getattr(function, "forward", function)).bind(x, x, **condition)
    except TypeError as misfit:
        advice = "give what it takes (conditioned), or a function that calls it so"
        if call.name == "log_p":
            advice = "give what it takes by keyword, as steered(log_p, scale, y=...)"
        elif str(misfit).endswith(("'y'", "'class_labels'")):
            advice = (
                "give labels (labelled) under the name that it takes, EpsModel(..., label=...), and where guidance leaves them "
                "out say which mean none, EpsModel(..., null_label=...)"
            )
        raise InputError(f"{call.name} cannot be called as {said}: {misfit}; {advice}") from error
    except ValueError:  # it has no signature
        pass
    places = {tensor.device for tensor in weights_of(function)}
    if places and x.device not in places:
        raise InputError(
            f"{call.name} is on {places.pop()} and the state on {x.device}: move one of them (EpsModel.to)"
        ) from error
