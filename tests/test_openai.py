"""Files of OpenAI's U-Nets and of DiT and SiT by their formats: which model each is, and what is wrong with one."""

import json
import re
import shlex
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import cli
from diffode import EpsModel, InputError, schedules
from diffode.models import edm, guided, pretrained
from diffode.models.card import Card
from diffode.networks.adm import ADM, ADMConfig
from diffode.networks.adm_classifier import ADMClassifier
from diffode.networks.dit import DiT, DiTConfig
from solvers import sample
from tests.pipelines import seeded, vae
from tests.references import formula

# as wide as 32 groups allow, with the multipliers by which a published network is known, and attention where there are few pixels
ADM_64 = ADMConfig((3, 64, 64), 32, (32, 64, 96, 128), 1, (8,), classes=3, head_channels=64, qkv_first=True)
CIFAR = ADMConfig((3, 32, 32), 32, (32, 64, 64, 64), 1, (8,), head_channels=0, resample_blocks=False, clock_scale=0.25)
EDM_64 = replace(ADM_64, learned_variance=False, clock_scale=1000.0)
SMALL_DIT = DiTConfig((4, 8, 8), 4, 64, 1, 1, 5)


def made(kind, config, seed=0):
    """A network whose outputs are of size 1."""
    return formula.fill(kind(config))


@pytest.fixture
def file(tmp_path, monkeypatch):
    """file(network): a file with its weights."""
    monkeypatch.chdir(tmp_path)

    def write(network, change=dict):
        torch.save(change(network.state_dict()), "a.pt")
        return "a.pt"

    return write


def assert_calls(model, network, lam, t, channels, **labels):
    """The model's own prediction at λ is the network at t."""
    x = formula.waves((2, *model.shape), 1).float()
    labelled = model.labelled(labels["y"]) if labels else model
    theirs = network(x, torch.full((2,), t), **{name: torch.as_tensor(value) for name, value in labels.items()})
    torch.testing.assert_close(labelled(x, lam, model.predicts), theirs[:, :channels], rtol=1e-4, atol=1e-4)  # float32 of t


def test_guided_diffusion_is_known_by_its_shapes(file):
    network = made(ADM, ADM_64)
    loaded = pretrained.load(f"guided:{file(network)}")
    model = loaded.model
    assert model.network.config == ADM_64
    assert (model.predicts, model.classes, model.shape, model.learned_variance) == ("noise", 3, (3, 64, 64), True)
    assert dict(model.schedule.options)["steps"] == 1000
    assert Card.from_json(json.loads(json.dumps(loaded.card.to_json())), "a") == loaded.card
    assert_calls(model, network, model.schedule.lam(250.0), 250.0, 3, y=[0, 2])
    for unlabelled in (model, model.labelled([0]).guided(2.0)):
        with pytest.raises(InputError, match="give labels, and no guidance"):
            unlabelled(torch.zeros(1, 3, 64, 64), 0.0)
    with pytest.raises(InputError, match="no checkpoint at"):
        pretrained.load("guided:b.pt")


def test_improved_diffusion_sees_a_quarter_of_its_4000_labels(file):
    network = made(ADM, CIFAR)
    save_file(network.state_dict(), file(network) + ".safetensors")
    model = pretrained.load("guided:a.pt.safetensors").model
    assert (model.network.config, dict(model.schedule.options)["steps"], model.classes) == (CIFAR, 4000, 0)
    assert_calls(model, network, model.schedule.lam(1001.0), 1001.0, 3)
    plain = made(ADM, replace(CIFAR, clock_scale=1.0))
    assert_calls(model, plain, model.schedule.lam(1001.0), 250.25, 3)


def test_the_edm_models_of_consistency_models_have_two_dimensional_attention_and_a_clock_in_thousands(file):
    network = made(ADM, EDM_64)
    wide = file(network, lambda w: {k: v[..., None] if "qkv.weight" in k or "proj_out.weight" in k else v for k, v in w.items()})
    model = pretrained.load(f"openai-edm:{wide}").model
    assert (model.network.config, model.predicts, model.clock) == (EDM_64, "edm", "c_noise")
    x, lam = formula.waves((2, 3, 64, 64), 1).float(), -0.5
    sigma, y = torch.tensor(-lam).exp(), torch.tensor([0, 2])
    f = network(x / torch.hypot(sigma, torch.tensor(0.5)), (sigma.log() / 4).expand(2), y)  # which sees 1000 times that
    data = x / (4 * sigma**2 + 1) + f * sigma / 2 / (sigma**2 + 0.25).sqrt()  # Karras et al. (2022), Table 1, of σ_data = 1/2
    torch.testing.assert_close(model.labelled(y)(x, lam, "data"), data, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["dit", "sit"])
