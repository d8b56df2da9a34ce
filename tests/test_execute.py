"""run and sample: pure, batch-independent, without allocation; noise by seed; hooks."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffode import EpsModel, InputError, schedules
from diffode.models import pretrained
from diffode.noise import SeededNoise
from solvers import SOLVERS, encode, run, sample
from solvers.execute import Memory, loop
from solvers.hooks import Hooks, Observers
from solvers.registry import find
from tests import reference

SHAPE = (1, 28, 28)


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpm3", "dpmpp2m"])
def test_seed_7_is_the_same_image_in_any_batch_of_the_mixture(solver, mixture32):
    kw = {"solver": solver, "nfe": 12}
    alone = sample(mixture32, shape=(1, *SHAPE), seed=7, **kw).x[0]
    in_64 = sample(mixture32, shape=(64, *SHAPE), seed=0, **kw).x[7]
    second_batch = sample(mixture32, shape=(5, *SHAPE), seed=range(5, 10), **kw).x[2]
    assert torch.equal(alone, in_64)
    assert torch.equal(alone, second_batch)


def test_seed_7_is_the_same_image_in_any_batch_of_the_network():
    model = pretrained.load("fashion").model
    kw = {"solver": "dpmpp2m", "nfe": 8}
    alone = sample(model.labelled([7]), shape=(1, *SHAPE), seed=7, **kw).x[0]
    in_64 = sample(model.labelled([i % 10 for i in range(64)]), shape=(64, *SHAPE), seed=0, **kw).x[7]
    assert (alone - in_64).abs().max() < 1e-5  # convolutions of another batch size round differently


def test_noise_is_that_of_a_cpu_generator_per_seed():
    noise = SeededNoise([3, 8])
    like = torch.empty(2, 4, dtype=torch.float64)
    generator = torch.Generator().manual_seed(8)
    draws = [torch.randn(4, generator=generator).double() for _ in range(3)]
    assert torch.equal(noise(0, like)[1], draws[0])
    assert torch.equal(noise(2, like)[1], draws[2])  # a draw may be skipped, repeated, and gone back to
    assert torch.equal(noise(2, like)[1], draws[2])
    assert torch.equal(noise(1, like)[1], draws[1])


def test_noise_belongs_to_the_caller():
    """A draw that is kept is not overwritten by the next, also in the dtype and on the device it is made in."""
    noise, like = SeededNoise([3, 8]), torch.empty(2, 4)
    first = noise(0, like)
    before = first.clone()
    noise(1, like)
    assert torch.equal(first, before)
    assert noise(1, torch.empty(2, 5)).shape == (2, 5)


def test_each_step_of_ddpm_draws_its_own_noise(mixture64):
    """The run equals the paper's loop with draws 1, 2, ... of the seeds; reusing one draw, or x_T, would not."""
    schedule, seeds = mixture64.schedule, [4, 5]
    lams = np.linspace(-5, 4, 7)
    noise, x = SeededNoise(seeds), None
    x = noise(0, torch.empty(2, *SHAPE, dtype=torch.float64)) * float(schedule.sigma(-5))
    start = x.clone()
    for i in range(6):
        abar_s, abar_t = (float(schedule.alpha(lam)) ** 2 for lam in lams[i : i + 2])
        x = reference.ddpm_algorithm_2(abar_s, abar_t, "small", x, mixture64(x, lams[i]), noise(i + 1, x))
    result = run(find("ddpm").plan(lams, schedule), mixture64, start, Hooks(noise=SeededNoise(seeds)))
    torch.testing.assert_close(result.x, x, rtol=0, atol=1e-10)


def test_running_changes_nothing(mixture32):
    plan = find("dpmpp2m").plan(np.linspace(-5, 4, 8), mixture32.schedule)
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    before, text = x.clone(), str(plan)
    state = torch.get_rng_state()
    first, second = run(plan, mixture32, x), run(plan, mixture32, x)
    assert torch.equal(first.x, second.x)
    assert torch.equal(x, before)
    assert str(plan) == text
    assert torch.equal(torch.get_rng_state(), state)


