"""`compare` and `sample` of a pipeline of diffusers, each in one command, on the tiny Stable Diffusion that is saved here."""

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

from cli import main
from diffode import EpsModel, InputError, schedules
from diffode.images.datasets import to_pixels
from diffode.models import pretrained
from diffode.models.card import Card
from diffode.pipelines import places
from diffode.pipelines.captured import captured
from experiments.common import results
from experiments.comparison import compare, ground_truth, limits, report_tables, tolerance
from experiments.comparison.problem import Problem, Settings
from experiments.comparison.rows import read_rows
from experiments.metrics import similarity
from experiments.sampling import progress
from experiments.sampling.decoding import decoded
from experiments.sampling.source import Call, Source, read_prompts
from solvers import sample
from tests import pipelines

TWO = ["--prompt", "a red bicycle", "--prompt", "a blue boat"]
CELLS = ["--solvers", "ddim,dpmpp2m", "--nfe", "2,4", "--grids", "logsnr", "--n", "2"]
CALL = {"prompt": ["a red bicycle", "a blue boat"], "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with the pipeline in `sd`, whose network is smooth in t, as a trained one."""
    folder = tmp_path_factory.mktemp("here")
    pipelines.build("sd").save_pretrained(folder / "sd")
    file = folder / "sd" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["time_embedding.linear_1.weight"] *= 1e-3
    save_file(tensors, file)
    return folder


@pytest.fixture
def within(here, monkeypatch):
    monkeypatch.chdir(here)
    monkeypatch.setattr(compare, "save_curves", lambda rows, out: None)  # for time
    return here


@pytest.fixture(scope="module")
def model(here):
    """The captured pipeline."""
    return captured(places.load(str(here / "sd"))[0], **CALL)


def run(*args):
    return CliRunner().invoke(main, [*map(str, args)])


def rows_of(folder):
    return json.loads((folder / "rows.json").read_text())


@pytest.fixture(scope="module")
def compared(here):
    """The comparison of one command."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(here)
        result = run("compare", "--pipeline", "sd", *TWO, "--guidance", 3, *CELLS, "--out", "compared")
    assert result.exit_code == 0, result.output
    return here / "compared", result


def test_one_command_compares_solvers_on_a_pipeline(compared, model):
    """Errors are those of `sample` on the captured model, seed s with prompt s modulo 2, against the kept solution; SSIM is of
    its decoded images, and the cost is said before."""
    folder, result = compared
    found = rows_of(folder)
    (file,) = [f for f in (folder / "solution").glob("*.npz") if found["about"]["solution"]["nfe"] == int(np.load(f)["nfe"])]
    solution = torch.from_numpy(np.load(file)["x"])
    assert found["about"]["pipeline"]["prompts"] == CALL["prompt"]
    assert (found["about"]["shape"], found["about"]["image"]) == ([4, 8, 8], [3, 16, 16])
    for row in found["rows"]:
        x = sample(model.taking([0, 1]), solver=row["solver"], nfe=row["nfe"], seed=[0, 1], shape=(2, 4, 8, 8)).x
        error = float((x.double() - solution).square().mean().sqrt())
        assert row["rmse"] == pytest.approx(error, rel=1e-3)  # float32, and another batch
        alike = similarity.ssim().mean(model.decode(x), model.decode(solution.float()))
        assert row["ssim"] == pytest.approx(alike, abs=1e-4)
    assert "cells of 12 evaluations of a batch, and at least" in result.stderr
    assert "for decoding; what lower tolerances take is not known before" in result.stderr


def test_pictures_are_of_decoded_images(compared, model):
    folder, _ = compared
    picture = np.asarray(Image.open(folder / "pictures" / "ddim-logsnr-4.png").convert("RGB"))
    x = sample(model.taking([0, 1]), solver="ddim", nfe=4, seed=[0, 1], shape=(2, 4, 8, 8)).x
    assert np.abs(picture.astype(int) - np.concatenate([*to_pixels(model.decode(x))], 1)).max() <= 1  # of 256 levels


def test_the_page_says_what_was_compared(compared):
    text = (compared[0] / "report.html").read_text()
    for words in ("“a red bicycle”, “a blue boat”", "guidance scale 3", "SSIM", "structural similarity"):
        assert words in text
    assert "Nothing is clipped" in text


def test_it_is_resumed_and_other_weights_are_refused(compared, within, monkeypatch):
    folder, _ = compared
    before = (folder / "rows.csv").read_bytes()
    args = ["compare", "--pipeline", "sd", *TWO, "--guidance", 3, *CELLS, "--out", "compared"]
    with monkeypatch.context() as patched:
        patched.setattr(ground_truth, "accurate", lambda *_: pytest.fail("computed twice"))
        assert run(*args).exit_code == 0
    assert (folder / "rows.csv").read_bytes() == before
    file = within / "sd" / "vae" / "diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    try:
        save_file({name: 1.01 * tensor for name, tensor in load_file(file).items()}, file)
        refused = run(*args)
    finally:
        file.write_bytes(content)
    assert (refused.exit_code, "sha256" in refused.stderr) == (2, True)
    other = run(*[word.replace("boat", "bicycle") for word in map(str, args)])
    assert (other.exit_code, "pipeline" in other.stderr) == (2, True)


def test_one_command_samples_a_pipeline(within, model):
    """The PNGs are what its own decoder makes, to one level of 256; --floats are latents; the card says the call."""
    (within / "prompts.txt").write_text("a red bicycle\n\na blue boat\n")
    args = ["sample", "--pipeline", "sd", "--prompts", "prompts.txt", "--guidance", 3, "--solver", "unipc3", "--nfe", 4, "--n", 3]
    for out in ("images", "x.npz"):
        result = run(*args, "--out", out, *["--floats"] * (out == "x.npz"))
        assert result.exit_code == 0, result.output
    x = sample(model.taking([0, 1, 0]), solver="unipc3", nfe=4, seed=[0, 1, 2], shape=(3, 4, 8, 8)).x
    assert np.allclose(np.load("x.npz")["arr_0"], x, rtol=0, atol=1e-5)
    for seed, image in enumerate(to_pixels(model.decode(x))):
        written = np.asarray(Image.open(f"images/{seed:06}.png")).astype(int)
        assert np.abs(written - image).max() <= 1
    card = json.loads(Path("images.json").read_text())
    assert card["pipeline"] == {**dict.fromkeys(("negative_prompt", "height", "width")),
        "prompts": CALL["prompt"], "guidance_scale": 3.0}  # fmt: skip
    assert (card["model"], card["guidance"]) == ("sd", 1.0)


def test_a_decoder_shows_the_latents_of_a_model(within, monkeypatch):
    """Those of the pipeline's own autoencoder, for a model that has none."""
    (within / "latents.py").write_text(
        "from diffode import EpsModel, schedules\n"
        "model = EpsModel(lambda x, t: 0.5 * x, schedules.scaled_linear(), shape=(4, 8, 8))\n"
    )
    for more in ([], ["--decoder", "sd"]):
        result = run("sample", "--model", "latents:model", "--nfe", 2, "--n", 1, "--out", f"a{len(more)}.npz", *more)
        assert result.exit_code == 0, result.output
    x, image = (np.load(f"a{k}.npz")["arr_0"] for k in (0, 2))
    assert (x.dtype, x.shape, image.dtype, image.shape) == (np.float32, (1, 4, 8, 8), np.uint8, (1, 16, 16, 3))
    vae = pipelines.build("sd").vae
    with torch.no_grad():
        wanted = vae.decode(torch.from_numpy(x) / vae.config.scaling_factor).sample
    assert np.abs(image.astype(int) - to_pixels(wanted)).max() <= 1
    cards = [json.loads(Path(f"a{k}.npz.json").read_text()) for k in (0, 2)]
    assert cards[0]["sha256"] != cards[1]["sha256"]
    assert cards[1]["decoder"] == "sd"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--model", "mixture", "--pipeline", "sd"], "both given"),
        (["--prompt", "a boat"], "--prompt is of a pipeline"),
        (["--height", "16"], "--height is of a pipeline"),
        (["--pipeline", "sd"], "a StableDiffusionPipeline takes a prompt: give --prompt"),
        (["--pipeline", "sd", "--prompt", "a", "--prompts", "p.txt"], "both given"),
        (["--pipeline", "sd", "--prompt", "a", "--guidance-interval", "0,1"], "a --pipeline guides itself"),
        (["--pipeline", "sd", "--prompt", "a", "--guidance", "nan"], "--guidance"),
        (["--pipeline", "sd", "--prompt", "a", "--label", "1"], "model without labels"),
    ],
)
def test_what_a_pipeline_cannot_take_is_said(within, args, words):
    for command in (["sample", "--nfe", 2, "--out", "new.npz"], ["compare", "--out", "new"]):
        result = run(*command, "--n", 2, *args)
        said = " ".join(result.output.replace("│", " ").split())
        assert (result.exit_code, words in said) == (2, True), result.output
    assert not Path("new.npz").exists()
    assert not Path("new").exists()


