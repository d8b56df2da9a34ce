"""SOLVERS: what every name means."""

from __future__ import annotations

import dataclasses
import difflib
from functools import partial

from diffode.errors import InputError
from diffode.importing import import_object
from solvers import adaptive, blackbox, ddim, deis, dpm_multistep, dpm_solver, edm, pndm, unipc
from solvers.butcher import TABLES
from solvers.entries import Adaptive, BlackBox, Entry, Options, Planned, Solver
from solvers.plan import Plan
from solvers.runge_kutta import runge_kutta
from solvers.sa_solver import sa_solver


def _fast(nfe: int, denoise: bool) -> tuple[int, Options]:
    """dpm-fast: K // 3 + 1 steps, and a last one to λ = +∞."""
    finite = nfe - denoise
    return (finite // 3 + 1 + denoise, {"tail": finite % 3}) if finite else (1, {})


ENTRIES: tuple[Entry, ...] = (
    Solver("ddpm", ddim.ddpm, 1, 1, "Ho et al. 2020, Alg. 2", stochastic=True),
    Solver("ddim", ddim.ddim, 1, 1, "Song et al. 2021a, Eq. 12"),
    Solver("euler", ddim.euler, 1, 1, "Song et al. 2021a, Eq. 14"),
    Solver("euler-ancestral", ddim.euler_ancestral, 1, 1, "k-diffusion", stochastic=True),
    Solver("dpm1", dpm_solver.dpm1, 1, 1, "Lu et al. 2022a, Eq. 3.7"),
    Solver("dpm2", dpm_solver.dpm2, 2, 2, "Lu et al. 2022a, Alg. 4"),
    Solver("dpm3", dpm_solver.dpm3, 3, 3, "Lu et al. 2022a, Alg. 5"),
    Solver("dpm-fast", dpm_solver.dpm_fast, 2, 3, "Lu et al. 2022a, appendix", spend=_fast),
    Solver("dpm2m", dpm_multistep.dpm2m, 2, 1, "Lu et al. 2022b, in noise form", unic=3),
    Solver("dpm3m", dpm_multistep.dpm3m, 3, 1, "exact weights, in noise form", started=2, unic=4),
    Solver("dpm3m-published", dpm_multistep.dpm3m_published, 2, 1, "Lu et al. 2022a, their code", unic=3),
    Solver("dpmpp2s", dpm_solver.dpmpp2s, 2, 2, "Lu et al. 2022b, Alg. 1"),
    Solver("dpmpp3s", dpm_solver.dpmpp3s, 3, 3, "Lu et al. 2022b, dpm3 in data form"),
    Solver("dpmpp2m", dpm_multistep.dpmpp2m, 2, 1, "Lu et al. 2022b, Alg. 2", unic=3),
    Solver("dpmpp3m", dpm_multistep.dpmpp3m, 3, 1, "Lu et al. 2022b, exact weights", started=2, unic=4),
    Solver("dpmpp3m-published", dpm_multistep.dpmpp3m_published, 2, 1, "Lu et al. 2022b, their code", unic=3),
    Solver("sde-dpmpp1", dpm_multistep.sde_dpmpp1, 1, 1, "Lu et al. 2022b, SDE", unic=2, stochastic=True),
    Solver("sde-dpmpp2m", dpm_multistep.sde_dpmpp2m, 2, 1, "Lu et al. 2022b, SDE", unic=2, stochastic=True),
    Solver("sde-dpmpp3m", dpm_multistep.sde_dpmpp3m, 2, 1, "exact weights", unic=2, stochastic=True),
    Solver("sde-dpmpp3m-published", dpm_multistep.sde_dpmpp3m_published, 2, 1, "k-diffusion", unic=2, stochastic=True),
    Solver("unipc1", unipc.unipc1, 2, 1, "Zhao et al. 2023"),
    Solver("unipc2", unipc.unipc2, 3, 1, "Zhao et al. 2023"),
    Solver("unipc3", unipc.unipc3, 4, 1, "Zhao et al. 2023", started=3),
    Solver("unipc4", unipc.unipc4, 5, 1, "Zhao et al. 2023", started=3),
    Solver("deis-t", deis.deis_t, 3, 1, "Zhang and Chen 2023, tAB", started=2, unic=4),
    Solver("deis-rho", deis.deis_rho, 3, 1, "Zhang and Chen 2023, ρAB", started=2, unic=4),
    Solver("deis-lambda", deis.deis_lambda, 3, 1, "Zhang and Chen 2023, in λ", started=2, unic=4),
    Solver("deis-rho-rk", deis.deis_rho_rk, 3, 3, "Zhang and Chen 2023, ρRK"),
    Solver("ipndm", pndm.ipndm, 2, 1, "Zhang and Chen 2023, App. H", unic=2),
    Solver("pndm", pndm.pndm, 2, 1, "Liu et al. 2022, Alg. 2"),
    Solver("lms", deis.lms, 4, 1, "k-diffusion", started=2, unic=5),
    Solver("heun", edm.heun, 2, 2, "Karras et al. 2022, Alg. 1"),
    Solver("heun-churn", edm.heun_churn, 2, 2, "Karras et al. 2022, Alg. 2", stochastic=True),
    Solver("kdpm2", edm.kdpm2, 2, 2, "k-diffusion"),
    Solver("sa-solver", sa_solver, 2, 1, "Xue et al. 2023", stochastic=True),
    *(
        Solver(f"rk:{name}", partial(runge_kutta, f"rk:{name}", table), table.order, len(table.b), table.source)
        for name, table in TABLES.items()
    ),
    *(Adaptive(pair.name, pair, pair.source) for pair in adaptive.PAIRS),
    BlackBox("euler-lambda", blackbox.Method("euler", 1, 1)),
    *(BlackBox(method.name, method) for method in blackbox.METHODS),
)
SOLVERS = {entry.name: entry for entry in ENTRIES}
assert len(SOLVERS) == len(ENTRIES), "two solvers share a name"


def find(solver: str | Plan) -> Entry:
    """The solver of a name: one of SOLVERS; with "+unic" one of them under UniC; a plan's JSON file; or MODULE:NAME, a Solver
    of one's own that can be imported from here. A Plan is itself.

    InputError that lists the known ones and suggests the nearest.
    """
    if isinstance(solver, Plan):
        return Planned(solver, solver.solver)
    if solver in SOLVERS:
        return SOLVERS[solver]
    if solver.endswith(".json"):
        return Planned(Plan.load(solver), solver)
    under = solver.removesuffix("+unic")
    base: Entry | None = SOLVERS.get(under)
    if base is None and ":" in under and not under.startswith("rk:"):
        _, base = import_object(under, Solver, "Solver(name, build, order, evaluations, source)")
    if base is not None and under == solver:
        return base
    if isinstance(base, Solver) and base.unic:
        build = partial(base.build, unic=True)
        return dataclasses.replace(base, name=solver, build=build, order=base.unic, started=3 * (base.unic > 3), unic=0)
    if base is not None:
        can = ", ".join(f"{e.name}+unic" for e in ENTRIES if isinstance(e, Solver) and e.unic)
        raise InputError(f"{base.name} takes no corrector: those that do are {can}")
    near = difflib.get_close_matches(solver, SOLVERS, 1)
    raise InputError(
        f"unknown solver {solver!r}{f': did you mean {near[0]}?' if near else ','} known are {', '.join(SOLVERS)}, "
        "a plan's .json file, and MODULE:NAME for a Solver of your own"
    )


def table() -> str:
    """The solvers as a Markdown table: what `cli.py solvers` and the README show."""
    rows = [("name", "order", "NFE a step", "options", "source")]
    for entry in ENTRIES:
        evaluations = str(entry.evaluations) if entry.evaluations else "adaptive" if entry.adaptive else "varies"
        started = getattr(entry, "started", 0)
        order = f"{entry.order}{' weak' * entry.stochastic}{f' (ramp: {started})' if started else ''}"
        rows.append((entry.name, order, evaluations, ", ".join(entry.options), entry.source))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
