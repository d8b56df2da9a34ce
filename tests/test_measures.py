"""What tells samples apart, where the answer is known."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.special import softmax

from diffode import InputError
from diffode.images import datasets
from diffode.images.datasets import to_pixels, to_tensor
from diffode.models import pretrained
from experiments.common.examples import real_images
from experiments.comparison import measures
from experiments.comparison.problem import Problem, Settings
from experiments.metrics import distances, features, references
from tests.test_mixture import dense

pytestmark = pytest.mark.usefixtures("small_mixture")
MIXTURE = Settings("mixture", n=4)


def test_features_are_0_for_the_same_and_1_for_unrelated_images():
    x, _ = real_images(400)
    shuffled = x[torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    measure = measures.feature_measure(features.classifier(), x, None)
    assert measure(x) == {"features": 0}
    assert measure(shuffled)["features"] == pytest.approx(1, abs=0.05)
    assert 0.01 < measure(0.98 * x)["features"] < measure(0.9 * x)["features"] < 0.8


def test_frechet_is_that_of_evaluate():
    pixels = datasets.packaged().pixels[:50]
    chosen = features.classifier()
    real = references.load(chosen)
    found = measures.feature_measure(chosen, to_tensor(pixels), real)(to_tensor(pixels))
    expected = distances.measure(pixels, features=chosen, reference=real)["frechet"]
    assert (found["frechet"], found["frechet_se"]) == (pytest.approx(expected.value), pytest.approx(expected.error))


def test_log_densities_and_posteriors_are_those_written_out_densely(toy, toy_tensors):
    mixture, lam = toy("vp").network, 1.3
    x, solution = (mixture.sample(5, seed=seed) for seed in (1, 2))
    found = measures.mixture_measure(mixture, solution, lam, [0, 1, 0, 1, 0])(x)
    by_label = np.array([0, 1, 0, 1, 0])
    log_p, posterior = [], []
    for each in (x, solution):
        classes = [np.logaddexp.reduce(dense(toy_tensors, "vp", lam, each, label)[0], 0) for label in (0, 1)]
        prior = [np.log(0.8), np.log(0.2)]
        log_p.append(np.where(by_label == 0, classes[0] - prior[0], classes[1] - prior[1]))
        posterior.append(softmax(dense(toy_tensors, "vp", np.inf, each)[0], 0))
    assert found["log_p"] == pytest.approx(np.mean(log_p[0] - log_p[1]) / 6)
    assert found["components"] == pytest.approx(abs(posterior[0] - posterior[1]).sum(0).mean() / 2)


def test_the_measures_are_decided_by_the_model():
    problem = Problem(MIXTURE)
    x = problem.loaded.model.network.sample(4, seed=0)
    assert set(measures.choose_measures("auto", None, problem).against(x)(x)) == {"features", "log_p", "components"}
    assert set(measures.choose_measures("none", None, problem).against(x)(x)) == {"log_p", "components"}
    assert measures.choose_measures("none", None, problem).about == {"features": None, "data": None}
    many = Problem(dataclasses.replace(MIXTURE, n=20))
    chosen = measures.choose_measures("classifier", "fashion-train", many)
    assert chosen.about["data"]["images"] == 60_000


def test_what_cannot_be_measured_is_refused(monkeypatch):
    problem = Problem(MIXTURE)
    with pytest.raises(InputError, match="at least 20 samples"):
        measures.choose_measures("auto", "fashion-train", problem)
    with pytest.raises(InputError, match="compared in features"):
        measures.choose_measures("none", "fashion-train", problem)
    card = dataclasses.replace(problem.loaded.card, image=(1, 14, 14))
    small = dataclasses.replace(problem.loaded, card=card)
    monkeypatch.setattr(pretrained, "load", lambda *_: small)
    assert measures.choose_measures("auto", None, Problem(MIXTURE)).features is None
    with pytest.raises(InputError, match="does not take samples of"):
        measures.choose_measures("classifier", None, Problem(MIXTURE))


def test_pixels_of_samples_are_what_features_see():
    x, _ = real_images(30)
    measure = measures.feature_measure(features.classifier(), x, None)
    assert measure(to_tensor(to_pixels(x)))["features"] == 0
