"""The benchmarks run, and what they compare is comparable."""

import csv
import itertools
import json
import time
import warnings
from importlib import import_module

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks import gpu, peer_packages
from diffode import InputError, schedules
from diffode.noise import SeededNoise
from solvers import SOLVERS, run
from solvers.hooks import Hooks
from solvers.registry import find


def bench(name, *args):
    """What it prints."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # which diffusers gives
        done = CliRunner().invoke(import_module(f"benchmarks.{name}").main, args)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_overhead_runs(tmp_path):
    text = bench("overhead", "--fast", "--repeats", "1", "--device", "cpu", "--out", str(tmp_path / "overhead"))
    result = json.loads((tmp_path / "overhead.json").read_text())
    assert {row["solver"] for row in result["speed"]} == {"ddim", "dpm2", "dpm3", "dpmpp2m", "unipc3"}
    assert result["peers"][0]["sampler"] == "diffode"
    assert {row["sampler"] for row in result["peers"]} <= {"diffode", "diffusers", "k-diffusion"}
    assert text.strip() in (tmp_path / "overhead.md").read_text()


def test_what_is_for_a_gpu_runs_in_small_on_the_cpu(tmp_path):
    """Every part of it, with no row that is not ok; the page is made from the JSON."""
    before = torch.backends.cudnn.allow_tf32  # the one setting that it changes and that is not so by default
    bench("gpu", "--fast", "--commit", "abc1234", "--out", str(tmp_path / "gpu"))
    torch.backends.cudnn.allow_tf32 = before
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["commit"] == "abc1234"
    parts = {name: part["rows"] for name, part in result["parts"].items()}
    assert set(parts) == {part.name for part in gpu.PARTS}
    assert all(row["ok"] for rows in parts.values() for row in rows)
    assert all(rows for name, rows in parts.items() if name != "compiled")  # which needs a GPU
    assert bench("gpu", "--render", str(tmp_path / "gpu.json")) == (tmp_path / "gpu.md").read_text()


def test_a_part_that_fails_or_takes_too_long_is_a_row():
    def fails(device, fast):
        """Of this part."""
        yield {"ok": True}
        raise RuntimeError("no such kernel")

    def sleeps(device, fast):
        """Of this part."""
        time.sleep(10)
        yield {}

    rows = gpu.measured(gpu.Part("a", "A", fails), "cpu", True, 10)["rows"]
    assert rows[0] == {"ok": True}
    assert not rows[1]["ok"]
    assert "no such kernel" in rows[1]["error"]
    assert "stopped" in gpu.measured(gpu.Part("b", "B", sleeps), "cpu", True, 0.2)["rows"][0]["error"]


@pytest.fixture(scope="module")
def accuracy(tmp_path_factory):
    """(the JSON, the rows of the CSV, the size of the picture)."""
    pytest.importorskip("diffusers")
    pytest.importorskip("matplotlib")
    out = tmp_path_factory.mktemp("accuracy") / "accuracy"
    bench("accuracy", "--fast", "--out", str(out))
    with open(out.with_suffix(".csv"), encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return json.loads(out.with_suffix(".json").read_text()), rows, out.with_suffix(".png").stat().st_size


def test_accuracy_has_every_solver_at_every_cost_it_can_spend(accuracy):
    result, rows, size = accuracy
    assert len(rows) == result["rows"]
    assert size > 10_000
    spent = {nfe: {row["solver"] for row in rows if row["nfe"] == str(nfe)} for nfe in (5, 10)}
    ode = {name for name, entry in SOLVERS.items() if entry.nfe_per_step and not entry.stochastic}
    assert {name for name in ode if 10 % find(name).nfe_per_step == 0} - {"pndm"} <= spent[10]
    assert not {"dpm2", "heun", "dpm3"} & spent[5]


def test_where_the_tables_are_the_same_the_errors_are(accuracy):
    """To 1e-6: the same numbers in another order. So a bad solver of ours cannot hide behind a bad peer, nor the reverse."""
    _, rows, _ = accuracy
    ours = {(row["solver"], row["nfe"]): float(row["error"]) for row in rows if row["library"] == "diffode"}
    pairs = [row for row in rows if row["library"] == "diffusers" and row["same_table"] == "True"]
    assert len(pairs) > 40
    for row in pairs:
        assert float(row["error"]) == pytest.approx(ours[row["peer_of"], row["nfe"]], rel=2e-6), row["solver"]


K_DIFFUSION = [
    ("sample_euler", {}, "euler", {}),
    ("sample_euler_ancestral", {"eta": 1.0}, "euler-ancestral", {}),
    ("sample_euler_ancestral", {"eta": 0.4}, "euler-ancestral", {"eta": 0.4}),
    ("sample_heun", {}, "heun", {}),
    ("sample_dpm_2", {}, "kdpm2", {}),
    ("sample_lms", {}, "lms", {}),
    ("sample_dpmpp_2s_ancestral", {"eta": 0.0}, "dpmpp2s", {}),
    ("sample_dpmpp_2m", {}, "dpmpp2m", {}),
    ("sample_dpmpp_2m_sde", {"eta": 1.0, "solver_type": "midpoint"}, "sde-dpmpp2m", {}),
    ("sample_dpmpp_2m_sde", {"eta": 0.5, "solver_type": "heun"}, "sde-dpmpp2m", {"eta": 0.5, "variant": "taylor"}),
    ("sample_dpmpp_3m_sde", {"eta": 1.0}, "sde-dpmpp3m-published", {}),
    ("sample_dpmpp_3m_sde", {"eta": 0.5}, "sde-dpmpp3m-published", {"eta": 0.5}),
]


@pytest.mark.parametrize(("function", "told", "name", "options"), K_DIFFUSION)
def test_k_diffusion_is_the_same(function, told, name, options, toy):
    """With the same noise, in x/α. 1e-9: as in diffusers, what is left is their subtractions."""
    try:
        sample = getattr(peer_packages.k_diffusion(), function)
    except InputError as error:
        pytest.skip(str(error))
    schedule = schedules.ddpm_linear()
    model, noise, draws = toy("vp", schedule), SeededNoise(range(4)), itertools.count(1)
    lams = np.linspace(-4, 4, 11)
    x = noise(0, torch.empty(4, 1, 2, 3, dtype=torch.float64)) * float(schedule.sigma(-4.0))

    def denoise(x, sigma_bar):
        lam = -float(sigma_bar[0].log())
        return model(x * float(schedule.alpha(lam)), lam, "data")

    if "noise_sampler" in sample.__wrapped__.__code__.co_varnames:
        told = {**told, "noise_sampler": lambda *sigmas: noise(next(draws), x)}
    theirs = sample(denoise, x / float(schedule.alpha(-4.0)), torch.exp(-torch.from_numpy(lams)), disable=True, **told)
    expected = run(find(name).plan(lams, schedule, **options), model, x, Hooks(noise=noise)).x
    torch.testing.assert_close(theirs * float(schedule.alpha(4.0)), expected, rtol=0, atol=1e-9)


def test_a_file_that_is_not_the_authors_is_refused(tmp_path):
    (tmp_path / "other.py").write_text("x = 1\n")
    with pytest.raises(InputError, match="no NoiseScheduleVP"):
        peer_packages.dpm_solver(tmp_path / "other.py")
