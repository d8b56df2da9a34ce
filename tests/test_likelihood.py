"""log p by the ODE: the exact log-density, of the order of its solver, unbiased by Hutchinson; and bits of pixels."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from diffode import EpsModel, InputError, grid, schedules
from diffode.density import WithDensity
from diffode.images import datasets
from diffode.images.datasets import to_pixels
from diffode.likelihood import Likelihood, dequantised, log_likelihood, normal, random_signs
from diffode.mixture import Mixture
from diffode.models import checkpoint, pretrained
from diffode.models.card import Card
from diffode.networks.unet import UNet, UNetConfig
from experiments.common import results
from experiments.ddim_paper import likelihood as experiment
from solvers import encode, sample, sample_with_log_p

LABELS = torch.tensor([0, 1, 1, 0])
WINDOW = (-1.0, 1.0)  # of λ, where orders are measured


def at(lam, x):
    return torch.full((len(x),), lam, dtype=x.dtype)


def exact_end(network, y=None):
    return lambda x, lam: network.log_density(x, at(lam, x), y)


def truth(model, x0, lam, y=None):
    """The exact log-density of x/α at λ."""
    alpha = float(model.schedule.alpha(lam))
    return model.network.log_density(alpha * x0, at(lam, x0), y) + x0[0].numel() * math.log(alpha)


def error(model, x0, y=None, **how):
    """Of log p, with the exact one at λ_min, (batch,)."""
    lam = how["grid"][-1] if "grid" in how else model.schedule.lam_max
    asked = model if y is None else model.labelled(y)
    found = log_likelihood(asked, x0, encode, probes=0, end=exact_end(model.network, y), **how)
    return found.log_p - truth(model, x0, lam, y)


def as_network(model):
    """The mixture as a function: nothing in closed form."""
    return EpsModel(lambda x, lam, y=None: model.network(x, lam, y), model.schedule, model.predicts, clock="lam", classes=2)


@pytest.fixture(scope="module")
def pooled(mixture64):
    """The shipped mixture at 4 × 4 pixels."""
    network = mixture64.network.pooled(7)
    network.rows = 4
    return EpsModel(network, mixture64.schedule, "velocity", clock="lam", classes=10)


# The divergence in closed form


@pytest.mark.parametrize("label", [None, 0, 1])
@pytest.mark.parametrize("path", ["vp", "ve", "flow"])
def test_divergence_is_the_trace_of_the_jacobian(toy, path, label):
    check_divergence(toy(path).network, label, 1e-11)


@pytest.mark.parametrize("label", [None, 7])
def test_divergence_of_a_pooled_mixture(pooled, label):
    check_divergence(pooled.network, label, 1e-8)  # floors are 1e-4: inverse variances of 1e4, and their squares


def check_divergence(network, label, atol):
    x = network.sample(3, seed=2)
    y = None if label is None else torch.full((3,), label)
    for lam in (-5.0, -1.0, 0.7, 4.6):
        jacobians = torch.autograd.functional.jacobian(lambda x, lam=lam: network(x, at(lam, x), y).sum(0), x)
        traces = jacobians.reshape(x[0].numel(), 3, -1).diagonal(dim1=0, dim2=2).sum(1)
        torch.testing.assert_close(network.divergence(x, at(lam, x), y), traces, rtol=0, atol=atol)


# Exactness


@pytest.mark.parametrize(
    ("solver", "how"),
    [
        ("dopri5", {"rtol": 1e-8, "atol": 1e-8}),
        ("dopri5", {"rtol": 1e-8, "atol": 1e-8, "variable": "t"}),
        ("dopri8", {"rtol": 1e-8, "atol": 1e-8, "variable": "sigma_bar"}),
        ("dpm23", {"rtol": 1e-6, "atol": 1e-6}),
        ("unipc3", {"nfe": 256}),
        ("dpm3", {"nfe": 600}),
    ],
)
def test_log_p_is_the_exact_log_density(toy, pooled, solver, how):
    """To 1e-4 nats, absolute, by plans in both predictions, adaptive pairs, and black boxes in every variable."""
    model = toy() if solver == "dpm23" or "variable" in how else pooled  # a clock in t that is smooth; fewer steps
    model.network.rows = 4
    assert error(model, model.network.sample(4, seed=3), solver=solver, **how).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("solver", "how"),
    [pytest.param("dopri5", {"rtol": 1e-9, "atol": 1e-9}, marks=pytest.mark.slow), ("unipc3", {"nfe": 320})],
)
def test_log_p_is_the_exact_log_density_of_the_shipped_mixture(solver, how):
    """On 784 pixels, of log p of some hundred nats: to 1e-4 nats, conditionally on the label."""
    model = pretrained.load("mixture", torch.float64).model
    model.network.rows = 2
    x0 = torch.cat([model.network.sample(1, seed=3, y=label) for label in (3, 7)])
    assert error(model, x0, torch.tensor([3, 7]), solver=solver, **how).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("path", "solver", "order"),
    [
        ("vp", "ddim", 1),
        ("flow", "dpm2", 2),
        ("ve", "dpmpp2m", 2),
        ("ve", "dpm3", 3),
        ("flow", "dpmpp3s", 3),
        ("vp", "unipc3", 4),
    ],
)
def test_log_p_has_the_order_of_its_solver(toy, path, solver, order):
    """It is one more coordinate of the state, so what holds of the state holds of it."""
    model, options = toy(path), {"start": "single"} if solver == "unipc3" else {}
    x0, errors = model.network.sample(8, seed=1), []
    for steps in (25, 50) if order > 2 else (50, 100):
        grid = np.linspace(*WINDOW, steps + 1).tolist()
        errors.append(error(model, x0, solver=solver, grid=grid, **options).square().mean().sqrt())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp2m", "dpm3"])
def test_data_of_unit_variance_keeps_its_density(solver):
    """N(0, I) stays so on the vp path: T = 0, and ℓ is what it was, after a single step of any solver."""
    tensors = {
        "log_pi": torch.zeros(1),
        "mean": torch.zeros(1, 6),
        "basis": torch.eye(6)[None, :, :1],
        "along": torch.zeros(1, 1),
    }
    network = Mixture({**tensors, "floor": torch.ones(1), "label": torch.zeros(1, dtype=torch.long)}, (6,), dtype=torch.float64)
    flow = WithDensity.of(EpsModel(network, schedules.vp_linear(), "velocity", clock="lam"), (6,))
    lam_min, lam_max = flow.schedule.lam_min, flow.schedule.lam_max
    result = encode(flow, flow.join(network.sample(4), 1.7, lam_max), solver=solver, steps=1)
    torch.testing.assert_close(flow.split(result.x, lam_min)[1], torch.full((4, 1), 1.7).double(), rtol=0, atol=1e-6)


def test_the_normal_end_is_nearly_exact(toy):
    """N(0, σ² I) for the diffused data at λ_min: for data of mean square m in d numbers the two differ by O(α (1 + m))."""
    model = toy()
    x0 = model.network.sample(8, seed=3)
    found = log_likelihood(model, x0, encode, probes=0, solver="unipc3", nfe=96)
    off = found.log_p - truth(model, x0, model.schedule.lam_max)
    lam = model.schedule.lam_min
    ends = normal(found.x, float(model.schedule.sigma(lam))) - exact_end(model.network)(found.x, lam)
    torch.testing.assert_close(off, ends, rtol=0, atol=1e-4)
    assert 1e-4 < off.abs().max() < 10 * float(model.schedule.alpha(lam))


def test_samples_have_the_density_that_encoding_finds(toy):
    """From noise to data, ℓ carried along from its prior, and back."""
    model, shape = toy(), (1, 2, 3)
    lam_min, lam_max = model.schedule.lam_min, model.schedule.lam_max
    flow = WithDensity.of(model, shape)
    noise = torch.randn(4, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start = flow.join(noise, normal(noise, float(model.schedule.sigma(lam_min)))[:, None], lam_min)
    x, ell = flow.split(sample(flow, x=start, solver="unipc3", nfe=200).x, lam_max)
    alpha = float(model.schedule.alpha(lam_max))
    found = log_likelihood(model, x / alpha, encode, probes=0, solver="unipc3", nfe=200)
    torch.testing.assert_close(found.x, noise, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.log_p - 6 * math.log(alpha), ell[:, 0], rtol=0, atol=1e-4)


# The trace by products


def test_the_trace_by_products_is_the_closed_one(toy):
    model = toy().labelled(LABELS)
    x0 = model.network.sample(4, seed=5)
    closed, products = (
        log_likelihood(m, x0, encode, probes=0, solver="dpm3", nfe=12) for m in (model, as_network(toy()).labelled(LABELS))
    )
    torch.testing.assert_close(products.log_p, closed.log_p, rtol=0, atol=1e-9)
    assert closed.stderr.tolist() == products.stderr.tolist() == [0.0] * 4


@pytest.mark.parametrize("native", ["noise", "data", "flow", "score"])
def test_any_prediction_has_the_same_density(toy, native):
    model = toy()

    def network(x, lam):
        return model(x, float(lam[0]), native)

    x0 = model.network.sample(2, seed=5)
    other = EpsModel(network, model.schedule, native, clock="lam")
    expected, found = (log_likelihood(m, x0, encode, probes=0, solver="dpmpp2m", nfe=10) for m in (model, other))
    torch.testing.assert_close(found.log_p, expected.log_p, rtol=0, atol=1e-7)  # at λ_min, ε has σ/α = 150 times x̂0's rounding


@pytest.mark.parametrize("change", [lambda model: model.guided(2.0), lambda model: model.clipped(0.5)], ids=["guided", "clipped"])
def test_what_acts_on_the_model_is_in_the_trace(toy, change):
    """Guidance and clipping have no closed form here; the coordinate's ε is −(α/s)² tr ∂T/∂x all the same."""
    model, lam = change(toy().labelled(LABELS)), 0.5
    x = toy().network.sample(4, seed=5)
    flow = WithDensity.of(model, x.shape[1:])
    jacobians = torch.autograd.functional.jacobian(lambda x: model(x, lam, "tangent").sum(0), x)
    traces = jacobians.reshape(6, 4, 6).diagonal(dim1=0, dim2=2).sum(1)
    eps = flow(flow.join(x, 0.0, lam), lam)[:, 6]
    torch.testing.assert_close(eps, -(float(model.schedule.alpha(lam)) ** 2) * traces, rtol=0, atol=1e-12)
    torch.testing.assert_close(flow(flow.join(x, 1.7, lam), lam)[:, :6], model(x, lam).flatten(1), rtol=0, atol=1e-12)


