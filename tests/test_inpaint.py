"""Inpainting: what is known is kept, what is not known is made, by the seed alone; and jumps back are rows of a right plan."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from diffode import EpsModel, InputError, schedules
from diffode.images.datasets import to_pixels
from diffode.noise import SeededNoise
from experiments.common.examples import real_images
from experiments.ddim_paper import inpaint as experiment
from experiments.ddim_paper.inpaint import MASKS, jump
from solvers import SOLVERS, Budget, Hooks, inpaint, run, sample
from solvers.gaussian import variance
from solvers.inpainting import WINDOW, with_jumps
from solvers.registry import find

LABELS = torch.arange(4)


def completed(*args, **how):
    return inpaint(*args, **how).x


@pytest.fixture(scope="module")
def known():
    return real_images(4)[0]


@pytest.fixture(scope="module")
def model(mixture32):
    return mixture32.labelled(LABELS)


PLANNED = [name for name, entry in SOLVERS.items() if entry.has_plan]


@pytest.mark.parametrize("solver", [*PLANNED, "dpmpp2m+unic"])
def test_every_planned_solver_keeps_what_is_known(model, known, solver):
    mask = MASKS["half"](28, 28)
    made = completed(model, known, mask, seed=range(4), solver=solver, steps=4)
    kept, new = mask.expand_as(known), ~mask.expand_as(known)
    assert (made[kept] == known[kept]).all()
    assert (to_pixels(made)[..., :14, :] == to_pixels(known)[..., :14, :]).all()
    assert ((made - known)[new].abs() > 0.01).float().mean() > 0.5
    assert torch.isfinite(made).all()


@pytest.mark.parametrize("solver", ["dpm12", "dopri5", "rk4"])
def test_solvers_without_common_steps_are_refused(model, known, solver):
    with pytest.raises(InputError, match=solver):
        completed(model, known, MASKS["half"](28, 28), seed=range(4), solver=solver)


@pytest.mark.parametrize(("solver", "options"), [("ddim", {"eta": 1.0}), ("dpmpp2m", {}), ("heun-churn", {})])
def test_a_seed_is_a_completion(mixture32, known, solver, options):
    """In any batch; other seeds are others."""
    mask = MASKS["box"](28, 28)

    def of(rows, seeds):
        return completed(mixture32.labelled(LABELS[rows]), known[rows], mask, seed=seeds, solver=solver, nfe=8, **options)

    whole = of([0, 1, 2, 3], [5, 6, 7, 2**32 - 1])
    assert (whole == of([0, 1, 2, 3], [5, 6, 7, 2**32 - 1])).all()
    torch.testing.assert_close(whole[[3, 1]], of([3, 1], [2**32 - 1, 6]), rtol=0, atol=1e-5)
    others = of([0, 1, 2, 3], [8, 9, 10, 11])
    assert ((whole - others)[~mask.expand_as(whole)].abs() > 0.01).float().mean() > 0.5


def test_what_is_known_is_seen(mixture32, known):
    """What is made is nearer to the original than what is made of nothing."""
    model, mask = mixture32.labelled(LABELS.repeat(8)), MASKS["half"](28, 28)
    known, new = known.repeat(8, 1, 1, 1), ~mask.expand(32, 1, 28, 28)
    made = completed(model, known, mask, seed=range(32), solver="ddim", nfe=20, eta=1.0)
    of_nothing = completed(model, known, torch.zeros_like(mask), seed=range(32), solver="ddim", nfe=20, eta=1.0)
    off, off_nothing = ((x - known)[new].square().mean() for x in (made, of_nothing))
    assert off < 0.5 * off_nothing


def test_the_noise_of_the_known_pixels_is_fresh_and_not_that_of_the_solver(mixture32, known):
    """At every step α x_known + σ z, with draws of z that are like no other and like none of the solver's."""
    seen, schedule = [], mixture32.schedule

    def network(x, lam):
        seen.append((x.clone(), float(lam[0])))
        return torch.zeros_like(x)

    inpaint(
        EpsModel(network, schedule, clock="lam"), known, torch.ones(1, 28, 28, dtype=torch.bool), seed=range(4), nfe=5, eta=1.0
    )
    own = SeededNoise(range(4))
    draws = [(x - float(schedule.alpha(lam)) * known) / float(schedule.sigma(lam)) for x, lam in seen]
    draws += [own(draw, known) for draw in range(6)]
    correlation = np.corrcoef(torch.stack(draws).flatten(1).numpy()) - np.eye(11)
    assert abs(correlation).max() < 5 / np.sqrt(known.numel())
    assert all(abs(z.std() - 1) < 0.1 for z in draws)


