"""What surrounds a run: how many samples, in which parts, with whose noise, and a bar that shows how far it is."""

import re

import pytest
import torch

from diffode import EpsModel, InputError, encode, guidance, inpaint, sample, schedules
from diffode.generators import GeneratorNoise
from solvers import Budget, Hooks, find

SCHEDULE = schedules.vp_linear()
ALL = ("ddim", "unipc3", "sde-dpmpp2m", "dpm23", "bosh3", "rk4")
BUDGETS = {"dpm23": {"rtol": 0.2, "atol": 0.1}, "bosh3": {"rtol": 0.1, "atol": 0.1, "per_sample": True}, "rk4": {"steps": 3}}


class Labelled(torch.nn.Module):
    """A network of one number per label; no batched product, so a row's bits do not depend on its batch."""

    def __init__(self):
        super().__init__()
        self.of_label = torch.nn.Parameter(torch.tensor([0.1, 0.5, 0.9]))

    def forward(self, x, t, y):
        return (x - self.of_label[y].view(-1, 1)) * 0.9


def model(n=5):
    return EpsModel(Labelled(), SCHEDULE, classes=3, shape=(4,)).labelled([i % 3 for i in range(n)])


def run(solver, **given):
    return sample(**{"model": model(), "solver": solver, **BUDGETS.get(solver, {"nfe": 6}), **given})


@pytest.mark.parametrize("solver", ALL)
def test_n_is_a_batch_of_the_model_s_shape(solver):
    assert torch.equal(run(solver, n=5).x, run(solver, shape=(5, 4)).x)


@pytest.mark.parametrize("given", [{"n": 5}, {"x": torch.ones(5, 4), "from_lam": 0.0}], ids=["noise", "data"])
@pytest.mark.parametrize("solver", ALL)
@pytest.mark.parametrize("batch", [2, 9])
def test_parts_are_joined_to_what_the_whole_batch_is(solver, batch, given):
    """Every row with its own label and seed; evaluations are the most of any, calls those of all parts."""
    whole, parts = run(solver, seed=3, **given), run(solver, seed=3, batch=batch, **given)
    assert torch.equal(parts.x, whole.x)
    assert (parts.nfe, parts.finished, parts.planned) == (whole.nfe, whole.finished, whole.planned)
    if whole.planned:
        assert parts.calls == whole.calls * -(-5 // batch)
    if solver == "bosh3":
        assert parts.calls == whole.calls
        assert [counter.nfe for counter in parts.counters] == [counter.nfe for counter in whole.counters]
    if solver == "dpm23":
        for name in ("accepted", "rejected", "nfe", "calls", "grids"):
            assert getattr(parts.adaptive, name) == getattr(whole.adaptive, name)
        assert parts.adaptive.plans == whole.adaptive.plans


@pytest.mark.parametrize("solver", ["ddim", "sde-dpmpp2m", "bosh3"])
def test_trajectories_of_parts_are_joined(solver):
    whole, parts = (run(solver, n=5, trajectory=True, batch=batch) for batch in (None, 2))
    assert [lam for lam, _ in parts.trajectory] == [lam for lam, _ in whole.trajectory]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(parts.trajectory, whole.trajectory, strict=True))


def test_an_adaptive_run_that_ends_early_in_one_part_has_not_finished():
    assert not run("dpm23", n=5, batch=2, max_nfe=9).finished


def test_parts_are_encoded_too():
    x = torch.linspace(-1, 1, 20).view(5, 4)
    whole, parts = (encode(model(), x, solver="dpm2", nfe=6, batch=batch) for batch in (None, 2))
    assert torch.equal(parts.x, whole.x)


def test_hooks_that_see_a_whole_batch_are_not_given_parts():
    for hook in ({"on_step": lambda state: None}, {"on_commit": lambda x, lam: x}):
        with pytest.raises(InputError, match="leave them or batch out"):
            run("ddim", n=5, batch=2, **hook)
        run("ddim", n=5, batch=5, **hook)


