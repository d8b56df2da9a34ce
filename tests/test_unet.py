"""The U-Net: shapes it scales to, what it is conditioned on, and that a sample does not depend on its batch."""

import pytest
import torch

from diffode import InputError
from diffode.models import pretrained
from diffode.networks.unet import UNet, UNetConfig

CIFAR10 = UNetConfig((3, 32, 32), 10, patch=1, width=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(16,))
CELEBA = UNetConfig((3, 64, 64), 0, patch=1, width=128, multipliers=(1, 1, 2, 2, 4), blocks=2, attention=(16,))


def size(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("config", "millions"), [(CIFAR10, (30, 50)), (CELEBA, (70, 130))])
def test_scales_to_the_networks_of_the_ddpm_paper(config, millions):
    """Ho et al. (2020), appendix B: 35.7 M parameters for CIFAR-10, 114 M for 256 × 256; shapes are checked without memory."""
    with torch.device("meta"):
        network = UNet(config)
        x = torch.empty(2, *config.image)
        assert network(x, torch.empty(2), None).shape == x.shape
    assert millions[0] < size(network) / 1e6 < millions[1]


@pytest.mark.parametrize("image", [(3, 32, 32), (3, 64, 64)])
def test_small_colour_networks_run(image):
    config = UNetConfig(image, 10, width=16, multipliers=(1, 2, 2), blocks=1, attention=(8,))
    x = torch.randn(2, *image)
    assert torch.isfinite(UNet(config)(x, torch.tensor([-5.0, 4.0]), torch.tensor([0, 10]))).all()


def test_the_shipped_network_is_of_one_to_two_million_parameters():
    assert 1e6 < size(pretrained.load("fashion").model.network) < 2e6


def trained_a_little(classes=3):
    """A small network whose zero-initialised layers are not zero, so that its inputs matter."""
    torch.manual_seed(0)
    network = UNet(UNetConfig((1, 28, 28), classes, width=16)).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


def test_state_clock_and_label_all_matter():
    network, x, lam = trained_a_little(), torch.randn(1, 1, 28, 28), torch.zeros(1)
    outputs = [
        network(x, lam, torch.tensor([0])),
        network(x, lam, torch.tensor([1])),
        network(x, lam + 0.3, torch.tensor([0])),
        network(x.flip(3), lam, torch.tensor([0])),
        network(x, lam),
    ]
    for i, a in enumerate(outputs):
        assert all((a - b).abs().max() > 1e-4 for b in outputs[:i])


def test_no_label_is_the_last_label():
    network, x, lam = trained_a_little(), torch.randn(2, 1, 28, 28), torch.zeros(2)
    assert torch.equal(network(x, lam), network(x, lam, torch.full((2,), 3)))


def test_samples_of_a_batch_do_not_meet():
    network, x, lam = trained_a_little(), torch.randn(4, 1, 28, 28), torch.linspace(-3, 3, 4)
    alone = torch.cat([network(x[i : i + 1], lam[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(network(x, lam), alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("change", "what"), [({"image": (1, 30, 30)}, "divisible by 4"), ({"width": 40}, "multiple of 16")])
def test_shapes_that_cannot_be_built(change, what):
    with pytest.raises(InputError, match=what):
        UNetConfig(**change)