def test_any_orthogonal_probes_together_are_the_trace(toy):
    """(1/k) Σ vᵀ J v = tr J where (1/k) Σ v vᵀ = I, and log p is linear in it: the mean over the coordinates is exact."""
    model = toy()
    x0, lam = model.network.sample(3, seed=6), model.schedule.lam_max
    vectors = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
    probes = math.sqrt(6) * vectors.view(6, 1, 1, 2, 3).expand(6, 3, 1, 2, 3)
    gains = []
    for flow in (WithDensity.of(model, (1, 2, 3), probes), WithDensity.of(model, (1, 2, 3))):
        result = encode(flow, flow.join(x0, 0.0, lam), solver="dpm2", nfe=10)
        gains.append(flow.split(result.x, model.schedule.lam_min)[1])
    assert gains[0].shape == (3, 6)
    assert gains[0].std(1).min() > 0.01
    torch.testing.assert_close(gains[0].mean(1), gains[1][:, 0], rtol=0, atol=1e-10)


def test_hutchinson_is_unbiased_and_knows_its_error(toy):
    model = toy()
    x0 = model.network.sample(4, seed=6).repeat(25, 1, 1, 1)
    exact, found = (log_likelihood(model, x0, encode, probes=probes, solver="dpm2", nfe=10) for probes in (0, 25))
    off = ((found.log_p - exact.log_p) / found.stderr).view(25, 4)
    assert (off.mean(0).abs() < 4.5 / math.sqrt(25)).all()
    assert (off.square().mean(0) - 1).abs().max() < 4.5 * math.sqrt(2 / 25)
    torch.testing.assert_close(found.x, exact.x, rtol=0, atol=1e-12)  # the trajectory does not see the probes