def test_masks():
    left, box = MASKS["half"](28, 28), MASKS["box"](28, 28)
    assert left[..., :14].all()
    assert not left[..., 14:].any()
    assert (~box).sum() == 14 * 14
    assert not box[..., 7:21, 7:21].any()


def test_jump_is_across_the_edge_alone():
    x = torch.zeros(2, 1, 28, 28)
    x[..., 14:] = 0.25
    x[..., 20:] = 5
    assert jump(x, MASKS["half"](28, 28)) == 0.25


def test_real_images_are_one_of_each_class():
    images, labels = real_images(12)
    assert labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert len(np.unique(images.flatten(1).numpy(), axis=0)) == 12


# Jumps


SINGLE = [
    "ddim",
    "ddpm",
    "euler-ancestral",
    "dpm1",
    "dpm2",
    "dpm3",
    "dpmpp2s",
    "dpmpp3s",
    "heun",
    "kdpm2",
    "deis-rho-rk",
    "rk:rk4",
]


def planned(solver, schedule, steps=6, **options):
    grid = np.linspace(schedule.lam_min, schedule.lam_max, steps + 1)
    return find(solver).plan(grid, schedule, **options)


@pytest.mark.parametrize("solver", SINGLE)
@pytest.mark.parametrize("times", [1, 3])
def test_jumps_are_stages_and_each_turn_is_the_step_again(mixture64, solver, times):
    """A Plan proves that they keep the marginals; without their noise a jump is from x_t to (α_s/α_t) x_t."""
    plan = planned(solver, mixture64.schedule)
    jumping = with_jumps(plan, times)
    steps = [(s, t) for s, t in zip(plan.grid, plan.grid[1:], strict=False)]
    expected = [plan.grid[0]]
    for s, t in steps:
        expected += [t] + [s, t] * times * (abs(s) < WINDOW)
    assert jumping.grid == expected
    assert len(jumping.grid) > len(plan.grid)
    turns = {s: 1 + times * (abs(s) < WINDOW) for s, _ in steps}
    assert jumping.nfe == sum(turns[s] * find(solver).nfe_per_step for s, _ in steps)
    draws = [stage.draw for stage in jumping.stages if stage.draw is not None]
    assert len(set(draws)) == len(draws)
    assert jumping.memory == plan.memory


@pytest.mark.parametrize("solver", ["ddim", "dpm3", "heun", "dpmpp2s"])
def test_a_turn_after_a_jump_is_the_step_from_where_it_led(mixture64, solver):
    """Run row by row: the states of a plan with jumps are those of the plan's own steps, each from the state before it."""
    model, schedule = mixture64, mixture64.schedule
    plan = planned(solver, schedule, steps=3)
    generator = torch.Generator().manual_seed(0)
    x, z = (torch.randn(2, 1, 28, 28, generator=generator, dtype=torch.float64) for _ in range(2))
    jumping = run(with_jumps(plan, 1), model, x, Hooks(noise=lambda draw, like: draw * z, trajectory=True))
    draw = 0
    for (lam_s, before), (lam_t, after) in zip(jumping.trajectory, jumping.trajectory[1:], strict=False):
        if lam_t > lam_s:
            step = find(solver).plan(np.array([lam_s, lam_t]), schedule)
            expected = run(step, model, before).x
        else:
            draw += 1
            ratio = float(schedule.alpha(lam_t) / schedule.alpha(lam_s))
            n = float(np.sqrt(schedule.sigma(lam_t) ** 2 - ratio**2 * schedule.sigma(lam_s) ** 2))
            expected = ratio * before + n * draw * z
        torch.testing.assert_close(after, expected, rtol=0, atol=1e-9)
    assert draw == 2  # the first of three steps begins before the window


def test_no_jumps_are_the_plan_itself(mixture64):
    plan = planned("unipc3", mixture64.schedule)
    assert with_jumps(plan, 0) is plan


@pytest.mark.parametrize("solver", ["dpmpp2m", "unipc2", "deis-t", "lms", "ipndm"])
def test_steps_that_remember_cannot_be_taken_again(mixture64, solver):
    with pytest.raises(InputError, match=f"{solver}.*earlier steps.*jumps"):
        with_jumps(planned(solver, mixture64.schedule), 2)


