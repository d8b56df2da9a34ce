"""Killed at any point, `sample` is finished by the same command: the same bytes, and nothing else in the folder.

A run is forked, and ends at its n-th call to the operating system that changes a file or a folder, as if it were killed there; then
it is run again.
"""

import builtins
import contextlib
import errno
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from diffode import InputError
from diffode.models import pretrained
from experiments.sampling import jobs
from experiments.sampling.generate import generate
from solvers import Budget

CALLS = [(os, name) for name in ("mkdir", "rmdir", "rename", "replace", "unlink", "remove", "fsync", "sync", "chmod")]
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

    def __str__(self):
        return "-".join(f"{name}={value}" for name, value in vars(self).items() if value not in (False, None))

    def run(self, toy, folder, **more):
        """Run it in a folder."""
        budget = Budget(2) if self.solver == "ddim" else Budget()
        seeds, batch = list(range(self.n)), self.n if self.trajectory else 1
        options = [] if self.solver == "ddim" else [("rtol", 0.5)]
        rest = {"seeds": seeds, "labels": None, "batch": batch, "trajectory": self.trajectory, "options": options}
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
]
CASES = [*KINDS, *(Case(**{**vars(case), "overwrite": True}) for case in KINDS)]


@pytest.fixture(scope="module")
def toy():
    return pretrained.load("mixture")


@contextlib.contextmanager
def counted(at):
    """at(name) before and after every call that changes what is on the disk."""

    def patched(function, changes):
        def call(*args, **kwargs):
            if not changes(*args, **kwargs):
                return function(*args, **kwargs)
            at(f"before {function.__name__}")
            result = function(*args, **kwargs)
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


def forked(function):
    """The exit code of function() in a process of its own: 0, or 1 if it raises."""
    if (pid := os.fork()) == 0:
        code = 1
        try:
            function()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def contents(folder):
    """Every file and folder, with its bytes; of a card without what differs from run to run."""
    found = {}
    for path in sorted(folder.rglob("*")):
        found[str(path.relative_to(folder))] = path.read_bytes() if path.is_file() else None
        if path.name.endswith((".png.json", ".npz.json", "a.json")) and path.is_file():
            card = json.loads(path.read_text(encoding="utf-8"))
            found[str(path.relative_to(folder))] = {**card, "date": None, "seconds": None}
    return found


def prepare(case, toy, folder):
    """What is there before: for an overwriting command, other outputs of the same names."""
    folder.mkdir()
    if case.overwrite:
        Case(**{**vars(case), "n": case.n + (1 if case.solver == "ddim" else 0), "overwrite": False}).run(toy, folder)


def sweep(case, toy, tmp_path, points=lambda name: True):
    """Kill the run of a case at each point, and run it again; how many points there were."""
    whole, names = tmp_path / "whole", []
    prepare(case, toy, whole)
    with counted(names.append):
        case.run(toy, whole)
    expected = contents(whole)
    left = {}
    for n in (n for n, name in enumerate(names) if points(name)):
        folder = tmp_path / str(n)
        prepare(case, toy, folder)
        seen = []

        def killed(name):
            seen.append(name)
            if len(seen) == n + 1:
                os._exit(9)

        def run():
            with counted(killed):
                case.run(toy, folder)

        assert forked(run) == 9
        complete = contents(folder) == expected
        assert complete or forked(lambda: case.run(toy, folder)) == 0, f"{names[n]} ({n}): refuses to go on"
        if contents(folder) != expected:
            left[n] = names[n], sorted(contents(folder).keys() ^ expected.keys())
    assert not left
    return len(names)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sweep(case, toy, tmp_path):
    t=time.time()
    print(case, sweep(case, toy, tmp_path), time.time()-t)
