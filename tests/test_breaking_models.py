"""Models, states, networks and conditions that functions cannot take: as test_breaking_api.py, InputError in one sentence."""

import numpy as np
import pytest
import torch

from diffode import Budget, EpsModel, encode, guidance, inpaint, log_likelihood, sample, sample_with_log_p, schedules, shared
from diffode.ddim_family import Family
from diffode.errors import shown
from diffode.likelihood import dequantised, random_signs
from diffode.mixture import fit
from diffode.ode import accurate, drift
from diffode.prediction import convert
from experiments.sampling.recipe import Recipe, choose_device
from solvers import SOLVERS, Hooks, run
from solvers.transfer import transfer
from tests.test_breaking_api import refused

SCHEDULE = schedules.ddpm_linear()
MODEL = EpsModel(lambda x, t, y=None: 0.1 * x, SCHEDULE, classes=3)
X = torch.zeros(2, 1, 4, 4)
PLAN = SOLVERS["ddim"].prepare(Budget(nfe=2), SCHEDULE).plan
LONG = "long " * 1000
STATES = [  # that are none
    *(X.to(dtype) for dtype in (torch.uint8, torch.int64, torch.bool, torch.complex64)),
    *(X.numpy(), X.tolist(), X[:0], torch.zeros(()), torch.zeros(2, 0), X * torch.nan, None, "x", 5),
]
NO_STATES = [wrong for wrong in STATES if not (isinstance(wrong, torch.Tensor) and wrong.isnan().any())]  # as numbers say alone


def call(function, **given):
    """A row of the table: what is called, and the argument that is wrong, the last, as pytest shows it."""
    name, value = list(given.items())[-1]
    return pytest.param(function, given, id=f"{getattr(function, '__name__', type(function).__name__)} {name} {shown(value, 30)}")


def sampled(**given):
    return sample(**{"model": MODEL, "nfe": 2, "shape": (2, 1, 4, 4), **given})


def continued(**given):
    return sample(**{"model": MODEL, "nfe": 2, "x": X, **given})


def started(**given):
    return sample(**{"model": MODEL, "nfe": 2, "x": X, "strength": 0.5, **given})


def encoded(**given):
    return encode(**{"model": MODEL, "x": X, "nfe": 2, **given})


def likelihood(**given):
    return log_likelihood(**{"model": MODEL, "x0": X, "encode": encode, "nfe": 2, **given})


def completed(**given):
    return inpaint(**{"model": MODEL, "known": X, "mask": torch.ones(4, 4), "nfe": 2, "solver": "ddim", **given})


def beside(**given):
    return sample_with_log_p(**{"model": MODEL, "nfe": 2, "shape": (2, 1, 4, 4), "solver": "ddim", **given})


def model(**given):
    return EpsModel(**{"network": torch.zeros_like, "schedule": SCHEDULE, **given})


def of_network(network, **given):
    """Sampled from a network that is wrong, by a plan, an adaptive pair and a black box."""
    return sample(EpsModel(network, SCHEDULE), shape=(2, 1, 4, 4), solver=given.pop("solver", "ddim"), **given)


def needs_labels(x, t, y):
    return 0.1 * x * y.view(-1, 1, 1, 1)


def linear(**where):
    return torch.nn.Linear(4, 4, **where).requires_grad_(False)


class Clocked(torch.nn.Module):
    """A network of a linear layer, which takes a clock."""

    def __init__(self, **where):
        super().__init__()
        self.inner = linear(**where)

    def forward(self, x, t):
        return self.inner(x)


NETWORKS = {
    "NaN": lambda x, t: x * torch.nan,
    "infinity": lambda x, t: x + torch.inf,
    "complex": lambda x, t: x * (1 + 1j),
    "None": lambda x, t: None,
    "a tuple": lambda x, t: (None, x),
    "another shape": lambda x, t: x[:, :, :1],
    "elsewhere": lambda x, t: x.to("meta"),
    "needs y": needs_labels,
    "takes no clock": lambda x: x,
    "takes y only": lambda y: y,
    "on meta": Clocked(device="meta"),
}
SOLVED = [("ddim", {"nfe": 3}), ("dpm12", {}), ("bosh3", {}), ("bosh3", {"per_sample": True}), ("rk4", {"steps": 3})]

