"""Networks of others: published weights by a preset, folders of diffusers, the hub; what is wrong with a file is said of it."""

import functools
import hashlib
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import cli
from diffode import InputError, schedules
from diffode.models import presets, pretrained
from diffode.models.card import Card
from diffode.models.diffusers_models import WEIGHTS
from diffode.networks.ddpm_unet import DDPMUNet, DDPMUNetConfig
from solvers import Budget, find, sample

TINY = DDPMUNetConfig(resolution=8, ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), dropout=0.5)
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LAMS = [schedules.ddpm_linear().lam_min, -1.234, 0.5, schedules.ddpm_linear().lam_max]


@pytest.fixture(autouse=True)
def tiny(tmp_path, monkeypatch):
    """Every test works in an empty folder, and knows a preset that is quick."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(presets.PRESETS, "tiny", presets.Preset(TINY))
    return tmp_path


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DDPMUNet(TINY).eval().requires_grad_(False)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def same(model, network, lams=LAMS):
    """The model is the network called with t(λ), between labels, too."""
    for lam in lams:
        t = torch.full((2,), float(model.schedule.t(lam)))
        torch.testing.assert_close(model(X, lam), network(X, t), rtol=0, atol=0)


def assert_reads_back(card):
    """A card is the same after JSON."""
    assert Card.from_json(json.loads(json.dumps(card.to_json())), "a.json") == card


@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_weights_by_a_preset(tiny, network, prefix):
    save_file({prefix + name: weight for name, weight in network.state_dict().items()}, "ema.safetensors")
    loaded = pretrained.load("tiny:ema.safetensors")
    same(loaded.model, network)
    assert (loaded.image, loaded.classes) == ((3, 8, 8), ())
    assert loaded.sha256 == digest(tiny / "ema.safetensors")
    assert (loaded.card.provenance["preset"], loaded.card.predicts, loaded.card.clock) == ("tiny", "noise", "t")
    assert_reads_back(loaded.card)
    assert not loaded.model.network.training  # dropout


def test_published_weights_in_half_precision_and_in_float64(network):
    save_file({name: weight.half() for name, weight in network.state_dict().items()}, "ema.safetensors")
    double = pretrained.load("tiny:ema.safetensors", torch.float64).model(X.double(), 0.3)
    assert double.dtype == torch.float64
    single = pretrained.load("tiny:ema.safetensors").model(X, 0.3)
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-4)


def test_a_preset_is_sampled_like_any_model(network):
    save_file(network.state_dict(), "ema.safetensors")
    model = pretrained.load("tiny:ema.safetensors").model
    result = sample(model, solver="dpmpp2m", nfe=4, shape=(2, 3, 8, 8), seed=0)
    assert result.nfe == 4
    assert torch.isfinite(result.x).all()
    with pytest.raises(InputError, match="labels"):
        sample(model.guided(2.0), solver="ddim", nfe=2, shape=(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        (lambda w: {**w, "conv_in.weight": torch.zeros(64, 3, 3, 3)}, "conv_in.weight", r"\(64, 3, 3, 3\).*\(32, 3, 3, 3\)"),
        (lambda w: {k: v for k, v in w.items() if k != "mid.attn_1.q.bias"}, "mid.attn_1.q.bias", r"absent.*\(64,\)"),
        (lambda w: {**w, "logvar": torch.zeros(5)}, "logvar", r"\(5,\).*absent"),
        (lambda w: {f"model.{k}": v for k, v in w.items()}, "temb.dense.0.weight", "absent"),
        (lambda w: {}, "temb.dense.0.weight", "absent"),
    ],
    ids=["shape", "missing", "more", "prefix", "none"],
)
def test_the_first_weight_that_does_not_fit_is_named(network, change, key, words):
    save_file(change(network.state_dict()), "ema.safetensors")
    with pytest.raises(InputError, match=f"ema.safetensors is not the network of the preset tiny: {key} is .*{words}.*cifar10"):
        pretrained.load("tiny:ema.safetensors")


def test_weights_of_whole_numbers(network):
    save_file({name: weight.int() for name, weight in network.state_dict().items()}, "ema.safetensors")
    with pytest.raises(InputError, match=r"ema\.safetensors"):
        pretrained.load("tiny:ema.safetensors")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", bytes(range(256)) * 40])
def test_a_file_that_is_no_safetensors(tiny, content):
    (tiny / "ema.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"ema\.safetensors is not a safe.*corrupt.*no other format"):
        pretrained.load("tiny:ema.safetensors")


@pytest.mark.parametrize("layout", ["state dict", "training"])
@pytest.mark.parametrize("new", [True, False])
def test_weights_in_files_of_torch(network, new, layout):
    """Alone, and in the list that the ddim repository's training saves; in PyTorch's format, and in that before 1.6."""
    weights = network.state_dict()
    other = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    held = weights if layout == "state dict" else [other, {"state": {}}, 3, 500, weights]
    torch.save(held, "the model.ckpt", _use_new_zipfile_serialization=new)
    same(pretrained.load("tiny:the model.ckpt").model, network)
    with pytest.raises(InputError, match="cifar10:FILE"):
        pretrained.load("the model.ckpt")


def test_the_presets_are_documented():
    document = (Path(cli.__file__).parent / "docs" / "networks.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in document for name in presets.PRESETS if name != "tiny")


def test_a_file_without_a_card_is_told_of_presets(network):
    save_file(network.state_dict(), "ema.safetensors")
    with pytest.raises(InputError, match="cifar10:FILE"):
        pretrained.load("ema.safetensors")


@pytest.mark.parametrize("name", ["nonesuch:ema.safetensors", "cifar10", "cifar10:", "hub:", "nonesuch", "."])
def test_unknown_names_list_what_is_known(name):
    with pytest.raises(InputError, match=r"fashion, mixture.*cifar10, celeba, bedroom, church.*hub:NAME"):
        pretrained.load(name)


def test_a_preset_without_its_file():
    with pytest.raises(InputError, match=r"no checkpoint at ema\.safetensors"):
        pretrained.load("cifar10:ema.safetensors")


def test_only_models_are_listed(tiny, monkeypatch):
    for name, kind in {"net": "unet", "judge": "classifier"}.items():
        (tiny / f"{name}.safetensors").touch()
        (tiny / f"{name}.json").write_text(json.dumps({"kind": kind}))
    monkeypatch.setattr(pretrained, "WEIGHTS", tiny)
    assert pretrained.names() == ["net"]


# ---- folders of diffusers

SCHEDULER = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}


@pytest.fixture(scope="module")
def theirs():
    """theirs(**changed): a small UNet2DModel with random weights."""
    diffusers = pytest.importorskip("diffusers")

    def make(**changed):
        blocks = {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}
        config = {"sample_size": 8, "block_out_channels": [32, 64], "layers_per_block": 1, "dropout": 0.5, **blocks}
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return diffusers.UNet2DModel(**{**config, **changed}).eval().requires_grad_(False)

    return make


@pytest.fixture
def folder(tiny, theirs):
    """folder(scheduler, **changed): a folder of such a network as google/ddpm-cifar10-32 has it, and the network."""

    def make(scheduler=SCHEDULER, where="net", **changed):
        network = theirs(**changed)
        network.save_pretrained(tiny / where)
        if scheduler is not None:
            place = tiny / "net" / ("scheduler" if where == "net/unet" else "")
            place.mkdir(exist_ok=True)
            (place / "scheduler_config.json").write_text(json.dumps(scheduler))
        return tiny / "net", network

    return make


@pytest.mark.parametrize("where", ["net", "net/unet"])
@pytest.mark.parametrize(
    "scheduler",
    [
        SCHEDULER,
        None,
        {
            "_class_name": "GaussianDDPMScheduler",
            "beta_start": 1e-4,
            "beta_end": 0.02,
            "beta_schedule": "linear",
            "timesteps": 1000,
        },
    ],
    ids=["new", "none", "old"],
)
def test_a_folder_of_diffusers(tiny, folder, where, scheduler):
    path, network = folder(scheduler, where)
    loaded = pretrained.load(path)
    same(loaded.model, lambda x, t: network(x, t).sample)
    assert (loaded.image, loaded.classes) == ((3, 8, 8), ())
    assert loaded.sha256 == digest(tiny / where / WEIGHTS)
    assert loaded.card.schedule == "ddpm_linear"
    assert loaded.card.schedule_options == {"beta_first": 1e-4, "beta_last": 0.02, "steps": 1000}
    assert_reads_back(loaded.card)
    result = sample(loaded.model, solver="ddim", nfe=3, shape=(2, 3, 8, 8), seed=0)
    again = sample(
        pretrained.load(path, torch.float64).model, solver="ddim", nfe=3, shape=(2, 3, 8, 8), seed=0, dtype=torch.float64
    )
    torch.testing.assert_close(result.x.double(), again.x, rtol=0, atol=1e-3)


def test_a_folder_of_diffusers_in_the_place_of_a_preset(folder):
    path, network = folder()
    same(pretrained.load(f"tiny:{path}").model, lambda x, t: network(x, t).sample)
    with pytest.raises(InputError, match=r"\(3, 8, 8\), where the preset has \(3, 32, 32\)"):
        pretrained.load(f"cifar10:{path}")


@pytest.mark.parametrize("name", ["scaled_linear", "squaredcos_cap_v2"])
def test_the_schedule_is_that_of_the_scheduler(folder, name):
    """At the labels, α and σ are those that diffusers adds noise with."""
    from diffusers import DDPMScheduler

    path, _ = folder({**SCHEDULER, "beta_schedule": name, "num_train_timesteps": 50})
    schedule = pretrained.load(path).model.schedule
    alphas = DDPMScheduler(50, 1e-4, 0.02, name).alphas_cumprod
    lam = schedule.lam(np.arange(50))
    np.testing.assert_allclose(schedule.alpha(lam) ** 2, alphas, rtol=1e-4, atol=1e-7)
    assert (
        np.abs(
            schedule.alpha(lam) ** 2
            - schedules.ddpm_linear(steps=50).alpha(schedules.ddpm_linear(steps=50).lam(np.arange(50))) ** 2
        ).max()
        > 0.05
    )


@pytest.mark.parametrize(("theirs_", "ours"), [("epsilon", "noise"), ("sample", "data"), ("v_prediction", "velocity")])
def test_what_is_predicted_is_said_by_the_scheduler(folder, theirs_, ours):
    """x̂0 is that of diffusers' own scheduler for the same output."""
    from diffusers import DDIMScheduler

    path, network = folder({**SCHEDULER, "prediction_type": theirs_})
    model = pretrained.load(path).model
    assert model.predicts == ours
    scheduler = DDIMScheduler(prediction_type=theirs_, clip_sample=False)
    scheduler.set_timesteps(1000)
    expected = scheduler.step(network(X, torch.tensor([300.0])).sample, 300, X).pred_original_sample
    torch.testing.assert_close(model(X, float(model.schedule.lam(300)), "data"), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("scheduler", "predicts", "clock", "ends"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, "flow", "1000t", (-np.inf, np.inf)),
        ({"_class_name": "EDMEulerScheduler"}, "edm", "c_noise", (-np.log(80), -np.log(0.002))),
    ],
    ids=["flow", "edm"],
)
def test_a_folder_whose_scheduler_has_no_table(folder, scheduler, predicts, clock, ends):
    """Called as the scheduler would call it: with 1000 σ, or with c_in x and log(σ)/4."""
    path, network = folder(scheduler)
    loaded = pretrained.load(path)
    assert (loaded.model.predicts, loaded.model.clock) == (predicts, clock)
    assert (loaded.model.schedule.lam_min, loaded.model.schedule.lam_max) == pytest.approx(ends)
    assert_reads_back(loaded.card)
    sigma = 0.25
    lam, scale, t = (np.log(3), 1, 250) if predicts == "flow" else (-np.log(sigma), 1 / np.hypot(sigma, 0.5), np.log(sigma) / 4)
    expected = network(X * scale, torch.tensor([float(t)])).sample
    torch.testing.assert_close(loaded.model(X, float(lam), predicts), expected, rtol=0, atol=1e-5)


