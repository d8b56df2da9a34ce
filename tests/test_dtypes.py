"""Numbers: a module's clock and x are of its weights' dtype, the state is of its own, and whatever their dtypes, all run."""

import pytest
import torch
from torch import nn

from diffode import EpsModel, encode, log_likelihood, sample, schedules
from diffode.noise import SeededNoise
from diffode.ode import accurate
from solvers import Hooks, find, run

SHAPE = (2, 1, 4, 4)
SCHEDULE = schedules.ddpm_linear()
MODEL = EpsModel(lambda x, t: x.tanh(), SCHEDULE, "velocity")


class Concatenated(nn.Sequential):
    """The clock as a channel, as README's network has it."""

    def forward(self, x, t):
        return super().forward(torch.cat([x, t.view(-1, 1, 1, 1).expand_as(x) / 1000], dim=1))


class Sinusoids(nn.Module):
    """The clock as plain sinusoids, computed in its dtype, which meet the weights of a linear layer."""

    def __init__(self):
        super().__init__()
        self.embed, self.first = nn.Linear(8, 4), nn.Conv2d(1, 4, 3, padding=1)
        self.norm, self.last = nn.GroupNorm(2, 4), nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x, t):
        assert t.dtype == torch.promote_types(self.embed.weight.dtype, torch.float32)
        angles = t[:, None] * torch.exp(-torch.arange(4.0, device=t.device))
        embedded = self.embed(torch.cat([angles.sin(), angles.cos()], 1))[:, :, None, None]
        return self.last(nn.functional.silu(self.norm(self.first(x)) + embedded))


def model_in(network, dtype):
    torch.manual_seed(0)
    made = Concatenated(nn.Conv2d(2, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 1, 3, padding=1))
    made = Sinusoids() if network == "sinusoids" else made
    return EpsModel(made.requires_grad_(False).to(dtype), SCHEDULE, "velocity")


def data(dtype):
    return SeededNoise([0, 1])(0, torch.empty(SHAPE, dtype=dtype))


LOOSE = {"rtol": 0.05, "atol": 0.05}
ENTRIES = {
    "evaluate": lambda model, dtype: model(data(dtype), 0.0),
    "evaluate at": lambda model, dtype: model.at(data(dtype), [0.0, 1.0], "data"),
    "planned": lambda model, dtype: sample(model, x=data(dtype), solver="dpmpp2m", nfe=3).x,
    "stochastic": lambda model, dtype: sample(model, x=data(dtype), solver="ddpm", nfe=3).x,
    "adaptive": lambda model, dtype: sample(model, x=data(dtype), solver="dpm12", **LOOSE).x,
    "black box": lambda model, dtype: sample(model, x=data(dtype), solver="bosh3", **LOOSE).x,
    "per sample": lambda model, dtype: sample(model, x=data(dtype), solver="bosh3", per_sample=True, **LOOSE).x,
    "encode": lambda model, dtype: encode(model, data(dtype), solver="dpm2", nfe=4).x,
    "run": lambda model, dtype: run(find("ddim").plan([-2.0, 0.0, 2.0], SCHEDULE), model, data(dtype)).x,
    "gradients": lambda model, dtype: (
        run(find("ddim").plan([-2.0, 0.0, 2.0], SCHEDULE), model, data(dtype).requires_grad_(), Hooks(), differentiable=True).x
    ),
    "clipped": lambda model, dtype: model.clipped()(data(dtype), 0.0),
}
IN_DOUBLE = {
    "likelihood": lambda model, dtype: log_likelihood(model, data(dtype), encode, solver="dpm2", nfe=2).log_p,
    "likelihood, exact trace": lambda model, dtype: log_likelihood(model, data(dtype), encode, nfe=2, probes=0).log_p,
    "likelihood, adaptive": lambda model, dtype: log_likelihood(model, data(dtype), encode, solver="dpm12", **LOOSE).log_p,
    "accurate": lambda model, dtype: accurate(model, data(dtype), 0.0, 0.5, 1e-3),
}

