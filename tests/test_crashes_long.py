"""Killed wherever the disk is changed, train and compare end as if they had not been, and leave nothing else behind.

The run is forked, and its process ends (as by SIGKILL: nothing is cleaned up) just before, or just after, the n-th call that
makes, moves, removes or flushes a file or a folder. Then the same command is given again.
"""

import os
import re
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from experiments.common import results
from experiments.comparison import compare, curves, optimal_grid, problem, report
from experiments.comparison.cells import make_cells
from experiments.comparison.cost import Cost
from experiments.sampling.recipe import Recipe
from experiments.training import train

CALLS = ("replace", "rename", "unlink", "remove", "rmdir", "mkdir", "fsync")
SAMPLED = 6  # points of each command that are tried in every run of the tests


def forked(work, at=None, *, after=False):
    """Do the work in a process that dies at its call number `at`: the number of calls that it made, None if it died."""
    reading, writing = os.pipe()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        try:
            calls = counted(at, after)
            work()
            os.write(writing, str(len(calls)).encode())
        except BaseException as error:
            os.write(writing, repr(error).encode()[:2000])
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    assert not said or said.isdigit(), said
    return int(said) if said else None


def counted(at, after):
    """The calls from now on, in this process, which dies at one of them."""
    calls = []

    def watch(real):
        def call(*args, **kwargs):
            calls.append(real.__name__)
            dying = len(calls) - 1 == at
            if dying and not after:
                os._exit(9)
            result = real(*args, **kwargs)
            if dying:
                os._exit(9)
            return result

        return call

    for name in CALLS:
        setattr(os, name, watch(getattr(os, name)))
    return calls


def tree(folder):
    """Everything in a folder: the bytes of files, None for folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def left_by(work, out, points):
    """Of the points, each (call, after), those after which another run does not end with what `whole` has, and what it has."""
    work(out / "whole")
    whole, bad = tree(out / "whole"), {}
    for i, (at, after) in enumerate(points):
        place = out / f"{i}" / "whole"
        forked(lambda place=place: work(place), at, after=after)
        said = forked(lambda place=place: work(place))
        found = tree(place) if said else {}
        if found != whole:
            bad[at, after] = sorted({*found.items()} ^ {*whole.items()}) if said else "refused"
    return bad


def points_of(work, out, sampled):
    """All points of the work, or so many of them that lie evenly."""
    count = forked(lambda: work(out / "counted"))
    points = [(at, after) for at in range(count) for after in (False, True)]
    return points if sampled is None else points[:: -(-len(points) // sampled)]


@pytest.fixture
def training(tmp_path, monkeypatch):
    """A run of two savings, as a function of its folder; given again, it is resumed if there is what to resume. Its samples are
    made quick."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", rng.integers(0, 256, (16, 8, 8, 1), np.uint8), np.arange(16) % 2)
    monkeypatch.setattr(train, "sample", lambda model, shape, **_: SimpleNamespace(x=torch.zeros(shape)))

    def work(folder):
        options = train.TrainOptions(
            out=folder, resume=(folder / "state.safetensors").exists(), images=16, every=8, data_dir=str(tmp_path / "data.npz"),
            device="cpu", width=16, multipliers="1", blocks=1, attention="", patch=2, schedule="ddpm_linear", predicts="velocity",
            gamma="simple", batch=4, lr=1e-3, drop_label=0.1, seed=0, bf16=False,
        )  # fmt: skip
        train.train(options, "train")

    return work


MODEL = """
from diffode import EpsModel, schedules
model = EpsModel(lambda x, t: 0.3 * x, schedules.vp_linear(), shape=(1, 4, 4))
"""


@pytest.fixture
def comparison(tmp_path, monkeypatch):
    """A comparison of two solvers on two grids, one of them optimal, as a function of its folder. Drawing is made quick."""
    monkeypatch.chdir(tmp_path)
    Path("crashing.py").write_text(MODEL)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    settings = problem.Settings("crashing:model", n=2, batch=1, recipe=Recipe(dtype="float64", device="cpu"))
    cells = make_cells(["ddim", "dpmpp2m"], ["logsnr", "optimal"], [2])

    @contextmanager
    def metered(device):
        yield Cost(1.0, 1.0)

    def found(trajectories, contender, nfe):
        lam = [settings_lam.lam_min, 0.0, settings_lam.lam_max]
        return optimal_grid.OptimalGrid(lam, contender, nfe, "logsnr", 0.0, {}, {**compare.flat(settings), "sha256": sha256})

    here = problem.Problem(settings)
    settings_lam, sha256 = here.schedule, here.loaded.sha256
    monkeypatch.setattr(problem, "metered", metered)
    monkeypatch.setattr(optimal_grid, "find_optimal_grid", found)
    monkeypatch.setattr(compare.OptimalGridCache, "trajectories", None)
    monkeypatch.setattr(curves, "draw_figure", lambda rows, *_: Figure((0.1, 0.1)))
    monkeypatch.setattr(report, "render", lambda folders: repr(results.read(folders[0] / "rows")))

    def work(folder):
        compare.compare_solvers(settings, cells, folder, features="none", tolerance=1e-4, command="compare")

    yield work
    sys.modules.pop("crashing", None)


def test_training_says_what_it_will_cost(tmp_path, training, capsys):
    training(tmp_path / "run")
    assert re.search(r"^run: 3 more steps, about .* s by the first, which took .* s$", capsys.readouterr().err, re.M)


@pytest.mark.parametrize("command", ["training", "comparison"])
@pytest.mark.parametrize("sampled", [SAMPLED, pytest.param(None, marks=pytest.mark.slow)], ids=["some", "all"])
def test_killed_anywhere_it_ends_with_the_same_bytes(tmp_path, request, command, sampled):
    work = request.getfixturevalue(command)
    began = time.monotonic()
    points = points_of(work, tmp_path / "a", sampled)
    bad = left_by(work, tmp_path / "b", points)
    click.echo(f"{command}: {len(points)} points, {len(bad)} of them left something, {time.monotonic() - began:.0f} s")
    assert not bad
