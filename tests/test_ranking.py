"""The front is what is not dominated, and the sentence says nothing that the rows do not."""

import math
import random
import re

import pytest

from diffode.errors import InputError
from experiments.comparison.limits import check_solution
from experiments.comparison.ranking import answer, at_budget, best_at, format_ratio, median_answer, pareto
from tests.fabricated import ABOUT, adaptive, cell, fixed, mixed, without


def dominated(row, rows, cost, measure):
    """By definition, in all pairs."""
    mine = row[cost], abs(row[measure])
    others = [(other[cost], abs(other[measure])) for other in rows]
    return any(other != mine and other[0] <= mine[0] and other[1] <= mine[1] for other in others)


@pytest.mark.parametrize("cost", ["spent", "seconds"])
@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_is_not_dominated(seed, cost):
    """On few values, so that many are equal."""
    rng = random.Random(seed)
    rows = [cell("a", "time", rng.randint(1, 6), rmse=rng.randint(-3, 6) / 10, seconds=rng.randint(1, 5)) for _ in range(40)]
    front = pareto(rows, cost, "rmse")
    assert [row in front for row in rows] == [not dominated(row, rows, cost, "rmse") for row in rows]
    assert [row[cost] for row in front] == sorted(row[cost] for row in front)


def test_what_has_no_number_is_in_no_ranking():
    good = cell("ddim", "time", 10)
    bad = [without("a", "time", 5, error="no"), cell("b", "time", 5, rmse="nan"), cell("c", "time", 5, rmse=math.inf)]
    assert pareto([*bad, good]) == [good]
    assert at_budget(bad, 5) == []
    assert best_at([*bad, good], 10) == good


def test_an_adaptive_solver_has_the_budget_that_it_keeps_to_in_the_mean():
    rows = [*fixed(), *adaptive(spent=(9.5, 10.5, 31.0))]
    assert [row["rtol"] for row in at_budget(rows, 10) if row["nfe"] is None] == [0.1]
    assert best_at([cell("ddim", "time", 10, rmse=0.2), *adaptive()], 10)["solver"] == "dpm23"


def test_the_sentence_is_that_of_the_issue():
    rows = fixed({"ddim": 1, "unipc3": 3})
    best, baseline = (
        best_at([row for row in rows if row["solver"] == name], nfe) for name, nfe in (("unipc3", 10), ("ddim", 20))
    )
    ratio = baseline["rmse"] / best["rmse"]
    assert answer(rows) == f"For this model at 10 evaluations: unipc3 on logsnr; {ratio:.1f} times less error than ddim at 20."


def test_ddim_is_taken_on_its_best_grid():
    rows = [cell("unipc3", "logsnr", 10, rmse=0.01), cell("ddim", "logsnr", 20, rmse=0.05), cell("ddim", "time", 20, rmse=0.03)]
    assert answer(rows).endswith("unipc3 on logsnr; 3.0 times less error than ddim on time at 20.")


@pytest.mark.parametrize(
    ("ddim", "ending"),
    [
        ([20, 50], "at 20"),
        ([15, 25, 50], "at 25"),  # the nearest that is at least twice as many
        ([5, 10, 15], "at 10"),  # none is
    ],
)
def test_the_baseline_has_twice_the_budget_or_the_nearest_above_or_the_same(ddim, ending):
    rows = [cell("unipc3", "logsnr", 10, rmse=0.01), *(cell("ddim", "logsnr", nfe, rmse=1 / nfe) for nfe in ddim)]
    assert answer(rows).endswith(f"times less error than ddim {ending}.")


def test_a_better_baseline_is_said_to_be_better():
    rows = [cell("unipc3", "logsnr", 10, rmse=0.13), cell("ddim", "logsnr", 20, rmse=0.1)]
    assert answer(rows).endswith("unipc3 on logsnr; 1.3 times the error of ddim at 20.")


@pytest.mark.parametrize("ratio", [0.001, 0.5, 0.985, 0.995, 1.0, 1.005, 1.02, 1.2, 9.96, 37.0, 12345.0])
def test_the_ratio_is_that_of_the_rows(ratio):
    rows = [cell("unipc3", "logsnr", 10, rmse=0.1), cell("ddim", "logsnr", 20, rmse=0.1 * ratio)]
    sentence = answer(rows)
    less = re.search(r"; ([\d.,]+) times less error than ddim at 20\.$", sentence)
    more = re.search(r"; ([\d.,]+) times the error of ddim at 20\.$", sentence)
    if less or more:
        said = float((less or more)[1].replace(",", ""))
        assert said > 1
        assert abs((ratio if less else 1 / ratio) / said - 1) < 0.051
    else:
        assert sentence.endswith("; as much error as ddim at 20.")
        assert max(ratio, 1 / ratio) <= 1.01


