"""Write adm.json: outputs of the published code of ADM and its kin on small networks, and names and shapes of the large ones.

    for name in openai/guided-diffusion openai/improved-diffusion openai/consistency_models NVlabs/edm; do
        git clone https://github.com/$name
    done
    python -m tests.references.make_adm --clones .

Nothing of that code is kept: weights and inputs are made by a formula (formula.py), outputs are a few hundred numbers. The code
casts to float32 here and there; for these outputs all of it runs in float64. Of flash_attn, which consistency_models imports, the
one layer is written here as it is documented. EDM's network is the same under other names; that the published weights of it have
a place in ours is checked here.
"""

import argparse
import importlib
import inspect
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import torch
from torch import nn

from diffode.models import checkpoint, edm_adm
from diffode.networks.adm import ADM
from tests.references import adm_cases as cases
from tests.references import formula


def arguments(config):
    """What the published constructors call the fields of ADMConfig."""
    height, whole = config["image"][1], config["width"]
    heads = {"num_head_channels": config.get("head_channels", 64) or -1, "num_heads": config.get("heads", 4)}
    return heads | {
        "image_size": height,
        "in_channels": 3,
        "model_channels": config["width"],
        "out_channels": 3 * (1 + config.get("learned_variance", True)),
        "num_res_blocks": config["blocks"],
        "attention_resolutions": tuple(height // side for side in config.get("attention", (32, 16, 8))),
        "channel_mult": tuple(width // whole if width % whole == 0 else width / whole for width in config["widths"]),
        "num_classes": config.get("classes") or None,
        "use_scale_shift_norm": config.get("scale_shift", True),
        "resblock_updown": config.get("resample_blocks", True),
        "use_new_attention_order": config.get("qkv_first", False),
    }


class FlashAttention(nn.Module):
    def __init__(self, attention_dropout, device, dtype):
        super().__init__()

    def forward(self, qkv, key_padding_mask, need_weights, causal):
        q, k, v = qkv.movedim(2, 0)  # (batch, tokens, heads, channels)
        weights = torch.einsum("bthc,bshc->bhts", q, k / k.shape[-1] ** 0.5).softmax(-1)
        return torch.einsum("bhts,bshc->bthc", weights, v), None


def unets(clones):
    """The modules with the U-Nets of OpenAI's three repositories, without what their packages import besides."""
    flash = ModuleType("flash_attn.flash_attention")
    flash.FlashAttention = FlashAttention
    sys.modules |= {"flash_attn": ModuleType("flash_attn"), flash.__name__: flash}
    for name, package in cases.PACKAGES.items():
        sys.modules[package] = ModuleType(package)
        sys.modules[package].__path__ = [str(clones / name / package)]
    return {name: importlib.import_module(f"{package}.unet") for name, package in cases.PACKAGES.items()}


def made(kind, config, **more):
    """A network of their class, whose constructor takes some of the arguments."""
    given = arguments(config) | more
    return kind(**{name: given[name] for name in inspect.signature(kind).parameters if name in given})


def of_edm(repo):
    """Outputs, names and shapes of EDM's own small ADM; that the published one fits ours is asserted."""
    sys.path.insert(0, str(repo))
    from training import networks

    networks.AttentionOp.apply = lambda q, k: torch.einsum("ncq,nck->nqk", q, k / k.shape[1] ** 0.5).softmax(2)
    x, t, y = cases.inputs((3, 8, 8), 5)
    with patch.object(torch, "float32", torch.float64):
        network = formula.fill(networks.DhariwalUNet(**cases.TINY_EDM).double())
        outputs = formula.sampled(network(x, t, torch.eye(5)[y]))
    with torch.device("meta"):
        published = networks.DhariwalUNet(64, 3, 3, label_dim=1000)
        config = edm_adm.Arguments(64, 3, 3, 1000).config()
        assert not checkpoint.misfit(edm_adm.converted(config, published.state_dict()), ADM(config))
    return {"shapes": formula.shapes(network), "outputs": outputs}


def about(network):
    """The number of weights, and a digest of names and shapes, 1×1 convolutions of attention in one dimension."""
    flat = (".qkv.weight", ".proj_out.weight")
    shapes = {name: shape[:3] if name.endswith(flat) else shape for name, shape in formula.shapes(network).items()}
    return {"weights": sum(map(math.prod, shapes.values())), "digest": formula.digest(shapes)}


def write(name, found):
    rows = ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in found.items())
    Path(__file__).with_name(f"{name}.json").write_text(f"{{\n{rows}\n}}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clones", required=True, type=Path)
    clones = parser.parse_args().clones
    unet = unets(clones)
    classifier, pooled = unet["guided-diffusion"].EncoderUNetModel, {"out_channels": 7, "pool": "attention"}
    found = {"outputs": {}, "published": {}}
    torch.set_default_dtype(torch.float64)
    with patch.object(torch.Tensor, "float", lambda tensor: tensor), patch.object(torch, "float32", torch.float64):
        for name, config in cases.TINY_ADM.items():
            network = formula.fill(made(unet[cases.repository(name)].UNetModel, config))
            x, t, y = cases.inputs(config["image"], config.get("classes"))
            found["outputs"][name] = formula.sampled(network(x, t, y))
        x, t, _ = cases.inputs(cases.TINY_CLASSIFIER["image"], 7)
        found["outputs"]["classifier"] = formula.sampled(formula.fill(made(classifier, cases.TINY_CLASSIFIER, **pooled))(x, t))
    with torch.device("meta"):
        for name, config in cases.PUBLISHED_ADM.items():
            found["published"][name] = about(made(unet[cases.repository(name)].UNetModel, config))
        for name, config in cases.PUBLISHED_CLASSIFIERS.items():
            found["published"][name] = about(made(classifier, config, **pooled | {"out_channels": 1000}))
    found["edm"] = of_edm(clones / "edm")
    write("adm", found)


if __name__ == "__main__":
    main()
