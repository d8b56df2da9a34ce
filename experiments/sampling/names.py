"""The name of an output that is not given one: of the model, the solver, and all that was typed and decides the images."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NOT_IN_NAMES = (
    "model",
    "pipeline",
    "solver",
    "out",
    "overwrite",
    "batch",
    "device",
    "save_plan",
    "trajectory",
)  # said apart, or not deciding
LAST_IN_NAMES = ("n", "seeds", "label", "guidance", "guidance_interval", "guidance_rescale", "clip", "threshold", "dtype")


def default_output(model: str, solver: str, typed: Mapping[str, Any], suffix: str) -> Path:
    """Where an output goes that is not given a place: samples/ and its `default_name`."""
    return Path("samples") / f"{default_name(model, solver, typed)}{suffix}"


def default_name(model: str, solver: str, typed: Mapping[str, Any]) -> str:
    """MODEL-SOLVER-OPTION-VALUE-..., at most 120 characters, without suffix.

    typed: the options that were typed, and their values. Commands whose images may differ have different names: where a name
    cannot hold all of its options, it ends with their digest.
    """
    deciding = sorted(typed.keys() - NOT_IN_NAMES, key=[*typed].index)
    ordered = sorted(deciding, key=lambda name: LAST_IN_NAMES.index(name) if name in LAST_IN_NAMES else -1)
    short, exact = (
        "-".join(word for name in ordered for word in ([name] if typed[name] is True else [name, _text(typed[name], brief)]))
        for brief in (True, False)
    )
    solver = solver.replace(":", "-")
    name = re.sub(r"[^\w.,+=-]", "_", "-".join(filter(None, [Path(model).stem, solver, short])))[:120]
    full = "-".join(filter(None, [model, solver, exact]))
    return name if name == full else f"{name[:111]}-{hashlib.sha256(full.encode()).hexdigest()[:8]}"


def _text(value: Any, brief: bool) -> str:
    """A value in a name; in brief, a list is its first and last number and its length."""
    if not isinstance(value, list | tuple):
        return str(value)
    if isinstance(value, list) and (
        brief or (math.isfinite(value[0]) and value == [*range(int(value[0]), int(value[0]) + len(value))])
    ):
        return f"{value[0]}..{value[-1]}-{len(value)}"
    return ",".join("=".join(part) if isinstance(part, tuple) else str(part) for part in value)
