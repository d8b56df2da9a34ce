"""What the configuration of a scheduler of diffusers says of the network: schedule, prediction and clock. Needs no diffusers.

    EpsModel(network, **trained_as(pipe.scheduler.config))        a dict, or the JSON object of scheduler_config.json

    tables of β       linear, scaled_linear, squaredcos_cap_v2, sigmoid, laplace, exp, trained_betas, with rescale_betas_zero_snr
                      and CogVideoX's snr_shift_scale; ε, x0 or v; t is the label
    flow matching     FlowMatch*, or use_flow_sigmas; α = 1 − σ, grids with its shift; t = num_train_timesteps · σ
    EDM               EDM*, and CosineDPMSolverMultistep: F with sigma_data, from sigma_max to sigma_min; c_noise, or an angle
    continuous v      EulerDiscrete with timestep_type "continuous" (Stable Video Diffusion): v on the vp path; c_noise
    ScoreSdeVe        the score on the ve path; t = σ

What a scheduler's grid and solver are (its spacing, Karras' σ, its order), and what it does to x̂0 (clip_sample, thresholding), is
not of the network and is not read. Some of diffusers replace the last ᾱ = 0 of zero terminal SNR by 2^−24; here it is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypedDict

import numpy as np
from scipy.special import expit

from diffode import schedules, tables
from diffode.checks import flag, instance, number, unknown, whole
from diffode.errors import InputError, shown
from diffode.schedule import Array, Schedule

FLOW = (
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "LTXEulerAncestralRFScheduler",
)
EDM = {  # and their own defaults
    "EDMEulerScheduler": {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "prediction_type": "epsilon"},
    "EDMDPMSolverMultistepScheduler": {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "prediction_type": "epsilon"},
    "CosineDPMSolverMultistepScheduler": {
        "sigma_min": 0.3,
        "sigma_max": 500.0,
        "sigma_data": 1.0,
        "prediction_type": "v_prediction",
    },
}
STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012}
DEFAULTS: dict[str, dict[str, Any]] = {  # of the schedulers of tables, where they are not those of DDPM
    **dict.fromkeys(("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"), STABLE_DIFFUSION | {"beta_schedule": "scaled_linear"}),
    **dict.fromkeys(("LCMScheduler", "TCDScheduler"), STABLE_DIFFUSION | {"beta_schedule": "scaled_linear"}),
    **dict.fromkeys(("HeunDiscreteScheduler", "DPMSolverSDEScheduler"), STABLE_DIFFUSION),
    **dict.fromkeys(("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"), STABLE_DIFFUSION),
    "UnCLIPScheduler": {"beta_schedule": "squaredcos_cap_v2"},
}
PLAIN = (  # the schedulers of tables with the defaults of DDPM
    *(
        "DDIMScheduler",
        "DDIMInverseScheduler",
        "DDIMParallelScheduler",
        "DDPMScheduler",
        "DDPMParallelScheduler",
        "PNDMScheduler",
    ),
    *("DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler", "LMSDiscreteScheduler"),
    *("DPMSolverSinglestepScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "RePaintScheduler"),
    *("SASolverScheduler", "UniPCMultistepScheduler"),
)
ON_A_TABLE = {"epsilon": "noise", "sample": "data", "v_prediction": "velocity"}
ON_A_FLOW = {"epsilon": "noise", "sample": "data", "flow_prediction": "flow"}


class TrainedAs(TypedDict):
    """What EpsModel is told of a network."""

    schedule: Schedule
    predicts: str
    clock: str


def trained_as(config: Any, mu: float | None = None) -> TrainedAs:
    """The schedule, prediction and clock that a configuration implies, as arguments of EpsModel.

    config: that of a scheduler of diffusers, with or without its _class_name, or the scheduler itself. mu: of a shift that
    depends on the resolution (use_dynamic_shifting), which is left out without. InputError for a configuration that says none
    of what the module docstring lists, and for a `mu` without such a shift.
    """
    if isinstance(held := getattr(config, "config", None), Mapping):
        config = {**held, "_class_name": type(config).__name__}
    instance("config", config, Mapping, "the configuration of a scheduler of diffusers, as dict(pipe.scheduler.config)")
    given = {key: value for key, value in config.items() if value is not None}
    kind = str(given.get("_class_name") or _kind(given))
    is_flow = kind in FLOW or _flag(given, "use_flow_sigmas")
    if mu is not None and not (is_flow and _flag(given, "use_dynamic_shifting")):
        raise InputError("`mu` is of a shift that depends on the resolution, and the configuration has none: leave it out")
    if is_flow:
        return _flow(given, mu)
    if kind in EDM:
        return _edm(EDM[kind] | given, "angle" if kind.startswith("Cosine") else "c_noise")
    if kind == "ScoreSdeVeScheduler":
        ends = number("sigma_min", given.get("sigma_min", 0.01)), number("sigma_max", given.get("sigma_max", 1348.0))
        return {"schedule": schedules.edm(*ends), "predicts": "score", "clock": "sigma"}
    if kind in DEFAULTS or kind in PLAIN or {"beta_end", "beta_schedule", "trained_betas"} & given.keys():
        return _table(DEFAULTS.get(kind, {}) | given)
    raise InputError(
        f"{f'the configuration of {shown(kind)}' if kind else 'a configuration without _class_name'} says of no table of β, flow "
        "matching or EDM: give EpsModel its schedule, prediction and clock"
    )


def _kind(given: Mapping[str, Any]) -> str:
    """A scheduler that has such keys: `scheduler.config` lacks its name, which only the file has."""
    if "sigma_data" in given and "sigma_max" in given:
        cosine = {"solver_order", "algorithm_type"} & given.keys() == {"solver_order"}
        return "CosineDPMSolverMultistepScheduler" if cosine else "EDMEulerScheduler"
    if "snr_shift_scale" in given:
        return "CogVideoXDDIMScheduler"
    return FLOW[0] if {"shift", "num_train_timesteps"} <= given.keys() else ""


def schedule_of(config: Any, mu: float | None = None) -> Schedule:
    """The schedule alone."""
    return trained_as(config, mu)["schedule"]


def _flow(given: Mapping[str, Any], mu: float | None) -> TrainedAs:
    shift = number("shift", given.get("flow_shift", given.get("shift", 1.0)), positive=True)
    if _flag(given, "use_dynamic_shifting"):
        shift = 1.0 if mu is None else math.exp(number("mu", mu, -10, 10))
        if mu is not None and given.get("time_shift_type") == "linear":
            shift = number("mu", mu, positive=True)
    reverse = _flag(given, "invert_sigmas")
    predicts = _prediction(given.get("prediction_type", "flow_prediction"), ON_A_FLOW)
    times = whole("num_train_timesteps", given.get("num_train_timesteps", 1000), 1, schedules.MOST_LABELS)
    return {
        "schedule": schedules.flow(0.0, 1.0, shift, reverse),
        "predicts": "reverse-flow" if reverse else predicts,
        "clock": f"{times}t" if times > 1 else "t",
    }


def _edm(given: Mapping[str, Any], clock: str) -> TrainedAs:
    ends = number("sigma_min", given["sigma_min"], positive=True), number("sigma_max", given["sigma_max"], positive=True)
    sigma_data, kind = number("sigma_data", given["sigma_data"], positive=True), given["prediction_type"]
    if kind == "epsilon":
        predicts = "edm" if sigma_data == 0.5 else f"edm({sigma_data})"
        return {"schedule": schedules.edm(*ends), "predicts": predicts, "clock": clock}
    if kind == "v_prediction" and sigma_data == 1:  # −F with σ_data = 1, of x/sqrt(σ² + 1), is v on the vp path
        return {"schedule": schedules.vp_sigma(*ends), "predicts": "velocity", "clock": clock}
    raise InputError(
        f"prediction_type {shown(kind)} with sigma_data = {sigma_data:g} is none of EDM's: expected is epsilon, or "
        "v_prediction with sigma_data = 1"
    )


def _table(given: Mapping[str, Any]) -> TrainedAs:
    predicts = _prediction(given.get("prediction_type", "epsilon"), ON_A_TABLE)
    schedule = _betas(given)
    if given.get("timestep_type") == "continuous" and predicts == "velocity":
        least, most = np.exp([-schedule.lam_max, -schedule.lam_min]).tolist()
        schedule = schedules.vp_sigma(given.get("sigma_min", least), given.get("sigma_max", most))
        return {"schedule": schedule, "predicts": predicts, "clock": "c_noise"}
    return {"schedule": schedule, "predicts": predicts, "clock": "t"}


def _betas(given: Mapping[str, Any]) -> Schedule:
    """The table of β, by a name if it has one."""
    steps = given.get("num_train_timesteps", given.get("timesteps", 1000))  # its first name
    steps = whole("num_train_timesteps", steps, 2, schedules.MOST_LABELS)
    ends = number("beta_start", given.get("beta_start", 1e-4), 0, 1), number("beta_end", given.get("beta_end", 0.02), 0, 1)
    zero_snr, kind = _flag(given, "rescale_betas_zero_snr"), given.get("beta_schedule", "linear")
    if not isinstance(kind, str) or kind not in BETAS:
        raise unknown("beta_schedule", kind, BETAS)
    shifted = "CogVideoX" in str(given.get("_class_name")) or "snr_shift_scale" in given
    if "trained_betas" not in given and not shifted:
        if kind == "linear" and not zero_snr:
            return schedules.ddpm_linear(*ends, steps)
        if kind == "scaled_linear":
            return schedules.scaled_linear(*ends, steps, zero_snr)
        if kind == "squaredcos_cap_v2":
            return schedules.squared_cosine(steps, zero_snr)
    table = schedules.ddpm_table(given.get("trained_betas", BETAS[kind](*ends, steps)))
    betas = np.asarray(dict(table.options)["betas"])
    if shifted:  # of the SNR, ᾱ/(1 − ᾱ), by 1/s
        s = number("snr_shift_scale", given.get("snr_shift_scale", 3.0), positive=True)
        bars = np.concatenate([[1.0], np.cumprod(1 - betas)])
        betas = tables.betas_of(bars / (s + (1 - s) * bars), most=1.0)
    return schedules.ddpm_table(schedules.zero_terminal_snr(betas) if zero_snr else betas)


def _flag(given: Mapping[str, Any], name: str) -> bool:
    return flag(name, given.get(name, False))


def _prediction(kind: Any, known: Mapping[str, str]) -> str:
    if not isinstance(kind, str) or kind not in known:
        raise unknown("prediction_type", kind, known)
    return known[kind]


def _of_bars(bar: Callable[[Array], Array]) -> Callable[[float, float, int], Array]:
    """β of ᾱ(u), u from 0 to 1."""
    return lambda first, last, steps: tables.betas_of(bar(np.arange(steps + 1) / steps))


def _laplace(u: Array) -> Array:
    snr = np.exp(-0.5 * np.sign(0.5 - u) * np.log(1 - 2 * abs(0.5 - u) + 1e-6))
    return np.sqrt(snr / (1 + snr))


BETAS: dict[str, Callable[[float, float, int], Array]] = {  # (beta_start, beta_end, T) -> β
    "linear": np.linspace,
    "scaled_linear": lambda first, last, steps: np.linspace(first**0.5, last**0.5, steps) ** 2,
    "squaredcos_cap_v2": _of_bars(tables.squared_cosine_bar),
    "sigmoid": lambda first, last, steps: expit(np.linspace(-6, 6, steps)) * (last - first) + first,
    "laplace": _of_bars(_laplace),
    "exp": _of_bars(lambda u: np.exp(-12 * u)),
}
