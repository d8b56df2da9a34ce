"""Write adm.json: outputs of the published code of guided-diffusion on small networks, and names and shapes of its large ones.

    git clone https://github.com/openai/guided-diffusion
    python -m tests.references.make_adm --repo guided-diffusion

Nothing of that code is kept: weights and inputs are made by a formula (adm_cases.py), outputs are a few hundred numbers. The code
casts to float32 here and there; for these outputs all of it runs in float64.
"""

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import torch

from tests.references import adm_cases as cases


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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", required=True, type=Path)
    package = ModuleType("guided_diffusion")  # without its __init__, which is empty, and what is installed besides
    package.__path__ = [str(parser.parse_args().repo / "guided_diffusion")]
    sys.modules["guided_diffusion"] = package
    from guided_diffusion.unet import EncoderUNetModel, UNetModel

    found = {"outputs": {}, "published": {}}
    torch.set_default_dtype(torch.float64)
    with patch.object(torch.Tensor, "float", lambda tensor: tensor), patch.object(torch, "float32", torch.float64):
        for name, config in cases.TINY_ADM.items():
            network = cases.by_formula_(UNetModel(**arguments(config)))
            x, t, y = cases.inputs(config["image"], config.get("classes"))
            found["outputs"][name] = cases.numbers(network(x, t, y))
        network = cases.by_formula_(EncoderUNetModel(**classifier_arguments(cases.TINY_CLASSIFIER)))
        x, t, _ = cases.inputs(cases.TINY_CLASSIFIER["image"], 7)
        found["outputs"]["classifier"] = cases.numbers(network(x, t))
    with torch.device("meta"):
        for name, config in cases.PUBLISHED_ADM.items():
            found["published"][name] = cases.digest(UNetModel(**arguments(config)))
        for name, config in cases.PUBLISHED_CLASSIFIERS.items():
            found["published"][name] = cases.digest(EncoderUNetModel(**classifier_arguments(config)))
    Path(__file__).with_name("adm.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
