"""What the loop costs beside the network: python -m benchmarks.overhead

The network costs nothing (it returns its input), so what is timed is the loop: seconds per evaluation, as a ratio to copying
as many tensors of the state's size as the evaluation's rows must read and write. Memory is the peak that a run adds, in
states: of the process (in a process of its own) on a CPU, of the allocator on a GPU; once for few steps and once for many,
which must be the same, since the loop allocates nothing after its first steps.

Absolute times of a shared machine mean little; the ratios are what to look at.
"""

from __future__ import annotations

import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch

from diffode import EpsModel, schedules
from diffode.files import atomic, write_json
from experiments.generate import choose_device
from solvers import SOLVERS, Plan, run

SHAPES = ((1, 4, 64, 64), (64, 1, 28, 28), (16, 3, 256, 256))
NAMES = ("ddim", "dpm2", "dpm3", "dpmpp2m")
MEMORY_SHAPE = (64, 3, 256, 256)


def setting(name: str, steps: int) -> tuple[Plan, EpsModel]:
    """A plan, and a model whose network costs nothing and predicts what the plan wants."""
    schedule = schedules.ddpm_linear()
    plan = SOLVERS[name].plan(np.linspace(schedule.lam_min, schedule.lam_max, steps + 1), schedule)
    return plan, EpsModel(lambda x, t: x, schedule, plan.prediction)


def touched(plan: Plan) -> float:
    """Tensors of the state's size that an evaluation must read or write: a term of a row is one read, a row one write; storing
    an evaluation is a read and a write."""
    reads = sum(bool(stage.x) + len(stage.c) for stage in plan.stages[1:])
    return (reads + len(plan.stages) - 1 + 2 * plan.nfe) / plan.nfe


def median_seconds(function: Callable[[], object], device: str, repeats: int) -> float:
    """Median seconds a call, after two calls that warm up."""
    times = []
    for i in range(repeats + 2):
        began = time.perf_counter()
        function()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
        if i < 2:
            times.clear()
    return statistics.median(times)


def speed(name: str, shape: tuple[int, ...], device: str, repeats: int) -> dict[str, object]:
    """Seconds an evaluation of the loop, and of copying what it touches, on the same tensors."""
    plan, model = setting(name, 30)
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
        "shape": "×".join(map(str, shape)),
        "microseconds_per_nfe": round(1e6 * loop, 1),
        "tensors_touched": round(tensors, 2),
        "ratio_to_copying_them": round(loop / (one_copy * tensors / 2), 2),  # a copy touches two
    }


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


def markdown(rows: list[dict[str, object]]) -> str:
    """Rows with the same keys as a table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(map(str, row.values())) for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("_", " ") for cell in line) + " |" for line in lines) + "\n"


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="Write OUT.json and OUT.md too.")
@click.option("--device", default="auto", show_default=True)
@click.option("--repeats", default=20, show_default=True, type=click.IntRange(1))
def main(out: Path | None, device: str, repeats: int) -> None:
    """Measure what the sampling loop costs beside the network."""
    device = choose_device(device)
    speeds = [speed(name, shape, device, repeats) for shape in SHAPES for name in NAMES]
    memories = [memory(name, device) for name in NAMES]
    text = markdown(speeds) + "\n" + markdown(memories)
    click.echo(text)
    if out is not None:
        machine = {
            "device": device,
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "torch": torch.__version__,
        }
        command = f"python -m benchmarks.overhead --repeats {repeats}"
        write_json(out.with_suffix(".json"), {"command": command, **machine, "speed": speeds, "memory": memories})
        with atomic(out.with_suffix(".md")) as part:
            part.write_text(f"{json.dumps(machine)}, `{command}`\n\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()
