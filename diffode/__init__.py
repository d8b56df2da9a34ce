"""diffode: sample diffusion models by integrating their probability-flow ODE in log-SNR time.

    from diffode import EpsModel, sample, schedules

    model = EpsModel(network, schedule=schedules.ddpm_linear(), predicts="noise")
    result = sample(model, solver="dpmpp2m", nfe=10, shape=(16, 1, 28, 28), seed=0)
    result.x, result.nfe, result.plan

What is integrated:

    EpsModel          ε(x, λ) for any network, prediction, condition and guidance
    Schedule          a path, α(λ) and σ(λ), and the clock t ↔ λ of a network
    schedules         those that networks are trained with: ddpm_linear, vp_linear, cosine, edm, flow, scaled_linear, ...
    trained_as        schedule, prediction and clock that the configuration of a diffusers scheduler implies
    captured          an EpsModel of a diffusers pipeline and its prompt
    shared            marks a condition that belongs to all samples, as positions
    guidance          what guidance is made of: interval, cfgpp, rescaled, apg
    grid              the λ at which solvers step, by name (make), snapped to labels (snap), from a file (load)
    InputError        what every function here raises for bad input; a ValueError

How it is integrated (resolved on first use):

    sample            from a model, a solver's name and a budget to samples
    encode            the same backwards, from data to noise
    inpaint           from a part of an image, by a mask, to the whole
    SOLVERS           name -> Solver: its order, cost, options and source
    ALIASES           name -> Solver, where the literature has another name for one of SOLVERS
    Plan              a solver as a table of numbers: printed, saved, loaded, run again
    Budget            how many evaluations, or steps, and on which grid
    log_likelihood    log p(x0) along the same ODE, by any of the solvers, and its gradients
    sample_with_log_p samples and their log p in one pass
    DiffodeScheduler  any of these solvers as the scheduler of a pipeline of diffusers

`__version__` is the version of diffode. `solvers` has what else a solver is made of, and `python -m diffode --help` is the
command line.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffode._version import __version__

if TYPE_CHECKING:
    from diffode import grid, guidance, schedules
    from diffode.conditions import shared
    from diffode.errors import InputError
    from diffode.likelihood import log_likelihood
    from diffode.model import EpsModel
    from diffode.pipelines.captured import captured
    from diffode.schedule import Schedule
    from diffode.scheduler_config import trained_as
    from solvers import ALIASES, SOLVERS, Budget, Plan, encode, inpaint, sample, sample_with_log_p
    from solvers.hosts.scheduler import DiffodeScheduler as DiffodeScheduler
else:  # PEP 562: `import diffode` imports nothing of this, neither torch nor solvers, until a name is used

    def __getattr__(name: str) -> Any:
        if name in MODULES:
            value = import_module(f"diffode.{name}")
        elif name in HOMES:
            value = getattr(import_module(HOMES[name]), name)
        else:
            raise AttributeError(f"module 'diffode' has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), "DiffodeScheduler", *__all__} - {"HOMES", "MODULES", "TYPE_CHECKING", "Any", "import_module"})


MODULES = ("grid", "guidance", "schedule", "schedules")
HOMES = {
    # These take diffusers, and are not among __all__; the second is what diffusers looks for where a saved scheduler's class is.
    **dict.fromkeys(("DiffodeScheduler", "SchedulerMixin"), "solvers.hosts.scheduler"),
    "EpsModel": "diffode.model",
    "InputError": "diffode.errors",
    "Schedule": "diffode.schedule",
    "captured": "diffode.pipelines.captured",
    "log_likelihood": "diffode.likelihood",
    "shared": "diffode.conditions",
    "trained_as": "diffode.scheduler_config",
    **dict.fromkeys(("ALIASES", "SOLVERS", "Budget", "Plan", "encode", "inpaint", "sample", "sample_with_log_p"), "solvers"),
}

__all__ = [
    "ALIASES",
    "SOLVERS",
    "Budget",
    "EpsModel",
    "InputError",
    "Plan",
    "Schedule",
    "__version__",
    "captured",
    "encode",
    "grid",
    "guidance",
    "inpaint",
    "log_likelihood",
    "sample",
    "sample_with_log_p",
    "schedules",
    "shared",
    "trained_as",
]
