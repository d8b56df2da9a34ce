"""benchmarks.gpu: the network under torch.compile, and the whole loop as one CUDA graph."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.gpu_checks import Row, attempt
from benchmarks.gpu_speed import FLOAT32, fashion, rate
from benchmarks.measure import median_seconds, seconds, synchronise
from diffode import EpsModel
from solvers import Budget, find, sample
from solvers.execute import loop
from solvers.hooks import Observers


def compiled(device: str, fast: bool) -> Iterator[Row]:
    """The shipped U-Net under torch.compile, after warm-up calls: images per second, and the difference from the images of the
    network as it is. reduce-overhead replays CUDA graphs, whose outputs lie in the same memory every time."""
    batch, nfe = 64, 10
    if fast:
        return
    model = fashion(batch, device)
    with FLOAT32.of(model) as plain:
        expected = sample(plain, solver="dpmpp2m", nfe=nfe, shape=(batch, 1, 28, 28), device=device).x
        for mode in ("default", "reduce-overhead"):
            yield attempt({"mode": mode}, compiled_rate, plain, mode, nfe, expected, device)
    yield attempt({"mode": "CUDA graph of the whole loop"}, graphed, model, nfe, expected, device)


def compiled_rate(model: EpsModel, mode: str, nfe: int, expected: Tensor, device: str) -> Row:
    """torch.compile of the network alone."""
    network = torch.compile(model.network, mode=mode, dynamic=False)
    fast_model = model.replace(network=network)
    shape = tuple(expected.shape)

    def images() -> Tensor:
        return sample(fast_model, solver="dpmpp2m", nfe=nfe, shape=shape, device=device).x

    preparation = seconds(lambda: [images() for _ in range(3)], device)
    difference = float((images() - expected).abs().max())
    return {
        **rate(fast_model, shape[0], nfe, device, 3),
        "compiled_in_s": round(preparation, 1),
        "largest_difference": f"{difference:.1e}",
        "ok": difference < 5e-3,
    }


def graphed(model: EpsModel, nfe: int, expected: Tensor, device: str) -> Row:
    """solvers.execute.loop of dpmpp2m, captured once as a CUDA graph and replayed."""
    x = torch.randn(expected.shape, device=device, generator=torch.Generator(device).manual_seed(0))
    plan = find("dpmpp2m").prepare(Budget(nfe), model.schedule).plan
    assert plan is not None
    evaluate = model.bind([stage.lam for stage in plan.stages if stage.evaluate], x, plan.prediction)
    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                evaluate.counter.nfe = 0
                eager = loop(plan, evaluate, x, Observers(plan))
        torch.cuda.current_stream().wait_stream(stream)
        eager = eager.clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = loop(plan, evaluate, x, Observers(plan))
        graph.replay()
        synchronise(device)
        difference = float((out - eager).abs().max())
        replay = median_seconds(graph.replay, device, 5)
        plain = median_seconds(lambda: loop(plan, evaluate, x, Observers(plan)), device, 5)
    return {
        "batch": len(x),
        "nfe": nfe,
        "images_per_s": round(len(x) / replay, 1),
        "seconds": round(replay, 4),
        "loop_without_graph_s": round(plain, 4),
        "largest_difference": f"{difference:.1e}",
        "ok": difference < 1e-4,
    }