def test_the_names_of_attention_of_older_diffusers(folder):
    path, network = folder()
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {
        functools.reduce(lambda k, old: k.replace(old, older[old]), older, key): w for key, w in load_file(path / WEIGHTS).items()
    }
    assert renamed.keys() != network.state_dict().keys()
    save_file(renamed, path / WEIGHTS)
    same(pretrained.load(path).model, lambda x, t: network(x, t).sample)


def test_of_a_network_that_learns_variances_the_mean_alone_is_taken(folder):
    path, network = folder(out_channels=6)
    same(pretrained.load(path).model, lambda x, t: network(x, t).sample[:, :3])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_class_embeds": 10}, "labelled"),
        ({"out_channels": 4}, "4 channels for 3"),
        ({"sample_size": None}, "sample_size"),
        ({"time_embedding_type": "fourier"}, "fourier"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)
def test_networks_that_cannot_be_used(folder, change, words):
    path, _ = folder(**change)
    with pytest.raises(InputError, match=f"net .*{words}"):
        pretrained.load(path)


@pytest.mark.parametrize(
    "change",
    [
        *({"layers_per_block": 10**7}, {"sample_size": 10**6}, {"sample_size": "8"}, {"block_out_channels": [2**15, 2**15]}),
        *(
            {"block_out_channels": [2**60, 1]},
            {"down_block_types": ["os.system"] * 99},
            {"in_channels": 10**9, "out_channels": 10**9},
        ),
        *(
            {"quantization_config": {"quant_method": "evil"}},
            {"down_block_types": ["evil:Block", "evil:Block"]},
            {"act_fn": "evil"},
        ),
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_configuration_is_data_within_bounds(folder, change):
    path, _ = folder()
    (path / "config.json").write_text(json.dumps(json.loads((path / "config.json").read_text()) | change))
    began = time.perf_counter()
    with pytest.raises(InputError, match="net") as error:
        pretrained.load(path)
    assert time.perf_counter() - began < 5
    assert len(str(error.value)) < 400


def test_weights_that_an_index_names_are_not_opened(folder):
    path, _ = folder()
    (path / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"conv_in.weight": "../evil"}}))
    with pytest.raises(InputError, match="several files"):
        pretrained.load(path)


