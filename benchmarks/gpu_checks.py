"""benchmarks.gpu: whether a GPU computes what a CPU computes, the same bits every time, and without waiting for the host."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import setting
from diffode import EpsModel
from diffode.likelihood import log_likelihood
from diffode.models.pretrained import load
from solvers import ALIASES, Hooks, Solver, encode, find, run, sample
from solvers.execute import loop
from solvers.hooks import Observers
from solvers.registry import all_names

Row = dict[str, object]
# The largest |difference| of any pixel. A mixture's flow is steep where images part: on a CPU, another rounding of x_T changes
# the images by up to 1e-11 in float64 and 2e-4 in float32. A solver that chooses its steps may take others: there it is rtol.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 5e-3}
RTOL = 1e-2


class TimeIsUpError(Exception):
    """The time limit of a part."""


def attempt(label: Row, measure: Callable[..., Row], *args: Any, **options: Any) -> Row:
    """The row that `measure` makes of its arguments; or one with the error that it ended in, and our line that raised it."""
    try:
        return {**label, **measure(*args, **options)}
    except TimeIsUpError:
        raise
    except Exception as error:  # a row among many: the others are wanted
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
        return {
            **label,
            "ok": False,
            "error": f"{type(error).__name__} at {where}: {str(error).strip().partition(chr(10))[0]}"[:300],
        }


def text(dtype: torch.dtype) -> str:
    """Its name, without "torch."."""
    return str(dtype).removeprefix("torch.")


def mixture(dtype: torch.dtype, device: str) -> EpsModel:
    """The exact model of a mixture of images of 7 × 7 pixels: any device, any precision, no weights of a network."""
    model = load("mixture", dtype).model
    model = model.replace(network=model.network.pooled(4), shape=(1, 7, 7))  # type: ignore[attr-defined]
    return model.to(device)


def budget(solver: Solver) -> dict[str, Any]:
    """What a solver is given: 24 evaluations, 48 steps where steps differ in cost, or a tolerance."""
    if solver.chooses_steps:
        return {"rtol": RTOL, "atol": RTOL}
    return {"nfe": 24} if solver.nfe_per_step else {"steps": 48}


def solvers(device: str, fast: bool) -> Iterator[Row]:
    """Every solver, solver under UniC and alias: the device against the CPU from the same seed, and twice the same bits."""
    names = [*all_names(), *ALIASES][:: 12 if fast else 1]
    for dtype in (torch.float64, torch.float32)[: 1 if fast else 2]:
        models = {where: mixture(dtype, where).labelled([3, 9]) for where in ("cpu", device)}
        for name in names:
            yield attempt({"solver": name, "dtype": text(dtype)}, compare, name, models, dtype)


def compare(name: str, models: dict[str, EpsModel], dtype: torch.dtype, **how: Any) -> Row:
    """One solver on all devices of `models`, the CPU first."""
    solver = find(name)

    def images(model: EpsModel) -> Tensor:
        assert model.shape is not None
        n = len(model.condition["y"])
        result = sample(model, solver=name, shape=(n, *model.shape), seed=7, dtype=dtype, **{**budget(solver), **how})
        assert result.x.device.type == model.device.type
        return result.x.cpu()

    on_cpu, *rest = (images(model) for model in models.values())
    other = rest[-1] if rest else on_cpu
    difference, again = float((on_cpu - other).abs().max()), images([*models.values()][-1])
    tolerance = RTOL if solver.chooses_steps else TOLERANCE[dtype]
    same = bool(torch.equal(other, again))
    return {
        "largest_difference": f"{difference:.1e}",
        "tolerance": tolerance,
        "same_bits_twice": same,
        "ok": difference <= tolerance and same,
    }


def models(device: str, fast: bool) -> Iterator[Row]:
    """What a model can be asked for beside a solver: the U-Net, guidance, hooks on x̂0, label clocks, encoding, callbacks."""
    both = ("cpu", device)
    unet = {where: load("fashion").model.to(where).labelled([3, 9]) for where in both}
    exact = {where: mixture(torch.float32, where).labelled([3, 9]) for where in both}
    nfe = 1 if fast else 10
    for name in ("ddim",) if fast else ("ddim", "dpmpp2m", "unipc3", "sde-dpmpp2m"):
        yield attempt({"case": f"U-Net, {name}"}, compare, name, unet, torch.float32, nfe=nfe)
    changes: dict[str, Callable[[EpsModel], EpsModel]] = {
        "guidance 2": lambda model: model.guided(2.0),
        "x̂0 clipped": lambda model: model.clipped(),
        "dynamic thresholding": lambda model: model.thresholded(),
        "watched": lambda model: model.watched(lambda evaluation, lam, m: None),
    }
    for case, change in changes.items():
        changed = {where: change(model) for where, model in exact.items()}
        for name in ("dpmpp2m",) if fast else ("dpmpp2m", "dpm23"):
            yield attempt({"case": f"{case}, {name}"}, compare, name, changed, torch.float32)
    yield attempt({"case": "a step to σ = 0, unipc3"}, compare, "unipc3", exact, torch.float32, denoise=True)
    yield attempt({"case": "callbacks and trajectory, heun"}, callbacks, exact)
    yield attempt({"case": "encode and back, dpm3"}, there_and_back, exact, 6 if fast else 60)


def callbacks(models: dict[str, EpsModel]) -> Row:
    """on_commit, on_step and trajectory."""
    how = {"on_commit": lambda x, lam: x.clone(), "on_step": lambda committed: None, "trajectory": True}
    return compare("heun", models, torch.float32, **how)


def there_and_back(models: dict[str, EpsModel], nfe: int) -> Row:
    """Encode a state to noise, decode it, on each device."""
    x0 = torch.linspace(-1, 1, 98).view(2, 1, 7, 7)
    noise = [encode(model, x0.to(where), solver="dpm3", nfe=nfe).x for where, model in models.items()]
    back = [sample(model, x=x, solver="dpm3", nfe=nfe).x.cpu() for model, x in zip(models.values(), noise, strict=True)]
    difference = float((noise[0].cpu() - noise[-1].cpu()).abs().max())
    return {
        "largest_difference": f"{difference:.1e}",
        "tolerance": 5e-3,
        "ok": difference <= 5e-3 and bool(back[-1].isfinite().all()),
    }


def likelihoods(device: str, fast: bool) -> Iterator[Row]:
    """log p of the mixture, by the exact trace and by Hutchinson's estimate: the device against the CPU, in nats."""
    for probes in (0, 4):
        yield attempt({"probes": probes or "exact trace"}, likelihood, device, probes, 3 if fast else 48)


