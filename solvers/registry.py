"""SOLVERS and ALIASES: what every name means."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

from diffode.checks import instance, unknown
from diffode.errors import InputError
from diffode.importing import import_object
from solvers import adaptive, blackbox, ddim, deis, dpm_multistep, dpm_solver, edm, pndm, unipc
from solvers.butcher import TABLES
from solvers.options import Options
from solvers.plan import Plan
from solvers.runge_kutta import runge_kutta
from solvers.sa_solver import sa_solver
from solvers.solver import Solver, ready

UNIC = "+unic"
LISTING = "all are listed by `python -m diffode solvers`; a plan is named by its .json file, a Solver of your own by MODULE:NAME"


def _split_fast(nfe: int, denoise: bool) -> tuple[int, Options]:
    """dpm-fast: K // 3 + 1 steps, and a last one to λ = +∞."""
    finite = nfe - denoise
    return (finite // 3 + 1 + denoise, {"tail": finite % 3}) if finite else (1, {})


def _adaptive(pair: adaptive.Pair) -> Solver:
    types = {"rtol": float, "atol": float, "max_nfe": int}
    run = partial(adaptive.integrate, pair)
    no_hooks: frozenset[str] = frozenset()
    return Solver(
        pair.name,
        None,
        pair.order,
        0,
        pair.source,
        chooses_steps=True,
        integrate=run,
        option_types=types,
        supported_hooks=no_hooks,
    )


def _black_box(method: blackbox.Method, name: str = "") -> Solver:
    tolerances = {"rtol": float, "atol": float, "max_nfe": int, "per_sample": bool} if method.has_tolerance else {}
    return Solver(
        name or method.name,
        None,
        method.order,
        method.nfe_per_step,
        "torchdiffeq",
        chooses_steps=method.adaptive,
        accepts_denoise=False,
        equal_steps=method.max_order > 0,
        integrate=partial(blackbox.integrate, method),
        option_types={"variable": str, **tolerances},
        supported_hooks=frozenset({"trajectory"}),
    )


ENTRIES = (
    Solver("ddpm", ddim.ddpm, 1, 1, "Ho et al. 2020, Alg. 2", stochastic=True),
    Solver("ddim", ddim.ddim, 1, 1, "Song et al. 2021a, Eq. 12"),
    Solver("dpm2", dpm_solver.dpm2, 2, 2, "Lu et al. 2022a, Alg. 4"),
    Solver("dpm3", dpm_solver.dpm3, 3, 3, "Lu et al. 2022a, Alg. 5"),
    Solver("dpm-fast", dpm_solver.dpm_fast, 2, 3, "Lu et al. 2022a, appendix", split_nfe=_split_fast),
    Solver("dpm2m", dpm_multistep.dpm2m, 2, 1, "Lu et al. 2022b, in noise form", unic_order=3),
    Solver("dpm3m", dpm_multistep.dpm3m, 3, 1, "exact weights, in noise form", ramp_order=2, unic_order=4),
    Solver("dpm3m-published", dpm_multistep.dpm3m_published, 2, 1, "Lu et al. 2022a, their code", unic_order=3),
    Solver("dpmpp2s", dpm_solver.dpmpp2s, 2, 2, "Lu et al. 2022b, Alg. 1"),
    Solver("dpmpp3s", dpm_solver.dpmpp3s, 3, 3, "Lu et al. 2022b, dpm3 in data form"),
    Solver("dpmpp2m", dpm_multistep.dpmpp2m, 2, 1, "Lu et al. 2022b, Alg. 2", unic_order=3),
    Solver("dpmpp3m", dpm_multistep.dpmpp3m, 3, 1, "Lu et al. 2022b, exact weights", ramp_order=2, unic_order=4),
    Solver("dpmpp3m-published", dpm_multistep.dpmpp3m_published, 2, 1, "Lu et al. 2022b, their code", unic_order=3),
    Solver("sde-dpmpp1", dpm_multistep.sde_dpmpp1, 1, 1, "Lu et al. 2022b, SDE", unic_order=2, stochastic=True),
    Solver("sde-dpmpp2m", dpm_multistep.sde_dpmpp2m, 2, 1, "Lu et al. 2022b, SDE", unic_order=2, stochastic=True),
    Solver("sde-dpmpp3m", dpm_multistep.sde_dpmpp3m, 2, 1, "exact weights", unic_order=2, stochastic=True),
    Solver("sde-dpmpp3m-published", dpm_multistep.sde_dpmpp3m_published, 2, 1, "k-diffusion", unic_order=2, stochastic=True),
    Solver("unipc1", unipc.unipc1, 2, 1, "Zhao et al. 2023"),
    Solver("unipc2", unipc.unipc2, 3, 1, "Zhao et al. 2023"),
    Solver("unipc3", unipc.unipc3, 4, 1, "Zhao et al. 2023", ramp_order=3),
    Solver("unipc4", unipc.unipc4, 5, 1, "Zhao et al. 2023", ramp_order=3),
    Solver("deis-t", deis.deis_t, 3, 1, "Zhang and Chen 2023, tAB", ramp_order=2, unic_order=4),
    Solver("deis-rho", deis.deis_rho, 3, 1, "Zhang and Chen 2023, ρAB", ramp_order=2, unic_order=4),
    Solver("deis-lambda", deis.deis_lambda, 3, 1, "Zhang and Chen 2023, in λ", ramp_order=2, unic_order=4),
    Solver("deis-rho-rk", deis.deis_rho_rk, 3, 3, "Zhang and Chen 2023, ρRK"),
    Solver("ipndm", pndm.ipndm, 2, 1, "Zhang and Chen 2023, App. H", unic_order=2),
    Solver("pndm", pndm.pndm, 2, 1, "Liu et al. 2022, Alg. 2"),
    Solver("heun", edm.heun, 2, 2, "Karras et al. 2022, Alg. 1"),
    Solver("heun-churn", edm.heun_churn, 2, 2, "Karras et al. 2022, Alg. 2", stochastic=True),
    Solver("sa-solver", sa_solver, 2, 1, "Xue et al. 2023", stochastic=True),
    *(
        Solver(f"rk:{name}", partial(runge_kutta, f"rk:{name}", table), table.order, len(table.b), table.source)
        for name, table in TABLES.items()
    ),
    *map(_adaptive, adaptive.PAIRS),
    _black_box(blackbox.Method("euler", 1, 1), "euler-lambda"),
    *map(_black_box, blackbox.METHODS),
)
SOLVERS = {solver.name: solver for solver in ENTRIES}
assert len(SOLVERS) == len(ENTRIES), "two solvers share a name"


def _alias(name: str, of: str, source: str, *, only: tuple[str, ...], **changes: Any) -> Solver:
    """The solver `of` under another name, with those of its options that go by that name."""
    types = {option: kind for option, kind in SOLVERS[of].options.items() if option in only}
    return dataclasses.replace(SOLVERS[of], name=name, source=f"{source}: {of}", option_types=types, alias_of=of, **changes)


MULTISTEP = ("order", "start", "lower_final", "unic")
ALIASES = {
    solver.name: solver
    for solver in (
        _alias("euler", "ddim", "Song et al. 2021a, Eq. 14", only=()),
        _alias("euler-ancestral", "ddim", "k-diffusion", only=("eta",), build=partial(ddim.ddim, eta=1.0), stochastic=True),
        _alias("dpm1", "ddim", "Lu et al. 2022a, Eq. 3.7", only=()),
        _alias("kdpm2", "dpm2", "k-diffusion", only=()),
        _alias("lms", "deis-rho", "k-diffusion", only=MULTISTEP, build=partial(deis.deis_rho, order=4), order=4, unic_order=5),
    )
}


def find(solver: str | Plan) -> Solver:
    """The solver of a name: one of SOLVERS or ALIASES; with "+unic" one of them under UniC; a plan's JSON file; or MODULE:NAME, a
    Solver of the user's that can be imported from here. A Plan is itself.

    InputError that suggests the nearest, and says what lists all.
    """
    instance("solver", solver, str | Plan, "the name of a solver, or a Plan")
    if isinstance(solver, Plan):
        return ready(solver, solver.solver)
    known = SOLVERS | ALIASES
    if solver in known:
        return known[solver]
    if solver.endswith(".json"):
        return ready(Plan.load(solver), solver)
    base_name = solver.removesuffix(UNIC)
    base = known.get(base_name)
    if base is None and is_user_defined(solver):
        _, base = import_object(base_name, Solver, "Solver(name, build, order, nfe_per_step, source)")
    if base is not None:
        return base if base_name == solver else _with_unic(base, solver)
    raise unknown("solver", solver, known, LISTING)


def _with_unic(base: Solver, name: str) -> Solver:
    """NAME+unic; InputError where UniC cannot be put on top."""
    if not base.unic_order or base.build is None:
        raise InputError(f"{base.name} takes no corrector: multistep solvers do, as dpmpp2m{UNIC}, ipndm{UNIC} or deis-rho{UNIC}")
    build = partial(base.build, unic=True)
    ramp = 3 * (base.unic_order > 3)
    return dataclasses.replace(base, name=name, build=build, order=base.unic_order, ramp_order=ramp, unic_order=0)


def is_user_defined(solver: str) -> bool:
    """Whether a name is MODULE:NAME, whose numbers the name does not say."""
    name = solver.removesuffix(UNIC)
    return ":" in name and name not in SOLVERS and not name.startswith("rk:")


def all_names() -> Iterator[str]:
    """Every name of a table of its own: those in SOLVERS, and those with UniC."""
    yield from SOLVERS
    yield from (f"{name}{UNIC}" for name, solver in SOLVERS.items() if solver.unic_order)


def table() -> str:
    """The solvers, and then the aliases, as a Markdown table: what `python cli.py solvers` prints and docs show."""
    rows = [("name", "order", "NFE per step", "options", "source")]
    for solver in (*SOLVERS.values(), *ALIASES.values()):
        cost = str(solver.nfe_per_step) if solver.nfe_per_step else "adaptive" if solver.chooses_steps else "varies"
        ramp = f" (ramp: {solver.ramp_order})" if solver.ramp_order else ""
        rows.append(
            (solver.name, f"{solver.order}{' weak' * solver.stochastic}{ramp}", cost, ", ".join(solver.options), solver.source)
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
