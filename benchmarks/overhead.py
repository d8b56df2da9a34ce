"""What sampling costs outside the network: python -m benchmarks.overhead

The network costs nothing (it returns its input), so what is timed is the loop: seconds per evaluation, as a ratio to copying
as many tensors of the state's size as the evaluation's rows must read and write. Memory is the peak that a run adds, in
states: of the process (in a process of its own) on a CPU, of the allocator on a GPU; once for few steps and once for many,
which must be the same, since the loop allocates nothing after its first steps.

Peers run the same method, DPM-Solver++(2M), on the same tensors with the same network, which predicts noise: those of
diffusers and k-diffusion if installed, that of the DPM-Solver authors if its file is given. Runs take turns, so what else the
machine does falls on all alike. Plans, set_timesteps and the like are made before the clock starts.

The fixed cost of `sample` (its grid, its plan, its noise) is measured in fixed_cost.py.

Absolute times of a shared machine mean little; the ratios are what to look at.
"""

from __future__ import annotations

import inspect
import json
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks import fixed_cost, peer_packages, peers
from benchmarks.measure import STEPS, markdown, median_seconds, seconds, setting, size, touched
from diffode import EpsModel, InputError, schedules
from diffode.files import atomic, write_json
from experiments.sampling.recipe import choose_device
from solvers import run

SHAPES = ((1, 4, 64, 64), (64, 1, 28, 28), (16, 3, 256, 256))
NAMES = ("ddim", "dpm2", "dpm3", "dpmpp2m", "unipc3")
PEER_SHAPES = ((1, 4, 64, 64), (16, 3, 256, 256))
MEMORY_SHAPE = (64, 3, 256, 256)
Prepare = Callable[[], Callable[[], object]]  # makes ready, off the clock, what is then timed


def speed(name: str, shape: tuple[int, ...], device: str, repeats: int) -> dict[str, object]:
    """Seconds an evaluation of the loop, and of copying what it touches, on the same tensors."""
    plan, model = setting(name, STEPS)
    x = torch.randn(shape, device=device)
    others = [torch.empty_like(x) for _ in range(8)]
    copies = 64

    def copy() -> None:
        for i in range(copies):
            others[i % 8].copy_(x)

    loop = median_seconds(lambda: run(plan, model, x), device, repeats) / plan.nfe
    one_copy = median_seconds(copy, device, repeats) / copies
    tensors = touched(plan)
    return {
        "solver": name,
        "shape": size(shape),
        "microseconds_per_nfe": round(1e6 * loop, 1),
        "tensors_touched": round(tensors, 2),
        "ratio_to_copying_them": round(loop / (one_copy * tensors / 2), 2),  # a copy touches two
    }


def ours(x: Tensor) -> Prepare:
    """Our loop."""
    plan, model = setting("dpmpp2m", STEPS)
    model = EpsModel(model.network, model.schedule, "noise")
    return lambda: lambda: run(plan, model, x)


def diffusers(x: Tensor) -> Prepare:
    """DPMSolverMultistepScheduler, in the loop of its pipelines."""

    def prepare() -> Callable[[], object]:
        scheduler = peers.make("DPMSolverMultistep", STEPS, lower_order_final=False, final_sigmas_type="sigma_min")

        def loop() -> Tensor:
            state = x
            for t in scheduler.timesteps:
                state = scheduler.step(scheduler.scale_model_input(state, t), t, state).prev_sample
            return state

        return loop

    peers.module_of("DPMSolverMultistep")
    return prepare


def k_diffusion(x: Tensor) -> Prepare:
    """sample_dpmpp_2m, which wants x̂0 as a function of x/α and σ/α."""
    sampling, schedule = peer_packages.k_diffusion(), schedules.ddpm_linear()
    sigmas = torch.tensor(np.exp(-schedule.lam(np.linspace(999, 0, STEPS + 1))), dtype=x.dtype, device=x.device)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return x - x * sigma.view(-1, *[1] * (x.ndim - 1))

    return lambda: lambda: sampling.sample_dpmpp_2m(denoise, x, sigmas, disable=True)


