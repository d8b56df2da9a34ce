"""Pipelines from folders: loaded whole, named by a digest of all that was read, and never by running what lies there."""

import json
import pickle
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffode.errors import InputError
from diffode.pipelines import places
from tests import pipelines


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The tiny Stable Diffusion as save_pretrained writes it."""
    folder = tmp_path_factory.mktemp("saved") / "sd"
    pipelines.build("sd").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path, monkeypatch):
    """A copy of it, in a working directory whose Python files leave a trace when they are run."""
    place = tmp_path / "here" / "sd"
    shutil.copytree(saved, place)
    monkeypatch.chdir(place.parent)
    monkeypatch.syspath_prepend(place.parent)
    for where in (place.parent, place, place / "unet"):
        (where / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').write('x')\nclass Evil: pass\nsolver = model = 1\n")
    yield place
    assert not (tmp_path / "ran").exists()
    assert "evil" not in sys.modules


def edited(file, **changes):
    """The JSON file with these values; None takes one away."""
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


def index(**changes):
    return lambda place: edited(place / "model_index.json", **changes)


def config(part, **changes):
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    return lambda place: edited(place / part / name, **changes)


class Evil:
    def __reduce__(self):
        return open, ("ran", "w")


def pickled(place):
    (place / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (place / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Evil()))


def with_file(name, text):
    return lambda place: (place / name).write_text(text)


def cut(place):
    file = place / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def lacking(place):
    file = place / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file({name: tensors[name] for name in [*tensors][1:]}, file)


HOSTILE = {
    "a pipeline of the folder": (index(_class_name=["evil", "Evil"]), "no pipeline of diffusers"),
    "a pipeline of nobody": (index(_class_name="Evil"), "no pipeline of diffusers"),
    "a class that is no pipeline": (index(_class_name="UNet2DModel"), "no pipeline of diffusers"),
    "any pipeline": (index(_class_name="DiffusionPipeline"), "no pipeline of diffusers"),
    "no class": (index(_class_name=None), "no pipeline of diffusers"),
    "a part of the folder": (index(unet=["evil", "Evil"]), "code of others"),
    "a part of Python": (index(unet=["os", "system"]), "code of others"),
    "a part of a library that was imported": (index(unet=["torch", "Tensor"]), "code of others"),
    "a part that is chosen by its configuration": (index(text_encoder=["transformers", "AutoModel"]), "code of others"),
    "a pipeline as a part": (index(unet=["diffusers", "DiffusionPipeline"]), "code of others"),
    "a part by a path": (index(unet=["../evil", "Evil"]), r"\[library, class\]"),
    "a part that is no pair": (index(unet=["diffusers"]), r"\[library, class\]"),
    "a part elsewhere": (index(**{"../../sd/unet": ["diffusers", "UNet2DModel"]}), "no name"),
    "a part that the pipeline does not take": (index(network=["diffusers", "UNet2DModel"]), "network"),
    "a setting that it does not take": (index(custom_revision="main"), "does not take"),
    "pickled weights": (pickled, "unpickled"),
    "code for a network": (config("text_encoder", auto_map={"AutoModel": "evil.Evil"}), "auto_map"),
    "code deep in a configuration": (config("unet", inside=[{"auto_map": {"AutoModel": "evil.Evil"}}]), "auto_map"),
    "quantized weights": (config("unet", quantization_config={"quant_method": "evil"}), "quantization_config"),
    "a kernel of the hub": (config("text_encoder", _attn_implementation="evil/kernel"), "attn_implementation"),
    "a solver of the folder": (config("scheduler", solver="evil:solver"), "solver"),
    "a plan's file": (config("scheduler", solver="plan.json"), "solver"),
    "too wide": (config("unet", block_out_channels=[4, 80_000]), "bytes of weights"),
    "too many words": (config("text_encoder", vocab_size=2**30), "bytes of weights"),
    "too deep": (config("unet", layers_per_block=10**9), "at most 1,000"),
    "too many labels": (config("scheduler", num_train_timesteps=10**9), "at most 100,000"),
    "an adapter": (with_file("text_encoder/adapter_config.json", "{}"), "adapter"),
    "shards elsewhere": (
        with_file("unet/diffusion_pytorch_model.safetensors.index.json", '{"weight_map": {"a": "../../x.safetensors"}}'),
        "other folders",
    ),
    "JSON without end": (with_file("unet/config.json", "[" * 100_000), "nested too deeply"),
    "no JSON": (with_file("model_index.json", "\0"), "not JSON"),
    "a list": (with_file("model_index.json", "[]"), "no JSON object"),
    "no configuration": (lambda place: (place / "vae" / "config.json").unlink(), "config.json"),
    "no part": (lambda place: shutil.rmtree(place / "unet"), "no folder unet"),
    "weights that end early": (cut, "cannot be loaded"),
    "a weight too few": (lacking, "is lacking"),
    "another network's configuration": (config("unet", block_out_channels=[4, 6]), "pipeline"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_folders_are_refused(case, folder):
    damage, words = HOSTILE[case]
    damage(folder)
    with pytest.raises(InputError, match=words) as raised:
        places.load(str(folder))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["nowhere", "sd/unet", "", "notes.txt"])
def test_what_is_no_pipeline_is_refused(name, folder):
    with pytest.raises(InputError, match=r"no pipeline .*: expected a folder with model_index.json"):
        places.load(name)


@pytest.mark.parametrize("name", ["sd", "wan"])
def test_a_saved_pipeline_makes_what_it_made(name, tmp_path):
    """To float32's rounding, since kernels depend on where numbers lie in memory."""
    pipe = pipelines.build(name)
    pipe.save_pretrained(tmp_path / name)
    loaded, _ = places.load(str(tmp_path / name))
    made, again = (
        torch.tensor(each(**pipelines.call(name), generator=torch.Generator().manual_seed(0))[0]) for each in (pipe, loaded)
    )
    torch.testing.assert_close(again, made, rtol=0, atol=1e-5)
    assert not any(weight.requires_grad for weight in loaded.vae.parameters())


def test_weights_are_of_the_dtype_that_is_asked_for(folder):
    pipe, _ = places.load(str(folder), torch.float64)
    assert {weight.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder) for weight in part.parameters()} == {torch.float64}


def test_all_that_decides_is_in_the_digest(folder):
    """Weights, configurations and vocabularies; not what is left out, nor what is not read."""
    first = places.load(str(folder))[1]
    (folder / "README.md").write_text("mine")
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"no weights")
    assert places.load(str(folder))[1] == first
    edited(folder / "scheduler" / "scheduler_config.json", beta_end=0.013)
    second = places.load(str(folder))[1]
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor + 1e-3 for name, tensor in load_file(file).items()}, file)
    assert len({first, second, places.load(str(folder))[1]}) == 3


def test_the_hub_is_asked_for_data_alone(folder, monkeypatch):
    import huggingface_hub

    asked = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **how: asked.update(how, name=name) or str(folder))
    assert places.load("hub:owner/sd")[1] == places.load(str(folder))[1]
    assert asked["name"] == "owner/sd"
    assert all(pattern.endswith((".json", ".txt", ".model", ".safetensors")) for pattern in asked["allow_patterns"])
