"""How far things are while images are drawn: a bar on the terminal; elsewhere what a long run takes, and a line now and then."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from experiments.common.progress import announce, duration
from experiments.common.progress import progress as show
from experiments.sampling.jobs import PreparedJob

FORMAT = "{desc}: {percentage:3.0f}% |{bar}| {elapsed} < {remaining}{postfix}"
LONG = 30.0  # seconds of a run that are worth a word


@contextmanager
def progress(task: PreparedJob) -> Iterator[Callable[[int, float], None]]:
    """watch(images done, λ), to be called after every evaluation; what is left of a batch is judged by its λ.

    The cost is known after the second evaluation, since the first prepares much.
    """
    job, times = task.job, list[float]()
    finite, n = [lam for lam in job.lams if math.isfinite(lam)] or [0.0], len(job.seeds)
    with show(1.0, job.solver, bar_format=FORMAT, miniters=0, delay=1, leave=False) as bar:

        def watch(done: int, lam: float) -> None:
            if len(times) < 2:
                times.append(time.perf_counter())
                if len(times) == 2 and (text := cost(task, n - done, times[1] - times[0])):
                    announce(text)
            within = max(0.0, lam - finite[0]) / (finite[-1] - finite[0] or 1)
            bar.set_postfix_str(f"{done} images done, λ = {lam:+.2f}", refresh=False)
            bar.update(max(0.0, (done + min(job.batch, n - done) * within) / n - bar.n))

        yield watch


def cost(task: PreparedJob, left: int, seconds: float) -> str:
    """What it takes to draw so many images, in a line, by the seconds of one evaluation of a batch; "" where it is not long, or
    not known, since the solver chooses its steps."""
    job, plan = task.job, task.prepared.plan
    if plan is None:
        return ""
    batches = math.ceil(left / job.batch)
    whole = batches * plan.nfe * seconds
    by = f"{batches} batch{'es' * (batches > 1)} of {plan.nfe:,} evaluations, by one that took {duration(seconds)}"
    decoding = ", and the time to decode them" * (task.loaded.model.decode is not None and not job.floats)
    return f"{job.solver}: {job.count} take about {duration(whole)}{decoding}: {by}" if whole >= LONG else ""
