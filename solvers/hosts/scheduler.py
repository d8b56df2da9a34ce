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
from diffode.clocks import lam_at
from diffode.errors import InputError
from diffode.evaluation import columns
from diffode.grid import MOST_STEPS
from diffode.model import EpsModel
from diffode.schedule import Array, Schedule
from diffode.scheduler_config import TrainedAs, trained_as
from solvers.budget import Budget
from solvers.hosts.cursor import Cursor
from solvers.hosts.timetable import Timetable
from solvers.plan import Plan

try:
    from diffusers.configuration_utils import ConfigMixin
    from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
    from diffusers.schedulers.scheduling_utils import SchedulerMixin
    from diffusers.utils.torch_utils import randn_tensor
except ImportError as error:
    raise InputError("DiffodeScheduler takes diffusers, which is not installed: pip install 'diffode[hub]'") from error

from solvers.hosts import replaced, settings


class DiffodeScheduler(SchedulerMixin, ConfigMixin):
    """A planned solver with the face of a scheduler of diffusers; made by `from_config`, used by a pipeline.

    timesteps: the clocks of all evaluations, float32; order: evaluations per step; sigmas: σ/α at each evaluation and at the end,
    for flow matching σ; init_noise_sigma: what the pipeline multiplies its noise with, so that it begins as it did.
    """

    __module__ = "diffode"  # where a saved pipeline finds the class
    _compatibles: list[str] = []  # noqa: RUF012

    def __init__(self, config: Any, **given: Any) -> None:
        """See from_config."""
        self._solver, config = settings.read(config, given)
        self.register_to_config(**config)
        self._trained()  # InputError for a configuration that says of no schedule
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
        **others: Any,
    ) -> None:
        """Plan a run of so many steps, `order` evaluations each, and forget the last.

        timesteps, sigmas: custom ones, as the replaced class has them; for a grid of diffode their number alone counts. mu: of a
        shift that depends on the resolution. others: of the replaced class's own (LCM's `original_inference_steps`). InputError
        for what the class or the solver cannot take.
        """
        trained = self._trained(mu)
        custom = {"timesteps": timesteps, "sigmas": sigmas}
        listed = {key: numbers(key, values, MOST_STEPS) for key, values in custom.items() if values is not None}
        steps = None if num_inference_steps is None else whole("num_inference_steps", num_inference_steps, 1, MOST_STEPS)
        asked = {"num_inference_steps": steps, "mu": mu, **listed, **others}
        lams, spacing = self._grid(trained["schedule"], {key: value for key, value in asked.items() if value is not None})
        if spacing is None and (own := [key for key, value in others.items() if value is not None]):
            raise InputError(f'`{own[0]}` is of the spacing of the replaced scheduler: leave it out, or take grid="pipeline"')
        self._timetable = table = Timetable(self._solver, self.config.options, lams, trained)
        clocks = table.clocks_of(spacing.clocks, spacing.whole) if spacing and self.config.clock == "pipeline" else table.clocks
        place = None if device is None else check_device("device", device)
        self.timesteps = torch.as_tensor(clocks, dtype=torch.float32, device=place)
        self.sigmas = torch.as_tensor(table.levels, dtype=torch.float32)
        self.init_noise_sigma = spacing.init if spacing else float(trained["schedule"].sigma(lams[0]))
        self.num_inference_steps = len(lams) - 1
        self._cursor = self._begin = None

    def _grid(self, schedule: Schedule, asked: Mapping[str, Any]) -> tuple[Array, replaced.Spacing | None]:
        """The λ of a run, of which set_timesteps is asked so, and the spacing of the replaced class if they are of that."""
        config, fixed, spacing = self.config, self._solver.fixed_grid, None
        steps, listed = asked.get("num_inference_steps"), [asked[key] for key in replaced.CUSTOM if key in asked]
        if fixed is None and config.grid == "pipeline":
            spacing = replaced.spacing(config.replaced, config, schedule, asked)
            lams = spacing.lams
        elif fixed is None and isinstance(config.grid, str):
            steps = whole("num_inference_steps", steps or next(map(len, listed), None), 1, MOST_STEPS)
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

    def _evaluation(self, timestep: Any) -> int | None:
        """The first evaluation with this clock of those that a run can begin with, if there is one."""
        t = torch.tensor(number("timestep", timestep), dtype=torch.float32).item()
        clocks = self.timesteps.tolist()
        return next((index for index in self._planned.begins if clocks[index] == t), None)

    def _first(self, timestep: Any) -> int:
        """The evaluation that a run begins with, as set_begin_index has said, or that of this clock."""
        first = self._evaluation(timestep) if self._begin is None else self._begin
        if first is None:
            raise InputError(f"no step begins at timestep {float(timestep):g}: give one of scheduler.timesteps")
        return first

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
        check_state("model_output", model_output), check_state("sample", sample)
        settings.check_generator(generator)
        if self._cursor is None:
            self._cursor = Cursor(self._planned.beginning_at(self._first(timestep)))
        cursor, model = self._cursor, self._model(model_output, sample)
        later = self.timesteps[len(self.timesteps) - cursor.remaining + 1 :].tolist()
        settings.refuse_step_arguments(unused, later[0] if later else None)
        x, lam, predicts = cursor.widened(sample), cursor.lam, cursor.plan.prediction
        x0 = model(x, lam, "data")
        m = x0 if predicts == "data" else model(x, lam, predicts)
        state = cursor.advance(x, m, lambda like: randn_tensor(like.shape, generator, like.device, like.dtype))
        made = state.to(sample.dtype), x0.to(sample.dtype)
        return DDIMSchedulerOutput(*made) if return_dict else made

    def _model(self, output: Tensor, sample: Tensor) -> EpsModel:
        """The pipeline's network, which has returned `output` for this sample, with what the configuration does to x̂0."""
        config, trained = self.config, self._planned.trained
        schedule, predicts = trained["schedule"], trained["predicts"]
        with_variances = output.ndim == sample.ndim > 1 and output.shape[1] == 2 * sample.shape[1]
        model = EpsModel(lambda x, t: output, schedule, predicts, clock="lam", learned_variance=with_variances)
        return replaced.bounded(model, config.replaced, config)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """α x + σ noise at each of these timesteps, one for all samples or one for each: any clocks of the network."""
        trained = self._timetable.trained if self._timetable else self._trained()
        lams = [self._lam_at(t, trained) for t in torch.as_tensor(timesteps).reshape(-1)]
        alpha, sigma = columns(np.array([trained["schedule"].path.at(lam) for lam in lams]).T, original_samples)
        return alpha * original_samples + sigma * noise

    def _lam_at(self, timestep: Any, trained: TrainedAs) -> float:
        """λ of the evaluation that has this clock, or else that at which the network's clock is so."""
        if self._timetable and (index := self._evaluation(timestep)) is not None:
            return self._timetable.lams[index]
        return lam_at(trained["schedule"], trained["clock"], number("timesteps", timestep))

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """add_noise, under the name and in the order of flow matching's schedulers."""
        return self.add_noise(sample, noise, timestep)

    def __len__(self) -> int:
        return int(self.config.get("num_train_timesteps", 1000))
