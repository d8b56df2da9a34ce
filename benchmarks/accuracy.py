"""How far from the exact flow each solver ends, at equal cost: python -m benchmarks.accuracy --out benchmarks/accuracy

The model is the shipped mixture in float64, whose ε is exact; the reference is its probability-flow ODE followed from the same
states, drawn from the prior at the first label of the DDPM table (λ = −5.06), to the end by an integrator of order 8. An
error is the root mean square over the pixels of a sample, of which the median over samples is given. Fairness:

  cost      every row of one NFE spent exactly that many evaluations; a solver that cannot is left out there
  grid      all take the steps of one grid, equal in λ ("logsnr") or in the network's clock ("time"); who takes two or three
            evaluations a step takes half or a third of the steps. A scheduler of diffusers is given the table of β whose
            labels are that grid (peers.py), so it neither rounds its labels nor misses them
  end       all end at the last label, λ = 4.61; or ("zero") go on from there to σ = 0, the steps before being equal in the
            clock. The reference at σ = 0 is that at λ = 11.5. Who cannot end there is left out
  precision theirs runs its own code in float64 too
  options   ours are the defaults, other orders where there are several, and what makes them the method of a peer; theirs are
            the defaults, and variants. With fewer than 15 steps most of theirs lower the order of the last ones, which ours
            do with lower_final

Two checks are printed and written: no solver of ours is worse by more than 1 % than the peer of the same method, and at each
NFE and grid the best of ours beats the best of theirs.
"""

from __future__ import annotations

import csv
import inspect
import io
import itertools
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.accuracy_report import BUDGETS, Row, checks, in_words, plot
from benchmarks.peers import PEERS, Peer
from diffode import EpsModel, InputError, grid, schedules
from diffode.files import atomic, write_json
from diffode.mixture import Mixture
from diffode.models import pretrained
from diffode.noise import SeededNoise, seeds_of
from diffode.ode import accurate
from experiments.common.results import versions
from solvers import SOLVERS, Budget
from solvers.registry import find

GRIDS = {"logsnr": ("logsnr", False), "time": ("time", False), "zero": ("time", True)}  # name, whether to σ = 0
OF_ANY_ORDER = ("ipndm", "deis-t", "deis-rho", "deis-lambda")  # whose default is one of several


def label(name: str, options: dict[str, Any]) -> str:
    """A solver and its options that are not the defaults."""
    entry = find(name)
    known = inspect.signature(entry.build).parameters if entry.build is not None else {}
    shown = {o: v for o, v in options.items() if o not in known or known[o].default != v}
    if not options.get("lower_final"):
        shown.pop("lower_final", None)
    return name + (f"({', '.join(f'{option}={value}' for option, value in shown.items())})" if shown else "")


def of_the_registry() -> Iterator[str]:
    """Every solver of the ODE whose evaluations are known beforehand, and those under UniC."""
    for name, entry in SOLVERS.items():
        if entry.nfe_per_step and not entry.stochastic:
            yield name
            if entry.unic_order:
                yield f"{name}+unic"