def test_samples_are_equally_many_of_each_prompt():
    with pytest.raises(InputError, match="`n` is 5, and rows are the mean over 3 prompts in turn: give a multiple, as 6"):
        Settings(Source("sd", Call(("a", "b", "c"))), n=5)
    assert Settings(Source("sd", Call(("a", "b", "c"))), n=6).n == 6


def test_the_call_of_an_unconditional_pipeline():
    pipe = pipelines.build("ddim")
    assert Call().arguments(pipe) == {}
    with pytest.raises(InputError, match="a DDIMPipeline takes no prompt: leave `prompt` out"):
        Call(("a boat",)).arguments(pipe)
    with pytest.raises(InputError, match="takes no guidance_scale: leave `guidance` out"):
        Call(guidance_scale=2.0).arguments(pipe)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe"])
def test_files_of_prompts(content, tmp_path):
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(InputError, match="file of prompts"):
        read_prompts(tmp_path / "p.txt")


# --- similarity of images ---


def test_equal_images_have_ssim_1_and_unlike_ones_less():
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert similarity.ssim().mean(images, images) == pytest.approx(1, abs=1e-6)
    assert similarity.ssim().mean(images, -images) < 0
    video = images[:, None].expand(3, 2, 3, 16, 16)
    assert similarity.ssim().mean(video, video) == pytest.approx(1, abs=1e-6)


