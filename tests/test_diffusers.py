"""Against diffusers: the same numbers where it does what the papers say, and proof of who is right where it does not."""

from importlib.util import find_spec
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from benchmarks.peers import PEERS, Peer, double, drive, make, on_grid, run_peer
from diffode import EpsModel, InputError, grid, schedules
from diffode.noise import SeededNoise
from diffode.ode import accurate
from solvers import run
from solvers.hooks import Hooks
from solvers.registry import find
from tests.quick import quick

DDPM = schedules.ddpm_linear()
pytestmark = [
    pytest.mark.skipif(find_spec("diffusers") is None, reason="needs diffusers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # what diffusers and numpy say of each other
]
NOISE = SeededNoise(range(4))
GRIDS = {
    "logsnr": lambda n: np.linspace(DDPM.lam_min, DDPM.lam_max, n + 1),
    "time": lambda n: DDPM.lam(np.linspace(999, 0, n + 1)),
}
TABLE = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}  # that of ddpm_linear
SAME = [peer for peer in PEERS if peer.same]


@pytest.fixture
def model(toy):
    return quick(toy("vp", DDPM))


def rms(x):
    return float(x.square().mean().sqrt())


def prior(lam, shape=(4, 1, 2, 3)):
    return NOISE(0, torch.empty(shape, dtype=torch.float64)) * float(DDPM.sigma(lam))


def ours(name, model, x, lams, **options):
    return run(find(name).plan(lams, DDPM, **options), model, x, Hooks(noise=NOISE)).x


def name_of(peer):
    return peer.name.replace(" ", "")


@pytest.mark.parametrize(("steps", "spacing"), [(4, "time"), (20, "logsnr")])
@pytest.mark.parametrize("peer", SAME, ids=name_of)
def test_the_same_method_is_the_same_numbers(peer, steps, spacing, model):
    """In float64, with the same noise, on any grid. 1e-8: what is left is 1 − ᾱ and its like, by subtraction, in their code."""
    lams = GRIDS[spacing](steps)
    x = prior(lams[0])
    theirs = run_peer(peer, model, x, lams, NOISE)
    torch.testing.assert_close(ours(peer.ours, model, x, lams, **peer.ours_on(lams)), theirs, rtol=0, atol=1e-8)


@pytest.mark.parametrize("peer", [peer for peer in SAME if peer.to_zero], ids=name_of)
def test_the_step_to_zero_is_the_same(peer, model):
    lams = np.array([-4.0, -2.0, 0.0, 1.0, 2.0, np.inf])
    x = prior(lams[0])
    theirs = run_peer(peer, model, x, lams, NOISE)
    torch.testing.assert_close(ours(peer.ours, model, x, lams, **peer.ours_on(lams)), theirs, rtol=0, atol=1e-8)