def test_guidance_that_differs_from_sample_to_sample_goes_with_its_rows():
    guided = model().guided(2.0, y=torch.tensor([2, 1, 0, 2, 1]))
    whole, parts = (sample(guided, n=5, nfe=4, batch=batch) for batch in (None, 2))
    assert torch.equal(parts.x, whole.x)


@pytest.mark.parametrize("n", [4, 6])
@pytest.mark.parametrize(
    "given",
    [
        {"batch": 2},
        {"solver": "bosh3", "per_sample": True, "rtol": 0.1, "atol": 0.1},
        {"solver": "dpm23", "rtol": 0.2, "atol": 0.1},
    ],
    ids=["parts", "one by one", "adaptive"],
)
def test_conditions_and_weights_of_another_number_of_samples_are_refused(given, n):
    """Whichever number is larger, and for weights that a function returns in the middle of the run alone."""
    weights, right = torch.full((5,), 2.0), model(n)
    y, middle = {"y": [0] * n}, guidance.interval(weights, -1.0, 1.0)
    for wrong in (model(5), right.guided(weights, **y), right.guided(lambda lam: weights, **y), right.guided(middle, **y)):
        with pytest.raises(InputError, match=f"for a batch of 5.* {n}"):
            sample(wrong, n=n, **given)
    whole, parts = (sample(model(5).guided(middle, y=[0] * 5), n=5, nfe=4, batch=batch) for batch in (None, 2))
    assert torch.equal(whole.x, parts.x)


def test_a_prepared_solver_encodes_if_it_leads_to_noise():
    x, budget = torch.linspace(-1, 1, 20).view(5, 4), Budget(nfe=4)
    backwards = find("dpmpp2m").prepare(budget, SCHEDULE, backwards=True)
    assert torch.equal(encode(model(), x, solver=backwards).x, encode(model(), x, solver="dpmpp2m", nfe=4).x)
    for forwards in (budget, Budget(nfe=4, from_lam=0.0)):
        with pytest.raises(InputError, match="backwards=True"):
            encode(model(), x, solver=find("dpmpp2m").prepare(forwards, SCHEDULE))


def test_samples_of_another_shape_than_the_model_s_are_refused():
    for run in (
        lambda: sample(model(), shape=(5, 3)),
        lambda: sample(model(), x=torch.zeros(5, 4, 1)),
        lambda: encode(model(), torch.zeros(5, 3)),
        lambda: inpaint(model(), torch.zeros(5, 3), torch.ones(3)),
    ):
        with pytest.raises(InputError, match=r"samples of shape \((3,|4, 1)\).*model are \(4,\)"):
            run()


# ---- a bar


@pytest.mark.parametrize(("solver", "batch"), [*((solver, 2) for solver in ALL), ("unipc3", None)])
def test_progress_changes_no_bit_and_ends_at_100_percent(solver, batch, capsys):
    plain = run(solver, n=5, batch=batch)
    assert capsys.readouterr().err == ""
    shown = run(solver, n=5, batch=batch, progress=True)
    assert torch.equal(shown.x, plain.x)
    assert (shown.nfe, shown.calls) == (plain.nfe, plain.calls)
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{solver}: 100%" in err.split("\r")[-1]
    assert "λ = " in err


@pytest.mark.parametrize("solver", ALL)
def test_progress_grows_from_nothing_to_all(solver, monkeypatch):
    """By evaluations where their number is known, by λ where it is not; never back, also where each sample starts again."""
    from solvers import progress

    reached = []

    class Bar(progress.tqdm):
        def update(self, n=1):
            super().update(n)
            reached.append(self.n / self.total)

    monkeypatch.setattr(progress, "tqdm", Bar)
    monkeypatch.setenv("TQDM_DISABLE", "0")
    run(solver, n=5, batch=2, progress=True)
    assert reached == sorted(reached)
    assert 0 <= reached[0] < 0.34
    assert reached[-1] == pytest.approx(1)
    assert len({round(share, 2) for share in reached}) > 5
    if solver not in ("dpm23", "bosh3"):
        assert reached[-2] == pytest.approx(1)  # the evaluations were all there were


