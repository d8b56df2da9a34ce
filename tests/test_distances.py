"""The numbers have the values that theory gives them, and the standard errors that repetition shows."""

import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist

from diffode import InputError
from diffode.images import datasets
from diffode.images.datasets import ImageSet, to_tensor
from diffode.networks.classifier import Classifier
from experiments.metrics import distances, features, references
from experiments.metrics.distances import compare, kernel_distance, measure, mmd2
from experiments.metrics.features import Features, load_features
from experiments.metrics.frechet import Moments, frechet_distance
from experiments.metrics.references import Reference, describe

D = 5
A = np.random.default_rng(0).normal(size=(D, D)) / D**0.5
COVARIANCE = A @ A.T + 0.2 * np.eye(D)


def gaussian(seed, n, shift=0.0, scale=1.0):
    rng = np.random.default_rng(seed)
    return scale * rng.normal(size=(n, D)) @ np.linalg.cholesky(COVARIANCE).T + shift * np.eye(D)[0]


def reference(seed=10**6, n=1000, images=60_000):
    """The Gaussian itself, and a sample of it."""
    return Reference("toy", "toy", {"images": images}, Moments(np.zeros(D), COVARIANCE), gaussian(seed, n))


def moved(x, mean, covariance):
    """x, moved so that its sample has exactly this mean and covariance."""
    white = np.linalg.solve(np.linalg.cholesky(np.cov(x, rowvar=False)), (x - x.mean(0)).T)
    return (np.linalg.cholesky(covariance) @ white).T + mean


def pooled(measured):
    """The means of independent measurements, and the standard errors that their spread gives."""
    means = {}
    for key, first in measured[0].items():
        values = np.array([numbers[key].value for numbers in measured])
        means[key] = replace(first, value=values.mean(), error=values.std(ddof=1) / len(values) ** 0.5)
    return means


def test_frechet_distance_of_two_known_gaussians():
    """Σ (difference of means)² + Σ (difference of standard deviations)² where the covariances are diagonal."""
    a, b, shift = np.arange(1.0, D + 1), np.linspace(0.1, 3, D), np.linspace(-1, 2, D)
    real = Reference("toy", "toy", {"images": 500}, Moments(shift, np.diag(b**2)), gaussian(1, 100))
    found = compare(moved(gaussian(0, 200), np.zeros(D), np.diag(a**2)), real)["frechet"]
    assert found.value == pytest.approx((shift**2).sum() + ((a - b) ** 2).sum(), abs=1e-9)
    assert (found.images, found.against) == (200, 500)


def test_frechet_distance_is_that_of_the_formula():
    """For covariances that do not commute, and means far from zero: float64 leaves no more than 1e-8."""
    rng = np.random.default_rng(3)
    other = (lambda b: b @ b.T)(rng.normal(size=(D, D)))
    x = moved(gaussian(0, 300), 100.0 + np.arange(D), other)
    real = Reference("toy", "toy", {"images": 60_000}, Moments(np.full(D, 101.0), COVARIANCE), gaussian(1, 100))
    formula = ((x.mean(0) - 101) ** 2).sum() + np.trace(other + COVARIANCE - 2 * sqrtm(other @ COVARIANCE).real)
    assert compare(x, real)["frechet"].value == pytest.approx(formula, abs=1e-8)


