"""Plan: a fixed-step solver as a table of numbers, in float64, that checks its own mathematics.

A stage moves the anchor (the last committed state) from λ_s to λ_t, with stored predictions m_j and fresh noise z:

    u = x · anchor + Σ_j c_j m_j + noise · z

Then, if it evaluates, the model's prediction at (u, λ_t) is appended to the m_j; if it commits, u becomes the anchor. The
first stage is the start itself (x = 1, no c). Indices j count evaluations from 0, so a plan is a strictly causal banded
matrix, and its band is the memory that running it takes.

Being made, a plan proves the transfer law (see transfer.py): a point mass stays a point mass, so x, noise and the sum of the c
of each row are right to 1e-10. Errors whose sum is zero are left to the tests of moments and order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffode.checks import choice, instance, number, text, whole, wrong
from diffode.errors import InputError, one_line, shown
from diffode.files import atomic, json_value
from diffode.prediction import CONSTANT
from diffode.reading import MOST_JSON, parse_json, read_bytes, reading
from diffode.schedule import PATHS, ProbabilityPath

MOST_STAGES = 1_000_000
Number = float | Tensor  # a tensor () of float64 or float32, to be differentiated by


@dataclass(frozen=True)
class Stage:
    """One row.

    lam: where the new state lives, and where the model is evaluated.     x: coefficient of the anchor.
    c: evaluation index -> coefficient.     noise: std of the fresh noise.     draw: which N(0, I) tensor, 1, 2, ...
    evaluate: append the model's prediction here.     commit: the new state becomes the anchor.

    x, c and noise may be tensors (), see run(..., differentiable=True).
    """

    lam: float
    x: Number
    c: Mapping[int, Number] = field(default_factory=dict)
    noise: Number = 0.0
    draw: int | None = None
    evaluate: bool = True
    commit: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "lam", _number("lam", self.lam))
        object.__setattr__(self, "x", _number("x", self.x))
        object.__setattr__(self, "noise", _number("noise", self.noise))
        if type(self.c) is not dict:  # isinstance of a Mapping is slow
            instance("c", self.c, Mapping, "a mapping of evaluations to coefficients")
        if not type(self.evaluate) is type(self.commit) is bool:
            raise wrong("evaluate and commit", "True or False", (self.evaluate, self.commit))
        numbers = {j if type(j) is int else whole("an evaluation of c", j): _number("c", c) for j, c in self.c.items()}
        live = {j: c for j, c in numbers.items() if not isinstance(c, float) or c != 0}  # 0 · NaN is NaN
        object.__setattr__(self, "c", live)
        draws = self.draw is None or (type(self.draw) is int and self.draw >= 1)
        if (value(self.noise) != 0) != (self.draw is not None) or not draws:
            has = f"noise {self.noise:g} and draw {shown(self.draw)}"
            raise InputError(f"the stage at λ = {self.lam:g} has {has}: give both or neither, and draws from 1 on (0 is x_T)")


@dataclass(frozen=True, repr=False)
class Plan:
    """A solver, planned. `exact_marginals` is False for the few published rules whose rows do not keep a point mass a point
    mass with the variance of the forward process: DDPM with σ² = β, EDM's S_noise, Runge–Kutta in λ."""

    solver: str
    path: ProbabilityPath
    prediction: str
    stages: tuple[Stage, ...]
    exact_marginals: bool = True

    def __post_init__(self) -> None:
        text("solver", self.solver), instance("path", self.path, ProbabilityPath, "one of diffode.schedule.PATHS")
        choice("the prediction of a plan, whose pair is the same at all λ,", self.prediction, CONSTANT)
        stages = instance("stages", self.stages, tuple, "a tuple of Stages")
        if len(stages) > MOST_STAGES or not all(isinstance(stage, Stage) for stage in stages):
            raise wrong("stages", f"a tuple of at most {MOST_STAGES} Stages", stages)
        if len(stages) < 2 or value((start := stages[0]).x) != 1 or start.c or start.draw is not None or not start.commit:
            raise InputError("a plan begins with its start: x = 1, no c, no noise, committed; and has a stage after it")
        evaluations, anchor = 0, start
        for row, stage in enumerate(self.stages):
            if any(not 0 <= j < evaluations for j in stage.c):
                raise InputError(
                    f"stage {row} of {self.solver} uses evaluations {sorted(stage.c)} where {evaluations} have been made"
                )
            self._check_transfer(row, anchor, stage)
            evaluations += stage.evaluate
            anchor = stage if stage.commit else anchor
        if not self.stages[-1].commit or self.stages[-1].evaluate:
            raise InputError("a plan ends with a stage that commits and does not evaluate")

    def _check_transfer(self, row: int, anchor: Stage, stage: Stage) -> None:
        """α_s X + p0 ΣC = α_t, and k² + n² = σ_t² with k = σ_s X + p1 ΣC ≥ 0, to 1e-10 of the largest term."""
        (alpha_s, sigma_s), (alpha_t, sigma_t) = self.path.at(anchor.lam), self.path.at(stage.lam)
        p0, p1 = CONSTANT[self.prediction]
        x, noise, total = value(stage.x), value(stage.noise), sum(value(c) for c in stage.c.values())
        offs = [_off(alpha_s * x, p0 * total, alpha_t)]
        if self.exact_marginals and not noise:
            offs.append(_off(sigma_s * x, p1 * total, sigma_t))
        elif self.exact_marginals:  # in the variance, since a kept part that is much smaller than n is known no better
            kept, largest = sigma_s * x + p1 * total, max(abs(sigma_s * x), abs(total), sigma_t)
            variance = kept * kept + noise * noise
            offs += [abs(variance - sigma_t * sigma_t) / max(2 * sigma_t * largest, 1e-300), -kept / max(largest, 1e-300)]
        off = max(offs, key=lambda off: math.inf if math.isnan(off) else off)
        right = off <= 1e-10 or (off <= 1e-5 and _is_single(stage))
        if not right or not all(map(math.isfinite, (x, noise, total, sigma_s * x))):
            raise InputError(
                f"stage {row} of {self.solver}, λ = {anchor.lam:g} to {stage.lam:g}, breaks the transfer law by {off:.1e}: "
                f"x = {x:g}, c = {dict(stage.c)}, noise = {noise:g} do not carry a point mass to a point mass"
            )

    @property
    def nfe(self) -> int:
        """Evaluations of the model."""
        return sum(stage.evaluate for stage in self.stages)

    @property
    def grid(self) -> list[float]:
        """λ of the committed states, the start included."""
        return [stage.lam for stage in self.stages if stage.commit]

    @property
    def stochastic(self) -> bool:
        return any(stage.draw is not None for stage in self.stages)

    @property
    def last_use(self) -> dict[int, int]:
        """Evaluation index -> the last stage that uses it."""
        return {j: row for row, stage in enumerate(self.stages) for j in stage.c}

    @property
    def memory(self) -> int:
        """The largest number of evaluations that have to be kept at a time."""
        made = [row for row, stage in enumerate(self.stages) if stage.evaluate]
        kept = np.zeros(len(self.stages), int)  # from the row that makes it, until the last that uses it
        for j, row in self.last_use.items():
            kept[made[j]] += 1
            kept[row] -= 1
        return int(np.cumsum(kept).max())

    def matrix(self) -> np.ndarray:
        """The table as one array: stages × (x, noise, m0, m1, ...); InputError for one of more than 1 GiB."""
        if len(self.stages) * self.nfe > 2**27:
            raise InputError(f"a table of {len(self.stages)} stages and {self.nfe} evaluations is too large for one array")
        table = np.zeros((len(self.stages), 2 + self.nfe))
        for row, stage in zip(table, self.stages, strict=True):
            row[:2] = value(stage.x), value(stage.noise)
            row[[2 + j for j in stage.c]] = [value(c) for c in stage.c.values()]
        return table

    def save(self, path: str | Path) -> None:
        """Write it as JSON, exactly: Python's shortest decimal of a float64 is read back to the same bits."""
        with atomic(path) as part:
            part.write_text(self.to_text(), encoding="utf-8")

    def to_text(self) -> str:
        """The text of the file that `save` writes."""
        head = {name: getattr(self, name) for name in ("solver", "prediction", "exact_marginals")}
        rows = []
        for stage in self.stages:
            row = {"lam": json_value(stage.lam), "x": value(stage.x), "c": {str(j): value(c) for j, c in stage.c.items()}}
            noise = {"noise": value(stage.noise), "draw": stage.draw} if stage.draw is not None else {}
            rows.append({**row, **noise, "evaluate": stage.evaluate, "commit": stage.commit})
        lines = [f" {json.dumps(name)}: {json.dumps(item)}," for name, item in {"path": self.path.name, **head}.items()]
        stages = ",\n".join(f"  {json.dumps(row, allow_nan=False)}" for row in rows)
        return "\n".join(["{", *lines, ' "stages": [', stages, " ]", "}", ""])

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read what `save` wrote; InputError for a file that is not a plan, or not a right one."""
        with reading(path, "plan", "what Plan.save writes"):
            return cls.from_text(read_bytes(path, MOST_JSON))

    @classmethod
    def from_text(cls, text: str | bytes) -> Plan:
        """The plan of what `to_text` wrote; what it raises for any other text is for `reading`."""
        made = parse_json(text)
        rows = [{**row, "lam": float(row["lam"]), "c": {_index(j): c for j, c in row["c"].items()}} for row in made["stages"]]
        if not isinstance(flag := made["exact_marginals"], bool) or not isinstance(made["solver"], str):
            raise InputError(f"exact_marginals {shown(flag)}, solver {shown(made['solver'])}")
        stages = tuple(Stage(**row) for row in rows)
        if (last := max((stage.draw or 0 for stage in stages), default=0)) > len(stages) + 1000:  # all before it are drawn
            raise InputError(f"its noise is draw {last}, of a plan of {len(stages)} stages")
        return cls(made["solver"], PATHS[made["path"]], made["prediction"], stages, flag)

    def __repr__(self) -> str:
        """The table's first line."""
        spent = f"{len(self.grid) - 1} steps, {self.nfe} NFE, memory {self.memory}"
        return f"{one_line(self.solver)}: {spent}, prediction {self.prediction}, path {self.path.name}"

    def _repr_html_(self) -> str:
        from solvers.notebook import plan_html

        return plan_html(self)

    def __str__(self) -> str:
        """The table: a stage a line, E where it evaluates, K where it commits."""
        lines = [repr(self), f"{'':4}{'λ':>10} {'σ/α':>10}  E K {'x':>14} {'noise':>11}  c"]
        for row, stage in enumerate(self.stages):
            flags = ("E" if stage.evaluate else "-") + (" K" if stage.commit else " -")
            c = "  ".join(f"m{j}: {value(c):+.8g}" for j, c in sorted(stage.c.items()))
            numbers = f"{stage.lam:10.5f} {np.exp(-stage.lam):10.5g}  {flags} {value(stage.x):14.8g} {value(stage.noise):11.6g}"
            lines.append(f"{row:<4}{numbers}  {c}".rstrip())
        return "\n".join(lines)


def value(number: Number) -> float:
    """A number of a stage as a float."""
    return number if isinstance(number, float) else float(number.detach())


def _index(text: str) -> int:
    """Of an evaluation, as JSON has it, whose names are text."""
    if str(j := int(text)) != text:
        raise InputError(f"c names no evaluation by {shown(text)}")
    return j


def _is_single(stage: Stage) -> bool:
    """Whether a number of the stage is a tensor of less than float64."""
    numbers = (stage.x, stage.noise, *stage.c.values())
    return any(number.dtype != torch.float64 for number in numbers if isinstance(number, Tensor))


def _number(name: str, given: Any) -> Number:
    """A number of a stage; NaN is left to the transfer law, but as a λ. InputError for what is none."""
    if isinstance(given, float) and (given == given or name != "lam"):
        return float(given)
    if isinstance(given, Tensor) and given.ndim == 0 and name != "lam":
        return given
    return number(name, given, finite=False)


def _off(a: float, b: float, c: float) -> float:
    """|a + b − c|, relative to the largest."""
    return abs(a + b - c) / max(abs(a), abs(b), abs(c), 1e-300)
