"""Checkpoints of score_sde_pytorch: its names, and the numbers of its own code (tests/references/make_score_sde.py)."""

import json
from pathlib import Path

import pytest
import torch

from diffode import InputError
from diffode.models import pretrained
from diffode.networks.edm_unet import EDMUNet, EDMUNetConfig
from tests.references import formula

WRITTEN = json.loads((Path(__file__).parent / "references" / "score_sde.json").read_text())


def checkpoint_of(row):
    """What its training writes, with the weights of the formula as averages."""
    averages = {name: weight.float() for name, weight in formula.weights(row["shapes"]).items()}
    sigmas = averages.pop("sigmas")
    if row["ve"]:
        ends = [row["card"]["schedule"]["options"][name] / 2 for name in ("sigma_max", "sigma_min")]
        sigmas = torch.logspace(*torch.tensor(ends).log10(), len(sigmas))
    trained = [name for name in row["shapes"] if name in averages and not (row["ve"] and name == "all_modules.0.W")]
    model = {name: torch.zeros(shape) for name, shape in row["shapes"].items()} | {"sigmas": sigmas}
    if row["ve"]:
        model["all_modules.0.W"] = averages["all_modules.0.W"]  # which is not trained
    ema = {"decay": 0.9999, "num_updates": 1, "shadow_params": [averages[name] for name in trained]}
    return {"optimizer": {}, "model": {f"module.{name}": weight for name, weight in model.items()}, "ema": ema, "step": 1}


def written(folder, row, change=lambda held: held):
    path = folder / "checkpoint_1.pth"
    torch.save(change(checkpoint_of(row)), path)
    return f"score-sde:{path}"


@pytest.mark.parametrize("name", WRITTEN["tiny"])
def test_a_checkpoint_is_the_network_that_it_was(name, tmp_path):
    """Its score is −ε/σ. VE networks see [0, 1], so σ in [−1, 1] is twice theirs; float64 to rounding, VP to float32's."""
    row = WRITTEN["tiny"][name]
    x = formula.waves((2, 3, 32, 32), 3)
    loaded = pretrained.load(written(tmp_path, row), torch.float64 if row["ve"] else torch.float32)
    assert loaded.card.to_json() == row["card"]
    schedule = loaded.model.schedule
    if row["ve"]:
        eps = loaded.model.at(x, schedule.lam([0.7, 3.0]))
        assert formula.sampled(-eps) == pytest.approx(row["output"], rel=0, abs=1e-10)
    else:
        eps = loaded.model.at(x.float(), schedule.lam([0.2, 0.7]))
        assert formula.sampled(eps) == pytest.approx(row["output"], rel=0, abs=1e-4)  # angles up to 699 in float32


@pytest.mark.parametrize("name", WRITTEN["published"])
def test_published_networks_are_found_by_their_shapes(name):
    """The configuration that was read off the network of the reference at its full size makes one of the same weights."""
    row = WRITTEN["published"][name]
    with torch.device("meta"):
        network = EDMUNet(EDMUNetConfig(**row["config"]))
    assert formula.digest(formula.shapes(network)) == row["digest"]
    assert sum(weight.numel() for weight in network.parameters()) == row["parameters"]
    sides = {"ve/ffhq_256_ncsnpp_continuous": 256, "ve/ffhq_ncsnpp_continuous": 1024}
    assert network.config.img_resolution == sides.get(name, 32)


def without(name):
    def change(held):
        held["model"].pop(f"module.{name}")
        held["ema"]["shadow_params"].pop()
        return held

    return change


def without_the_last_module(held):
    last = [*held["model"]][-2].rsplit(".", 1)[0]  # the last are its sigmas
    for name in [name for name in held["model"] if name.startswith(last + ".")]:
        held = without(name.removeprefix("module."))(held)
    return held


def small(shapes):
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    return {"model": tensors, "ema": {"shadow_params": [*tensors.values()]}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda held: held | {"ema": {"shadow_params": held["ema"]["shadow_params"][:-1]}}, "averages are not those"),
        (lambda held: held | {"ema": {"shadow_params": held["ema"]["shadow_params"][::-1]}}, "averages are not those"),
        (lambda held: {"model": held["model"]}, "no list `ema.shadow_params`"),
        (lambda held: held["model"], "no dict `model` of tensors"),
        (lambda held: [held], "no dict `model` of tensors"),
        (lambda held: held | {"model": dict(enumerate(held["model"].values()))}, "no dict `model` of tensors"),
        (lambda held: held | {"ema": held["ema"]["shadow_params"]}, "no list `ema.shadow_params`"),
        (lambda held: {"model": {}, "ema": {"shadow_params": []}}, "its network has no convolutions"),
        (lambda held: small({f"all_modules.{'9' * 5000}.weight": 1}), "its network has 'all_modules.9999"),
        (lambda held: small({"all_modules.0.x": 1}), "a module of its network has \\['x'\\], as none of ddpmpp"),
        (without("all_modules.0.bias"), "averages are not those"),
        (without("all_modules.4.GroupNorm_0.weight"), "averages are not those"),
        (without_the_last_module, "its modules are not in the order, or of the shapes, of ddpmpp"),
        (without("sigmas"), "checkpoint of score_sde"),
    ],
    ids=[
        "fewer",
        "order",
        "no-ema",
        "bare",
        "list",
        "numbers",
        "ema",
        "empty",
        "far",
        "kind",
        "linear",
        "norm",
        "last",
        "sigmas",
    ],
)
def test_other_checkpoints_are_refused(change, words, tmp_path):
    with pytest.raises(InputError, match=f"checkpoint_1.pth is not a .*{words}"):
        pretrained.load(written(tmp_path, WRITTEN["tiny"]["vp-ddpmpp"], change))
