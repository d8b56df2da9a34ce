"""A job decides its images: not its batches, its interruptions, or who else is at work."""

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffode import EpsModel, InputError
from diffode.images import datasets
from diffode.images.datasets import to_pixels
from diffode.models import pretrained
from diffode.noise import SeededNoise
from experiments.sampling import generate, init_images, jobs
from experiments.sampling.jobs import Job, choose_labels
from experiments.sampling.outputs import Outputs
from experiments.sampling.recipe import PARTS, Recipe, choose_device, flat, nested
from experiments.sampling.work import Work
from solvers import Budget, Plan, find, sample

pytestmark = pytest.mark.usefixtures("small_mixture")
NFE = 3


def draw(job, loaded, out, **how):
    """The images of a job as its card holds it."""
    return generate.generate(jobs.restore(job, loaded, find(job.solver)), out, **how)


@pytest.fixture(scope="module")
def mixture():
    return pretrained.load("mixture")


@pytest.fixture
def make(mixture):
    """make(**changes): a job of the mixture."""

    def job(solver="ddim", nfe=NFE, grid=None, denoise=False, options=None, **rest):
        rest = nested({"seeds": list(range(10)), "batch": 4, **rest})
        rest.setdefault("labels", choose_labels(None, mixture.classes, rest["seeds"]))
        budget = Budget(nfe, None, grid, denoise)
        return jobs.prepare_job(mixture, "mixture", solver, budget, options=(options or {}).items(), **rest).job

    return job


@pytest.fixture
def run(mixture, tmp_path):
    """run(job, name, ...): its pixels, from an .npz in tmp_path."""

    def go(job, name="a.npz", **options):
        loaded = pretrained.load("mixture", torch.float64) if job.recipe.dtype == "float64" else mixture
        draw(job, loaded, tmp_path / name, **options)
        return np.load(tmp_path / name)["arr_0"]

    return go


def interrupt_after(evaluations):
    seen = []

    def watch(done, lam):
        seen.append(lam)
        if len(seen) == evaluations:
            raise KeyboardInterrupt

    return watch


def interrupted(*args):
    raise KeyboardInterrupt


@pytest.mark.parametrize("n", [1, 3, 4, 5, 9])
@pytest.mark.parametrize("name", ["a.npz", "a"])
def test_exactly_n_images(make, mixture, tmp_path, n, name):
    draw(make(seeds=list(range(n))), mixture, tmp_path / name)
    if name == "a":
        assert sorted(os.listdir(tmp_path / "a")) == [f"{seed:06}.png" for seed in range(n)]
    else:
        arrays = np.load(tmp_path / name)
        assert arrays["arr_0"].shape == (n, 28, 28, 1)
        assert arrays["arr_1"].tolist() == list(range(n))
    assert sorted(os.listdir(tmp_path)) == [name, f"{name}.json"]


@pytest.mark.parametrize(
    ("solver", "options"),
    [("ddim", {}), ("ddim", {"eta": 0.7}), ("ddpm", {"variance": "large"}), ("dpmpp2m", {}), ("rk4", {})],
    ids=str,
)
def test_an_image_does_not_depend_on_its_batch(make, run, solver, options):
    job = make(solver, nfe=4, options=options)
    one, *others = (run(dataclasses.replace(job, batch=batch), f"{batch}.npz") for batch in (1, 7, 64))
    assert len(np.unique(one.reshape(10, -1), axis=0)) == 10
    for other in others:
        assert (one == other).all()


@pytest.mark.parametrize("options", [{}, {"eta": 1.0}], ids=str)
def test_a_seed_is_an_image(make, run, options):
    whole = run(make(options=options))
    assert (run(make(seeds=[3, 4, 5, 6], options=options), "b.npz") == whole[3:7]).all()
    assert (run(make(seeds=[8, 2], options=options), "c.npz") == whole[[8, 2]]).all()


def test_labels_depend_on_the_seed_alone():
    classes = ("T-shirt", "bag", "coat")
    whole = choose_labels("bag,0", classes, list(range(100)))
    assert set(whole) == {0, 1}
    for seeds in ([5], [99, 3, 4], list(range(40, 60))):
        assert choose_labels("bag,0", classes, seeds) == [whole[seed] for seed in seeds]
    assert choose_labels(None, classes, [0, 1, 2, 3]) == [0, 1, 2, 0]
    assert choose_labels(" BAG , t-SHIRT ", classes, [0, 1]) == [1, 0]
    assert choose_labels("none", classes, [0, 1]) is None
    assert choose_labels(None, (), [0, 1]) is None


@pytest.mark.parametrize(
    ("wanted", "classes"),
    [("3", ("a", "b")), ("-1", ("a", "b")), ("c", ("a", "b")), ("a,", ("a", "b")), ("", ("a", "b")), ("0", ())],
)
def test_labels_that_cannot_be(wanted, classes):
    with pytest.raises(InputError, match="label"):
        choose_labels(wanted, classes, [0])


