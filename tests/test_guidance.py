"""Guidance on Gaussians and their mixture, where the guided ODE is known: against SciPy's integration of the closed form."""

import pickle
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from diffode import SOLVERS, EpsModel, InputError, encode, log_likelihood, sample, schedules, shared
from diffode.evaluation import Counter
from diffode.guidance import Guidance, Rule, apg, calls_of, cfgpp, interval, rescaled
from diffode.models.turns import prepared
from diffode.ode import accurate
from solvers import run

SCHEDULE = schedules.vp_linear()
LAMS = -2.5, 2.0
MEANS = np.array([[1.0, -0.5, 2.0], [-1.5, 0.3, 0.8]])  # of label 0 and of label 1
SPREADS = np.array([0.4, 0.7])
BAD = np.array([0.2, 0.1, -0.3]), 0.9  # of a bad model, whatever the label
Y = torch.tensor([0, 1, 1, 0])
X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def epsilon(x, lam, mean, spread):
    """ε of N(mean, spread²) on the vp path, by NumPy or torch."""
    alpha, sigma = (1 / np.sqrt(1 + np.exp(sign * 2 * lam)) for sign in (-1, 1))
    return sigma * (x - alpha * mean) / (alpha**2 * spread**2 + sigma**2)


def log_density(x, lam, mean, spread):
    """log p_λ(x) of N(mean, spread²), but for a constant of λ, (batch,), in torch."""
    alpha2 = torch.sigmoid(2 * lam)
    variance = alpha2 * torch.as_tensor(spread) ** 2 + 1 - alpha2
    away = (x - alpha2.sqrt()[:, None] * torch.as_tensor(mean)).square().sum(1)
    return -away / (2 * variance) - x.shape[1] / 2 * variance.log()


def log_mixture(x, lam):
    """log p_λ(x) without a label, that of both with equal weights."""
    return torch.logsumexp(torch.stack([log_density(x, lam, *one) for one in zip(MEANS, SPREADS, strict=True)]), 0)


def torch_epsilon(x, lam, mean, spread):
    alpha2 = torch.sigmoid(2 * lam)[:, None]
    spread = torch.as_tensor(spread, dtype=x.dtype).reshape(-1, 1)
    return (1 - alpha2).sqrt() * (x - alpha2.sqrt() * torch.as_tensor(mean)) / (alpha2 * spread**2 + 1 - alpha2)


def network(x, lam, y=None):
    """The exact ε: with labels that of their Gaussian, without that of the mixture, Σ r_k ε_k."""
    if y is not None:
        return torch_epsilon(x, lam, MEANS[y], SPREADS[y])
    pairs = [*zip(MEANS, SPREADS, strict=True)]
    r = torch.softmax(torch.stack([log_density(x, lam, *one) for one in pairs]), 0)
    return sum(r_k[:, None] * torch_epsilon(x, lam, *one) for r_k, one in zip(r, pairs, strict=True))


def bad(x, lam, y=None):
    return torch_epsilon(x, lam, *BAD)


def bad_data(x, t):
    """Its x̂0, by its own clock."""
    alpha, sigma = (torch.as_tensor(f(SCHEDULE.lam(t.numpy())))[:, None] for f in (SCHEDULE.alpha, SCHEDULE.sigma))
    return (x - sigma * bad(x, torch.as_tensor(SCHEDULE.lam(t.numpy())))) / alpha


def model(network=network, y=Y, **how):
    plain = EpsModel(network, SCHEDULE, clock="lam", classes=how.pop("classes", 2), **how)
    return plain if y is None else plain.labelled(y)


def of_label(y):
    return lambda x, lam: epsilon(x, lam, MEANS[y], SPREADS[y, None])


def towards(weight, to, away):
    """The guided ε of these two; weight is a function of λ."""
    return lambda x, lam: away(x, lam) + np.reshape(weight(lam), (-1, 1)) * (to(x, lam) - away(x, lam))


def without(x, lam):
    """That of the mixture, in NumPy: the means weighted by their densities."""
    alpha2 = 1 / (1 + np.exp(-2 * lam))
    variances = alpha2 * SPREADS**2 + 1 - alpha2
    away = np.stack([x - np.sqrt(alpha2) * mean for mean in MEANS])
    log = -(away**2).sum(-1) / (2 * variances[:, None]) - 1.5 * np.log(variances[:, None])
    density = np.exp(log - log.max(0))
    return np.sqrt(1 - alpha2) * np.einsum("kb,kbi->bi", density / density.sum(0) / variances[:, None], away)


def smooth(lam):
    return 1.5 + np.tanh(lam)


def rescaled_by(phi, guided, conditional):
    def combined(x, lam):
        m, c = guided(x, lam), conditional(x, lam)
        return m * (1 - phi + phi * c.std(1, keepdims=True) / m.std(1, keepdims=True))

    return combined


