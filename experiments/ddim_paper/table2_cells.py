"""The cells of Table 2 (experiments/ddim_paper/table2.py): images are encoded and decoded by a solver, and compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffode.errors import InputError
from diffode.images import datasets
from diffode.images.datasets import to_tensor
from diffode.mixture import Mixture
from diffode.model import EpsModel
from diffode.models import pretrained
from diffode.noise import SeededNoise
from experiments.common.examples import exact_samples, real_images
from experiments.ddim_paper.common import mean_and_error, prepare_whole_steps
from solvers import encode, sample

GRIDS = {"time": "equal steps in t, like the paper's τ", "logsnr": "equal steps in λ"}
BUDGETS = (10, 20, 50, 100, 200, 500, 1000)
SOLVERS = ("ddim", "dpm2", "heun", "dpm3", "dpmpp2m", "dpmpp3m", "ipndm", "unipc3")
MOST = 200  # evaluations of a solver other than ddim: more would show rounding
ROUNDING: dict[str, Any] = {"solver": "unipc3", "nfe": 500, "grid": "logsnr"}  # where rounding is looked at


def cells(solvers: tuple[str, ...], budgets: tuple[int, ...]) -> list[dict[str, Any]]:
    """Every solver at every budget on both grids, and two more: what float64 and what the noise at the clean end change."""
    plain = {"dtype": "float32", "start": "x0"}
    swept = [
        {"solver": solver, "nfe": nfe, "grid": grid, **plain}
        for grid in GRIDS
        for solver in solvers
        for nfe in budgets
        if solver == "ddim" or nfe <= MOST
    ]
    rounding = {**ROUNDING, "nfe": min(ROUNDING["nfe"], max(budgets))}
    extra = [rounding | plain, rounding | plain | {"dtype": "float64"}, rounding | plain | {"start": "x0 + noise"}]
    return swept + [cell for cell in extra if cell not in swept]


def round_trip(model: EpsModel, x0: Tensor, *, solver: str, nfe: int, grid: str) -> tuple[Tensor, Tensor, int]:
    """x_T of x0 (batch, *shape), what x_T is decoded to, and the evaluations of each way: at most nfe, in whole steps.

    InputError for solvers that cannot be run backwards.
    """
    there, back = (prepare_whole_steps(solver, model, nfe, grid, backwards=backwards) for backwards in (True, False))
    encoded = encode(model, x0, solver=there)
    decoded = sample(model, x=encoded.x, solver=back)
    return encoded.x, decoded.x, encoded.nfe


def images_of(loaded: pretrained.Pretrained, n: int, data_dir: str | None) -> tuple[Tensor, Tensor | None, str]:
    """Images in [−1, 1], their labels if there are any, and a description.

    The first n at data_dir; without it n of Fashion-MNIST's test images, a class in turn, or of a mixture's own exact samples, as
    real images are far from all that a mixture knows, where its flow is not smooth. InputError unless they fit the model.
    """
    labels: Tensor | None
    network, classes = loaded.model.network, loaded.model.classes
    if data_dir is not None:
        images = datasets.load(data_dir, "test")
        x0, labels = to_tensor(images.pixels[:n]), None if images.labels is None else torch.from_numpy(images.labels[:n])
        description = f"the first of {data_dir}"
    elif isinstance(network, Mixture):
        labels = torch.arange(n) % classes if classes else None
        x0 = exact_samples(network, labels, n)
        description = "exact samples of the mixture, a class in turn"
    else:
        (x0, labels), description = real_images(n), "Fashion-MNIST test, a class in turn"
    if tuple(x0.shape[1:]) != loaded.image:
        raise InputError(f"the images are {tuple(x0.shape[1:])}, those of the model {loaded.image}: name others with data_dir")
    return x0, labels, description


class Reconstruction:
    """The images and the model, in either precision, and the row of a cell. about: what decides all rows beside their cells."""

    def __init__(self, name: str, n: int, data_dir: str | None, seed: int) -> None:
        self.name, self.seed = name, seed
        loaded = pretrained.load(name)
        self.x0, self.labels, description = images_of(loaded, n, data_dir)
        self.about = {"model": name, "sha256": loaded.sha256, "images": len(self.x0), "data": description, "seed": seed}

    def model(self, dtype: str) -> EpsModel:
        """The model in a precision, with the labels of the images."""
        model = pretrained.load(self.name, getattr(torch, dtype)).model
        return model.labelled(self.labels) if model.classes and self.labels is not None else model

    def start(self, model: EpsModel, cell: Mapping[str, Any]) -> Tensor:
        """The state at the clean end: x0 itself, or α x0 + σ z."""
        x0 = self.x0.to(model.device, getattr(torch, cell["dtype"]))
        if cell["start"] == "x0":
            return x0
        alpha, sigma = model.schedule.path.at(model.schedule.lam_max)
        return alpha * x0 + sigma * SeededNoise(range(self.seed, self.seed + len(x0)))(0, x0)

    def measure(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        """E and its standard error over images, and the mean square of x_T."""
        model = self.model(cell["dtype"])
        start = self.start(model, cell)
        encoded, decoded, spent = round_trip(model, start, **{name: cell[name] for name in ("solver", "nfe", "grid")})
        mse, mse_se = mean_and_error(((decoded - start) / 2).square().flatten(1).mean(1))
        x_T, x_T_se = mean_and_error(encoded.square().flatten(1).mean(1))  # noqa: N806
        return {"spent": spent, "mse": mse, "mse_se": mse_se, "x_T": x_T, "x_T_se": x_T_se}
