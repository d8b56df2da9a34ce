"""Adaptive pairs: errors that follow the tolerance, for each sample alone; what they spend, and what they hand back."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from diffode import EpsModel, InputError, ode, schedules
from solvers import SOLVERS, Plan, run
from solvers.adaptive import PAIRS, integrate
from solvers.registry import find
from solvers.singlestep import SIGN
from tests.quick import quick

PATHS = ("vp", "ve", "flow")
PLANNED = {"dpm12": "dpm2", "dpm23": "dpm3", "dpmpp12": "dpmpp2s", "dpmpp23": "dpmpp3s"}  # the same rows on a grid that is given
LOWER = {"dpm12": ("dpm1", {}), "dpm23": ("dpm2", {"r1": 1 / 3}), "dpmpp12": ("ddim", {}), "dpmpp23": ("dpmpp2s", {"r1": 1 / 3})}
BY_NAME = {pair.name: pair for pair in PAIRS}
ENDS = np.array([-4.0, 4.0])
every_pair = pytest.mark.parametrize("pair", PAIRS, ids=BY_NAME)
every_path = pytest.mark.parametrize("path", PATHS)
# Each path once or twice: that one trajectory takes the same steps on all of them is a test of its own.
on_some_path = pytest.mark.parametrize(("pair", "path"), [*zip(PAIRS, [*PATHS, "vp"], strict=True)], ids=BY_NAME)
noise_and_data = pytest.mark.parametrize("pair", [BY_NAME["dpm12"], BY_NAME["dpmpp23"]], ids=["dpm12", "dpmpp23"])


@pytest.fixture(scope="module")
def toy(toy):
    return lambda *args, **options: quick(toy(*args, **options))


def start(model, batch, shape=(1, 2, 3), lam=ENDS[0], dtype=torch.float64):
    """Noise as large as the state at λ."""
    x = torch.randn((batch, *shape), generator=torch.Generator().manual_seed(3), dtype=dtype)
    return x * float(np.hypot(model.schedule.alpha(lam), model.schedule.sigma(lam)))


def loose(tolerance, **options):
    return {"rtol": tolerance, "atol": tolerance, **options}


def recorded(model):
    """The same model, and a list to which each network call adds its x (rows, *shape) and λ (rows,)."""
    seen = []

    def network(x, lam, y=None):
        seen.append((x.clone(), lam.clone()))
        return model.network(x, lam, y)

    return EpsModel(network, model.schedule, model.predicts, clock="lam", classes=model.classes), seen


# Accuracy


@every_pair
def test_pairs_are_rows_of_the_planned_solvers(pair, mixture64):
    """A step of the higher order and one of the lower, as tables: the same but for the last row, which carries all the rest."""
    sign = SIGN[pair.prediction]
    for h in (1e-6, 0.3, 2.0, -0.7):
        high, low = pair.high(sign * h), pair.low(sign * h)
        assert high[: len(low) - 1] == low[:-1]
        assert len(high) == pair.nfe_per_step == pair.order
    lams = np.array([-3.0, -1.5, 0.5])
    plan = integrate(pair, mixture64, start(mixture64, 1, (1, 28, 28), -3.0), lams, **loose(0.1)).plan
    same = SOLVERS[PLANNED[pair.name]].plan(np.array(plan.grid), mixture64.schedule)
    np.testing.assert_allclose(plan.matrix(), same.matrix(), rtol=0, atol=1e-14)
    name, options = LOWER[pair.name]
    lower = find(name).plan(np.array([-1.5, 0.5]), mixture64.schedule, **options)
    total = sum(lower.stages[-1].c.values())
    assert {j: c / total for j, c in lower.stages[-1].c.items()} == pytest.approx(pair.low(sign * 2.0)[-1][1])


@on_some_path
def test_the_error_follows_the_tolerance(pair, path, toy):
    """Below ten times the tolerance and falling with it, in units of the state's size at the end."""
    model = toy(path)
    x = start(model, 4)
    exact = ode.accurate(model, x, *ENDS)
    errors = []
    for tolerance in (1e-2, 1e-3, 1e-4) if pair.order == 2 else (1e-3, 1e-4, 1e-5):
        result = integrate(pair, model, x, ENDS, **loose(tolerance))
        errors.append(float((result.x - exact).flatten(1).square().mean(1).sqrt().max()))
        assert errors[-1] < 10 * tolerance
    assert all(after < before / 3 for before, after in pairwise(errors))