def test_a_bar_is_closed_when_the_network_fails(capsys):
    with pytest.raises(InputError, match="not finite"):
        sample(EpsModel(lambda x, t: x * torch.nan, SCHEDULE, shape=(2,)), n=2, nfe=5, progress=True)
    assert capsys.readouterr().err.endswith("\n")


def test_encode_shows_progress(capsys):
    encode(model(), torch.ones(5, 4), nfe=3, progress=True)
    assert re.search("ddim: 100%.*λ = ", capsys.readouterr().err.split("\r")[-1])


# ---- generators


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def states(*generators):
    return [g.get_state() for g in generators]


@pytest.mark.parametrize("alone", [True, False])
def test_generators_draw_in_order(alone):
    """What a pipeline of diffusers draws, first the latents, then for each step: one torch.randn of the whole batch, or one of
    (1, *shape) by each (test_starts.py calls diffusers itself)."""
    theirs = generator(5) if alone else [generator(i) for i in range(3)]
    ours = generator(5) if alone else [generator(i) for i in range(3)]
    noise, like = GeneratorNoise(ours), torch.empty(3, 2, 4)
    for draw in range(4):
        each = theirs if isinstance(theirs, list) else []
        wanted = torch.cat([torch.randn(1, 2, 4, generator=g) for g in each]) if each else torch.randn(3, 2, 4, generator=theirs)
        assert torch.equal(noise(draw, like), wanted)
    pairs = [(ours, theirs)] if alone else zip(ours, theirs, strict=True)
    assert all(torch.equal(*states(*pair)) for pair in pairs)


def test_a_stochastic_run_is_the_plan_on_these_draws_and_leaves_the_generator_behind_them():
    g, h = generator(1), generator(1)
    found = run("ddpm", n=5, seed=g)
    drawn = [torch.randn(5, 4, generator=h) for _ in range(1 + max(stage.draw or 0 for stage in found.plan.stages))]
    x = drawn[0] * float(SCHEDULE.sigma(found.plan.grid[0]))
    from solvers import run as run_plan

    wanted = run_plan(found.plan, model(), x, Hooks(lambda draw, like: drawn[draw]))
    assert torch.equal(found.x, wanted.x)
    assert torch.equal(*states(g, h))
    assert not torch.equal(run("ddpm", n=5, seed=g).x, found.x)  # it goes on
    assert torch.equal(run("ddpm", n=5, seed=generator(1)).x, found.x)


def test_a_list_of_generators_seeded_one_by_one_is_the_list_of_seeds():
    """The convention of seeds, so a row is that of its seed whatever its batch."""
    seeds = [4, 8, 15, 16, 23]
    wanted = run("sde-dpmpp2m", n=5, seed=seeds).x
    assert torch.equal(run("sde-dpmpp2m", n=5, seed=[generator(seed) for seed in seeds]).x, wanted)
    assert torch.equal(run("sde-dpmpp2m", n=5, batch=2, seed=[generator(seed) for seed in seeds]).x, wanted)


def test_a_state_given_costs_no_draw():
    """As with `latents` in diffusers: the first draw is that of the first step."""
    g, x = generator(2), torch.ones(5, 4)
    noise = GeneratorNoise(g)
    assert torch.equal(noise(1, x), torch.randn(5, 4, generator=generator(2)))
    assert torch.equal(noise(1, x), torch.randn(5, 4, generator=generator(2)))


