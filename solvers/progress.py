"""progress=True: a bar on stderr, moved by the evaluations of a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from torch import Tensor
from tqdm import tqdm

from diffode.checks import flag
from diffode.model import EpsModel
from solvers.budget import Prepared

FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


@contextmanager
def with_bar(progress: bool, model: EpsModel, prepared: Prepared, parts: list[slice]) -> Iterator[EpsModel]:
    """The model, watched by a bar if there is to be progress. parts: the rows of the runs that are made one after the other.

    A run is as far as its evaluations if their number is known, else as the λ of its slowest sample.
    """
    if not flag("progress", progress):
        yield model
        return
    runs = parts[-1].stop if prepared.options.get("per_sample") else len(parts)
    with tqdm(total=runs, desc=prepared.solver.name, bar_format=FORMAT) as bar:
        yield model.watched(Advance(bar, prepared, runs))
        bar.update(runs - bar.n)


class Advance:
    """advance(evaluation, λ, prediction): moves a bar of so many runs. A run begins with its evaluation 1."""

    def __init__(self, bar: tqdm, prepared: Prepared, runs: int) -> None:
        self.bar, self.nfe, self.runs, self.begun = bar, prepared.nfe, runs, 0
        finite = prepared.grid[np.isfinite(prepared.grid)]
        self.lam_s, self.span = finite[0], finite[-1] - finite[0] or 1.0

    def __call__(self, evaluation: int, lam: float, prediction: Tensor) -> None:
        self.begun += evaluation == 1
        within = evaluation / self.nfe if self.nfe else (lam - self.lam_s) / self.span
        done = min(self.begun - 1 + min(max(within, 0.0), 1.0), self.runs)
        self.bar.set_postfix_str(f"λ = {lam:+.2f}", refresh=False)
        self.bar.update(max(done - self.bar.n, 0.0))