def test_noise_of_the_step_is_fresh_in_each_turn(mixture64):
    plan = with_jumps(planned("ddim", mixture64.schedule, eta=1.0), 2)
    draws = [stage.draw for stage in plan.stages if stage.draw is not None]
    assert draws == list(range(1, len(plan.stages)))


def test_jumps_help(mixture64, known):
    """They are there for agreement: the edge of what is known shows less."""
    model, mask = mixture64.labelled(LABELS.repeat(8)), MASKS["half"](28, 28)
    known = known.repeat(8, 1, 1, 1).double()
    plan = planned("ddim", mixture64.schedule, steps=20, eta=1.0)
    plain, jumping = (completed(model, known, mask, seed=range(32), solver=p) for p in (plan, with_jumps(plan, 3)))
    assert jump(jumping, mask) < jump(plain, mask)


@pytest.mark.parametrize("args", [[], ["--solver", "dpmpp2m"], ["--solver", "dpm2", "--nfe", "4", "--mask", "box"]], ids=str)
def test_the_command(tmp_path, args):
    out = tmp_path / "new" / "inpainting.png"
    result = CliRunner().invoke(experiment.main, ["--fast", "--out", str(out), *args])
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith(f"{out}\n")
    with Image.open(out) as image:
        assert image.width > image.height > 100
    assert [path.name for path in out.parent.iterdir()] == ["inpainting.png"]


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--solver", "dmpp2m"], "did you mean dpmpp2m"),
        (["--solver", "dpm2", "--nfe", "7"], "6 or 8"),
        (["--solver", "dpm2", "--eta", "1"], "eta"),
        (["--solver", "dpm23"], "no plan"),
        (["--eta", "2"], "between 0 and 1"),
    ],
)
def test_the_command_refuses(tmp_path, args, word):
    result = CliRunner().invoke(experiment.main, ["--fast", "--out", str(tmp_path / "a.png"), *args])
    assert result.exit_code == 2, result.output
    assert word in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_plan_is_given_jumps_where_it_can_have_them(mixture64):
    schedule = mixture64.schedule
    assert experiment.make_plan("ddim", schedule, None, None, None).nfe == 56
    assert experiment.make_plan("dpmpp2m", schedule, None, None, None).nfe == 20
    with pytest.raises(InputError, match="jumps"):
        experiment.make_plan("dpmpp2m", schedule, None, None, 2)
    quiet, loud = (experiment.make_plan("ddim", schedule, 5, eta, 0) for eta in (0.0, None))
    assert (quiet.stochastic, loud.stochastic) == (False, True)
    assert dataclasses.replace(loud, solver="ddim") == loud


