"""Comparisons with fabricated numbers: errors fall as those of methods of an order, and each cell's pictures are grey."""

import numpy as np
from PIL import Image

from experiments.common import results
from experiments.comparison.cells import cell_filename

ORDERS = {"ddim": 1, "dpmpp2m": 2, "unipc3": 3}
GRIDS = {"logsnr": 1.0, "time": 1.7}
BUDGETS = (5, 10, 20)
SIDE, SEEDS = 28, 4  # of pictures
REFERENCE, SHADE = 100, 10  # grey of the reference's first seed, and how much brighter the next is
ABOUT = {
    "model": "fashion",
    "sha256": "0123456789abcdef" * 4,
    "shape": [1, SIDE, SIDE],
    "n": 64,
    "seed": 3,
    "labels": "in turn",
    "guidance": 1.0,
    "clip": False,
    "threshold": None,
    "dtype": "float32",
    "device": "cpu",
    "denoise": False,
    "lam": [-5.06, 4.61],
    "solution": {"method": "DOP853", "tolerance": 1e-8, "nfe": 512, "rmse": 1e-9, "median": 1e-9},
    "features": None,
    "data": None,
}


def cell(solver, grid, nfe, rtol=None, **numbers):
    """A row of these numbers, whose other errors follow from its rmse."""
    rmse = numbers.pop("rmse", 0.1)
    spent = numbers.pop("spent", nfe)
    median, worst = (rmse, rmse) if isinstance(rmse, str) else (0.8 * rmse, 3 * rmse)
    errors = {"rmse": rmse, "median": median, "worst": worst}
    costs = {"spent": spent, "calls": spent, "seconds": 0.01 * spent, "peak_mib": 300.0}
    return {"solver": solver, "grid": grid, "nfe": nfe, "rtol": rtol, **costs, **errors, **numbers}


def without(solver, grid, nfe, **reason):
    """A row that failed (error=...) or was left out (skipped=...)."""
    return {"solver": solver, "grid": grid, "nfe": nfe, "rtol": None, **reason}


def fixed(orders=ORDERS, grids=GRIDS, budgets=BUDGETS):
    """Solvers of fixed steps."""
    return [
        cell(solver, grid, nfe, rmse=0.3 * GRIDS.get(grid, 1.3) * (5 / nfe) ** order)
        for solver, order in orders.items()
        for grid in grids
        for nfe in budgets
    ]


def adaptive(solver="dpm23", spent=(9.5, 14.5, 31.0)):
    """A solver of three tolerances."""
    return [cell(solver, "own", None, rtol, rmse=rtol, spent=each) for rtol, each in zip((0.1, 0.03, 0.01), spent, strict=True)]


def mixed():
    """All kinds of rows."""
    return [
        *fixed(),
        *adaptive(),
        without("heun", "logsnr", 5, skipped="heun cannot spend exactly 5 evaluations: 4 or 6 can be"),
        cell("heun", "logsnr", 10, rmse=0.2),
        without("heun", "logsnr", 20, error="the state is not finite at λ = −1.2"),
        cell("lms", "time", 10, rmse="inf"),
    ]


def grey(index):
    """Of the first seed's picture of a row."""
    return 110 + index % 100


def comparison(folder, found, *, pictures=True, **about):
    """Write a folder as `compare` does; returns it."""
    by_name = {cell_filename(row): row for row in found}
    names = ("solver", "grid", "nfe", "rtol")
    cells = [{name: row[name] for name in names} for row in found]

    def compute(cell):
        return {name: value for name, value in by_name[cell_filename(cell)].items() if name not in names}

    results.fill(folder / "rows", cells, compute, about={**ABOUT, **about}, command="python cli.py compare --model fashion")
    if pictures:
        save(folder / "pictures" / "reference.png", REFERENCE)
        for index, row in enumerate(found):
            if "spent" in row:
                save(folder / "pictures" / f"{cell_filename(row)}.png", grey(index))
    return folder


def save(file, value, *, seeds=SEEDS, side=SIDE, rng=None):
    """Save a strip of images of one grey each, SHADE brighter with each seed, or of noise in colour."""
    file.parent.mkdir(parents=True, exist_ok=True)
    greys = np.repeat(np.arange(seeds) * SHADE + value, side)[None].repeat(side, 0).astype(np.uint8)
    pixels = greys if rng is None else rng.integers(0, 256, (*greys.shape, 3), np.uint8)
    Image.fromarray(pixels).save(file)
