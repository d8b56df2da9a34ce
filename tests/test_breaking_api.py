"""Bad input to public functions: InputError in one sentence, within a second and without a warning, and nothing else.

Each table is a mapping of what is wrong to a call that must be refused.
"""

import contextlib
import dataclasses
import itertools
import math
import time
import warnings

import numpy as np
import pytest
import torch

import solvers
from diffode import EpsModel, InputError, grid, schedules
from diffode.brownian import BrownianNoise
from diffode.ddim_family import Family
from diffode.noise import SeededNoise, seeds_of
from diffode.schedule import PATHS, Schedule
from diffode.scheduler_config import trained_as
from solvers import ALIASES, Budget, Plan, Stage, encode, find, sample
from solvers.ddim import ddim_family
from solvers.intervals import intervals
from solvers.registry import all_names
from solvers.verify import verify

HUGE = 10**5000  # Python refuses to write it
SCHEDULE = schedules.ddpm_linear()
BETAS = np.linspace(1e-4, 0.02, 1000)
LAMS = grid.make("logsnr", SCHEDULE, 3)
NO_NUMBER = [None, "1", "", [1], {}, np.nan, True, 3j, HUGE, object(), len, torch.zeros(2)]
NO_WHOLE = [*NO_NUMBER[1:], 10.5, np.inf, -1, 10**12]
NO_GRID = [
    "",
    "nonesuch",
    "Karras",
    5,
    {},
    len,
    [],
    [0.0],
    [1.0, 0.0],
    [0.0, 0.0],
    [0.0, math.nan, 1.0],
    [math.inf, 0.0],
    ["a", "b"],
]
NO_GRID += [
    [[0.0, 1.0]],
    np.array(["a", 1], object),
    np.array(3.0),
    [HUGE, 0],
    [None, None],
    range(200_000),
    [-99.0, 0.0],
    object(),
]
NO_TEXT = [None, 5, ["ddim"], {}, len, b"ddim"]


def refused(call):
    """The sentence with which it is refused."""
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError) as error:
            call()
    sentence = str(error.value)
    assert 10 < len(sentence) < 400
    assert sentence.isprintable()
    assert time.process_time() - began < 1
    return sentence


def each(what, values, call):
    """A line of a table per value."""
    return {f"{what}, {i}": (lambda value=value: call(value)) for i, value in enumerate(values)}


def model():
    return EpsModel(lambda x, t: 0.1 * x, SCHEDULE, shape=(3,))


def sampled(**arguments):
    return sample(model(), **{"shape": (2, 3), "solver": "ddim", **arguments})


def plan_of(**changes):
    return dataclasses.replace(find("ddim").plan(LAMS, SCHEDULE), **changes)


