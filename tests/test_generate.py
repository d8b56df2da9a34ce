"""A job decides its images: not its batches, its interruptions, or who else is at work."""

import dataclasses
import json
import os

import numpy as np
import pytest
import torch

from diffode import InputError, pretrained
from experiments import generate
from experiments.generate import Job, choose_device, choose_labels

NFE = 3


@pytest.fixture(scope="module")
def mixture():
    return pretrained.load("mixture")


@pytest.fixture
def make(mixture):
    """make(**changes): a job of the mixture."""

    def job(solver="ddim", nfe=NFE, grid="logsnr", denoise=False, options=None, **rest):
        rest = {"seeds": list(range(10)), "batch": 4, "guidance": 1.0, **rest}
        rest.setdefault("labels", choose_labels(None, mixture.classes, rest["seeds"]))
        budget = {"nfe": nfe, "steps": None, "grid": grid, "denoise": denoise}
        return generate.make_job(mixture, "mixture", solver, **budget, options=options or {}, **rest)

    return job


@pytest.fixture
def run(mixture, tmp_path):
    """run(job, name, ...): its pixels, from an .npz in tmp_path."""

    def go(job, name="a.npz", **options):
        loaded = pretrained.load("mixture", torch.float64) if job.dtype == "float64" else mixture
        generate.generate(job, loaded, tmp_path / name, **options)
        return np.load(tmp_path / name)["arr_0"]

    return go


def interrupt_after(evaluations):
    seen = []

    def watch(done, lam):
        seen.append(lam)
        if len(seen) == evaluations:
            raise KeyboardInterrupt

    return watch


@pytest.mark.parametrize("n", [1, 3, 4, 5, 9])
@pytest.mark.parametrize("name", ["a.npz", "a"])
def test_exactly_n_images(make, mixture, tmp_path, n, name):
    generate.generate(make(seeds=list(range(n))), mixture, tmp_path / name)
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
        generate.generate(job, mixture, out, watch=interrupt_after(after))
    assert not [file for file in os.listdir(tmp_path) if not file.startswith(".")]
    done = (after - 1) // NFE
    calls = []
    report = generate.generate(job, mixture, out, watch=lambda done, lam: calls.append(lam))
    assert report.resumed == done
    assert len(calls) == NFE * (3 - done)
    generate.generate(job, mixture, whole)
    files = sorted(whole.iterdir()) if whole.is_dir() else [whole]
    for file in files:
        assert (out / file.name if out.is_dir() else out).read_bytes() == file.read_bytes()
    assert sorted(os.listdir(tmp_path)) == sorted([name, f"{name}.json", "whole"])


def test_another_job_of_the_same_name_is_unaffected(make, mixture, run, tmp_path):
    job, other = make(), make(options={"eta": 1.0})
    with pytest.raises(KeyboardInterrupt):
        generate.generate(job, mixture, tmp_path / "a.npz", watch=interrupt_after(NFE + 1))
    assert (run(other, "a.npz") == run(other, "alone.npz")).all()
    assert generate.generate(job, mixture, tmp_path / "a.npz", overwrite=True).resumed == 1
    assert (np.load(tmp_path / "a.npz")["arr_0"] == run(job, "job.npz")).all()


CHANGES = {
    "model": "other.safetensors",
    "sha256": "0" * 64,
    "solver": "euler",
    "grid": [-5.0, 0.0, 4.0],
    "denoise": True,
    "seeds": [1],
    "labels": None,
    "batch": 5,
    "guidance": 2.0,
    "clip": True,
    "threshold": 0.9,
    "dtype": "float64",
    "device": "cuda",
    "options": {"eta": 0.5},
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Job)])
def test_whatever_decides_the_images_is_in_the_digest(make, field):
    job = make()
    assert dataclasses.replace(job, **{field: CHANGES[field]}).digest != job.digest


