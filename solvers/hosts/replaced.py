"""What the scheduler of diffusers that is replaced says: its configuration, and its own spacing, read as λ.

The class computes its spacing itself (its set_timesteps), so that leading, trailing, linspace, Karras, exponential and beta
spacing, shifts, and custom timesteps and sigmas are what they are there. Of its `timesteps` and `sigmas`

    λ = λ(t)                  of whole labels; where it has no sigmas the last step goes to σ = 0, or with
                              set_alpha_to_one=False to label 0
    λ = −log(σ/α)             of `sigmas`, on tables of β and for EDM
    λ = log((1 − σ)/σ)        of `sigmas`, for flow matching (with invert_sigmas of 1 − σ)

Stages that it lists (Heun, KDPM2, PNDM) are left out, and so is a last step of no length. Only classes of diffusers are made, by
name.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import diffusers
import numpy as np
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from diffode.checks import instance, number
from diffode.errors import InputError, in_words, one_line, shown
from diffode.evaluation import threshold
from diffode.grid import check
from diffode.model import EpsModel
from diffode.schedule import Array, Schedule
from solvers.hosts.sigmas import lams_of

NEVER_CLIP = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "TCDScheduler")  # which have the keys, and do nothing with them
CUSTOM = ("timesteps", "sigmas")
DECLARED_ONLY = {"clip_sample", "thresholding"}
AT_THE_END = 1e-3  # in λ: what float32 makes of 1 − ᾱ at the clean end of a table, at most
ROUNDING = 2e-5  # what it makes of σ/α of all other labels; a shorter step has no length


@dataclass(frozen=True)
class Spacing:
    """lams: a grid, (n + 1,). clocks: with which it calls the network at all but the last, (n,). whole: whether it rounds clocks.
    init: its init_noise_sigma in units of our states."""

    lams: Array
    clocks: Array
    whole: bool
    init: float


def configuration_of(config: Any) -> tuple[dict[str, Any], str]:
    """The configuration of a scheduler, or that which a mapping is, and the name of its class, "" where it is not said."""
    held = getattr(config, "config", config)
    instance("config", held, Mapping, "a scheduler of diffusers, as pipe.scheduler, or its configuration")
    name = type(config).__name__ if held is not config else held.get("_class_name", "")
    return {key: value for key, value in held.items() if not key.startswith("_")}, str(name)


def class_of(name: str) -> type[Any]:
    """The scheduler class of diffusers of that name; InputError if there is none."""
    found = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if lacking := [package for package in getattr(found, "_backends", ()) if package != "torch"]:
        raise InputError(f"{name} takes {' and '.join(lacking)}, which is not installed: pip install {' '.join(lacking)}")
    if not (isinstance(found, type) and issubclass(found, SchedulerMixin)):
        raise InputError(
            f"{shown(name) if name else 'a configuration without the name of its class'} is no scheduler of diffusers whose "
            'spacing could be had: give the scheduler itself (pipe.scheduler), replaced="DDIMScheduler", or a grid of diffode'
        )
    return found


def keys_of(name: str) -> set[str]:
    """The keys of a configuration of that class."""
    return set(inspect.signature(class_of(name).__init__).parameters) - {"self", "kwargs"}


def spacing(name: str, config: Mapping[str, Any], schedule: Schedule, asked: Mapping[str, Any]) -> Spacing:
    """That of the class `name` with this configuration, when its set_timesteps is asked so: for `num_inference_steps`, or custom
    `timesteps` or `sigmas`, with a shift `mu` where it takes one, and with arguments of its own. InputError for what the class
    refuses, and for a spacing that does not lead from noise to data."""
    keys = keys_of(name)
    stageless = {"skip_prk_steps": True} if "skip_prk_steps" in keys else {}  # the stages of PNDM lie between its steps
    with refusing(name):
        made = class_of(name)(**{key: value for key, value in config.items() if key in keys} | stageless)
    labels, levels = _listed_by(made, schedule, asked)
    lams = _of_labels(labels, schedule, config) if levels is None else _of_levels(levels, labels, schedule, config)
    clocks = np.full(len(lams) - 1, np.nan) if labels is None else labels[: len(lams) - 1]
    with np.errstate(invalid="ignore"):  # ∞ − ∞
        steps_on = abs(np.diff(lams)) > ROUNDING
    with refusing(name):
        grid = check(lams[np.append(steps_on, True)])
    init = float(getattr(made, "init_noise_sigma", 1.0))
    if init != 1 and schedule.path.name == "vp":  # its states are x/α there
        init /= float(np.hypot(1, np.exp(-grid[0])))
    return Spacing(grid, clocks[steps_on], bool(np.all(clocks == np.round(clocks))), init)


def _listed_by(made: Any, schedule: Schedule, asked: Mapping[str, Any]) -> tuple[Array | None, Array | None]:
    """The `timesteps` and `sigmas` of a scheduler, as far as it has them. Custom ones that it does not take are as they were
    given, but for `sigmas` of flow matching, which are shifted as FlowMatchEuler and UniPC shift them."""
    name, taken = type(made).__name__, inspect.signature(made.set_timesteps).parameters
    if unknown := asked.keys() - taken.keys() - {"num_inference_steps", "mu", *CUSTOM}:
        raise InputError(f"set_timesteps of {name} has no argument {shown(min(unknown))}: leave it out")
    custom = [key for key in CUSTOM if key in asked]
    if any(key not in taken for key in custom):
        if len(custom) == 2:
            raise InputError(f"{name} does not take both `timesteps` and `sigmas`: leave one out")
        labels, levels = (asked.get(key) for key in CUSTOM)
        if levels is not None and schedule.path.name == "flow":
            shift: Any = dict(schedule.options)["shift"]
            levels = shift * levels / (1 + (shift - 1) * levels)
        return labels, levels
    with refusing(name):
        made.set_timesteps(**{key: value for key, value in asked.items() if key in taken})
    labels = np.asarray(made.timesteps, np.float64)
    if not hasattr(made, "sigmas"):
        return labels, None
    levels, rest = np.split(np.asarray(made.sigmas, np.float64), [len(labels) + 1])
    if np.any(rest != levels[-1]):  # KDPM2 lists its end thrice
        many = f"{len(levels) + len(rest)} sigmas for {len(labels)} timesteps"
        raise InputError(f'{name} lists {many}, so its spacing is not known: take a grid of diffode, as grid="karras"')
    return labels, levels


def bounded(model: EpsModel, name: str, config: Mapping[str, Any]) -> EpsModel:
    """The model with its x̂0 clipped or thresholded, as the class `name` does it, if it does; "" for any class."""
    keys = config.keys() if not name else keys_of(name) - (DECLARED_ONLY if name in NEVER_CLIP else set())
    if "thresholding" in keys and config.get("thresholding"):
        most = number("sample_max_value", config.get("sample_max_value", 1.0), 1)
        quantile = number("dynamic_thresholding_ratio", config.get("dynamic_thresholding_ratio", 0.995), 0, 1)
        return model.replace(hooks=(*model.hooks, partial(threshold, quantile=quantile, bound=1.0, most=most)))
    clips = "clip_sample" in keys and config.get("clip_sample")
    return model.clipped(config.get("clip_sample_range", 1.0)) if clips else model


@contextmanager
def refusing(name: str) -> Iterator[None]:
    """Whatever the class raises, as an InputError that names it."""
    try:
        yield
    except Exception as error:  # ValueError, TypeError, IndexError, ImportError of what it needs, ...
        raise InputError(
            f"{name} cannot make these timesteps ({one_line(in_words(error), 200)}): give others, or a grid of diffode"
        ) from error


def _of_levels(levels: Array, labels: Array | None, schedule: Schedule, config: Mapping[str, Any]) -> Array:
    """λ of σ, or σ/α, to which the last step's σ = 0 is added where it is not said; those of whole labels, of which σ is a number
    in float32, are exact."""
    if labels is None and levels[-1] > 0:
        levels = np.append(levels, 0.0)
    if config.get("invert_sigmas"):
        levels = 1 - levels
    with np.errstate(invalid="ignore"):  # ∞ − ∞; σ > 1 is NaN, and refused
        lams = lams_of(levels, schedule.path)
        ends = np.clip(lams, schedule.lam_min, schedule.lam_max)
        lams = np.where(abs(ends - lams) < AT_THE_END, ends, lams)
    if labels is not None and schedule.knots is not None:
        known = (labels == np.round(labels)) & (labels >= 0) & (labels < len(schedule.knots))
        exact = schedule.lam(np.where(known, labels, 0))
        close = known & (abs(exact - lams[: len(labels)]) < ROUNDING)
        lams[: len(labels)][close] = exact[close]
    return lams


def _of_labels(labels: Array | None, schedule: Schedule, config: Mapping[str, Any]) -> Array:
    """λ of labels, and of the end of the last step: σ = 0, or label 0 where the configuration says so."""
    if labels is None or schedule.knots is None:
        raise InputError(f"{schedule.name} has no labels that `timesteps` could be: give `sigmas`")
    to_zero = config.get("set_alpha_to_one", True) and config.get("final_sigmas_type", "zero") == "zero"
    return np.append(schedule.lam(labels), np.inf if to_zero else schedule.lam_max)