EACH = np.array([0.5, 1.0, 2.0, 4.0])
OF_EACH, OTHERS = of_label(Y.numpy()), of_label(1 - Y.numpy())


def between(lam):
    return 3.0 if -1.25 <= lam < 0.5 else 1.0


def gradient_of_ratio(x, lam):
    return log_density(x, lam, MEANS[Y], SPREADS[Y]) - log_mixture(x, lam)


# A guided model, and its ε in closed form.
KINDS = {
    "a number": (model().guided(2.5), towards(lambda lam: 2.5, OF_EACH, without)),
    "weight 0": (model().guided(0.0), without),
    "negative": (model().guided(-1.0), towards(lambda lam: -1.0, OF_EACH, without)),
    "per sample": (model().guided(EACH), towards(lambda lam: EACH, OF_EACH, without)),
    "a function": (model().guided(smooth), towards(smooth, OF_EACH, without)),
    "a function per sample": (
        model().guided(lambda lam: torch.as_tensor(EACH) * (1 + np.tanh(lam)) / 2),
        towards(lambda lam: EACH * (1 + np.tanh(lam)) / 2, OF_EACH, without),
    ),
    "interval": (model().guided(interval(3.0, -1.25, 0.5)), towards(between, OF_EACH, without)),
    "negative prompt": (model().guided(2.0, y=1 - Y), towards(lambda lam: 2.0, OF_EACH, OTHERS)),
    "autoguidance": (model().guided(2.0, network=bad), towards(lambda lam: 2.0, OF_EACH, lambda x, lam: epsilon(x, lam, *BAD))),
    "autoguidance by a model": (
        model().guided(2.0, network=EpsModel(lambda x, t, y=None: bad_data(x, t), SCHEDULE, "data")),
        towards(lambda lam: 2.0, OF_EACH, lambda x, lam: epsilon(x, lam, *BAD)),
    ),
    "composed": (
        model().composed([(1.5, {"y": Y.tolist()}), (-0.8, {"y": 1 - Y})]),
        lambda x, lam: 1.5 * OF_EACH(x, lam) - 0.8 * OTHERS(x, lam) + 0.3 * without(x, lam),
    ),
    "steered": (model(y=None).steered(gradient_of_ratio, 2.5), towards(lambda lam: 2.5, OF_EACH, without)),
    "steered by a function": (model(y=None).steered(gradient_of_ratio, smooth), towards(smooth, OF_EACH, without)),
    "steered and guided": (model().guided(1.5).steered(gradient_of_ratio), towards(lambda lam: 2.5, OF_EACH, without)),
    "rescaled": (
        model().guided(2.5, rules=[rescaled(0.7)]),
        rescaled_by(0.7, towards(lambda lam: 2.5, OF_EACH, without), OF_EACH),
    ),
    "a rule in x̂0": (
        model().guided(2.5, rules=[Rule(lambda: lambda conditional, away, guided, weight: (guided + conditional) / 2, "data")]),
        towards(lambda lam: 1.75, OF_EACH, without),
    ),
    "two rules": (
        model().guided(1.5, rules=[Rule(lambda: lambda c, null, m, w: 2 * m - c, "data"), rescaled(0.3)]),
        rescaled_by(0.3, towards(lambda lam: 2.0, OF_EACH, without), OF_EACH),
    ),
}


def integrated(eps, x, *lams):
    """The guided trajectory from x at the first λ, in y = x/α, by SciPy, from each λ to the next."""

    def alpha(lam):
        return 1 / np.sqrt(1 + np.exp(-2 * lam))

    y = (x.numpy() / alpha(lams[0])).ravel()

    def slope(lam, y, before):  # before: the end of the step, where a weight may jump
        lam = min(lam, before)
        return -np.exp(-lam) * eps(y.reshape(x.shape) * alpha(lam), lam).ravel()

    for lam_s, lam_t in pairwise(lams):
        before = (np.nextafter(lam_t, lam_s),)
        y = solve_ivp(slope, (lam_s, lam_t), y, method="DOP853", rtol=1e-7, atol=1e-7, args=before).y[:, -1]
    return y.reshape(x.shape) * alpha(lams[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_samples_follow_the_guided_ode(kind):
    """dpm3, with a step where a weight jumps, against DOP853 on the closed form; its error is about 1e-4."""
    guided, closed = KINDS[kind]
    jumps = [-1.25, 0.5]
    grid = np.unique([*np.linspace(*LAMS, 46), *jumps])
    found = sample(guided, x=X, solver="dpm3", grid=grid).x
    np.testing.assert_allclose(found, integrated(closed, X, LAMS[0], *jumps, LAMS[1]), atol=3e-4, rtol=0)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "interval"])