class Allocations(TorchDispatchMode):
    """Counts the operators whose result has a storage that none of their inputs had."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in [*args, *(kwargs or {}).values()] if isinstance(t, torch.Tensor)}
        if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in given:
            self.count += 1
        return result


@pytest.mark.parametrize("solver", [name for name, entry in SOLVERS.items() if entry.has_plan])
def test_the_loop_allocates_nothing_after_its_first_steps(solver):
    """Twice the steps, not one more tensor: with a network that allocates nothing itself."""
    model = EpsModel(lambda x, t: x, schedules.ddpm_linear())
    counts = []
    for steps in (10, 20):
        plan = find(solver).plan(np.linspace(-5, 4.6, steps + 1), model.schedule)
        with Allocations() as allocations:
            run(plan, model, torch.ones(4, *SHAPE), Hooks(noise=lambda draw, like: like))
        counts.append(allocations.count)
    assert counts[0] == counts[1] > 0


def test_on_commit_replaces_the_state_before_it_is_evaluated(mixture32):
    seen = []

    def project(x, lam):
        seen.append(lam)
        return x.clamp(-2, 2)

    result = sample(mixture32, solver="dpm2", steps=5, shape=(2, *SHAPE), on_commit=project, trajectory=True)
    assert seen == result.plan.grid
    assert all(state.abs().max() <= 2 for _, state in result.trajectory)
    assert not torch.equal(result.x, sample(mixture32, solver="dpm2", steps=5, shape=(2, *SHAPE)).x)


def test_the_trajectory_is_the_committed_states(mixture32):
    result = sample(mixture32, solver="dpm3", steps=4, shape=(2, *SHAPE), trajectory=True)
    assert [lam for lam, _ in result.trajectory] == result.plan.grid
    assert torch.equal(result.trajectory[-1][1], result.x)
    assert len({state.data_ptr() for _, state in result.trajectory}) == 5


def test_design_md_section_2_works_as_it_stands():
    network = torch.nn.Conv2d(1, 1, 3, padding=1)
    model = EpsModel(lambda x, t: network(x), schedule=schedules.ddpm_linear(), predicts="noise")
    result = sample(model, solver="dpmpp2m", nfe=10, shape=(16, 1, 28, 28), seed=0)
    assert result.x.shape == (16, 1, 28, 28)
    assert result.nfe == 10
    assert result.plan.nfe == 10


def test_every_form_of_one_model_gives_the_same_result(mixture64):
    schedule = mixture64.schedule

    def network(form):
        def call(x, lam):
            return mixture64(x, float(lam[0]), form)

        return EpsModel(call, schedule, form, clock="lam")

    for solver in ("ddim", "ddpm", "dpm3", "dpmpp2m"):
        results = [
            sample(network(form), solver=solver, nfe=9, shape=(2, *SHAPE), dtype=torch.float64).x
            for form in ("noise", "data", "velocity", "flow")
        ]
        for other in results[1:]:
            torch.testing.assert_close(other, results[0], rtol=0, atol=1e-9)  # ε/α at λ = −5 costs two digits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_network_in_another_precision_runs(dtype):
    """x is cast at the call and back; the clock is of the weights' dtype or float32, whichever is wider; images stay close."""
    kw = {"solver": "dpmpp2m", "nfe": 8, "shape": (4, *SHAPE)}
    exact = sample(pretrained.load("fashion").model.labelled([0, 1, 2, 3]), **kw).x
    model = pretrained.load("fashion").model.to("cpu", dtype)
    seen = []
    forward = model.network.forward
    model.network.forward = lambda x, lam, y: (seen.append((x.dtype, lam.dtype)), forward(x, lam, y))[1]
    result = sample(model.labelled([0, 1, 2, 3]), **kw)
    assert result.x.dtype == torch.float32
    assert set(seen) == {(dtype, torch.promote_types(dtype, torch.float32))}
    assert (result.x - exact).square().mean().sqrt() < (0.15 if dtype == torch.bfloat16 else 1e-5)


def test_an_image_of_the_unet_depends_on_its_batch_by_rounding_alone():
    """README's measure is 4e-6 after 10 evaluations; the mixture's images are the same to the bit (test_mixture.py)."""
    model = pretrained.load("fashion").model

    def images(seeds):
        return sample(model.labelled(seeds), solver="dpmpp2m", nfe=4, shape=(len(seeds), *SHAPE), seed=seeds).x

    whole = images([*range(8)])
    for part in ([3], [0, 1, 2], [7, 2]):
        torch.testing.assert_close(images(part), whole[part], rtol=0, atol=2e-5)


