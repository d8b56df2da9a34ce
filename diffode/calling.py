"""How a network is called: with which numbers, and what is said where that fails.

A module is given x in the dtype of its weights, and a clock in that dtype or float32, whichever is wider, whatever the dtype of
the state: in bfloat16 t = 999 would be 1000. A module in half precision is therefore called under autocast to its own dtype, so
that what it computes from its clock in float32, as sinusoids, may meet its weights. Any other callable is given x as it is, and a
clock in the dtype of x or float32. What a network returns comes back in the dtype of the state.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffode.checks import wrong
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


def weights_of(network: Any) -> Iterator[Tensor]:
    """The weights and buffers of a network, if it is a module."""
    if isinstance(network, torch.nn.Module):
        yield from network.parameters()
        yield from network.buffers()


@dataclass(frozen=True)
class Call:
    """call(x, i, condition): the network's output at the i-th clock, as the module docstring says.

    clocks: (evaluations, batch). dtype: that of the weights, None for what is no module or has none. autocast: to which dtype the
    network is autocast, if at all.
    """

    network: Callable[..., Any]
    clocks: Tensor
    dtype: torch.dtype | None
    autocast: torch.dtype | None

    @classmethod
    def of(
        cls,
        network: Callable[..., Any],
        schedule: Schedule,
        clock: str,
        lams: Sequence[float] | Array,
        like: Tensor,
        autocast: torch.dtype | None = None,
    ) -> Call:
        """That of a network on this schedule at these λ, for states like `like`; InputError as `clocks_at`, and for a module
        without numbers."""
        weights = next((tensor for tensor in weights_of(network) if tensor.is_floating_point()), None)
        own = None if weights is None else weights.dtype
        offloaded = hasattr(network, "_hf_hook")  # accelerate's, which brings the weights
        if weights is not None and weights.is_meta and not (like.is_meta or offloaded):
            raise InputError("the network is on meta, where tensors hold no numbers: load its weights onto a device")
        clocks = clocks_at(schedule, clock, lams, len(like), torch.promote_types(own or like.dtype, torch.float32))
        return cls(network, clocks.to(like.device), own, autocast or (own if own in HALF else None))

    def __call__(self, x: Tensor, i: int, condition: Mapping[str, Any]) -> Tensor:
        """The output, (batch, *shape), in the dtype of x; InputError if it is none."""
        m = self.evaluated(self.network, x, i, condition)
        m = getattr(m, "sample", m)  # what the networks of diffusers return
        if not isinstance(m, Tensor) or m.shape != x.shape or (i == 0 and (m.device != x.device or m.is_complex())):
            raise _unfit(m, x)
        return m.to(x.dtype)

    def evaluated(self, function: Callable[..., Any], x: Tensor, i: int, condition: Mapping[str, Any]) -> Any:
        """What a function of x and the clock returns, the network or another of its own, called as the network is."""
        try:
            with torch.autocast(x.device.type, self.autocast) if self.autocast else nullcontext():
                return function(x if self.dtype is None else x.to(self.dtype), self.clocks[i], **condition)
        except (TypeError, RuntimeError) as error:
            _refuse(function, x, condition, error)
            raise


def clocks_at(schedule: Schedule, clock: str, lams: Sequence[float] | Array, batch: int, dtype: torch.dtype) -> Tensor:
    """A network's second argument at each λ, (evaluations, batch), in `dtype`, or int64 for labels; on the CPU.

    InputError for λ outside the schedule, for labels that are not whole, and for λ that are neither one nor one per sample.
    """
    if np.shape(lams)[1:] not in ((), (batch,)):
        raise InputError(f"λ is one for all or one per sample: {np.shape(lams)[1]} do not go with a batch of {batch}")
    t = schedule.t(lams)  # InputError outside the schedule, whatever the clock
    clocks = torch.as_tensor(np.asarray(lams, np.float64) if clock == "lam" else t, dtype=dtype)
    if clock == "label":
        if not np.allclose(t, np.round(t), rtol=0, atol=1e-6):
            raise InputError(
                f"the grid asks for label {t.flat[np.argmax(abs(t - np.round(t)))]:.4f} of a network that takes "
                "whole labels: snap the grid (grid.snap), and take a solver whose stages are all on it, or clock='t'"
            )
        clocks = torch.as_tensor(np.round(t), dtype=torch.int64)
    return clocks if clocks.ndim == 2 else clocks[:, None].repeat(1, batch)


def _unfit(m: Any, x: Tensor) -> InputError:
    """What is wrong with an output."""
    if not isinstance(m, Tensor):
        return InputError(f"the network returned a {type(m).__name__}: wrap it, so that it returns a tensor")
    if m.shape != x.shape:
        return InputError(
            f"the network returned {tuple(m.shape)} for a state of {tuple(x.shape)}: a network that "
            "learns variances must return its mean alone"
        )
    if m.is_complex():
        return InputError("the network returned complex numbers for a real state: return their real part, or both as channels")
    return InputError(f"the network returned a tensor on {m.device} for a state on {x.device}: move it there (EpsModel.to)")


def _refuse(function: Callable[..., Any], x: Tensor, condition: Mapping[str, Any], error: Exception) -> None:
    """InputError if the network failed since it takes other arguments, or is on another device, than it is called with."""
    call = f"network({', '.join(['x', 't', *(f'{name}=...' for name in condition)])})"
    try:
        inspect.signature(getattr(function, "forward", function)).bind(x, x, **condition)
    except TypeError as misfit:
        labels = "give labels (labelled), and leave guidance out or say which labels mean none, as guided(2, y=...)"
        advice = labels if str(misfit).endswith("'y'") else "give what it takes (conditioned), or a function that calls it so"
        raise InputError(f"the network cannot be called as {call}: {misfit}; {advice}") from error
    except ValueError:  # it has no signature
        pass
    places = {tensor.device for tensor in weights_of(function)}
    if places and x.device not in places:
        raise InputError(
            f"the network is on {places.pop()} and the state on {x.device}: move one of them (EpsModel.to)"
        ) from error
