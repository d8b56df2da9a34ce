"""Write dit.json: outputs of the published code of DiT on small networks, and names and shapes of its large ones.

    git clone https://github.com/facebookresearch/DiT
    python -m tests.references.make_dit --repo DiT

Nothing of that code is kept, see make_adm.py. Of timm, which it imports, three layers are written here as timm documents them, so
that timm (and torchvision) need not be installed: PatchEmbed, Attention and Mlp.
"""

import argparse
import sys
from types import ModuleType
from unittest.mock import patch

import torch
from torch import nn

from tests.references import adm_cases as cases
from tests.references import formula
from tests.references.make_adm import about, write


class PatchEmbed(nn.Module):
    def __init__(self, img_size, patch_size, in_chans, embed_dim, bias):
        super().__init__()
        self.patch_size, self.num_patches = (patch_size, patch_size), (img_size // patch_size) ** 2
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size, bias=bias)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, dim, num_heads, qkv_bias):
        super().__init__()
        self.num_heads, self.qkv, self.proj = num_heads, nn.Linear(dim, 3 * dim, bias=qkv_bias), nn.Linear(dim, dim)

    def forward(self, x):
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(2, 3) * (dim // self.num_heads) ** -0.5).softmax(3)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, dim))


class Mlp(nn.Module):
    def __init__(self, in_features, hidden_features, act_layer, drop):
        super().__init__()
        self.fc1, self.act, self.fc2 = (
            nn.Linear(in_features, hidden_features),
            act_layer(),
            nn.Linear(hidden_features, in_features),
        )

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


def arguments(config):
    """What the published constructor calls the fields of DiTConfig."""
    channels, side, _ = config.get("image", (4, 32, 32))
    return {
        "input_size": side,
        "patch_size": config["patch"],
        "in_channels": channels,
        "hidden_size": config["width"],
        "depth": config["depth"],
        "num_heads": config["heads"],
        "num_classes": config.get("classes", 1000),
        "learn_sigma": config.get("learned_variance", True),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", required=True)
    layers = ModuleType("timm.models.vision_transformer")
    layers.PatchEmbed, layers.Attention, layers.Mlp = PatchEmbed, Attention, Mlp
    sys.modules |= {"timm": ModuleType("timm"), "timm.models": ModuleType("timm.models"), layers.__name__: layers}
    sys.path.insert(0, parser.parse_args().repo)
    from models import DiT

    found = {"outputs": {}, "positions": {}, "published": {}}
    torch.set_default_dtype(torch.float64)
    with patch.object(torch.Tensor, "float", lambda tensor: tensor), patch.object(torch, "float32", torch.float64):
        for name, config in cases.TINY_DIT.items():
            network = DiT(**arguments(config))
            found["positions"][name] = formula.sampled(network.pos_embed)
            x, t, y = cases.inputs(config["image"], config["classes"] + 1)
            found["outputs"][name] = formula.sampled(formula.fill(network)(x, t, y))
    with torch.device("meta"):
        for name, config in cases.PUBLISHED_DIT.items():
            found["published"][name] = about(DiT(**arguments(config)))
    write("dit", found)


if __name__ == "__main__":
    main()
