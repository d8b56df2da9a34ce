"""The U-Net of the DDPM authors: the names, shapes and numbers of the published one, and those of its port to diffusers."""

import re
from dataclasses import replace

import pytest
import torch

from diffode import InputError
from diffode.models.presets import PRESETS
from diffode.networks.ddpm_unet import DDPMUNet, DDPMUNetConfig

SMALL = DDPMUNetConfig(resolution=16, ch=32, ch_mult=(1, 2, 2), num_res_blocks=2, attn_resolutions=(8,), dropout=0.1)
WIDE = replace(SMALL, ch_mult=(1, 3), num_res_blocks=1, attn_resolutions=(16, 8))
NARROWING = replace(SMALL, ch_mult=(2, 1))
SHAPES = [SMALL, WIDE, NARROWING, *(preset.config for preset in PRESETS.values())]


def shapes_of(config):
    """name -> shape of the published state dict, said layer by layer: a pair of widths is a convolution or a linear map."""
    ch, top = config.ch, len(config.ch_mult) - 1
    width = [ch * multiple for multiple in config.ch_mult]
    shapes = {}

    def add(name, *shape):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    def block(name, before, after):
        add(f"{name}.norm1", before)
        add(f"{name}.conv1", after, before, 3, 3)
        add(f"{name}.temb_proj", after, 4 * ch)
        add(f"{name}.norm2", after)
        add(f"{name}.conv2", after, after, 3, 3)
        if before != after:
            add(f"{name}.nin_shortcut", after, before, 1, 1)

    def attention(name, side, width):
        if side in config.attn_resolutions:
            add(f"{name}.norm", width)
            for part in ("q", "k", "v", "proj_out"):
                add(f"{name}.{part}", width, width, 1, 1)

    add("temb.dense.0", 4 * ch, ch)
    add("temb.dense.1", 4 * ch, 4 * ch)
    add("conv_in", ch, config.in_channels, 3, 3)
    for i, now in enumerate(width):
        finer, coarser, side = width[max(i - 1, 0)] if i else ch, width[min(i + 1, top)], config.resolution // 2**i
        for j in range(config.num_res_blocks):
            block(f"down.{i}.block.{j}", now if j else finer, now)
            attention(f"down.{i}.attn.{j}", side, now)
        for j in range(config.num_res_blocks + 1):
            skip = finer if j == config.num_res_blocks else now
            block(f"up.{i}.block.{j}", (now if j else coarser) + skip, now)
            attention(f"up.{i}.attn.{j}", side, now)
        if i < top:
            add(f"down.{i}.downsample.conv", now, now, 3, 3)
        if i > 0:
            add(f"up.{i}.upsample.conv", now, now, 3, 3)
    block("mid.block_1", width[-1], width[-1])
    block("mid.block_2", width[-1], width[-1])
    attention("mid.attn_1", config.attn_resolutions[0], width[-1])
    add("norm_out", width[0])
    add("conv_out", config.in_channels, width[0], 3, 3)
    return shapes


