"""Labels under any name, one-hot or not, with a label that means none or without; and what networks return."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffode import EpsModel, InputError, sample, schedules, shared

SCHEDULE = schedules.vp_linear()
X = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def recorder(seen):
    def network(x, t, **condition):
        seen.append(condition)
        return 0.1 * x

    return network


def conditions(**model):
    """What the network is handed at a guided evaluation with labels 2, 0, 1: conditional and unconditional."""
    seen = []
    EpsModel(recorder(seen), SCHEDULE, classes=3, **model).labelled([2, 0, 1]).guided(2.0)(X, 0.0)
    return seen


def test_the_name_is_the_networks():
    with_labels, without = conditions(label="class_labels")
    assert with_labels["class_labels"].tolist() == [2, 0, 1]
    assert with_labels["class_labels"].dtype == torch.int64
    assert without == {}


def test_a_null_label_takes_the_place_of_the_labels():
    with_labels, without = conditions(null_label=3)
    assert (with_labels["y"].tolist(), without["y"].tolist()) == ([2, 0, 1], [3, 3, 3])


def test_one_hot_labels_and_zeros_for_none():
    with_labels, without = conditions(one_hot=True)
    assert with_labels["y"].equal(torch.eye(3)[[2, 0, 1]])
    assert without["y"].equal(torch.zeros(3, 3))


def test_one_hot_with_a_column_for_none():
    with_labels, without = conditions(one_hot=True, null_label=3)
    assert with_labels["y"].equal(torch.eye(4)[[2, 0, 1]])
    assert without["y"].equal(torch.eye(4)[[3, 3, 3]])


def test_one_hot_rows_are_in_the_dtype_of_the_weights():
    """A float32 module on a float64 state: a float64 row would not multiply its weights."""

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 2)

        def forward(self, x, t, y):
            return self.linear(y)[:, :, None, None] + 0 * x

    model = EpsModel(Network(), SCHEDULE, classes=3, one_hot=True).labelled([2, 0, 1]).guided(0.0)
    bias = model.network.linear.bias[None, :, None, None].expand(3, 2, 4, 4)
    assert torch.allclose(model(X.double(), 0.0), bias.double(), atol=1e-7)  # weight 0 is the answer without a label


def test_the_null_label_is_a_label():
    model = EpsModel(recorder([]), SCHEDULE, classes=3, null_label=5)
    assert model.labelled([5, 0, 2]).condition["y"].tolist() == [5, 0, 2]
    with pytest.raises(InputError, match="label 4 is out of range: this model knows 0 to 2, and 5 for none"):
        model.labelled([4])


def test_rows_of_labels_of_ones_own_are_handed_over():
    seen = []
    soft = torch.tensor([[0.5, 0.5, 0.0]] * 3)
    EpsModel(recorder(seen), SCHEDULE, classes=3, one_hot=True).conditioned(y=soft)(X, 0.0)
    assert seen[0]["y"].equal(soft)


@pytest.mark.parametrize("null", [None, 3])
def test_what_takes_the_place_of_soft_rows_is_a_row(null):
    seen, columns = [], 3 if null is None else 4
    soft = torch.full((3, columns), 1 / columns)
    EpsModel(recorder(seen), SCHEDULE, classes=3, one_hot=True, null_label=null).labelled(soft).guided(2.0)(X, 0.0)
    assert seen[0]["y"].equal(soft)
    assert seen[1]["y"].equal(torch.zeros(3, 3) if null is None else torch.eye(4)[[3, 3, 3]])


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("kind", [list, torch.tensor, np.array, lambda y: torch.tensor(y, dtype=torch.uint8)])
def test_labels_of_any_kind_are_the_same(kind, batched):
    """However they are given, as the condition, in a branch, or in what takes their place."""

    def network(x, t, y):
        return (1.0 + y)[:, None, None, None] * x

    plain = EpsModel(network, SCHEDULE, classes=3, null_label=3)
    model = plain.conditioned(y=kind([2, 0, 1]))
    expected = (torch.tensor([3.0, 1, 2]) * 2 - 4)[:, None, None, None] * X
    for guided in (
        model.guided(2.0, batched=batched),
        plain.labelled([2, 0, 1]).guided(2.0, y=kind([3, 3, 3]), batched=batched),
        plain.composed([(2.0, {"y": kind([2, 0, 1])})], batched=batched),
    ):
        torch.testing.assert_close(guided(X, 0.0), expected)


@pytest.mark.parametrize(
    "y", [3, None, torch.tensor(1), ["a", "b", "c"], shared(torch.tensor([0, 1, 2])), torch.ones(3), torch.ones(3, 3), [99, 1, 0]]
)
@pytest.mark.parametrize("how", [{"null_label": 3}, {"one_hot": True, "null_label": 3}])
def test_what_are_no_labels_cannot_be_left_out(y, how):
    with pytest.raises(InputError, match=r"labels, whole|labels are whole|label 99 is out of range"):
        EpsModel(recorder([]), SCHEDULE, classes=3, **how).conditioned(y=y).guided(2.0)(X, 0.0)


def test_labels_without_numbers_and_null_labels_that_are_not_known():
    model = EpsModel(recorder([]), SCHEDULE, classes=3)
    with pytest.raises(InputError, match="labels on meta"):
        model.labelled(torch.ones(3, dtype=torch.int64, device="meta"))
    with pytest.raises(InputError, match="label 300 is out of range"):
        model.labelled([0, 1]).guided(2.0, y=torch.tensor([300, 1]))
    with pytest.raises(InputError, match="label 99 is out of range"):
        model.replace(one_hot=True).conditioned(y=[99, 1, 0])(X, 0.0)


def test_taking_rows_takes_their_labels():
    seen = []
    model = EpsModel(recorder(seen), SCHEDULE, classes=3, one_hot=True).labelled([2, 0, 1]).guided(2.0)
    model.at(X[:2], [0.0, 0.1], rows=[2, 0])
    assert seen[0]["y"].equal(torch.eye(3)[[1, 2]])
    assert seen[1]["y"].equal(torch.zeros(2, 3))


@pytest.mark.parametrize("how", [{"null_label": 3}, {"one_hot": True}])
def test_a_network_that_needs_labels_is_guided(how):
    def network(x, t, y):
        return 0.1 * x

    sample(EpsModel(network, SCHEDULE, classes=3, **how).labelled([0]).guided(2.0), shape=(1, 2, 4, 4), nfe=2)


def test_guidance_that_cannot_leave_labels_out_is_refused_before_any_call():
    called = []

    def network(x, t, class_labels):
        called.append(x)
        return 0.1 * x

    model = EpsModel(network, SCHEDULE, classes=3, label="class_labels")
    with pytest.raises(InputError, match=r"guidance leaves out class_labels.*null_label"):
        model.labelled([0, 1, 2]).guided(2.0)(X, 0.0)
    assert not called
    model.guided(2.0, class_labels=[1, 1, 1]).labelled([0, 1, 2])(X, 0.0)


def test_labels_under_a_name_that_the_network_does_not_know():
    def network(x, t, class_labels):
        return 0.1 * x

    with pytest.raises(InputError, match=r"EpsModel\(\.\.\., label="):
        EpsModel(network, SCHEDULE, classes=3).labelled([0, 1, 2])(X, 0.0)


@pytest.mark.parametrize(
    "returned",
    [lambda m: (m,), lambda m: [m, None], lambda m: (m, m + 1), lambda m: SimpleNamespace(sample=m)],
    ids=["tuple", "list", "pair", "object"],
)
def test_what_networks_return(returned):
    plain = EpsModel(lambda x, t: 0.3 * x, SCHEDULE)(X, 0.0)
    assert EpsModel(lambda x, t: returned(0.3 * x), SCHEDULE)(X, 0.0).equal(plain)


@pytest.mark.parametrize("returned", [(), None, {"mean": X}, "x", ("x",)])
def test_what_is_no_output(returned):
    with pytest.raises(InputError, match="the network returned a"):
        EpsModel(lambda x, t: returned, SCHEDULE)(X, 0.0)


@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 5), (3, 2, 4, 4)])
def test_learned_variances_are_cut_off(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    twice = EpsModel(lambda x, t: torch.cat([0.3 * x, 9 * x], 1), SCHEDULE, learned_variance=True)
    assert twice(x, 0.0).equal(EpsModel(lambda x, t: 0.3 * x, SCHEDULE)(x, 0.0))


def test_learned_variances_that_are_not_said_or_not_there():
    with pytest.raises(InputError, match="learned_variance=True if half are variances"):
        EpsModel(lambda x, t: torch.cat([x, x], 1), SCHEDULE)(X, 0.0)
    with pytest.raises(InputError, match=r"twice the channels of its state \(3, 2, 4, 4\), not \(3, 2, 4, 4\)"):
        EpsModel(lambda x, t: x, SCHEDULE, learned_variance=True)(X, 0.0)
    with pytest.raises(InputError, match=r"twice the channels of its state \(3,\), not \(6,\)"):  # no channels to cut
        EpsModel(lambda x, t: torch.cat([x, x]), SCHEDULE, learned_variance=True)(X[:, 0, 0, 0], 0.0)