@noise_and_data
def test_the_error_on_the_shipped_mixture(pair, pooled64):
    """49 pixels over the whole schedule: the median of the samples is near the tolerance, a few being more sensitive."""
    pooled64, lams = quick(pooled64), np.array([pooled64.schedule.lam_min, pooled64.schedule.lam_max])
    x = start(pooled64, 8, (1, 7, 7), lams[0])
    exact = integrate(BY_NAME["dpmpp23"], pooled64, x, lams, **loose(1e-6)).x
    for tolerance in (5e-3, 1e-3):
        result = integrate(pair, pooled64, x, lams, **loose(tolerance))
        assert (result.x - exact).flatten(1).square().mean(1).sqrt().median() < 4 * tolerance


@every_pair
def test_tolerances_mean_the_same_on_every_path(pair, toy):
    """One trajectory y = x/α, seen on three paths: the same steps, since errors are in units of sqrt(α² + σ²)."""
    taken, ends = [], []
    for path in PATHS:
        model = toy(path)
        x = start(toy("ve"), 3, lam=-3.0) * float(model.schedule.alpha(-3.0))
        result = integrate(pair, model, x, np.array([-3.0, 3.0]), **loose(1e-4))
        taken.append(result.adaptive)
        ends.append(result.x / float(model.schedule.alpha(3.0)))
    for other, end in zip(taken[1:], ends[1:], strict=True):
        assert (other.accepted, other.rejected) == (taken[0].accepted, taken[0].rejected)
        assert abs(end - ends[0]).max() < 1e-9  # roundings
        for plan, first in zip(other.plans, taken[0].plans, strict=True):
            np.testing.assert_allclose(plan.grid, first.grid, rtol=0, atol=1e-7)


@noise_and_data
def test_backwards_and_forth(pair, toy):
    model = toy()
    x = start(model, 3, lam=3.0)
    noise = integrate(pair, model, x, np.array([3.0, -3.0]), **loose(1e-4))
    assert all(np.all(np.diff(plan.grid) < 0) for plan in noise.adaptive.plans)
    back = integrate(pair, model, noise.x, np.array([-3.0, 3.0]), **loose(1e-4))
    assert abs(back.x - x).max() < 1e-3
    assert abs(noise.x - x).max() > 0.1


def controlled(pair, model, x, h, rtol, atol):
    """The λ of the accepted steps and the number of rejected ones by the docstring's formulas, with run() and planned steps."""
    name, options = LOWER[pair.name]
    (lam, end), previous, rejected, again, lams = ENDS, 1.0, 0, False, [ENDS[0]]

    def size(lam):
        return float(np.hypot(model.schedule.alpha(lam), model.schedule.sigma(lam)))

    while lam < end:
        lam_t = end if end - lam <= 1.05 * h else lam + h
        step = np.array([lam, lam_t])
        u = run(SOLVERS[PLANNED[pair.name]].plan(step, model.schedule), model, x).x
        lower = run(find(name).plan(step, model.schedule, **options), model, x).x
        tolerance = atol * size(lam_t) + rtol * torch.maximum(x.abs() * size(lam_t) / size(lam), u.abs())
        error = float((((u - lower).abs() + 2**-52 * u.abs()) / tolerance).square().mean().sqrt())
        if error <= 1:
            factor = 0.9 * error ** (-0.7 / pair.order) * previous ** (0.4 / pair.order)
            h = (lam_t - lam) * np.clip(factor, 0.2, 1 if again else 5)
            x, lam, previous, again = u, lam_t, max(error, 1e-4), False
            lams.append(lam)
        else:
            h = (lam_t - lam) * np.clip(0.9 * error ** (-1 / pair.order), 0.2, 1)
            rejected, again = rejected + 1, True
    return lams, rejected