def test_a_repeated_run_sees_the_same_numbers():
    """After a network output that is not finite, the run is made again, with a look at each: the same states, and in the end the
    generator is where the run left it."""
    seen, g, h = [], generator(3), generator(3)

    def network(x, t):
        seen.append(x.clone())
        return x * (torch.nan if len(seen) % 3 == 0 else 0.5)

    with pytest.raises(InputError, match="evaluation 3"):
        sample(EpsModel(network, SCHEDULE, shape=(4,)), n=5, solver="ddpm", nfe=3, seed=g)
    assert all(torch.equal(a, b) for a, b in zip(seen[:3], seen[3:6], strict=True))
    assert len(seen) == 6
    noise = GeneratorNoise(h)
    first = [noise(draw, torch.empty(5, 4)) for draw in range(3)]
    assert all(torch.equal(noise(draw, torch.empty(5, 4)), first[draw]) for draw in (0, 1, 2, 2, 1, 0))


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    run("ddpm", n=5, seed=generator(1))
    run("ddpm", n=5, noise="brownian", progress=True, batch=2)
    assert torch.equal(torch.get_rng_state(), before)


# ---- noise by name


def test_brownian_noise_is_that_of_the_plan_whatever_the_batch():
    from diffode.brownian import BrownianNoise
    from solvers.intervals import intervals

    seeds = [3, 1, 4, 1000, 5]
    found = run("sde-dpmpp2m", n=5, seed=seeds, noise="brownian")
    noise = BrownianNoise(seeds, intervals(found.plan))
    wanted = run("sde-dpmpp2m", x=noise(0, found.x) * float(SCHEDULE.sigma(found.plan.grid[0])), seed=seeds, noise="brownian")
    assert torch.equal(found.x, wanted.x)
    assert torch.equal(run("sde-dpmpp2m", n=5, seed=seeds, noise="brownian", batch=2).x, found.x)
    assert not torch.equal(run("sde-dpmpp2m", n=5, seed=seeds).x, found.x)
    assert torch.equal(run("ddim", n=5, noise="brownian").x, run("ddim", n=5).x)  # no draw after x_T


PREPARED = find("ddim").prepare(Budget(4), SCHEDULE)
BAD = {
    "nothing": ({}, "one of n"),
    "two": ({"n": 5, "shape": (5, 4)}, "one of n"),
    "n and x": ({"n": 5, "x": torch.zeros(5, 4)}, "one of n"),
    "n of 0": ({"n": 0}, "n"),
    "n of 1.5": ({"n": 1.5}, "n"),
    "n of no shape": ({"n": 2, "model": EpsModel(torch.zeros_like, SCHEDULE)}, "does not say its shape"),
    "batch of 0": ({"n": 5, "batch": 0}, "batch"),
    "batch of 2.5": ({"n": 5, "batch": 2.5}, "batch"),
    "progress of 1": ({"n": 5, "progress": 1}, "progress"),
    "noise": ({"n": 5, "noise": "Brownian"}, "brownian"),
    "no noise to begin with": ({"n": 5, "noise": None}, "noise=None"),
    "no noise on the way": ({"x": torch.zeros(5, 4), "noise": None, "solver": "ddpm"}, 'ddpm draws noise.*noise="seeded"'),
    "a path of an adaptive pair": ({"n": 5, "noise": "brownian", "solver": "dpm23"}, "no plan"),
    "a path of torchdiffeq": ({"n": 5, "noise": "brownian", "solver": "rk4"}, "no plan"),
    "a path of generators": ({"n": 5, "noise": "brownian", "seed": generator()}, "give seeds"),
    "one generator for parts": ({"n": 5, "batch": 2, "seed": generator()}, "leave batch out"),
    "few generators": ({"n": 5, "seed": [generator()]}, "1 generators were given for 5"),
    "one generator twice": ({"n": 5, "seed": [generator()] * 5}, "given twice"),
    "generators and seeds": ({"n": 5, "seed": [generator(), 1, 2, 3, 4]}, "a seed"),
    "no seeds": ({"n": 5, "seed": []}, "0 seeds"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused(what):
    given, says = BAD[what]
    with pytest.raises(InputError, match=says):
        sample(**{"model": model(), "nfe": None, **given})