@pytest.mark.parametrize(
    ("solver", "how"),
    [
        ("dpmpp2m", {"nfe": 10}),
        ("dpm23", {"rtol": 1e-2, "atol": 1e-2}),
        ("dopri5", {"rtol": 1e-2, "atol": 1e-2, "per_sample": True}),
    ],
)
def test_a_seed_is_a_probe_in_any_batch(toy, solver, how):
    """Conditions and probes follow their rows, also where an adaptive pair takes some of them."""
    x0, model = toy().network.sample(4, seed=6), as_network(toy())

    def estimate(chosen, seeds, probes=2):
        labelled = model.labelled(LABELS[chosen])
        return log_likelihood(labelled, x0[chosen], encode, probes=probes, seed=seeds, solver=solver, **how)

    whole = estimate([0, 1, 2, 3], [5, 6, 7, 8])
    some = estimate([3, 1], [8, 6])
    torch.testing.assert_close(whole.log_p[[3, 1]], some.log_p, rtol=0, atol=1e-9)
    torch.testing.assert_close(whole.stderr[[3, 1]], some.stderr, rtol=0, atol=1e-9)
    assert ((estimate([0, 1, 2, 3], 9).log_p - whole.log_p).abs() > 1e-3).all()
    assert estimate([0], [5], probes=1).stderr.isnan().all()