ADAPTIVE = "adaptive", "black box", "per sample", "likelihood, adaptive"


@pytest.mark.parametrize("entry", [*ENTRIES, *IN_DOUBLE])
@pytest.mark.parametrize("network", ["concatenated", "sinusoids"])
def test_every_entry_point_takes_every_module_and_state(entry, network):
    """And gives what the module in float64 does, but for the rounding of the dtypes; in the dtype of the state."""
    call = {**ENTRIES, **IN_DOUBLE}[entry]
    exact = call(model_in(network, torch.float64), torch.float64)
    for dtype in (torch.float32, torch.float64):
        found = call(model_in(network, torch.float32), dtype)
        assert found.dtype == (torch.float64 if entry in IN_DOUBLE else dtype)
        close = 0.2 if entry in ADAPTIVE else 1e-3  # rounding decides there which steps are taken, at a tolerance of 0.05
        assert abs(found - exact).max() < close * max(1, abs(exact).max())
    for half in (torch.bfloat16, torch.float16):
        if entry != "accurate":  # which no rounded network is smooth enough for
            found = call(model_in(network, half), torch.float32)
            assert abs(found - exact).max() < 0.2 * max(1, abs(exact).max())


@pytest.mark.parametrize("solver", ["ddim", "dpmpp2m", "ddpm", "dpm12", "bosh3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_state_in_half_precision_is_integrated_in_float32(solver, dtype):
    """So its result is that of the same x in float32, rounded once, in both directions."""
    model, x = MODEL, data(dtype)
    options = LOOSE if solver in ("dpm12", "bosh3") else {"nfe": 20}
    calls = [lambda x: sample(model, x=x, solver=solver, **options), lambda x: encode(model, x, solver=solver, **options)]
    for call in calls[: 1 if solver == "ddpm" else 2]:
        found = call(x).x
        assert found.dtype == dtype
        assert torch.equal(found, call(x.float()).x.to(dtype))
    if solver in ("ddim", "dpmpp2m"):
        plan = find(solver).plan([-2.0, 0.0, 2.0], SCHEDULE)
        assert torch.equal(run(plan, model, x).x, run(plan, model, x.float()).x.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_module_in_half_precision_sees_its_own_dtype_and_a_clock_in_float32(dtype):
    """Its linear layers compute in its dtype, under autocast; a function is called with what it got before."""
    model, seen = model_in("sinusoids", dtype), []
    model.network.first.register_forward_hook(lambda module, args, made: seen.append((args[0].dtype, made.dtype)))
    model(data(torch.float32), 0.0)
    assert seen == [(dtype, dtype)]
    plain = EpsModel(lambda x, t: seen.append((x.dtype, t.dtype)) or x, SCHEDULE)
    for state, clock in ((dtype, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)):
        plain(data(state), 0.0)
        assert seen[-1] == (state, clock)
    assert not torch.is_autocast_enabled("cpu")


def test_an_expanded_x_and_one_that_takes_gradients_are_left_alone():
    """Memory that several samples share is not written to, and what is returned shares none with it."""
    row = data(torch.float32)[:1]
    for x in (row.expand(3, 1, 4, 4), row.repeat(3, 1, 1, 1).mT, row.repeat(3, 1, 1, 1).requires_grad_()):
        before = x.detach().clone()
        for solver, options in (("ddim", {"nfe": 3}), ("dpmpp2m", {"nfe": 3}), ("dpm12", LOOSE), ("bosh3", LOOSE)):
            for call in (encode, lambda model, x, **how: sample(model, x=x, **how)):
                found = call(MODEL, x, solver=solver, **options).x
                assert torch.equal(x, before)
                assert not found.requires_grad
                assert found.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
                torch.testing.assert_close(found, call(MODEL, before.contiguous(), solver=solver, **options).x)