@on_some_path
@pytest.mark.parametrize("first_step", [0.05, 1.0, 7.9])
def test_the_controller_is_as_stated(pair, path, first_step, toy):
    """Accepted, rejected and chosen as by the formulas, written out again for one sample."""
    model = toy(path)
    x = start(model, 1)
    result = integrate(pair, model, x, ENDS, rtol=3e-4, atol=1e-4, first_step=first_step)
    lams, rejected = controlled(pair, model, x, first_step, 3e-4, 1e-4)
    assert result.adaptive.rejected == (rejected,)
    np.testing.assert_allclose(result.plan.grid, lams, rtol=0, atol=1e-6)  # roundings of 1e-16 in small differences


# Each sample alone


@noise_and_data
@pytest.mark.parametrize("guided", [False, True])
def test_an_image_does_not_depend_on_its_batch(pair, guided, mixture32):
    """Bit for bit, beside a neighbour that needs other steps: the mixture's own products do not depend on the batch."""
    x = start(mixture32, 16, (1, 28, 28), dtype=torch.float32)
    x[5] *= 30
    model = mixture32.labelled([i % 10 for i in range(16)]).guided(3.0) if guided else mixture32
    whole = integrate(pair, model, x, ENDS, **loose(0.02))
    for i in (4, 5):
        alone = integrate(pair, model.taking([i]), x[i : i + 1], ENDS, **loose(0.02))
        assert torch.equal(alone.x[0], whole.x[i])
        assert alone.plan == whole.adaptive.plans[i]
        assert alone.nfe == whole.adaptive.nfe[i]
    assert len(set(whole.adaptive.plans[i].grid[-2] for i in range(16))) > 8  # they did go their own ways
    assert whole.nfe == max(whole.adaptive.nfe) > min(whole.adaptive.nfe)


def test_labels_follow_their_samples(mixture64):
    """A row whose label were another's, or whose guidance were, would not end where it does alone."""
    x = start(mixture64, 1, (1, 28, 28)).expand(6, -1, -1, -1).clone()
    labels = [7, 1, 7, 3, 1, 9]
    model = mixture64.labelled(labels).guided(2.0)
    result = integrate(BY_NAME["dpm23"], model, x, ENDS, **loose(0.05, first_step=3.0))
    whole, taken = result.x, result.adaptive
    assert len({*zip(taken.accepted, taken.rejected, strict=True)}) > 2  # some go on when others have arrived, or were refused
    for i, j in ((0, 2), (1, 4)):
        assert torch.equal(whole[i], whole[j])
    for i, label in ((0, 7), (1, 1), (3, 3), (5, 9)):
        alone = integrate(BY_NAME["dpm23"], mixture64.labelled([label]).guided(2.0), x[:1], ENDS, **loose(0.05, first_step=3.0)).x
        assert torch.equal(whole[i], alone[0])
    assert abs(whole[0] - whole[1]).max() > 0.1


def test_a_condition_of_another_batch_is_refused(toy):
    model = toy()
    with pytest.raises(InputError, match="y is for a batch of 5, the state has 3"):
        integrate(BY_NAME["dpm12"], model.labelled([0, 1, 0, 1, 0]), start(model, 3), ENDS)


# What is handed back


@every_path
@every_pair
def test_the_plan_that_was_taken_can_be_run_again(pair, path, toy):
    model = toy(path).labelled([0, 1, 1, 0])
    x = start(model, 4)
    before = x.clone()
    result = integrate(pair, model, x, ENDS, **loose(1e-3, first_step=5.0))
    assert torch.equal(x, before)
    assert result.plan is None
    for i, plan in enumerate(result.adaptive.plans):
        again = run(plan, model.taking([i]), x[i : i + 1])
        assert abs(again.x - result.x[i : i + 1]).max() < 1e-12
        assert plan.solver == pair.name
        assert (plan.grid[0], plan.grid[-1]) == tuple(ENDS)
        assert len(plan.grid) - 1 == result.adaptive.accepted[i]
        assert again.nfe == result.adaptive.nfe[i] - (pair.nfe_per_step - 1) * result.adaptive.rejected[i]


