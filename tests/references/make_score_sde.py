"""Write score_sde.json from the code of score_sde_pytorch: python -m tests.references.make_score_sde --repo CLONE.

CLONE is one of github.com/yang-song/score_sde_pytorch. Its networks are run with the weights of formula.py, and its own filters
for the CPU, so that nothing is compiled: VE in float64, VP in float32, in which it computes its sinusoids. A checkpoint as its
training writes it is read by ours.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.utils.cpp_extension

from diffode.models import score_sde
from tests.references import formula

TINY = {"image_size": 32, "nf": 16, "ch_mult": [1, 2], "num_res_blocks": 1}
NCSNPP = {"progressive_input": "residual", "fir": True}
FOURIER = {**NCSNPP, "embedding_type": "fourier", "scale_by_sigma": True, "centered": False}
NETWORKS = {  # as configs/vp/cifar10_ddpmpp_continuous.py and so on, but for their sizes
    "vp-ddpmpp": TINY,
    "vp-ncsnpp": {**TINY, **NCSNPP},
    "ve-ncsnpp": {**TINY, **FOURIER, "num_res_blocks": 2},
    "ve-256": {
        **TINY,
        **FOURIER,
        "progressive": "output_skip",
        "progressive_input": "input_skip",
        "ch_mult": [1, 1, 2],
        "sigma_max": 348.0,
    },
}
PUBLISHED = {
    "vp/cifar10_ddpmpp_continuous": {"ch_mult": [1, 2, 2, 2], "num_res_blocks": 4},
    "vp/cifar10_ddpmpp_deep_continuous": {"ch_mult": [1, 2, 2, 2], "num_res_blocks": 8},
    "vp/cifar10_ncsnpp_continuous": {"ch_mult": [1, 2, 2, 2], "num_res_blocks": 4, **NCSNPP},
    "ve/cifar10_ncsnpp_continuous": {"ch_mult": [1, 2, 2, 2], "num_res_blocks": 4, **FOURIER},
    "ve/cifar10_ncsnpp_deep_continuous": {"ch_mult": [1, 2, 2, 2], "num_res_blocks": 8, **FOURIER},
    "ve/ffhq_256_ncsnpp_continuous": {
        **FOURIER,
        "image_size": 256,
        "ch_mult": [1, 1, 2, 2, 2, 2, 2],
        "num_res_blocks": 2,
        "sigma_max": 348.0,
        "progressive": "output_skip",
        "progressive_input": "input_skip",
    },
    "ve/ffhq_ncsnpp_continuous": {
        **FOURIER,
        "image_size": 1024,
        "nf": 16,
        "ch_mult": [1, 2, 4, 8, 16, 32, 32, 32],
        "num_res_blocks": 1,
        "sigma_max": 1348.0,
        "progressive": "output_skip",
        "progressive_input": "input_skip",
    },
}
DEFAULTS = {"image_size": 32, "num_channels": 3, "centered": True, "continuous": True, "nf": 128, "attn_resolutions": [16]}
DEFAULTS |= {
    "dropout": 0.1,
    "resamp_with_conv": True,
    "conditional": True,
    "fir": False,
    "fir_kernel": [1, 3, 3, 1],
    "skip_rescale": True,
}
DEFAULTS |= {
    "resblock_type": "biggan",
    "progressive": "none",
    "progressive_input": "none",
    "progressive_combine": "sum",
    "init_scale": 0.0,
}
DEFAULTS |= {"embedding_type": "positional", "fourier_scale": 16, "nonlinearity": "swish", "sigma_min": 0.01, "sigma_max": 50.0}
DEFAULTS |= {"num_scales": 1000, "scale_by_sigma": False}


def made(networks, changes):
    """A network of the reference."""
    options = SimpleNamespace(
        **{**DEFAULTS, **changes}
    )  # its configurations are in three parts, none of whose names are the same
    return networks.NCSNpp(SimpleNamespace(model=options, data=options, training=options)).eval()


def of_network(networks, changes):
    """What is written of a tiny network: names and shapes, its output, and the card that we read of its checkpoint."""
    net = formula.fill(made(networks, changes))
    x = formula.waves((2, 3, 32, 32), 3)
    if ve := changes.get("scale_by_sigma", False):
        sigma = torch.tensor([0.35, 1.5], dtype=torch.float64)
        output = net.double()((x + 1) / 2, sigma) * sigma[:, None, None, None]
        net.float()
    else:
        output = net(x.float(), 999 * torch.tensor([0.2, 0.7]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "checkpoint_1.pth")
        weights = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
        trained = [weight for name, weight in net.named_parameters() if name != "all_modules.0.W" or not ve]
        torch.save({"model": weights, "ema": {"decay": 0.9999, "num_updates": 1, "shadow_params": trained}, "step": 1}, path)
        card = score_sde.read(path)[1]
    return {"ve": ve, "shapes": formula.shapes(net), "output": formula.sampled(output), "card": card.to_json()}


def main():
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repo", required=True, help="a clone of github.com/yang-song/score_sde_pytorch")
    sys.path.insert(0, parser.parse_args().repo)
    torch.utils.cpp_extension.load = lambda *args, **options: None
    from models import ncsnpp, up_or_down_sampling

    filtered = up_or_down_sampling.upfirdn2d  # whose filter is in float32 whatever x is in
    up_or_down_sampling.upfirdn2d = lambda x, kernel, **options: filtered(x, kernel.to(x.dtype), **options)
    written = {"tiny": {name: of_network(ncsnpp, each) for name, each in NETWORKS.items()}, "published": {}}
    for name, changes in PUBLISHED.items():
        net = made(ncsnpp, changes)
        count = sum(weight.numel() for weight in net.parameters() if weight.requires_grad)
        config, tensors = score_sde.mapped(net.state_dict())
        about = {
            "parameters": count,
            "config": asdict(config),
            "digest": formula.digest({n: w.shape for n, w in tensors.items()}),
        }
        written["published"][name] = about
    path = Path(__file__).with_name("score_sde.json")
    path.write_text("{\n" + ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in written.items()) + "\n}\n")


if __name__ == "__main__":
    main()
