"""diffode: sample diffusion models by integrating their probability-flow ODE in log-SNR time.

`diffode` says what is integrated (schedule, grid, model), `solvers` how, `experiments` what can be learned from it.
"""

from diffode import grid, schedule, schedules
from diffode.errors import InputError
from diffode.model import EpsModel
from diffode.schedule import Schedule

__all__ = ["EpsModel", "InputError", "Schedule", "grid", "schedule", "schedules"]