def test_lpips_is_of_its_package_and_said_where_that_is_not(monkeypatch):
    """A stand-in with the package's interface, whose distance is the mean square: torchvision is in no test."""
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(InputError, match=r"pip install 'diffode\[lpips\]'"):
        similarity.choose("lpips", (3, 64, 64), True)
    assert [each.name for each in similarity.choose("auto", (3, 64, 64), True)] == ["ssim"]

    class Network(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()
            assert (net, verbose) == ("alex", False)

        def forward(self, one, other):
            assert one.shape[1] == other.shape[1] == 3
            return (one - other).square().mean((1, 2, 3), keepdim=True)

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=Network))
    (lpips,) = similarity.choose("lpips", (1, 64, 64), True)
    grey = torch.zeros(2, 1, 64, 64)
    assert lpips.mean(grey, grey + 0.5) == pytest.approx(0.25)
    assert [each.name for each in similarity.choose("both", (3, 64, 64), False)] == ["ssim", "lpips"]


def test_what_is_no_image_has_no_similarity():
    assert similarity.choose("auto", (1, 28, 28), False) == ()
    assert similarity.choose("auto", (3, 8, 8), True) == ()
    for shape in ((3, 8, 8), (4, 64, 64), (7,)):
        with pytest.raises(InputError, match="ssim takes images of at least 11×11"):
            similarity.choose("ssim", shape, True)


@pytest.mark.parametrize("decode", [lambda x: 1 / 0, lambda x: x[:1], lambda x: None, lambda x: x[:, :, 0]])
def test_a_decode_that_fails_is_said(decode):
    model = EpsModel(lambda x, t: x, schedules.ddpm_linear(), shape=(3, 4, 4), decode=decode)
    with pytest.raises(InputError, match="`decode` of the model"):
        decoded(model, torch.zeros(2, 3, 4, 4), 2)


# --- how well the solution is known ---


@pytest.fixture
def problem_of(monkeypatch):
    """problem_of(network, only): the problem of a model that is loaded in float64, or `only` in float32."""

    def give(network, only=False):
        def load(name, dtype=torch.float32):
            if only and dtype != torch.float32:
                raise InputError("not in this dtype")
            return pretrained.Pretrained(EpsModel(network, schedules.ddpm_linear()), Card("module", (1, 2, 3)), "0")

        monkeypatch.setattr(pretrained, "load", load)
        return Problem(Settings("own", n=3))

    return give


def smooth(x, t):
    return 0.9 * torch.tanh(x)


CONTENDERS = [{"solver": name, "grid": "logsnr", "nfe": nfe, "rtol": None} for name in ("ddim", "dpmpp2m") for nfe in (5, 40)]


def test_the_tolerance_is_as_loose_as_the_contenders_allow(problem_of, tmp_path):
    """The solution's true error, by one at 1e-11, is 10 times smaller than that of the best contender; at 1e-4 it suffices."""
    problem = problem_of(smooth)
    found = tolerance.find_tolerance(problem, CONTENDERS, tmp_path)
    assert found in tolerance.TOLERANCES[:3]
    solution, exact = (ground_truth.find_solution(problem, tmp_path, each) for each in (found, 1e-11))
    best = min(ground_truth.measure_cell(problem, exact, cell)["rmse"] for cell in CONTENDERS)
    assert 10 * exact.errors(solution.x)["rmse"] <= best