@pytest.mark.parametrize("name", ["a.npz", "a.png", "a"])
@pytest.mark.parametrize("after", [1, NFE, NFE + 1, 2 * NFE + 1])
def test_an_interrupted_run_goes_on_where_it_was(make, mixture, tmp_path, name, after):
    job, out, whole = make(options={"eta": 0.5}), tmp_path / name, tmp_path / "whole" / name
    with pytest.raises(KeyboardInterrupt):
        draw(job, mixture, out, watch=interrupt_after(after))
    assert not [file for file in os.listdir(tmp_path) if not file.startswith(".")]
    done = (after - 1) // NFE
    calls = []
    report = draw(job, mixture, out, watch=lambda done, lam: calls.append(lam))
    assert report.resumed == done
    assert len(calls) == NFE * (3 - done)
    draw(job, mixture, whole)
    files = sorted(whole.iterdir()) if whole.is_dir() else [whole]
    for file in files:
        assert (out / file.name if out.is_dir() else out).read_bytes() == file.read_bytes()
    assert sorted(os.listdir(tmp_path)) == sorted([name, f"{name}.json", "whole"])


@pytest.mark.parametrize("after", [1, 30])
def test_what_each_image_took_is_kept_when_a_run_is_interrupted(make, mixture, tmp_path, after):
    """Of an adaptive pair, whose images differ in it."""
    job = make("dpm23", nfe=None, batch=3, seeds=list(range(8)), options={"rtol": 0.05, "atol": 0.05, "max_nfe": 25})
    whole = draw(job, mixture, tmp_path / "whole.npz")
    with pytest.raises(KeyboardInterrupt):
        draw(job, mixture, tmp_path / "a.npz", watch=interrupt_after(after))
    report = draw(job, mixture, tmp_path / "a.npz")
    assert report.resumed == (after > 25)
    cards = [strict(tmp_path / f"{name}.npz.json") for name in ("a", "whole")]
    for name in ("nfe_of_each", "accepted", "rejected", "lam_reached"):
        assert cards[0][name] == cards[1][name]
        assert len(cards[0][name]) == 8
    assert report.warnings == whole.warnings != ()
    assert report.nfe == np.mean(cards[0]["nfe_of_each"])


def test_a_sample_that_reached_the_end_did_not_stop(make, mixture, tmp_path):
    """The warning counts those that did, and says where."""
    options = {"rtol": 0.05, "atol": 0.05}
    draw(make("dpm23", nfe=None, seeds=list(range(8)), options=options), mixture, tmp_path / "free.npz")
    least = min(strict(tmp_path / "free.npz.json")["nfe_of_each"])
    job = make("dpm23", nfe=None, seeds=list(range(8)), options={**options, "max_nfe": least})
    (warning,) = draw(job, mixture, tmp_path / "a.npz").warnings
    lams = strict(tmp_path / "a.npz.json")["lam_reached"]
    stopped = [lam for lam in lams if lam < job.grid[-1]]
    assert 0 < len(stopped) < 8
    assert warning.startswith(f"{len(stopped)} of 8 images stopped at λ = {min(stopped):.6g}")