def test_signs():
    signs = random_signs(100, torch.zeros(3, 1, 2, 3), [4, 5, 4])
    assert signs.shape == (100, 3, 1, 2, 3)
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}
    assert torch.equal(signs[:, 0], signs[:, 2])
    correlation = np.corrcoef(signs[:, :2].reshape(100, 12).T.numpy()) - np.eye(12)
    assert abs(correlation).max() < 4.5 / 10


# Networks


@pytest.fixture(scope="module")
def unet():
    """A small U-Net in float32 that is not zero at its head."""
    network = UNet(UNetConfig((1, 4, 4), 3, width=16, multipliers=(1,), attention=()))
    generator = torch.Generator().manual_seed(0)
    for weights in network.parameters():
        torch.nn.init.normal_(weights, std=0.05, generator=generator)
    return network.requires_grad_(False)


def test_a_network_in_float32(unet):
    """log p in float64, by probes within their error of the exact trace; the network is left in the mode it was in."""
    model = EpsModel(unet.train(), schedules.ddpm_linear(), "velocity", clock="lam", classes=3).labelled([0, 2])
    x0 = dequantised(np.random.default_rng(0).integers(0, 256, (2, 4, 4, 1), np.uint8))
    exact, found = (log_likelihood(model, x0, encode, probes=probes, solver="dpm2", nfe=8) for probes in (0, 100))
    assert found.log_p.dtype == torch.float64
    assert ((found.log_p - exact.log_p).abs() < 4.5 * found.stderr).all()
    assert unet.training
    assert all(not weights.requires_grad for weights in unet.parameters())