def likelihood(device: str, probes: int, nfe: int) -> Row:
    """log p of two images on the CPU and on the device."""
    x0 = torch.linspace(-1, 1, 98, dtype=torch.float64).view(2, 1, 7, 7)
    on_cpu, other = (
        log_likelihood(
            mixture(torch.float64, where).labelled([3, 9]), x0.to(where), encode, probes=probes, solver="dpm3", nfe=nfe
        ).log_p.cpu()
        for where in ("cpu", device)
    )
    difference = float((on_cpu - other).abs().max())
    return {
        "log_p": f"{float(other[0]):.4f}",
        "largest_difference": f"{difference:.1e}",
        "tolerance": 1e-8,
        "ok": difference <= 1e-8,
    }


@contextmanager
def no_synchronisation(device: str) -> Iterator[None]:
    """RuntimeError for any operation in which the host waits for the GPU."""
    if not device.startswith("cuda"):
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def synchronisation(device: str, fast: bool) -> Iterator[Row]:
    """The loop of every planned solver, with synchronisation forbidden. The state and the noise are drawn on the device here:
    SeededNoise draws on the CPU, and its copy to the device waits."""
    x = torch.randn(2, 3, 16, 16, device=device)
    generator = torch.Generator(device)

    def noise(draw: int, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)

    names = [name for name in [*all_names(), *ALIASES] if find(name).has_plan]
    for guidance in (1.0, 2.0):
        for name in names[:: 10 if fast or guidance != 1 else 1]:
            yield attempt({"solver": name, "guidance": guidance}, planned_loop, name, guidance, x, noise, device)
    yield attempt({"solver": "ddim, run() as a whole"}, waits, device, run_once, x)
    yield attempt({"solver": "ddim, sample() as a whole"}, waits, device, sample_once, device)


def planned_loop(name: str, guidance: float, x: Tensor, noise: Callable[[int, Tensor], Tensor], device: str) -> Row:
    """One solver's loop on a network that predicts noise."""
    model = EpsModel(lambda x, t, y=None: 0.5 * x, setting("ddim", 2)[1].schedule)
    model = model.labelled([0] * len(x)).guided(guidance)
    solver = find(name)
    plan = solver.plan(model.schedule.lam([999, 800, 600, 400, 200, 100, 0]), model.schedule)
    evaluate = model.bind([stage.lam for stage in plan.stages if stage.evaluate], x, plan.prediction)
    with torch.no_grad():
        with no_synchronisation(device):
            out = loop(plan, evaluate, x, Observers(plan, Hooks(noise)))
        finite = bool(out.isfinite().all())
    return {"waits_in_the_loop": 0, "ok": finite}


def waits(device: str, function: Callable[..., object], *args: Any) -> Row:
    """How often the host waited."""
    if not device.startswith("cuda"):
        function(*args)
        return {"waits": 0, "ok": True}
    function(*args)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function(*args)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    lines = [f"{Path(one.filename).name}:{one.lineno}" for one in caught if "synchroni" in str(one.message)]
    return {"waits": len(lines), "where": ", ".join(dict.fromkeys(lines)), "ok": True}


def run_once(x: Tensor) -> None:
    """The loop and what is done before it."""
    plan, model = setting("ddim", 10)
    run(plan, model, x)


def sample_once(device: str) -> None:
    """What a user calls."""
    _, model = setting("ddim", 10)
    sample(model, solver="ddim", nfe=10, shape=(4, 3, 16, 16), device=device)
