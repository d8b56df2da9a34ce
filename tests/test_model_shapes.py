"""The ten examples of docs/models.md, each run as it stands on a tiny network with random weights, against another computation of
the same samples: diffusers' own scheduler, or the paper's formula in plain torch, without anything of diffode."""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn

from diffode import EpsModel, sample

TEXT = (Path(__file__).parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"<!-- model: (\S+) -->\n```python\n(.*?)```", TEXT, re.S))
pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers


def shown(name, **scope):
    """What the example of that name has computed, with these names at hand."""
    scope = {"EpsModel": EpsModel, "sample": sample, "torch": torch, "math": math, **scope}
    exec(EXAMPLES[name], scope)
    return scope


def agree(x, expected):
    """To 1e-5, of the largest number where random weights let them grow: float32 has seven digits."""
    assert x.shape == expected.shape
    assert expected.std() > 0.1  # or everything would agree
    assert (x - expected).abs().max() < 1e-5 * max(1, float(expected.abs().max()))


def noise(n, *shape):
    """The standard noise of seeds 0 ... n − 1."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(n)])


def conditions(*shape, seed=9):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random(make):
    """A network with weights of seed 0, none of them zero, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make().eval().requires_grad_(False)
        for weight in network.parameters():
            if not weight.any():
                weight.normal_(0, 0.05)
    return network


@torch.no_grad()
def ddim(scheduler, x, predicted):
    """diffusers' loop, its ᾱ in float64: its own, 1 − ᾱ of float32, have four digits at the clean end."""
    scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), 0)
    scheduler.set_timesteps(10)
    x = x * (1 - scheduler.alphas_cumprod[scheduler.timesteps[0]]).sqrt()
    for t in scheduler.timesteps:
        x = scheduler.step(predicted(x.float(), t.expand(len(x))).double(), t, x.double()).prev_sample
    return x.float()


def test_there_are_ten_of_eight_lines():
    assert len(EXAMPLES) == len(re.findall(r"^## \d+\. ", TEXT, re.M)) == 10
    for code in EXAMPLES.values():
        assert len([line for line in code.splitlines() if line]) <= 8


def test_unet():
    diffusers = pytest.importorskip("diffusers")
    blocks = {"block_out_channels": (32, 32), "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = random(lambda: diffusers.UNet2DModel(sample_size=8, layers_per_block=1, **blocks))
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    agree(shown("unet", unet=unet, scheduler=scheduler)["x"], ddim(scheduler, noise(4, 3, 8, 8), lambda x, t: unet(x, t).sample))


def test_sdxl():
    diffusers = pytest.importorskip("diffusers")
    unet = random(
        lambda: diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 32),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            attention_head_dim=8,
            cross_attention_dim=12,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 16,
        )
    )
    text, no_text, size = conditions(2, 5, 12), conditions(2, 5, 12, seed=8), torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
    pooled, no_pooled = conditions(2, 16), conditions(2, 16, seed=8)
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, prediction_type="v_prediction"
    )

    def predicted(x, t):
        with_text = unet(x, t, text, added_cond_kwargs={"text_embeds": pooled, "time_ids": size}).sample
        without = unet(x, t, no_text, added_cond_kwargs={"text_embeds": no_pooled, "time_ids": size}).sample
        return without + 5.0 * (with_text - without)

    given = {"text": text, "no_text": no_text, "size": size, "pooled": pooled, "no_pooled": no_pooled}
    agree(shown("sdxl", unet=unet, scheduler=scheduler, **given)["x"], ddim(scheduler, noise(2, 4, 8, 8), predicted))


def test_dit():
    diffusers = pytest.importorskip("diffusers")
    dit = random(
        lambda: diffusers.DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            out_channels=8,
            num_layers=2,
            sample_size=8,
            num_embeds_ada_norm=10,
            norm_num_groups=4,
        )
    )
    scheduler = diffusers.DDIMScheduler(clip_sample=False)

    def predicted(x, t):
        with_labels = dit(x, t, class_labels=torch.tensor([3, 7])).sample[:, :4]
        without = dit(x, t, class_labels=torch.tensor([10, 10])).sample[:, :4]
        return without + 4.0 * (with_labels - without)

    agree(shown("dit", dit=dit, scheduler=scheduler)["x"], ddim(scheduler, noise(2, 4, 8, 8), predicted))


