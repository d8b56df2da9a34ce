"""captured: the model of a pipeline gives what the pipeline gives, for every family, or is refused in a sentence."""

import pytest
import torch

from diffode import captured
from tests import pipelines

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # diffusers' own


@pytest.mark.parametrize("name", pipelines.FAMILIES)
def test_what_reaches_the_scheduler_is_what_the_model_gives(name):
    """Which `captured` itself requires at three points, for two batches, or raises."""
    model = captured(pipelines.build(name), **pipelines.call(name))
    lam = float(model.schedule.lam_max)
    x = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(0))
    assert torch.isfinite(model(x, lam, model.predicts)).all()