def test_two_runs_at_once(make, mixture, run, tmp_path):
    """The second is told so, whatever its job; the first does not notice."""
    refused = []

    def second(done, lam):
        for job in (make(), make(options={"eta": 1.0})):
            with pytest.raises(InputError, match="another run"):
                generate.generate(job, mixture, tmp_path / "a.npz", overwrite=True)
            refused.append(job)

    pixels = run(make(), watch=second)
    assert len(refused) == 2 * 3 * NFE
    assert (pixels == run(make(), "alone.npz")).all()
    assert sorted(os.listdir(tmp_path)) == ["a.npz", "a.npz.json", "alone.npz", "alone.npz.json"]


@pytest.mark.parametrize("name", ["a.npz", "a.png", "a", "a.npz.json", "a.json"])
def test_what_exists_is_not_touched(make, mixture, tmp_path, name):
    (tmp_path / name).write_text("years of work")
    out = tmp_path / name.removesuffix(".json")
    with pytest.raises(InputError, match="--overwrite"):
        generate.generate(make(), mixture, out)
    assert (tmp_path / name).read_text() == "years of work"
    assert os.listdir(tmp_path) == [name]


def test_what_comes_to_exist_meanwhile_is_not_touched(make, mixture, tmp_path):
    out = tmp_path / "a.npz"
    with pytest.raises(InputError, match="--overwrite"):
        generate.generate(make(), mixture, out, watch=lambda done, lam: out.write_text("years of work"))
    assert out.read_text() == "years of work"


def test_a_dangling_link_is_not_replaced(make, mixture, tmp_path):
    """It exists, though what it points to does not: on an unmounted disk, say."""
    (tmp_path / "a.npz").symlink_to(tmp_path / "elsewhere.npz")
    with pytest.raises(InputError, match="--overwrite"):
        generate.generate(make(), mixture, tmp_path / "a.npz")
    assert (tmp_path / "a.npz").is_symlink()


@pytest.mark.parametrize("name", ["a.npz", "a"])
def test_overwrite_refuses_in_advance_what_cannot_be_replaced(make, mixture, tmp_path, name):
    """Not after an hour of sampling."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "notes.txt").write_text("years of work")
    calls = []
    with pytest.raises(InputError, match=name):
        generate.generate(make(), mixture, tmp_path / name, overwrite=True, watch=lambda done, lam: calls.append(lam))
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
        {"options": {"eta": 0.3}, "guidance": 2.5, "clip": True, "seeds": [9, 2**63 - 1, 4]},
        {"solver": "dpm3", "nfe": 6, "options": {"r1": 0.3}, "grid": "time", "threshold": 0.9, "labels": None},
        {"solver": "dpmpp2m", "nfe": None, "grid": [-5.0, -1.0, 2.0, 4.0], "dtype": "float64"},
        {"solver": "dopri5", "nfe": None, "options": {"rtol": 1e-2, "atol": 1e-2}},
        {"dtype": "bfloat16"},
    ],
    ids=str,
)
def test_the_json_is_enough_to_make_it_again(make, run, tmp_path, changes):
    job = make(**changes)
    pixels = run(job, command="python cli.py …")
    card = strict(tmp_path / "a.npz.json")
    again = Job(**{field.name: card[field.name] for field in dataclasses.fields(Job)})
    assert again == job
    assert (run(again, "again.npz") == pixels).all()
    assert card["command"] == "python cli.py …"
    assert card["sha256"] == pretrained.load("mixture").sha256
    assert {"python", "torch", "numpy"} <= card["versions"].keys()


def test_a_tolerance_that_is_not_a_number_of_json_is_refused(make, mixture, tmp_path):
    with pytest.raises(InputError, match="rtol"):
        generate.generate(make("dopri5", nfe=None, options={"rtol": float("inf")}), mixture, tmp_path / "a.npz")
    assert not (tmp_path / "a.npz").exists()


@pytest.mark.parametrize(("guidance", "calls"), [(1.0, 1), (2.0, 2)])
def test_nfe_is_counted_at_the_model(make, mixture, tmp_path, guidance, calls):
    seen = []
    job = make("dpm2", nfe=4, guidance=guidance)
    report = generate.generate(job, mixture, tmp_path / "a.npz", watch=lambda done, lam: seen.append(lam))
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