@torch.no_grad()
def test_flux():
    diffusers = pytest.importorskip("diffusers")
    flux = random(
        lambda: diffusers.FluxTransformer2DModel(
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=12,
            pooled_projection_dim=10,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        )
    )
    text, pooled = conditions(2, 5, 12), conditions(2, 10)
    img_ids = torch.stack([torch.zeros(16), torch.arange(16) // 4, torch.arange(16) % 4], 1)
    txt_ids = torch.zeros(5, 3)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 8, 8), mu=0.9)
    x = noise(2, 16, 4)
    for t in scheduler.timesteps:
        time, guidance = t.expand(2) / 1000, torch.full((2,), 3.5)
        x = scheduler.step(flux(x, text, pooled, time, img_ids, txt_ids, guidance).sample, t, x).prev_sample
    given = {"text": text, "pooled": pooled, "img_ids": img_ids, "txt_ids": txt_ids}
    agree(shown("flux", flux=flux, scheduler=scheduler, **given)["x"], x)


class Tiny(nn.Module):
    """Of (x, clock, one-hot labels or none), any shape of at least one channel."""

    def __init__(self, channels, out=None, classes=10):
        super().__init__()
        self.first, self.second = nn.Linear(channels, 16), nn.Linear(16, out or channels)
        self.clock, self.label = nn.Linear(1, 16), nn.Linear(classes, 16, bias=False)

    def forward(self, x, clock, class_labels=None):
        embedding = self.clock(clock[:, None].to(self.clock.weight.dtype))
        if class_labels is not None:
            embedding = embedding + self.label(class_labels)
        h = self.first(x.movedim(1, -1)) + embedding.view(len(x), *[1] * (x.ndim - 2), 16)
        return self.second(torch.sin(h)).movedim(-1, 1)


