"""How far things are while images are drawn: a bar on the terminal, a line now and then elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from experiments.common.progress import progress as show
from experiments.sampling.jobs import Job

FORMAT = "{desc}: {percentage:3.0f}% |{bar}| {elapsed} < {remaining}{postfix}"


@contextmanager
def progress(job: Job) -> Iterator[Callable[[int, float], None]]:
    """watch(images done, λ), to be called after every evaluation; what is left of a batch is judged by its λ."""
    finite, n = [lam for lam in job.lams if math.isfinite(lam)] or [0.0], len(job.seeds)
    with show(1.0, job.solver, bar_format=FORMAT, miniters=0, delay=1, leave=False) as bar:

        def watch(done: int, lam: float) -> None:
            within = max(0.0, lam - finite[0]) / (finite[-1] - finite[0] or 1)
            bar.set_postfix_str(f"{done} images done, λ = {lam:+.2f}", refresh=False)
            bar.update(max(0.0, (done + min(job.batch, n - done) * within) / n - bar.n))

        yield watch