TABLE = {"_class_name": "DDIMScheduler"}
DYNAMIC = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}
SCHEDULES = (
    each(
        "betas",
        [None, "a", 3, [], [0.1], [0.1, 2], [0.1, -1], [0.1, math.nan], [[0.1, 0.2]], [0.1, "a"], BETAS[::-1] * 100, {}],
        schedules.ddpm_table,
    )
    | each("ᾱ", [np.cumprod(1 - BETAS), 1 - BETAS, [1.0, 0.5]], schedules.ddpm_table)
    | each("betas of zero_terminal_snr", [None, "a", 3, [], [0.1], [0.1, 2], [0.1, math.nan]], schedules.zero_terminal_snr)
    | each("sigmas", [None, "a", 3, [], [1], [2, 1], [1, 1], [0, 1], [-1, 1], [1, np.inf], [1, math.nan]], schedules.from_sigmas)
    | each("sigmas on meta", [torch.ones(3, device="meta")], schedules.from_sigmas)
    | each("path", [*NO_TEXT, "vpx", ""], lambda value: schedules.from_sigmas([1.0, 2.0], value))
    | each("beta_first of scaled_linear", [*NO_NUMBER, -1, 2], lambda value: schedules.scaled_linear(beta_first=value))
    | each("beta_last of scaled_linear", [*NO_NUMBER, -1, 2], lambda value: schedules.scaled_linear(beta_last=value))
    | each("steps of scaled_linear", [None, *NO_WHOLE, 0, 1], lambda value: schedules.scaled_linear(steps=value))
    | each("zero_snr", [None, 1, "yes"], lambda value: schedules.scaled_linear(zero_snr=value))
    | each("steps of squared_cosine", [None, *NO_WHOLE, 0, 1], lambda value: schedules.squared_cosine(steps=value))
    | each("zero_snr of squared_cosine", [None, 1, "yes"], lambda value: schedules.squared_cosine(zero_snr=value))
    | each("shift", [*NO_NUMBER, -1, 0, np.inf], lambda value: schedules.flow(shift=value))
    | each("reverse", [None, 1, "yes"], lambda value: schedules.flow(reverse=value))
    | each("sigma_min of vp_sigma", [*NO_NUMBER, -1, np.inf, 1e9], lambda value: schedules.vp_sigma(sigma_min=value))
    | each("sigma_max of vp_sigma", [*NO_NUMBER, -1, np.inf, 1e-9], lambda value: schedules.vp_sigma(sigma_max=value))
    | each("config", [None, "a", [], {}, {"_class_name": 5}, {"_class_name": "SCMScheduler"}, {"shift": 3.0}], trained_as)
    | each("mu", [*NO_NUMBER[1:], np.inf], lambda value: trained_as(DYNAMIC, value))
    | each("beta_schedule", ["laplaces", 3, []], lambda value: trained_as(TABLE | {"beta_schedule": value}))
    | each("prediction_type", ["flow", 3, []], lambda value: trained_as(TABLE | {"prediction_type": value}))
    | each("num_train_timesteps", [1, 1.5, "a", 10**9], lambda value: trained_as(TABLE | {"num_train_timesteps": value}))
    | each("trained_betas", ["a", [2, 3], [], 5], lambda value: trained_as(TABLE | {"trained_betas": value}))
    | each("shift of a flow", [0, -1, "a"], lambda value: trained_as({"_class_name": DYNAMIC["_class_name"], "shift": value}))
    | each("sigma_data", [0, -1, "a"], lambda value: trained_as({"_class_name": "EDMEulerScheduler", "sigma_data": value}))
    | each("beta_first", [*NO_NUMBER, -1, 2, np.inf], lambda value: schedules.ddpm_linear(beta_first=value))
    | each("steps of a table", [None, *NO_WHOLE, 0, 1], lambda value: schedules.ddpm_linear(steps=value))
    | each("beta_min", [*NO_NUMBER, -1, 1e300, np.inf], lambda value: schedules.vp_linear(beta_min=value))
    | each("beta_max", [*NO_NUMBER, -1, 1e300, np.inf], lambda value: schedules.vp_linear(beta_max=value))
    | each("t_clean", [*NO_NUMBER, -0.1, 1.1, np.inf], lambda value: schedules.vp_linear(t_clean=value))
    | each("t_clean of cosine", [*NO_NUMBER, -0.1, 1.0], lambda value: schedules.cosine(t_clean=value))
    | each("t_noisy", [*NO_NUMBER, -0.1, 1.1, 0.0], lambda value: schedules.flow(t_noisy=value))
    | each("s", [*NO_NUMBER, -1, np.inf], lambda value: schedules.cosine(s=value))
    | each("sigma_min", [*NO_NUMBER, -1, np.inf, 100], lambda value: schedules.edm(sigma_min=value))
    | each("sigma_max", [*NO_NUMBER, -1, np.inf, 0.001], lambda value: schedules.edm(sigma_max=value))
    | each("name", [*NO_TEXT, "", "linear", "x" * 10**6], schedules.make)
    | each("option", ["t", "x" * 1000], lambda value: schedules.make("flow", **{value: 1.0}))
    | each("a table without its numbers", ["ddpm_table", "from_sigmas"], schedules.make)
    | each("t", [None, "a", 1000.0, -1.0, math.nan, [1, [2]], object(), 3j], SCHEDULE.lam)
    | each("λ", [None, "a", 99.0, -math.inf, math.nan, [1, [2]], object(), 3j], SCHEDULE.t)
    | each("λ of α", [None, "a", [1, [2]], object()], SCHEDULE.alpha)
    | each("path", [None, "vp", PATHS], lambda value: Schedule("own", value, 1.0, 0.0, abs, abs, abs))
)
GRIDS = (
    each("grid", NO_GRID, lambda value: grid.make(value, SCHEDULE, 3 if isinstance(value, str) else None))
    | each("checked", NO_GRID[3:-2], grid.check)
    | each("steps", [None, *NO_WHOLE, 0], lambda value: grid.make("time", SCHEDULE, value))
    | each("schedule", NO_TEXT, lambda value: grid.make("time", value, 3))
    | each("denoise", [None, 1, "yes"], lambda value: grid.make("time", SCHEDULE, 3, denoise=value))
    | each("τ", [*NO_TEXT, "tau-foo", "time"], lambda value: grid.tau(value, SCHEDULE, 10))
    | each("S", [None, *NO_WHOLE, 0, 1], lambda value: grid.tau("tau-linear", SCHEDULE, value))
    | each("snapped", [None, "a", [None], [math.nan, 1.0]], lambda value: grid.snap(value, SCHEDULE))
)
SEEDS = (
    each("seed", [*NO_NUMBER[:-1], 1.5, -1, 2**32, np.inf], lambda value: seeds_of(value, 2))
    | each(
        "seeds",
        [[1], [1, 2, 3], [1, 1.5], [1, True], ["1", "2"], [1, None], [1, -1], itertools.count()],
        lambda value: seeds_of(value, 2),
    )
    | each("seeds of noise", [None, 3, "12", [1.5], [-1]], SeededNoise)
    | {"a seed per row": lambda: SeededNoise([1, 2])(0, torch.zeros(3, 1))}
    | {"a seed per row of a path": lambda: BrownianNoise([1, 2], {})(1, torch.zeros(3, 1))}
    | each("seeds of paths", [None, 3, "12", [1.5], [-1]], lambda value: BrownianNoise(value, {}))
    | each(
        "intervals",
        [
            None,
            5,
            [(0, 1, 0)],
            {1: (0.0, 1.0)},
            {1: (1.0, 0.0, 0)},
            {1: (0.0, math.nan, 0)},
            {1: ("a", 1.0, 0)},
            {1: (0.0, 1.0, -1)},
        ],
        lambda value: BrownianNoise([1], value),
    )
    | each("plan of intervals", [None, "ddim", SCHEDULE], intervals)
    | each("seed of sample", [1.5, "a", -1, [1], math.nan, True], lambda value: sampled(seed=value, nfe=2))
)
BUDGETS = (
    each("nfe", [*NO_WHOLE, 0], lambda value: sampled(nfe=value))
    | each("steps", [*NO_WHOLE, 0], lambda value: sampled(steps=value))
    | each("grid", NO_GRID, lambda value: sampled(grid=value))
    | each("denoise", [None, 1, "yes", []], lambda value: sampled(denoise=value))
    | each("nfe of a Budget", [*NO_WHOLE, 0], lambda value: Budget(nfe=value))
    | each("budget", [None, 10, "10", {}], lambda value: find("ddim").prepare(value, SCHEDULE))
    | each("schedule", NO_TEXT, lambda value: find("ddim").prepare(Budget(3), value))
    | each("nfe to encode", [*NO_WHOLE, 0], lambda value: encode(model(), torch.zeros(2, 3), nfe=value))
)
NAMES = (
    each("solver", ["", "DPM++ 2M", "x" * 10**6, 5, ["ddim"], len, {}, b"ddim", 1.5, "ddim+unic", "a\nb\x1b[31m"], find)
    | each("solver of sample", [None, 5, "", len, ["ddim"]], lambda value: sampled(solver=value, nfe=2))
    | each("solvers to verify", [None, "ddim", 5, ["nonesuch"], [5], [None]], lambda value: verify(value, print))
    | each("option", ["Eta", "x" * 10**4, "order"], lambda value: sampled(**{value: 1}))
)
TOLERANCES = {
    f"{name} {key}": line
    for name in ("dpm23", "dopri5")
    for key, line in (
        each("rtol", [*NO_NUMBER, 0, -1, np.inf, 1e308, 2.0], lambda value, name=name: sampled(solver=name, rtol=value))
        | each("atol", [*NO_NUMBER, 0, -1, np.inf, 1e308], lambda value, name=name: sampled(solver=name, atol=value))
        | each("both", [1e-18, 1e-300], lambda value, name=name: sampled(solver=name, rtol=value, atol=value))
        | each("max_nfe", [None, *NO_WHOLE[:-1], 0], lambda value, name=name: sampled(solver=name, max_nfe=value))
    ).items()
}
PLANS = (
    each("grid", [*NO_GRID[3:8], *NO_GRID[9:-2]], lambda value: find("dpmpp2m").plan(value, SCHEDULE))
    | each("schedule", NO_TEXT, lambda value: find("dpmpp2m").plan(LAMS, value))
    | each("grid of a function", ["a", None, [0.0]], lambda value: solvers.dpmpp2m(value, SCHEDULE))
    | each("option of a function", [None, 5, "nonesuch"], lambda value: solvers.dpmpp2m(LAMS, SCHEDULE, start=value))
    | each("λ of a stage", NO_NUMBER, lambda value: Stage(value, 1.0))
    | each("x of a stage", [None, "1", [1], True, torch.zeros(2), HUGE], lambda value: Stage(0.0, value))
    | each("c of a stage", [None, 3, {"a": 1.0}, {0: "a"}, {1.5: 1.0}, [1.0]], lambda value: Stage(0.0, 1.0, value))
    | each("draw", ["a", 1.5, 0, -1, True, None], lambda value: Stage(0.0, 1.0, noise=0.1, draw=value))
    | each("evaluate", [None, 1, "yes"], lambda value: Stage(0.0, 1.0, evaluate=value))
    | each("solver of a plan", [None, 3], lambda value: plan_of(solver=value))
    | each("path of a plan", [None, "vp"], lambda value: plan_of(path=value))
    | each("prediction", [None, "velocity", ["noise"]], lambda value: plan_of(prediction=value))
    | each("stages", [None, 3, (), [], (Stage(0.0, 1.0),), (1, 2), "ab"], lambda value: plan_of(stages=value))
    | each("many stages", [(Stage(0.0, 1.0),) * 10**7], lambda value: Plan("own", PATHS["vp"], "noise", value))
    | each(
        "noise of q_σ",
        [None, "a", [1.0], [9.0, 9.0, 9.0], [math.nan] * 3, -np.ones(3)],
        lambda value: ddim_family(LAMS, SCHEDULE, value),
    )
    | each("grid of q_σ", [None, "a", [0.0]], lambda value: Family(value, SCHEDULE, [0.1]))
    | each("schedule of q_σ", [None, "vp"], lambda value: Family(LAMS, value, [0.1] * 3))
)
TABLES = {
    "schedules": SCHEDULES,
    "grids": GRIDS,
    "seeds": SEEDS,
    "budgets": BUDGETS,
    "names": NAMES,
    "tolerances": TOLERANCES,
    "plans": PLANS,
}