def test_a_folder_of_zero_terminal_snr_is_sampled_as_diffusers_does(folder):
    """DDIM at the labels 999, 799, ... and then σ = 0, with a velocity network: theirs in float32, whence 1e-3."""
    from diffusers import DDIMScheduler

    config = {**SCHEDULER, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    path, network = folder(config)
    model = pretrained.load(path).model
    assert model.schedule.lam_min == -np.inf
    theirs = DDIMScheduler.from_config(config | {"timestep_spacing": "trailing", "clip_sample": False, "set_alpha_to_one": True})
    theirs.set_timesteps(5)
    x = X
    for t in theirs.timesteps:
        x = theirs.step(network(x, t.float()[None]).sample, t, x).prev_sample
    lams = [*model.schedule.lam([999, 799, 599, 399, 199]), np.inf]
    ours = find("ddim").prepare(Budget(grid=lams), model.schedule).solve(model, X)
    torch.testing.assert_close(ours.x, x, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "scheduler", [{"prediction_type": "flow_prediction"}, {"sigma_max": 80.0}, {**SCHEDULER, "beta_end": 2.0}, [1]]
)
def test_schedulers_that_cannot_be_used(folder, scheduler):
    path, _ = folder(scheduler)
    with pytest.raises(InputError, match="net"):
        pretrained.load(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: {**w, "conv_in.weight": torch.zeros(5, 3, 3, 3)}, "conv_in.weight"),
        (lambda w: {k: v for k, v in w.items() if k != "conv_in.weight"}, "conv_in.weight"),
        (lambda w: {**w, "more": torch.zeros(1)}, "more"),
    ],
    ids=["shape", "missing", "more"],
)
def test_a_folder_whose_weights_do_not_fit(folder, change, words):
    path, _ = folder()
    save_file(change(load_file(path / WEIGHTS)), path / WEIGHTS)
    with pytest.raises(InputError, match=f"net.*{words}"):
        pretrained.load(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" * 9, None])
def test_a_folder_without_weights_in_safetensors(folder, content):
    path, network = folder()
    if content is None:
        (path / WEIGHTS).unlink()
        torch.save(network.state_dict(), path / "diffusion_pytorch_model.bin")
    else:
        (path / WEIGHTS).write_bytes(content)
    with pytest.raises(
        InputError, match="net " + ("has no diffusion_pytorch_model.safetensors.*unpickles" if content is None else "")
    ):
        pretrained.load(path)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"_class_name": "UNet2DConditionModel"}', '{"_class_name": "UNet2DModel"}']
)
def test_a_folder_whose_configuration_says_nothing_of_use(folder, content):
    path, _ = folder()
    (path / "config.json").write_text(content)
    with pytest.raises(InputError, match="net"):
        pretrained.load(path)