def test_dit_and_sit(file, name):
    network = made(DiT, SMALL_DIT)
    loaded = pretrained.load(f"{name}:{file(network, lambda weights: {'ema': weights, 'model': {}})}")
    model = loaded.model
    assert (model.network.config, model.shape, model.classes, model.null_label) == (SMALL_DIT, (4, 8, 8), 5, 5)
    assert Card.from_json(json.loads(json.dumps(loaded.card.to_json())), "a") == loaded.card
    t = 250.0 if name == "dit" else 0.25
    assert_calls(model, network, model.schedule.lam(t), t, 4, y=[0, 4])
    x = formula.waves((2, 4, 8, 8), 1).float()
    lam = model.schedule.lam(t)
    guided_by_2 = model.labelled([0, 4]).guided(2.0)(x, lam)
    branches = [model.labelled(y)(x, lam) for y in ([0, 4], [5, 5])]
    torch.testing.assert_close(guided_by_2, 2 * branches[0] - branches[1], rtol=0, atol=1e-4)


def test_sit_goes_from_noise_to_data(file):
    """With a velocity of x0 − ε for x0 = 0, that is −x/σ, Euler's method in t arrives at (1 − t) x/(1 − t_0)."""
    model = pretrained.load(f"sit:{file(made(DiT, SMALL_DIT))}").model
    exact = model.replace(network=lambda x, t, y: torch.cat([-x / (1 - t[:, None, None, None])] * 2, 1))
    x = torch.ones(1, 4, 8, 8, dtype=torch.float64)
    arrived = sample(exact.labelled([0]), solver="ddim", nfe=4, x=x).x
    first, last = (float(model.schedule.sigma(lam)) for lam in (model.schedule.lam_min, model.schedule.lam_max))
    torch.testing.assert_close(arrived, x * last / first, rtol=0, atol=1e-6)


def test_a_classifier_steers(file):
    config = replace(ADM_64, qkv_first=False)
    network, path = made(ADMClassifier, config), file(made(ADMClassifier, config))
    log_p = guided.read_classifier(path)
    assert {name: weight.shape for name, weight in log_p.state_dict().items()} == {
        name: weight.shape for name, weight in network.state_dict().items()
    }
    model = EpsModel(lambda x, t, y: x, schedules.squared_cosine()).labelled([0, 2])
    x, lam = formula.waves((2, 3, 64, 64), 1).float().requires_grad_(), model.schedule.lam(250.0)
    (gradient,) = torch.autograd.grad(network(x, torch.full((2,), 250.0), torch.tensor([0, 2])).sum(), x)
    x = x.detach()
    steered = model.steered(log_p, 3.0, y=torch.tensor([0, 2]))(x, lam)
    torch.testing.assert_close(steered, model(x, lam) - 3 * model.schedule.sigma(lam) * gradient, rtol=0, atol=1e-5)


def test_a_pickle_of_edm_with_adm_gives_this_network_and_labels_in_rows():
    arguments = {"img_resolution": 64, "in_channels": 3, "out_channels": 3, "label_dim": 1000, "dropout": 0.1}
    kind, config, _ = edm.NETWORKS["DhariwalUNet"](arguments, {}, "EDMPrecond")
    published = ADMConfig(classes=1000, learned_variance=False, qkv_first=True)
    assert (kind, config) == ("adm", asdict(published))
    for wrong in ({"model_channels": 64}, {"channel_mult_emb": 2}, {"out_channels": 5}, {"channel_mult": []}, {"other": 1}):
        with pytest.raises(InputError):
            edm.NETWORKS["DhariwalUNet"](arguments | wrong, {}, "EDMPrecond")
    with pytest.raises(InputError, match="VEPrecond"):
        edm.NETWORKS["DhariwalUNet"](arguments, {}, "VEPrecond")


def without(name):
    return lambda weights: {key: weight for key, weight in weights.items() if key != name}


def with_(name, *shape):
    return lambda weights: {**weights, name: torch.zeros(shape)}


