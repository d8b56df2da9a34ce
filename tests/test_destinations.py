"""What a user has in a folder stays there: every file that will be written is looked at before work begins."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import cli
from diffode import InputError
from experiments.common.destinations import refuse_existing
from experiments.comparison import compare, optimal_grid, rows
from experiments.ddim_paper import inpaint
from experiments.training import fit_mixture, train, train_classifier

pytestmark = pytest.mark.usefixtures("small_mixture")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """In a folder of its own, where nothing may be loaded: that is work."""
    monkeypatch.chdir(tmp_path)

    def work(*args, **kwargs):
        pytest.fail("work began")

    for module, name in (
        *((compare, "Problem"), (train, "Trainer"), (train.datasets, "load"), (optimal_grid, "Problem")),
        *((inpaint.pretrained, "load"), (train_classifier, "two_sets")),
    ):
        monkeypatch.setattr(module, name, work)


def run(command, *args):
    return CliRunner().invoke(command, [str(arg) for arg in args], catch_exceptions=False)


COMPARE = (cli.main, "compare", "--model", "mixture", "--solvers", "ddim,unipc3", "--nfe", 10, "--grids", "logsnr,optimal")
TRAIN = (cli.main, "train", "--images", 16)
SINGLE = {
    "mixture.safetensors": (fit_mixture.main,),
    "mixture.json": (fit_mixture.main, "--out", "mixture.safetensors"),
    "x.png": (inpaint.main, "--out", "x.png"),
    "grids/x.json": (optimal_grid.main, "--out", "grids/x.json"),
    "c/classifier.json": (train_classifier.main, "--out", "c"),
    "c/fashion-train.safetensors": (train_classifier.main, "--out", "c"),
}


def refused_and_left(file, command, *words):
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    before = sorted(Path().rglob("*"))
    result = run(*command)
    assert result.exit_code == 2, result.output
    assert all(word in result.stderr for word in (path.name, *words)), result.stderr
    assert path.read_text() == "mine"
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    "file",
    [
        *("report.html", "answer.json", "rows.csv", "error-nfe.png", "error-seconds.svg", "pictures/reference.png"),
        *("pictures/unipc3-logsnr-10.png", "grids/ddim-10.json"),
    ],
)
def test_compare(file):
    refused_and_left(f"mine/{file}", (*COMPARE, "--out", "mine"), "exists", "--out", "--overwrite")


@pytest.mark.parametrize("file", ["rows.csv", "pictures", "solution", "grids"])
def test_compare_where_a_folder_or_file_is_in_the_way(file):
    """Which no overwriting helps."""
    if file.endswith(".csv"):
        (Path("mine") / file).mkdir(parents=True)
    else:
        Path("mine").mkdir()
        (Path("mine") / file).write_text("mine")
    result = run(*COMPARE, "--out", "mine", "--overwrite")
    assert (result.exit_code, file in result.stderr) == (2, True), result.output


@pytest.mark.parametrize("file", ["ema.safetensors", "ema.json", "log.csv", "samples.png"])
def test_train(file):
    refused_and_left(f"mine/{file}", (*TRAIN, "--out", "mine"), "exists", "--out")


@pytest.mark.parametrize("file", SINGLE)
def test_scripts(file):
    refused_and_left(file, SINGLE[file], "exists", "--overwrite")


@pytest.mark.parametrize("command", [COMPARE, TRAIN, (train_classifier.main,)], ids=["compare", "train", "classifier"])
@pytest.mark.parametrize("out", ["", ".", "..", "a/.."])
def test_a_folder_has_a_name(command, out):
    result = run(*command, "--out", out)
    assert (result.exit_code, list(Path().iterdir())) == (2, []), result.output


def test_a_link_that_leads_nowhere_is_there():
    Path("x").symlink_to("nowhere")
    with pytest.raises(InputError, match="exists"):
        refuse_existing([Path("x")])


ABOUT = {
    "model": "m",
    "sha256": "0",
    "shape": [1, 2, 2],
    "n": 2,
    "seed": 0,
    "labels": None,
    "guidance": 1.0,
    "clip": False,
    "threshold": None,
    "denoise": False,
    "lam": [-5.0, 5.0],
    "solution": {"method": "DOP853", "tolerance": 1e-8, "nfe": 99, "rmse": 1e-9, "median": 1e-9},
}
ROW = {"solver": "ddim", "grid": "logsnr", "nfe": 10, "rtol": None, "spent": 10.0, "rmse": 0.1, "made": 0}


def table(about=None, row=None, **more):
    return json.dumps({"about": {**ABOUT, **(about or {})}, "made": [{}], "rows": [{**ROW, **(row or {})}]} | more)


DAMAGED = {
    "about null": json.dumps({**json.loads(table()), "about": None}),
    "no rows": table(rows=None),
    "rows of numbers": table(rows=[1, 2]),
    "rows of null": table(rows=[None]),
    "made of texts": table(made=["x"]),
    "solution null": table({"solution": None}),
    "solution without its error": table({"solution": {"method": "DOP853", "tolerance": 1e-8, "nfe": 1}}),
    "ends": table({"lam": [0.0]}),
    "ends null": table({"lam": [None, 1.0]}),
    "shape of texts": table({"shape": ["x"]}),
    "guidance a text": table({"guidance": "x"}),
    "seed true": table({"seed": True}),
    "no budget": table(row={"nfe": None}),
    "two budgets": table(row={"rtol": 0.1}),
    "a solver of null": table(row={"solver": None}),
    "a list in a row": table(row={"rmse": [1]}),
    "a reason of 1": table(row={"skipped": 1}),
    "an error of null": table(row={"error": None}),
    "another run": table(row={"made": 7}),
    "versions": table(made=[{"versions": 1}]),
    "deep": '{"about": ' + "[" * 100_000,
    "a huge number": table().replace("10.0", "1" + "0" * 5000),
    "a large number": table().replace("10.0", "1" + "0" * 400),
    "half a pair": table({"model": "\ud800"}),
    "half of it": table()[:100],
    "nothing": "",
}


def test_rows_as_compare_writes_them_are_read():
    Path("rows.json").write_text(table())
    about, found = rows.read_rows(Path())
    assert (found, about) == ([ROW], {**ABOUT, "made": [{}]})


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_rows_are_one_sentence(damage):
    Path("rows.json").write_text(DAMAGED[damage])
    with pytest.raises(InputError) as raised:
        rows.read_rows(Path())
    assert len(str(raised.value)) < 400
    assert "\n" not in str(raised.value)


def test_damaged_rows_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine", "rows.json").write_text(DAMAGED["ends"])
    result = run(*COMPARE, "--n", 2, "--device", "cpu", "--features", "none", "--out", "mine")
    assert (result.exit_code, "its ends are" in result.stderr) == (2, True), result.output
    assert {path.name: path.read_text() for path in Path("mine").iterdir()} == {"rows.json": DAMAGED["ends"]}