def test_a_network_that_takes_labels(unet):
    """It is asked at whole labels, and the ends of the density are those of the snapped grid."""

    def network(x, t):
        return unet(x.float(), t.float() / 100).to(x.dtype)

    schedule, lams = schedules.ddpm_linear(), np.array([-4.0, -2.0, 0.0, 1.0, 3.0])
    by_label, by_t = (EpsModel(network, schedule, clock=clock) for clock in ("label", "t"))
    x0 = dequantised(np.random.default_rng(0).integers(0, 256, (2, 4, 4, 1), np.uint8))
    found = log_likelihood(by_label, x0, encode, solver="ddim", grid=lams)
    expected = log_likelihood(by_t, x0, encode, solver="ddim", grid=grid.snap(lams, schedule))
    torch.testing.assert_close(found.log_p, expected.log_p, rtol=0, atol=1e-3)  # float32 in the network
    assert (log_likelihood(by_t, x0, encode, solver="ddim", grid=lams).log_p - found.log_p).abs().min() > 1e-2


# Pixels


def test_dequantised_pixels_are_the_pixels_and_uniform():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1), np.uint8)
    x = dequantised(pixels, 7)
    u = ((x + 1) * 127.5 + 0.5 - torch.from_numpy(pixels).permute(0, 3, 1, 2)).flatten()
    assert u.min() >= -1e-9
    assert u.max() <= 1 + 1e-9
    counts, _ = np.histogram(u, 16, (0, 1))
    assert abs(counts - len(u) / 16).max() < 4.5 * math.sqrt(len(u) / 16)
    assert (to_pixels(x.double()) == pixels).mean() > 0.999  # but for u within rounding of an edge
    assert torch.equal(dequantised(pixels[[2, 0]], [9, 7]), x[[2, 0]])
    assert (dequantised(pixels, 8) - x).abs().max() > 0.005


def test_bits_per_dim_are_those_of_a_distribution_over_pixels():
    """Σ over the 256 values of E_u 2^(−bits) = 1 for a density that lives there, and E_u bits ≥ −log2 P(value): Jensen."""
    values, draws = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), 400
    x = dequantised(np.repeat(values, draws, 0)).view(draws, 256).mT
    density = torch.distributions.Normal(torch.tensor(0.1, dtype=torch.float64), 0.02)
    log_p = density.log_prob(x).reshape(-1)
    bits = Likelihood(log_p, torch.zeros_like(log_p), x.reshape(-1, 1), 0).bits_per_dim.view(256, draws)
    edges = (torch.arange(257, dtype=torch.float64) - 0.5) / 127.5 - 1
    exact = density.cdf(edges).diff()
    estimate = torch.exp2(-bits)
    assert abs(estimate.mean(1).sum() - 1) < 4.5 * (estimate.var(1) / draws).sum().sqrt()
    likely = exact > 1e-6
    assert (bits.mean(1)[likely] > -exact[likely].log2() - 4.5 * bits.std(1)[likely] / math.sqrt(draws)).all()
    assert (bits.mean(1)[likely] + exact[likely].log2()).max() > 0.01


# What is refused


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ({"probes": -1}, "`probes` must be a whole number from 0 to 10000, not -1"),
        ({"seed": [1]}, "1 seeds were given for 4"),
        ({"solver": "dpm23", "max_nfe": 5}, "stopped before the noisy end"),
        ({"solver": "ddpm"}, "noise cannot be encoded"),
        ({"grid": [-1.0, np.inf]}, "finite ends"),
    ],
)
def test_refusals(toy, how, word):
    with pytest.raises(InputError, match=word):
        log_likelihood(toy(), torch.zeros(4, 1, 2, 3), encode, **{"solver": "ddim", **how})


def test_data_that_is_not_finite_is_refused(toy):
    with pytest.raises(InputError, match="not finite"):
        log_likelihood(toy(), torch.full((1, 1, 2, 3), torch.nan), encode, solver="ddim", probes=0)


# The experiment


