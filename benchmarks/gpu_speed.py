"""benchmarks.gpu: images per second beside the bare network, memory, and what the loop costs beside copying what it touches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu_checks import Row, attempt
from benchmarks.measure import STEPS, median_seconds, setting, size, synchronise, touched
from diffode import EpsModel, schedules
from diffode.models.pretrained import load
from diffode.networks.ddpm_unet import DDPMUNet, DDPMUNetConfig
from solvers import Hooks, run, sample
from solvers.execute import loop
from solvers.hooks import Observers


@dataclass(frozen=True)
class Precision:
    """How a network computes: TF32 in its matrix products or not, under autocast or not, in which layout of memory."""

    name: str
    tf32: bool = False
    autocast: torch.dtype | None = None
    channels_last: bool = False

    @contextmanager
    def of(self, model: EpsModel) -> Iterator[EpsModel]:
        """The model that computes like this, meanwhile."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        model.network.to(memory_format=layout)  # type: ignore[attr-defined]
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.tf32
        try:
            yield model if self.autocast is None else model.autocasted(self.autocast)
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


FLOAT32, TF32 = Precision("float32"), Precision("TF32", tf32=True)
BF16 = Precision("bfloat16", tf32=True, autocast=torch.bfloat16)
BF16_LAST = Precision("bfloat16, channels last", tf32=True, autocast=torch.bfloat16, channels_last=True)


def fashion(batch: int, device: str) -> EpsModel:
    """The shipped U-Net, a label for each image."""
    return load("fashion").model.to(device).labelled([i % 10 for i in range(batch)])


def cifar(device: str, fast: bool) -> EpsModel:
    """A U-Net of the shape of DDPM's for CIFAR-10, with random weights."""
    torch.manual_seed(0)
    config = DDPMUNetConfig(ch=32, num_res_blocks=1) if fast else DDPMUNetConfig()
    network = DDPMUNet(config).eval().requires_grad_(False)
    return EpsModel(network, schedules.ddpm_linear(), shape=(3, 32, 32)).to(device)


def rate(model: EpsModel, batch: int, nfe: int, device: str, repeats: int) -> Row:
    """Images per second of sample(solver="ddim"), and its time beside that of as many calls of the network alone."""
    assert model.shape is not None
    shape = (batch, *model.shape)
    x, clock = (
        torch.randn(shape, device=device),
        torch.full((batch,), 500.0 if "y" not in model.condition else 0.0, device=device),
    )
    condition = {name: value.to(device) for name, value in model.condition.items()}

    def bare() -> None:
        for _ in range(nfe):
            with torch.autocast(x.device.type, model.autocast) if model.autocast else nullcontext():
                model.network(x, clock, **condition)

    with torch.no_grad():
        alone = median_seconds(bare, device, repeats, warm_up=1)
    ours = median_seconds(lambda: sample(model, solver="ddim", nfe=nfe, shape=shape, device=device), device, repeats, warm_up=1)
    return {
        "batch": batch,
        "nfe": nfe,
        "images_per_s": round(batch / ours, 1),
        "seconds": round(ours, 4),
        "network_alone_s": round(alone, 4),
        "ratio": round(ours / alone, 3),
        "ok": True,
    }


def fashion_rates(device: str, fast: bool) -> Iterator[Row]:
    """The shipped U-Net of 28 × 28 pixels, sampled with ddim."""
    for batch in (1,) if fast else (64, 512):
        model = fashion(batch, device)
        for nfe in (1,) if fast else (10, 50):
            for precision in (FLOAT32,) if fast else (FLOAT32, TF32, BF16, BF16_LAST):
                with precision.of(model) as how:
                    yield attempt({"network": precision.name}, rate, how, batch, nfe, device, 1 if fast else 3)


def cifar_rates(device: str, fast: bool) -> Iterator[Row]:
    """A U-Net of 35.7 million parameters for 32 × 32 pixels (DDPM's for CIFAR-10, random weights), sampled with ddim."""
    model, batch, nfe = cifar(device, fast), 1 if fast else 128, 1 if fast else 10
    for precision in (FLOAT32,) if fast else (FLOAT32, TF32, BF16, BF16_LAST):
        with precision.of(model) as how:
            yield attempt({"network": precision.name}, rate, how, batch, nfe, device, 1 if fast else 3)