@pytest.mark.parametrize("predicts", ["data", "velocity", "edm"])
def test_guidance_is_the_same_in_every_prediction(kind, predicts):
    """But for rescaling, which acts on what the network predicts."""
    if "resc" in kind or "rules" in kind:
        pytest.skip("rescaling is of the network's own prediction")
    guided, closed = KINDS[kind]

    def speaking(network):
        def other(x, lam, y=None):
            exact = EpsModel(network, SCHEDULE, clock="lam")
            if predicts == "edm":  # which is called with c_in x
                x = x * np.hypot(SCHEDULE.sigma(float(lam[0])), 0.5 * SCHEDULE.alpha(float(lam[0])))
            return (exact if y is None else exact.conditioned(y=y))(x, float(lam[0]), predicts)

        return other

    other = guided.guidance and guided.guidance.other
    replaced = guided.replace(network=speaking(network), predicts=predicts)
    if other:
        replaced = model(speaking(network), predicts=predicts).guided(2.0, network=speaking(bad))
    for lam in (-2.0, 0.3):
        np.testing.assert_allclose(replaced(X, lam).detach(), closed(X.numpy(), lam), atol=1e-10, rtol=0)


def test_one_number_is_what_it_was_to_the_bit():
    x = X.float()
    m, null = (model(y=y)(x, 0.3) for y in (Y, None))
    assert torch.equal(model().guided(2.5)(x, 0.3), torch.mul(m, 2.5).add_(null, alpha=1 - 2.5))