def test_equal_samples_have_one_plan(toy):
    model = toy()
    x = start(model, 1).expand(3, -1, -1, -1)
    result = integrate(BY_NAME["dpm12"], model, x, ENDS)
    assert isinstance(result.plan, Plan)
    assert result.adaptive.plans == (result.plan,) * 3


@every_pair
def test_what_is_spent(pair, toy):
    """A step is `evaluations`; a rejected one gives its first to the next. No call is made that no sample needed."""
    model, seen = recorded(toy())
    widths = []
    model = model.watched(lambda evaluation, lam, m: widths.append((evaluation, len(m))))
    result = integrate(pair, model, start(model, 6), ENDS, **loose(1e-4, first_step=8.0))
    taken = result.adaptive
    assert min(taken.rejected) > 0
    for accepted, rejected, nfe in zip(taken.accepted, taken.rejected, taken.nfe, strict=True):
        assert nfe == pair.nfe_per_step * (accepted + rejected) - rejected
    assert sum(taken.nfe) == sum(width for _, width in widths) == sum(len(x) for x, _ in seen)
    assert result.calls == len(seen)
    assert [evaluation for evaluation, _ in widths] == [*range(1, len(seen) + 1)]
    states = [(*x.flatten().tolist(), float(lam)) for xs, lams in seen for x, lam in zip(xs, lams, strict=True)]
    assert len(set(states)) == len(states)  # nothing is evaluated twice
    assert result.nfe == max(taken.nfe)


def test_guidance_takes_two_calls_an_evaluation(toy):
    model, seen = recorded(toy())
    result = integrate(BY_NAME["dpm12"], model.labelled([0, 1, 1]).guided(2.0), start(model, 3), ENDS)
    assert result.calls == len(seen)
    assert sum(len(x) for x, _ in seen) == 2 * sum(result.adaptive.nfe)


@every_path
@every_pair
@pytest.mark.parametrize("denoise", [False, True])
def test_the_model_is_called_between_the_ends_only(pair, path, denoise, toy):
    model, seen = recorded(toy(path))
    lams = np.array([*ENDS, *[np.inf] * denoise])
    integrate(pair, model, start(model, 4), lams, **loose(1e-3, first_step=100.0))
    asked = torch.cat([lam for _, lam in seen])
    assert asked.min() == ENDS[0]
    assert asked.max() <= ENDS[1]
    assert (asked == ENDS[1]).sum() == 4 * denoise  # nothing is evaluated where it ends


@every_pair
@pytest.mark.parametrize(("further", "steps"), [(-0.3, 3), (0.04, 3), (0.06, 4)])
def test_the_last_step_lands_on_the_end(pair, further, steps, toy):
    """Exactly; a rest of less than a twentieth of a step is no step of its own."""
    x = start(toy(), 1)
    _, _, lam_s, lam_t, *_ = integrate(pair, toy(), x, ENDS, **loose(1e-3)).plan.grid
    end = lam_t + further * (lam_t - lam_s)
    plan = integrate(pair, toy(), x, np.array([ENDS[0], end]), **loose(1e-3)).plan
    assert len(plan.grid) - 1 == steps
    assert plan.grid[2] == lam_s
    assert plan.grid[-1] == end


def test_a_first_step_that_float64_does_not_resolve_is_lengthened(toy):
    result = integrate(BY_NAME["dpm12"], toy(), start(toy(), 1), ENDS, first_step=1e-300)
    assert result.plan.grid[-1] == ENDS[1]


@every_pair
def test_the_budget_hands_back_the_last_state(pair, toy):
    model = toy()
    x = start(model, 4)
    free = integrate(pair, model, x, ENDS, **loose(1e-3)).adaptive
    short = integrate(pair, model, x, ENDS, **loose(1e-3, max_nfe=15))
    for i, plan in enumerate(short.adaptive.plans):
        assert 15 - pair.nfe_per_step < short.adaptive.nfe[i] <= 15 < free.nfe[i]
        assert plan.grid == free.plans[i].grid[: len(plan.grid)]
        assert short.adaptive.lam[i] == plan.grid[-1] < ENDS[1]
        assert abs(run(plan, model, x[i : i + 1]).x - short.x[i : i + 1]).max() < 1e-12