CORE = [
    *(call(function, model=wrong) for function in (sampled, encoded, likelihood) for wrong in (Clocked(), "fashion", None, len)),
    *(
        call(sampled, shape=wrong)
        for wrong in ((), (0, 1, 4, 4), (2, -1), (2.5, 1), "abc", 7, 0, None, [[2], [1]], LONG, (2, 2**62))
    ),
    *(call(function, x=wrong) for function in (continued, encoded) for wrong in STATES if wrong is not None),
    *(call(likelihood, x0=wrong) for wrong in STATES),
    call(sampled, x=X),
    *(call(sampled, dtype=wrong) for wrong in (torch.float16, torch.int64, "float32", np.float32, None, 5, LONG)),
    *(call(sampled, device=wrong) for wrong in ("gpu", "cuda:99", LONG, 3.5, [], torch.float32)),
    *(call(sampled, **{name: wrong}) for name in ("on_commit", "on_step") for wrong in (5, "f", X)),
    *(call(sampled, trajectory=wrong) for wrong in ("yes", 2, None)),
    *(call(function, progress=wrong) for function in (sampled, encoded) for wrong in ("yes", 2, None, X)),
    *(call(function, batch=wrong) for function in (sampled, encoded) for wrong in (0, -1, 1.5, "2", np.nan, True, [1], LONG)),
    *(call(sampled, shape=None, n=wrong) for wrong in (0, -1, 1.5, "2", np.nan, True, [1], 10**12, None)),
    *(call(sampled, noise=wrong) for wrong in ("", "Brownian", 1, LONG, [], torch.randn, None)),
    *(call(sampled, seed=wrong) for wrong in ([torch.Generator()], [torch.Generator(), 1], torch.Generator, LONG, [[1], [2]])),
    *(call(started, strength=wrong) for wrong in (0, -1, 1.01, np.nan, np.inf, "0.5", [0.5], True, X, LONG)),
    *(call(started, strength=None, from_lam=wrong) for wrong in (99, -99, np.nan, np.inf, "0", [0], True, X, LONG)),
    *(call(encoded, to_lam=wrong) for wrong in (99, -99, np.nan, np.inf, -np.inf, "0", [0], True, X, LONG)),
    *(call(started, x=wrong) for wrong in STATES if wrong is not None),
    *(call(Budget, strength=wrong) for wrong in (0, -1, 1.01, np.nan, "0.5", [0.5], True)),
    *(call(Budget, from_lam=wrong) for wrong in (np.nan, "0", [0], True, X)),
    call(sampled, on_commit=lambda x, lam: None),
    call(sampled, on_commit=lambda x, lam: x[:1]),
    *(call(encoded, **{name: True}) for name in ("denoise", "backwards", "labels_only", "nonesuch")),
    *(call(sampled, **{name: True}) for name in ("budget", "schedule", "backwards", "labels_only")),
    *(call(encoded, solver=wrong) for wrong in ("ddpm", PLAN)),
    *(call(likelihood, probes=wrong) for wrong in (-1, 1.5, "1", None, torch.nan, True, [1])),
    *(call(likelihood, encode=wrong) for wrong in ("encode", None, 5)),
    *(call(likelihood, end=wrong) for wrong in ("end", 5)),
    *(call(function, differentiable=wrong) for function in (likelihood, encoded) for wrong in (None, 1, "yes")),
    *(call(function, solver=wrong, differentiable=True) for function in (likelihood, encoded) for wrong in ("dpm12", "bosh3")),
    *(call(beside, model=wrong) for wrong in (Clocked(), "fashion", None)),
    *(call(beside, shape=wrong) for wrong in ((), (0, 1, 4, 4), "abc", None)),
    *(call(beside, probes=wrong) for wrong in (-1, 1.5, "1", None, True)),
    *(call(beside, seed=wrong) for wrong in (-1, 1.5, "a", [1])),
    *(call(beside, grid=wrong) for wrong in ("nonesuch", [], [0.0, torch.inf], 5)),
    *(call(beside, solver=wrong) for wrong in ("ddpm", "nonesuch", 5)),
    *(call(beside, **{name: wrong}) for name, wrong in (("denoise", True), ("nonesuch", 1), ("nfe", 0), ("steps", 2), ("n", 2))),
    *(call(likelihood, grid=wrong) for wrong in ("nonesuch", 5, [], [0.0], [0.0, torch.nan], ["a", "b"], [4.0, -4.0])),
    *(call(model, network=wrong) for wrong in (None, "network", 5, X)),
    *(call(model, schedule=wrong) for wrong in (None, "cosine", schedules.cosine, 5, LONG)),
    *(call(model, predicts=wrong) for wrong in (None, "epsilon", 5, [], LONG)),
    *(call(model, clock=wrong) for wrong in (None, "sigmas", 5, [], LONG)),
    *(call(model(clock=wrong), x=X, lam=0.0) for wrong in (lambda lam: lam[:0], lambda lam: lam * torch.nan, str)),
    *(call(model, classes=3, label=wrong) for wrong in (None, 5, "", "class labels", LONG)),
    *(call(model, classes=3, null_label=wrong) for wrong in (-1, 1.5, "3", [3], LONG)),
    *(call(model, classes=3, one_hot=wrong) for wrong in (1, "yes", None)),
    *(call(model, learned_variance=wrong) for wrong in (1, "yes", None)),
    *(call(model, decode=wrong) for wrong in (5, "vae", True, [len])),
    call(model, null_label=1000),
    call(model, one_hot=True),
    call(EpsModel(lambda x, t: x, SCHEDULE, learned_variance=True), x=X, lam=0.0),
    call(model(classes=3, null_label=5).labelled, y=[4]),
    *(call(model, classes=wrong) for wrong in (-1, 1.5, "10", None, torch.nan, [10])),
    *(call(model, shape=wrong) for wrong in ((1.0, 4), "abc", 5, [-1])),
    *(call(model, condition=wrong) for wrong in (None, [1], 5)),
    *(
        call(MODEL.labelled, y=wrong)
        for wrong in ([3], [-1], [1.5], ["a"], "abc", None, 1, [[1]], [True, False], [1, [2]], 1 + 1j)
    ),
    *(
        call(MODEL.labelled([0, 1]).taking, rows=wrong)
        for wrong in ([2], [-1], [True, False], torch.tensor([True, False]), ["0"], [0.5], 1, None, torch.ones(2, device="meta"))
    ),
    *(call(MODEL.guided, weight=wrong) for wrong in (torch.nan, torch.inf, "2", None, [[2.0]], [], 1e7, True)),
    *(call(MODEL.guided, weight=2.0, network=wrong) for wrong in ("network", 5, X)),
    *(call(MODEL.guided, weight=2.0, rules=wrong) for wrong in (None, 0.7, [0.7], ["apg"])),
    *(call(MODEL.guided, weight=2.0, batched=wrong) for wrong in ("yes", 2, None)),
    *(call(MODEL.labelled([0, 1]).guided(wrong), x=X, lam=0.0) for wrong in ([1.0] * 3, lambda lam: "2", lambda lam: [[lam]])),
    *(call(MODEL.composed, branches=wrong) for wrong in (None, [], 5, "ab", [2.0], [(2.0, 3.0)], [("2", {})], [(1e7, {})])),
    *(call(MODEL.steered, log_p=wrong) for wrong in (None, 5, X)),
    *(call(MODEL.steered, log_p=len, scale=wrong) for wrong in (torch.nan, "2", None, [], 1e7)),
    *(call(MODEL.steered(wrong), x=X, lam=0.0) for wrong in (lambda x, t: x, lambda x, t: x.sum(), lambda x: x)),
    *(call(guidance.interval, weight=2.0, lam_lo=wrong, lam_hi=1.0) for wrong in (torch.nan, "0", None, 2.0, 1.0)),
    *(call(guidance.interval, weight=2.0, lam_lo=0.0, lam_hi=wrong) for wrong in (torch.nan, "1", None, -1.0)),
    *(call(guidance.interval, weight=wrong, lam_lo=0.0, lam_hi=1.0) for wrong in (torch.nan, "1", None)),
    *(call(guidance.cfgpp, omega=wrong, lams=[0.0, 1.0]) for wrong in (torch.nan, "1", None, 1e7)),
    *(call(guidance.cfgpp, omega=0.6, lams=wrong) for wrong in (None, 5, "ab", [], [0.0], [1.0, 0.0], [0.0, torch.nan])),
    *(call(guidance.rescaled, phi=wrong) for wrong in (-0.1, 1.1, torch.nan, "1", None)),
    *(call(guidance.apg, eta=wrong) for wrong in (torch.inf, torch.nan, "1", None)),
    *(call(guidance.apg, norm=wrong) for wrong in (0, -1, torch.nan, "1", None)),
    *(call(guidance.apg, momentum=wrong) for wrong in (1.1, -2, torch.nan, "1", None)),
    *(call(shared, value=wrong) for wrong in ([1, 2], 5, None, "a", np.array(["a"]))),
    *(call(MODEL.clipped, bound=wrong) for wrong in (0, -1, torch.nan, torch.inf, "1", None)),
    *(call(MODEL.thresholded, quantile=wrong) for wrong in (0, 1.1, -1, torch.nan, "0.9", None)),
    *(call(MODEL.thresholded, bound=wrong) for wrong in (0, -1, torch.nan, "1")),
    *(call(MODEL.autocasted, dtype=wrong) for wrong in (torch.float32, "bfloat16", None)),
    *(call(MODEL.watched, watch=wrong) for wrong in (None, 5)),
    *(call(MODEL.to, device=wrong) for wrong in ("gpu", 3.5, [], LONG)),
    *(call(EpsModel(linear(), SCHEDULE).to, device="cpu", dtype=wrong) for wrong in ("half", torch.int64, 5)),
    call(EpsModel(linear(device="meta"), SCHEDULE).to, device="cpu"),
    *(
        call(MODEL, x=wrong, lam=0.0)
        for wrong in STATES
        if wrong is not None and not (isinstance(wrong, torch.Tensor) and wrong.isnan().any())
    ),
    *(call(MODEL, x=X, lam=0.0, predicts=wrong) for wrong in ("epsilon", None, 5)),
    *(
        call(MODEL.conditioned(c=wrong), x=X, lam=0.0)
        for wrong in (torch.zeros(1), np.zeros(3), [1, 2, 3], {"a": [{"b": torch.zeros(5)}]})
    ),
    call(MODEL.labelled([1, 0, 1]), x=X, lam=0.0),
    call(MODEL.guided(2.0), x=X, lam=0.0),
    call(EpsModel(needs_labels, SCHEDULE).labelled([1, 2]).guided(2.0), x=X, lam=0.0),
    *(
        pytest.param(of_network, {"network": network, "solver": solver, **how}, id=f"{name} {solver} {' '.join(how)}")
        for name, network in NETWORKS.items()
        for solver, how in SOLVED
    ),
    *(
        pytest.param(likelihood, {"model": EpsModel(network, SCHEDULE)}, id=f"likelihood {name}")
        for name, network in NETWORKS.items()
    ),
    *(pytest.param(encoded, {"model": EpsModel(network, SCHEDULE)}, id=f"encode {name}") for name, network in NETWORKS.items()),
    *(call(run, model=MODEL, x=X, plan=wrong) for wrong in ("ddim", None, SOLVERS["ddim"])),
    *(call(run, plan=PLAN, x=X, model=wrong) for wrong in ("fashion", None, len)),
    *(call(run, plan=PLAN, model=MODEL, x=wrong) for wrong in STATES),
    *(call(run, plan=PLAN, model=MODEL, x=X, hooks=wrong) for wrong in (None, len, "hooks")),
    *(call(Hooks, **{name: 5}) for name in ("noise", "on_commit", "on_step", "trajectory")),
    *(
        call(accurate, model=MODEL, x=wrong, lam_s=0.0, lam_t=1.0)
        for wrong in STATES
        if not hasattr(wrong, "isnan") or not wrong.isnan().any()
    ),
    *(call(accurate, model=MODEL, x=X, lam_t=1.0, lam_s=wrong) for wrong in ("a", None, torch.nan, torch.inf)),
    *(call(accurate, model=MODEL, x=X, lam_s=0.0, lam_t=1.0, tolerance=wrong) for wrong in (0, -1, "a", torch.nan)),
    *(call(drift, model=wrong) for wrong in (None, len)),
    *(call(drift, model=MODEL, variable=wrong) for wrong in ("lam", None)),
    *(call(convert, wanted="data", alpha=0.5, sigma=0.5, native=wrong) for wrong in ("epsilon", None, [])),
    *(call(transfer, path=SCHEDULE.path, lam_s=0.0, lam_t=1.0, prediction=wrong) for wrong in ("velocity", "epsilon", None)),
    *(call(random_signs, like=X, probes=wrong) for wrong in (0, -1, 1.5, "a")),
    *(call(dequantised, pixels=wrong) for wrong in (X, np.zeros((2, 4, 4)), np.zeros((4, 4), np.uint8), None, "a")),
    *(
        call(Family, grid=[0.0, 1.0], schedule=SCHEDULE, noise=wrong)
        for wrong in ("a", None, [[0.1]], [0.1, 0.1], [torch.nan], [5.0])
    ),
    *(call(Family, grid=[0.0, 1.0], schedule=wrong, noise=[0.1]) for wrong in ("cosine", None)),
    *(
        call(fit, x0=torch.zeros(100, 1, 4, 4), **{name: wrong})
        for name in ("per_class", "rank", "iterations")
        for wrong in (0, 1.5, "a")
    ),
    *(call(fit, x0=wrong) for wrong in STATES[:9]),
    *(call(choose_device, name=wrong) for wrong in ("gpu", "cuda:99", 3.5, None, LONG)),
    *(call(Recipe, dtype=wrong) for wrong in ("half", 5, None, [])),
    *(call(Recipe, device=wrong) for wrong in (5, None)),
    *(
        call(completed, mask=wrong)
        for wrong in (
            torch.full((4, 4), 1.5),
            torch.full((4, 4), -0.1),
            torch.ones(4, 4) * 1j,
            np.ones((4, 4)),
            "mask",
            None,
            torch.ones(7, dtype=torch.bool),
            torch.ones(4, 4) * torch.nan,
            torch.ones(4, 4, device="meta"),
        )
    ),
    *(call(completed, known=wrong) for wrong in NO_STATES),
    *(call(completed, resample=wrong) for wrong in (-1, 1.5, "1", None, True, 101)),
    *(call(completed, seed=wrong) for wrong in (-1, 1.5, "a", [1])),
    *(call(completed, solver=wrong) for wrong in ("dpm12", "bosh3", "nonesuch", 5)),
    *(call(completed, resample=2, solver=wrong) for wrong in ("dpmpp2m", "unipc2")),
    *(call(completed, **{name: wrong}) for name, wrong in (("nonesuch", 1), ("nfe", 0), ("noise", "pink"), ("grid", "nonesuch"))),
]


@pytest.fixture(scope="module", autouse=True)
def first_use():
    """What torch imports at its first gradient is not the time of a refusal."""
    likelihood()


@pytest.mark.parametrize(("function", "given"), CORE)
def test_what_cannot_be_taken_is_refused_in_a_sentence(function, given):
    refused(lambda: function(**given))
