"""Are the plans of all solvers, and the images of `sample`, the same to the bit as at another commit?

    python -m benchmarks.identity --against HEAD~1

Every solver, alias, and solver under UniC is planned on five schedules, four grids and three numbers of steps, forwards and
backwards, with and without a last step to σ = 0, with every option of `OPTIONS` that it has; and both shipped models are sampled
with every solver. This file is run in a checkout of the other commit and in this one, through the functions that both have
(`SOLVERS`, `solvers.sample`), and the digests are compared. Exit code 1 if any differs. A plan that is refused must be refused at
both; the message may differ. Set OMP_NUM_THREADS=1 where the machine is shared.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import click

HERE = Path(__file__).resolve().parents[1]
SCHEDULES = ("ddpm_linear", "vp_linear", "cosine", "edm", "flow")
STEPS = (1, 6, 15)
OPTIONS: tuple[dict[str, object], ...] = (
    {},
    {"start": "single"},
    {"lower_final": True},
    {"eta": 0.5},
    {"variant": "taylor"},
    {"variant": "bh1"},
    {"prediction": "noise"},
    {"prediction": "data"},
    {"order": 2},
    {"variance": "large"},
    {"variable": "lam"},
    {"r1": 0.4},
    {"tail": 2},
    {"s_noise": 1.003},
    {"corrector": 0},
)


def digests() -> dict[str, str]:
    """Of everything, in the checkout that this process runs in: name -> digest, or "refused"."""
    import torch

    from diffode import InputError, grid, schedules
    from solvers import SOLVERS, sample
    from solvers.registry import find

    torch.set_num_threads(1)  # so that products of matrices are summed in one order
    found: dict[str, str] = {}

    def record(name: str, compute: object) -> None:
        try:
            found[name] = hashlib.sha256(repr(compute()).encode()).hexdigest()[:16]  # type: ignore[operator]
        except InputError:
            found[name] = "refused"

    def table(plan: object) -> list[object]:
        rows = [(s.lam, s.x, tuple(s.c.items()), s.noise, s.draw, s.evaluate, s.commit) for s in plan.stages]  # type: ignore[attr-defined]
        return [plan.path.name, plan.prediction, plan.exact_marginals, rows]  # type: ignore[attr-defined]

    import solvers

    aliases = getattr(solvers, "ALIASES", {})  # which older commits lack
    names = [*SOLVERS, *aliases]
    names += [f"{name}+unic" for name in names]
    for name in names:
        try:
            solver = find(name)
        except InputError:
            continue
        if getattr(solver, "build", None) is None:
            continue
        for options in OPTIONS:
            if not options.keys() <= solver.options.keys():
                continue
            for schedule in (getattr(schedules, s)() for s in SCHEDULES):
                for spacing in grid.GRIDS:
                    for steps in STEPS:
                        for denoise in (False, True):
                            for backwards in (False, True):
                                lams = grid.make(spacing, schedule, steps, denoise=denoise)
                                lams = lams[::-1] if backwards else lams
                                record(
                                    f"{name} {options} {schedule.name} {spacing} {steps} {denoise} {backwards}",
                                    lambda s=solver, g=lams, n=schedule, o=options: table(s.plan(g, n, **o)),
                                )
    moved = Path("diffode/models").is_dir()  # older commits have the module elsewhere; an installed one is not theirs
    load = import_module("diffode.models.pretrained" if moved else "diffode.pretrained").load

    for model_name in ("mixture", "fashion"):
        model = load(model_name).model.labelled([3, 9])
        for name in (*SOLVERS, *aliases, "dpmpp3m+unic"):
            solver = find(name)
            budgets: list[dict[str, object]] = (
                [{"rtol": 0.05, "atol": 0.05}]
                if getattr(solver, "chooses_steps", getattr(solver, "adaptive", False))
                else [{"nfe": 12}, {"steps": 7}]
            )
            for budget in budgets:
                for guidance in (1.0, 2.0):
                    record(
                        f"sample {model_name} {name} {budget} {guidance}",
                        lambda m=model, n=name, b=budget, w=guidance: (
                            sample(m.guided(w), solver=n, shape=(2, 1, 28, 28), seed=7, **b).x.numpy().tobytes()
                        ),
                    )
    return found


def main() -> None:
    """Compare; or, without --against, print the digests of this checkout as JSON."""
    if len(sys.argv) < 3 or sys.argv[1] != "--against":
        json.dump(digests(), sys.stdout)
        return
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            ["git", "-C", str(HERE), "worktree", "add", "--detach", folder, sys.argv[2]], check=True, capture_output=True
        )
        try:
            before, after = (
                json.loads(
                    subprocess.run(
                        [sys.executable, __file__],
                        cwd=where,
                        env={**os.environ, "PYTHONPATH": where},
                        check=True,
                        capture_output=True,
                        text=True,
                    ).stdout
                )
                for where in (folder, str(HERE))
            )
        finally:
            subprocess.run(["git", "-C", str(HERE), "worktree", "remove", "--force", folder], check=True)
    differing = [name for name, digest in before.items() if after.get(name) != digest]
    for name in differing:
        click.echo(f"{name}: {before[name]}, now {after.get(name, 'absent')}")
    click.echo(f"{len(before) - len(differing)} of {len(before)} are the same, {len(set(after) - set(before))} are new")
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
