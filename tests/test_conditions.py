"""Conditions are trees: whatever their form, each sample is given its own, by every solver."""

from collections import OrderedDict, namedtuple
from types import MappingProxyType

import numpy as np
import pytest
import torch

from diffode import SOLVERS, EpsModel, InputError, sample, schedules, shared

Pair = namedtuple("Pair", "m weight")
MEANS = torch.tensor([3.84, -2.62, 0.71], dtype=torch.float64)
FORMS = {  # a condition, and what a network makes of it
    "tensor": (MEANS, lambda c: c),
    "array": (MEANS.numpy(), lambda c: c),
    "read-only array": (np.broadcast_to(MEANS.numpy(), (1, 3))[0], lambda c: c),
    "list": (MEANS.tolist(), torch.tensor),
    "dict": ({"m": MEANS, "scale": 2.0, "name": "wool"}, lambda c: c["m"]),
    "list of tensors": ([MEANS, None, "cotton"], lambda c: c[0]),
    "tuple": ((7, MEANS), lambda c: c[1]),
    "named tuple": (Pair(MEANS, 7), lambda c: c.m),
    "shared": ({"m": MEANS, "ids": [shared(np.arange(7.0))]}, lambda c: c["m"] + c["ids"][0].sum() - 21),
    "nested": ({"a": [{"m": (MEANS[:, None].numpy(), torch.tensor(7.0))}]}, lambda c: c["a"][0]["m"][0][:, 0]),
}
KW = {"shape": (3, 4), "dtype": torch.float64}


def model_of(form, wanted="data"):
    """The exact model of N(m, 0), one m for each sample."""
    condition, means = FORMS[form]

    def network(x, t, added):
        m = means(added)
        return m[: len(x), None].to(x).expand_as(x)  # as networks do that were given too much

    return EpsModel(network, schedules.vp_linear(), wanted).conditioned(added=condition)


def error(form, solver, **options):
    """The largest |x − α m| in units of σ, at the end."""
    model = model_of(form)
    lam = model.schedule.lam_max
    x = sample(model, solver=solver, **KW, **options).x
    return float((x - float(model.schedule.alpha(lam)) * MEANS[:, None]).abs().max() / float(model.schedule.sigma(lam)))


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_ends_at_the_mean_of_each_sample(solver):
    """Those of torchdiffeq, which know nothing of the equation's linear part, from an exact state and in small steps."""
    entry, model = SOLVERS[solver], model_of("dict")
    if "torchdiffeq" not in entry.source:
        assert error("dict", solver, **({} if entry.chooses_steps else {"steps": 6})) < 5  # of a normal number
    else:
        how = {"rtol": 1e-5, "atol": 1e-5} if entry.chooses_steps else {}
        grid = [-2.0, 4.0] if entry.chooses_steps else np.linspace(-2.0, 4.0, 101).tolist()
        start, end = (float(model.schedule.alpha(lam)) * MEANS[:, None].expand(3, 4) for lam in (grid[0], grid[-1]))
        assert abs(sample(model, x=start, solver=solver, grid=grid, **how).x - end).max() < 3e-3


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("solver", "options"),
    [
        ("ddim", {"steps": 3}),
        ("dpmpp12", {"rtol": 0.1}),
        ("bosh3", {"rtol": 0.01, "per_sample": True}),
        ("dopri5", {"rtol": 0.01}),
    ],
    ids=["planned", "adaptive", "per sample", "black box"],
)
def test_conditions_of_every_form_are_taken_by_rows(form, solver, options):
    assert error(form, solver, **options) < 5


@pytest.mark.parametrize("form", FORMS)
def test_a_condition_of_another_batch_is_refused_in_every_form(form):
    """Where it was taken by slices of itself, or broadcast, it was silently wrong."""
    model = model_of(form)
    for batch in (1, 2, 4):
        with pytest.raises(InputError, match=rf"the condition added.* is for a batch of 3, the state has {batch}: give it a row"):
            model(torch.zeros(batch, 4), 0.0)
    with pytest.raises(InputError, match="is for a batch of 2, the state has 3"):
        model.taking([2, 0])(torch.zeros(3, 4), 0.0)


