"""ADM, its classifier and DiT: the numbers, names and shapes of the published code, as tests/references/make_*.py wrote them."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from diffode import InputError
from diffode.models import checkpoint, dit, edm_adm, guided, torch_files
from diffode.networks.adm import ADM, ADMConfig
from diffode.networks.adm_classifier import ADMClassifier
from diffode.networks.dit import DiT, DiTConfig
from tests.references import adm_cases as cases
from tests.references import formula

REFERENCES = Path(__file__).with_name("references")
ADM_THEIRS, DIT_THEIRS = (json.loads((REFERENCES / f"{name}.json").read_text()) for name in ("adm", "dit"))
EXACT = {"rtol": 0, "atol": 1e-10}  # float64
MILLIONS = {  # of weights: Dhariwal and Nichol (2021), Table 11
    "64x64_diffusion.pt": 296,
    "128x128_diffusion.pt": 422,
    "256x256_diffusion.pt": 554,
    "512x512_diffusion.pt": 559,
}
MILLIONS_DIT = {"S/2": 33, "S/4": 33, "S/8": 33, "B/2": 130, "B/4": 130, "B/8": 131, "L/2": 458, "L/4": 458, "L/8": 459}
MILLIONS_DIT |= {"XL/2": 675, "XL/4": 675, "XL/8": 676}  # Peebles and Xie (2023), Table 4; positions are not trained


def count(network):
    """How many weights are trained."""
    return sum(weight.numel() for weight in network.parameters())


def of_formula(kind, config):
    return formula.fill(kind(config).double())


class Held(torch.nn.Module):
    """Tensors by any names as a state dict."""

    def __init__(self, tensors):
        super().__init__()
        self.tensors = tensors

    def state_dict(self):
        return self.tensors


def assert_theirs(output, numbers):
    assert formula.sampled(output) == pytest.approx(numbers, rel=0, abs=1e-10)  # float64


def assert_published(network, row):
    assert formula.digest(formula.shapes(network)) == row["digest"]
    assert sum(weight.numel() for weight in network.state_dict().values()) == row["weights"]


@pytest.mark.parametrize("name", cases.TINY_ADM)
def test_outputs_are_those_of_the_published_unet(name):
    config = ADMConfig(**cases.TINY_ADM[name])
    x, t, y = cases.inputs(config.image, config.classes)
    assert_theirs(of_formula(ADM, config)(x, t, y), ADM_THEIRS["outputs"][name])


def test_outputs_are_those_of_the_same_network_in_edm():
    row, config = ADM_THEIRS["edm"], edm_adm.Arguments(**cases.TINY_EDM).config()
    holder = Held({name: torch.empty(shape, dtype=torch.float64) for name, shape in row["shapes"].items()})
    network = checkpoint.filled(ADM, config, edm_adm.converted(config, formula.fill(holder).state_dict()))
    x, t, y = cases.inputs(config.image, config.classes)
    assert_theirs(network.requires_grad_(False)(x, t, y), row["outputs"])


def test_outputs_are_those_of_the_published_classifier():
    config = ADMConfig(**cases.TINY_CLASSIFIER)
    network = of_formula(ADMClassifier, config)
    x, t, y = cases.inputs(config.image, config.classes)
    assert_theirs(network.logits(x, t), ADM_THEIRS["outputs"]["classifier"])
    log_p = torch.stack([network(x, t, torch.full((3,), label)) for label in range(config.classes)], 1)
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(3, dtype=torch.float64), **EXACT)
    torch.testing.assert_close(network(x, t, y), log_p.gather(1, y[:, None])[:, 0], **EXACT)


@pytest.mark.parametrize("name", cases.TINY_DIT)
def test_outputs_and_positions_are_those_of_the_published_transformer(name):
    config = DiTConfig(**cases.TINY_DIT[name])
    x, t, y = cases.inputs(config.image, config.classes + 1)  # the last is none
    assert_theirs(of_formula(DiT, config)(x, t, y), DIT_THEIRS["outputs"][name])
    positions = DiT(config).pos_embed
    assert formula.sampled(positions) == pytest.approx(DIT_THEIRS["positions"][name], rel=0, abs=1e-6)  # float32


@pytest.mark.parametrize("name", cases.PUBLISHED_ADM)
def test_names_and_shapes_are_the_published_unets_and_say_which_it_is(name):
    config = ADMConfig(**cases.PUBLISHED_ADM[name])
    with torch.device("meta"):
        network = ADM(config)
    assert_published(network, ADM_THEIRS["published"][name])
    assert name not in MILLIONS or round(count(network) / 1e6) == MILLIONS[name]
    found, published = guided.config_of(formula.shapes(network))
    assert found == replace(config, clock_scale=1.0)  # which the card says
    assert (published.schedule[0] == "ddpm_linear") == (config.image[1] > 64)


@pytest.mark.parametrize("name", cases.PUBLISHED_CLASSIFIERS)
def test_names_and_shapes_are_the_published_classifiers_and_say_which_it_is(name):
    config = ADMConfig(**cases.PUBLISHED_CLASSIFIERS[name])
    with torch.device("meta"):
        network = ADMClassifier(config)
    assert_published(network, ADM_THEIRS["published"][name])
    found, _ = guided.config_of(formula.shapes(network))
    same = "image", "width", "widths", "blocks", "attention", "classes", "scale_shift", "resample_blocks"
    assert {key: asdict(found)[key] for key in same} == {key: asdict(config)[key] for key in same}


@pytest.mark.parametrize("name", cases.PUBLISHED_DIT)
def test_names_and_shapes_are_the_published_transformers_and_say_which_it_is(name):
    config = DiTConfig(**cases.PUBLISHED_DIT[name])
    with torch.device("meta"):
        network = DiT(config)
    assert_published(network, DIT_THEIRS["published"][name])
    assert name not in MILLIONS_DIT or round(count(network) / 1e6) == MILLIONS_DIT[name]
    assert dit.config_of(formula.shapes(network)) == config


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (ADMConfig, {"widths": ()}),
        (ADMConfig, {"widths": (33,)}),
        (ADMConfig, {"widths": (10**9,)}),
        (ADMConfig, {"width": 3}),
        (ADMConfig, {"blocks": 0}),
        (ADMConfig, {"image": (3, 10, 10)}),
        (ADMConfig, {"image": (3, 4096, 4096), "attention": (4096,)}),
        (ADMConfig, {"head_channels": 65}),
        (ADMConfig, {"head_channels": 0, "heads": 0}),
        (ADMConfig, {"classes": -1}),
        (ADMConfig, {"clock_scale": "1"}),
        (DiTConfig, {"image": (4, 32, 64)}),
        (DiTConfig, {"image": (4, 2048, 2048), "patch": 1}),
        (DiTConfig, {"patch": 3}),
        (DiTConfig, {"heads": 7}),
        (DiTConfig, {"depth": 10**6}),
        (DiTConfig, {"width": 0}),
    ],
)
def test_sizes_that_no_network_has_are_refused(kind, changes):
    with pytest.raises(InputError):
        kind(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x_embedder.proj.weight": (64, 4, 0, 2)}, "x_embedder.proj.weight has the shape"),
        ({"x_embedder.proj.weight": ()}, "x_embedder.proj.weight has the shape"),
        ({"y_embedder.embedding_table.weight": (0, 64)}, "table.weight has the shape"),
        ({"y_embedder.embedding_table.weight": (1, 64)}, "1 labels, one of which is for none"),
        ({"pos_embed": ()}, "pos_embed has the shape"),
        ({}, "it has 0 `blocks.`"),
    ],
)
def test_shapes_of_no_transformer_are_refused_in_words(changes, words):
    shapes = {"x_embedder.proj.weight": (64, 4, 2, 2), "pos_embed": (1, 256, 64), "final_layer.linear.weight": (16, 64)}
    shapes |= {"y_embedder.embedding_table.weight": (11, 64)}
    with pytest.raises(InputError, match=words):
        dit.config_of(torch_files.Shapes(shapes | changes))


@pytest.mark.parametrize("name", ["time_embed.0.weight", "input_blocks.0.0.weight"])
def test_shapes_of_no_u_net_are_refused_in_words(name):
    shapes = {"time_embed.0.weight": (512, 128), "input_blocks.0.0.weight": (128, 3, 3, 3), name: ()}
    with pytest.raises(InputError, match=rf"its {name} has the shape \(\)"):
        guided.config_of(torch_files.Shapes(shapes))


def test_a_network_of_labels_says_that_it_has_none_that_means_none():
    config = ADMConfig(**cases.TINY_ADM["64"])
    x, t, y = cases.inputs(config.image, config.classes)
    network = of_formula(ADM, config)
    with pytest.raises(InputError, match="give labels"):
        network(x, t)
    rows = torch.nn.functional.one_hot(y, config.classes).double()
    torch.testing.assert_close(network(x, t, rows), network(x, t, y), **EXACT)