def test_sampling_leaves_a_network_in_the_mode_it_was_in():
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.Dropout())
    modes = []
    network.register_forward_pre_hook(lambda module, _: modes.append(module.training))

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x, t):
            return self.inner(x)

    net = Net()
    sample(EpsModel(net, schedules.ddpm_linear()), nfe=3, shape=(1, *SHAPE))
    assert set(modes) == {False}
    assert net.training


def test_the_output_of_a_diffusers_network_is_taken_as_it_is():
    class Output:
        def __init__(self, sample):
            self.sample = sample

    bare, wrapped = (EpsModel(network, schedules.ddpm_linear()) for network in (lambda x, t: x, lambda x, t: Output(x)))
    kw = {"nfe": 4, "shape": (2, *SHAPE)}
    assert torch.equal(sample(bare, **kw).x, sample(wrapped, **kw).x)


def test_whole_labels_are_snapped_to():
    seen = []

    def network(x, t):
        seen.append(t)
        return 0.1 * x

    model = EpsModel(network, schedules.ddpm_linear(), clock="label")
    result = sample(model, solver="dpmpp2m", nfe=10, shape=(2, *SHAPE))
    assert all(t.dtype == torch.int64 for t in seen)
    np.testing.assert_allclose(model.schedule.lam([float(t[0]) for t in seen]), result.plan.grid[:-1], rtol=0, atol=1e-12)
    with pytest.raises(InputError, match="whose stages are all on it"):
        sample(model, solver="dpm2", nfe=10, shape=(2, *SHAPE))


def test_an_output_that_is_not_finite_is_named():
    def network(x, t):
        return x / (t[0] > 500)

    with pytest.raises(InputError, match=r"not finite at λ = -?\d.*evaluation \d+"), np.errstate(all="ignore"):
        sample(EpsModel(network, schedules.ddpm_linear()), solver="dpmpp2m", nfe=10, shape=(2, 3))


@pytest.mark.parametrize("solver", ["ddim", "dpm12", "bosh3"])
def test_encode_and_run_name_an_output_that_is_not_finite(solver):
    model, x = EpsModel(lambda x, t: x / (t[0] < 500), schedules.ddpm_linear()), torch.ones(2, 3)
    with pytest.raises(InputError, match=r"not finite at λ = -?\d.*evaluation \d+"), np.errstate(all="ignore"):
        encode(model, x, solver=solver)
    if solver == "ddim":
        with pytest.raises(InputError, match=r"not finite at λ = -5.05, evaluation 1:"):
            run(find(solver).plan([-5.05, 0.0, 4.0], model.schedule), EpsModel(lambda x, t: x / 0, model.schedule), x)
        with pytest.raises(InputError, match="the state to begin with, x, is not finite"):
            run(find(solver).plan([-5.0, 0.0, 4.0], model.schedule), model, x * torch.inf)


def test_a_stochastic_plan_wants_noise_and_a_plan_its_path(mixture32):
    x = torch.zeros(1, *SHAPE)
    with pytest.raises(InputError, match="draws noise"):
        run(find("ddpm").plan(np.linspace(-5, 4, 4), mixture32.schedule), mixture32, x)
    with pytest.raises(InputError, match="path"):
        run(find("ddim").plan(np.linspace(-4, 4, 4), schedules.edm()), mixture32, x)


def test_a_custom_grid_decides_the_steps(mixture32):
    lams = [-5.0, -2.0, 0.5, 3.0]
    assert sample(mixture32, solver="ddim", grid=lams, shape=(1, *SHAPE)).plan.grid == lams
    assert sample(mixture32, solver="dpm2", grid=lams, nfe=6, shape=(1, *SHAPE)).nfe == 6
    with pytest.raises(InputError, match="spends 6"):
        sample(mixture32, solver="dpm2", grid=lams, nfe=4, shape=(1, *SHAPE))
    with pytest.raises(InputError, match="not both"):
        sample(mixture32, nfe=4, steps=4, shape=(1, *SHAPE))