def test_a_mask_of_zeros_and_ones_is_one_of_true_and_false(mixture32, known):
    model, mask = mixture32.labelled(LABELS), MASKS["half"](28, 28)
    whole = completed(model, known, mask, seed=range(4), solver="ddim", steps=3)
    for dtype in (torch.float32, torch.uint8, torch.float64):
        assert torch.equal(whole, completed(model, known, mask.to(dtype), seed=range(4), solver="ddim", steps=3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_known_in_half_precision_is_that_in_float32_rounded(dtype):
    model, known, mask = gaussian(torch.eye(2)), torch.linspace(-1, 1, 6).view(3, 2).to(dtype), torch.tensor([1, 0])
    found = completed(model, known, mask, steps=3)
    assert torch.equal(found, completed(model, known.float(), mask, steps=3).to(dtype))
    assert torch.equal(found[:, 0], known[:, 0])


def test_what_is_known_is_finite_and_what_is_not_need_not_be():
    model, mask = gaussian(torch.eye(2)), torch.tensor([0.5, 0.0])
    for number in (math.nan, math.inf):
        known = torch.tensor([[1.0, number], [2.0, 3.0]])
        assert torch.isfinite(completed(model, known, mask, steps=3)).all()
        with pytest.raises(InputError, match="not finite where the mask"):
            completed(model, known, mask.flip(0), steps=3)


# Laws


def gaussian(covariance):
    """ε for data N(0, covariance) of blocks of pixels, on the vp path."""
    schedule, (variances, axes) = schedules.vp_linear(), torch.linalg.eigh(covariance)

    def network(x, lam):
        alpha2, sigma2 = torch.sigmoid(2 * lam[0]), torch.sigmoid(-2 * lam[0])
        y = x.view(len(x), -1, len(axes)) @ axes
        return (sigma2.sqrt() * (y / (alpha2 * variances + sigma2)) @ axes.T).view_as(x)

    return EpsModel(network, schedule, clock="lam")


def test_resampling_leads_to_the_conditional_distribution():
    """Pairs of correlation ρ: where one is 1, the other is N(ρ, 1 − ρ²)."""
    rho = 0.8
    model = gaussian(torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64))
    known, mask = torch.ones(20, 200, dtype=torch.float64), torch.tensor([1.0, 0.0]).repeat(100)
    off = []
    for times in (0, 2, 8):
        made = completed(model, known, mask, solver="dpm2", steps=20, resample=times)[:, 1::2]
        off.append((abs(made.mean() - rho), abs(made.var() - (1 - rho**2))))
    means, variances = np.array(off).T
    assert means[2] < 0.5 * means[1] < 0.35 * means[0]
    assert variances[2] < 0.5 * variances[1] < 0.35 * variances[0]


@pytest.mark.parametrize(("solver", "options"), [("ddim", {"eta": 1.0}), ("dpm2", {})])
def test_soft_masks_keep_the_variance(solver, options):
    """Independent pixels N(0, s²), held for a part of the steps: their variance is that of the plan of the other steps, from the
    exact one where they are set free, and they are the more like what is known, the longer they are held."""
    s = 0.5
    model, generator = gaussian(torch.tensor([[s**2]], dtype=torch.float64)), torch.Generator().manual_seed(0)
    known = s * torch.randn(40, 500, dtype=torch.float64, generator=generator)
    mask = torch.linspace(0, 1, 5).repeat(100)  # a pixel of each in turn
    result = inpaint(model, known, mask, solver=solver, steps=40, **options)
    made, lams = result.x.view(40, 100, 5).flatten(0, 1), result.plan.grid
    plans = [find(solver).plan(lams[10 * k :], model.schedule, **options) for k in range(4)]
    expected = torch.tensor([*(variance(plan, s) for plan in plans), s**2])
    blend = (mask[1] ** 2 + (1 - mask[1]) ** 2) * s**2  # of m x_known + (1 − m) x
    assert expected[1] > 1.2 * blend
    known = known.view(40, 100, 5).flatten(0, 1)
    torch.testing.assert_close(made.var(0), expected.double(), rtol=4.5 * math.sqrt(2 / 4000), atol=0)
    likeness = (made * known).mean(0) / s**2
    assert likeness[0].abs() < 4.5 / math.sqrt(4000)
    assert (likeness.diff() > 0).all()
    assert torch.equal(made[:, 4], known[:, 4])


def test_a_pixel_is_held_for_its_part_of_the_steps(mixture32, known):
    """At the k-th of n states those whose mask is above k/n are α x_known + σ z, with z of the seed, and the others are not."""
    model, mask, n = mixture32.labelled(LABELS), torch.linspace(0, 1, 28).expand(1, 28, 28), 4
    states = inpaint(model, known, mask, steps=n, trajectory=True).trajectory
    draws = SeededNoise([2**31 + seed for seed in range(4)])
    for k, (lam, x) in enumerate(states):
        alpha, sigma = float(model.schedule.alpha(lam)), float(model.schedule.sigma(lam))
        held = (x == alpha * known + sigma * draws(k, known)).all(0)[0, 0]
        assert torch.equal(held, (mask[0, 0] > k / n) | (mask[0, 0] == 1))


def test_a_mask_of_nothing_is_sampling(mixture32, known):
    model = mixture32.labelled(LABELS)
    made = completed(model, known, torch.zeros(1), seed=3, steps=3, solver="dpmpp2m")
    assert torch.equal(made, sample(model, shape=known.shape, seed=3, steps=3, solver="dpmpp2m").x)


def test_resample_is_a_plan_with_jumps(mixture32, known):
    model, mask = mixture32.labelled(LABELS), MASKS["half"](28, 28)
    result = inpaint(model, known, mask, steps=4, eta=1.0, resample=2)
    plan = with_jumps(find("ddim").prepare(Budget(steps=4), model.schedule, eta=1.0).plan, 2)
    assert result.plan.stages == plan.stages
    assert torch.equal(result.x, completed(model, known, mask, solver=plan))