def memory(device: str, fast: bool) -> Iterator[Row]:
    """Peak memory that a run adds to the caller's x, in states of 16×3×256×256, with a network that returns new memory: 5 steps
    must need what 40 need."""
    shape = (2, 3, 8, 8) if fast else (16, 3, 256, 256)
    for name in ("ddim", "dpm3", "dpmpp2m", "unipc3", "sde-dpmpp2m"):
        yield attempt({"solver": name}, added, name, shape, device)


def added(name: str, shape: tuple[int, ...], device: str) -> Row:
    """The states that 5 and 40 steps add."""
    x = torch.randn(shape, device=device)
    row: Row = {"plan_memory": setting(name, 5)[0].memory}
    for steps in (5, 40):
        plan, model = setting(name, steps)
        model = model.replace(network=lambda x, t: x * 0.5)
        hooks = Hooks(lambda draw, like: torch.randn_like(like))
        run(plan, model, x, hooks)
        if not device.startswith("cuda"):
            row[f"states_added_by_{steps}_steps"] = "not measured on a CPU"
            continue
        synchronise(device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(plan, model, x, hooks)
        states = (torch.cuda.max_memory_allocated() - before) / (x.numel() * x.element_size())
        row[f"states_added_by_{steps}_steps"] = round(states, 2)
    return {**row, "ok": row["states_added_by_5_steps"] == row["states_added_by_40_steps"]}


def overhead(device: str, fast: bool) -> Iterator[Row]:
    """Time per evaluation of the loop with a network that returns its input, beside copying as many tensors as its rows touch. On
    small states both are the launching of kernels by the host."""
    for shape in ((1, 4, 8, 8),) if fast else ((1, 4, 64, 64), (16, 3, 256, 256)):
        for name in ("ddim", "dpmpp2m", "unipc3"):
            label: Row = {"solver": name, "shape": size(shape)}
            yield attempt(label, loop_cost, name, shape, device, 2 if fast else 20)


def loop_cost(name: str, shape: tuple[int, ...], device: str, repeats: int) -> Row:
    """Of one solver and one shape."""
    plan, model = setting(name, STEPS)
    x = torch.randn(shape, device=device)
    others = [torch.empty_like(x) for _ in range(8)]
    evaluate = model.bind([stage.lam for stage in plan.stages if stage.evaluate], x, plan.prediction)

    def copy() -> None:
        for i in range(64):
            others[i % 8].copy_(x)

    with torch.no_grad():
        each = median_seconds(lambda: loop(plan, evaluate, x, Observers(plan)), device, repeats) / plan.nfe
        whole = median_seconds(lambda: run(plan, model, x), device, repeats) / plan.nfe
        one = median_seconds(copy, device, repeats) / 64
    return {
        "loop_us_per_nfe": round(1e6 * each, 1),
        "run_us_per_nfe": round(1e6 * whole, 1),
        "tensors_touched": round(touched(plan), 2),
        "ratio_to_copying_them": round(each / (one * touched(plan) / 2), 2),
        "ok": True,
    }


def adaptive(device: str, fast: bool) -> Iterator[Row]:
    """Solvers that choose their steps on the shipped U-Net, which has its own noise in the last digits, in float32."""
    batch = 1 if fast else 16
    model = fashion(batch, device)
    tolerance = 1.0 if fast else 0.01
    for name in ("dpm23",) if fast else ("dpm23", "dpmpp23", "dopri5"):
        yield attempt({"solver": name}, chosen, name, model, batch, tolerance, device, 1 if fast else 3)


def chosen(name: str, model: EpsModel, batch: int, tolerance: float, device: str, repeats: int) -> Row:
    """Seconds and evaluations of one, beside as many calls of the network on the whole batch."""
    how: dict[str, Any] = {"rtol": tolerance, "atol": tolerance}

    def whole() -> Any:
        return sample(model, solver=name, shape=(batch, 1, 28, 28), device=device, **how)

    result, spent = whole(), median_seconds(whole, device, repeats, warm_up=0)
    with torch.no_grad():
        one = median_seconds(lambda: model(result.x, 0.0, "velocity"), device, 5)
    return {
        "batch": batch,
        "rtol_and_atol": tolerance,
        "nfe": result.nfe,
        "network_calls": result.calls,
        "seconds": round(spent, 4),
        "network_alone_s": round(one * result.calls, 4),
        "ratio": round(spent / (one * result.calls), 2),
        "ok": result.finished,
    }