def random_(network, seed=0):
    """The network with every weight of a size that matters: an error in any of them shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            fan = weight[0].numel() if weight.ndim > 1 else 10
            weight.copy_(torch.randn(weight.shape, generator=generator) / fan**0.5 + ("norm" in name and name.endswith("weight")))
    return network.eval()


def theirs(config):
    """diffusers' network of that shape; for the CIFAR-10 one, the config.json of google/ddpm-cifar10-32."""
    diffusers = pytest.importorskip("diffusers")
    attends = [config.resolution // 2**i in config.attn_resolutions for i in range(len(config.ch_mult))]
    return diffusers.UNet2DModel(
        sample_size=config.resolution,
        in_channels=config.in_channels,
        out_channels=config.in_channels,
        act_fn="silu",
        attention_head_dim=None,
        block_out_channels=[config.ch * multiple for multiple in config.ch_mult],
        center_input_sample=False,
        down_block_types=["AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        downsample_padding=0,
        dropout=config.dropout,
        flip_sin_to_cos=False,
        freq_shift=1,
        layers_per_block=config.num_res_blocks,
        mid_block_scale_factor=1,
        norm_eps=1e-6,
        norm_num_groups=32,
        time_embedding_type="positional",
        up_block_types=["AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
    )


def renamed(key, levels):
    """The name of a weight of diffusers' network in the published one."""
    key = re.sub(r"up_blocks\.(\d)", lambda found: f"up.{levels - 1 - int(found[1])}", key)
    for old, new in {
        r"time_embedding\.linear_(\d)": lambda found: f"temb.dense.{int(found[1]) - 1}",
        r"down_blocks": "down",
        r"mid_block\.resnets\.(\d)": lambda found: f"mid.block_{int(found[1]) + 1}",
        r"mid_block\.attentions\.0": "mid.attn_1",
        r"resnets": "block",
        r"attentions": "attn",
        r"(down|up)samplers\.0": r"\1sample",
        r"conv_shortcut": "nin_shortcut",
        r"time_emb_proj": "temb_proj",
        r"group_norm": "norm",
        r"to_out\.0": "proj_out",
        r"to_(q|k|v)": r"\1",
        r"conv_norm_out": "norm_out",
    }.items():
        key = re.sub(old, new, key)
    return key


@pytest.mark.parametrize("config", SHAPES, ids=lambda config: f"{config.resolution}-{config.ch_mult}")
def test_names_and_shapes_are_those_of_the_published_weights(config):
    with torch.device("meta"):
        found = {name: tuple(weight.shape) for name, weight in DDPMUNet(config).state_dict().items()}
    assert found == shapes_of(config)


def test_the_network_of_cifar10_has_the_known_number_of_weights():
    """35,746,307, as printed of google/ddpm-cifar10-32."""
    with torch.device("meta"):
        assert sum(weight.numel() for weight in DDPMUNet(PRESETS["cifar10"].config).parameters()) == 35_746_307


def agree(config, batch):
    """Ours and diffusers' give the same for the same weights, to 1e-5 of the size of what they give, and for no other t."""
    ours, reference = random_(DDPMUNet(config)), theirs(config).eval()
    names = {key: renamed(key, len(config.ch_mult)) for key in reference.state_dict()}
    weights = ours.state_dict()
    assert sorted(names.values()) == sorted(weights)
    reference.load_state_dict(
        {
            key: weights[name].view(old.shape)
            for (key, name), old in zip(names.items(), reference.state_dict().values(), strict=True)
        }
    )
    x = torch.randn(batch, *config.image, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0.0, 0.5, 999.0, 371.25])[:batch]
    with torch.no_grad():
        expected = reference(x, t).sample
        torch.testing.assert_close(ours(x, t), expected, rtol=0, atol=1e-5 * float(expected.std()))
        assert not torch.allclose(ours(x, t + 3), expected, rtol=0, atol=1e-2 * float(expected.std()))


@pytest.mark.parametrize("config", [SMALL, WIDE], ids=["small", "wide"])
def test_it_is_the_network_of_diffusers(config):
    agree(config, 4)


@pytest.mark.slow
def test_it_is_the_network_of_diffusers_at_its_full_size():
    agree(PRESETS["cifar10"].config, 2)


def test_the_presets_are_those_of_the_papers():
    """Ho et al. (2020), appendix B, and the DDIM paper, appendix D.1; both on the same table of β."""
    assert {name: (preset.image, preset.config.ch_mult, preset.table) for name, preset in PRESETS.items()} == {
        "cifar10": ((3, 32, 32), (1, 2, 2, 2), "CIFAR-10"),
        "celeba": ((3, 64, 64), (1, 2, 2, 2, 4), "CelebA"),
        "bedroom": ((3, 256, 256), (1, 1, 2, 2, 4, 4), None),
        "church": ((3, 256, 256), (1, 1, 2, 2, 4, 4), None),
    }
    for preset in PRESETS.values():
        assert (preset.config.ch, preset.config.num_res_blocks, preset.config.attn_resolutions) == (128, 2, (16,))
        assert dict(preset.schedule.options) == {"beta_first": 1e-4, "beta_last": 0.02, "steps": 1000}


def test_float64_and_a_clock_between_labels():
    network = random_(DDPMUNet(SMALL))
    x, t = torch.randn(2, *SMALL.image, generator=torch.Generator().manual_seed(2)), torch.tensor([998.5, 0.25])
    with torch.no_grad():
        single = network(x, t)
        double = network.double()(x.double(), t.double())
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-3 * float(double.std()))


@pytest.mark.parametrize("wrong", [{"ch": 48}, {"ch": 0}, {"ch_mult": ()}, {"resolution": 18}, {"num_res_blocks": 0}])
def test_shapes_that_cannot_be(wrong):
    with pytest.raises(InputError):
        replace(SMALL, **wrong)
