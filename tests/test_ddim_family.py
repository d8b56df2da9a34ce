"""The family q_σ: its equations against the paper's, Bayes' rule, Lemma 1 on its plans, Theorem 1's weights."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from diffode import EpsModel, InputError, grid, schedules
from diffode.ddim_family import Family, largest, noise_hat, noise_of_eta
from diffode.noise import SeededNoise
from solvers import Plan, sample
from solvers.ddim import ddim_family
from solvers.registry import find

SCHEDULE = schedules.ddpm_linear()
TAU = grid.make("tau-quadratic", SCHEDULE, 10, denoise=True)
ALPHA = np.append(SCHEDULE.alpha(TAU[:-1]) ** 2, 1.0)  # the paper's α, from α_T to α_0 = 1
PATHS = {"vp": schedules.ddpm_linear(), "ve": schedules.edm(), "flow": schedules.flow()}
everywhere = pytest.mark.parametrize("schedule", PATHS.values(), ids=PATHS)
seeds = pytest.mark.parametrize("seed", range(3))


def drawn(lams, schedule, seed, least=0.05):
    """Random σ, from a share `least` of the largest possible to all of it; of the last, that nothing bounds, of the state's."""
    share = np.random.default_rng(seed).uniform(least, 1, len(lams) - 1)
    return share * np.minimum(largest(lams, schedule), schedule.sigma(lams[:-1]))


def affine(plan, alpha, sigma):
    """The committed states of a plan as affine maps of (x0, z_0, z_1, ...) when the model knows x0: ε(x) = (x − α x0)/σ."""
    draws = 2 + max([stage.draw or 0 for stage in plan.stages])
    anchor, eps, states = np.zeros(draws), [], []
    for i, stage in enumerate(plan.stages):
        u = stage.x * anchor + sum((c * eps[j] for j, c in stage.c.items()), np.zeros(draws))
        u[1 + (stage.draw or 0)] += stage.noise
        anchor = u if i else np.array([alpha[0], sigma[0], *[0.0] * (draws - 2)])
        states.append(anchor)
        if stage.evaluate:
            eps.append((anchor - alpha[i] * np.eye(draws)[0]) / sigma[i])
    return np.stack(states)


# Equations 7 and 8


@seeds
def test_the_reverse_transition_is_equation_7(seed):
    sigma = drawn(TAU, SCHEDULE, seed)
    made = Family(TAU, SCHEDULE, sigma).reverse()
    for i, (a_t, a_next) in enumerate(pairwise(ALPHA)):  # the paper's t and t − 1
        kept = np.sqrt(max(1 - a_next - sigma[i] ** 2, 0)) if a_next < 1 else 0.0
        x, x0 = kept / np.sqrt(1 - a_t), np.sqrt(a_next) - kept * np.sqrt(a_t) / np.sqrt(1 - a_t)
        np.testing.assert_allclose([made.x[i], made.x0[i], made.std[i]], [x, x0, sigma[i]], rtol=0, atol=1e-12)


@everywhere
@seeds
def test_the_forward_transition_is_bayes_rule_on_the_joint_gaussian(schedule, seed):
    """The joint of all states given x0 is made of Eq. 7 alone, with dense matrices; conditioning it gives Eq. 8."""
    lams = np.linspace(-1.5, 2.0, 6)
    q = Family(lams, schedule, drawn(lams, schedule, seed))
    step, n = q.reverse(), len(lams)
    noise, mean = np.zeros((n, n)), np.zeros(n)  # states = mean x0 + noise z
    noise[0, 0], mean[0] = schedule.sigma(lams[0]), schedule.alpha(lams[0])
    for i in range(n - 1):
        noise[i + 1], mean[i + 1] = step.x[i] * noise[i], step.x[i] * mean[i] + step.x0[i]
        noise[i + 1, i + 1] = step.std[i]
    joint, forward = noise @ noise.T, q.forward()
    for i in range(n - 1):
        others = np.arange(i + 1, n)
        weights = np.linalg.solve(joint[np.ix_(others, others)], joint[others, i])  # x_s given all that is cleaner, and x0
        np.testing.assert_allclose(weights[1:], 0, atol=1e-7)  # only the next matters
        slope = joint[i, i + 1] / joint[i + 1, i + 1]
        expected = slope, mean[i] - slope * mean[i + 1], np.sqrt(max(joint[i, i] - slope * joint[i, i + 1], 0))
        np.testing.assert_allclose([forward.x[i], forward.x0[i], forward.std[i]], expected, rtol=1e-9, atol=1e-12)


@everywhere
def test_the_forward_process_is_a_markov_chain_for_eta_1_alone(schedule):
    """Eq. 8 leaves x0 out, and is Eq. 3's N(sqrt(α_t/α_{t−1}) x, (1 − α_t/α_{t−1}) I), where and only where η = 1."""
    lams = np.linspace(-1.5, 2.0, 6)
    chain = Family(lams, schedule, noise_of_eta(lams, schedule, 1.0)).forward()
    np.testing.assert_allclose(chain.x0, 0, atol=1e-14)
    np.testing.assert_allclose(chain.x, schedule.alpha(lams[:-1]) / schedule.alpha(lams[1:]), rtol=1e-13)
    np.testing.assert_allclose(chain.std, noise_hat(lams, schedule), rtol=1e-13)  # β of τ
    for eta in (0.0, 0.5, 0.99):
        assert (abs(Family(lams, schedule, noise_of_eta(lams, schedule, eta)).forward().x0) > 1e-3).all()


