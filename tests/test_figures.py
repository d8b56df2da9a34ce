"""Pictures of numbers show the numbers."""

import sys

import numpy as np
import pytest
from PIL import Image

from diffode import InputError
from experiments.common import figures
from experiments.sampling.jobs import make_plan
from solvers import Budget

PLANS = {
    "unipc3": {"nfe": 8},
    "dpm2": {"nfe": 4},
    "ddim": {"nfe": 1},
    "ddpm": {"nfe": 50},
    "heun-churn": {"nfe": 9, "denoise": True},
    "dpmpp3m+unic": {"nfe": 50},
}


@pytest.mark.parametrize("solver", PLANS)
def test_a_heat_map_has_a_cell_for_each_number_and_a_name_for_each_stage(solver):
    plan = make_plan(solver, budget=Budget(**PLANS[solver]))
    axes = figures._figure(plan).axes[0]
    shown = axes.collections[0].get_array()
    assert (shown.filled(0) == plan.matrix()).all()
    used = [[True, stage.noise != 0, *(j in stage.c for j in range(plan.nfe))] for stage in plan.stages]
    assert (~shown.mask == used).all()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["x", "noise", *(f"m{j}" for j in range(plan.nfe))]
    for tick, stage in zip(axes.get_yticklabels(), plan.stages, strict=True):
        lam, *flags = tick.get_text().replace("−", "-").split()
        assert lam == f"{stage.lam:+.3f}"
        assert flags == ["E" if stage.evaluate else "·", "K" if stage.commit else "·"]
    assert axes.get_title(loc="left") == str(plan).splitlines()[0]
    numbers = [float(text.get_text().replace("−", "-")) for text in axes.texts if text.get_text()[-1].isdigit()]
    if plan.nfe <= figures.MOST_NUMBERS:
        np.testing.assert_allclose(numbers, plan.matrix()[np.array(used)], rtol=0.006)
    else:
        assert numbers == []


def test_signs_are_colours():
    """Red is positive, blue negative, and a number and its opposite are as far from white."""
    mesh = figures._figure(make_plan("unipc3", budget=Budget(8))).axes[0].collections[0]
    for number in (1e-3, 0.1, 1.0):
        (red, _, blue, _), (other_red, _, other_blue, _) = mesh.to_rgba([number, -number])
        assert red > blue
        assert other_red < other_blue
        assert abs(mesh.norm(number) + mesh.norm(-number) - 1) < 1e-12


@pytest.mark.parametrize(("steps", "most"), [(4, 1000), (50, 2000), pytest.param(1000, 4500, marks=pytest.mark.slow)])
def test_a_heat_map_is_a_png_of_moderate_size(tmp_path, steps, most):
    figures.heatmap(make_plan("ddpm", budget=Budget(steps=steps)), tmp_path / "plan.png")
    with Image.open(tmp_path / "plan.png") as image:
        assert image.format == "PNG"
        assert max(image.size) < most
        assert np.count_nonzero(image.convert("L").histogram()) > 20
    assert [path.name for path in tmp_path.iterdir()] == ["plan.png"]


def test_labels_stay_apart_however_many():
    """Of 1,000 stages as many are named as have room."""
    figure = figures._figure(make_plan("ddpm", budget=Budget(steps=1000)))
    ticks = figure.axes[0].get_yticks()
    inches = np.diff(ticks).min() * figure.get_size_inches()[1] / 1001
    assert 0.1 < inches < 0.2


def test_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'diffode\[plots\]'"):
        figures.heatmap(make_plan("ddim", budget=Budget(2)), tmp_path / "plan.png")
    assert list(tmp_path.iterdir()) == []


def cells(sheet, rows, columns, size):
    """The middle pixel of each cell of a sheet of images of one grey."""
    array = np.asarray(sheet)[figures.HEADER :]
    height, width = array.shape[0] / rows, array.shape[1] / columns
    return np.array([[array[int((r + 0.5) * height), int((c + 0.5) * width)] for c in range(columns)] for r in range(rows)])


def greys(images, states):
    """Images of one grey each, (images, states, 1, 8, 8), from −1 to 1 along the states, other in each image."""
    along = np.linspace(-1, 1, states)[None] * np.linspace(0.5, 1, images)[:, None]
    return np.broadcast_to(along[:, :, None, None, None], (images, states, 1, 8, 8)).astype(np.float32)


@pytest.mark.parametrize(("images", "states"), [(1, 2), (3, 12), (12, 40)])
def test_a_trajectory_is_shown_from_first_to_last(images, states):
    x = greys(images, states)
    sheet = figures.trajectory(np.linspace(-5, 5, states), x)
    rows, columns = min(images, 8), min(states, 12)
    shown = cells(sheet, rows, columns, 8)
    chosen = np.linspace(0, states - 1, columns).round().astype(int)
    expected = np.round((x[:rows, chosen, 0, 0, 0] + 1) * 127.5)
    assert abs(shown - expected).max() <= 1


def test_a_state_is_scaled_to_be_seen_and_never_enlarged():
    """Noise of σ = 80 is grey noise, not black and white; what is within [−1, 1] is as it is."""
    rng = np.random.default_rng(0)
    x = np.stack([80 * rng.standard_normal((1, 32, 32)), 0.2 * rng.uniform(-1, 1, (1, 32, 32))])[None].astype(np.float32)
    sheet = np.asarray(figures.trajectory(np.array([-4.0, 4.0]), x))[figures.HEADER :]
    loud, quiet = sheet[:, : sheet.shape[1] // 2], sheet[4:-4, sheet.shape[1] // 2 + 4 : -4]
    assert ((loud > 20) & (loud < 235)).mean() > 0.85  # the rest is lines between images
    assert np.ptp(quiet[quiet < 255]) < 60


def test_x0_has_a_row_below_its_state_and_is_grey_where_there_is_none():
    x = greys(2, 5)
    x0 = -x.copy()
    x0[:, 0] = np.nan
    sheet = figures.trajectory(np.linspace(-5, 5, 5), x, x0)
    pairs = np.asarray(sheet)[figures.HEADER :]
    half = (pairs.shape[0] - figures.GAP) // 2
    for i, pair in enumerate((pairs[:half], pairs[half + figures.GAP :])):
        state, data = (pair[int(half * place), int(pairs.shape[1] * 0.7)] for place in (0.25, 0.75))
        assert abs(int(state) - round((x[i, 3, 0, 0, 0] + 1) * 127.5)) <= 1
        assert abs(int(data) - round((1 - x[i, 3, 0, 0, 0]) * 127.5)) <= 1
        assert pair[int(half * 0.75), int(pairs.shape[1] * 0.1)] in (127, 128)


def test_colours_stay_colours():
    x = np.zeros((1, 3, 3, 8, 8), np.float32)
    x[:, :, 0] = 1
    sheet = figures.trajectory(np.arange(3.0), x)
    assert sheet.mode == "RGB"
    assert sheet.getpixel((sheet.width // 2, figures.HEADER + 40)) == (255, 128, 128)
