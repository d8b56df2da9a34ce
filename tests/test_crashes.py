"""Killed at any point, `sample` is finished by the same command: the same bytes, and nothing else in the folder.

A run is forked, and ends at its n-th call to the operating system that changes a file or a folder, as if it were killed there;
then it is run again.
"""

import builtins
import contextlib
import dataclasses
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import main
from diffode import EpsModel, InputError
from diffode.models import pretrained
from experiments.sampling import jobs
from experiments.sampling.generate import generate
from solvers import Budget

CALLS = [(os, name) for name in ("mkdir", "rmdir", "rename", "replace", "unlink", "remove", "fsync", "sync", "chmod")]
WAITS = [os.fsync, os.sync]  # on which only a loss of power depends; left out, for time
OPENS = [(builtins, "open"), (io, "open"), (os, "open")]


@dataclass(frozen=True)
class Case:
    """A command of `sample`: its output, and what else it writes."""

    out: str
    n: int = 2
    trajectory: bool = False
    save_plan: str | None = None
    solver: str = "ddim"
    overwrite: bool = False
    floats: bool = False

    def __str__(self):
        return "-".join(f"{name}={value}" for name, value in vars(self).items() if value not in (False, None))

    def run(self, toy, folder, **more):
        """Run it in a folder."""
        budget = Budget(2) if self.solver == "ddim" else Budget()
        seeds, batch = list(range(self.n)), self.n if self.trajectory else 1
        options = [] if self.solver == "ddim" else [("rtol", 0.5)]
        rest = {
            "seeds": seeds,
            "labels": None,
            "batch": batch,
            "trajectory": self.trajectory,
            "options": options,
            "floats": self.floats,
        }
        task = jobs.prepare_job(toy, "toy", self.solver, budget, **rest)
        save_plan = self.save_plan and folder / self.save_plan
        return generate(task, folder / self.out, save_plan=save_plan, overwrite=self.overwrite, **more)


KINDS = [
    Case("a.npz"),
    Case("a"),
    Case("a.png"),
    Case("a.png", trajectory=True),
    Case("a", trajectory=True, save_plan="new/p.json"),
    Case("a.npz", n=1, solver="dpm12", save_plan="p.json"),
    Case("a.safetensors", floats=True),
    Case("a.npz", floats=True, trajectory=True),
]
CASES = [*KINDS, *(Case(**{**vars(case), "overwrite": True}) for case in KINDS)]


@pytest.fixture(scope="module")
def toy():
    """As small as a model can be."""
    mixture = pretrained.load("mixture")
    model = EpsModel(lambda x, t: 0.1 * x, mixture.model.schedule)
    return dataclasses.replace(mixture, model=model, card=dataclasses.replace(mixture.card, image=(1, 2, 2)))


@contextlib.contextmanager
def counted(at):
    """at(name) before and after every call that changes what is on the disk."""

    def patched(function, changes):
        def call(*args, **kwargs):
            if not changes(*args, **kwargs):
                return function(*args, **kwargs)
            at(f"before {function.__name__}")
            result = None if function in WAITS else function(*args, **kwargs)
            at(f"after {function.__name__}")
            return result

        return call

    def writes(file, mode="r", *_, **__):
        return bool(mode & os.O_CREAT if isinstance(mode, int) else set(mode) & set("wax+"))

    originals = [(module, name, getattr(module, name)) for module, name in [*CALLS, *OPENS]]
    for module, name, function in originals:
        setattr(module, name, patched(function, writes if (module, name) in OPENS else lambda *_, **__: True))
    try:
        yield
    finally:
        for module, name, function in originals:
            setattr(module, name, function)


def killed_at(n, function):
    """Call function() in a process of its own, which is killed at its n-th point; whether it was."""
    if (pid := os.fork()) == 0:
        countdown = iter(range(n))
        try:
            with counted(lambda name: next(countdown, None) is None and os._exit(9)):
                function()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


def contents(folder):
    """Every file and folder, with its bytes; of a card without what differs from run to run."""
    found = {}
    for path in sorted(folder.rglob("*")):
        found[str(path.relative_to(folder))] = path.read_bytes() if path.is_file() else None
        if path.parent == folder and path.name.startswith("a") and path.suffix == ".json":
            card = json.loads(path.read_text(encoding="utf-8"))
            found[str(path.relative_to(folder))] = {**card, "date": None, "seconds": None}
    return found