def test_where_nothing_compares_the_tolerance_falls_until_the_network_is_not_even(problem_of, tmp_path):
    """In float32 near 1e-7, where the solution's own error no longer falls, and no evaluation is wasted below."""
    found = tolerance.find_tolerance(problem_of(smooth, only=True), [], tmp_path)
    assert 1e-9 <= found <= 1e-5


def test_rounding_is_measured_and_no_error_below_it_is_claimed(problem_of, tmp_path):
    """The distance from the solution of the same network in float64 is within ten times the rounding that is measured; a
    contender that is closer than the limit has the limit, one that is not has its own error."""
    exact = ground_truth.find_solution(problem_of(smooth), tmp_path / "double", 1e-10)
    assert "limit" not in exact.about
    single = problem_of(smooth, only=True)
    solution = ground_truth.find_solution(single, tmp_path / "single", 1e-6)
    known = max(solution.about["rmse"], solution.about["rounding"]["rmse"])
    assert solution.about["limit"]["rmse"] == pytest.approx(10 * known)
    assert 0 < exact.errors(solution.x)["rmse"] <= 10 * known
    assert solution.errors(solution.x) == solution.about["limit"]
    coarse = single.run(single.prepare("ddim", "logsnr", 5)).x
    assert solution.errors(coarse)["rmse"] == pytest.approx(exact.errors(coarse)["rmse"], rel=0.01)


def test_rows_at_the_limit_are_marked_and_not_refused():
    about = {"solution": {"method": "DOP853", "tolerance": 1e-5, "nfe": 90, "rmse": 1e-3, "median": 1e-3,
                          "rounding": {"rmse": 2e-3}, "limit": {"rmse": 2e-2, "median": 1e-2}}}  # fmt: skip
    row = {"grid": "logsnr", "rtol": None, "calls": 5, "spent": 5, "nfe": 5, "seconds": 1.0}
    rows = [{**row, "solver": "a", "rmse": 2e-2, "median": 1e-2}, {**row, "solver": "b", "rmse": 0.5, "median": 0.4}]
    limits.check_solution(about, rows)
    with pytest.raises(InputError, match="auto"):
        limits.check_solution({"solution": {**about["solution"], "limit": {}, "rmse": 1e-2}}, rows)
    assert limits.limit_of(about, rows).startswith("a on logsnr at 5 is as good as can be known: errors below 0.02")
    assert limits.limit_of(about, rows[1:]) == ""
    texts = [line.texts for line in report_tables.table_rows(about, rows)]
    assert ("≤ 0.0200" in texts[0], "0.500" in texts[1]) == (True, True)
    assert "rounding of its network" in report_tables.reference_accuracy(about, rows)


# --- the cost of sampling ---


def test_a_long_run_says_what_it_takes(monkeypatch, capsys):
    """After two evaluations of ten seconds: two batches of five are 100 s."""
    times = iter([0.0, 10.0])
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(perf_counter=lambda: next(times)))
    job = types.SimpleNamespace(solver="ddim", lams=[-1.0, 1.0], seeds=[0, 1, 2], batch=2, count="3 images", floats=False)
    plan = types.SimpleNamespace(nfe=5)
    loaded = types.SimpleNamespace(model=types.SimpleNamespace(decode=len))
    task = types.SimpleNamespace(job=job, prepared=types.SimpleNamespace(plan=plan), loaded=loaded)
    with progress.progress(task) as watch:
        watch(0, -1.0)
        watch(0, 0.0)
        watch(2, 0.0)
    text = "ddim: 3 images take about 1e+02 s, and the time to decode them: 2 batches of 5 evaluations, by one that took 10 s"
    assert capsys.readouterr().err.splitlines() == [text]
    assert progress.cost(task, 3, 1.0) == ""


def test_results_are_read_as_they_were_written(compared):
    about, rows = results.read(compared[0] / "rows")
    assert about["solution"]["limit"]["rmse"] == pytest.approx(10 * about["solution"]["rmse"])
    assert min(row["rmse"] for row in rows) >= about["solution"]["limit"]["rmse"]


@pytest.mark.parametrize(
    "damage",
    [
        {"image": 5},
        {"pipeline": ["a boat"]},
        {"pipeline": {"prompts": 3}},
        {"decoder": 1},
        {"limit": 1},
        {"rounding": {"rmse": "x"}},
    ],
)
def test_rows_that_are_damaged_are_refused(compared, damage, tmp_path):
    table = rows_of(compared[0])
    place = table["about"]["solution"] if damage.keys() & {"limit", "rounding"} else table["about"]
    place.update(damage)
    (tmp_path / "rows.json").write_text(json.dumps(table))
    with pytest.raises(InputError, match="is of no comparison"):
        read_rows(tmp_path)
