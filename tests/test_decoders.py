"""Autoencoders of diffusers as decoders: what diffusers itself decodes, in batches and as its pipelines scale latents."""

import json
from pathlib import Path

import pytest
import torch

from diffode import EpsModel, InputError, schedules
from diffode.models import decoders, pretrained
from diffode.models.diffusers_models import WEIGHTS
from solvers import sample
from tests.pipelines import PLAIN_UNET, SD, seeded, vae

diffusers = pytest.importorskip("diffusers")
Z = torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(0))  # more than are decoded at once


def quantized():
    """A tiny VQModel."""
    blocks = {"block_out_channels": (4, 4), "norm_num_groups": 2}
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return diffusers.VQModel(**blocks, **kinds, latent_channels=4, num_vq_embeddings=16, scaling_factor=0.5)


@pytest.fixture
def saved(tmp_path):
    """saved(network, **config): its folder, with these changes of its configuration."""

    def save(network, **config):
        network.save_pretrained(tmp_path / "net")
        file = tmp_path / "net" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
        return file.parent

    return save


@pytest.mark.parametrize(("make", "scale", "shift"), [(vae, 0.18215, 0.0), (vae, 2.0, 0.25), (quantized, 0.5, 0.0)])
def test_images_are_those_of_diffusers(saved, make, scale, shift):
    with seeded():
        network = make(scaling_factor=scale, shift_factor=shift) if make is vae else make()
    network.eval()
    decode = decoders.autoencoder(saved(network))
    with torch.no_grad():
        expected = network.decode(Z / scale + shift).sample
    images = decode(Z)
    assert images.shape == (6, 3, 8, 8)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)  # batches of other sizes round otherwise
    assert not images.requires_grad
    double = decoders.autoencoder(saved(network), torch.float64)(Z.double())
    torch.testing.assert_close(double.float(), expected, rtol=0, atol=1e-5)
    given = decoders.autoencoder(saved(network), scaling_factor=4, shift_factor=-1)
    with torch.no_grad():
        torch.testing.assert_close(given(Z[:1]), network.decode(Z[:1] / 4 - 1).sample, rtol=0, atol=1e-5)


def test_gradients_flow_to_latents(saved):
    with seeded():
        decode = decoders.autoencoder(saved(vae()))
    z = Z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(decode(z).sum(), z)
    assert gradient.abs().amin(dim=(1, 2, 3)).gt(0).all()


def test_it_moves_with_its_model_in_its_own_dtype(saved):
    with seeded():
        decode = decoders.autoencoder(saved(vae()))
    model = EpsModel(torch.nn.Linear(4, 4), schedules.ddpm_linear(), decode=decode).to("cpu", torch.bfloat16)
    assert model.network.weight.dtype == torch.bfloat16
    assert decode(Z.double()).dtype == torch.float64
    model.to("meta")
    weights = [*decode.parameters()]
    assert all((weight.is_meta, weight.dtype) == (True, torch.float32) for weight in weights)


@pytest.mark.parametrize("given", [{"scaling_factor": "x"}, {"scaling_factor": float("nan")}, {"shift_factor": []}])
def test_factors_that_are_no_numbers_are_refused(saved, given):
    with seeded():
        folder = saved(vae())
    with pytest.raises(InputError, match=next(iter(given))):
        decoders.autoencoder(folder, **given)


CHANGES = {
    "another network": ({"_class_name": "UNet2DModel"}, "'UNet2DModel', and AutoencoderKL or VQModel"),
    "no class": ({"_class_name": ["VQModel"]}, "VQModel.* is expected"),
    "channels": ({"block_out_channels": [4, 8]}, "does not hold|mismatch|size"),
    "large": ({"block_out_channels": [2**14, 2**14]}, "bytes of weights"),
    "huge": ({"block_out_channels": [2**40]}, "width"),
    "levels": ({"block_out_channels": [4] * 10**5}, "block_out_channels"),
    "blocks": ({"down_block_types": ["Unknown"] * 2}, "Unknown"),
    "scale": ({"scaling_factor": 0}, "scaling_factor is 0"),
    "a text": ({"scaling_factor": "1"}, "scaling_factor"),
    "by channel": ({"latents_mean": [0.0] * 4}, "channel by channel"),
    "other code": ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantized"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_configurations_of_another_kind_are_refused(saved, name):
    change, why = CHANGES[name]
    with seeded():
        folder = saved(vae(), **change)
    with pytest.raises(InputError, match=why) as error:
        decoders.autoencoder(folder)
    assert "\n" not in str(error.value)


def test_folders_without_safetensors_are_refused(saved, tmp_path):
    with seeded():
        folder = saved(vae())
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")
    for place, why in (
        (folder, "unpickles no .bin"),
        (tmp_path, "no autoencoder"),
        ("nowhere", "no autoencoder"),
        (None, "no autoencoder"),
    ):
        with pytest.raises(InputError, match=why):
            decoders.autoencoder(place)


def test_one_of_the_hub_is_fetched_without_the_rest_of_its_pipeline(saved, monkeypatch):
    with seeded():
        folder = saved(vae())
    asked = []
    monkeypatch.setattr(decoders.diffusers_models, "fetch", lambda name, files: asked.append((name, files)) or folder)
    decoders.autoencoder("hub:a/b")
    assert asked == [("a/b", decoders.FILES)]
    assert not any("unet" in Path(file).parts for file in decoders.FILES)


def test_a_folder_of_latent_diffusion_is_sampled_in_latents_and_decoded_as_its_pipeline_does(tmp_path):
    """LDMPipeline, of DDIM with four steps: the same images."""
    with seeded():
        unet = diffusers.UNet2DModel(**{**PLAIN_UNET, "sample_size": 4, "in_channels": 4, "out_channels": 4})
        pipe = diffusers.LDMPipeline(quantized(), unet, diffusers.DDIMScheduler(**SD, set_alpha_to_one=True))
    pipe.save_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(2, generator=[torch.Generator().manual_seed(seed) for seed in (0, 1)], num_inference_steps=4, output_type="np")
    model = pretrained.load(tmp_path).model
    grid = [float(model.schedule.lam(t)) for t in pipe.scheduler.timesteps.double()]
    noise = torch.cat([torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)])
    found = sample(model, x=noise, solver="ddim", grid=grid, denoise=True)  # whose n=2 would begin with σ(λ) times noise
    pixels = (model.decode(found.x) / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    torch.testing.assert_close(pixels, torch.as_tensor(images.images), rtol=0, atol=1e-5)  # a code that rounding changes is 0.1