@pytest.mark.parametrize("n", [4, 6, 12, 40])
def test_frechet_distance_of_fewer_samples_than_dimensions(n):
    """Both sides of n = d, for full and for deficient covariances of the reference: against the singular values of the product
    of two factors, which need no square root of what is zero but for rounding."""
    rng = np.random.default_rng(n)
    x, few = 3 * rng.normal(size=(n, 12)) + 1, rng.normal(size=(8, 12))
    for y in (few, rng.normal(size=(100, 12))):
        a, b = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x, y))
        overlap = np.linalg.svd(a @ b.T, compute_uv=False).sum()
        exact = ((x.mean(0) - y.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * overlap
        assert frechet_distance(x, Moments.of(y)) == pytest.approx(exact, abs=1e-6)  # 12 sqrt(1e-16 · 10²)
        assert frechet_distance(y, Moments.of(x)) == pytest.approx(exact, abs=1e-6)  # symmetric
    assert frechet_distance(x, Moments.of(x)) == pytest.approx(0, abs=1e-6)


def test_the_root_of_a_reference_is_computed_once(monkeypatch):
    """Not for each block of the jackknife, nor for the next samples."""
    real, eigh, calls = reference(), np.linalg.eigh, []
    monkeypatch.setattr(np.linalg, "eigh", lambda matrix: calls.append(1) or eigh(matrix))
    compare(gaussian(0, 100), real)
    compare(gaussian(1, 100), real)
    assert len(calls) == 1
    np.testing.assert_allclose(real.moments.root @ real.moments.root, COVARIANCE, rtol=0, atol=1e-14)


def test_frechet_distance_is_that_of_torchmetrics_from_the_images():
    """Statistics included: theirs is from images and the network, ours from features and a reference."""
    fid = pytest.importorskip("torchmetrics.image.fid")

    class Network(torch.nn.Module):
        num_features = 64

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.classifier = Classifier().eval()

        def forward(self, x):
            return self.classifier.features(x).double()

    network, real = Network(), datasets.packaged().pixels
    its_features = Features("toy", 64, "toy", ("Fréchet", "kernel"), lambda pixels: (network(to_tensor(pixels)), None))
    theirs = fid.FrechetInceptionDistance(network, normalize=True)
    with torch.no_grad():
        theirs.update(to_tensor(real[:150]), real=True)
        theirs.update(to_tensor(real[150:250]), real=False)
    ours = measure(real[150:250], features=its_features, reference=describe(ImageSet("real", real[:150]), its_features))
    assert ours["frechet"].value == pytest.approx(float(theirs.compute()), rel=1e-6)
    assert list(ours) == ["frechet", "frechet unbiased", "kernel", "precision", "recall"]


@pytest.fixture(scope="module")
def repeated():
    """The numbers of 40 draws of 300 from another Gaussian than the reference; its sample is drawn anew for the kernel distance,
    whose error is of both, and is the same for the others."""
    draws = [gaussian(seed, 300, shift=0.5, scale=1.2) for seed in range(40)]
    numbers = [compare(x, reference()) for x in draws]
    return [
        {**first, "kernel": compare(x, reference(10**6 + seed, 300))["kernel"]}
        for seed, (x, first) in enumerate(zip(draws, numbers, strict=True))
    ]


@pytest.mark.parametrize(
    ("key", "low"), [("frechet", 0.7), ("frechet unbiased", 0.7), ("kernel", 0.7), ("precision", 0.7), ("recall", 0.5)]
)
def test_standard_errors_are_what_repetition_shows(repeated, key, low):
    """To 30 %: a standard deviation of 40 draws is itself known to 11 % only; that of recall is documented as too small."""
    spread = np.std([numbers[key].value for numbers in repeated], ddof=1)
    estimated = np.mean([numbers[key].error for numbers in repeated])
    assert low < estimated / spread < 1.3


def test_the_jackknife_removes_the_bias_of_few_images():
    """Of equal Gaussians the distance is 0; 200 draws of each give several standard errors more without the jackknife."""
    numbers = pooled([compare(gaussian(seed, 200), reference()) for seed in range(30)])
    assert numbers["frechet"].value > 8 * numbers["frechet"].error
    assert abs(numbers["frechet unbiased"].value) < 3 * numbers["frechet unbiased"].error


def test_kernel_distance_is_the_double_sum():
    x, y = gaussian(0, 60, shift=1.0), gaussian(1, 60)
    kernel = lambda a, b: (a @ b / D + 1) ** 3  # noqa: E731
    blocks = []
    for xs, ys in zip(x.reshape(10, 6, D), y.reshape(10, 6, D), strict=True):
        within = [kernel(s[i], s[j]) for s in (xs, ys) for i in range(6) for j in range(6) if i != j]
        across = [kernel(a, b) for a in xs for b in ys]
        blocks.append(sum(within) / 30 - 2 * sum(across) / 36)
    value, error = kernel_distance(x, y)
    assert value == pytest.approx(np.mean(blocks), abs=1e-10)
    assert error == pytest.approx(np.std(blocks, ddof=1) / 10**0.5, abs=1e-10)


def test_kernel_distance_is_that_of_torchmetrics():
    poly_mmd = pytest.importorskip("torchmetrics.image.kid").poly_mmd
    x, y = gaussian(0, 200, shift=1.0), gaussian(1, 200)
    theirs = float(poly_mmd(torch.from_numpy(y), torch.from_numpy(x)))
    assert mmd2(x, y) == pytest.approx(theirs, rel=1e-12)
    assert mmd2(x, y) == pytest.approx(mmd2(y, x), rel=1e-12)


def test_kernel_distance_is_unbiased():
    """0 for equal distributions at any number of images, and not for others."""
    for n in (40, 300):
        numbers = pooled([compare(gaussian(seed, n), reference(10**6 + seed, n)) for seed in range(30)])
        assert abs(numbers["kernel"].value) < 3 * numbers["kernel"].error
    other = compare(gaussian(0, 300, shift=1.0), reference())["kernel"]
    assert other.value > 4 * other.error


def test_the_order_of_the_images_does_not_matter():
    """A folder is read class by class: its blocks would each be of one class."""
    x = np.concatenate([gaussian(0, 500), gaussian(1, 500, shift=20.0)])
    images = Reference("toy", "toy", {"images": 1000}, Moments.of(x), np.random.default_rng(5).permutation(x))
    kernel = compare(x, images)["kernel"]
    one_class = compare(x[:500], images)["kernel"]
    assert abs(kernel.value) < 0.05 * one_class.value


def test_precision_and_recall_of_sets_that_are_equal_and_apart():
    near, far = gaussian(0, 300), gaussian(1, 300, shift=100.0)
    real = Reference("toy", "toy", {"images": 300}, Moments.of(near), near)
    both = np.concatenate([near[:150], far[:150]])
    for x, precision, recall in ((near, 1, 1), (far, 0, 0), (both, 0.5, None)):
        numbers = compare(x, real)
        assert numbers["precision"].value == pytest.approx(precision, abs=0.03)
        if recall is not None:
            assert numbers["recall"].value == recall
    one_mode = Reference("toy", "toy", {"images": 300}, Moments.of(both), both)
    numbers = compare(gaussian(7, 300), one_mode)
    assert numbers["precision"].value > 0.8
    assert 0.4 < numbers["recall"].value < 0.5 + 1e-9  # of the mode that is there alone


@pytest.mark.parametrize(("k", "chunk"), [(1, 1000), (3, 17), (5, 1)])
def test_precision_and_recall_are_their_definition(monkeypatch, k, chunk):
    monkeypatch.setattr(distances, "CHUNK", chunk)
    x, y = gaussian(0, 80, shift=0.7), gaussian(1, 80)

    def share(points, centres):
        radii = np.sort(cdist(centres, centres), axis=1)[:, k]  # column 0 is the point itself
        return (cdist(points, centres) <= radii).any(1).mean()

    real = Reference("toy", "toy", {"images": 80}, Moments(np.zeros(D), COVARIANCE), y)
    numbers = compare(x, real, k=k)
    assert (numbers["precision"].value, numbers["recall"].value) == (share(x, y), share(y, x))


def toy_features(shares=(0.5, 0.5)):
    """Features of 28 × 28 images: D fixed sums of their pixels; two classes, by the brightness of the first pixel."""
    weights = torch.from_numpy(np.random.default_rng(0).normal(size=(28 * 28, D)) / 100)

    def of_batch(pixels):
        dark = torch.from_numpy(pixels[:, 0, 0, 0] < 128).double()
        return to_tensor(pixels).flatten(1).double() @ weights, torch.stack([dark, 1 - dark], 1)

    return Features("toy", D, "toy", ("Fréchet", "kernel"), of_batch, (1, 28, 28), ("dark", "bright"))


def pictures(n, bright, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 28, 28, 1), np.uint8)
    pixels[:, 0, 0, 0] = np.where(np.arange(n) < bright, 200, 50)
    return pixels


def test_own_label_and_the_distance_of_class_histograms():
    toy = toy_features()
    real = describe(ImageSet("real", pictures(100, 50)), toy)
    labels = np.array([1] * 60 + [0] * 40)
    numbers = measure(pictures(100, 70, seed=1), labels, features=toy, reference=real)
    assert numbers["own label"].value == 0.9
    assert numbers["own label"].error == pytest.approx((0.9 * 0.1 / 100) ** 0.5)
    assert numbers["classes"].value == pytest.approx(0.2)
    assert numbers["classes"].error == pytest.approx((0.7 * 0.3 / 100) ** 0.5)
    assert "own label" not in measure(pictures(100, 70), features=toy, reference=real)


def test_bad_input_is_an_error():
    toy = toy_features()
    real = describe(ImageSet("real", pictures(100, 50)), toy)
    for wrong, words in (
        (np.zeros((50, 32, 32, 3), np.uint8), "1 × 28 × 28 .* 3 × 32 × 32"),
        (np.zeros((50, 1, 28, 28), np.uint8), "28 × 1 × 28"),
        (np.zeros((50, 28, 28, 1), np.float32), "float32"),
        (pictures(19, 5), "19 images"),
    ):
        with pytest.raises(InputError, match=words):
            measure(wrong, features=toy, reference=real)
    for labels in (np.full(50, 2), np.full(50, -1), np.zeros(49, np.int64)):
        with pytest.raises(InputError, match="label from 0 to 1"):
            measure(pictures(50, 5), labels, features=toy, reference=real)
    with pytest.raises(InputError, match="not of toy toy: describe real images"):
        measure(pictures(50, 5), features=toy)
    with pytest.raises(InputError, match="other features"):
        measure(pictures(50, 5), features=toy, reference=replace(real, identity="another"))
    with pytest.raises(InputError, match="classifier, inception"):
        measure(pictures(50, 5), features="vgg")


def test_a_reference_comes_back_from_its_file_and_is_refused_to_another_classifier(tmp_path):
    toy, path = toy_features(), tmp_path / "real.safetensors"
    real = describe(ImageSet("real", pictures(100, 50)), toy)
    references.save(path, real, command="typed")
    back = references.load(toy, path)
    assert (back.features, back.identity, back.data) == (real.features, real.identity, real.data)
    assert (back.moments.mean == real.moments.mean).all()
    assert (back.moments.covariance == real.moments.covariance).all()
    assert (back.shares == real.shares).all()
    np.testing.assert_allclose(back.sample, real.sample, rtol=0, atol=2e-3 * abs(real.sample).max())  # kept as float16
    another = Features("classifier", D, "another", toy.names, toy.of_batch, toy.takes)
    with pytest.raises(InputError, match="not of classifier another"):
        references.load(another, path)


def test_the_shipped_statistics_are_those_of_the_training_images():
    """Real images that were not trained on are near them, and noise is not."""
    real, floor = datasets.packaged(), measure(datasets.packaged().pixels, datasets.packaged().labels)
    noise = measure(np.random.default_rng(0).integers(0, 256, real.pixels.shape, np.uint8))
    assert {floor[key].against for key in ("frechet", "frechet unbiased", "classes")} == {60_000}
    assert floor["frechet"].value < 0.05 * noise["frechet"].value
    assert abs(floor["kernel"].value) < 0.01 * noise["kernel"].value
    assert min(floor["precision"].value, floor["recall"].value) > 0.8
    assert noise["recall"].value < 0.01
    assert not any(word in number.name for number in floor.values() for word in ("FID", "KID", "Inception"))


class StandIn(torch.nn.Module):
    """In place of the Inception network, whose weights are not fetched in tests."""

    def __init__(self, name, features_list, feature_extractor_weights_path, antialias):
        super().__init__()
        assert (features_list, antialias) == (["2048"], False)

    def forward(self, x):
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        return x.flatten(1)[:, :2048].float()


@pytest.fixture
def stand_in(monkeypatch):
    fid = pytest.importorskip("torchmetrics.image.fid")
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setattr(fid, "_TORCH_FIDELITY_AVAILABLE", True)
    monkeypatch.setattr(fid, "NoTrainInceptionV3", StandIn)
    return fid


def test_inception_takes_grey_images_as_three_equal_channels(stand_in):
    inception, grey = load_features("inception"), pictures(20, 5)
    values, probabilities = inception.extract(grey)
    assert (values.shape, values.dtype, probabilities) == ((20, 2048), np.float64, None)
    assert (values[:, :784] == grey.reshape(20, -1)).all()
    assert (values[:, :784] == values[:, 784:1568]).all()
    assert (values == inception.extract(grey.repeat(3, 3))[0]).all()
    assert inception.names == ("FID", "KID")


def test_inception_that_is_not_available_is_an_error(stand_in, monkeypatch):
    def unreachable(**_):
        raise OSError("no route to host")

    monkeypatch.setattr(stand_in, "NoTrainInceptionV3", unreachable)
    with pytest.raises(InputError, match=r"could not be fetched \(no route to host\)"):
        features.inception()
    for module in ("torch_fidelity", "torchmetrics.image.fid"):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(InputError, match=r"pip install 'diffode\[inception\]'"):
            features.inception()


def test_torchmetrics_is_needed_by_inception_alone(monkeypatch):
    for module in [name for name in sys.modules if name.startswith("torchmetrics")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    compare(gaussian(0, 100), reference())
    with pytest.raises(InputError, match=r"need torchmetrics and torch-fidelity, .* pip install 'diffode\[inception\]'"):
        features.inception()


def test_published_statistics_give_the_same_distance_and_nothing_else(tmp_path):
    """mu and sigma, as the field keeps them for FID."""
    toy = Features("toy", D, "toy", ("F", "K"), lambda pixels: (torch.zeros(len(pixels), D), None))
    x, real = gaussian(0, 300), reference()
    np.savez(tmp_path / "stats.npz", mu=real.moments.mean, sigma=real.moments.covariance)
    found = compare(x, references.published(tmp_path / "stats.npz", toy))
    assert found.keys() == {"frechet", "frechet unbiased"}
    assert found["frechet"].value == pytest.approx(compare(x, real)["frechet"].value, abs=1e-10)
    np.savez(tmp_path / "other.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(InputError, match=r"mu .3,. and sigma .3, 3., where the toy has 5 features"):
        references.published(tmp_path / "other.npz", toy)
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((2, 4, 4, 1), np.uint8))
    assert references.published(tmp_path / "images.npz", toy) is None
    assert references.published(tmp_path, toy) is None
