"""EDM's networks: the numbers, names and shapes of its own code (tests/references/make_edm.py), and what its files become."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffode import InputError
from diffode.models.card import Card
from diffode.networks.edm_unet import EDMUNet, EDMUNetConfig
from solvers import sample
from tests.references import formula

WRITTEN = json.loads((Path(__file__).parent / "references" / "edm.json").read_text())
TINY = EDMUNetConfig(img_resolution=8, model_channels=16, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,))


def network_of(row):
    """Ours, with the weights of the formula."""
    return formula.fill(EDMUNet(EDMUNetConfig(**row["read"]["card"]["config"])))


def inputs(row):
    """Those of make_edm.py."""
    side, labels = row["arguments"]["img_resolution"], row["arguments"].get("label_dim", 0)
    y = torch.eye(labels, dtype=torch.float64)[[2, 0]] if labels else None
    return formula.waves((2, 3, side, side), 3), torch.tensor([0.7, 3.0], dtype=torch.float64), y


@pytest.mark.parametrize("name", WRITTEN["tiny"])
def test_it_is_the_network_of_edm(name):
    """In float64, to rounding; in names and shapes."""
    row = WRITTEN["tiny"][name]
    network, (x, sigma, y) = network_of(row), inputs(row)
    assert formula.shapes(network) == row["shapes"]
    ours = network.double()
    t, sign = (sigma + torch.log(torch.tensor(2.0).double()), -1) if ours.config.ve else (sigma, 1)
    found = formula.sampled(sign * (ours(x, t) if y is None else ours(x, t, y)))
    assert found == pytest.approx(row["F"], rel=0, abs=1e-10)


@pytest.mark.parametrize("name", WRITTEN["tiny"])
def test_its_preconditioning_is_that_of_edm(name):
    """The card's prediction, schedule and clock make of the network what EDM's own preconditioning makes of it: D(x; σ)."""
    row = WRITTEN["tiny"][name]
    card = Card.from_json(row["read"]["card"], "edm.json")
    model, (x, sigma, y) = card.model(network_of(row)), inputs(row)
    model = model if y is None else model.labelled([2, 0])
    lams = -sigma.log().numpy()
    alpha = torch.as_tensor(model.schedule.alpha(lams)).view(2, 1, 1, 1)  # EDM's x is ours over α
    found = formula.sampled(model.at((alpha * x).float(), lams, "data"))
    assert found == pytest.approx(row["D"], rel=0, abs=1e-4)  # float32 of a clock up to 999, times σ = 3


@pytest.mark.parametrize("name", [name for name, row in WRITTEN["tiny"].items() if "sampled" in row])
def test_its_samples_are_those_of_edm(name):
    """The row of the paper in small: Heun on the grid of Karras in 18 steps, the last one to σ = 0, from the same noise."""
    row = WRITTEN["tiny"][name]
    model, (x, _, y) = Card.from_json(row["read"]["card"], "edm.json").model(network_of(row)), inputs(row)
    model = model if y is None else model.labelled([2, 0])
    result = sample(model, x=80 * x, solver="heun", grid="karras", steps=18, denoise=True)
    assert result.nfe == 35
    assert formula.sampled(result.x) == pytest.approx(row["sampled"], rel=0, abs=1e-5)  # float32 networks


@pytest.mark.parametrize("name", WRITTEN["published"])
def test_published_networks_have_the_names_shapes_and_sizes_of_edm(name):
    row = WRITTEN["published"][name]
    with torch.device("meta"):
        network = EDMUNet(EDMUNetConfig(**row["arguments"]))
    assert formula.digest(formula.shapes(network)) == row["digest"]
    assert sum(weight.numel() for weight in network.parameters()) == row["parameters"]


@pytest.mark.parametrize(
    "wrong",
    [
        *({"model_channels": 6}, {"model_channels": 0}, {"channel_mult": ()}, {"img_resolution": 9}, {"num_blocks": 0}),
        *({"embedding_type": "x"}, {"encoder_type": 1}, {"decoder_type": "residual"}, {"resample_filter": (1, 2)}),
        *({"out_channels": 0}, {"augment_dim": -1}, {"channel_mult_emb": 10**9}, {"label_dim": 10**9}, {"in_channels": "3"}),
    ],
    ids=str,
)
def test_shapes_that_cannot_be(wrong):
    with pytest.raises(InputError):
        replace(TINY, **wrong)
