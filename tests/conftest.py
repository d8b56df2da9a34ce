"""Fixtures shared by all tests: the shipped mixture, also at 7 × 7 pixels, and a toy small enough to be written out densely."""

import gc
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from diffode import EpsModel, schedules
from diffode.mixture import Mixture
from diffode.models import checkpoint, pretrained

os.environ["OMP_NUM_THREADS"] = "1"  # of workers and of the processes that tests start: they share the cores, and NumPy's BLAS
torch.set_num_threads(1)  # would wait for each other in each of them
os.fsync = os.sync = lambda *_: None  # what tests write need not survive a loss of power


def pytest_xdist_auto_num_workers(config):
    """No workers for files that are named, which start sooner without; for the whole suite xdist's number, a worker per core."""
    return None if any(Path(argument).is_dir() for argument in config.args) else 0


def pytest_collection_finish():
    gc.freeze()  # modules and tests, hundreds of thousands of objects, stay: the collector need not look at them again and again


SHIPPED = pretrained.WEIGHTS
PATH_SCHEDULES = {"vp": schedules.vp_linear, "ve": schedules.edm, "flow": schedules.flow}


@pytest.fixture(scope="session")
def mixture64():
    """The shipped mixture (784 pixels, 30 components, 10 classes) as an EpsModel in float64."""
    return pretrained.load(SHIPPED / "mixture.safetensors", torch.float64).model


@pytest.fixture(scope="session")
def mixture32():
    """The same in float32."""
    return pretrained.load(SHIPPED / "mixture.safetensors").model


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory):
    """What comes with diffode, but a mixture of two directions a component, not 24, whose evaluation costs a tenth."""
    folder = tmp_path_factory.mktemp("weights")
    for file in SHIPPED.iterdir():
        shutil.copy(file, folder)
    tensors, header = checkpoint.read(SHIPPED / "mixture.safetensors")
    directions = {"basis": tensors["basis"][:, :, :2], "along": tensors["along"][:, :2]}
    checkpoint.save(folder / "mixture.safetensors", {**tensors, **directions}, header)
    return folder


@pytest.fixture(scope="module")
def small_mixture(small_weights):
    """The model "mixture" is that of small_weights, in products of 16 rows: for what is not about its images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "WEIGHTS", small_weights)
        patch.setattr(pretrained, "Mixture", partial(Mixture, rows=16))
        yield


@pytest.fixture(scope="session")
def pooled64(mixture64):
    """The same at 7 × 7 pixels, which costs a tenth: for what does not depend on the number of pixels."""
    network = mixture64.network.pooled(4)
    network.rows = 16
    return EpsModel(network, mixture64.schedule, "velocity", clock="lam", classes=10)


@pytest.fixture(scope="session")
def toy_tensors():
    """A Mixture's tensors in float64: 3 components of rank 2 on 6 pixels, two of class 0 and one of class 1."""
    generator = torch.Generator().manual_seed(0)
    mean, basis = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 6), (3, 6, 2)))
    return {
        "log_pi": torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64).log(),
        "mean": 0.5 * mean,
        "basis": torch.linalg.qr(basis).Q,
        "along": torch.tensor([[0.8, 0.3], [0.5, 0.4], [1.0, 0.2]], dtype=torch.float64),
        "floor": torch.tensor([0.20, 0.15, 0.30], dtype=torch.float64),
        "label": torch.tensor([0, 1, 0]),
    }


@pytest.fixture(scope="session")
def toy(toy_tensors):
    """toy(path, schedule=None, dtype=torch.float64): a fresh EpsModel of toy_tensors as images (1, 2, 3); two classes."""

    def make(path="vp", schedule=None, dtype=torch.float64):
        network = Mixture(toy_tensors, (1, 2, 3), path, dtype)
        predicts = "velocity" if path == "vp" else "tangent"
        return EpsModel(network, schedule or PATH_SCHEDULES[path](), predicts, clock="lam", classes=2)

    return make
