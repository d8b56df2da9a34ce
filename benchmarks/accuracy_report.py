"""What the rows of benchmarks.accuracy come to: checks against the peers, in words and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffode.files import atomic

TITLES = {"logsnr": "steps equal in λ", "time": "steps equal in t", "zero": "steps equal in t, then to σ = 0"}
BUDGETS = (5, 6, 8, 10, 12, 15, 20, 30, 50)
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


def in_words(result: dict[str, Any]) -> str:
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