def test_without_diffusers(folder, monkeypatch):
    path, _ = folder()
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(InputError, match=r"^networks of diffusers take diffusers.*pip install 'diffode\[hub\]'$"):
        pretrained.load(path)


def test_the_hub_is_asked_for_json_and_safetensors_alone(folder, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    path, network = folder()
    asked = {}

    def download(name, **how):
        asked.update(how, name=name)
        return str(path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = pretrained.load("hub:google/ddpm-cifar10-32")
    same(loaded.model, lambda x, t: network(x, t).sample)
    assert asked["name"] == "google/ddpm-cifar10-32"
    assert all(pattern.endswith((".json", ".safetensors")) for pattern in asked["allow_patterns"])


def test_the_hub_without_a_connection(tiny, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    nowhere = functools.partial(huggingface_hub.snapshot_download, endpoint="http://127.0.0.1:9", cache_dir=tiny)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", nowhere)
    for name in ("google/ddpm-cifar10-32", "no name"):
        with pytest.raises(InputError, match=f"hub:{name} cannot be fetched"):
            pretrained.load(f"hub:{name}")


# ---- a network of one's own

MINE = """
from pathlib import Path
import torch
from diffode import EpsModel, schedules
from diffode.schedules import ddpm_table

class Network(torch.nn.Conv2d):
    def __init__(self):
        super().__init__(3, 3, 3, padding=1)
        self.register_buffer("scale", torch.tensor(0.5, dtype=torch.bfloat16))
        self.register_buffer("none", torch.zeros(0, dtype=torch.int64))
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x, t, y=None):
        return self.scale * self.drop(super().forward(x)) + x * (t / 1000 + (0 if y is None else y)).view(-1, 1, 1, 1).to(x)

torch.manual_seed(int(Path("seed").read_text()) if Path("seed").exists() else 0)
network = Network()
how = eval(Path("how").read_text()) if Path("how").exists() else {}
model = EpsModel(network, **{"schedule": schedules.ddpm_linear(), "shape": (3, 8, 8), **how})
function = EpsModel(lambda x, t: network(x, t), schedules.ddpm_linear(), shape=(3, 8, 8))
"""


@pytest.fixture
def mine(tiny, monkeypatch):
    """mine(code): mine.py here, as no process has imported it yet."""

    def write(code=MINE):
        monkeypatch.setitem(sys.modules, "mine", None)
        del sys.modules["mine"]
        (tiny / "mine.py").write_text(code, encoding="utf-8")

    write()
    return write


def test_a_network_of_ones_own(mine):
    loaded = pretrained.load("mine:model")
    same(loaded.model, sys.modules["mine"].network.eval())
    assert (loaded.image, loaded.model.shape, loaded.classes) == ((3, 8, 8), (3, 8, 8), ())
    assert (loaded.card.kind, loaded.card.predicts, loaded.card.clock) == ("module", "noise", "t")
    assert_reads_back(loaded.card)


def test_a_network_of_ones_own_is_not_changed_nor_shared(mine):
    single, double = pretrained.load("mine:model"), pretrained.load("mine:model", torch.float64)
    theirs = sys.modules["mine"].network
    torch.testing.assert_close(single.model(X, 0.3).double(), double.model(X.double(), 0.3), rtol=0, atol=1e-5)
    networks = theirs, single.model.network, double.model.network
    assert [network.weight.dtype for network in networks] == [torch.float32, torch.float32, torch.float64]
    assert [network.training for network in networks] == [True, False, False]  # dropout
    assert [network.weight.requires_grad for network in networks] == [True, False, False]
    with torch.no_grad():
        networks[1].weight.zero_()
    assert all(bool(network.weight.any()) for network in (theirs, double.model.network))
    assert pretrained.load("mine:model").sha256 == single.sha256 == double.sha256


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_function_is_called_with_states_as_they_are(mine, dtype):
    seen = "seen = []\ndef network(x, t):\n    seen.append((x.dtype, t.dtype))\n    return x\n"
    mine(MINE.replace("network = Network()", seen))
    loaded = pretrained.load("mine:model", dtype)
    assert loaded.model.network is sys.modules["mine"].network
    loaded.model(X.to(dtype), 0.3)
    assert sys.modules["mine"].seen == [(dtype, dtype)] * 2


def test_labels_of_ones_own(mine, tiny):
    (tiny / "how").write_text("dict(classes=3)")
    loaded = pretrained.load("mine:model")
    assert loaded.classes == ("0", "1", "2")
    model, network = loaded.model.labelled([2, 1]), sys.modules["mine"].network.eval()
    t = torch.full((2,), float(model.schedule.t(0.3)))
    torch.testing.assert_close(model(X, 0.3), network(X, t, y=torch.tensor([2, 1])), rtol=0, atol=0)


@pytest.mark.parametrize(
    "schedule",
    [
        "schedules.flow(1e-12, 1.0)",
        "schedules.flow(0.0, 1.0, shift=3.0, reverse=True)",
        "schedules.edm()",
        "ddpm_table([0.1, 0.2, 0.3])",
        "schedules.vp_linear()",
    ],
)
@pytest.mark.parametrize("predicts", ["noise", "data", "tangent"])
def test_any_schedule_to_its_ends(mine, tiny, schedule, predicts):
    (tiny / "how").write_text(f"dict(schedule={schedule}, predicts={predicts!r})")
    assert pretrained.load("mine:model").model.schedule.lam_max > 0


CHANGES = {
    "weights": lambda folder: (folder / "seed").write_text("1"),
    "text": lambda folder: (folder / "mine.py").write_text(MINE + "#"),
    **{
        how: lambda folder, how=how: (folder / "how").write_text(f"dict({how})")
        for how in (
            "predicts='data'",
            "clock='lam'",
            "classes=2",
            "classes=2, null_label=1",
            "clock='1000t'",
            "shape=(3, 8, 9)",
            "schedule=schedules.cosine()",
            "schedule=schedules.ddpm_linear(steps=999)",
            "schedule=ddpm_table([0.1, 0.2, 0.4])",
            "schedule=ddpm_table([0.1, 0.4, 0.2])",  # of the same ends
        )
    },
}


def test_another_network_of_ones_own_is_known_by_its_digest(mine, tiny):
    found = {}
    for what, change in {"none": lambda folder: None, **CHANGES, "none again": lambda folder: None}.items():
        mine()
        for file in ("how", "seed"):
            (tiny / file).unlink(missing_ok=True)
        change(tiny)
        found[what] = pretrained.load("mine:model").sha256
    assert found.pop("none again") == found["none"]
    assert len(set(found.values())) == len(found)


def test_a_function_is_known_by_the_networks_that_it_calls(mine, tiny):
    first = pretrained.load("mine:function").sha256
    for seed in (0, 1):
        mine()
        (tiny / "seed").write_text(str(seed))
        assert (pretrained.load("mine:function").sha256 == first) == (seed == 0)


def test_a_network_that_begins_at_random_is_another_each_time(mine):
    code = MINE.replace("torch.manual_seed(", "torch.seed() or (")
    found = set()
    for _ in range(2):
        with torch.random.fork_rng():
            mine(code)
            found.add(pretrained.load("mine:model").sha256)
    assert len(found) == 2


LABELS = """
class Labelled(Network):
    def forward(self, x, t, class_labels):
        return super().forward(x, t, class_labels)

torch.manual_seed(0)
model = EpsModel(Labelled(), schedules.flow(0.0, 1.0, shift=3.0, reverse=True), "reverse-flow", shape=(3, 8, 8), classes=3, %s)
"""


def test_labels_under_another_name_are_sampled_with_guidance_from_the_command_line(mine, tiny):
    """With a label that means none; without one, guidance is refused before anything is sampled."""
    import cli

    mine(MINE + LABELS % "label='class_labels', null_label=3")
    args = ["sample", "--model", "mine:model", "--guidance", "2", "--n", "2", "--steps", "3", "--out", str(tiny / "x.npz")]
    done = CliRunner().invoke(cli.main, args)
    assert done.exit_code == 0, done.output
    model = pretrained.load("mine:model").model.labelled([0, 1]).guided(2.0)
    exact = sample(model, steps=3, n=2, seed=0).x
    with np.load(tiny / "x.npz") as written:
        assert abs(written["arr_0"] / 127.5 - 1 - exact.clamp(-1, 1).permute(0, 2, 3, 1).numpy()).max() < 0.51 / 127.5
    mine(MINE + LABELS % "label='class_labels'")
    refused = CliRunner().invoke(cli.main, [*args[:-1], str(tiny / "y.npz")])
    assert refused.exit_code != 0
    assert "guidance leaves out class_labels, without which the network cannot be called" in " ".join(refused.output.split())
    assert not (tiny / "y.npz").exists()


WRONG = {
    "no shape": ("model = model.replace(shape=None)", "mine:model does not say what it makes: give its EpsModel shape="),
    "a network": ("model = network", r"mine:model is a Network, not an EpsModel: write model = EpsModel\(.* shape="),
    "absent": ("del model", r"cannot import 'mine:model': .*mine\.py has no 'model'.*\(function\)"),
    "raises": ("torch.zeros(2) @ torch.zeros(3)", r"cannot import 'mine:model': line \d+ of mine\.py raises RuntimeError: "),
    "guided": ("model = model.guided(2.0)", r"fails as network\(x, t\) .*: guidance needs labels .* to leave out"),
    "watched": ("model = model.watched(print)", "has been labelled, watched or autocast"),
    "conditioned": ("model = model.conditioned(c=1)", r"fails as network\(x, t, c=\.\.\.\) .*: got an unexpected keyword"),
    "shape of another": (
        "model = model.replace(shape=(1, 8, 8))",
        r"fails as network\(x, t\) with x of shape \(1, 1, 8, 8\) in float32: RuntimeError: ",
    ),
    "flat": (
        "model = model.replace(network=lambda x, t: x.flatten(1))",
        r"fails as .*: the network returned \(1, 192\) for a state of",
    ),
    "arguments": ("model = model.replace(network=torch.nn.Identity())", r"fails as network\(x, t\) .*: too many positional"),
    "no network": ("model = model.replace(network=None)", "`network` must be a torch module or a function"),
    "labels": (
        "model = model.replace(classes=2, network=lambda x, t: x)",
        r"fails as network\(x, t, y=\.\.\.\) .*: got an unexpected keyword argument 'y'",
    ),
    "label": (
        "model = model.replace(classes=2, network=lambda x, t, class_labels: x)",
        r"fails as network\(x, t, y=\.\.\.\) .*'class_labels'.*EpsModel\(\.\.\., label=",
    ),
    "bug": ("model = model.replace(network=lambda x, t: 1 / 0)", "fails as .*: ZeroDivisionError: "),
    "graph": ("network.kept = network.weight * 2", "the network of mine:model cannot be copied: RuntimeError: Only Tensors"),
    "file": ("network.log = open('log', 'w')", "the network of mine:model cannot be copied: TypeError: "),
    "meta": ("network.to('meta')", "the network of mine:model cannot be copied: NotImplementedError: "),
    "lazy": ("network.more = torch.nn.LazyLinear(2)", "the network of mine:model cannot be copied: "),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_model_of_ones_own_that_cannot_be_used(mine, what):
    code, words = WRONG[what]
    mine(f"{MINE}{code}\n")
    with pytest.raises(InputError, match=words) as refused:
        pretrained.load("mine:model")
    assert "\n" not in str(refused.value)


def test_a_function_of_another_dtype_is_refused_in_float64(mine):
    assert pretrained.load("mine:function").model(X, 0.3).dtype == torch.float32
    with pytest.raises(
        InputError, match=r"mine:function fails as network.* with x of shape \(1, 3, 8, 8\) in float64: RuntimeError"
    ):
        pretrained.load("mine:function", torch.float64)


@pytest.mark.parametrize("name", ["mine.py", "mine.py:model", "nonesuch.py"])
def test_a_file_of_ones_own_is_told_how_it_is_typed(mine, name):
    with pytest.raises(InputError, match=f"type {name[:-3] if name[-3:] == '.py' else 'mine'}:model$"):
        pretrained.load(name)


def test_presets_and_the_hub_stay_what_they_are(mine, tiny, monkeypatch):
    for name in ("tiny", "hub"):
        (tiny / f"{name}.py").write_text("1 / 0")
    with pytest.raises(InputError, match="no checkpoint at model"):
        pretrained.load("tiny:model")
    monkeypatch.setattr(pretrained.diffusers_models, "fetch", lambda name: tiny / f"fetched {name}")
    monkeypatch.setattr(pretrained, "_diffusers", lambda path, dtype: path)
    assert pretrained.load("hub:model") == tiny / "fetched model"


# ---- the command line


def run(*args):
    return CliRunner().invoke(cli.main, ["sample", *map(str, args)])


def test_the_command_line_samples_them(tiny, folder, network):
    path, _ = folder()
    save_file(network.state_dict(), "ema.safetensors")
    for i, name in enumerate((path, "tiny:ema.safetensors")):
        result = run("--model", name, "--n", 2, "--nfe", 3, "--out", f"{i}.npz")
        assert result.exit_code == 0, result.output
        with np.load(f"{i}.npz") as written:
            assert written["arr_0"].shape == (2, 8, 8, 3)
            assert "arr_1" not in written
        card = json.loads((tiny / f"{i}.npz.json").read_text())
        assert (card["nfe"], card["model"], card["labels"]) == (3, str(name), None)
        assert card["sha256"] == pretrained.load(name).sha256
        assert run("--model", name, "--n", 2, "--nfe", 3, "--guidance", 2).exit_code == 2
    assert run("--model", path, "--n", 2, "--nfe", 3).exit_code == 0  # under the name that it is given by default


def test_the_command_line_samples_a_network_of_ones_own(mine, tiny):
    (tiny / "how").write_text("dict(classes=3)")
    args = "--model", "mine:model", "--n", 4, "--nfe", 3
    for dtype in ("float32", "float64", "bfloat16"):
        result = run(*args, "--dtype", dtype, "--guidance", 2, "--label", "2,0", "--out", f"{dtype}.npz")
        assert result.exit_code == 0, result.output
        card = json.loads((tiny / f"{dtype}.npz.json").read_text())
        assert (card["model"], card["labels"], card["sha256"]) == (
            "mine:model",
            [2, 0, 2, 0],
            pretrained.load("mine:model").sha256,
        )
        assert np.load(f"{dtype}.npz")["arr_0"].shape == (4, 8, 8, 3)
    assert run(*args).exit_code == 0  # under the name that it is given by default
    result = run(*args, "--label", "3")
    assert (result.exit_code, "label '3' is not known" in result.output) == (2, True)