@pytest.mark.parametrize(("name", "kinds"), [("mixture", ["real", "own"]), ("network.safetensors", ["real"])])
def test_the_experiment(tmp_path, name, kinds, small_weights, monkeypatch):
    """On a mixture of few directions, and on a network of few weights."""
    monkeypatch.setattr(pretrained, "WEIGHTS", small_weights)
    monkeypatch.chdir(tmp_path)
    out, config = tmp_path / "likelihood", UNetConfig((1, 28, 28), 10, patch=4, width=16, multipliers=(1,), attention=())
    network, random = UNet(config), torch.Generator().manual_seed(0)
    for weight in network.parameters():
        weight.data += 0.05 * torch.randn(weight.shape, generator=random)  # new, it is zero
    model = EpsModel(network, schedules.ddpm_linear(), "velocity", clock="lam", classes=10, shape=config.image)
    card = Card.of(model, "unet", config=dataclasses.asdict(config), classes=datasets.packaged().classes)
    checkpoint.save("network.safetensors", network.state_dict(), card)
    args = ["--fast", "--model", name, "--out", str(out)]
    first = CliRunner().invoke(experiment.main, args)
    assert first.exit_code == 0, first.output
    _, found = results.read(out)
    assert list(dict.fromkeys(row["images"] for row in found)) == kinds
    assert all(row["spent"] == (row["nfe"] or row["spent"]) for row in found)
    if name == "mixture":
        assert all(abs(row["log_p"] - row["exact_log_p"]) <= row["rms"] <= row["worst"] for row in found)
    else:
        assert all(row["bits_se_probes"] > 0 and row["bits_se_draws"] > 0 for row in found)
    assert sorted(path.suffix for path in tmp_path.glob("likelihood.*")) == [".csv", ".json", ".png"]
    assert experiment.report(out) in first.stdout
    again = CliRunner().invoke(experiment.main, args)  # nothing is left to compute
    assert (again.stdout, len(results.read(out)[0]["made"])) == (first.stdout, 1)


