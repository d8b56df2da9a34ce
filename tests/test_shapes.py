"""Samples of any shape: where every number of a sample goes its own way, its shape is a name, and a state (batch, *shape)
leads to the same numbers as (batch, d), to the bit, whatever is done with it."""

import math

import pytest
import torch

from diffode import EpsModel, encode, log_likelihood, sample, schedules
from diffode.mixture import Mixture
from diffode.noise import SeededNoise
from diffode.ode import accurate
from solvers import Hooks, find, run

BATCH = 2
SHAPES = {
    "number": (),
    "point": (2,),
    "vector": (7,),
    "signal": (2, 5),
    "latent": (4, 2, 2),
    "video": (3, 1, 2, 2),
}


def network(x, lam):
    """Predicts v of a sine of x: every number alone, and nothing linear."""
    return (x + lam.view(-1, *[1] * (x.ndim - 1))).sin()


MODEL = EpsModel(network, schedules.vp_linear(), "velocity", clock="lam")
LOOSE = {"rtol": 0.05, "atol": 0.05}
ENTRIES = {
    "evaluate": lambda model, x: model(x, 0.5),
    "evaluate at": lambda model, x: model.at(x, [0.0, 1.0], "data"),
    "clipped": lambda model, x: model.clipped(0.3)(x, 0.5),
    "thresholded": lambda model, x: model.thresholded(0.7, bound=0.1)(x, 0.5),
    "planned": lambda model, x: sample(model, x=x, solver="dpmpp2m", nfe=3).x,
    "stochastic": lambda model, x: sample(model, x=x, solver="ddpm", nfe=3).x,
    "noise": lambda model, x: sample(model, shape=x.shape, solver="ddim", nfe=2, seed=[7, 3]).x,
    "trajectory": lambda model, x: torch.stack([state for _, state in sample(model, x=x, nfe=2, trajectory=True).trajectory], 1),
    "adaptive": lambda model, x: sample(model, x=x, solver="dpm12", **LOOSE).x,
    "torchdiffeq": lambda model, x: sample(model, x=x, solver="bosh3", **LOOSE).x,
    "torchdiffeq alone": lambda model, x: sample(model, x=x, solver="bosh3", per_sample=True, **LOOSE).x,
    "encode": lambda model, x: encode(model, x, solver="dpm2", nfe=4).x,
    "run": lambda model, x: run(find("ddim").plan([-2.0, 0.0, 2.0], MODEL.schedule), model, x, Hooks(SeededNoise([0, 1]))).x,
    "exact likelihood": lambda model, x: log_likelihood(model, x, encode, probes=0, nfe=3).log_p,
    "estimated likelihood": lambda model, x: log_likelihood(model, x, encode, probes=2, nfe=3).log_p,
    "reference": lambda model, x: accurate(model, x, -1.0, 1.0, 1e-4),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("entry", ENTRIES)
def test_a_shape_is_a_name(entry, shape):
    x = SeededNoise([0, 1])(0, torch.empty(BATCH, math.prod(shape), dtype=torch.float64))
    flat = ENTRIES[entry](MODEL, x)
    shaped = ENTRIES[entry](MODEL, x.view(BATCH, *shape))
    assert shaped.shape == flat.shape if flat.shape[-1:] != x.shape[1:] else shaped.shape == (*flat.shape[:-1], *shape)
    assert torch.equal(shaped.reshape(flat.shape), flat)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_density_of_samples_of_any_shape(shape):
    """Of a mixture of two Gaussians, as the network and as its likelihood."""
    d = math.prod(shape)
    tensors = {
        "log_pi": torch.tensor([0.5, 0.5]).log(),
        "mean": torch.stack([torch.full((d,), 0.5), torch.full((d,), -0.5)]),
        "basis": torch.eye(d)[:, :1].expand(2, d, 1).contiguous(),
        "along": torch.full((2, 1), 0.04),
        "floor": torch.full((2,), 0.04),
        "label": torch.tensor([0, 1]),
    }
    mixture = Mixture(tensors, shape, dtype=torch.float64)
    model = EpsModel(mixture, schedules.vp_linear(), "velocity", clock="lam", shape=shape)
    x0 = mixture.sample(BATCH)
    assert x0.shape == (BATCH, *shape)
    found = log_likelihood(model, x0, encode, probes=0, solver="dpm3", nfe=60).log_p
    alpha, lam = float(model.schedule.alpha(model.schedule.lam_max)), model.schedule.lam_max
    expected = mixture.log_density(alpha * x0, torch.full((BATCH,), lam, dtype=torch.float64)) + d * math.log(alpha)
    assert (found - expected).abs().max() < 1e-2 * d