def test_the_plan_that_was_taken_outlives_an_interruption(make, mixture, tmp_path, monkeypatch):
    """Between the batch and the output; and it is there for who asks for it only then."""
    job = make("dpm12", nfe=None, seeds=[3], options={"rtol": 0.1, "atol": 0.1})
    with monkeypatch.context() as patch:
        patch.setattr(Outputs, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            draw(job, mixture, tmp_path / "a.npz")
    report = draw(job, mixture, tmp_path / "a.npz", save_plan=tmp_path / "plan.json")
    assert report.resumed == 1
    assert Plan.load(tmp_path / "plan.json").nfe == report.nfe
    assert sorted(os.listdir(tmp_path)) == ["a.npz", "a.npz.json", "plan.json"]


@pytest.mark.parametrize("solver", ["ddim", "heun-churn", "unipc2", "rk4"])
def test_a_trajectory_outlives_an_interruption(make, mixture, tmp_path, monkeypatch, solver):
    """Its states are those of the batch, which is not sampled again."""
    job = make(solver, nfe=8, batch=10, trajectory=True)
    draw(job, mixture, tmp_path / "whole.png")
    with monkeypatch.context() as patch:
        patch.setattr(Outputs, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            draw(job, mixture, tmp_path / "a.png")
    calls = []
    assert draw(job, mixture, tmp_path / "a.png", watch=lambda done, lam: calls.append(lam)).resumed == 1
    assert calls == []
    one, two = (np.load(tmp_path / f"{name}-trajectory.npz") for name in ("a", "whole"))
    assert set(one) == set(two) == {"lam", "x", *(["x0"] if solver != "rk4" else [])}
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    assert (tmp_path / "a-trajectory.png").read_bytes() == (tmp_path / "whole-trajectory.png").read_bytes()


def test_a_trajectory_begins_with_noise_and_ends_with_the_image(make, mixture, run, tmp_path):
    """And x̂0 is that of the step: for ddim the state is α x̂0 + σ ε with the ε that x̂0 leaves of the state before."""
    job = make(nfe=6, batch=10, trajectory=True)
    pixels = run(job)
    states = np.load(tmp_path / "a-trajectory.npz")
    assert states["lam"].tolist() == job.grid
    noise = SeededNoise(job.seeds)(0, torch.empty(10, 1, 28, 28))
    schedule = mixture.model.schedule
    alpha, sigma = (f(states["lam"])[:, None, None, None] for f in (schedule.alpha, schedule.sigma))
    np.testing.assert_allclose(states["x"][:, 0], sigma[0] * noise.numpy(), rtol=0, atol=1e-6)
    assert (to_pixels(torch.from_numpy(states["x"][:, -1])) == pixels).all()
    for i in range(1, 7):
        eps = (states["x"][:, i - 1] - alpha[i - 1] * states["x0"][:, i]) / sigma[i - 1]
        np.testing.assert_allclose(states["x"][:, i], alpha[i] * states["x0"][:, i] + sigma[i] * eps, rtol=0, atol=1e-4)


def test_a_trajectory_leaves_the_images_alone(make, run):
    assert (run(make(batch=10, trajectory=True)) == run(make(batch=10), "b.npz")).all()


@pytest.fixture
def plan_file(mixture, tmp_path, monkeypatch):
    """plan_file(solver, nfe): writes plan.json, in the folder that the test runs in."""
    monkeypatch.chdir(tmp_path)

    def write(solver, nfe, name="plan.json", denoise=False, **more):
        jobs.make_plan(solver, budget=Budget(nfe, denoise=denoise), **more).save(name)

    return write


@pytest.mark.parametrize("solver", ["ddim", "dpmpp2m+unic", "heun-churn", "dpm3"])
@pytest.mark.parametrize("denoise", [False, True])
def test_a_plan_of_a_file_is_the_solver_that_it_was(make, run, plan_file, solver, denoise):
    """Also where its grid goes back and forth, as that of heun-churn does, and where it ends at λ = +∞."""
    nfe = {"heun-churn": 6 + denoise, "dpm3": 6 + denoise}.get(solver, 6)
    plan_file(solver, nfe, denoise=denoise)
    job = make("plan.json", nfe=None)
    assert job.denoise == denoise
    assert (run(job) == run(make(solver, nfe=nfe, denoise=denoise), "b.npz")).all()


def test_a_plan_of_a_file_has_a_trajectory(make, run, plan_file, tmp_path):
    """With every state that it commits: those that heun-churn makes noisier among them."""
    plan_file("heun-churn", 6)
    run(make("plan.json", nfe=None, batch=10, trajectory=True))
    run(make("heun-churn", nfe=6, batch=10, trajectory=True), "b.npz")
    one, two = (np.load(tmp_path / f"{name}-trajectory.npz") for name in "ab")
    assert one["lam"].tolist() == Plan.load("plan.json").grid
    assert (np.diff(one["lam"]) < 0).any()
    for name in ("lam", "x", "x0"):
        np.testing.assert_array_equal(one[name], two[name])


def test_another_plan_of_the_same_name_is_another_job(make, mixture, plan_file, tmp_path):
    plan_file("ddim", 4)
    job = make("plan.json", nfe=None)
    (tmp_path / "plan.json").write_text((tmp_path / "plan.json").read_text().replace("\n", " "))
    assert make("plan.json", nfe=None) == job  # the same numbers, written otherwise
    plan_file("ddim", 4, options=[("eta", 1e-3)])
    other = make("plan.json", nfe=None)
    assert other.digest != job.digest
    assert dataclasses.replace(other, plan=job.plan) == job  # the table alone tells them apart
    with pytest.raises(InputError, match=r"plan\.json is not the plan that it was"):
        draw(job, mixture, tmp_path / "a.npz")
    assert sorted(os.listdir(tmp_path)) == ["plan.json"]


@pytest.mark.parametrize("solver", ["evil:solver", "evil:solver+unic", "evil.json", "/dev/zero.json"])
def test_a_solver_that_a_card_names_is_neither_imported_nor_opened(make, mixture, solver):
    with pytest.raises(InputError, match="neither imported nor opened"):
        jobs.restore(dataclasses.replace(make(), solver=solver), mixture)


@pytest.mark.parametrize("change", ["rewritten", "gone"])
def test_a_plan_is_read_once(make, run, plan_file, tmp_path, change):
    """All batches are of the plan that the job was made with, whatever becomes of the file meanwhile."""
    plan_file("ddim", 4)
    job = make("plan.json", nfe=None)
    whole = run(job, "whole.npz")

    def meddle(done, lam):
        if change == "gone":
            (tmp_path / "plan.json").unlink(missing_ok=True)
        else:
            plan_file("ddpm", 4)

    assert (run(job, watch=meddle) == whole).all()


def test_a_network_of_whole_labels_is_given_them(mixture, tmp_path):
    """The grid of the job, and the plan that is kept, are those that are run: snapped."""
    seen = []

    def network(x, t):
        seen.extend(t.tolist())
        return 0.1 * x

    model = EpsModel(network, mixture.model.schedule, clock="label")
    loaded = dataclasses.replace(mixture, model=model)
    job = jobs.prepare_job(loaded, "mine", "ddim", Budget(7), seeds=[0], labels=None, batch=1).job
    draw(job, loaded, tmp_path / "a.npz", save_plan=tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json").grid == job.grid
    np.testing.assert_allclose(model.schedule.t(np.array(job.grid[:-1])), seen, rtol=0, atol=1e-6)


def test_another_job_of_the_same_name_is_unaffected(make, mixture, run, tmp_path):
    job, other = make(), make(options={"eta": 1.0})
    with pytest.raises(KeyboardInterrupt):
        draw(job, mixture, tmp_path / "a.npz", watch=interrupt_after(NFE + 1))
    assert (run(other, "a.npz") == run(other, "alone.npz")).all()
    assert draw(job, mixture, tmp_path / "a.npz", overwrite=True).resumed == 1
    assert (np.load(tmp_path / "a.npz")["arr_0"] == run(job, "job.npz")).all()


CHANGES = {
    "model": "other.safetensors",
    "pipeline": {"prompts": ["a boat"]},
    "decoder": "vae",
    "sha256": "0" * 64,
    "solver": "euler",
    "grid": [-5.0, 0.0, 4.0],
    "denoise": True,
    "seeds": [1],
    "labels": None,
    "batch": 5,
    "guidance": 2.0,
    "guidance_interval": [-1.0, 2.0],
    "guidance_rescale": 0.5,
    "clip": True,
    "threshold": 0.9,
    "dtype": "float64",
    "device": "cuda",
    "options": {"eta": 0.5},
    "plan": "0" * 64,
    "trajectory": True,
    "floats": True,
    "init": "0" * 64,
    "noise": "brownian",
}


@pytest.mark.parametrize(
    "field",
    [field.name for kind in (Job, *PARTS.values()) for field in dataclasses.fields(kind) if field.name not in PARTS],
)
def test_whatever_decides_the_images_is_in_the_digest(make, field):
    job = make(guidance=3.0) if field.startswith("guidance") else make()
    assert Job(**nested({**flat(job), field: CHANGES[field]})).digest != job.digest


def test_what_older_cards_do_not_have_changes_no_digest(make):
    """A job that begins with noise, as all did, is known by what was known of it."""
    job = make()
    older = {name: value for name, value in flat(job).items() if name not in jobs.LATER}
    assert job.as_json() == older
    assert Job(**nested(older)) == job
    assert Job(**nested(older)).digest == job.digest


@pytest.fixture
def images(tmp_path):
    """Three images, in an .npz, a folder and one alone."""
    pixels = datasets.packaged().pixels[:3]
    np.savez(tmp_path / "images.npz", pixels)
    (tmp_path / "images").mkdir()
    for i, one in enumerate(pixels):
        Image.fromarray(one[..., 0]).save(tmp_path / "images" / f"{i}.png")
    return tmp_path / "images.npz"


@pytest.mark.parametrize("budget", [Budget(nfe=5, strength=0.6), Budget(nfe=4, from_lam=-0.3)])
def test_images_are_begun_with_in_turn_and_known_by_their_sha256(make, mixture, images, tmp_path, budget):
    """Image s modulo 3 for seed s, in any batch, resumed or not; card and file are enough to make it again."""
    init = init_images.read(str(images), mixture.image)
    seeds = [7, 0, 4, 5, 2]
    task = jobs.prepare_job(
        mixture, "mixture", "dpmpp2m", budget, seeds=seeds, labels=[0] * 5, batch=2, recipe=Recipe(), init=init
    )
    with pytest.raises(KeyboardInterrupt):
        generate.generate(task, tmp_path / "a.npz", watch=interrupt_after(task.prepared.nfe + 1))
    assert generate.generate(task, tmp_path / "a.npz").resumed == 1
    x = datasets.to_tensor(np.load(images)["arr_0"])[[seed % 3 for seed in seeds]]
    whole = sample(mixture.model.labelled([0] * 5), x=x, solver=task.prepared, seed=seeds)
    assert (np.load(tmp_path / "a.npz")["arr_0"] == to_pixels(whole.x)).all()
    card = strict(tmp_path / "a.npz.json")
    assert card["init"] == init.sha256
    assert card["grid"][0] == task.prepared.grid[0]
    assert card["grid_name"] == "logsnr"
    job = Job(**nested({name: card[name] for name in task.job.as_json()}))
    again = generate.generate(jobs.restore(job, mixture, init=init), tmp_path / "again.npz")
    assert again.nfe == task.prepared.nfe
    assert (np.load(tmp_path / "again.npz")["arr_0"] == np.load(tmp_path / "a.npz")["arr_0"]).all()
    with pytest.raises(InputError, match="give these as `init`"):
        jobs.restore(job, mixture)
    with pytest.raises(InputError, match="leave `init` out"):
        jobs.restore(make(), mixture, init=init)
    with pytest.raises(InputError, match="give these"):
        jobs.restore(job, mixture, init=init_images.read(str(tmp_path / "images" / "1.png"), mixture.image))


def test_images_are_the_same_from_a_folder_a_file_or_floats(mixture, images, tmp_path):
    init = init_images.read(str(images), mixture.image)
    assert init_images.read(str(tmp_path / "images"), mixture.image).sha256 == init.sha256
    assert torch.equal(init_images.read(str(tmp_path / "images" / "2.png"), mixture.image).x, init.x[2:])
    np.savez(tmp_path / "floats.npz", init.x.double().numpy())
    assert init_images.read(str(tmp_path / "floats.npz"), mixture.image).sha256 == init.sha256
    with pytest.raises(InputError, match=r"give them as floats of that shape"):
        init_images.read(str(images), (4, 8, 8))
    with pytest.raises(InputError, match=r"RGB, 16 pixels high and 20 wide, as `magick in.png -resize 20x16! out.png`"):
        init_images.read(str(images), (3, 16, 20))


@pytest.mark.parametrize(
    ("source", "out"),
    [
        ("images.npz", "images.npz"),
        ("linked.npz", "images.npz"),
        ("linked.npz", "linked.npz"),
        ("images", "images"),
        ("images", "images/a.png"),
        ("images/1.png", "images"),
        ("images.npz", "folder/../images.npz"),
    ],
)
def test_what_a_run_begins_with_is_not_replaced(mixture, images, tmp_path, source, out):
    (tmp_path / "linked.npz").symlink_to(images)
    (tmp_path / "folder").mkdir()
    budget, before = Budget(nfe=2, strength=0.5), sorted(tmp_path.rglob("*"))
    init = init_images.read(str(tmp_path / source), mixture.image)
    task = jobs.prepare_job(mixture, "mixture", "ddim", budget, seeds=[0], labels=None, batch=1, init=init)
    with pytest.raises(InputError, match=r"which is read: give `out` another name"):
        generate.generate(task, tmp_path / out, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


BAD_INIT = {
    "empty": (np.empty((0, 28, 28, 1), np.float32), "has no images"),
    "whole": (np.zeros((1, 28, 28, 1), np.int64), "int64.*uint8 images, or floats"),
    "complex": (np.zeros((1, 1, 28, 28), complex), "complex128.*uint8 images, or floats"),
    "large": (np.full((1, 1, 28, 28), 1e30), "above 1e"),
    "not finite": (np.full((1, 1, 28, 28), np.nan), "not finite"),
    "another shape": (np.zeros((1, 1, 28, 27)), "28 pixels high and 28 wide"),
}


@pytest.mark.parametrize("what", BAD_INIT)
def test_what_is_wrong_with_init_is_said(mixture, tmp_path, what):
    values, says = BAD_INIT[what]
    np.savez(tmp_path / "a.npz", values)
    with pytest.raises(InputError, match=says):
        init_images.read(str(tmp_path / "a.npz"), mixture.image)


def test_a_folder_without_images_is_no_init(mixture, tmp_path):
    with pytest.raises(InputError, match="has no images: give `init` an image"):
        init_images.read(str(tmp_path), mixture.image)


def test_the_noise_of_a_job_is_what_sample_draws(mixture, tmp_path):
    task = jobs.prepare_job(
        mixture, "mixture", "ddpm", Budget(nfe=4), seeds=[3, 1], labels=None, batch=1, recipe=Recipe(), noise="brownian"
    )
    generate.generate(task, tmp_path / "a.npz")
    drawn = [sample(mixture.model, n=2, solver="ddpm", nfe=4, seed=[3, 1], noise=noise).x for noise in ("brownian", "seeded")]
    found = np.load(tmp_path / "a.npz")["arr_0"]
    assert [bool((to_pixels(x) == found).all()) for x in drawn] == [True, False]
    assert strict(tmp_path / "a.npz.json")["noise"] == "brownian"


def test_two_runs_at_once(make, mixture, run, tmp_path):
    """The second is told so, whatever its job; the first does not notice."""
    refused = []

    def second(done, lam):
        for job in (make(), make(options={"eta": 1.0})):
            with pytest.raises(InputError, match="another run"):
                draw(job, mixture, tmp_path / "a.npz", overwrite=True)
            refused.append(job)

    pixels = run(make(), watch=second)
    assert len(refused) == 2 * 3 * NFE
    assert (pixels == run(make(), "alone.npz")).all()
    assert sorted(os.listdir(tmp_path)) == ["a.npz", "a.npz.json", "alone.npz", "alone.npz.json"]


@pytest.mark.parametrize("name", ["a.npz", "a.png", "a", "a.npz.json", "a.json", "a-trajectory.npz", "a-trajectory.png"])
def test_what_exists_is_not_touched(make, mixture, tmp_path, name):
    (tmp_path / name).write_text("years of work")
    out = tmp_path / name.removesuffix(".json").replace("-trajectory", "")
    with pytest.raises(InputError, match=rf"{name} exists.*overwrite=True"):
        draw(make(batch=10, trajectory=True), mixture, out)
    assert (tmp_path / name).read_text() == "years of work"
    assert os.listdir(tmp_path) == [name]


def test_what_comes_to_exist_meanwhile_is_not_touched(make, mixture, tmp_path):
    out = tmp_path / "a.npz"
    with pytest.raises(InputError, match="overwrite=True"):
        draw(make(), mixture, out, watch=lambda done, lam: out.write_text("years of work"))
    assert out.read_text() == "years of work"


def test_a_dangling_link_is_not_replaced(make, mixture, tmp_path):
    """It exists, though what it points to does not: on an unmounted disk, say."""
    (tmp_path / "a.npz").symlink_to(tmp_path / "elsewhere.npz")
    with pytest.raises(InputError, match="overwrite=True"):
        draw(make(), mixture, tmp_path / "a.npz")
    assert (tmp_path / "a.npz").is_symlink()


@pytest.mark.parametrize("name", ["a.npz", "a", "a.npz.json", "a-trajectory.npz", "p.json"])
def test_overwrite_refuses_in_advance_what_cannot_be_replaced(make, mixture, tmp_path, name):
    """Not after an hour of sampling."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "notes.txt").write_text("years of work")
    calls, out = [], tmp_path / (name if name == "a" else "a.npz")
    more = {"save_plan": tmp_path / "p.json", "overwrite": True, "watch": lambda done, lam: calls.append(lam)}
    with pytest.raises(InputError, match=name):
        draw(make(batch=10, trajectory=True), mixture, out, **more)
    assert not calls
    assert (tmp_path / name / "notes.txt").read_text() == "years of work"
    assert os.listdir(tmp_path) == [name]


def strict(path):
    def refuse(constant):
        raise ValueError(constant)

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"solver": "ddpm", "options": {"variance": "large"}, "denoise": True},
        {"options": {"eta": 0.3}, "guidance": 2.5, "clip": True, "seeds": [9, 2**32 - 1, 4]},
        {"solver": "dpm3", "nfe": 6, "options": {"r1": 0.3}, "grid": "time", "threshold": 0.9, "labels": None},
        {"solver": "dpmpp2m", "nfe": None, "grid": [-5.0, -1.0, 2.0, 4.0], "dtype": "float64"},
        {"solver": "dopri5", "nfe": None, "options": {"rtol": 1e-2, "atol": 1e-2, "per_sample": True, "variable": "t"}},
        {"solver": "dpm12", "nfe": None, "options": {"rtol": 0.1, "atol": 0.1, "max_nfe": 20}},
        {"solver": "dpm-fast", "nfe": 5},
        {"solver": "heun-churn", "nfe": 6, "options": {"s_tmax": float("inf")}},
        {"solver": "unipc3", "nfe": 8, "options": {"start": "single", "lower_final": True}},
        {"batch": 10, "trajectory": True},
        {"dtype": "bfloat16"},
    ],
    ids=str,
)
def test_the_json_is_enough_to_make_it_again(make, run, tmp_path, changes):
    job = make(**changes)
    pixels = run(job, command="python cli.py …")
    card = strict(tmp_path / "a.npz.json")
    assert list(card)[: len(job.as_json())] == list(job.as_json())
    again = Job(**nested({name: card[name] for name in job.as_json()}))
    assert again == job
    assert (run(again, "again.npz") == pixels).all()
    assert card["command"] == "python cli.py …"
    assert card["sha256"] == pretrained.load("mixture").sha256
    assert {"python", "torch", "numpy"} <= card["versions"].keys()


def test_a_tolerance_that_is_not_a_number_of_json_is_refused(make, mixture, tmp_path):
    with pytest.raises(InputError, match="rtol"):
        draw(make("dopri5", nfe=None, options={"rtol": float("inf")}), mixture, tmp_path / "a.npz")
    assert not (tmp_path / "a.npz").exists()


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_images_that_torchdiffeq_takes_alone_are_counted_alone(make, mixture, tmp_path, guidance):
    """NFE and network calls an image are the means over images, as they would be in batches of one."""
    options = {"rtol": 1e-2, "atol": 1e-2}
    one = make("dopri5", nfe=None, batch=1, guidance=guidance, options=options)
    alone = draw(one, mixture, tmp_path / "one.npz")
    job = make("dopri5", nfe=None, batch=10, guidance=guidance, options={**options, "per_sample": True})
    report = draw(job, mixture, tmp_path / "a.npz")
    assert (report.nfe, report.calls) == pytest.approx((alone.nfe, alone.calls), rel=1e-12)
    assert report.calls == pytest.approx(guidance * report.nfe)
    assert (np.load(tmp_path / "a.npz")["arr_0"] == np.load(tmp_path / "one.npz")["arr_0"]).all()


@pytest.mark.parametrize(("guidance", "calls"), [(1.0, 1), (2.0, 2)])
def test_nfe_is_counted_at_the_model(make, mixture, tmp_path, guidance, calls):
    seen = []
    job = make("dpm2", nfe=4, guidance=guidance)
    report = draw(job, mixture, tmp_path / "a.npz", watch=lambda done, lam: seen.append(lam))
    assert (report.nfe, report.calls) == (4, 4 * calls)
    assert len(seen) == 4 * 3
    card = strict(tmp_path / "a.npz.json")
    assert (card["nfe"], card["network_calls"]) == (4, 4 * calls)


def test_a_grid_is_taken_as_it_is_given(make, run):
    """λ = −∞ is outside the schedule: refused, not dropped, and no step to +∞ put in its place."""
    assert make(nfe=None, grid=[-4.0, 0.0, 4.0]).grid == [-4.0, 0.0, 4.0]
    assert make(nfe=None, grid=[-4.0, 0.0, np.inf]).denoise
    with pytest.raises(InputError, match="inf"):
        run(make(nfe=None, grid=[-np.inf, 0.0, 4.0]))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_dtypes_agree(make, run, dtype):
    """To the precision of the network: bfloat16 has 8 bits, and an image 256 levels."""
    difference = run(make(dtype=dtype), "b.npz").astype(int) - run(make())
    assert np.abs(difference).mean() < {"float32": 1e-9, "float64": 0.01}.get(dtype, 4)


def test_devices():
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") in ("cpu", "cuda", "mps")
    for name in ("tpu", "", "CPU!", "cpu:x", *(["cuda"] if not torch.cuda.is_available() else [])):
        with pytest.raises(InputError, match="cpu"):
            choose_device(name)


def test_a_solver_of_ones_own_under_unic_is_another_job_when_it_is_edited(mixture, tmp_path, monkeypatch):
    """Its name does not say its table, whether UniC is on top or not."""
    (tmp_path / "unicown.py").write_text(
        "from solvers import Solver\nfrom solvers.dpm_multistep import dpmpp2m\n"
        "mine = Solver('mine', dpmpp2m, 2, 1, 'me', unic_order=3)\n"
    )
    monkeypatch.chdir(tmp_path)
    rest = {"budget": Budget(5), "seeds": [0], "labels": None, "batch": 1}
    own = [jobs.prepare_job(mixture, "mixture", f"unicown:mine{suffix}", **rest).job.plan for suffix in ("", "+unic")]
    assert None not in own
    assert own[0] != own[1]
    assert jobs.prepare_job(mixture, "mixture", "dpmpp2m+unic", **rest).job.plan is None


DAMAGES = {
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-40]),
    "empty": lambda file: file.write_bytes(b""),
    "a flipped bit": lambda file: file.write_bytes(file.read_bytes()[:700] + b"\xff" + file.read_bytes()[701:]),
    "pickled": lambda file: np.savez(file, pixels=np.array([{}], object)),
    "a key missing": lambda file: np.savez(file, **{k: v for k, v in np.load(file).items() if k != "samples"}),
    "another count": lambda file: np.savez(file, **{k: v[:1] for k, v in np.load(file).items()}),
    "another batch": lambda file: shutil.copy(file.with_name("4.npz"), file),
    "as an older version wrote it": lambda file: np.savez(file, **np.load(file)),
    "a link": lambda file: (file.rename(file.with_name("moved")), file.symlink_to("nowhere")),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_batch_is_drawn_again(make, mixture, run, tmp_path, damage):
    """Neither read nor trusted: the images are those of a run that was not interrupted."""
    job = make()
    with pytest.raises(KeyboardInterrupt):
        draw(job, mixture, tmp_path / "a.npz", watch=interrupt_after(2 * NFE + 1))
    damage(Work.beside(tmp_path / "a.npz", job).folder / "0.npz")
    assert draw(job, mixture, tmp_path / "a.npz").resumed == 1
    assert (np.load(tmp_path / "a.npz")["arr_0"] == run(job, "whole.npz")).all()
    assert len(os.listdir(tmp_path)) == 4


def test_batches_of_another_version_are_drawn_again(make, mixture, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        draw(make(), mixture, tmp_path / "a.npz", watch=interrupt_after(2 * NFE + 1))
    monkeypatch.setattr("experiments.sampling.work.__version__", "another")
    assert draw(make(), mixture, tmp_path / "a.npz").resumed == 0


def stopped_while_moving(make, mixture, tmp_path, monkeypatch, **more):
    """A job of which only the images are in place: writing the card failed."""
    job = make(batch=10, trajectory=True)
    replace = os.replace

    def failing(source, target):
        if os.fspath(target).endswith(".npz.json"):
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        with pytest.raises(OSError, match="Input/output"):
            draw(job, mixture, tmp_path / "a.npz", **more)
    assert {"a.npz", "a-trajectory.npz"} < set(os.listdir(tmp_path))
    return job


def test_a_job_may_replace_what_it_has_put_there_and_nothing_else(make, mixture, tmp_path, monkeypatch):
    job = stopped_while_moving(make, mixture, tmp_path, monkeypatch)
    with pytest.raises(InputError, match="exists"):  # another job is not entitled to it
        draw(make(options={"eta": 1.0}), mixture, tmp_path / "a.npz")
    images = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_text("years of work")
    with pytest.raises(InputError, match="exists"):
        draw(job, mixture, tmp_path / "a.npz")
    assert (tmp_path / "a.npz").read_text() == "years of work"
    (tmp_path / "a.npz").write_bytes(images)
    assert draw(job, mixture, tmp_path / "a.npz").resumed == 1
    assert sorted(os.listdir(tmp_path)) == ["a-trajectory.npz", "a-trajectory.png", "a.npz", "a.npz.json"]


@pytest.mark.parametrize("damage", ["{}", "", "null"])
def test_a_damaged_record_entitles_to_nothing(make, mixture, tmp_path, monkeypatch, damage):
    job = stopped_while_moving(make, mixture, tmp_path, monkeypatch)
    Work.beside(tmp_path / "a.npz", job).record.write_text(damage)
    with pytest.raises(InputError, match="exists"):
        draw(job, mixture, tmp_path / "a.npz")
    assert draw(job, mixture, tmp_path / "a.npz", overwrite=True).resumed == 1


PLACES = {
    "the card, spelled otherwise": "x/../a/../a.json",
    "the card, through a link": "link/a.json",
    "in the folder of images": "a/p.json",
    "below the card": "a.json/p.json",
    "a folder that takes no files": "/proc/p.json",
    "below a device": "/dev/null/p.json",
    "a name that is too long": "p" * 255 + ".json",
    "a folder whose name is too long": "p" * 256 + "/p.json",
    "a null byte": "p\0.json",
    "another suffix": "p.txt",
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_plan_that_cannot_be_written_is_refused_in_advance(make, mixture, tmp_path, place):
    (tmp_path / "link").symlink_to(".")
    with pytest.raises(InputError, match="save_plan") as refused:
        draw(make(), mixture, tmp_path / "a", save_plan=tmp_path / place, watch=interrupt_after(1))
    assert len(str(refused.value)) < 400
    assert os.listdir(tmp_path) == ["link"]


@pytest.mark.parametrize("name", ["a" * 255 + ".npz", "a" * 240, "a" * 250 + "/a.npz/" + "a" * 256, "/proc/a", "a\0.npz"])
def test_an_output_that_cannot_be_written_is_refused_in_advance(make, mixture, tmp_path, name):
    with pytest.raises(InputError, match="`out`") as refused:
        draw(make(), mixture, tmp_path / name, watch=interrupt_after(1))
    assert len(str(refused.value)) < 400
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/..", "/"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_without_a_name_is_no_output(make, mixture, tmp_path, monkeypatch, name, overwrite):
    """Not even one of nothing but images."""
    (tmp_path / "a").mkdir()
    (tmp_path / "000001.png").touch()
    monkeypatch.chdir(tmp_path / "a")
    with pytest.raises(InputError, match="no output"):
        draw(make(), mixture, Path(name), overwrite=overwrite, watch=interrupt_after(1))
    assert sorted(os.listdir(tmp_path)) == ["000001.png", "a"]


def test_a_work_folder_cannot_be_planted(make, mixture, tmp_path):
    """A link in its place would make a victim of what it points to."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "0.npz").write_text("years of work")
    Work.beside(tmp_path / "a.npz", make()).folder.symlink_to("victim")
    with pytest.raises(InputError, match="in the way"):
        draw(make(), mixture, tmp_path / "a.npz")
    assert (tmp_path / "victim" / "0.npz").read_text() == "years of work"
    assert len(os.listdir(tmp_path)) == 2
