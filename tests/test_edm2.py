"""EDM2's networks: the numbers, names and shapes of its own code (tests/references/make_edm2.py), and guidance by a worse one."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffode import InputError, schedules
from diffode.model import EpsModel
from diffode.models.card import Card
from diffode.models.edm2_latents import Whitened
from diffode.networks.edm2_unet import EDM2UNet, EDM2UNetConfig, normalised
from solvers import sample
from tests.references import formula

WRITTEN = json.loads((Path(__file__).parent / "references" / "edm2.json").read_text())
TINY = EDM2UNetConfig(8, 4, 5, model_channels=16, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,), channels_per_head=8)
PAPER = {"xs": 125, "s": 280, "m": 498, "l": 777, "xl": 1119, "xxl": 1523}  # Mparams of Table 2, whose last two are 1.1 and 1.5 G


def network_of(row):
    """Ours, with the weights of the formula."""
    network = formula.fill(EDM2UNet(EDM2UNetConfig(**row["read"]["card"]["config"])))
    network.load_state_dict(normalised(network.state_dict()))
    return network


@pytest.mark.parametrize("name", WRITTEN["tiny"])
def test_it_is_the_network_of_edm2_with_its_preconditioning(name):
    row = WRITTEN["tiny"][name]
    network, card = network_of(row), Card.from_json(row["read"]["card"], "edm2.json")
    assert formula.shapes(network) == row["shapes"]
    model = card.model(network)
    model = model.labelled([2, 0]) if model.classes else model
    found = model.at(formula.waves((2, 4, 8, 8), 3).float(), [-math.log(0.7), -math.log(3.0)], "data")
    assert formula.sampled(found) == pytest.approx(row["D"], rel=0, abs=1e-5)  # float32


def test_samples_of_autoguidance_are_those_of_edm2():
    """Heun on the grid of Karras in 32 steps, the last one to σ = 0, guided by a network without labels."""
    rows = [WRITTEN["tiny"][name] for name in ("conditional", "unconditional")]
    main, guide = (Card.from_json(row["read"]["card"], "edm2.json").model(network_of(row)) for row in rows)
    model = main.labelled([2, 0]).guided(1.7, network=guide)
    x = 80 * formula.waves((2, 4, 8, 8), 3).float()
    result = sample(model, x=x, solver="heun", grid="karras", steps=32, denoise=True)
    assert result.nfe == 63
    assert formula.sampled(result.x) == pytest.approx(WRITTEN["guided"], rel=0, abs=1e-5)  # float32 networks


def test_latents_are_decoded_to_the_pixels_of_edm2(tmp_path):
    """By an autoencoder that draws 0.5 + 0.1 z; its code cuts off fractions of 255ths where we round."""
    latents = WRITTEN["tiny"]["conditional"]["read"]["card"]["latents"]
    images = Whitened(lambda z: 0.5 + 0.1 * z[:, :3], **latents)(formula.waves((1, 4, 4, 4), 3).float())
    assert images.shape == (1, 3, 4, 4)
    pixels = (127.5 * (images.clamp(-1, 1) + 1)).flatten()
    expected = torch.tensor(WRITTEN["pixels"], dtype=torch.float32)
    assert expected.unique().numel() > 20
    assert ((pixels - expected - 0.5).abs() <= 0.501).all()


@pytest.mark.parametrize("name", WRITTEN["published"])
def test_published_networks_have_the_names_shapes_and_sizes_of_edm2(name):
    row = WRITTEN["published"][name]
    with torch.device("meta"):
        network = EDM2UNet(EDM2UNetConfig(**row["arguments"]))
    assert formula.digest(formula.shapes(network)) == row["digest"]
    count = sum(weight.numel() for weight in network.parameters())
    assert count == row["parameters"]
    assert round(count / 1e6) == pytest.approx(PAPER[name.split("-")[2]], abs=1)


def test_magnitudes_are_kept():
    """What the network is made for: of inputs of magnitude 1, F has a magnitude of about its gain, whatever the weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = EDM2UNet(replace(TINY, model_channels=64)).eval()
        weights = {name: 100 * weight for name, weight in network.state_dict().items() if name.endswith("weight")}
        network.load_state_dict({**network.state_dict(), **normalised(weights), "out_gain": torch.tensor(2.0)})
        x = torch.randn(8, 4, 8, 8)
    with torch.no_grad():
        assert network(x, torch.zeros(8)).square().mean().sqrt() == pytest.approx(2.0, rel=0.4)


def test_autoguidance_by_a_network_without_labels():
    """D = D_guide + w (D − D_guide), the sampler of EDM2, with a guide that takes no labels."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        main, guide = (EDM2UNet(replace(TINY, label_dim=labels)).eval() for labels in (5, 0))
        for network in (main, guide):
            torch.nn.init.ones_(network.out_gain)
        x = torch.randn(2, 4, 8, 8)
    model = EpsModel(main, schedules.edm(), "edm", clock="c_noise", classes=5, one_hot=True).labelled([3, 1])
    plain = EpsModel(guide, schedules.edm(), "edm", clock="c_noise")
    with torch.no_grad():
        expected = torch.lerp(plain(x, 0.5, "data"), model(x, 0.5, "data"), 1.7)
        for network in (guide, plain):
            torch.testing.assert_close(model.guided(1.7, network=network)(x, 0.5, "data"), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"model_channels": 0}, {"channel_mult": ()}, {"img_resolution": 9}, {"num_blocks": 0}, {"channels_per_head": 0}),
        *({"label_balance": 2}, {"clip_act": 0}, {"channel_mult_emb": 10**9}, {"label_dim": -1}, {"res_balance": "a"}),
    ],
    ids=str,
)
def test_shapes_that_cannot_be(wrong):
    with pytest.raises(InputError):
        replace(TINY, **wrong)
