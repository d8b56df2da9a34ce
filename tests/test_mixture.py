"""The exact mixture against Bayes' rule written out densely, its samples, its bits, and the fit that made the shipped one."""

import json

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from diffode import InputError, prediction, schedules
from diffode.images import datasets
from diffode.mixture import ALPHA, Mixture, fit
from diffode.models import checkpoint, pretrained
from tests.quick import QuickMixture

PATHS = ("vp", "ve", "flow")
LAMS = (-3.0, -1.0, 0.0, 0.7, 2.0)
every_path = pytest.mark.parametrize("path", PATHS)


def coefficients(path, lam):
    """(α, σ) at λ."""
    if path == "vp":
        return (1 + np.exp(-2 * lam)) ** -0.5, (1 + np.exp(2 * lam)) ** -0.5
    return (1.0, np.exp(-lam)) if path == "ve" else (1 / (1 + np.exp(-lam)), 1 / (1 + np.exp(lam)))


def split(path, lam, x, velocity):
    """(ε, x̂0) of a velocity, in float64."""
    alpha, sigma = coefficients(path, lam)
    x, velocity = x.double(), velocity.double()
    return (sigma * x + alpha * velocity) / (alpha**2 + sigma**2), (alpha * x - sigma * velocity) / (alpha**2 + sigma**2)


