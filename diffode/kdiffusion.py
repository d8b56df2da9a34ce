"""Solvers as samplers of k-diffusion, and so of ComfyUI.

    from diffode.kdiffusion import sampler, sigmas_of

    x = sampler("unipc3")(model, x, sigmas, extra_args, callback, disable)

    sampler           a solver, or a plan, with the face of k_diffusion.sampling.sample_*
    sigmas_of         the σ of a plan, or of a list of λ
    path_of           the path of a model of ComfyUI, by its model_sampling

A second front door, resolved on first use (PEP 562): the code is solvers/hosts/kdiffusion.py.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from solvers.hosts.kdiffusion import path_of, sampler, sigmas_of
else:

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module 'diffode.kdiffusion' has no attribute {name!r}")
        globals()[name] = value = getattr(import_module("solvers.hosts.kdiffusion"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__} - {"TYPE_CHECKING", "Any", "import_module"})


__all__ = ["path_of", "sampler", "sigmas_of"]
