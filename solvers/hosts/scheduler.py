"""DiffodeScheduler: any planned solver as the scheduler of a pipeline of diffusers.

    pipe.scheduler = DiffodeScheduler.from_config(pipe.scheduler, solver="unipc3")

The pipeline calls its network at `timesteps`, one for each evaluation, and hands what that predicts to `step`, which goes on to
the next state to be evaluated (cursor.py). Schedule, prediction and clock are those that the configuration implies
(scheduler_config.trained_as); the network's output is converted, clipped and thresholded by an EpsModel of it. A state is that of
the schedule's path: on tables of β it is what the network takes, α x0 + σ ε, whatever units the replaced class has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffode import prediction
from diffode.calling import check_device, check_state
from diffode.checks import number, numbers, whole
from diffode.errors import InputError
from diffode.evaluation import columns
from diffode.grid import MOST_STEPS
from diffode.model import EpsModel
from diffode.schedule import Array, Schedule
from diffode.scheduler_config import TrainedAs, trained_as
from solvers.budget import Budget
from solvers.hosts import settings
from solvers.hosts.cursor import Cursor
from solvers.hosts.settings import PIPELINE
from solvers.hosts.timetable import Timetable
from solvers.options import check as checked_options
from solvers.plan import Plan
from solvers.registry import find

try:
    from diffusers.configuration_utils import ConfigMixin
    from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
    from diffusers.schedulers.scheduling_utils import SchedulerMixin
    from diffusers.utils.torch_utils import randn_tensor
except ImportError as error:
    raise InputError("DiffodeScheduler takes diffusers, which is not installed: pip install 'diffode[hub]'") from error

from solvers.hosts import replaced as of_class


class DiffodeScheduler(SchedulerMixin, ConfigMixin):
    """A planned solver with the face of a scheduler of diffusers; made by `from_config`, used by a pipeline.

    timesteps: the clocks of all evaluations, float32; order: evaluations per step; sigmas: σ/α at each evaluation and at the end,
    for flow matching σ; init_noise_sigma: what the pipeline multiplies its noise with, so that it begins as it did.
    """

    __module__ = "diffode"  # where a saved pipeline finds the class
    _compatibles: list[str] = []  # noqa: RUF012

    def __init__(self, config: Any, **given: Any) -> None:
        """See from_config."""
        theirs, name = of_class.described(config)
        own = {key: theirs.pop(key, default) for key, default in settings.DEFAULTS.items()}
        if name not in ("", type(self).__name__):
            own["replaced"] = name
        if (solver := given.pop("solver", None)) is None:
            self._solver = settings.planned(settings.stored(own["solver"], own["plan"], trusted=not isinstance(config, Mapping)))
        else:
            self._solver, own["options"] = settings.planned(find(solver)), {}  # those may be of another
        plan = self._solver.fixed_plan
        own |= {"solver": self._solver.name, "plan": plan and plan.to_text()}
        own |= {key: given.pop(key) for key in settings.SAID if key in given}
        own = settings.checked(own)
        keys = of_class.keys_of(own["replaced"]) if own["replaced"] or own["grid"] == PIPELINE else set()
        theirs |= {key: given.pop(key) for key in list(given) if key in keys - self._solver.options.keys()}
        own["options"] = checked_options(self._solver.name, self._solver.options, {**own["options"], **given})
        self.register_to_config(**theirs, **own)
        self._trained()
        self.order = max(self._solver.nfe_per_step, 1)
        self.timesteps, self.sigmas, self.init_noise_sigma = torch.empty(0), torch.empty(0), 1.0
        self.num_inference_steps: int | None = None
        self._timetable: Timetable | None = None
        self._cursor: Cursor | None = None
        self._begin: int | None = None

    @classmethod
    def from_config(cls, config: Any, return_unused_kwargs: bool = False, **given: Any) -> Any:
        """The scheduler in the place of another, of which it has the schedule, the prediction and, by default, the spacing.

        config: that scheduler, as pipe.scheduler, or its configuration, with its class as `replaced` if it does not say it.
        solver: any planned solver that `solvers.find` knows, a plan's .json file, or a Plan; unipc3. grid: "pipeline", the
        spacing of the replaced class; a name in diffode.grid; or values of λ. denoise: whether a named grid ends at σ = 0.
        clock: "exact", t(λ) of every evaluation; "pipeline", the clocks that the replaced class calls its network with.
        offset: α of the first state where the grid begins at α = 0 (flow matching, zero terminal SNR), for solvers that cannot
        begin there, as 1e-4. All else is an option of the solver (eta, order, ...), or changes a key of the replaced class's
        configuration (timestep_spacing, use_karras_sigmas, flow_shift, ...).

        InputError for a solver without a plan, for a configuration that says of no schedule, and for unknown or wrong options.
        """
        made = cls(config, **given)
        return (made, {}) if return_unused_kwargs else made

    def _trained(self, mu: float | None = None) -> TrainedAs:
        """Schedule, prediction and clock of the network."""
        mu = mu if self.config.get("use_dynamic_shifting") else None
        return trained_as({**self.config, "_class_name": self.config.replaced or None}, mu)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        """Plan a run of so many steps, `order` evaluations each, and forget the last.

        timesteps, sigmas: custom ones, as the replaced class has them; for a grid of diffode their number alone counts. mu: of a
        shift that depends on the resolution. InputError for what the class or the solver cannot take.
        """
        trained = self._trained(mu)
        custom = {"timesteps": timesteps, "sigmas": sigmas}
        listed = {key: numbers(key, values, MOST_STEPS) for key, values in custom.items() if values is not None}
        steps = None if num_inference_steps is None else whole("num_inference_steps", num_inference_steps, 1, MOST_STEPS)
        lams, spacing = self._grid(trained["schedule"], steps, listed, mu)
        self._timetable = table = Timetable(self._solver, self.config.options, lams, trained)
        clocks = table.clocks_of(spacing.clocks, spacing.whole) if spacing and self.config.clock == PIPELINE else table.clocks
        place = None if device is None else check_device("device", device)
        self.timesteps = torch.as_tensor(clocks, dtype=torch.float32, device=place)
        self.sigmas = torch.as_tensor(table.levels, dtype=torch.float32)
        self.init_noise_sigma = spacing.init if spacing else float(trained["schedule"].sigma(lams[0]))
        self.num_inference_steps = len(lams) - 1
        self._cursor = self._begin = None

    def _grid(
        self, schedule: Schedule, steps: int | None, listed: Mapping[str, Array], mu: float | None
    ) -> tuple[Array, of_class.Spacing | None]:
        """The λ of so many steps, and the spacing of the replaced class if they are of that."""
        config, fixed, spacing = self.config, self._solver.fixed_grid, None
        if fixed is None and config.grid == PIPELINE:
            spacing = of_class.spacing(config.replaced, config, schedule, steps, listed, mu)
            lams = spacing.lams
        elif fixed is None and isinstance(config.grid, str):
            steps = whole("num_inference_steps", steps or next(map(len, listed.values()), None), 1, MOST_STEPS)
            lams = Budget(grid=config.grid, denoise=config.denoise).lams(schedule, steps)
        else:
            lams = np.asarray(fixed or config.grid)
            if steps != (own := len(lams) - 1):
                raise InputError(
                    f"the {'plan' if fixed else 'grid'} has {own} steps, and the pipeline asks for {steps}: call it with "
                    f"num_inference_steps={own}"
                )
        if config.offset and lams[0] == -np.inf:
            sigma = 1 - config.offset if schedule.path.name == "flow" else np.sqrt(1 - config.offset**2)
            lams = np.append(np.log(config.offset / sigma), lams[1:])
        return lams, spacing

    @property
    def plan(self) -> Plan:
        """The table of the whole run; InputError before set_timesteps."""
        return self._planned.plan

    @property
    def begin_index(self) -> int | None:
        """The evaluation that the run begins with, if it has been said."""
        return self._begin

    @property
    def step_index(self) -> int | None:
        """The evaluation that comes next; None before the first."""
        return None if self._cursor is None else len(self._planned.lams) - self._cursor.remaining

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin with this evaluation, the first of a step: the solver is planned anew for the rest of the grid."""
        self._begin = whole("begin_index", begin_index)

    @property
    def _planned(self) -> Timetable:
        if self._timetable is None:
            raise InputError("the scheduler has no timesteps yet: call set_timesteps, as scheduler.set_timesteps(20)")
        return self._timetable

    def _index(self, timestep: Any) -> int:
        """The evaluation with this clock; of several the last, which is the one that begins a step."""
        t = number("timestep", timestep)
        found = (self.timesteps == torch.tensor(t, dtype=torch.float32, device=self.timesteps.device)).nonzero()
        if not len(found):
            raise InputError(f"{t:g} is none of the scheduler's timesteps: give one of scheduler.timesteps")
        return int(found[-1])

    def _first(self, timestep: Any) -> int:
        """The evaluation that a run begins with, as set_begin_index has said, or that of this clock."""
        return self._index(timestep) if self._begin is None else self._begin

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """What the network takes at the next evaluation: the state, but for networks with EDM's preconditioning, which take c_in
        times it."""
        trained, sample = self._planned.trained, check_state("sample", sample)
        if prediction.find(trained["predicts"]).scale is None:
            return sample
        lam = self._cursor.lam if self._cursor else self._planned.lams[self._first(timestep)]
        return sample * float(prediction.input_scale(trained["predicts"], *trained["schedule"].path.at(lam)))

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, generator: Any = None, return_dict: bool = True, **unused: Any
    ) -> Any:
        """The next state to be evaluated, or the last, and x̂0: from what the network returned for `sample` at `timestep`.

        model_output: (batch, *shape), as `sample`, or with twice the channels of which half are variances. generator: one or a
        list, of which draw k of a stochastic solver is the k-th tensor; without, the global one. Returns `prev_sample` and
        `pred_original_sample`, by name or as a tuple. InputError before set_timesteps and after its last timestep, for another
        batch than that which the run began with, and for arguments that would change the step.
        """
        settings.refuse_of_others(unused)
        check_state("model_output", model_output), check_state("sample", sample)
        settings.check_generator(generator)
        if self._cursor is None:
            self._cursor = Cursor(self._planned.beginning_at(self._first(timestep)))
        cursor, model = self._cursor, self._model(model_output, sample)
        x, lam, wanted = cursor.widened(sample), cursor.lam, cursor.plan.prediction
        x0 = model(x, lam, "data")
        m = x0 if wanted == "data" else model(x, lam, wanted)
        state = cursor.advance(x, m, lambda like: randn_tensor(like.shape, generator, like.device, like.dtype))
        made = state.to(sample.dtype), x0.to(sample.dtype)
        return DDIMSchedulerOutput(*made) if return_dict else made

    def _model(self, output: Tensor, sample: Tensor) -> EpsModel:
        """The pipeline's network, which has returned `output` for this sample, with what the configuration does to x̂0."""
        config, trained = self.config, self._planned.trained
        schedule, predicts = trained["schedule"], trained["predicts"]
        with_variances = output.ndim == sample.ndim > 1 and output.shape[1] == 2 * sample.shape[1]
        model = EpsModel(lambda x, t: output, schedule, predicts, clock="lam", learned_variance=with_variances)
        return of_class.bounded(model, config.replaced, config)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """α x + σ noise at each of these timesteps, one for all samples or one for each."""
        table = self._planned
        lams = [table.lams[self._index(t)] for t in torch.as_tensor(timesteps).reshape(-1)]
        alpha, sigma = columns(np.array([table.schedule.alpha(lams), table.schedule.sigma(lams)]), original_samples)
        return alpha * original_samples + sigma * noise

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """add_noise, under the name and in the order of flow matching's schedulers."""
        return self.add_noise(sample, noise, timestep)

    def __len__(self) -> int:
        return int(self.config.get("num_train_timesteps", 1000))
