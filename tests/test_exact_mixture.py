"""What samples of an exact mixture are compared with."""

import numpy as np
import pytest
import torch

from diffode.mixture import Mixture
from experiments.metrics.exact_mixture import MixtureReference, moments

PIXELS, RANK = 6, 2


def toy(k=3):
    g = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    tensors = {
        "log_pi": torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)[:k].log(),
        "mean": 2 * normal(k, PIXELS),
        "basis": normal(k, PIXELS, RANK),
        "along": normal(k, RANK).square() + 0.1,
        "floor": normal(k).square() * 0.1 + 0.05,
        "label": torch.arange(k),
    }
    return Mixture(tensors, (1, 2, 3), dtype=torch.float64)


def test_moments_are_those_of_the_components():
    """Against the sums over components with their covariances written out."""
    m = toy()
    pi, basis = m.log_pi.exp().numpy(), m.basis.view(PIXELS, 3, RANK).numpy()
    each = [basis[:, k] @ np.diag(m.along[k].numpy()) @ basis[:, k].T + float(m.floor[k]) * np.eye(PIXELS) for k in range(3)]
    mean = sum(p * mu for p, mu in zip(pi, m.mean.numpy(), strict=True))
    second = sum(p * (c + np.outer(mu, mu)) for p, c, mu in zip(pi, each, m.mean.numpy(), strict=True))
    found = moments(m)
    np.testing.assert_allclose(found.mean, mean, atol=1e-12)
    np.testing.assert_allclose(found.covariance, second - np.outer(mean, mean), atol=1e-12)


def test_exact_samples_are_at_no_distance():
    """All three numbers within 4 standard errors of 0, but for the bias of 1/N of those that cannot be negative."""
    m = toy()
    found = MixtureReference(m).measure(m.sample(20_000, seed=50))
    assert found["moments"].value < 0.01  # (tr Σ)/N ~ 1e-3
    assert found["components"].value < 0.01
    assert abs(found["log p"].value) < 4 * found["log p"].error


def test_a_shift_is_its_square_length():
    m = toy()
    x = m.sample(20_000, seed=50)
    found = MixtureReference(m).measure(x + 0.5)["moments"]
    assert found.value == pytest.approx(PIXELS * 0.25, abs=5 * found.error)


def test_a_missing_component_is_its_weight():
    """Samples of components 0 and 1 in their proportions lack the 0.2 of the last; the toy's components hardly overlap."""
    m = toy()
    x = torch.cat([m.sample(5_000, seed=51, y=0), m.sample(3_000, seed=52, y=1)])
    assert MixtureReference(m).measure(x)["components"].value == pytest.approx(0.2, abs=0.01)


def test_the_sign_of_log_p_says_whether_noise_lacks_or_is_too_much():
    m = toy()
    x, generator = m.sample(5_000, seed=51), torch.Generator().manual_seed(0)
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    exact, centre = MixtureReference(m), m.mean[torch.argmax(m.log_pi)].view(1, 1, 2, 3)
    assert exact.measure(x + noise)["log p"].value < -10 * exact.measure(x + noise)["log p"].error
    assert exact.measure(centre + 1e-3 * noise)["log p"].value > 0