LEADING, TENTHS = np.arange(901, 0, -100), np.linspace(999, 0, 11).round()
SHIPPED = [
    *(
        ("DDIM", {"steps_offset": 1, "set_alpha_to_one": False}, "ddim", {"eta": eta}, np.append(LEADING, 0))
        for eta in (0, 0.5, 1)
    ),
    ("DDPM", {}, "ddpm", {}, np.append(LEADING - 1, np.nan)),
    ("EulerDiscrete", {}, "euler", {}, np.append(np.arange(999, -1, -111), np.nan)),
    ("HeunDiscrete", {}, "heun", {}, np.append(np.arange(999, -1, -111), np.nan)),
    ("PNDM", {"steps_offset": 1}, "pndm", {}, np.append(LEADING, 0)),
    *(
        case
        for kind, variant in (("midpoint", "midpoint"), ("heun", "taylor"))
        for case in (
            ("DPMSolverMultistep", {"solver_type": kind}, "dpmpp2m", {"variant": variant}, np.append(TENTHS[:-1], np.nan)),
            (
                "DPMSolverMultistep",
                {"solver_type": kind, "algorithm_type": "sde-dpmsolver++"},
                "sde-dpmpp2m",
                {"variant": variant},
                np.append(TENTHS[:-1], np.nan),
            ),
            (
                "DPMSolverMultistep",
                {"solver_type": kind, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
                "dpm2m",
                {"variant": variant, "lower_final": True},
                TENTHS,
            ),
        )
    ),
    *(
        (
            "UniPCMultistep",
            {"solver_order": order, "solver_type": variant, "final_sigmas_type": "sigma_min"},
            f"unipc{order}",
            {"variant": variant, "lower_final": True},
            TENTHS,
        )
        for order in (2, 3)
        for variant in ("bh1", "bh2")
    ),
    *(("DEISMultistep", {"solver_order": n}, "deis-lambda", {"order": n, "lower_final": True}, TENTHS) for n in (2, 3)),
]


@pytest.mark.parametrize(("scheduler", "config", "name", "options", "labels"), SHIPPED)
def test_as_shipped_on_its_own_labels(scheduler, config, name, options, labels, model):
    """Its own table of β, labels and float32. 1e-4 of the state: their constants have seven digits, and 1 − ᾱ_0 has four."""
    made = make(scheduler, 10, **TABLE, **config)
    lams = np.where(np.isnan(labels), np.inf, DDPM.lam(np.nan_to_num(labels)))
    x = prior(lams[0])
    step = {"eta": options["eta"]} if scheduler == "DDIM" else {}
    theirs = drive(made, model, x, DDPM.lam(made.timesteps.double().numpy()), lams[-1], NOISE, **step)
    assert made.timesteps[0] == labels[0]
    expected = ours(name, model, x, lams, **options)
    assert rms(theirs - expected) < 1e-4 * rms(expected)


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver"])
def test_third_order_multistep_is_of_order_2_there(algorithm, model):
    """The second divided difference is half the second derivative, and their formula lacks the factor 2: with exact states up to
    the third step, so that no warm-up is to blame, the order is 2. With the factor it is 3."""
    peer = Peer("DPMSolverMultistep", "", config={"solver_order": 3, "algorithm_type": algorithm, "lower_order_final": False})
    exact = "dpmpp3m" if algorithm == "dpmsolver++" else "dpm3m"
    x = prior(-2.0)
    truth, theirs, corrected = accurate(model, x, -2.0, 2.0), [], []
    for steps in (80, 160):
        lams, state = np.linspace(-2, 2, steps + 1), x
        with double(peer.scheduler):
            scheduler, _ = on_grid(peer, lams, model)
            for i, t in enumerate(scheduler.timesteps):
                if i in (1, 2):
                    state = accurate(model, x, -2.0, lams[i])
                state = scheduler.step(model(state, lams[i]), t, state).prev_sample
        theirs.append(rms(state - truth))
        corrected.append(rms(ours(exact, model, x, lams, start="single") - truth))
    assert np.log2(theirs[0] / theirs[1]) == pytest.approx(2, abs=0.15)
    assert np.log2(corrected[0] / corrected[1]) == pytest.approx(3, abs=0.15)
    assert theirs[1] > 10 * corrected[1]


def test_third_order_sde_has_a_wrong_sign_there():
    """What a step adds for x̂0 = (λ − λ_s)² is α_t ∫ 2 e^(−2(λ_t − λ)) (λ − λ_s)² dλ: 0.17 α_t h² at h = 0.3.

    Their coefficient of the divided difference, which is h² here, is (1 − e^(−2h) − 2h)/(2h)² − ½, negative at any h: −0.91. With
    +½ and the lost factor 2 it is the integral.
    """
    h, lams = 0.3, 0.3 * np.arange(-2, 2)
    nodes = lams[:-1]
    config = {"solver_order": 3, "algorithm_type": "sde-dpmsolver++", "lower_order_final": False, "prediction_type": "sample"}
    toy_model = EpsModel(lambda x, lam: x, DDPM, "data", clock="lam")
    with double("DPMSolverMultistep"):
        scheduler, _ = on_grid(Peer("DPMSolverMultistep", "", config=config), lams, toy_model)
        for t, lam in zip(scheduler.timesteps, nodes, strict=True):
            zero = torch.zeros(1, 1, dtype=torch.float64)
            added = scheduler.step(zero + lam**2, t, zero, variance_noise=zero).prev_sample
    exact = quad(lambda u: 2 * np.exp(-2 * (h - u)) * u**2, 0, h)[0] / h**2
    psi = (1 - np.exp(-2 * h) - 2 * h) / (2 * h) ** 2
    assert float(added) / float(DDPM.alpha(h)) / h**2 == pytest.approx(psi - 0.5, rel=1e-9)
    assert 2 * (psi + 0.5) == pytest.approx(exact, rel=1e-9)
    assert psi - 0.5 < -0.9 < 0 < 0.17 < exact
    row = find("sde-dpmpp3m").plan(lams, DDPM).stages[-1]
    assert sum(c * nodes[j] ** 2 for j, c in row.c.items()) / float(DDPM.alpha(h)) / h**2 == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("skip", [True, False])
def test_pndm_depends_on_the_prediction_there(skip, model):
    """One exact model, said as ε and as v. Its history mixes velocities of different states: five times the error. Ours converts
    when it evaluates, and does not care."""
    lams = DDPM.lam(np.append(np.arange(951, 0, -50), 0.0))
    x = prior(lams[0])
    truth = accurate(model, x, lams[0], lams[-1])
    as_eps = EpsModel(lambda x, lam: model(x, float(lam[0])), DDPM, "noise", clock="lam")
    errors = {}
    for prediction in ("epsilon", "v_prediction"):
        made = make("PNDM", 20, **TABLE, skip_prk_steps=skip, steps_offset=1, prediction_type=prediction)
        errors[prediction] = rms(drive(made, model, x, DDPM.lam(made.timesteps.double().numpy()), lams[-1]) - truth)
    mine = [ours("ipndm" if skip else "pndm", network, x, lams) for network in (model, as_eps)]
    torch.testing.assert_close(*mine, rtol=0, atol=1e-10)
    assert errors["v_prediction"] > 2 * errors["epsilon"]
    assert rms(mine[0] - truth) < 1.1 * errors["epsilon"]


def test_deis_gets_worse_with_more_steps_there(model):
    """Its weights are differences of antiderivatives of size log² ρ, in float32. Its own code in float64, and our weights in
    float32, go on towards the truth."""
    x, errors = prior(DDPM.lam_min), {}
    truth = accurate(model, x, DDPM.lam_min, DDPM.lam_max)
    single = EpsModel(lambda x, lam: model(x.double(), float(lam[0])).float(), DDPM, "noise", clock="lam")
    for steps in (111, 333):
        lams = GRIDS["time"](steps)
        made = make("DEISMultistep", steps, **TABLE, solver_order=3)
        peer = Peer("DEISMultistep", "deis-lambda", config={"solver_order": 3})
        errors[steps] = [
            rms(state.double() - truth)
            for state in (
                drive(made, single, x.float(), lams, lams[-1]),
                run_peer(peer, model, x, lams),
                ours("deis-lambda", single, x.float(), lams),
            )
        ]
    assert errors[333][0] > errors[111][0]
    assert errors[333][1] < errors[111][1] / 4
    assert errors[333][2] < errors[111][2] / 4
    assert errors[333][0] > 4 * errors[333][2]


@pytest.mark.parametrize("spacing", ["use_karras_sigmas", "use_exponential_sigmas"])
@pytest.mark.parametrize("scheduler", ["DEISMultistep", "SASolver"])
def test_the_last_step_has_no_length_there(scheduler, spacing, model):
    """The last σ stands twice: the last evaluation changes nothing. Here no such grid can be made."""
    kwargs = {"tau_func": lambda t: 0, "corrector_order": 1} if scheduler == "SASolver" else {}
    made = make(scheduler, 8, **TABLE, **{spacing: True}, **kwargs)
    lams = -np.log(made.sigmas.double().numpy())
    assert lams[-1] == lams[-2]
    with pytest.raises(InputError, match="strictly increasing"):
        grid.check(lams)
    if scheduler == "DEISMultistep":
        x = prior(lams[0])
        for t, lam in zip(made.timesteps, lams, strict=False):
            before, x = x, made.step(model(x, max(float(lam), DDPM.lam_min)), t, x).prev_sample
        assert rms(x - before) < 1e-6


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_ddim_misses_its_own_labels_there(spacing):
    """It steps to t − T//N. With N = 30 that is not the next label, at which the model is called: a point mass, which DDIM moves
    exactly, comes out elsewhere. (On a mixture the error may be larger or, by luck, smaller.)"""
    made = make("DDIM", 30, **TABLE, timestep_spacing=spacing, set_alpha_to_one=False)
    labels = made.timesteps.tolist()
    assert any(t - 1000 // 30 != after for t, after in pairwise(labels))
    lams = DDPM.lam(np.array([*labels, 0][: len(labels) + (labels[-1] > 0)], float))
    point = EpsModel(lambda x, lam: torch.full_like(x, 0.5), DDPM, "data", clock="lam")
    x = prior(lams[0])
    truth = accurate(point, x, lams[0], lams[-1])
    theirs = drive(made, point, x, DDPM.lam(np.array(labels, float)), lams[-1])
    assert rms(theirs - truth) > 1e-4
    assert rms(ours("ddim", point, x, lams) - truth) < 1e-10


def test_labels_collide_there():
    """20 Karras steps on the cosine table fall on 12 labels: the network is called eight times at a label it was called at just
    before, while σ has moved. Here labels follow λ, or a grid that cannot be snapped is refused."""
    made = make("DPMSolverMultistep", 20, beta_schedule="squaredcos_cap_v2", use_karras_sigmas=True)
    assert len(made.timesteps) == 20
    assert len(made.timesteps.unique()) == 12
    table = schedules.ddpm_table(made.betas.double().numpy())
    lams = np.clip(-np.log(made.sigmas[:-1].double().numpy()), table.lam_min, table.lam_max)  # float32, at the ends
    assert len(np.unique(table.t(lams))) == 20
    with pytest.raises(InputError, match="20 grid values fall on 12 labels"):
        grid.snap(lams, table)


UNIPC_AT_ZERO = [{"solver_type": "bh1"}, {"lower_order_final": False}, {"predict_x0": False}]


@pytest.mark.parametrize("config", UNIPC_AT_ZERO, ids=str)
def test_unipc_is_not_finite_at_zero_there(config, model):
    """Its default ends at σ = 0, where its B(h) is infinite or its weights are: NaN or infinity, with nothing said."""
    made = make("UniPCMultistep", 10, **TABLE, **config)
    lams = np.append(DDPM.lam(TENTHS[:-1]), np.inf)
    x = prior(lams[0])
    assert made.sigmas[-1] == 0
    assert not torch.isfinite(drive(made, model, x, lams[:-1], lams[-1])).all()
    options = {"variant": config.get("solver_type", "bh2"), "prediction": "noise" if "predict_x0" in config else "data"}
    assert torch.isfinite(ours("unipc2", model, x, lams, **options)).all()
