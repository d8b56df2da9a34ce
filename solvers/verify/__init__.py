"""verify: what every solver claims, measured on the machine it runs on.

The truth is a Gaussian mixture: one class of the shipped one at 7 × 7 pixels, so that its exact ε costs a tenth of a millisecond.
Each function in CLAIMS takes a solver and returns a Check, a cell of its line in the table:

    order       errors fall as h^order, on two grids and two paths; if stochastic, the error of the variance on Gaussian data does
                (weak order); if adaptive, errors follow the tolerance
    as started  what the default start of a multistep method adds to a start of full order falls as said
    forms       noise, data, velocity and flow networks of one model give the same images
    round trip  the plan of the reversed grid and the plan lead back, the closer the finer
    batch       sixteen images at once are twice eight, in float64 and in float32
    NFE         evaluations, counted at the network, are those of the result, and those declared a step
    σ = 0       one, two and three steps to there end with the network's last x̂0 (methods that step in σ̄: are finite)
    α = 0       networks that are finite there, data and flow, can begin there (zero terminal SNR), or are refused with a reason
    float32     gives the images of float64

A plan has one grid, and no order to be measured. Orders up to 5 can be.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from diffode.checks import wrong
from diffode.errors import InputError
from solvers.registry import all_names, find
from solvers.solver import Solver
from solvers.verify.checks import CLAIMS, Check

__all__ = ["CLAIMS", "Check", "verify"]
WIDTHS = dict(zip(CLAIMS, (18, 10, 7, 10, 14, 7, 9, 9, 7), strict=True))


def verify(names: Sequence[str], report: Callable[[str], None]) -> bool:
    """Measure the claims of the solvers named (names as in registry.find; none: all there are), and report a table line by line.

    Returns whether every claim holds. InputError, before anything is measured, for a name that is not known.
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise wrong("names", "a list of names of solvers", names)
    solvers, began, made = [find(name) for name in names or all_names()], time.perf_counter(), []
    name_width = max(len(solver.name) for solver in solvers)
    report("  ".join(["solver".ljust(name_width), *(f"  {claim}".ljust(width + 2) for claim, width in WIDTHS.items())]).rstrip())
    for solver in solvers:
        checks = {claim: _tried(measure, solver) for claim, measure in CLAIMS.items()}
        cells = (str(check).ljust(WIDTHS[claim] + 2) for claim, check in checks.items())
        report("  ".join([solver.name.ljust(name_width), *cells]).rstrip())
        for claim, check in checks.items():
            if not check.ok:
                report(f"  ✗ {claim} of {solver.name}: claimed {check.claimed}, measured {check.measured}")
        made += [check.ok for check in checks.values() if check.claimed]
    report(f"{sum(made)} of {len(made)} claims hold, {time.perf_counter() - began:.0f} s")
    return all(made)


def _tried(measure: Callable[[Solver], Check], solver: Solver) -> Check:
    """A claim that cannot be measured, the solver refusing to run, is broken."""
    try:
        return measure(solver)
    except InputError as error:
        return Check("refused", f"to run, not: {error}", False)