@pytest.mark.parametrize(("table", "what"), [(table, what) for table, lines in TABLES.items() for what in lines])
def test_bad_input_is_refused_in_a_sentence(table, what):
    refused(TABLES[table][what])


BAD_OPTIONS = {
    float: [math.nan, math.inf, -math.inf, -1.0, 1e300, 1e-300, 1e18, HUGE, "a", None, [1], True],
    int: [math.nan, math.inf, 10**6, -1, 0, 10**20, HUGE, "a", None, True, 1.5],
    str: ["", "x" * 10_000, 3, None, ["ramp"]],
    bool: [2, "yes", None, math.nan],
}
PLANNED = [name for name in (*all_names(), *ALIASES) if find(name).has_plan]


def finite_or_refused(name, lams, schedule, **options):
    """A plan of finite numbers, or one sentence."""
    made = []
    with warnings.catch_warnings(), contextlib.suppress(InputError):
        warnings.simplefilter("error")
        made.append(find(name).plan(lams, schedule, **options))
    if made:
        assert np.isfinite(made[0].matrix()).all()
    else:
        refused(lambda: find(name).plan(lams, schedule, **options))


@pytest.mark.parametrize("name", PLANNED)
def test_any_value_of_any_option_is_refused_or_makes_a_finite_plan(name):
    """Every solver, each of its options, and each bad value of the option's type."""
    for option, kind in find(name).options.items():
        for value in BAD_OPTIONS[kind]:
            finite_or_refused(name, [*LAMS, np.inf], SCHEDULE, **{option: value})


@pytest.mark.parametrize("name", PLANNED)
def test_steps_that_are_too_long_for_float64_are_refused(name):
    """λ from −250,000, where α is 0 and e^h overflows."""
    schedule = schedules.vp_linear(beta_max=1e6)
    finite_or_refused(name, grid.make("logsnr", schedule, 6), schedule)
    finite_or_refused(name, grid.make("time", schedule, 6, denoise=True), schedule)


def test_large_budgets_are_refused_at_once():
    """Whatever the unit: evaluations, steps, λ, labels, orders."""
    for call in (
        lambda: Budget(nfe=10**9),
        lambda: Budget(steps=10**9),
        lambda: grid.make("logsnr", SCHEDULE, 10**9),
        lambda: grid.make(range(10**9), SCHEDULE),
        lambda: schedules.ddpm_linear(steps=10**9),
        lambda: find("deis-rho").plan(LAMS, SCHEDULE, order=10**6),
    ):
        refused(call)
