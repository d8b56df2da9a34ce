"""The report holds every row, loads nothing, and lets nothing that it is given out of its place."""

import base64
import hashlib
import html
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from diffode.errors import InputError
from experiments.comparison import report, report_tables, thumbnails
from experiments.comparison.cells import cell_filename
from experiments.comparison.ranking import answer, pareto
from tests.fabricated import ABOUT, SEEDS, SIDE, adaptive, cell, comparison, fixed, mixed, save, without

ROOT = Path(report.__file__).parents[2]
HOSTILE = "</script><script>window.stolen=1</script><img src=x onerror=window.stolen=1>\"'&" + "long" * 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return comparison(tmp_path_factory.mktemp("one") / "fashion", mixed())


def embedded(page):
    """What the scripts are given."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def text_of(page):
    """What is read: the page without style, scripts and tags."""
    bare = re.sub(r"<(style|script).*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", bare)).split())


def test_every_row_is_in_the_table_and_given_to_the_scripts(folder):
    page, rows = report.render([folder]), mixed()
    given = embedded(page)[0]["rows"]
    assert [cell_filename(row) for row in given] == [cell_filename(row) for row in rows]
    for row, mine in zip(rows, given, strict=True):
        for name in ("spent", "rmse", "median", "worst", "seconds"):
            assert mine[name] == (row.get(name) if isinstance(row.get(name), int | float) else None)
    lines = re.findall(r'<tr data-row="(\d+)"', page)
    assert sorted(map(int, lines)) == list(range(len(rows)))
    assert [cell_filename(rows[int(index)]) for index in lines[-2:]] == ["heun-logsnr-5", "heun-logsnr-20"]  # without result


def test_it_says_the_answer_and_why_cells_have_none(folder):
    text = text_of(report.render([folder]))
    assert answer(mixed()) in text
    assert "left out: heun cannot spend exactly 5 evaluations" in text
    assert text.count("the state is not finite at λ = −1.2") == 2  # in the table, and where failures are listed
    assert "heun on logsnr at 20: the state is not finite" in text


def test_it_loads_nothing(folder):
    page = report.render([folder])
    assert not re.search(r"https?:|//[a-z]|@import|\bsrc\s*=|<link|<img|<iframe|<object", page)
    assert re.findall(r'href="([^"]*)"', page) == ["#main"]
    assert page.count("url(") == page.count('url("${URL.createObjectURL')


def test_the_policy_allows_its_own_style_and_script_alone(folder):
    page = report.render([folder])
    policy = html.unescape(re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1])
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    for name, tag in (("style-src", "style"), ("script-src", "script")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert rules[name] == f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def test_what_is_hostile_is_text(tmp_path):
    rows = [cell("ddim", "time", 10), without(HOSTILE, "time", 10, error=HOSTILE), cell("unipc3", HOSTILE, 10)]
    page = report.render([comparison(tmp_path / "x", rows, pictures=False, model=HOSTILE, labels=HOSTILE, device=HOSTILE)])
    assert "<img" not in page
    assert len(re.findall(r"<script\b", page)) == len(re.findall(r"</script>", page)) == 2
    assert embedded(page)[0]["rows"][1]["error"] == HOSTILE
    assert text_of(page).count("onerror=window.stolen=1>") >= 6


def test_several_folders_have_a_tab_each(folder, tmp_path):
    other = comparison(tmp_path / "other", fixed(), model="mixture")
    same = comparison(tmp_path / "again", fixed())
    assert "<nav" not in report.render([folder])
    page = report.render([folder, other, same])
    assert re.findall(r'<button type="button" role="tab"[^>]*>([^<]*)', page) == [
        "fashion (fashion)",
        "mixture",
        "fashion (again)",
    ]
    assert re.findall(r'aria-controls="([^"]*)"', page) == re.findall(r'<article class="comparison" id="([^"]*)"', page)
    assert [len(each["rows"]) for each in embedded(page)] == [len(mixed()), len(fixed()), len(fixed())]
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_each_strip_is_embedded_once_and_as_it_is(folder):
    page = report.render([folder])
    (given,) = embedded(page)
    assert set(given["pictures"]) == {cell_filename(row) for row in mixed() if "spent" in row}
    assert given["strip"] == {"width": SIDE, "height": SIDE, "count": SEEDS}
    for name, encoded in given["pictures"].items():
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as mine, Image.open(folder / "pictures" / f"{name}.png") as theirs:
            assert (np.asarray(mine) == np.asarray(theirs)).all()
        assert page.count(encoded) == 1


def test_without_pictures_there_is_no_wall(tmp_path):
    page = report.render([comparison(tmp_path / "x", fixed(), pictures=False, shape=[2])])
    assert "Pictures" not in text_of(page)
    assert embedded(page)[0]["reference"] is None


@pytest.mark.parametrize(
    "rows",
    [[], [without("a", "time", 5, error="it failed")], adaptive(), [cell("ddim", "time", 5, rmse="nan")]],
    ids=["none", "failed", "adaptive", "not finite"],
)
def test_few_rows_are_a_report(tmp_path, rows):
    folder = comparison(tmp_path / "x", rows or fixed())
    if not rows:
        held = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
        (folder / "rows.json").write_text(json.dumps({**held, "rows": []}), encoding="utf-8")
    page = report.render([folder])
    assert answer(rows) in text_of(page)
    assert ("Nothing was measured" in page) == (not pareto(rows))


@pytest.mark.parametrize(
    ("about", "sentence"),
    [
        ({}, "Without guidance: an evaluation is one network call."),
        ({}, "Nothing is clipped or thresholded: solvers are compared, not recipes."),
        ({"guidance": 2.0}, "Guidance is 2: an evaluation is two network calls, and both are counted."),
        (
            {"guidance": 2.0, "guidance_interval": [-0.5, 1.6], "guidance_rescale": 0.7},
            "Guidance is 2 for λ from −0.5 to 1.6, rescaled by φ = 0.7: an evaluation there is two network calls",
        ),
        ({"clip": True}, "Predictions of x0 are clipped, in the reference too: recipes are compared."),
        ({"clip": True, "threshold": 0.995}, "clipped and thresholded at 0.995"),
        ({"denoise": True}, "takes a step to σ = 0, whose evaluation is counted"),
        ({"labels": None}, "λ\xa0=\xa04.61. Without"),
        ({"seed": 7, "n": 5}, "seeds 7 to 11"),
    ],
)
def test_what_was_compared_is_said(about, sentence):
    assert sentence in report_tables.setting({**ABOUT, **about})


def test_the_reference_is_said_to_be_as_good_as_it_is():
    rows = fixed()
    least = min(row["rmse"] for row in rows)
    said = report_tables.reference_accuracy({"solution": {**ABOUT["solution"], "rmse": least / 3400}}, rows)
    assert "DOP853 at tolerance 1e-08, 512 evaluations" in said
    assert said.endswith("3,400 times less than that of any cell below.")
    assert "times" not in report_tables.reference_accuracy({"solution": {**ABOUT["solution"], "rmse": 2 * least}}, rows)
    assert "not known" in report_tables.reference_accuracy({"solution": {**ABOUT["solution"], "rmse": "nan"}}, rows)


def test_the_best_at_each_budget():
    lines = report_tables.best_per_budget([*fixed(), *adaptive(spent=(9.5, 19.0, 31.0)), without("a", "time", 8, error="no")])
    assert [(line["nfe"], line["solver"], line["grid"]) for line in lines] == [
        ("5", "ddim", "logsnr"),
        ("10", "unipc3", "logsnr"),
        ("20", "unipc3", "logsnr"),
    ]
    assert [line["ratio"] for line in lines] == ["", "4.0", "16"]


def test_columns_are_those_with_numbers():
    assert [column.key for column in report_tables.columns([without("a", "b", 5, error="c")])] == [
        "solver",
        "grid",
        "spent",
        "front",
    ]
    guided = [cell("ddim", "time", 5, calls=10, log_p=-0.012, frechet=12.34, frechet_se=0.456)]
    assert {"calls", "log_p", "frechet"} <= {column.key for column in report_tables.columns(guided)}
    assert "calls" not in {column.key for column in report_tables.columns(fixed())}
    (line,) = report_tables.table_rows(ABOUT, guided)
    assert {"−0.0120", "12.3 ± 0.46", "●"} <= set(line.texts)


def test_three_digits():
    numbers = (0.0, 1.0, 12.345, 999.4, 999.6, 12345.6, 0.012345, 0.00012345, -3.14159, -1e-5)
    assert [report_tables.format_number(number) for number in numbers] == [
        *("0", "1.00", "12.3", "999", "1,000", "12,346", "0.0123", "1.23e-04", "−3.14", "−1.00e-05")
    ]


@pytest.mark.parametrize(("side", "seeds"), [(32, 8), (64, 8), (256, 4), (30, 8), (28, 3)])
def test_pictures_do_not_bloat(tmp_path, side, seeds):
    """Noise in colour, which nothing compresses: never below 32 pixels a side and 4 seeds, and no larger than it need be."""
    rng = np.random.default_rng(0)
    for name in "abc":
        save(tmp_path / f"{name}.png", 0, seeds=seeds, side=side, rng=rng)
    found = thumbnails.load_thumbnails(tmp_path, ["a", "b", "c", "d"], side, side)
    assert set(found.encoded) == set("abc")
    assert found.width * found.reduction == found.height * found.reduction == side
    assert found.width >= min(side, 32)
    assert found.count >= min(seeds, 4)
    most = max(thumbnails.MEAN_SIZE, 1.4 * 3 * 4 * found.width**2)
    assert sum(map(len, found.encoded.values())) <= 3 * most
    with Image.open(io.BytesIO(base64.b64decode(found.encoded["a"]))) as image:
        assert image.size == (found.count * found.width, found.height)


def test_a_hundred_strips_of_the_shipped_size_are_small(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(100):
        file = tmp_path / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (28, 8 * 28), np.uint8)).save(file)  # noise: no picture takes more
    found = thumbnails.load_thumbnails(tmp_path, map(str, range(100)), 28, 28)
    assert (found.count, found.reduction) == (8, 1)
    assert sum(map(len, found.encoded.values())) < 1.5e6


@pytest.mark.parametrize("content", [b"no picture", None])
def test_a_file_that_is_no_strip_is_named(tmp_path, content):
    folder = comparison(tmp_path / "x", fixed())
    file = folder / "pictures" / f"{cell_filename(fixed()[0])}.png"
    if content is None:
        save(file, 1, side=27)
    else:
        file.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(str(file))):
        report.render([folder])


def test_the_page_in_docs_is_what_the_committed_rows_say():
    """Where it is not, docs/compare.md says how it is made again."""
    page = ROOT / "docs" / "report.html"
    folders = [ROOT / "experiments" / "results" / f"compare_{name}" for name in ("fashion", "mixture")]
    assert page.read_text(encoding="utf-8") == report.render(folders)
    assert page.stat().st_size < 1e6


def run(*arguments):
    return CliRunner().invoke(report.main, [str(argument) for argument in arguments])


def test_the_command(folder, tmp_path):
    result = run(folder, "--out", tmp_path / "new" / "r.html")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "new" / "r.html").read_text(encoding="utf-8") == report.render([folder])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["r.html"]


def test_bad_input_is_one_sentence(tmp_path, folder):
    other = tmp_path / "other"
    other.mkdir()
    held = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    del held["about"]["solution"], held["about"]["shape"]
    (other / "rows.json").write_text(json.dumps(held), encoding="utf-8")
    for name, sentence in (("none", "no results at"), ("other", "it does not say shape")):
        result = run(tmp_path / name, "--out", tmp_path / "r.html")
        assert result.exit_code == 2
        assert sentence in result.output
    assert run("--out", tmp_path / "r.html").exit_code == 2
    (tmp_path / "other" / "mine.html").write_text("mine")
    assert "exists" in run(folder, "--out", tmp_path / "other" / "mine.html").output
    assert (tmp_path / "other" / "mine.html").read_text() == "mine"
    assert run(folder, "--out", tmp_path / "other" / "mine.html", "--overwrite").exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_screenshot_without_selenium(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "selenium", None)
    monkeypatch.setitem(sys.modules, "selenium.webdriver", None)
    result = run(folder, "--out", tmp_path / "r.html", "--screenshot", tmp_path / "r.png")
    assert result.exit_code == 2
    assert "pip install 'diffode[test]'" in result.output
    assert not (tmp_path / "r.png").exists()


def test_a_screenshot_without_chromium(folder, tmp_path, monkeypatch):
    pytest.importorskip("selenium")
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run(folder, "--out", tmp_path / "r.html", "--screenshot", tmp_path / "r.png")
    assert result.exit_code == 2
    assert "apt-get install chromium chromium-driver" in result.output
