"""Write edm2.json from EDM2's own code: python -m tests.references.make_edm2 --repo CLONE, CLONE being of github.com/NVlabs/edm2.

Its networks are run with the weights of formula.py, in float32, in which they compute their norms; a pickle is written by its own
code and read by ours; the names and shapes of the published networks are digests.
"""

import argparse
import json
import pickle
import sys
import tempfile
from pathlib import Path

import torch

from diffode.models import edm
from diffode.networks.edm2_unet import normalised
from tests.references import formula

TINY = {"img_resolution": 8, "img_channels": 4, "label_dim": 5, "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1}
TINY |= {"attn_resolutions": [4], "channels_per_head": 8}
NETWORKS = {
    "conditional": TINY,
    "unconditional": {**TINY, "label_dim": 0, "channel_mult_noise": 2, "channel_mult_emb": 3, "clip_act": 0.5, "sigma_data": 0.7},
    "balanced": {**TINY, "num_blocks": 2, "label_balance": 0.2, "concat_balance": 0.6, "res_balance": 0.4, "attn_balance": 0.1},
}
WIDTHS = {"xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}  # config_presets of its train_edm2.py
LATENT, PIXELS = {"img_resolution": 64, "img_channels": 4}, {"img_resolution": 64, "img_channels": 3}
PUBLISHED = {f"edm2-img512-{size}": {**LATENT, "label_dim": 1000, "model_channels": width} for size, width in WIDTHS.items()}
PUBLISHED |= {
    f"edm2-img64-{size}": {**PIXELS, "label_dim": 1000, "model_channels": WIDTHS[size]} for size in ("xs", "s", "m", "l", "xl")
}
PUBLISHED["edm2-img512-xs-uncond"] = {**LATENT, "label_dim": 0, "model_channels": 128}


def of_network(networks, encoders, arguments):
    """What is written of a tiny network: its state dict's shapes, and D in float32."""
    net = networks.Precond(**arguments).eval()
    formula.fill(net.unet)
    x, sigma = formula.waves((2, 4, 8, 8), 3).float(), torch.tensor([0.7, 3.0])
    y = torch.eye(5)[[2, 0]] if arguments["label_dim"] else None
    row = {"arguments": arguments, "shapes": formula.shapes(net, "unet."), "D": formula.sampled(net(x, sigma, y))}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.pkl")
        path.write_bytes(pickle.dumps({"ema": net, "encoder": encoders.StabilityVAEEncoder(), "dataset_kwargs": {}}))
        tensors, card = edm.read(path)
    expected = normalised(net.unet.state_dict())
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    row["read"] = {"tensors": len(tensors), "card": card.to_json()}
    return row


class Autoencoder(torch.nn.Module):
    """One that draws what can be computed by hand."""

    def decode(self, z):
        """Images in [0, 1], and a little beyond."""
        return {"sample": 0.5 + 0.1 * z[:, :3]}


def decoded(encoders):
    """The pixels that its encoder makes of latents."""
    encoder = encoders.StabilityVAEEncoder()
    encoder._vae = Autoencoder()
    return encoder.decode(formula.waves((1, 4, 4, 4), 3).float()).flatten().tolist()


def main():
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repo", required=True, help="a clone of github.com/NVlabs/edm2")
    sys.path.insert(0, parser.parse_args().repo)
    from generate_images import edm_sampler
    from training import encoders, networks_edm2

    written = {"tiny": {name: of_network(networks_edm2, encoders, each) for name, each in NETWORKS.items()}, "published": {}}
    written["pixels"] = decoded(encoders)
    main, guide = (networks_edm2.Precond(**NETWORKS[name]).eval() for name in ("conditional", "unconditional"))
    for network in (main, guide):
        formula.fill(network.unet)
    x = formula.waves((2, 4, 8, 8), 3).float()
    written["guided"] = formula.sampled(edm_sampler(main, x, torch.eye(5)[[2, 0]], guide, guidance=1.7))
    for name, arguments in PUBLISHED.items():
        with torch.device("meta"):
            net = networks_edm2.UNet(**arguments)
        count = sum(weight.numel() for weight in net.parameters())
        written["published"][name] = {"arguments": arguments, "parameters": count, "digest": formula.digest(formula.shapes(net))}
    path = Path(__file__).with_name("edm2.json")
    path.write_text("{\n" + ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in written.items()) + "\n}\n")


if __name__ == "__main__":
    main()