@every_pair
def test_a_rejected_step_is_tried_again_for_one_evaluation_less(pair, toy):
    taken = integrate(
        pair, toy(), start(toy(), 2), ENDS, **loose(1e-6, first_step=8.0, max_nfe=2 * pair.nfe_per_step - 1)
    ).adaptive
    assert taken.nfe == (2 * pair.nfe_per_step - 1,) * 2
    assert (taken.accepted, taken.rejected) == ((0, 0), (2, 2))


@every_pair
def test_a_budget_that_no_step_fits_moves_nothing(pair, toy):
    x = start(toy(), 2)
    result = integrate(pair, toy(), x, ENDS, max_nfe=pair.nfe_per_step - 1)
    assert torch.equal(result.x, x)
    assert result.adaptive.plans == (None, None)
    assert (result.plan, result.nfe, result.calls, result.adaptive.lam) == (None, 0, 0, (ENDS[0], ENDS[0]))


def test_the_budget_holds_for_each_sample(toy):
    """One that needs more stops; the others arrive."""
    model = toy()
    x = start(model, 6)
    nfe = integrate(BY_NAME["dpm23"], model, x, ENDS, **loose(1e-4)).adaptive.nfe
    budget = sorted(nfe)[3]
    assert min(nfe) < budget < max(nfe)
    some = integrate(BY_NAME["dpm23"], model, x, ENDS, **loose(1e-4, max_nfe=budget)).adaptive
    assert [lam == ENDS[1] for lam in some.lam] == [spent <= budget for spent in nfe]


# Ends at infinity


@every_path
@every_pair
def test_the_step_to_infinity(pair, path, toy):
    """One evaluation more and x̂0 of the last finite state, on every path."""
    model = toy(path)
    x = start(model, 3)
    finite = integrate(pair, model, x, ENDS)
    result = integrate(pair, model, x, np.array([*ENDS, np.inf]))
    torch.testing.assert_close(result.x, model(finite.x, ENDS[1], "data"), rtol=0, atol=1e-12)
    assert result.adaptive.nfe == tuple(nfe + 1 for nfe in finite.adaptive.nfe)
    assert result.adaptive.lam == (np.inf,) * 3
    for i, plan in enumerate(result.adaptive.plans):
        assert abs(run(plan, model, x[i : i + 1]).x - result.x[i : i + 1]).max() < 1e-12
    nearly = integrate(pair, model, x[:1], np.array([*ENDS, np.inf]), max_nfe=finite.adaptive.nfe[0])
    assert nearly.adaptive.lam == (ENDS[1],)  # the budget was spent


def from_pure_noise():
    """Data N(0.3, 0.25 I) on the flow path with its zero-SNR end: a model, and x_T -> the exact state at the clean end."""

    def network(x, t):
        sigma = t[:, None, None, None]
        alpha = 1 - sigma
        return 0.3 + 0.25 * alpha / (0.25 * alpha**2 + sigma**2) * (x - 0.3 * alpha)

    schedule = schedules.flow(t_noisy=1.0)
    alpha, sigma = 1 - schedule.t_clean, schedule.t_clean
    return EpsModel(network, schedule, "data"), lambda x: 0.3 * alpha + (0.25 * alpha**2 + sigma**2) ** 0.5 * x


@pytest.mark.parametrize("name", ["dpmpp12", "dpmpp23"])
def test_zero_terminal_snr(name):
    model, exact = from_pure_noise()
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for tolerance in (1e-2, 1e-3, 1e-4):
        result = integrate(BY_NAME[name], model, x, np.array([-np.inf, model.schedule.lam_max]), **loose(tolerance))
        assert abs(result.x - exact(x)).max() < 10 * tolerance
        assert np.exp(2 * result.adaptive.plans[0].grid[1]) == pytest.approx(tolerance / 10)
    assert result.adaptive.plans[0].grid[0] == -np.inf
    assert abs(run(result.adaptive.plans[0], model, x[:1]).x - result.x[:1]).max() < 1e-12