@pytest.mark.parametrize(
    ("rows", "ending"),
    [
        ([("unipc3", "a", 0.1), ("dpm2", "a", 0.3), ("heun", "a", 0.2)], "unipc3 on a; 2.0 times less error than heun at 10."),
        ([("unipc3", "a", 0.1), ("heun", "b", 0.2)], "unipc3 on a; 2.0 times less error than heun on b at 10."),
        ([("ddim", "a", 0.1), ("ddim", "b", 0.2), ("heun", "a", 0.3)], "ddim on a; 3.0 times less error than heun at 10."),
        ([("heun", "a", 0.1), ("heun", "b", 0.2)], "heun on a; 2.0 times less error than heun on b at 10."),
        ([("heun", "a", 0.1)], "heun on a; nothing else was measured at 10."),
        ([("ddim", "a", 0.1)], "ddim on a; nothing else was measured at 10."),
        ([("heun", "a", 0.0), ("ddim", "a", 0.1)], "heun on a; no error at all, against 0.1 of ddim at 10."),
        ([("heun", "a", 0.1), ("dpm2", "a", 0.1)], "heun on a, and as good within 1 % dpm2; as much error as dpm2 at 10."),
        (
            [(name, "a", 0.1) for name in ("rk4", "dpm2", "dpm1", "lms", "heun")],
            "rk4 on a, and as good within 1 % dpm2, dpm1 and 2 more; as much error as dpm2 at 10.",
        ),
    ],
)
def test_who_it_is_compared_with(rows, ending):
    assert answer([cell(solver, grid, 10, rmse=rmse) for solver, grid, rmse in rows]).endswith(f": {ending}")


def test_the_budget_is_10_or_the_median():
    assert "at 10 evaluations" in answer(fixed(budgets=(5, 6, 8, 10)))
    assert "at 8 evaluations" in answer(fixed(budgets=(5, 6, 8, 12, 50)))
    assert "at 6 evaluations" in answer([*fixed(budgets=(5, 6, 8)), without("ddim", "time", 10, error="no")])


def test_adaptive_solvers_alone():
    sentence = answer([*adaptive(), *adaptive("bosh3", (12.0, 20.5, 40.0))])
    assert sentence.startswith("For this model at 14.5 evaluations: dpm23 at rtol 0.03 (14.5 in the mean); ")
    assert sentence.endswith("3.3 times less error than bosh3 at rtol 0.1 (12.0 in the mean).")


def test_another_measure_is_named():
    rows = [cell("unipc3", "a", 10, log_p=-0.01), cell("ddim", "a", 20, log_p=0.02), cell("heun", "a", 10, log_p=0.5)]
    assert answer(rows, "log_p").endswith("unipc3 on a; 2.0 times less difference of log-density than ddim at 20.")


def test_nothing_was_measured():
    failed = [without("a", "time", 5, error="the state is not finite."), without("b", "time", 5, skipped="cannot")]
    assert answer(failed) == (
        "For this model no error was measured: of 2 cells 1 failed and 1 were skipped. "
        "The first to fail was a on time at 5: the state is not finite."
    )
    assert "of 0 cells" in answer([])
    assert "no Fréchet distance was measured" in answer(mixed(), "frechet")


def test_a_ratio_has_two_digits():
    assert [format_ratio(ratio) for ratio in (1.02, 1.26, 9.94, 9.96, 12.4, 127.0, 12345.0)] == [
        "1.02",
        "1.3",
        "9.9",
        "10",
        "12",
        "130",
        "12,000",
    ]


@pytest.mark.parametrize("measure", ["rmse", "median"])
def test_a_solution_is_known_ten_times_better_than_it_is_met(measure):
    rows, least = mixed(), {"rmse": 0.3 / 64, "median": 0.24 / 64}
    enough = {**ABOUT["solution"], measure: least[measure] / 10 * (1 - 1e-9)}
    check_solution({"solution": enough}, rows)
    for own in (least[measure] / 10 * 1.001, math.nan, "nan", None):
        with pytest.raises(InputError, match=r"unipc3 on logsnr at 20: .* smaller tolerance than 1e-08"):
            check_solution({"solution": {**enough, measure: own}}, rows)


def test_a_solution_that_nobody_came_near_is_not_checked():
    check_solution({"solution": {**ABOUT["solution"], "rmse": 5.0}}, [without("a", "time", 5, error="no")])


def test_the_answer_by_the_median_is_given_where_it_has_another_best():
    """A sample that ends elsewhere decides the rmse, and not the median."""
    rows = [
        cell("ddim", "logsnr", 10, rmse=0.4, median=0.4),
        cell("unipc3", "logsnr", 10, rmse=0.3, median=0.01),
        cell("ipndm", "logsnr", 10, rmse=0.2, median=0.1),
    ]
    assert answer(rows).startswith("For this model at 10 evaluations: ipndm on logsnr; 2.0 times less error than ddim")
    assert (
        median_answer(rows)
        == "By the median over samples at 10 evaluations: unipc3 on logsnr; 40 times less median error than ddim at 10."
    )
    assert median_answer(rows[:2]) == median_answer([]) == ""
