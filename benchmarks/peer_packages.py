"""k-diffusion's functions and the DPM-Solver authors' class, loaded from their files. Neither is needed to run diffode."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from diffode import InputError


def k_diffusion() -> ModuleType:
    """k_diffusion.sampling, without what its package imports beside it; InputError if k-diffusion is not installed."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("k-diffusion is not installed: pip install --no-deps k-diffusion, or leave it out")
    package, utils, torchsde = (ModuleType(name) for name in ("k_diffusion_alone", "k_diffusion_alone.utils", "torchsde"))
    vars(package).update(__path__=[], utils=utils)
    vars(utils).update(append_dims=lambda x, dims: x[(...,) + (None,) * (dims - x.ndim)])
    stubs = {module.__name__: module for module in (package, utils, torchsde) if module.__name__ not in sys.modules}
    sys.modules.update(stubs)
    try:
        return _load("k_diffusion_alone.sampling", Path(spec.submodule_search_locations[0]) / "sampling.py")
    finally:
        for name in stubs:
            del sys.modules[name]


def dpm_solver(file: Path) -> ModuleType:
    """The authors' dpm_solver_pytorch.py; InputError if `file` is something else."""
    module = _load("dpm_solver_pytorch", file)
    if missing := [name for name in ("NoiseScheduleVP", "model_wrapper", "DPM_Solver") if not hasattr(module, name)]:
        raise InputError(f"{file} has no {missing[0]}: give the dpm_solver_pytorch.py of the authors of DPM-Solver")
    return module


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