def test_the_whole_loop_runs_on_the_device_of_its_state():
    """On "meta" every tensor that were made on the host by mistake would raise at its first meeting with the state."""
    network = torch.nn.Conv2d(1, 1, 3, padding=1, device="meta")
    model = EpsModel(lambda x, t: network(x) + t[:, None, None, None], schedules.ddpm_linear())
    for solver in ("ddim", "dpm3", "dpmpp2m"):
        assert sample(model, solver=solver, nfe=9, shape=(2, *SHAPE), device="meta").x.is_meta


@pytest.mark.parametrize("solver", ["unipc2", "sde-dpmpp2m"])
def test_gradients_flow_to_the_state_the_network_and_the_plan(solver):
    """differentiable=True: autograd's derivatives by x, by a weight of the network and by numbers of the plan are the numerical
    ones. The plan's are shifted so that they keep their sum, and with it the transfer law: that is how weights are fitted."""
    schedule = schedules.vp_linear()
    plan = find(solver).plan(np.linspace(-2, 2, 5), schedule)
    row = next(i for i, stage in enumerate(plan.stages) if len(stage.c) > 1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, dtype=torch.float64, generator=generator).requires_grad_()
    weight, shift = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.3, 0.05))

    def result(x, weight, shift):
        stages = list(plan.stages)
        (j, c_j), (k, c_k), *others = stages[row].c.items()
        stages[row] = dataclasses.replace(stages[row], c={j: c_j + shift, k: c_k - shift, **dict(others)})
        model = EpsModel(lambda x, t: torch.tanh(weight * x), schedule)
        tuned = dataclasses.replace(plan, stages=tuple(stages))
        return run(tuned, model, x, Hooks(noise=SeededNoise([1, 2])), differentiable=True).x

    assert torch.autograd.gradcheck(result, (x, weight, shift))
    assert not run(plan, EpsModel(lambda x, t: weight * x, schedule), x, Hooks(noise=SeededNoise([1, 2]))).x.requires_grad


def test_gradients_flow_through_hooks_guidance_and_conversions(toy):
    """The model's own arithmetic, which works in place, leaves autograd what it needs."""
    schedule = schedules.vp_linear()

    def network(x, t, y=None):
        return torch.tanh(x) * (0.5 if y is None else 0.7)

    x = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    plan = find("dpmpp2m").plan(np.linspace(-1, 2, 4), schedule)
    model = EpsModel(network, schedule, "velocity").labelled([0, 1]).guided(2.0).clipped(3.0)
    assert torch.autograd.gradcheck(lambda x: run(plan, model, x, differentiable=True).x, (x,))


