"""How far from the truth each solver ends, at equal cost: python -m benchmarks.accuracy --out benchmarks/accuracy

The model is the shipped mixture in float64, whose ε is exact; the truth is its probability-flow ODE followed from the same
states, drawn from the prior at the first label of the DDPM table (λ = −5.06), to the end by an integrator of order 8. An
error is the root mean square over the pixels of a sample, of which the median over samples is given. Fairness:

  cost      every row of one NFE spent exactly that many evaluations; a solver that cannot is left out there
  grid      all take the steps of one grid, equal in λ ("logsnr") or in the network's clock ("time"); who takes two or three
            evaluations a step takes half or a third of the steps. A scheduler of diffusers is given the table of β whose
            labels are that grid (peers.py), so it neither rounds its labels nor misses them
  end       all end at the last label, λ = 4.61; or ("zero") go on from there to σ = 0, the steps before being equal in the
            clock. The truth at σ = 0 is that at λ = 11.5. Who cannot end there is left out
  precision theirs runs its own code in float64 too
  options   ours are the defaults, other orders where there are several, and what makes them the method of a peer; theirs are
            the defaults, and variants. With fewer than 15 steps most of theirs lower the order of the last ones, which ours
            do if they are told lower_final

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
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.peers import PEERS, Peer
from diffode import EpsModel, InputError, grid, schedules
from diffode.files import atomic, write_json
from diffode.models import pretrained
from diffode.noise import SeededNoise, seeds_of
from diffode.ode import accurate
from experiments.common.results import versions
from solvers import SOLVERS, Budget
from solvers.registry import find

GRIDS = {"logsnr": ("logsnr", False), "time": ("time", False), "zero": ("time", True)}  # name, whether to σ = 0
TITLES = {"logsnr": "steps equal in λ", "time": "steps equal in t", "zero": "steps equal in t, then to σ = 0"}
BUDGETS = (5, 6, 8, 10, 12, 15, 20, 30, 50)
OF_ANY_ORDER = ("ipndm", "deis-t", "deis-rho", "deis-lambda")  # whose default is one of several
FAMILIES: dict[str, tuple[str, ...]] = {  # what is drawn, a colour each
    "tab:gray": ("ddim",),
    "tab:blue": ("dpmpp2m", "dpmpp3m"),
    "tab:red": ("unipc2", "unipc3"),
    "tab:green": ("deis-lambda", "deis-rho"),
    "tab:purple": ("ipndm", "pndm"),
    "tab:orange": ("heun", "dpm2", "dpmpp3s"),
}


class Row(NamedTuple):
    """One solver at one cost. peer_of: ours of the same method. same_table: whether the two agree to rounding."""

    library: str
    solver: str
    peer_of: str
    same_table: bool
    grid: str
    nfe: int
    error: float


def label(name: str, options: dict[str, Any]) -> str:
    """A solver and what it is told beside its defaults."""
    entry = find(name)
    known = inspect.signature(entry.build).parameters if entry.build is not None else {}
    told = {o: v for o, v in options.items() if o not in known or known[o].default != v}
    told.pop("lower_final", None) if not options.get("lower_final") else None
    return name + (f"({', '.join(f'{option}={value}' for option, value in told.items())})" if told else "")


def of_the_registry() -> Iterator[str]:
    """Every solver of the ODE whose evaluations are known beforehand, and those under UniC."""
    for name, entry in SOLVERS.items():
        if entry.nfe_per_step and not entry.stochastic:
            yield name
            if entry.unic_order:
                yield f"{name}+unic"


class Bench:
    """The model, the states where all begin, and the truth about where they go."""

    def __init__(self, seeds: int, seed: int, grids: tuple[str, ...], budgets: tuple[int, ...]) -> None:
        self.spent = 0

        def count(evaluation: int, lam: float, m: Tensor) -> None:
            self.spent += 1

        self.model: EpsModel = pretrained.load("mixture", torch.float64).model.watched(count)
        self.schedule, self.grids, self.budgets = self.model.schedule, grids, budgets
        noise = SeededNoise(seeds_of(seed, seeds))
        like = torch.empty((seeds, 1, 28, 28), dtype=torch.float64)
        self.x = noise(0, like) * float(self.schedule.sigma(self.schedule.lam_min))
        beyond = schedules.vp_linear(beta_max=20.5, t_clean=1e-9)  # any clock will do for the flow, if its λ go further
        wide = EpsModel(self.model.network, beyond, self.model.predicts, clock="lam")
        last = accurate(wide, self.x, self.schedule.lam_min, self.schedule.lam_max, 1e-9)
        self.truth = {False: last, True: accurate(wide, last, self.schedule.lam_max, beyond.lam_max, 1e-9)}

    def error(self, solve: Callable[[], Tensor], nfe: int, name: str, to_zero: bool) -> float:
        """The median error of what `solve` returns, which must have spent nfe evaluations."""
        before = self.spent
        off = (solve() - self.truth[to_zero]).square().flatten(1).mean(1).sqrt()
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


def checks(rows: list[Row]) -> dict[str, Any]:
    """Of ours against its peers, and of the best of ours against the best of theirs."""
    mine = {(row.solver, row.grid, row.nfe): row.error for row in rows if row.library == "diffode"}
    pairs = [(row, mine.get((row.peer_of, row.grid, row.nfe), np.inf)) for row in rows if row.library == "diffusers"]
    worse = [
        {"ours": row.peer_of, "theirs": row.solver, "grid": row.grid, "nfe": row.nfe, "ratio": round(error / row.error, 3)}
        for row, error in pairs
        if error > 1.01 * row.error
    ]
    best: list[dict[str, Any]] = []
    for spacing, nfe in dict.fromkeys((row.grid, row.nfe) for row in rows):
        here = [row for row in rows if (row.grid, row.nfe) == (spacing, nfe)]
        of = {
            library: min((r for r in here if r.library == library), key=lambda r: r.error) for library in ("diffode", "diffusers")
        }
        ratio = of["diffusers"].error / of["diffode"].error
        names = {library: row.solver for library, row in of.items()}
        best.append({"grid": spacing, "nfe": nfe, **names, "error": of["diffode"].error, "ratio": round(ratio, 3)})
    return {
        "pairs": len(pairs),
        "worse_than_its_peer_by_more_than_1_percent": worse,
        "best_of_ours_against_best_of_theirs": best,
        "the_best_of_ours_is": {
            "better": sum(line["ratio"] > 1.001 for line in best),
            "the same": sum(0.999 <= line["ratio"] <= 1.001 for line in best),
            "worse": sum(line["ratio"] < 0.999 for line in best),
        },
    }


def told(result: dict[str, Any]) -> str:
    """The checks as text."""
    worse = result["worse_than_its_peer_by_more_than_1_percent"]
    lines = [f"{result['pairs']} pairs of one method; ours is worse by more than 1 % in {len(worse)}"]
    lines += [f"  {w['grid']:7} NFE {w['nfe']:3}  {w['ratio']:8} times  {w['ours']}  against  {w['theirs']}" for w in worse]
    counts = ", ".join(f"{word} in {n}" for word, n in result["the_best_of_ours_is"].items())
    lines += [f"the best of ours, and how many times larger the error of the best of theirs is: {counts}"]
    for b in result["best_of_ours_against_best_of_theirs"]:
        lines.append(
            f"  {b['grid']:7} NFE {b['nfe']:3}  {b['error']:.2e} {b['ratio']:6.2f}  {b['diffode']}  against  {b['diffusers']}"
        )
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> None:
    """Error against NFE, a panel a grid: ours filled, its peers hollow and dashed in its colour."""
    import matplotlib.pyplot as plt

    grids = list(dict.fromkeys(row.grid for row in rows))
    figure, axes = plt.subplots(1, len(grids), figsize=(6 * len(grids), 6), sharey=True, squeeze=False)
    for axis, spacing in zip(axes[0], grids, strict=True):
        for colour, members in FAMILIES.items():
            for member, marker in zip(members, "os^", strict=False):
                for library, wanted in (("diffode", "solver"), ("diffusers", "peer_of")):
                    found = [r for r in rows if (r.library, getattr(r, wanted), r.grid) == (library, member, spacing)]
                    points = sorted({(r.nfe, r.error) for r in found})
                    if not points:
                        continue
                    theirs = library == "diffusers"
                    how = {"mfc": "none", "ms": 9, "lw": 0.8, "ls": "--"} if theirs else {"ms": 4, "lw": 1.4, "label": member}
                    axis.plot(*zip(*points, strict=True), marker=marker, color=colour, **how)
        axis.set(xscale="log", yscale="log", xlabel="NFE", title=TITLES[spacing])
        axis.set_ylim(top=2)  # beyond it lie starts by Runge–Kutta over a few long steps
        axis.set_xticks(BUDGETS, [str(n) for n in BUDGETS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("error against the exact flow, rms over pixels, median over samples")
    axes[0, -1].plot([], [], "o--", mfc="none", ms=9, lw=0.8, color="black", label="its peer in diffusers")
    axes[0, -1].legend(fontsize=8)
    figure.tight_layout()
    with atomic(path) as part:
        figure.savefig(part, dpi=130, format="png")
    plt.close(figure)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="Write OUT.csv, OUT.json and OUT.png.")
@click.option("--seeds", default=64, show_default=True, type=click.IntRange(1), help="How many samples.")
@click.option("--seed", default=0, show_default=True, help="The first.")
@click.option("--fast", is_flag=True, help="8 samples, NFE 5 and 10, one grid: to see that it works.")
def main(out: Path | None, seeds: int, seed: int, fast: bool) -> None:
    """Compare the error of every solver, ours and diffusers', with the exact flow of the shipped mixture."""
    torch.set_num_threads(1)  # small matrices: more threads are slower on a busy machine, and round differently
    bench = Bench(8, seed, ("logsnr",), (5, 10)) if fast else Bench(seeds, seed, tuple(GRIDS), BUDGETS)
    rows = sorted(bench.rows(), key=lambda row: (row.grid, row.nfe, row.error))
    result = checks(rows)
    click.echo(told(result))
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