def diffused(mixture, path, lam, n, dtype=torch.float64):
    """n exact samples at λ."""
    alpha, sigma = coefficients(path, lam)
    z = torch.randn((n, *mixture.image), generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return (alpha * mixture.sample(n, seed=5).double() + sigma * z).to(dtype)


def at(lam, x):
    return torch.full((len(x),), lam, dtype=x.dtype)


def dense(tensors, path, lam, x, label=None):
    """(log π_k N(x; α μ_k, C_k), −σ ∇ log of it) of every component, (k, n) and (k, n, pixels), by full covariances."""
    alpha, sigma = coefficients(path, lam)
    x = x.flatten(1)
    columns = (tensors[name] for name in ("log_pi", "mean", "basis", "along", "floor", "label"))
    log_p, eps = [], []
    for log_pi, mean, basis, along, floor, k_label in zip(*columns, strict=True):
        if label in (None, k_label):
            one = torch.eye(len(mean), dtype=x.dtype)
            covariance = alpha**2 * (basis @ along.diag() @ basis.T + floor * one) + sigma**2 * one
            log_p.append(log_pi + torch.distributions.MultivariateNormal(alpha * mean, covariance).log_prob(x))
            eps.append(sigma * torch.linalg.solve(covariance, (x - alpha * mean).T).T)
    return np.stack(log_p), np.stack(eps)


def dense_eps(log_p, eps):
    return np.einsum("kn,knp->np", np.exp(log_p - logsumexp(log_p, 0)), eps)


# Exactness


@every_path
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_quick_one_of_the_tests_is_the_same(toy, path, dtype):
    """tests/quick.py, for samples of one λ and of many."""
    network = toy(path, dtype=dtype).network
    x = torch.randn(7, 1, 2, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    for lam in (torch.full((7,), 0.3, dtype=dtype), torch.linspace(-8, 8, 7, dtype=dtype)):
        expected = network(x, lam)
        off = (QuickMixture.of(network)(x, lam) - expected).abs().amax() / expected.abs().amax()
        assert off < 20 * torch.finfo(dtype).eps


@every_path
@pytest.mark.parametrize("label", [None, 0, 1])
def test_against_full_covariances(toy, toy_tensors, path, label):
    network = toy(path).network
    for lam in LAMS:
        x = diffused(network, path, lam, 20)
        y = None if label is None else torch.full((20,), label)
        alpha, sigma = coefficients(path, lam)
        exact = dense_eps(*dense(toy_tensors, path, lam, x, label))
        eps, x0 = (value.flatten(1).numpy() for value in split(path, lam, x, network(x, at(lam, x), y)))
        # roundings of 1e-15, divided by α ≥ 0.05
        assert abs(eps - exact).max() < 1e-12
        assert abs(x0 - (x.flatten(1).numpy() - sigma * exact) / alpha).max() < 1e-11


@every_path
def test_density_against_full_covariances(toy, toy_tensors, path):
    network = toy(path).network
    for lam in LAMS:
        x = diffused(network, path, lam, 20)
        exact = logsumexp(dense(toy_tensors, path, lam, x)[0], 0)
        assert abs(network.log_density(x, at(lam, x)).numpy() - exact).max() < 1e-11


@every_path
def test_eps_is_the_score(toy, path):
    """ε = −σ ∇ log p and, by Tweedie, x̂0 = (x + σ² ∇ log p)/α."""
    model = toy(path)
    for lam in LAMS:
        alpha, sigma = coefficients(path, lam)
        x = diffused(model.network, path, lam, 10).requires_grad_()
        (score,) = torch.autograd.grad(model.network.log_density(x, at(lam, x)).sum(), x)
        with torch.no_grad():
            assert abs(model(x, lam) + sigma * score).max() < 1e-11
            assert abs(model(x, lam, "data") - (x + sigma**2 * score) / alpha).max() < 1e-10


def test_eps_of_the_shipped_mixture_is_the_score(mixture64):
    for lam in (-4.0, 0.0, 2.0, 4.0):
        sigma = coefficients("vp", lam)[1]
        x = diffused(mixture64.network, "vp", lam, 4).requires_grad_()
        (score,) = torch.autograd.grad(mixture64.network.log_density(x, at(lam, x)).sum(), x)
        with torch.no_grad():
            assert abs(mixture64(x, lam) + sigma * score).max() < 1e-9  # 784 pixels, energies of 1e3


@every_path
def test_every_sample_has_its_own_lam_and_label(toy, path):
    network = toy(path).network
    lam, y = torch.linspace(-2, 2, 7, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 0, 1, 0])
    x = torch.randn((7, 1, 2, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, density = network(x, lam, y), network.log_density(x, lam)
    for i in range(7):
        one = slice(i, i + 1)
        assert torch.equal(network(x[one], lam[one], y[one]), whole[one])
        assert torch.equal(network.log_density(x[one], lam[one]), density[one])


@every_path
def test_a_label_leaves_its_components(toy, toy_tensors, path):
    network = toy(path).network
    for label in (0, 1):
        kept = toy_tensors["label"] == label
        alone = Mixture({name: tensor[kept] for name, tensor in toy_tensors.items()}, (1, 2, 3), path, torch.float64)
        for lam in LAMS:
            x = diffused(network, path, lam, 10)
            assert abs(network(x, at(lam, x), torch.full((10,), label)) - alone(x, at(lam, x))).max() < 2e-11  # σ is up to e³


@every_path
def test_unconditional_is_the_average_of_the_conditionals(toy, toy_tensors, path):
    model = toy(path)
    for lam in LAMS:
        x = diffused(model.network, path, lam, 10)
        log_joint = np.stack([logsumexp(dense(toy_tensors, path, lam, x, label)[0], 0) for label in (0, 1)])
        posterior = torch.from_numpy(np.exp(log_joint - logsumexp(log_joint, 0)))[:, :, None, None, None]
        conditional = torch.stack([model.labelled([label] * 10)(x, lam) for label in (0, 1)])
        assert abs(model(x, lam) - (posterior * conditional).sum(0)).max() < 1e-11
    assert abs(conditional[0] - conditional[1]).max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_basis_is_made_orthonormal(toy_tensors, dtype):
    rounded = {**toy_tensors, "basis": toy_tensors["basis"].half().double()}
    basis = Mixture(rounded, (1, 2, 3), dtype=dtype).basis.view(6, 3, 2)
    gram = torch.einsum("pkr,pks->krs", basis, basis)
    assert abs(gram - torch.eye(2, dtype=dtype)).max() < 4 * torch.finfo(dtype).eps


def test_alpha_is_that_of_the_schedules():
    lam = np.array([-np.inf, *np.linspace(-15, 15, 61), np.inf])
    assert set(ALPHA) == set(schedules.PATHS)
    for name, alpha in ALPHA.items():
        np.testing.assert_allclose(alpha(torch.from_numpy(lam)).numpy(), schedules.PATHS[name].alpha(lam), rtol=1e-14)


# Rounding


@every_path
@pytest.mark.parametrize("label", [None, 6])
def test_single_precision_at_extreme_lam(path, label):
    tensors, _ = checkpoint.read(pretrained.WEIGHTS / "mixture.safetensors")
    single, double = (Mixture(tensors, (1, 28, 28), path, dtype) for dtype in (torch.float32, torch.float64))
    schedule = schedules.ddpm_linear()
    y = None if label is None else torch.full((16,), label)
    for lam in (-12.0, schedule.lam_min, schedule.lam_max, 12.0):
        x = diffused(double, path, lam, 16, torch.float32)
        rough = split(path, lam, x, single(x, at(lam, x), y))
        exact = split(path, lam, x, double(x.double(), at(lam, x.double()), y))
        # energies of 1e3 are rounded by 1e-4, and with them the responsibilities that weigh means of order 1
        for value, truth in zip(rough, exact, strict=True):
            assert torch.isfinite(value).all()
            assert abs(value - truth).max() < 1e-3
        # and what is small stays small: ε̂ goes to x at the noisy end, x̂0 to x at the clean one
        assert abs(rough[lam > 0] - exact[lam > 0]).max() < 1e-5


@every_path
def test_extreme_lam_have_their_limits(toy, path):
    """All noise at λ = −12, where x̂0 is the mean of the data; all data at λ = 12."""
    model = toy(path)
    mean = (model.network.log_pi.exp() @ model.network.mean).view(1, 1, 2, 3)
    x = diffused(model.network, path, -12.0, 10)
    eps, x0 = split(path, -12.0, x, model.network(x, at(-12.0, x)))
    assert abs(x0 - mean).max() < 1e-3  # σ̄ = 1.6e5, so z shifts it by 1/σ̄ times a few
    assert abs(eps - x / coefficients(path, -12.0)[1]).max() < 1e-4
    x = diffused(model.network, path, 12.0, 10)
    _, x0 = split(path, 12.0, x, model.network(x, at(12.0, x)))
    assert abs(x0 - x).max() < 1e-4  # 1/σ̄ again


@pytest.mark.parametrize("lam", [-5.0, 0.0, 4.0])
@pytest.mark.parametrize("label", [None, 3])
def test_bits_do_not_depend_on_the_batch(mixture32, lam, label):
    x = diffused(mixture32.network, "vp", lam, 100, torch.float32)

    def run(rows, call):
        model = mixture32 if label is None else mixture32.labelled([label] * len(rows)).guided(3.0)
        return call(model, x[rows])

    for call in (
        lambda model, x: model(x, lam),
        lambda model, x: model(x, lam, "data"),
        lambda model, x: model.network(x, at(lam, x)),
        lambda model, x: model.network.log_density(x, at(lam, x)),
    ):
        one = run([42], call)[0]
        assert torch.equal(run(list(range(64)), call)[42], one)
        assert torch.equal(run([*range(50, 100), *range(50)], call)[92], one)
        assert torch.equal(run([42, 7], call)[0], one)


# Lower resolution


@pytest.mark.parametrize(("image", "rank"), [((1, 4, 6), 2), ((1, 4, 6), 8), ((2, 2, 6), 3)])
def test_pooled_against_full_covariances(image, rank):
    """Means and covariances of 2 × 2 averages, written as a matrix; 8 directions are more than the 6 pixels that are left."""
    generator = torch.Generator().manual_seed(0)
    mean, basis = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 24), (3, 24, rank)))
    tensors = {
        "log_pi": torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64).log(),
        "mean": mean,
        "basis": torch.linalg.qr(basis).Q,
        "along": torch.rand((3, rank), generator=generator, dtype=torch.float64) + 0.1,
        "floor": torch.tensor([0.2, 0.15, 0.3], dtype=torch.float64),
        "label": torch.tensor([0, 1, 0]),
    }
    small = Mixture(tensors, image, dtype=torch.float64).pooled(2)
    channels, height, width = image
    assert small.image == (channels, height // 2, width // 2)
    average = np.kron(
        np.eye(channels), np.kron(np.kron(np.eye(height // 2), [[0.5, 0.5]]), np.kron(np.eye(width // 2), [[0.5, 0.5]]))
    )
    kept = {name: getattr(small, name).numpy() for name in ("mean", "along", "floor")}
    directions = small.basis.view(6, 3, -1).numpy()
    for k in range(3):
        u, s, v = (tensors[name][k].numpy() for name in ("basis", "along", "floor"))
        covariance = average @ (u @ np.diag(s) @ u.T + v * np.eye(24)) @ average.T
        np.testing.assert_allclose(kept["mean"][k], average @ mean[k].numpy(), atol=1e-14)
        found = directions[:, k] @ np.diag(kept["along"][k]) @ directions[:, k].T + kept["floor"][k] * np.eye(6)
        np.testing.assert_allclose(found, covariance, atol=1e-14)
    assert torch.equal(small.log_pi, tensors["log_pi"])
    assert torch.equal(small.label, tensors["label"])


@pytest.mark.parametrize("factor", [4, 7, 14, 28])
def test_pooled_is_exact(mixture64, factor):
    """ε of the shipped mixture at 7 × 7 pixels and fewer, where its 24 directions are more than the pixels, is the score."""
    small = mixture64.network.pooled(factor)
    for lam in (-3.0, 0.0, 3.0):
        x = diffused(small, "vp", lam, 8).requires_grad_()
        (score,) = torch.autograd.grad(small.log_density(x, at(lam, x)).sum(), x)
        eps, _ = split("vp", lam, x, small(x, at(lam, x)))
        assert abs(eps + coefficients("vp", lam)[1] * score).max() < 1e-10  # floors are 1e-4: energies of 1e3


def test_pooled_keeps_the_path_and_the_precision():
    tensors, _ = checkpoint.read(pretrained.WEIGHTS / "mixture.safetensors")
    small = Mixture(tensors, (1, 28, 28), "flow", torch.float32, rows=8).pooled(4)
    assert (small.path, small.rows, small.mean.dtype) == ("flow", 8, torch.float32)


@pytest.mark.parametrize("factor", [0, 3, 56])
def test_factors_that_do_not_divide_are_refused(mixture32, factor):
    with pytest.raises(InputError, match=f"cannot be averaged over {factor}"):
        mixture32.network.pooled(factor)


def test_vectors_have_no_pixels_to_average(toy_tensors):
    with pytest.raises(InputError, match="cannot be averaged"):
        Mixture(toy_tensors, (6,)).pooled(2)


@pytest.mark.parametrize("rows", [1, 5, 16])
def test_any_number_of_rows_gives_the_same(toy_tensors, rows):
    usual, other = (Mixture(toy_tensors, (1, 2, 3), dtype=torch.float64, **how) for how in ({}, {"rows": rows}))
    x = diffused(usual, "vp", 0.3, 12)
    whole = other(x, at(0.3, x))
    assert abs(whole - usual(x, at(0.3, x))).max() < 1e-13
    for i in range(12):
        assert torch.equal(other(x[i : i + 1], at(0.3, x[i : i + 1])), whole[i : i + 1])


# Samples


@pytest.mark.parametrize("label", [None, 0, 1])
def test_samples_have_the_exact_moments(toy, toy_tensors, label):
    n = 100_000
    x = toy().network.sample(n, seed=1, y=label).flatten(1).numpy()
    tensors = {name: tensor.numpy() for name, tensor in toy_tensors.items()}
    pi = np.exp(tensors["log_pi"]) * (1 if label is None else tensors["label"] == label)
    pi = pi / pi.sum()
    mean = pi @ tensors["mean"]
    covariance = -np.outer(mean, mean)
    for p, mu, basis, along, floor in zip(pi, *(tensors[name] for name in ("mean", "basis", "along", "floor")), strict=True):
        covariance += p * (np.outer(mu, mu) + basis @ np.diag(along) @ basis.T + floor * np.eye(6))
    error = np.sqrt(np.diag(covariance) / n)
    assert (abs(x.mean(0) - mean) < 4.5 * error).all()
    products = np.einsum("ni,nj->nij", x - mean, x - mean)
    assert (abs(products.mean(0) - covariance) < 4.5 * products.std(0) / np.sqrt(n)).all()


def test_samples_are_repeatable(toy):
    network = toy().network
    assert torch.equal(network.sample(5, seed=3), network.sample(5, seed=3))
    assert not torch.equal(network.sample(5, seed=3), network.sample(5, seed=4))
    assert network.sample(5).shape == (5, 1, 2, 3)


# The fit


@pytest.fixture(scope="module")
def small():
    """Two classes of the packaged images, every second pixel."""
    whole = datasets.packaged()
    kept = whole.labels < 2
    return datasets.ImageSet("small", whole.pixels[kept][:, ::2, ::2], whole.labels[kept])


def arrays(images):
    return datasets.to_tensor(images.pixels), images.labels


def test_em_increases_the_likelihood(small):
    x, y = datasets.to_tensor(small.pixels).double(), torch.from_numpy(small.labels)
    values = []
    for iterations in (1, 2, 3, 8):
        mixture = Mixture(
            fit(*arrays(small), per_class=2, rank=4, iterations=iterations),
            small.shape,
            dtype=torch.float64,
        )
        values.append(float(mixture.log_density(x, at(np.inf, x), y).sum()))
    assert (np.diff(values) > -1e-3).all()  # the tensors are rounded to float32
    assert values[-1] > values[0] + 10


def test_fit_is_a_mixture(small):
    tensors = fit(*arrays(small), per_class=2, rank=4, iterations=3)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "log_pi": (4,),
        "mean": (4, 196),
        "basis": (4, 196, 4),
        "along": (4, 4),
        "floor": (4,),
        "label": (4,),
    }
    gram = tensors["basis"].mT @ tensors["basis"]
    assert abs(gram - torch.eye(4)).max() < 1e-6  # float32
    assert (tensors["floor"] > 0).all()
    assert (tensors["along"] > 0).all()
    assert tensors["label"].tolist() == [0, 0, 1, 1]


def test_fit_keeps_the_moments_of_the_data(small):
    """The M step leaves Σ π μ the mean of the data, and Σ π tr Σ_k + Σ π |μ|² its mean square; in each class, too."""
    tensors = {name: tensor.double() for name, tensor in fit(*arrays(small), per_class=2, rank=4, iterations=3).items()}
    x = datasets.to_tensor(small.pixels).flatten(1).double()
    for label in (0, 1):
        pi = tensors["log_pi"].exp() * (tensors["label"] == label)
        share = (small.labels == label).mean()
        assert abs(pi.sum() - share) < 1e-6
        mine = x[torch.from_numpy(small.labels == label)]
        assert abs(pi @ tensors["mean"] / share - mine.mean(0)).max() < 1e-5
        traces = tensors["along"].sum(1) + 196 * tensors["floor"] + tensors["mean"].square().sum(1)
        assert abs(pi @ traces / share - mine.square().sum(1).mean()) < 1e-3  # of about 100


def test_fit_finds_what_is_far_apart():
    rng = np.random.default_rng(0)
    pixels = np.concatenate([rng.integers(low, low + 30, (n, 6, 6, 1)) for low, n in ((20, 90), (200, 60))]).astype(np.uint8)
    tensors = fit(datasets.to_tensor(pixels), per_class=2, rank=2, iterations=3)
    x = datasets.to_tensor(pixels).flatten(1).double()
    for k, group in zip(tensors["mean"].mean(1).argsort(), (x[:90], x[90:]), strict=True):
        assert abs(tensors["mean"][k] - group.mean(0)).max() < 1e-6  # float32; no image is in doubt
        assert abs(tensors["log_pi"][k].exp() - len(group) / 150) < 1e-6
        spectrum = torch.linalg.eigvalsh(torch.cov(group.T, correction=0)).flip(0)
        expected = torch.cat([spectrum[:2], spectrum[2:].mean()[None]])  # Tipping and Bishop (1999), Eqs. 7 and 8
        floor = tensors["floor"][k]
        found = torch.cat([tensors["along"][k].sort(descending=True).values + floor, floor[None]])
        assert abs(found - expected).max() < 1e-6


def test_fit_without_labels(small):
    tensors = fit(datasets.to_tensor(small.pixels), per_class=3, rank=4, iterations=1)
    assert tensors["label"].tolist() == [0, 0, 0]
    assert abs(tensors["log_pi"].exp().sum() - 1) < 1e-6


def test_too_few_images(small):
    with pytest.raises(InputError, match="too few for 3 components of rank 24"):
        fit(*arrays(small))
    n = int((small.labels == 0).sum())
    with pytest.raises(InputError, match=f"class 0 has {n} images, too few for 1 components of rank {n // 2 + 1}"):
        fit(*arrays(small), per_class=1, rank=n // 2 + 1)


# The shipped file


def test_shipped_file():
    path = pretrained.WEIGHTS / "mixture.safetensors"
    assert path.stat().st_size < 4e6
    tensors, card = checkpoint.read(path, "mixture")
    assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) == card
    prediction.check(card["predicts"])
    assert tensors["mean"].shape[1] == np.prod(card["image"])
    assert sorted(set(tensors["label"].tolist())) == list(range(len(card["classes"])))
    assert abs(tensors["log_pi"].double().exp().sum() - 1) < 1e-6
    assert (tensors["floor"] > 0).all()
    assert abs(tensors["basis"].mT @ tensors["basis"] - torch.eye(tensors["along"].shape[1])).max() < 1e-5