def test_sigmas_are_those_of_the_paper():
    """Eq. 16, σ² = β̃ = (1 − α_{t−1})/(1 − α_t) β and σ̂² = β, with β = 1 − α_t/α_{t−1} of the sub-sequence."""
    beta = 1 - ALPHA[:-1] / ALPHA[1:]
    tilde = (1 - ALPHA[1:]) / (1 - ALPHA[:-1]) * beta
    np.testing.assert_allclose(noise_of_eta(TAU, SCHEDULE, 0.3), 0.3 * np.sqrt(tilde), rtol=1e-10)
    np.testing.assert_allclose(noise_of_eta(TAU, SCHEDULE, 1.0), np.sqrt(tilde), rtol=1e-10)
    np.testing.assert_allclose(noise_hat(TAU, SCHEDULE), np.sqrt(beta), rtol=1e-10)
    np.testing.assert_allclose(largest(TAU, SCHEDULE)[:-1], np.sqrt(1 - ALPHA[1:-1]), rtol=1e-10)


def test_with_the_largest_sigma_a_state_forgets_the_one_before():
    step = Family(TAU[:-1], SCHEDULE, largest(TAU[:-1], SCHEDULE)).reverse()
    np.testing.assert_array_equal(step.x, 0)
    np.testing.assert_allclose(step.x0, SCHEDULE.alpha(TAU[1:-1]), rtol=1e-15)


# Lemma 1


@everywhere
@seeds
def test_lemma_1_marginals_do_not_depend_on_sigma(schedule, seed):
    """With x0 known, every state of every plan of the family is N(α x0, σ² I); what σ decides is the joint."""
    lams = np.linspace(-1.5, 2.0, 8)
    plans = [ddim_family(lams, schedule, noise) for noise in (np.zeros(7), drawn(lams, schedule, seed, least=0.3) * 0.99)]
    alpha, sigma = schedule.alpha(lams), schedule.sigma(lams)
    states = [affine(plan, alpha, sigma) for plan in plans]
    for x in states:
        np.testing.assert_allclose(x[:, 0], alpha, rtol=0, atol=1e-12)
        np.testing.assert_allclose((x[:, 1:] ** 2).sum(1), sigma**2, rtol=1e-11)
    still, noisy = (x[1:, 1:] @ x[0, 1:] / sigma[1:] / sigma[0] for x in states)
    np.testing.assert_allclose(still, 1, rtol=1e-12)  # correlation with x_T
    assert (noisy < 0.96).all()


def test_a_last_sigma_is_added_to_x0_and_flagged():
    """Eq. 10, t = 1: N(x̂0, σ_1² I). With x0 known: x0 + σ_1 z, on every path that reaches it."""
    noise = noise_of_eta(TAU, SCHEDULE, 0.5)
    assert ddim_family(TAU, SCHEDULE, noise).exact_marginals
    noise[-1] = 0.02
    plan = ddim_family(TAU, SCHEDULE, noise)
    assert not plan.exact_marginals
    last = affine(plan, SCHEDULE.alpha(TAU), SCHEDULE.sigma(TAU))[-1]
    assert last[0] == pytest.approx(1, abs=1e-12)
    assert np.sqrt((last[1:] ** 2).sum()) == pytest.approx(0.02, rel=1e-9)


# Plans


@pytest.mark.parametrize("denoise", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.2, 1.0])
def test_ddim_and_ddpm_are_members(eta, denoise):
    lams = TAU if denoise else TAU[:-1]
    member = ddim_family(lams, SCHEDULE, noise_of_eta(lams, SCHEDULE, eta)).matrix()
    np.testing.assert_allclose(member, find("ddim").plan(lams, SCHEDULE, eta=eta).matrix(), rtol=0, atol=1e-12)
    if eta == 1:
        np.testing.assert_allclose(member, find("ddpm").plan(lams, SCHEDULE).matrix(), rtol=0, atol=1e-12)


def test_sigma_hat_is_the_mean_of_eta_1_with_other_noise():
    """And no member: at its own noise the mean would be another, and on this τ it is more than is possible."""
    table, hat = find("ddpm").plan(TAU, SCHEDULE, variance="large").matrix(), noise_hat(TAU, SCHEDULE)
    member = find("ddim").plan(TAU, SCHEDULE, eta=1.0).matrix()
    np.testing.assert_allclose(np.delete(table, 1, 1), np.delete(member, 1, 1), rtol=0, atol=1e-12)
    np.testing.assert_allclose(table[1:, 1], [*hat[:-1], 0.0], rtol=1e-14)
    with pytest.raises(InputError, match="impossible"):
        ddim_family(TAU, SCHEDULE, hat)