ADM_, DIT_ = (ADM, ADM_64), (DiT, SMALL_DIT)
REFUSED = [
    ("guided", *ADM_, without("time_embed.0.weight"), "time_embed.0.weight"),
    ("guided", *ADM_, without("input_blocks.3.0.in_layers.2.weight"), "input_blocks.3.0.in_layers.2.weight"),
    ("guided", *ADM_, without("middle_block.1.norm.bias"), "middle_block.1.norm.bias is absent in the file"),
    ("guided", *ADM_, with_("more", 1), r"more is \(1,\) in the file and absent"),
    ("guided", *ADM_, with_("input_blocks.0.0.weight", 32, 6, 3, 3), "6 channels: networks that enlarge images"),
    ("guided", *ADM_, with_("input_blocks.5.0.in_layers.2.weight", 32, 96, 3, 3), "no published U-Net has channels"),
    ("guided", ADM, EDM_64, dict, "openai-edm:a.pt"),
    ("openai-edm", *ADM_, dict, "guided:a.pt"),
    ("guided", *DIT_, dict, "time_embed"),
    ("dit", *ADM_, dict, "x_embedder"),
    ("dit", *DIT_, with_("x_embedder.proj.weight", 65, 4, 4, 4), "heads of 64"),
    ("dit", *DIT_, with_("final_layer.linear.weight", 48, 64), "3 channels for 4"),
    ("sit", *DIT_, with_("pos_embed", 1, 5, 64), r"pos_embed is \(1, 5, 64\)"),
    ("sit", *DIT_, with_("pos_embed", 5), "its pos_embed has the shape"),
    ("dit", *DIT_, with_("x_embedder.proj.weight", 0, 0, 0, 0), "a.pt"),
]


@pytest.mark.parametrize(("name", "kind", "config", "change", "why"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_weights_of_another_network_are_refused_in_a_sentence(file, name, kind, config, change, why):
    with torch.device("meta"):
        shapes = kind(config).state_dict()
    weights = {key: torch.zeros(weight.shape) for key, weight in shapes.items()}
    torch.save(change(weights), "a.pt")
    with pytest.raises(InputError, match=why) as error:
        pretrained.load(f"{name}:a.pt")
    assert "\n" not in str(error.value)


DOCUMENT = Path(__file__).parents[1] / "docs" / "networks.md"
COMMANDS = re.findall(r"^python cli\.py (?:sample|compare) --model (?:guided|openai-edm|dit|sit):.*$", DOCUMENT.read_text(), re.M)
STAND_INS = {"64x64_diffusion.pt": ADM_64, "edm_imagenet64_ema.pt": EDM_64}  # of images of 64 × 64; and of latents any
BUDGETS = {"--seeds": "0-1", "--batch": "2", "--steps": "2", "--label": "2,4", "--nfe": "2"}  # smaller


def test_the_documented_classifier_guidance_runs(file):
    Path(file(made(ADM, ADM_64))).rename("64x64_diffusion.pt")
    Path(file(made(ADMClassifier, replace(ADM_64, qkv_first=False)))).rename("64x64_classifier.pt")
    code = re.search(r"```python\n([^`]*read_classifier.*?)```", DOCUMENT.read_text(), re.S)[1]
    scope = {}
    exec(code.replace("[207, 360]", "[0, 2]").replace("nfe=25", "nfe=1"), scope)
    assert scope["images"].shape == (2, 3, 64, 64)


def test_there_are_commands():
    assert len(COMMANDS) == 11


@pytest.mark.parametrize(
    "command", [line for line in COMMANDS if "256_" not in line and "bedroom" not in line and "sample" in line]
)
def test_documented_commands_sample_small_stand_ins(tmp_path, monkeypatch, command):
    """Of the networks that have one; budgets are smaller, and the autoencoder is a tiny one."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)[2:]
    name = words[2].partition(":")[2]
    config = STAND_INS.get(name, SMALL_DIT)
    torch.save(made(DiT if config is SMALL_DIT else ADM, config).state_dict(), name)
    for option, value in BUDGETS.items():
        if option in words:
            words[words.index(option) + 1] = value
    if "--decoder" in words:
        pytest.importorskip("diffusers")
        with seeded():
            vae().save_pretrained("vae")
        words[words.index("--decoder") + 1] = "vae"
    ended = CliRunner().invoke(cli.main, words if "--seeds" in words else [*words, "--n", "2"])
    assert ended.exit_code == 0, ended.output
    shape = (2, 16, 16, 3) if "--decoder" in words else (2, 4, 8, 8) if config is SMALL_DIT else (2, 64, 64, 3)
    with np.load("samples.npz") if "--out" in words else nullcontext() as written:
        assert written is None or written["arr_0"].shape == shape
