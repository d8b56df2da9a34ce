"""The mixture, called as networks of DDPM are, with a label t: experiments.claims.ddpm_clock_mixture:mixture.

Such a network is smooth in t and was trained at whole t. Between them the schedule's log α is linear in t, so that t(λ) has a
kink at each label. What the network means by t is the schedule's λ at the labels, and a little off it between them, or it could
not be smooth. Here it is the cubic spline through the λ of the labels.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor, nn

from diffode.model import EpsModel
from diffode.models import pretrained
from diffode.schedule import Array


class CalledWithLabels(nn.Module):
    """A network of λ, as one of t; lams: the λ of t = 0, 1, ..."""

    def __init__(self, network: nn.Module, lams: Array) -> None:
        super().__init__()
        self.network, self.lam = network, CubicSpline(np.arange(len(lams)), lams)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """The network's prediction for x (batch, *shape) at t (batch,)."""
        return self.network(x, torch.from_numpy(self.lam(t.double().cpu().numpy())).to(t), y)


def called_with_labels(name: str) -> EpsModel:
    """The model of that name, a network of λ on a DDPM table, called with t."""
    loaded = pretrained.load(name, torch.float64)
    model = loaded.model
    lams = model.schedule.lam(np.arange(model.schedule.t_noisy + 1))
    assert isinstance(model.network, nn.Module)
    network = CalledWithLabels(model.network, lams)
    return EpsModel(network, model.schedule, model.predicts, clock="t", classes=model.classes, shape=loaded.image)


mixture = called_with_labels("mixture")