def karras_sigmas(n, low, high):
    """Eq. 5 of Karras et al. (2022), and 0."""
    ramp = torch.arange(n, dtype=torch.float64) / (n - 1)
    return [*((high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7).tolist(), 0.0]


def preconditioned(network, x, sigma, labels, sigma_data=0.5):
    """D(x; σ) of Karras et al. (2022), Eq. 7 and Table 1."""
    total = sigma**2 + sigma_data**2
    c_skip, c_out, c_in = sigma_data**2 / total, sigma * sigma_data / math.sqrt(total), 1 / math.sqrt(total)
    c_noise = torch.full((len(x),), math.log(sigma) / 4)
    return c_skip * x + c_out * network((c_in * x).float(), c_noise, labels).double()


@torch.no_grad()
def karras(denoiser, x):
    """Algorithm 1 of Karras et al. (2022), with σ(t) = t."""
    sigmas = karras_sigmas(10, 0.002, 80.0)
    x = x.double() * sigmas[0]
    for t, t_next in itertools.pairwise(sigmas):
        d = (x - denoiser(x, t)) / t
        following = x + (t_next - t) * d
        if t_next:
            d = (d + (following - denoiser(following, t_next)) / t_next) / 2
            following = x + (t_next - t) * d
        x = following
    return x.float()


def test_edm():
    network, labels = random(lambda: Tiny(3)), torch.eye(10)[[3, 7]]
    x = karras(lambda x, sigma: preconditioned(network, x, sigma, labels), noise(2, 3, 8, 8))
    agree(shown("edm", network=network)["x"], x)


@torch.no_grad()
def test_sit():
    """Euler's method in SiT's own time, from 0 to 1, the mean of its output alone, guided."""
    inner = random(lambda: Tiny(4, 8, classes=11))

    def sit(x, t, y):
        return inner(x, t, torch.eye(11)[y])

    x = noise(2, 4, 8, 8).double()
    for i in range(20):
        with_labels, without = (
            sit(x.float(), torch.full((2,), i / 20), torch.tensor(y)).double()[:, :4] for y in ([3, 7], [10, 10])
        )
        x = x + (without + 1.5 * (with_labels - without)) / 20
    agree(shown("sit", sit=sit)["x"], x.float())


@torch.no_grad()
def test_k_diffusion():
    """DPM-Solver++(2M), Alg. 2 of Lu et al. (2022b), on α = 1, its last step of first order to σ = 0."""
    network = random(lambda: Tiny(3))

    def denoiser(x, sigma):
        return torch.tanh(network(x / sigma.view(-1, 1, 1, 1), sigma.log()))

    sigmas = karras_sigmas(10, 0.03, 14.6)
    x, before = noise(4, 3, 8, 8).double() * sigmas[0], None
    for i, sigma in enumerate(sigmas[:-1]):
        denoised = denoiser(x.float(), torch.full((4,), sigma)).double()
        if sigmas[i + 1] == 0:
            x = denoised
            break
        h = math.log(sigma / sigmas[i + 1])
        d = denoised
        if before is not None:
            r = math.log(sigmas[i - 1] / sigma) / h
            d = (1 + 1 / (2 * r)) * denoised - before / (2 * r)
        x, before = sigmas[i + 1] / sigma * x - math.expm1(-h) * d, denoised
    agree(shown("k-diffusion", denoiser=denoiser)["x"], x.float())


@torch.no_grad()
def test_points():
    """Song et al. (2021b), Eq. 13: dx/dt = −½ β x + ½ β ε/σ, from t = 1 to 0.001, by SciPy's DOP853."""
    network = random(lambda: Tiny(2)).double()

    def mlp(x, t):
        return network(x, t)

    def bars(t):
        return math.exp(-(t**2) * 19.9 / 2 - t * 0.1)

    def drift(t, flat):
        x = torch.as_tensor(flat).view(16, 2)
        eps = mlp(x, torch.full((16,), t, dtype=torch.float64))
        return ((0.1 + t * 19.9) / 2 * (eps / math.sqrt(1 - bars(t)) - x)).flatten().numpy()

    x = noise(16, 2).double() * math.sqrt(1 - bars(1.0))
    solved = solve_ivp(drift, (1.0, 1e-3), x.flatten().numpy(), "DOP853", rtol=1e-7, atol=1e-7)
    agree(shown("points", mlp=mlp)["x"], torch.as_tensor(solved.y[:, -1]).view(16, 2))


@torch.no_grad()
def test_audio():
    """v-diffusion as its authors sample it: x̂0 = cos φ x − sin φ v, ε = sin φ x + cos φ v, φ = π/2 of the network's clock."""
    network = random(lambda: Tiny(2))
    angles = [math.atan(sigma) for sigma in torch.linspace(math.log(500), math.log(0.3), 12, dtype=torch.float64).exp().tolist()]
    x = noise(3, 2, 64).double() * math.sin(angles[0])
    for angle, following in zip(angles, [*angles[1:], 0.0], strict=True):
        v = network(x.float(), torch.full((3,), angle * 2 / math.pi)).double()
        x0, eps = math.cos(angle) * x - math.sin(angle) * v, math.sin(angle) * x + math.cos(angle) * v
        x = math.cos(following) * x0 + math.sin(following) * eps
    agree(shown("audio", network=network)["x"], x.float())


def test_interval():
    inner, labels = random(lambda: Tiny(3)), torch.eye(10)[[3, 7]]
    calls = 0

    def network(x, clock, y):
        nonlocal calls
        calls += 1
        return inner(x, clock, y)

    def denoiser(x, sigma):
        with_labels = preconditioned(network, x, sigma, labels)
        if not 0.28 < sigma <= 2.9:
            return with_labels
        without = preconditioned(network, x, sigma, torch.zeros(2, 10))
        return without + 2.5 * (with_labels - without)

    x = karras(denoiser, noise(2, 3, 8, 8))
    expected, calls = calls, 0
    result = shown("interval", network=network)["result"]
    agree(result.x, x)
    assert (result.nfe, result.calls, calls) == (19, expected, expected)
    assert 19 < expected < 38


def plain_ddim(scheduler, network, x):
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
    return x


@pytest.mark.parametrize("row", range(4), ids=["trailing", "stable diffusion", "flow", "k-diffusion"])
def test_the_grid_of_a_pipeline(row):
    """The keywords of the table in docs/models.md give the samples of the scheduler that stands beside them."""
    import diffusers

    from diffode import schedules, trained_as

    table = re.findall(r"^\| .* \| `(grid=[^`]*)` \|$", TEXT, re.M)
    assert len(table) == 4
    weights = random(lambda: nn.Conv2d(4, 4, 3, padding=1))
    z, solver, sigmas = noise(2, 4, 8, 8), "ddim", torch.linspace(14.6**0.2, 0.03**0.2, 11) ** 5
    sd = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    if row == 3:
        sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])
        model = EpsModel(lambda x, t: weights(x / (1 + t.view(-1, 1, 1, 1))), schedules.edm(0.03, 14.6), "data", clock="sigma")
        x = expected = z * sigmas[0]
        for s, t in itertools.pairwise(sigmas):  # Euler's method in σ
            expected = expected + (t - s) * (expected - weights(expected / (1 + s))) / s
        scope = {"sigmas": sigmas}
    else:
        scheduler = [
            diffusers.DDIMScheduler(
                **sd, timestep_spacing="trailing", rescale_betas_zero_snr=True, prediction_type="v_prediction"
            ),
            diffusers.DDIMScheduler(**sd, set_alpha_to_one=False, steps_offset=1),
            diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        ][row]
        scheduler.set_timesteps(10)
        model, x = EpsModel(lambda x, t: weights(x), **trained_as(scheduler)), z
        expected, scope = plain_ddim(scheduler, lambda x, t: weights(x), z), {"scheduler": scheduler}
    found = sample(model, x=x, solver=solver, **eval(f"dict({table[row]})", {**scope, "model": model})).x
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()  # ᾱ of diffusers is in float32