@seeds
def test_a_step_is_equation_12(seed):
    """x_{t−1} = sqrt(α_{t−1}) x̂0 + sqrt(1 − α_{t−1} − σ²) ε + σ z, typed from the paper and run on a model."""
    sigma = 0.9 * drawn(TAU, SCHEDULE, seed)
    model = EpsModel(lambda x, lam: torch.tanh(x) * 0.5, SCHEDULE, clock="lam")
    made = sample(model, solver=ddim_family(TAU, SCHEDULE, sigma), shape=(2, 5), seed=3, dtype=torch.float64).x
    draws = [SeededNoise([3, 4])(i, made) for i in range(11)]
    x = draws[0] * np.sqrt(1 - ALPHA[0])
    for a_t, a_next, s, z in zip(ALPHA[:-1], ALPHA[1:], sigma, draws[1:], strict=True):
        eps = torch.tanh(x) * 0.5
        x0 = (x - np.sqrt(1 - a_t) * eps) / np.sqrt(a_t)
        x = np.sqrt(a_next) * x0 + np.sqrt(max(1 - a_next - s**2, 0) if a_next < 1 else 0.0) * eps + s * z
    torch.testing.assert_close(made, x, rtol=0, atol=1e-9)


def test_a_plan_of_the_family_is_kept_and_taken_again(tmp_path):
    plan = ddim_family(TAU, SCHEDULE, drawn(TAU, SCHEDULE, 0))
    plan.save(tmp_path / "p.json")
    assert Plan.load(tmp_path / "p.json") == plan


# Theorem 1


@everywhere
@seeds
def test_gamma_is_the_kl_divergence(schedule, seed):
    """KL(q(·|x, x0) ‖ q(·|x, x̂0)) of Gaussians of one variance is the squared distance of their means over 2 n²; nothing else."""
    lams = np.array([-1.5, -0.4, 0.1, 1.0, 2.0, np.inf])
    q = Family(lams, schedule, drawn(lams, schedule, seed))
    rng, step, gamma = np.random.default_rng(seed), q.reverse(), q.gamma()
    for i, (alpha, sigma) in enumerate(zip(q.alpha[:-1], q.sigma[:-1], strict=True)):
        x0, eps, predicted = rng.standard_normal((3, 7))
        x = alpha * x0 + sigma * eps
        means = [step.x[i] * x + step.x0[i] * known for known in (x0, (x - sigma * predicted) / alpha)]
        kl = np.sum((means[0] - means[1]) ** 2) / (2 * step.std[i] ** 2)
        assert gamma[i] * np.sum((eps - predicted) ** 2) == pytest.approx(kl, rel=1e-12)


@seeds
def test_gamma_in_the_papers_symbols(seed):
    """γ_t = c_t² (1 − α_t)/(2 σ_t² α_t), c_t = sqrt(α_{t−1}) − sqrt((1 − α_{t−1} − σ_t²) α_t/(1 − α_t)), c_1 = 1.

    And no factor less: what leaves one out is not even proportional."""
    sigma = drawn(TAU, SCHEDULE, seed) * 0.99
    a, a_next = ALPHA[:-1], ALPHA[1:]
    c = np.sqrt(a_next) - np.sqrt(np.append((1 - a_next - sigma**2)[:-1], 0.0) * a / (1 - a))
    gamma = Family(TAU, SCHEDULE, sigma).gamma()
    assert c[-1] == 1
    np.testing.assert_allclose(gamma, c**2 * (1 - a) / (2 * sigma**2 * a), rtol=1e-9)
    for wrong in (c**2 / (2 * sigma**2 * a), (1 - a) / (2 * sigma**2 * a), 1 / (2 * sigma**2 * a)):
        assert np.ptp(np.log(wrong / gamma)) > 0.5


# What is refused


@pytest.mark.parametrize(
    ("lams", "noise", "words"),
    [
        ([-1, 0, 1], [0.1], "2 steps takes 2 finite"),
        ([-1, 0, 1], [0.1, np.nan], "numbers"),
        ([-1, 0, 1], [0.1, -0.1], "impossible"),
        ([-1, 0, 1], [0.1, 0.9], "from λ = 0 to 1 is impossible.*0.34"),
        ([1, 0], [0.1], "strictly increasing"),
        ([-np.inf, 0, 1], [0.1, 0.1], "α > 0"),
    ],
    ids=str,
)
def test_impossible_families(lams, noise, words):
    with pytest.raises(InputError, match=words):
        Family(lams, SCHEDULE, noise)
    with pytest.raises(InputError, match=words):
        ddim_family(np.array(lams), SCHEDULE, noise)


@pytest.mark.parametrize(
    ("lams", "noise"), [(TAU, np.zeros(10)), (TAU[:-1], noise_of_eta(TAU[:-1], SCHEDULE, 1.0))], ids=["0", "end"]
)
def test_theorem_1_needs_noise_everywhere_and_x0(lams, noise):
    with pytest.raises(InputError, match="above 0"):
        Family(lams, SCHEDULE, noise).gamma()