@pytest.mark.parametrize("name", ["dpm12", "dpm23"])
def test_zero_terminal_snr_is_not_for_the_noise_form(name):
    calls = []
    model = from_pure_noise()[0].watched(lambda *call: calls.append(call))
    with pytest.raises(InputError, match="take one in data form"):
        integrate(BY_NAME[name], model, torch.zeros(1, 1, 4, 4), np.array([-np.inf, 3.0]))
    assert not calls


# Errors


@every_pair
def test_tolerances_below_rounding_underflow(pair, toy):
    model = toy(dtype=torch.float32)
    with pytest.raises(InputError, match=r"at λ = -4, sample 0, evaluation \d\d?, with steps down to .*e-10: loosen"):
        integrate(pair, model, start(model, 2, dtype=torch.float32), ENDS, **loose(1e-12))


def test_a_pole_underflows_where_it_is(toy):
    """No trajectory goes past it: the sample that has it is named."""
    smooth = toy()

    def network(x, lam, stiff):
        return smooth.network(x, lam) + (stiff / (1.25 - lam) ** 2)[:, None, None, None]

    model = EpsModel(network, smooth.schedule, smooth.predicts, clock="lam").conditioned(stiff=torch.tensor([0.0, 0.0, 1.0]))
    with pytest.raises(InputError, match=r"at λ = 1\.25, sample 2, evaluation \d+, with steps down to .*e-10"):
        integrate(BY_NAME["dpm23"], model, start(model, 3), ENDS)


@pytest.mark.parametrize("where", [-2.0, 0.0, ENDS[1]])
def test_an_output_that_is_not_finite_is_named(where, toy):
    """With the λ where the network first fails and the evaluation of that sample; also in the step to infinity."""
    exact = toy()
    seen = []

    def network(x, lam):
        seen.append(lam.tolist())
        return exact.network(x, lam).masked_fill((lam >= where)[:, None, None, None], torch.nan)

    model = EpsModel(network, exact.schedule, exact.predicts, clock="lam")
    with pytest.raises(InputError, match="not finite at λ = ") as error:
        integrate(BY_NAME["dpm12"], model, start(model, 1), np.array([*ENDS, np.inf]))
    assert f"λ = {seen[-1][0]:.6g}, evaluation {len(seen)}:" in str(error.value)
    assert max(seen[:-1])[0] < where <= seen[-1][0]


@pytest.mark.parametrize(
    "options", [{"rtol": 0.0}, {"atol": -1.0}, {"rtol": np.nan}, {"atol": np.inf}, {"max_nfe": 0}, {"first_step": 0.0}], ids=str
)
def test_options_that_are_not_possible(options, toy):
    with pytest.raises(InputError, match=r"must be a positive|a whole number of at least 1"):
        integrate(BY_NAME["dpm12"], toy(), start(toy(), 1), ENDS, **options)


@pytest.mark.parametrize(
    "lams", [[1.0], [1.0, np.inf], [2.0, 2.0], [np.inf, 1.0], [1.0, -np.inf], [-np.inf, np.inf], [np.nan, 1.0]], ids=str
)
def test_ends_that_are_not_possible(lams, toy):
    with pytest.raises(InputError, match="goes from one finite λ"):
        integrate(BY_NAME["dpmpp12"], toy(), start(toy(), 1), np.array(lams))


def test_whole_labels_are_refused(toy):
    """Stages fall between the labels."""
    model = EpsModel(lambda x, t: x, schedules.ddpm_linear(), clock="label")
    ends = np.array([model.schedule.lam_min, model.schedule.lam_max])
    with pytest.raises(InputError, match="whole labels"):
        integrate(BY_NAME["dpm12"], model, torch.zeros(2, 1, 2, 2), ends)
