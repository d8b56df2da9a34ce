"""How plans and results look in a notebook."""

import re

import torch

from diffode import EpsModel, schedules
from solvers import find, sample
from solvers.result import Result


def test_a_plan_is_a_table_with_its_heat_map():
    plan = find("unipc2").plan([-3.0, -1.0, 1.0, 3.0], schedules.ddpm_linear())
    html = plan._repr_html_()
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    assert len(rows) == 1 + len(plan.stages)
    assert repr(plan) in html
    for row, stage in zip(rows[1:], plan.stages, strict=True):
        assert f"{stage.lam:+.3f}" in row
        assert row.count("rgb(") == 1 + len(stage.c)
        colours = re.findall(r"rgb\((\d+),(\d+),(\d+)\)'>(-?[\d.e+-]+)<", row)
        assert all((int(red) > int(blue)) == (float(number) > 0) for red, _, blue, number in colours if float(number))


def test_many_columns_are_cut_and_noise_is_shown():
    plan = find("ddpm").plan(torch.linspace(-4, 4, 60).tolist(), schedules.ddpm_linear())
    assert "<th>…</th>" in plan._repr_html_()
    assert plan._repr_html_().count("<tr>") == 61


def test_a_result_shows_its_images_and_escapes_its_line():
    result = sample(EpsModel(lambda x, t: x, schedules.ddpm_linear()), nfe=3, shape=(4, 1, 8, 8))
    assert "data:image/png;base64," in result._repr_html_()
    assert "4, 1, 8, 8" in result._repr_html_()
    points = Result(torch.zeros(4, 2), 3, 3)
    assert "img" not in points._repr_html_()
    assert "a black box" in points._repr_html_()