@pytest.mark.parametrize("form", FORMS)
def test_one_row_is_for_all_samples(form):
    """As a prompt is for four images: by itself, in parts, and where a solver takes each sample by its own."""
    one, all_of_it = model_of(form).taking([1]), model_of(form).taking([1] * 4)
    for how in ({}, {"batch": 3}, {"solver": "dpm12"}):
        found, wanted = (sample(model, shape=(4, 4), steps=None if "solver" in how else 3, **how).x for model in (one, all_of_it))
        assert torch.equal(found, wanted)


def test_the_form_of_a_tree_stays():
    given = []

    def network(x, t, **condition):
        given.append(condition)
        return x

    shared = {"sizes": (28, 28), "nothing": None, "empty": [], "flag": True, "zero": torch.tensor(2.0), "f": [len]}
    ordered, frozen = OrderedDict(b=MEANS, a=1), MappingProxyType({"m": MEANS})
    model = EpsModel(network, schedules.flow()).conditioned(
        ordered=ordered, frozen=frozen, names=np.array(["a", "b", "c"]), **shared
    )
    for rows in ([2, 0], np.array([2, 0]), torch.tensor([2, 0])):
        model.taking(rows)(torch.zeros(2, 4), 0.0)
    assert [condition["names"] for condition in given] == [["c", "a"]] * 3
    condition = given[0]
    assert type(condition["ordered"]) is OrderedDict
    assert list(condition["ordered"]) == ["b", "a"]
    assert condition["ordered"]["b"].tolist() == condition["frozen"]["m"].tolist() == MEANS[[2, 0]].tolist()
    assert {name: condition[name] for name in shared} == shared


def test_nested_conditions_are_moved():
    given = []

    def network(x, t, added):
        given.append(added)
        return x

    tree = {"m": [MEANS, (torch.tensor(2.0), MEANS.numpy())], "ids": shared(torch.arange(7))}
    model = EpsModel(network, schedules.flow()).conditioned(added=tree)
    model(torch.zeros(3, 4, device="meta"), 0.0)
    m, (zero, array) = given[0]["m"]
    assert m.is_meta
    assert zero.is_meta
    assert given[0]["ids"].is_meta
    assert array.is_meta


def test_guidance_takes_null_trees_by_rows():
    def network(x, t, added):
        return added["m"].to(x)[:, None].expand_as(x)

    model = EpsModel(network, schedules.flow(), "data").conditioned(added={"m": MEANS}).guided(3.0, added={"m": -MEANS})
    found = model.taking([2, 0])(torch.zeros(2, 4, dtype=torch.float64), 0.0, "data")
    torch.testing.assert_close(found[:, 0], -MEANS[[2, 0]] + 3 * 2 * MEANS[[2, 0]])


@pytest.mark.parametrize("weights", [torch.float32, torch.float64])
@pytest.mark.parametrize("given", [np.ones((2, 3)), torch.ones(2, 3, dtype=torch.bfloat16), {"inner": torch.ones(2, 3)}])
@pytest.mark.parametrize("guided", [False, True])
def test_a_module_gets_floating_conditions_in_the_dtype_of_its_weights(weights, given, guided):
    class Network(torch.nn.Linear):
        def forward(self, x, t, c, ids):
            assert ids.dtype == torch.int64
            return super().forward(torch.cat([x, c["inner"] if isinstance(c, dict) else c], 1))

    model = EpsModel(Network(5, 2).to(weights), schedules.ddpm_linear(), shape=(2,)).conditioned(c=given, ids=torch.arange(2))
    model = model.guided(2.0, ids=torch.tensor([1, 1]), batched=True) if guided else model
    assert torch.isfinite(sample(model, n=2, nfe=2).x).all()