def test_the_experiment_takes_models_of_its_images_only(tmp_path, unet):
    file = tmp_path / "small.safetensors"
    card = {
        "kind": "unet",
        "config": {"image": [1, 4, 4], "classes": 3, "patch": 2, "width": 16, "multipliers": [1], "blocks": 1, "attention": []},
        "image": [1, 4, 4],
        "classes": ["a", "b", "c"],
        "schedule": {"name": "ddpm_linear", "options": {}},
        "predicts": "velocity",
        "clock": "lam",
    }
    checkpoint.save(file, unet.state_dict(), card)
    result = CliRunner().invoke(experiment.main, ["--fast", "--model", str(file), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "not a model of Fashion-MNIST" in result.stderr


def test_under_inference_mode(toy):
    """The same number, even if x0 and the labels were made there; weights that were are refused, as they take no gradients."""
    x0 = torch.linspace(-1, 1, 12, dtype=torch.float64).view(2, 1, 2, 3)
    how = {"encode": encode, "solver": "ddim", "nfe": 3}
    exact = toy()
    expected = log_likelihood(exact.labelled([0, 1]), x0, **how).log_p
    network = torch.nn.Embedding(2, 6)
    model = EpsModel(lambda x, t, y: x * network(y).view(-1, 1, 2, 3).double(), schedules.vp_linear())
    embedded = log_likelihood(model.labelled([0, 1]), x0, **how).log_p
    with torch.inference_mode():
        found = log_likelihood(exact.labelled([0, 1]), x0.clone(), **how).log_p
        again = log_likelihood(model.labelled([0, 1]), x0.clone(), **how).log_p
        made_here = EpsModel(torch.nn.Linear(3, 3), schedules.vp_linear())
        with pytest.raises(InputError, match=r"made under torch\.inference_mode and takes no gradients"):
            log_likelihood(made_here, x0, **how)
    assert torch.equal(found, expected)
    assert torch.equal(again, embedded)


# Gradients


class Gaussian(torch.nn.Module):
    """ε for data N(mu, diag e^(2 log_s)) on the vp path; as `density` its marginals."""

    def __init__(self):
        super().__init__()
        self.mu, self.log_s = (torch.nn.Parameter(torch.tensor(row).double()) for row in ([0.3, -0.2, 0.5], [-0.5, 0.1, -1.0]))

    def at(self, lam):
        alpha2, sigma2 = torch.sigmoid(2 * lam), torch.sigmoid(-2 * lam)
        return alpha2.sqrt(), sigma2.sqrt(), alpha2 * (2 * self.log_s).exp() + sigma2

    def forward(self, x, lam):
        alpha, sigma, variance = self.at(lam[:, None])
        return sigma * (x - alpha * self.mu) / variance

    def density(self, x, lam):
        alpha, _, variance = self.at(torch.as_tensor(lam).double())
        return -0.5 * ((x - alpha * self.mu).square() / variance + (2 * math.pi * variance).log()).sum(1)


@pytest.mark.parametrize("probes", [0, 2])
def test_gradients_are_the_score_and_that_of_the_parameters(probes):
    """Of a Gaussian in closed form; a random sign is exact where the Jacobian is diagonal."""
    network = Gaussian()
    model = EpsModel(network, schedules.vp_linear(), clock="lam")
    x0 = torch.linspace(-1, 1.5, 12, dtype=torch.float64).view(4, 3).requires_grad_()
    how = {"solver": "dpm3", "nfe": 180, "probes": probes, "end": network.density}
    found = log_likelihood(model, x0, encode, differentiable=True, **how)
    alpha = float(model.schedule.alpha(model.schedule.lam_max))
    exact = network.density(alpha * x0, model.schedule.lam_max) + 3 * math.log(alpha)
    inputs = [x0, network.mu, network.log_s]
    for gradient, expected in zip(*(torch.autograd.grad(p.sum(), inputs) for p in (found.log_p, exact)), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-3)
    plain = log_likelihood(model, x0.detach(), encode, **how).log_p
    torch.testing.assert_close(plain, found.log_p, rtol=0, atol=1e-12)


def test_gradients_are_those_of_the_discrete_computation(toy):
    """Few steps, so log p is far from exact: its gradient is that of the number that is computed, by finite differences."""
    model, weight = as_network(toy()), torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    scaled = model.replace(network=lambda x, lam: weight * model.network(x, lam))
    x0 = toy().network.sample(2, seed=3)
    step = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def log_p(x, w, **how):
        with torch.no_grad():
            weight.fill_(w)
        how = {"solver": "dpmpp2m", "nfe": 4, "probes": 2, **how}
        return log_likelihood(scaled, x, encode, **how).log_p.sum()

    x = x0.clone().requires_grad_()
    of_x, of_weight = torch.autograd.grad(log_p(x, 0.9, differentiable=True), [x, weight])
    h = 1e-5
    along = (log_p(x0 + h * step, 0.9) - log_p(x0 - h * step, 0.9)) / (2 * h)
    by_weight = (log_p(x0, 0.9 + h) - log_p(x0, 0.9 - h)) / (2 * h)
    torch.testing.assert_close((of_x * step).sum(), along, rtol=1e-6, atol=0)
    torch.testing.assert_close(of_weight, by_weight, rtol=1e-6, atol=0)


@pytest.mark.parametrize("closed", [True, False])
def test_the_score_of_the_mixture(toy, closed):
    """∇ log p, through the divergence in closed form and through products."""
    exact = toy()
    model = exact if closed else as_network(exact)
    x0 = exact.network.sample(3, seed=3).requires_grad_()
    how = {"probes": 0, "solver": "unipc3", "nfe": 60, "end": exact_end(exact.network)}
    found = torch.autograd.grad(log_likelihood(model, x0, encode, differentiable=True, **how).log_p.sum(), x0)[0]
    expected = torch.autograd.grad(truth(exact, x0, exact.schedule.lam_max).sum(), x0)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-2)


@pytest.mark.parametrize("solver", ["dpm23", "dopri5"])
def test_solvers_without_plan_take_no_gradients(toy, solver):
    with pytest.raises(InputError, match=f"{solver} takes no gradients: take a planned solver"):
        log_likelihood(toy(), torch.zeros(1, 1, 2, 3), encode, solver=solver, differentiable=True)


# log p beside a sample


def test_log_p_beside_a_sample_of_a_gaussian_is_its_density():
    """The ODE keeps (x − α μ)/std, so samples of N(0, σ² I) noise are Gaussian of a mean and variance that are known."""
    network = Gaussian().requires_grad_(False)
    model = EpsModel(network, schedules.vp_linear(), clock="lam", shape=(3,))
    result, found = sample_with_log_p(model, n=5, solver="dpm3", nfe=240, probes=0, seed=3)
    lam_s, lam_t = (torch.tensor(lam).double() for lam in (model.schedule.lam_min, model.schedule.lam_max))
    (alpha_s, sigma_s, before), (alpha_t, _, after) = network.at(lam_s), network.at(lam_t)
    ratio = (after / before).sqrt()
    mean, std = alpha_t * network.mu - ratio * alpha_s * network.mu, ratio * sigma_s
    expected = torch.distributions.Normal(mean, std).log_prob(result.x).sum(1)
    torch.testing.assert_close(found.log_p, expected, rtol=0, atol=1e-3)
    assert found.stderr.tolist() == [0.0] * 5
    assert found.nfe == result.nfe == 240


@pytest.mark.parametrize(("solver", "how"), [("unipc3", {"nfe": 150}), ("dpm23", {"rtol": 1e-4, "atol": 1e-4})])
def test_log_p_beside_a_sample_is_that_of_the_sample(toy, solver, how):
    """x is that of `sample`, to rounding, and log p that of log_likelihood at x, to the error of the solver."""
    model = toy().labelled([0, 1, 1])
    result, found = sample_with_log_p(model, shape=(3, 1, 2, 3), solver=solver, seed=4, probes=0, **how)
    alone = sample(model, shape=(3, 1, 2, 3), solver=solver, seed=4, dtype=torch.float64, **how)
    torch.testing.assert_close(result.x, alone.x, rtol=0, atol=1e-9 if solver == "unipc3" else 1e-2)
    alpha = float(model.schedule.alpha(model.schedule.lam_max))
    other = log_likelihood(model, result.x / alpha, encode, solver=solver, probes=0, **how)
    error = 1e-3 if solver == "unipc3" else 1e-2
    torch.testing.assert_close(found.log_p, other.log_p - 6 * math.log(alpha), rtol=0, atol=error)
    torch.testing.assert_close(found.x, other.x, rtol=0, atol=error)


def test_probes_beside_a_sample(toy):
    """The same in any batch, and within their error of the exact trace."""
    model = as_network(toy())
    how = {"solver": "dpm2", "nfe": 10, "probes": 20}
    _, whole = sample_with_log_p(model, shape=(4, 1, 2, 3), seed=[5, 6, 7, 8], **how)
    _, some = sample_with_log_p(model, shape=(2, 1, 2, 3), seed=[8, 6], **how)
    torch.testing.assert_close(whole.log_p[[3, 1]], some.log_p, rtol=0, atol=1e-9)
    _, exact = sample_with_log_p(model, shape=(4, 1, 2, 3), seed=[5, 6, 7, 8], **how | {"probes": 0})
    assert ((whole.log_p - exact.log_p).abs() < 4.5 * whole.stderr).all()


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ({"solver": "ddpm"}, "draws noise"),
        ({"grid": [-2.0, 0.0, np.inf]}, "grid with finite ends"),
        ({"denoise": True}, "denoise"),
        ({"shape": None}, "give one of n"),
    ],
)
def test_samples_without_log_p_are_refused(toy, how, word):
    with pytest.raises(InputError, match=word):
        sample_with_log_p(toy(), **{"shape": (1, 1, 2, 3), **how})