def authors(x: Tensor, file: Path) -> Prepare:
    """DPM_Solver.sample of the authors of DPM-Solver, in data form, which two versions of their file ask for differently."""
    module = peer_packages.dpm_solver(file)
    betas = torch.linspace(1e-4, 0.02, 1000, device=x.device)
    schedule = module.NoiseScheduleVP("discrete", betas=betas)
    vars(module)["tqdm"] = lambda steps, **_: steps  # one version draws a progress bar, which is not what is timed
    older = "predict_x0" in inspect.signature(module.DPM_Solver).parameters
    form: dict[str, Any] = {"predict_x0": True} if older else {"algorithm_type": "dpmsolver++"}
    solver = module.DPM_Solver(module.model_wrapper(lambda x, t: x, schedule), schedule, **form)
    return lambda: lambda: solver.sample(x, steps=STEPS, order=2, method="multistep", lower_order_final=False)


def against_peers(shape: tuple[int, ...], device: str, repeats: int, file: Path | None) -> list[dict[str, object]]:
    """Seconds a step of dpmpp2m, ours and those of whoever is there, and their ratios to ours; best of `repeats` turns each."""
    x = torch.randn(shape, device=device)
    makers: dict[str, Callable[[Tensor], Prepare]] = {"diffode": ours, "diffusers": diffusers, "k-diffusion": k_diffusion}
    if file is not None:
        makers["DPM-Solver authors"] = lambda x: authors(x, file)
    prepared: dict[str, Prepare] = {}
    for name, maker in makers.items():
        try:
            prepared[name] = maker(x)
        except InputError as error:
            click.echo(f"{name} is left out: {error}", err=True)
    times: dict[str, list[float]] = {name: [] for name in prepared}
    for turn in range(repeats + 1):  # the first warms up
        for name, prepare in prepared.items():
            times[name] += [seconds(prepare(), device)] * bool(turn)
    best = {name: min(values) / STEPS for name, values in times.items()}
    return [
        {
            "sampler": name,
            "shape": size(shape),
            "microseconds_per_step": round(1e6 * seconds, 1),
            "ratio_to_diffode": round(seconds / best["diffode"], 2),
        }
        for name, seconds in best.items()
    ]


def added_states(name: str, steps: int, device: str) -> float:
    """Peak memory that a run adds, in states; to be called in a process of its own."""
    plan, model = setting(name, steps)
    x = torch.randn(MEMORY_SHAPE, device=device)
    size = x.numel() * x.element_size()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(plan, model, x)
        return (torch.cuda.max_memory_allocated() - before) / size
    run(setting(name, 2)[0], model, x[:1].clone())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(plan, model, x)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / size


def memory(name: str, device: str) -> dict[str, object]:
    """States added by 5 and by 40 steps, each in a fresh process."""
    row: dict[str, object] = {"solver": name, "plan_memory": setting(name, 5)[0].memory}
    for steps in (5, 40):
        code = f"from benchmarks.overhead import added_states; print(added_states({name!r}, {steps}, {device!r}))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        row[f"states_added_by_{steps}_steps"] = round(float(done.stdout), 2)
    return row


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="Write OUT.json and OUT.md too.")
@click.option("--device", default="auto", show_default=True)
@click.option("--repeats", default=20, show_default=True, type=click.IntRange(1))
@click.option(
    "--dpm-solver", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The authors' dpm_solver_pytorch.py."
)
@click.option("--fast", is_flag=True, help="Small tensors and no memory: to see that it works.")
def main(out: Path | None, device: str, repeats: int, dpm_solver: Path | None, fast: bool) -> None:
    """Measure what sampling costs outside the network."""
    device = choose_device(device)
    shapes, peer_shapes = (((1, 1, 8, 8),),) * 2 if fast else (SHAPES, PEER_SHAPES)
    speeds = [speed(name, shape, device, repeats) for shape in shapes for name in NAMES]
    compared = [row for shape in peer_shapes for row in against_peers(shape, device, repeats, dpm_solver)]
    memories = [] if fast else [memory(name, device) for name in NAMES]
    fixed = fixed_cost.tables(repeats, fast)
    text = "\n".join(markdown(rows) for rows in (speeds, compared, memories, *fixed.values()) if rows)
    click.echo(text)
    if out is not None:
        machine = {
            "device": device,
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "torch": torch.__version__,
            **peers.versions(),
        }
        command = f"python -m benchmarks.overhead --repeats {repeats}"
        write_json(
            out.with_suffix(".json"),
            {"command": command, **machine, "speed": speeds, "peers": compared, "memory": memories, "fixed_cost": fixed},
        )
        with atomic(out.with_suffix(".md")) as part:
            part.write_text(f"{json.dumps(machine)}, `{command}`\n\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()