def test_the_differentiable_run_is_the_run(mixture64):
    plan = find("unipc3").plan(np.linspace(-4, 4, 9), mixture64.schedule)
    x = torch.randn(2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(run(plan, mixture64, x, differentiable=True).x, run(plan, mixture64, x).x, rtol=0, atol=1e-12)


def test_it_runs_in_inference_mode(mixture32):
    kw = {"solver": "unipc3", "nfe": 8, "shape": (2, *SHAPE)}
    with torch.inference_mode():
        result = sample(mixture32, **kw)
    assert result.x.is_inference()
    assert torch.equal(result.x, sample(mixture32, **kw).x)


TRACED = ("dpm3", "dpmpp3m", "unipc3", "pndm")  # one after the other, of earlier steps, corrected, of two kinds


@pytest.mark.parametrize(
    "solver",
    [
        pytest.param(name, marks=[] if name in TRACED else pytest.mark.slow)
        for name, entry in SOLVERS.items()
        if entry.has_plan and not entry.stochastic
    ],
)
def test_the_loop_is_one_graph(solver):
    """torch.compile(fullgraph=True) takes it; nothing is compiled again by the second run."""
    from torch._dynamo.testing import CompileCounter  # here, since it takes as long to load as torch

    schedule = schedules.vp_linear()
    plan = find(solver).plan(np.linspace(-4, 4, 5), schedule)
    model = EpsModel(lambda x, t: torch.tanh(x) * torch.cos(t)[:, None], schedule)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    evaluate, observers = model.bind([stage.lam for stage in plan.stages if stage.evaluate], x, plan.prediction), Observers(plan)
    torch._dynamo.reset()
    graphs = CompileCounter()
    compiled = torch.compile(lambda x: loop(plan, evaluate, x, observers, reuse=False), fullgraph=True, backend=graphs)
    for k in (1, 3):
        torch.testing.assert_close(compiled(k * x), run(plan, model, k * x).x, rtol=0, atol=1e-10)
    assert graphs.frame_count == 1


class Outputs:
    """A network that returns 0.3 x: in new memory, or always in the same memory; with what it has returned."""

    def __init__(self, where):
        self.where, self.memory, self.returned = where, None, []

    def __call__(self, x, t):
        if self.where == "new":
            out = 0.3 * x
        else:
            self.memory = torch.empty_like(x) if self.memory is None else self.memory
            out = torch.mul(x, 0.3, out=self.memory)
        self.returned.append(out)
        return out


@pytest.mark.parametrize("solver", ["ddim", "unipc3", "dpm3", "rk:rk4"])
def test_a_network_that_reuses_its_memory(solver):
    """As CUDA graphs do: its outputs are copied, and the history is not overwritten."""
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    plan = find(solver).plan(np.linspace(-5, 4.6, 9), schedules.ddpm_linear())
    predicts = plan.prediction
    fresh, static = (run(plan, EpsModel(Outputs(w), schedules.ddpm_linear(), predicts), x.clone()).x for w in ("new", "same"))
    assert torch.equal(fresh, static)
    graph = EpsModel(Outputs("same"), schedules.ddpm_linear(), predicts)
    assert torch.equal(run(plan, graph, x, differentiable=True).x.detach(), run(plan, graph, x, differentiable=True).x)


def test_what_a_network_returns_is_kept_and_not_copied():
    """All outputs but the first, of which it is not known yet whether the network reuses its memory; and none is written to."""
    network, kept = Outputs("new"), []
    model = EpsModel(network, schedules.ddpm_linear(), "data")
    plan = find("dpmpp2m").plan(np.linspace(-5, 4.6, 9), model.schedule)
    evaluate = model.bind([stage.lam for stage in plan.stages if stage.evaluate], torch.ones(2, *SHAPE), "data")
    assert evaluate.passes_through
    memory = Memory(plan, evaluate, torch.ones(2, *SHAPE), reuse=True)
    for i in range(4):
        u = torch.full((2, *SHAPE), float(i))
        kept.append(memory.store(evaluate(u, i, memory.buffer()), u))
    assert [a is b for a, b in zip(kept, network.returned, strict=True)] == [False, True, True, True]
    run(plan, model, torch.ones(2, *SHAPE))
    assert all(torch.equal(a, b) for a, b in zip(kept, network.returned[:4], strict=True))


def test_an_evaluation_may_be_written_to():
    """What model(x, λ) returns is the caller's, whatever the network returned."""
    constant = torch.ones(2, 3)
    model = EpsModel(lambda x, t: constant, schedules.ddpm_linear())
    model(torch.zeros(2, 3), 0.0).mul_(7)
    model.at(torch.zeros(2, 3), [0.0, 1.0]).mul_(7)
    assert torch.equal(constant, torch.ones(2, 3))


def test_on_step_sees_every_committed_state_and_x0_hat(mixture64):
    steps = []

    def see(step):
        steps.append((step.index, step.lam, step.x.clone(), None if step.x0 is None else step.x0.clone()))

    result = sample(mixture64, solver="ddim", steps=5, shape=(2, *SHAPE), dtype=torch.float64, on_step=see, trajectory=True)
    assert [lam for _, lam, _, _ in steps] == result.plan.grid
    assert [index for index, *_ in steps] == list(range(6))
    assert steps[0][3] is None
    for (_, lam, x, _), (_, lam_kept, kept) in zip(steps, [(i, *pair) for i, pair in enumerate(result.trajectory)], strict=True):
        assert lam == lam_kept
        assert torch.equal(x, kept)
    for (_, lam, x, _), (*_, x0) in pairwise(steps):  # x̂0 at the state before, which this step was made with
        torch.testing.assert_close(x0, mixture64(x, lam, "data"), rtol=0, atol=1e-9)
