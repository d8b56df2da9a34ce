"""Write adm.json: outputs of the published code of guided-diffusion on small networks, and names and shapes of its large ones.

    git clone https://github.com/openai/guided-diffusion; git clone https://github.com/NVlabs/edm
    python -m tests.references.make_adm --repo guided-diffusion --edm edm

Nothing of that code is kept: weights and inputs are made by a formula (formula.py), outputs are a few hundred numbers. The code
casts to float32 here and there; for these outputs all of it runs in float64. EDM's network is the same under other names; that
the published weights of it have a place in ours is checked here.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import torch

from diffode.models import checkpoint, edm_adm
from diffode.networks.adm import ADM
from tests.references import adm_cases as cases
from tests.references import formula


def arguments(config):
    """What the published constructors call the fields of ADMConfig."""
    height = config["image"][1]
    heads = {"num_head_channels": config.get("head_channels", 64) or -1, "num_heads": config.get("heads", 4)}
    return heads | {
        "image_size": height,
        "in_channels": 3,
        "model_channels": config["width"],
        "out_channels": 3 * (1 + config.get("learned_variance", True)),
        "num_res_blocks": config["blocks"],
        "attention_resolutions": tuple(height // side for side in config.get("attention", (32, 16, 8))),
        "channel_mult": tuple(width / config["width"] for width in config["widths"]),
        "num_classes": config.get("classes") or None,
        "use_scale_shift_norm": config.get("scale_shift", True),
        "resblock_updown": config.get("resample_blocks", True),
        "use_new_attention_order": config.get("qkv_first", False),
    }


def classifier_arguments(config):
    found = arguments(config)
    del found["num_classes"]
    return found | {"out_channels": config["classes"], "pool": "attention"}


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
    shapes = formula.shapes(network)
    return {"weights": sum(map(math.prod, shapes.values())), "digest": formula.digest(shapes)}


def write(name, found):
    rows = ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in found.items())
    Path(__file__).with_name(f"{name}.json").write_text(f"{{\n{rows}\n}}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", required=True, type=Path)
    parser.add_argument("--edm", required=True, type=Path)
    package = ModuleType("guided_diffusion")  # without its __init__, which is empty, and what is installed besides
    package.__path__ = [str(parser.parse_args().repo / "guided_diffusion")]
    sys.modules["guided_diffusion"] = package
    from guided_diffusion.unet import EncoderUNetModel, UNetModel

    found = {"outputs": {}, "published": {}}
    torch.set_default_dtype(torch.float64)
    with patch.object(torch.Tensor, "float", lambda tensor: tensor), patch.object(torch, "float32", torch.float64):
        for name, config in cases.TINY_ADM.items():
            network = formula.fill(UNetModel(**arguments(config)))
            x, t, y = cases.inputs(config["image"], config.get("classes"))
            found["outputs"][name] = formula.sampled(network(x, t, y))
        network = formula.fill(EncoderUNetModel(**classifier_arguments(cases.TINY_CLASSIFIER)))
        x, t, _ = cases.inputs(cases.TINY_CLASSIFIER["image"], 7)
        found["outputs"]["classifier"] = formula.sampled(network(x, t))
    with torch.device("meta"):
        for name, config in cases.PUBLISHED_ADM.items():
            found["published"][name] = about(UNetModel(**arguments(config)))
        for name, config in cases.PUBLISHED_CLASSIFIERS.items():
            found["published"][name] = about(EncoderUNetModel(**classifier_arguments(config)))
    found["edm"] = of_edm(parser.parse_args().edm)
    write("adm", found)


if __name__ == "__main__":
    main()