def one_network(kind):
    """The guided ε as a network of its own, called for some of the four samples."""
    closed = KINDS[kind][1]

    def network(x, lam, row):
        found, state = torch.empty_like(x), torch.zeros_like(X)
        state[row] = x.double()
        at = {one: closed(state.numpy(), one) for one in set(lam.tolist())}
        for i, one in enumerate(lam.tolist()):
            found[i] = torch.as_tensor(at[one][row[i]])
        return found

    return EpsModel(network, SCHEDULE, clock="lam").conditioned(row=torch.arange(4))


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_takes_it_as_one_network(solver):
    kind = "a function per sample"
    how = {"rtol": 0.1, "atol": 0.1} if SOLVERS[solver].chooses_steps else {"steps": 5}
    if solver == "implicit_adams":  # which iterates, and takes short steps only
        how = {"grid": np.linspace(0.3, 0.45, 6)}
    one, other = (sample(each, x=X, solver=solver, seed=3, **how) for each in (KINDS[kind][0], one_network(kind)))
    assert one.nfe == other.nfe
    torch.testing.assert_close(one.x, other.x, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize(("solver", "how"), [("dpmpp2m", {"nfe": 6}), ("dpm12", {"rtol": 0.5, "atol": 0.5})])
@pytest.mark.parametrize("kind", ["per sample", "a function per sample", "interval", "composed", "steered"])
def test_each_sample_is_guided_as_it_is_alone(kind, solver, how):
    guided = KINDS[kind][0]
    if kind == "steered":
        guided = model(y=None).steered(lambda x, lam, y: gradient_at(x, lam, y), EACH, y=Y)
    together = sample(guided, x=X, solver=solver, **how)
    for i in range(4):
        alone = sample(guided.taking([i]), x=X[i : i + 1], solver=solver, **how)
        torch.testing.assert_close(together.x[i], alone.x[0], atol=1e-12, rtol=1e-12)


def gradient_at(x, lam, y):
    return log_density(x, lam, torch.as_tensor(MEANS[y]), torch.as_tensor(SPREADS[y])) - log_mixture(x, lam)


# CFG++ and rules, as published


@pytest.mark.parametrize("grid", [np.linspace(-2.5, 2.0, 6), [-3.0, -1.0, 0.5, 0.7, 3.0, np.inf]])
def test_cfgpp_is_ddim_with_a_weight(grid):
    """Chung et al. (2024), Alg. 2: x̂0 of the guided ε, and σ_t times the unconditional one."""
    omega, x, eps = 0.6, X.numpy(), towards(lambda lam: 0.6, OF_EACH, without)
    for lam_s, lam_t in pairwise(grid):
        (alpha_s, sigma_s), (alpha_t, sigma_t) = SCHEDULE.path.at(lam_s), SCHEDULE.path.at(lam_t)
        x0 = (x - sigma_s * eps(x, lam_s)) / alpha_s
        x = alpha_t * x0 + sigma_t * without(x, lam_s)
    found = sample(model().guided(cfgpp(omega, grid)), x=X, solver="ddim", grid=grid).x
    np.testing.assert_allclose(found, x, atol=4e-9, rtol=0)


def apg_as_published(conditional, null, weight, eta, norm, momentum, average):
    """Sadat et al. (2025), Alg. 1: the update and the average."""
    d = conditional - null + momentum * average
    average = d
    d = d * np.minimum(1, norm / np.linalg.norm(d, axis=1, keepdims=True))
    unit = conditional / np.linalg.norm(conditional, axis=1, keepdims=True)
    along = (d * unit).sum(1, keepdims=True) * unit
    return conditional + (weight - 1) * (d - along + eta * along), average


@pytest.mark.parametrize("weight", [3.0, EACH])
@pytest.mark.parametrize(("eta", "norm", "momentum"), [(0.0, np.inf, 0.0), (0.3, 0.4, 0.0), (0.1, 0.5, -0.5)])
def test_apg_is_as_published(weight, eta, norm, momentum):
    """Along a run of ddim; twice, since a run leaves nothing behind."""
    grid, x, average = np.linspace(*LAMS, 7), X.numpy(), 0.0
    for lam_s, lam_t in pairwise(grid):
        (alpha_s, sigma_s), (alpha_t, sigma_t) = SCHEDULE.path.at(lam_s), SCHEDULE.path.at(lam_t)
        c, null = ((x - sigma_s * eps(x, lam_s)) / alpha_s for eps in (OF_EACH, without))
        x0, average = apg_as_published(c, null, np.reshape(weight, (-1, 1)), eta, norm, momentum, average)
        x = alpha_t * x0 + sigma_t / sigma_s * (x - alpha_s * x0)
    guided = model().guided(weight, rules=[apg(eta, norm, momentum)])
    for _ in range(2):
        np.testing.assert_allclose(sample(guided, x=X, solver="ddim", grid=grid).x, x, atol=1e-10, rtol=0)


def mirrored(conditional, away, guided, weight):
    """A rule of one's own."""
    return 2 * conditional - guided + 0.1 * away


def each_its_own(lam):
    """Weights that are 0 and 1 for some samples at some λ, and others for others."""
    return [0.0, 1.0 if lam < -1 else 3.0, 2.0 if lam < 0 else 1.0, 3.0]


@pytest.mark.parametrize(
    ("rule", "solver", "how"),
    [
        (mirrored, "ddim", {"nfe": 5}),
        (rescaled(0.7), "dpm12", {"rtol": 1.0, "atol": 1.0}),
        (apg(0.2, 0.5), "ddim", {"nfe": 5}),
        (apg(0.2, 0.5, -0.5), "ddim", {"nfe": 5}),
    ],
    ids=["own", "rescaled", "apg", "momentum"],
)
def test_rules_leave_samples_of_weight_0_and_1_alone(rule, solver, how):
    guided = model().guided(each_its_own, rules=[rule])
    together = sample(guided, x=X, solver=solver, **how).x
    for i in range(4):
        alone = sample(guided.taking([i]), x=X[i : i + 1], solver=solver, **how).x
        torch.testing.assert_close(together[i], alone[0], atol=1e-12, rtol=1e-12)
    unconditional = sample(model(y=None), x=X[:1], solver=solver, **how).x
    torch.testing.assert_close(together[:1], unconditional, atol=1e-12, rtol=1e-12)


def test_momentum_begins_anew_in_each_run_of_one_bound_model():
    evaluate = model().guided(2.0, rules=[apg(momentum=-0.5)]).bind([-1.0, 0.0], X)
    first, second = ([evaluate(X, i).clone() for i in range(2)] for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_momentum_is_of_the_difference_and_not_of_what_rounding_leaves_of_it():
    """Which is all that there is near weight 1."""
    weights = {-1.0: 1 + 1e-7, 0.0: 3.0}
    found = [model().guided(weights.get, rules=[apg(norm=0.5, momentum=0.9)]).bind([-1.0, 0.0], x) for x in (X, X.float())]
    exact, single = ([evaluate(x, i).clone() for i in range(2)][1] for evaluate, x in zip(found, (X, X.float()), strict=True))
    torch.testing.assert_close(single.double(), exact, atol=1e-5, rtol=0)


@pytest.mark.slow  # it imports half of diffusers
def test_rules_are_those_of_diffusers():
    apg_of = pytest.importorskip("diffusers.guiders.adaptive_projected_guidance").normalized_guidance
    rescale_of = pytest.importorskip("diffusers.guiders.guider_utils").rescale_noise_cfg
    images = torch.randn(2, 4, 3, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    c, null = images
    guided = null + 3.0 * (c - null)
    torch.testing.assert_close(rescaled(0.7).begin()(c, null, guided, 3.0), rescale_of(guided, c, 0.7))
    expected = apg_of(c, null, 2.0, None, 0.2, 1.5, use_original_formulation=True)  # whose scale is w − 1
    torch.testing.assert_close(apg(0.2, 1.5).begin()(c, null, guided, 3.0), expected)


def test_cfgpp_on_a_grid_from_pure_noise():
    """Whose first step, from λ = −∞, has the weight ω; and λ that rounding moved are of their steps."""
    weight = cfgpp(0.6, [-np.inf, 0.0, 0.5, 1.25])
    lams, steps = [-np.inf, -1.0, 0.0 - 1e-12, 0.5, np.inf], [1.0, 1.0, *(1 - np.exp([-0.5, -0.75, -0.75]))]
    assert [weight(lam) for lam in lams] == pytest.approx([0.6 / step for step in steps])


def test_weights_are_copied():
    mine = EACH.copy()
    guided = model().guided(mine)
    before, mine[:] = guided(X, 0.3), 0.0
    assert torch.equal(guided(X, 0.3), before)


@pytest.mark.parametrize(
    "how",
    [
        {"weight": interval(EACH, -1.25, 0.5)},
        {"weight": cfgpp(0.6, LAMS)},
        {"weight": 2.0, "rules": [rescaled(0.7), apg(0.2, 0.5, -0.5), mirrored]},
    ],
    ids=["interval", "cfgpp", "rules"],
)
def test_guided_models_are_pickled(how):
    guided = model().guided(**how).taking([2, 1])
    assert torch.equal(pickle.loads(pickle.dumps(guided)).bind([0.3], X[:2])(X[:2]), guided.bind([0.3], X[:2])(X[:2]))


# Calls


def counting(seen):
    def counted(x, lam, y=None, **more):
        seen.append((len(x), more))
        return network(x, lam, y)

    return counted


@pytest.mark.parametrize("solver", ["ddim", "dpmpp2m", "dpm3", "unipc3"])
def test_no_unconditional_call_outside_the_interval(solver):
    seen = []
    result = sample(model(counting(seen)).guided(interval(3.0, -1.25, 0.5)), x=X, solver=solver, nfe=12)
    inside = sum(-1.25 <= stage.lam < 0.5 for stage in result.plan.stages if stage.evaluate)
    assert 0 < inside < 12
    assert (result.nfe, result.calls, len(seen)) == (12, 12 + inside, 12 + inside)


@pytest.mark.parametrize(
    ("solver", "how"), [("dpm23", {"rtol": 0.2, "atol": 0.2}), ("bosh3", {"per_sample": True, "rtol": 0.5, "atol": 0.5})]
)
@pytest.mark.parametrize("weight", [interval(3.0, -1.25, 0.5), EACH, 2.0])
def test_calls_of_each_sample_are_those_that_it_takes_alone(solver, how, weight):
    seen = []
    guided = model(counting(seen)).guided(weight)
    result = sample(guided, x=X, solver=solver, **how)
    assert result.calls == len(seen)
    each = result.counters or [Counter(*pair) for pair in zip(result.adaptive.nfe, result.adaptive.calls, strict=True)]
    for i, counted in enumerate(each):
        alone = sample(guided.taking([i]), x=X[i : i + 1], solver=solver, **how)
        assert counted == Counter(alone.nfe, alone.calls)


@pytest.mark.parametrize(
    ("make", "calls"),
    [
        (lambda m: m, 1),
        (lambda m: m.guided(1.0), 1),
        (lambda m: m.guided(lambda lam: 1.0), 1),
        (lambda m: m.guided(0.0), 1),
        (lambda m: m.guided([1.0, 1.0, 1.0, 0.5]), 2),
        (lambda m: m.guided(2.0, network=bad), 2),
        (lambda m: m.guided(2.0, y=1 - Y, batched=True), 1),
        (lambda m: m.composed([(2.0, {"y": Y}), (3.0, {"y": 1 - Y})]), 3),
        (lambda m: m.composed([(0.1, {"y": Y}), (0.2, {"y": Y}), (0.7, {"y": 1 - Y})]), 3),  # no branch away: they sum to 1
        (lambda m: m.steered(gradient_of_ratio), 1),
    ],
)
def test_calls_are_what_was_called(make, calls):
    seen, counter = [], Counter()
    guided = make(model(counting(seen)))
    guided(X, 0.3, counter=counter)
    assert counter == Counter(1, calls)
    assert len(seen) == calls - (guided.guidance is not None and guided.guidance.other is not None)
    assert calls_of(guided.guidance, [0.3], 4).max() == calls


def test_labels_of_branches_may_be_anything_that_the_network_takes():
    given = []
    texts = EpsModel(lambda x, lam, y: given.append(y) or x, SCHEDULE, clock="lam")
    texts.composed([(2.0, {"y": ["a coat"] * 4})], y=[""] * 4)(X, 0.3)
    assert given == [["a coat"] * 4, [""] * 4]


def test_labels_that_are_never_left_out_may_be_needed():
    """Where weights sum to 1 the branch away is not called."""
    both = model(needs_y).composed([(0.5, {"y": Y}), (0.5, {"y": 1 - Y})])
    closed = (OF_EACH(X.numpy(), 0.3) + OTHERS(X.numpy(), 0.3)) / 2
    np.testing.assert_allclose(both(X, 0.3), closed, atol=1e-12)
    assert torch.equal(model(needs_y).guided(lambda lam: 1.0)(X, 0.3), model(needs_y)(X, 0.3))


def test_lists_of_labels_go_into_one_call_with_tensors():
    made = [model().guided(2.0, y=y, batched=True)(X, 0.3) for y in (1 - Y, (1 - Y).tolist(), [*(1 - Y).numpy()])]
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


def test_the_module_of_a_method_is_moved_and_evaluated():
    class Classifier(torch.nn.Linear):
        def log_prob(self, x, t):
            assert not self.training
            return self(x)[:, 0]

    classifier = Classifier(3, 1)
    guided = model(y=None).steered(classifier.log_prob).to("cpu", torch.float32)
    assert guided.modules == [classifier]
    with_sigma = float(SCHEDULE.sigma(0.3)) * classifier.weight.double()
    classifier.eval()
    torch.testing.assert_close(guided(X, 0.3), model(y=None)(X, 0.3) - with_sigma, atol=1e-7, rtol=0)  # a gradient in float32
    (copy,) = prepared(guided, torch.float64).modules
    assert (copy.weight.dtype, classifier.weight.dtype) == (torch.float64, torch.float32)
    classifier.train()
    sample(guided, x=X, nfe=1)
    assert classifier.training


def test_the_other_network_is_moved_and_evaluated_as_the_first():
    class Other(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(0.5))

        def forward(self, x, lam, y=None):
            assert not self.training
            return self.scale * x

    other = Other()
    guided = model().guided(2.0, network=other).to("cpu", torch.float64)
    assert other.scale.dtype == torch.float64
    assert not sample(guided, x=X, nfe=2).x.isnan().any()
    assert other.training


# All calls as one


TREE = {"added": {"ids": shared(torch.arange(7)), "rows": [Y.double(), None]}, "names": ["a", "b", "c", "d"], "scale": 2.0}


@pytest.mark.parametrize(
    "make",
    [
        lambda m, batched: m.guided(2.0, y=1 - Y, batched=batched),
        lambda m, batched: m.guided(smooth, y=1 - Y, batched=batched),
        lambda m, batched: m.guided(interval(EACH, -1.25, 0.5), y=1 - Y, batched=batched, names=["e", "f", "g", "h"]),
        lambda m, batched: m.composed([(2.0, {}), (-0.5, {"y": 1 - Y})], y=torch.zeros_like(Y), batched=batched),
    ],
    ids=["a number", "a function", "interval", "composed"],
)
@pytest.mark.parametrize("solver", ["dpmpp2m", "dpm12"])
def test_batched_calls_are_those_apart(make, solver):
    seen, results = [], []
    for batched in (False, True):
        seen.clear()
        guided = make(model(counting(seen)).conditioned(**TREE), batched)
        results.append(sample(guided, x=X, solver=solver, **({"nfe": 8} if solver == "dpmpp2m" else {"rtol": 0.1, "atol": 0.1})))
    torch.testing.assert_close(results[0].x, results[1].x, atol=1e-12, rtol=1e-12)
    assert results[1].calls == len(seen) < results[0].calls
    size, more = max(seen, key=lambda call: call[0])
    assert size > 4
    assert torch.equal(more["added"]["ids"], torch.arange(7))  # once, and bare
    assert len(more["added"]["rows"][0]) == len(more["names"]) == size
    assert more["scale"] == 2.0


# Order, gradients, likelihood


@pytest.mark.parametrize(("solver", "order"), [("dpmpp2m", 2), ("dpm3", 3)])
def test_a_smooth_weight_keeps_the_order(solver, order):
    guided, closed = KINDS["a function"]
    exact = integrated(closed, X, *LAMS)
    errors = [abs(sample(guided, x=X, solver=solver, grid=np.linspace(*LAMS, n + 1)).x.numpy() - exact).max() for n in (24, 48)]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)


def test_gradients_flow_through_steering():
    """That of the last state in the scale of log p, against a difference."""
    plan = sample(model(), x=X, nfe=4, solver="dpmpp2m").plan

    def last(scale, x=X):
        return run(
            plan, model(y=None).steered(lambda x, lam: scale * gradient_of_ratio(x, lam), 1.5), x, differentiable=True
        ).x.sum()

    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    x = X.clone().requires_grad_()
    found, along = torch.autograd.grad(last(scale, x), (scale, x))
    h = 1e-5
    with torch.no_grad():
        assert float(found) == pytest.approx(float(last(1 + h) - last(1 - h)) / (2 * h), rel=1e-6)
        direction = torch.ones_like(X)
        difference = float(last(1.0, X + h * direction) - last(1.0, X - h * direction)) / (2 * h)
    assert float(along.sum()) == pytest.approx(difference, rel=1e-6)


def test_steering_works_in_inference_mode():
    guided = model(y=None).steered(gradient_of_ratio, 2.0)
    with torch.inference_mode():
        found = sample(guided, x=X, nfe=5).x
    assert torch.equal(found, sample(guided, x=X, nfe=5).x)
    assert not found.requires_grad


@pytest.mark.parametrize("kind", ["a function", "per sample", "steered", "composed", "rescaled"])
@pytest.mark.parametrize("probes", [0, 2])
def test_the_likelihood_of_a_guided_model(kind, probes):
    """That of the same ε as one network."""
    plain, exact = KINDS[kind][1], network

    def one_network(x, lam):  # in torch, for its trace
        lam = float(lam[0])
        spread = lambda y: torch.as_tensor(SPREADS[y])[:, None]  # noqa: E731
        c, null = epsilon(x, lam, torch.as_tensor(MEANS[Y]), spread(Y)), exact(x, x.new_full((len(x),), lam))
        if kind == "composed":
            return 1.5 * c - 0.8 * epsilon(x, lam, torch.as_tensor(MEANS[1 - Y]), spread(1 - Y)) + 0.3 * null
        weight = {"a function": smooth(lam), "per sample": torch.as_tensor(EACH)[:, None], "steered": 2.5, "rescaled": 2.5}[kind]
        m = null + weight * (c - null)
        return m if kind != "rescaled" else m * (0.3 + 0.7 * c.std(1, keepdim=True) / m.std(1, keepdim=True))

    one = EpsModel(one_network, SCHEDULE, clock="lam")
    np.testing.assert_allclose(one(X, 0.3), plain(X.numpy(), 0.3), atol=1e-12)
    how = {"encode": encode, "solver": "dpm3", "nfe": 9, "probes": probes}
    torch.testing.assert_close(log_likelihood(KINDS[kind][0], X, **how).log_p, log_likelihood(one, X, **how).log_p)


def test_a_guided_model_is_a_ground_truth_too():
    guided, closed = KINDS["a function"]
    np.testing.assert_allclose(accurate(guided, X, *LAMS, tolerance=1e-7), integrated(closed, X, *LAMS), atol=1e-5, rtol=0)


def test_the_page_is_what_works():
    """Every line of docs/guidance.md, on a network that takes labels."""
    page = (Path(__file__).parents[1] / "docs" / "guidance.md").read_text()
    first, last = re.findall(r"<!-- snippet: tests run this -->\n```python\n(.*?)```", page, re.S)
    lines = re.findall(r"^\|[^|]*\| `(.*)` \|", page, re.M)
    assert len(lines) == 12
    names = {"network": lambda x, t, y=None, **more: 0.1 * x, "y": Y, "others": 1 - Y, "bad": lambda x, t, y: 0.2 * x, "X": X}
    names |= {"lams": np.linspace(-2, 2, 4).tolist(), "log_p": lambda x, t, y: -x.square().sum(1)}
    exec(first, names)
    for line in lines:
        made = eval(line.replace("...", "x=X"), names)
        assert torch.isfinite((sample(made, x=X, nfe=2) if isinstance(made, EpsModel) else made).x).all()
    exec(last, names)


# What cannot be


EACH_ON_META = torch.ones(4, device="meta")


def mean_of(conditional, away, guided, weight):
    return guided.mean()


def needs_y(x, lam, y):
    return network(x, lam, y)


REFUSED = {
    "labels left out of one call": (lambda: model().guided(2.0, batched=True)(X, 0.3), "differ in y: say what takes its place"),
    "two networks as one call": (lambda: model().guided(2.0, network=bad, batched=True), "two networks take two calls"),
    "weights of another batch": (lambda: model().guided([1.0, 2.0])(X, 0.3), "are for a batch of 2, the state has 4"),
    "a function of text": (lambda: model().guided(lambda lam: "2")(X, 0.3), "that <lambda> returns at λ = 0.3 must be"),
    "an interval of text": (lambda: model().guided(interval(lambda lam: "2", 0, 1))(X, 0.3), "that <lambda> returns at λ = 0.3"),
    "an interval of too few": (lambda: sample(model().guided(interval([2.0], -9, 9)), x=X, nfe=1), "for a batch of 1"),
    "a function of nothing": (lambda: model().guided(lambda: 1.0)(X, 0.3), "the weight <lambda> fails at λ = 0.3: TypeError"),
    "a function that fails": (lambda: model().guided(lambda lam: 1 / 0)(X, 0.3), "fails at λ = 0.3: ZeroDivisionError"),
    "weights on meta": (lambda: model().guided(torch.ones(4, device="meta")), "numbers, one per sample, of moderate size"),
    "a weight on meta": (lambda: model().guided(torch.ones((), device="meta")), "must be a finite number"),
    "a function on meta": (
        lambda: model().guided(lambda lam: EACH_ON_META)(X, 0.3),
        "at λ = 0.3 must be numbers, one per sample",
    ),
    "a grid by name": (lambda: cfgpp(0.6, "logsnr"), "`lams` must be a list of at least 2 numbers"),
    "a function of NaN": (lambda: model().guided(lambda lam: np.nan)(X, 0.3), "must be a finite number"),
    "a function of functions": (lambda: model().guided(lambda lam: smooth)(X, 0.3), "must return numbers, not a function"),
    "an empty interval": (lambda: interval(2.0, 1.0, 1.0), "is empty"),
    "a grid that falls": (lambda: cfgpp(0.6, [1.0, 0.0]), "must be the increasing λ"),
    "weights of a smaller batch, by rows": (
        lambda: sample(model().guided([1.0, 2.0]), x=X, solver="bosh3", per_sample=True),
        "for a batch of 2, the state has 4",
    ),
    "labels that are not known": (lambda: model().composed([(2.0, {"y": [0, 1, 2, 0]})]), "label 2 is out of range"),
    "no branches": (lambda: model().composed([]), "a list of \\(weight, {condition}\\)"),
    "a label away that is not known": (lambda: model().guided(2.0, y=torch.tensor([9, 1, 0, 0])), "label 9 is out of range"),
    "a list away that is not known": (lambda: model().guided(2.0, y=[1, 9, 0, 0]), "label 9 is out of range"),
    "no branches of a Guidance": (lambda: Guidance(towards=()), "at least one \\(weight, {condition}\\)"),
    "rules of several": (lambda: Guidance(((2.0, {}), (1.0, {})), rules=(rescaled(),)), "leave them out of what is composed"),
    "guidance that is none": (lambda: model().replace(guidance=3), "`guidance` must be what `guided` makes"),
    "hooks that are none": (lambda: model().replace(hooks=3), "`hooks` must be a tuple of functions"),
    "watches that are none": (lambda: model().replace(watches=(3,)), "`watches` must be a tuple of functions"),
    "autocast to a text": (lambda: model().replace(autocast="x"), "`autocast` must be a dtype"),
    "branches without weights": (lambda: model().composed([{"y": Y}]), "a list of \\(weight, {condition}\\)"),
    "nothing to leave out": (lambda: model(y=None).guided(2.0)(X, 0.3), "needs labels"),
    "labels that cannot be left out": (lambda: model(needs_y).guided(2.0)(X, 0.3), "say which label means none"),
    "another path": (
        lambda: model().guided(2.0, network=EpsModel(bad, schedules.flow(), clock="lam")),
        "on the path flow does not go with one on vp",
    ),
    "a guided network": (lambda: model().guided(2.0, network=model().guided(2.0)), "is guided itself"),
    "a rule that is none": (lambda: model().guided(2.0, rules=[0.7]), "must be rescaled"),
    "a rule that is not made": (lambda: model().guided(2.0, rules=[rescaled]), "of \\(conditional, away, guided, weight\\), not"),
    "a rule of a number": (lambda: Rule(3), "`begin` must be a function"),
    "a rule of numbers": (lambda: model().guided(2.0, rules=[Rule(lambda: 3)])(X, 0.3), "what <lambda> begins with must be"),
    "a rule in what is not known": (lambda: Rule(lambda: mirrored, "nonesuch"), "nonesuch"),
    "a rule to one number": (
        lambda: model().guided(2.0, rules=[mean_of])(X, 0.3),
        "the rule mean_of must return the guided prediction, \\(4, 3\\), not \\(\\)",
    ),
    "a rule to None": (lambda: model().guided(2.0, rules=[lambda c, null, m, w: None])(X, 0.3), "the rule <lambda> .* not None"),
    "momentum in an adaptive solver": (
        lambda: sample(model().guided(2.0, rules=[apg(momentum=-0.5)]), x=X, solver="dpm12"),
        "depends on the evaluations before",
    ),
    "log p of all samples": (lambda: model().steered(lambda x, lam: x.sum())(X, 0.3), "one number per sample, \\(4,\\)"),
    "log p without gradients": (lambda: model().steered(lambda x, lam: x.detach().sum(1))(X, 0.3), "differentiable in x"),
    "log p of no x": (lambda: model().steered(lambda x, t: torch.zeros(4, requires_grad=True))(X, 0.3), "differentiable in x"),
    "log p of other arguments": (
        lambda: model().steered(lambda x: x.sum(1))(X, 0.3),
        "^log_p cannot be called as log_p\\(x, t\\)",
    ),
    "log p with an infinite gradient": (
        lambda: sample(model(y=None).steered(lambda x, t: (0 * x).sqrt().sum(1)), x=X, nfe=1),
        "the network's output or the gradient of log_p is not finite",
    ),
    "log p that is none": (lambda: model().steered("classifier"), "must be a function of"),
    "steering of x̂0 from λ = −∞": (
        lambda: EpsModel(network, schedules.flow(0.0, 1.0), "data").steered(lambda x, t: x.sum(1))(X, -np.inf),
        "begin at a finite λ",
    ),
    "a shared list": (lambda: shared([1, 2]), "a tensor, or an array"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_guided_is_refused(case):
    call, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        call()
