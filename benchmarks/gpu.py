"""What diffode does on a GPU, in one run of a few minutes: python -m benchmarks.gpu --out benchmarks/gpu --commit HASH

Needs diffode, its dependencies and a CUDA build of torch; no network and no other package. Parts, in this order: solvers, models,
likelihood and synchronisation check (the device against the CPU, the same bits twice, no waiting of the host in a planned loop);
overhead, memory, adaptive, fashion, cifar and compiled measure. A part or a row that fails is a row with its error, and the next
one runs. OUT.json is written after every part, so that a run that is cut off leaves what it has; OUT.md is made from its rows.
Exit code 1 if any row is not ok.
"""

from __future__ import annotations

import json
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import click
import numpy as np
import torch

from benchmarks import gpu_checks, gpu_compile, gpu_speed
from benchmarks.gpu_checks import Row
from benchmarks.measure import markdown
from diffode.files import atomic, write_json


@dataclass(frozen=True)
class Part:
    """A part of the run. measure: (device, fast) -> its rows; its docstring is the text above the table. limit: seconds."""

    name: str
    title: str
    measure: Callable[[str, bool], Iterator[Row]]
    limit: float = 60.0


PARTS = (
    Part("solvers", "Every solver, against the CPU", gpu_checks.solvers, 90),
    Part("models", "Networks, guidance and callbacks, against the CPU", gpu_checks.models),
    Part("likelihood", "Likelihood, against the CPU", gpu_checks.likelihoods),
    Part("synchronisation", "Does the host wait in the loop?", gpu_checks.synchronisation),
    Part("overhead", "What the loop costs", gpu_speed.overhead),
    Part("memory", "Memory", gpu_speed.memory),
    Part("adaptive", "Solvers that choose their steps", gpu_speed.adaptive),
    Part("fashion", "The shipped U-Net", gpu_speed.fashion_rates, 90),
    Part("cifar", "A U-Net for CIFAR-10", gpu_speed.cifar_rates),
    Part("compiled", "Compiled", gpu_compile.compiled, 150),
)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """TimeIsUpError after so many seconds."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise gpu_checks.TimeIsUpError(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def measured(part: Part, device: str, fast: bool, limit: float) -> dict[str, Any]:
    """The rows of a part and its seconds; those that there were, and a row with the error, if it fails or takes too long."""
    rows: list[Row] = []
    began = time.perf_counter()

    def collect() -> Row:
        with time_limit(max(limit, 0.1)):
            for row in part.measure(device, fast):
                rows.append(row)
        return {}

    try:
        if failed := gpu_checks.attempt({}, collect):
            rows.append(failed)
    except gpu_checks.TimeIsUpError as error:
        rows.append({"ok": False, "error": str(error)})
    return {"seconds": round(time.perf_counter() - began, 1), "rows": rows}


def head(device: str, seed_note: str, commit: str) -> dict[str, Any]:
    """What was run, where, and with which versions."""
    names = ("torch", "numpy", "scipy", "torchdiffeq", "einops", "safetensors")
    card = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
    versions = {name: version(name) for name in names} | {"python": platform.python_version(), "cuda": torch.version.cuda}
    return {
        "command": shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "commit": commit,
        "device": card,
        "versions": versions,
        "seed": seed_note,
    }


def commit_here() -> str:
    """The commit of this checkout, "" where there is no git."""
    try:
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    except OSError:
        return ""
    return done.stdout.strip()


def document(result: dict[str, Any]) -> str:
    """The Markdown page of a result."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items() if number)
    lines = ["# On a GPU", "", f"{result['device']}, {result['date']}, commit {result['commit'] or 'unknown'}; {versions}.", ""]
    lines += ["Made by", "", f"    {result['command']}", ""]
    for part in PARTS:
        found = result["parts"].get(part.name)
        if not found or not found["rows"]:
            continue
        rows = found["rows"]
        wrong = sum(not row.get("ok") for row in rows)
        text = " ".join((part.measure.__doc__ or "").split())
        lines += [f"## {part.title}", "", text, "", f"{len(rows) - wrong} of {len(rows)} rows are ok; {found['seconds']} s.", ""]
        lines += [markdown(rows)]
    return "\n".join(lines)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="Write OUT.json and OUT.md.")
@click.option("--commit", default="", help="The commit that is measured, where there is no git to ask.")
@click.option("--device", default="cuda", show_default=True)
@click.option("--only", multiple=True, type=click.Choice([part.name for part in PARTS]), help="These parts alone.")
@click.option("--limit", default=330.0, show_default=True, help="Seconds for all parts together.")
@click.option("--fast", is_flag=True, help="Everything in small on the CPU: to see that it works.")
@click.option("--render", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Print the page of a JSON, and end.")
def main(
    out: Path | None, commit: str, device: str, only: tuple[str, ...], limit: float, fast: bool, render: Path | None
) -> None:
    """Check and measure diffode on a GPU."""
    if render is not None:
        click.echo(document(json.loads(render.read_text(encoding="utf-8"))), nl=False)
        return
    device = "cpu" if fast else device
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise click.UsageError(f"torch {torch.__version__} sees no GPU here: give --fast, which runs all on the CPU")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # float32 is float32, unless a row says TF32
    result = {**head(device, "7 for x_T against the CPU, 0 elsewhere", commit or commit_here()), "parts": {}}
    began = time.perf_counter()
    for part in PARTS:
        if only and part.name not in only:
            continue
        left = limit - (time.perf_counter() - began)
        found = measured(part, device, fast, min(part.limit, left))
        result["parts"][part.name] = found
        click.echo(f"{part.title}: {found['seconds']} s\n\n{markdown(found['rows']) if found['rows'] else 'nothing to do'}\n")
        if out is not None:
            write_json(out.with_suffix(".json"), result)
            with atomic(out.with_suffix(".md")) as file:
                file.write_text(document(result), encoding="utf-8")
    failed = [row for found in result["parts"].values() for row in found["rows"] if not row.get("ok")]
    click.echo(f"{len(failed)} rows are not ok, {np.sum([found['seconds'] for found in result['parts'].values()]):.0f} s in all")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
