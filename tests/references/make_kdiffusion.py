"""What k-diffusion's own samplers make of a known denoiser, in float64: written to kdiffusion.json beside this file.

    pip install --no-deps k-diffusion==0.1.1.post1
    python -m tests.references.make_kdiffusion

Its other dependencies are not needed (benchmarks/peer_packages.py); tests/test_kdiffusion.py reads the file, and needs none.
"""

import json
import math
from pathlib import Path

import torch

FILE = Path(__file__).parent / "kdiffusion.json"
SHAPE = (2, 1, 2, 3)
# k-diffusion's function and options; our solver and options. What is the same method is here, once with each of its forms.
SAME = (
    ("euler", {}, "euler", {}),
    ("euler_ancestral", {"eta": 1.0}, "euler-ancestral", {}),
    ("euler_ancestral", {"eta": 0.4}, "euler-ancestral", {"eta": 0.4}),
    ("heun", {}, "heun", {}),
    ("heun", {"s_churn": 6.0, "s_tmin": 0.1, "s_tmax": 5.0}, "heun-churn", {"s_churn": 6.0, "s_tmin": 0.1, "s_tmax": 5.0}),
    ("heun", {"s_churn": 6.0}, "heun-churn", {"s_churn": 6.0, "s_tmin": 0.0, "s_tmax": math.inf}),  # see churned_start
    ("dpm_2", {}, "kdpm2", {}),
    ("lms", {}, "lms", {}),
    ("lms", {"order": 2}, "lms", {"order": 2}),
    ("dpm_fast", {"n": 11}, "dpm-fast", {"tail": 2}),
    ("dpmpp_2s_ancestral", {"eta": 0.0}, "dpmpp2s", {}),
    ("dpmpp_2m", {}, "dpmpp2m", {}),
    ("dpmpp_2m_sde", {"eta": 1.0}, "sde-dpmpp2m", {}),
    ("dpmpp_2m_sde", {"eta": 0.5, "solver_type": "heun"}, "sde-dpmpp2m", {"eta": 0.5, "variant": "taylor"}),
    ("dpmpp_3m_sde", {"eta": 1.0}, "sde-dpmpp3m-published", {}),
    ("dpmpp_3m_sde", {"eta": 0.5}, "sde-dpmpp3m-published", {"eta": 0.5}),
)


def denoiser(x, sigma):
    """x̂0 of two point masses ±m, each blurred by 0.5: the exact denoiser."""
    m = torch.sin(torch.arange(6, dtype=torch.float64) + 1).view(1, 1, 2, 3)
    sigma = sigma.view(-1, 1, 1, 1)
    variance = 0.25 + sigma**2
    tilt = torch.tanh((x * m).flatten(1).sum(1).view(-1, 1, 1, 1) / variance)
    return (0.25 * x + sigma**2 * m * tilt) / variance


def wave(k):
    """A tensor of SHAPE for every whole number, in the place of N(0, I)."""
    return torch.sin(2.0 + 3.1 * k + 1.7 * torch.arange(12, dtype=torch.float64)).view(SHAPE) * 2**0.5


def churned_start(grid, s_churn):
    """(x, grid) with the noise that k-diffusion's heun adds before its first step, where s_tmax is above the first σ."""
    first = grid[0] * (1 + min(s_churn / (len(grid) - 1), 2**0.5 - 1))
    return wave(0) * grid[0] + (first**2 - grid[0] ** 2).sqrt() * wave(1), torch.cat([first[None], grid[1:]])


def sigmas(name):
    """Karras' 8 values and 0; for dpm_fast, which makes its own, equal steps in log σ."""
    ramp = torch.linspace(0, 1, 5 if name == "dpm_fast" else 8, dtype=torch.float64)
    if name == "dpm_fast":
        return 14.6 * (0.03 / 14.6) ** ramp
    return torch.cat([(14.6 ** (1 / 7) + ramp * (0.03 ** (1 / 7) - 14.6 ** (1 / 7))) ** 7, ramp.new_zeros(1)])


def waves():
    """noise_sampler(sigma, sigma_next): wave 1, 2, ..."""
    k = iter(range(1, 1000))
    return lambda *_: wave(next(k))


def made(sampling, name, options):
    """By k-diffusion."""
    function, grid, kw = getattr(sampling, f"sample_{name}"), sigmas(name), {**options, "disable": True}
    names = function.__wrapped__.__code__.co_varnames
    if "noise_sampler" in names:
        kw["noise_sampler"] = waves()
    draw = waves()
    torch.randn_like, before = (lambda like: draw()), torch.randn_like  # which heun draws at every step
    try:
        x = wave(0) * grid[0]
        if name == "dpm_fast":
            return function(denoiser, x, float(grid[-1]), float(grid[0]), **kw)
        return function(denoiser, x, grid, **kw)
    finally:
        torch.randn_like = before


def main():
    """Write the file."""
    from benchmarks.peer_packages import k_diffusion

    sampling = k_diffusion()
    rows = [json.dumps(made(sampling, name, options).flatten().tolist()) for name, options, *_ in SAME]
    FILE.write_text(f'{{"k-diffusion": "0.1.1.post1", "x": [\n{f",{chr(10)}".join(rows)}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
