"""Write edm.json from EDM's own code: python -m tests.references.make_edm --repo CLONE, CLONE being of github.com/NVlabs/edm.

Its networks are run with the weights of formula.py in float64 (its attention, which is always in float32, too); the names and
shapes of the published networks are digests. A pickle is written by its own code and read by ours, and all tensors compared.
"""

import argparse
import copy
import json
import pickle
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from diffode.models import edm
from tests.references import formula

TINY = {"img_resolution": 16, "model_channels": 16, "num_blocks": 1, "channel_mult": [1, 2], "attn_resolutions": [8]}
NCSNPP = {"embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1]}
SKIPS = {"embedding_type": "fourier", "encoder_type": "skip", "decoder_type": "skip", "resample_filter": [1, 3, 3, 1]}
NETWORKS = {  # tiny, all that the architecture can do
    "ddpmpp": ("EDMPrecond", {**TINY, "label_dim": 5, "augment_dim": 9}),
    "ncsnpp": ("EDMPrecond", {**TINY, **NCSNPP, "sigma_data": 0.6}),
    "skips": ("VEPrecond", {**TINY, **SKIPS, "channel_mult": [1, 2, 2], "num_blocks": 2, "attn_resolutions": [16]}),
    "vp": ("VPPrecond", {**TINY, "label_dim": 3}),
    "ve": ("VEPrecond", {**TINY, **NCSNPP}),
}
CIFAR = {"channel_mult": [2, 2, 2], "model_channels": 128}
LARGE = {"channel_mult": [1, 2, 2, 2], "model_channels": 128}
PUBLISHED = {  # the networks of github.com/NVlabs/edm, by its train.py and README, and of its baselines
    "edm-cifar10-32x32-cond-vp": {**CIFAR, "img_resolution": 32, "label_dim": 10, "augment_dim": 9},
    "edm-cifar10-32x32-uncond-vp": {**CIFAR, "img_resolution": 32, "augment_dim": 9},
    "edm-cifar10-32x32-cond-ve": {**CIFAR, **NCSNPP, "img_resolution": 32, "label_dim": 10, "augment_dim": 9},
    "edm-cifar10-32x32-uncond-ve": {**CIFAR, **NCSNPP, "img_resolution": 32, "augment_dim": 9},
    "edm-ffhq-64x64-uncond-vp": {**LARGE, "img_resolution": 64, "augment_dim": 9},
    "edm-ffhq-64x64-uncond-ve": {**LARGE, **NCSNPP, "img_resolution": 64, "augment_dim": 9},
    "baseline-cifar10-32x32-uncond-vp": {**LARGE, "img_resolution": 32},
    "baseline-cifar10-32x32-uncond-ve": {**LARGE, **NCSNPP, "img_resolution": 32},
}


def made(networks, precond, arguments):
    """A preconditioned network of the reference with the weights of the formula."""
    return formula.fill(getattr(networks, precond)(img_channels=3, model_type="SongUNet", **arguments))


def inputs(arguments):
    """x, σ and labels for a network."""
    x = formula.waves((2, 3, arguments["img_resolution"], arguments["img_resolution"]), 3)
    y = torch.eye(arguments["label_dim"], dtype=torch.float64)[[2, 0]] if arguments.get("label_dim") else None
    return x, torch.tensor([0.7, 3.0], dtype=torch.float64), y


def of_network(networks, sampler, precond, arguments):
    """What is written of a tiny network: its state dict's shapes, F at t = σ in float64, D in float32, and what its sampler makes
    of noise in 18 steps, where it begins at σ = 80."""
    net = made(networks, precond, arguments)
    x, sigma, y = inputs(arguments)
    row = {"precond": precond, "arguments": arguments, "shapes": formula.shapes(net, "model.")}
    row["D"] = formula.sampled(net(x.float(), sigma.float(), None if y is None else y.float()))
    if precond == "EDMPrecond":
        row["sampled"] = formula.sampled(sampler(net, x, None if y is None else y.float()))
    row["F"] = formula.sampled(copy.deepcopy(net.model).double()(x, sigma, y))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.pkl")
        path.write_bytes(pickle.dumps({"ema": net, "dataset_kwargs": {}}))
        tensors, card = edm.read(path)
    expected = net.model.state_dict()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    row["read"] = {"tensors": len(tensors), "card": card.to_json()}
    return row


def main():
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repo", required=True, help="a clone of github.com/NVlabs/edm")
    sys.path.insert(0, parser.parse_args().repo)
    from generate import edm_sampler
    from training import networks

    exact = "ncq,nck->nqk"
    networks.AttentionOp.apply = lambda q, k: torch.einsum(exact, q, k / np.sqrt(k.shape[1])).softmax(dim=2)
    written = {"tiny": {name: of_network(networks, edm_sampler, *each) for name, each in NETWORKS.items()}, "published": {}}
    for name, arguments in PUBLISHED.items():
        with torch.device("meta"):
            net = networks.SongUNet(in_channels=3, out_channels=3, **arguments)
        count = sum(weight.numel() for weight in net.parameters())
        about = {"arguments": arguments, "parameters": count, "digest": formula.digest(formula.shapes(net))}
        written["published"][name] = about
    path = Path(__file__).with_name("edm.json")
    path.write_text("{\n" + ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in written.items()) + "\n}\n")


if __name__ == "__main__":
    main()