class Problem:
    """The model, the states where all begin, and where the exact flow takes them. small: images of 7 × 7 pixels, not 28 × 28."""

    def __init__(self, seeds: int, seed: int, grids: tuple[str, ...], budgets: tuple[int, ...], *, small: bool = False) -> None:
        self.spent = 0

        def count(evaluation: int, lam: float, m: Tensor) -> None:
            self.spent += 1

        model = pretrained.load("mixture", torch.float64).model
        network: Mixture = model.network  # type: ignore[assignment]
        if small:
            network = network.pooled(4)
            network.rows = seeds
        self.model: EpsModel = model.replace(network=network, shape=network.image).watched(count)
        self.schedule, self.grids, self.budgets = self.model.schedule, grids, budgets
        noise = SeededNoise(seeds_of(seed, seeds))
        like = torch.empty((seeds, *network.image), dtype=torch.float64)
        self.x = noise(0, like) * float(self.schedule.sigma(self.schedule.lam_min))
        beyond = schedules.vp_linear(beta_max=20.5, t_clean=1e-9)  # any clock will do for the flow, if its λ go further
        wide = EpsModel(network, beyond, self.model.predicts, clock="lam")
        last = accurate(wide, self.x, self.schedule.lam_min, self.schedule.lam_max, 1e-9)
        self.exact = {False: last, True: accurate(wide, last, self.schedule.lam_max, beyond.lam_max, 1e-9)}

    def error(self, solve: Callable[[], Tensor], nfe: int, name: str, to_zero: bool) -> float:
        """The median error of what `solve` returns, which must have spent nfe evaluations."""
        before = self.spent
        off = (solve() - self.exact[to_zero]).square().flatten(1).mean(1).sqrt()
        assert self.spent - before == nfe, f"{name} spent {self.spent - before} evaluations, not {nfe}"
        return float(off.median())

    def ours(self, name: str, options: dict[str, Any], on: str, nfe: int) -> Row | None:
        """None where it cannot spend nfe evaluations, or not go to σ = 0."""
        entry, (spacing, to_zero) = find(name), GRIDS[on]
        if to_zero and not entry.accepts_denoise:
            return None
        try:
            prepared = entry.prepare(Budget(nfe=nfe, grid=spacing, denoise=to_zero), self.schedule, **options)
        except InputError:
            return None
        error = self.error(lambda: prepared.solve(self.model, self.x).x, nfe, name, to_zero)
        return Row("diffode", label(name, options), "", True, on, nfe, error)

    def theirs(self, peer: Peer, on: str, nfe: int) -> Row | None:
        """None where it cannot spend nfe evaluations, or not go to σ = 0."""
        spacing, to_zero = GRIDS[on]
        steps = peer.steps_for(nfe, to_zero)
        if steps is None or steps < 2 + to_zero or (to_zero and not peer.to_zero):
            return None
        lams = grid.make(spacing, self.schedule, steps, denoise=to_zero)
        error = self.error(lambda: peers.run_peer(peer, self.model, self.x, lams), nfe, peer.name, to_zero)
        return Row("diffusers", peer.name, label(peer.ours, peer.ours_on(lams)), peer.same, on, nfe, error)

    def rows(self) -> Iterator[Row]:
        """Every solver at every budget on every grid."""
        deterministic = [peer for peer in PEERS if not peer.stochastic]
        for on, nfe in itertools.product(self.grids, self.budgets):
            wanted: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in of_the_registry()}
            wanted |= {label(name, {"order": order}): (name, {"order": order}) for name in OF_ANY_ORDER for order in (2, 3, 4)}
            for peer in deterministic:
                if row := self.theirs(peer, on, nfe):
                    yield row
                    steps = peer.steps_for(nfe, GRIDS[on][1]) or 0
                    wanted.setdefault(row.peer_of, (peer.ours, peer.ours_on(np.empty(steps + 1))))
            for name, options in wanted.values():
                if row := self.ours(name, options, on, nfe):
                    yield row


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="Write OUT.csv, OUT.json and OUT.png.")
@click.option("--seeds", default=64, show_default=True, type=click.IntRange(1), help="How many samples.")
@click.option("--seed", default=0, show_default=True, help="The first.")
@click.option("--fast", is_flag=True, help="8 samples of 7 × 7 pixels, NFE 5 and 10, one grid: to see that it works.")
def main(out: Path | None, seeds: int, seed: int, fast: bool) -> None:
    """Compare the error of every solver, ours and diffusers', with the exact flow of the shipped mixture."""
    torch.set_num_threads(1)  # small matrices: more threads are slower on a busy machine, and round differently
    bench = Problem(8, seed, ("logsnr",), (5, 10), small=True) if fast else Problem(seeds, seed, tuple(GRIDS), BUDGETS)
    rows = sorted(bench.rows(), key=lambda row: (row.grid, row.nfe, row.error))
    result = checks(rows)
    click.echo(in_words(result))
    if out is None:
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(row._replace(error=float(f"{row.error:.6g}")) for row in rows)
    with atomic(out.with_suffix(".csv")) as part:
        part.write_text(text.getvalue(), encoding="utf-8")
    about = {
        "command": f"python -m benchmarks.accuracy --seeds {len(bench.x)} --seed {seed}{' --fast' * fast}",
        "seeds": [seed, seed + len(bench.x) - 1],
        "versions": versions() | peers.versions(),
        "machine": {"machine": platform.machine(), "threads": torch.get_num_threads()},
    }
    write_json(out.with_suffix(".json"), {**about, "rows": len(rows), **result})
    plot(rows, out.with_suffix(".png"))


if __name__ == "__main__":
    main()