def prepare(case, toy, folder):
    """What is there before: for an overwriting command, other outputs of the same names."""
    folder.mkdir()
    if case.overwrite:
        more = {"n": 3, "trajectory": False} if case.solver == "ddim" else {"n": 1}
        Case(**{**vars(case), **more, "overwrite": False}).run(toy, folder)


def sweep(case, toy, tmp_path, points):
    """Kill the run of a case at each of the points, and run it again; how many points there were."""
    whole, before, names = tmp_path / "whole", tmp_path / "before", []
    prepare(case, toy, before)
    shutil.copytree(before, whole)
    with counted(names.append):
        case.run(toy, whole)
    expected, failed = contents(whole), []
    for n in range(*points.indices(len(names))):
        folder = shutil.copytree(before, tmp_path / str(n))
        assert killed_at(n, lambda folder=folder: case.run(toy, folder))
        if contents(folder) == expected:
            continue  # complete: the same command would say that the output exists
        with counted(lambda name: None):
            try:
                case.run(toy, folder)
            except InputError as error:
                failed.append((n, names[n], str(error)))
        if more := contents(folder).keys() ^ expected.keys() or contents(folder) != expected:
            failed.append((n, names[n], more))
        shutil.rmtree(folder)
    assert not failed
    return len(range(*points.indices(len(names))))


@pytest.mark.parametrize(("first", "case"), list(enumerate(CASES)), ids=str)
def test_killed_it_is_finished_by_the_same_command(first, case, toy, tmp_path):
    """At every 47th point, of each kind of output another."""
    assert sweep(case, toy, tmp_path, slice(4 * first, None, 47)) > 2


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_killed_anywhere_it_is_finished_by_the_same_command(case, toy, tmp_path):
    points = sweep(case, toy, tmp_path, slice(None))
    print(f"{case}: {points} points")  # noqa: T201
    assert points > 100


@pytest.mark.parametrize("case", [CASES[0], CASES[12]], ids=str)
def test_a_disk_that_fails_anywhere_loses_nothing(case, toy, tmp_path):
    """At every 29th point a sentence of the system, and then the same command ends as ever."""
    before, whole, names = tmp_path / "before", tmp_path / "whole", []
    prepare(case, toy, before)
    shutil.copytree(before, whole)
    with counted(names.append):
        case.run(toy, whole)
    for n in range(0, len(names), 29):
        folder, countdown = shutil.copytree(before, tmp_path / str(n)), iter(range(n))

        def full(name, countdown=countdown):
            if next(countdown, None) is None:
                raise OSError(errno.ENOSPC, "No space left on device")

        with counted(full), contextlib.suppress(OSError, InputError):
            case.run(toy, folder)
        visible = {name for name in os.listdir(folder) if not name.startswith(".")}
        assert not case.overwrite or {path.name for path in before.iterdir()} <= visible
        if contents(folder) != contents(whole):
            case.run(toy, folder)
        assert contents(folder) == contents(whole), names[n]
        shutil.rmtree(folder)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_process_that_is_killed_is_finished_by_the_same_command(tmp_path, monkeypatch, number):
    monkeypatch.chdir(tmp_path)
    command = ["sample", "--model", "mixture", "--n", "8", "--batch", "2", "--nfe", "30", "--out", "a"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen([sys.executable, "-m", "diffode", *command], env=environment, stderr=subprocess.DEVNULL)
    try:
        while not list(tmp_path.glob(".a.*/*.npz")):
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(number)
        assert process.wait(30) != 0
    finally:
        process.kill()
    again = CliRunner().invoke(main, command)
    assert again.exit_code == 0, again.output
    assert sorted(os.listdir(tmp_path)) == ["a", "a.json"]
    assert CliRunner().invoke(main, [*command[:-1], "b"]).exit_code == 0
    assert [path.read_bytes() for path in sorted(Path("a").iterdir())] == [
        path.read_bytes() for path in sorted(Path("b").iterdir())
    ]
