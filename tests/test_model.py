"""EpsModel: one ε from every kind of network, guidance, x̂0 hooks, clocks, devices and counters."""

import pickle

import numpy as np
import pytest
import torch

from diffode import EpsModel, InputError, grid, schedules
from diffode.evaluation import Counter

PREDICTIONS = ("noise", "data", "tangent", "flow", "reverse-flow", "score")
PATHS = ("vp", "ve", "flow")
every_path = pytest.mark.parametrize("path", PATHS)
every_prediction = pytest.mark.parametrize("predicts", PREDICTIONS)


def fractions(schedule):
    """λ at both ends and in between."""
    return [schedule.lam_min + f * (schedule.lam_max - schedule.lam_min) for f in (0, 0.2, 0.5, 0.8, 1)]


def state(model, lam, batch=5, shape=(1, 2, 3), dtype=torch.float64):
    """Random x of the size it has at λ."""
    x = torch.randn((batch, *shape), generator=torch.Generator().manual_seed(1), dtype=dtype)
    return x * float(np.hypot(model.schedule.alpha(lam), model.schedule.sigma(lam)))


def split(x, velocity, alpha, sigma):
    """(ε, x̂0) from x = α x̂0 + σ ε and v = α ε − σ x̂0."""
    return (sigma * x + alpha * velocity) / (alpha**2 + sigma**2), (alpha * x - sigma * velocity) / (alpha**2 + sigma**2)


def ends(model, lam):
    return float(model.schedule.alpha(lam)), float(model.schedule.sigma(lam))


def speaking(model, predicts):
    """The same exact model, its network made to predict something else."""
    path = model.schedule.path

    def network(x, lam, y=None):
        alpha, sigma = (torch.as_tensor(f(lam.numpy()))[:, None, None, None] for f in (path.alpha, path.sigma))
        velocity = model.network(x, lam, y)
        eps, x0 = split(x, velocity, alpha, sigma)
        flows = {"flow": eps - x0, "reverse-flow": x0 - eps}
        return {"noise": eps, "data": x0, "tangent": velocity, "score": -eps / sigma, **flows}[predicts]

    return EpsModel(network, model.schedule, predicts, clock="lam", classes=2)


def recorder(seen, result=torch.zeros_like):
    """A network that appends (x, clock, condition) of every call to `seen`."""

    def network(x, clock, **condition):
        seen.append((x, clock, condition))
        return result(x)

    return network


def additive(x, t, y=None):
    """Unconditional 0.3 x, conditional 0.3 x + y."""
    return 0.3 * x + (0 if y is None else y.to(x)[:, None, None, None])


@every_path
@every_prediction
def test_every_network_gives_the_same(toy, path, predicts):
    exact = toy(path)
    model = speaking(exact, predicts)
    for lam in fractions(exact.schedule):
        x, (alpha, sigma) = state(exact, lam), ends(exact, lam)
        velocity = exact.network(x, torch.full((5,), lam, dtype=x.dtype))
        eps, x0 = split(x, velocity, alpha, sigma)
        # roundings of 1e-16 enlarged by dividing by α or σ, at least 1e-3
        assert abs(model(x, lam) - eps).max() < 1e-10
        assert abs(model(x, lam, "data") - x0).max() < 1e-10
        assert abs(model(x, lam, "velocity") - velocity).max() < 1e-10 * max(1, sigma)
        assert abs(model(x, lam, "flow") - (eps - x0)).max() < 1e-10
        assert abs(model(x, lam, "score") * sigma + eps).max() < 1e-10


def test_state_is_left_alone_and_out_is_used(toy):
    model = toy()
    x = state(model, 0.0)
    before, out = x.clone(), torch.empty_like(x)
    evaluate = model.bind([-1.0, 0.0], x)
    assert evaluate(x, 1, out) is out
    assert torch.equal(out, model(x, 0.0))
    assert torch.equal(x, before)
    first = evaluate(x, 0)
    assert torch.equal(first, model(x, -1.0))
    assert not torch.equal(first, out)


def test_network_that_returns_its_input(toy):
    model = EpsModel(lambda x, t: x, schedules.vp_linear(), "data")
    x = state(model, 0.0)
    before = x.clone()
    result = model(x, 0.0)
    assert torch.equal(x, before)
    torch.testing.assert_close(result, x * (1 - 0.5**0.5) / 0.5**0.5)  # (x − α x)/σ, α = σ = √½


# Guidance


@every_path
@every_prediction
@pytest.mark.parametrize("weight", [0.0, 3.0, -1.5])
def test_guidance_is_linear_in_any_prediction(toy, path, predicts, weight):
    exact, y, differences = toy(path), torch.tensor([0, 1, 1, 0, 1]), []
    model = speaking(exact, predicts)
    for lam in fractions(exact.schedule):
        x = state(exact, lam)
        for wanted in ("noise", "data"):
            without, with_y = exact(x, lam, wanted), exact.labelled(y)(x, lam, wanted)
            guided = model.labelled(y).guided(weight)(x, lam, wanted)
            assert abs(guided - (without + weight * (with_y - without))).max() < 1e-9  # as above, times |weight|
            differences.append(abs(with_y - without).max())
    assert max(differences) > 0.1  # the labels do matter


@pytest.mark.parametrize(("weight", "calls"), [(0.0, 1), (1.0, 1), (1, 1), (2.5, 2)])
def test_guidance_calls(weight, calls):
    seen = []
    model = EpsModel(recorder(seen), schedules.flow(), classes=3).labelled([2, 0]).guided(weight)
    counter = Counter()
    model(torch.zeros(2, 1, 2, 2), 0.0, counter=counter)
    assert (counter, len(seen)) == (Counter(1, calls), calls)
    assert [sorted(condition) for _, _, condition in seen] == ([[]] if weight == 0 else [["y"], []][:calls])


def test_guidance_with_a_null_condition():
    model = EpsModel(additive, schedules.flow(), "noise").conditioned(y=torch.tensor([4.0, 7.0]))
    x = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.tensor([4.0, 7.0]).double()[:, None, None, None]
    guided = model.guided(3.0, y=torch.tensor([1.0, 2.0]))(x, 0.0)
    null = torch.tensor([1.0, 2.0]).double()[:, None, None, None]
    torch.testing.assert_close(guided, 0.3 * x + null + 3 * (expected - null))
    torch.testing.assert_close(model.guided(3.0).guided(1.0)(x, 0.0), 0.3 * x + expected)  # the last word counts


@pytest.mark.parametrize("weight", [np.nan, np.inf])
def test_guidance_weight_must_be_a_number(toy, weight):
    with pytest.raises(InputError, match="the guidance weight must be a finite number"):
        toy().guided(weight)


# Hooks on x̂0


@every_path
@every_prediction
def test_clipping_keeps_the_pair_consistent(toy, path, predicts):
    exact = toy(path)
    model = speaking(exact, predicts).clipped(0.5)
    for lam in fractions(exact.schedule)[1:]:
        x, (alpha, sigma) = state(exact, lam), ends(exact, lam)
        free = exact(x, lam, "data")
        eps, x0, velocity = (model(x, lam, wanted) for wanted in ("noise", "data", "velocity"))
        assert abs(free).max() > 0.5 >= abs(x0).max()
        torch.testing.assert_close(x0, free.clamp(-0.5, 0.5), rtol=0, atol=1e-10)
        assert abs(alpha * x0 + sigma * eps - x).max() < 1e-10
        assert abs(alpha * eps - sigma * x0 - velocity).max() < 1e-10 * max(1, sigma)


def test_clipping_comes_after_guidance(toy):
    model, y = toy(), torch.tensor([0, 1, 1, 0, 1])
    x = state(model, 1.0)
    both = model.labelled(y).guided(4.0)
    expected = both(x, 1.0, "data").clamp(-0.5, 0.5)
    for order in (both.clipped(0.5), model.clipped(0.5).labelled(y).guided(4.0)):
        torch.testing.assert_close(order(x, 1.0, "data"), expected, rtol=0, atol=1e-12)


def thresholded(x0, quantile, bound):
    """Saharia et al. (2022), section 2.3, for one sample."""
    s = max(np.quantile(abs(x0), quantile), bound)
    return np.clip(x0, -s, s) / s * bound


@pytest.mark.parametrize(("quantile", "bound"), [(0.9, 0.5), (0.5, 0.3), (1.0, 0.2), (0.995, 1.0), (0.995, 50.0)])
def test_dynamic_thresholding(toy, quantile, bound):
    exact = toy()
    x = 2 * state(exact, 1.0)
    model = exact.thresholded(quantile, bound)
    expected = np.stack([thresholded(x0, quantile, bound) for x0 in exact(x, 1.0, "data").numpy()])
    np.testing.assert_allclose(model(x, 1.0, "data"), expected, rtol=0, atol=1e-13)
    alpha, sigma = ends(model, 1.0)
    assert abs(alpha * model(x, 1.0, "data") + sigma * model(x, 1.0) - x).max() < 1e-13


def test_dynamic_thresholding_is_per_sample(mixture32):
    model = mixture32.thresholded(0.9, 0.5)
    x = state(model, 1.0, batch=9, shape=(1, 28, 28), dtype=torch.float32)
    x[3] *= 10  # one sample that would pull a joint quantile up
    whole = model(x, 1.0, "data")
    for i in (0, 3, 8):
        assert torch.equal(model(x[i : i + 1], 1.0, "data")[0], whole[i])


@pytest.mark.parametrize("quantile", [0.0, -0.1, 1.1, np.nan])
def test_quantile_out_of_range(toy, quantile):
    with pytest.raises(InputError, match="quantile"):
        toy().thresholded(quantile)


# Conditions


@pytest.mark.parametrize("y", [[0, 10], [-1, 3], torch.tensor([3, 12])], ids=str)
def test_label_out_of_range(mixture32, y):
    with pytest.raises(InputError, match="out of range: this model knows 0 to 9"):
        mixture32.labelled(y)


def test_labels_reach_the_network_as_int64():
    seen = []
    model = EpsModel(recorder(seen), schedules.flow(), classes=3)
    for y in ([2, 0], (2, 0), torch.tensor([2, 0], dtype=torch.int32)):
        model.labelled(y).conditioned(style="bold")(torch.zeros(2, 1, 2, 2), 0.0)
        assert seen[-1][2]["style"] == "bold"
        assert seen[-1][2]["y"].dtype == torch.int64
        assert seen[-1][2]["y"].tolist() == [2, 0]


@pytest.mark.parametrize("batch", [1, 3])
def test_condition_of_another_batch(toy, batch):
    model = toy().labelled([0, 1])
    x = state(model, 0.0, batch)
    with pytest.raises(InputError, match=f"y is for a batch of 2, the state has {batch}"):
        model.bind([0.0], x)
    with pytest.raises(InputError, match=f"y is for a batch of 2, the state has {batch}"):
        toy().guided(2.0, y=torch.tensor([0, 1])).bind([0.0], x)


@pytest.mark.parametrize("result", [lambda x: x[:, :1], lambda x: torch.cat([x, x], 1), lambda x: x.flatten(1), lambda x: x[:1]])
def test_wrong_output_shape(result):
    model = EpsModel(recorder([], result), schedules.flow())
    with pytest.raises(InputError, match=r"for a state of \(2, 3, 4, 4\)"):
        model(torch.zeros(2, 3, 4, 4), 0.0)


# Clocks


@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)]
)
def test_the_t_clock_is_fractional(dtype, expected):
    seen, schedule = [], schedules.ddpm_linear()
    model = EpsModel(recorder(seen), schedule)
    lams = schedule.lam([999.0, 700.25, 0.5, 0.0])
    x = torch.zeros(3, 1, 2, 2, dtype=dtype)
    evaluate = model.bind(lams, x)
    for i in range(4):
        evaluate(x, i)
    for (_, clock, _), t in zip(seen, (999.0, 700.25, 0.5, 0.0), strict=True):
        assert clock.shape == (3,)
        assert clock.dtype == expected  # never coarser than float32, in which labels up to 2^24 are whole
        assert abs(clock - t).max() < (1e-4 if expected == torch.float32 else 1e-9)  # 999 has an ulp of 6e-5 in float32


def test_the_label_clock_is_whole():
    seen, schedule = [], schedules.ddpm_linear()
    model = EpsModel(recorder(seen), schedule, clock="label")
    values = grid.make("logsnr", schedule, 10)
    x = torch.zeros(3, 1, 2, 2)
    with pytest.raises(InputError, match="snap the grid"):
        model.bind(values, x)
    snapped = grid.snap(values, schedule)
    evaluate = model.bind(snapped, x)
    for i, lam in enumerate(snapped):
        evaluate(x, i)
        label = int(np.flatnonzero(schedule.knots[::-1] == lam)[0])
        assert seen[i][1].dtype == torch.int64
        assert seen[i][1].tolist() == [label] * 3


def test_a_label_half_a_step_off_is_refused():
    schedule = schedules.ddpm_linear()
    model = EpsModel(recorder([]), schedule, clock="label")
    with pytest.raises(InputError, match=r"label 500\.5000"):
        model(torch.zeros(3, 1, 2, 2), float(schedule.lam(500.5)))


def test_the_lam_clock():
    seen = []
    model = EpsModel(recorder(seen), schedules.ddpm_linear(), clock="lam")
    model(torch.zeros(3, 1, 2, 2, dtype=torch.float64), -1.2345)
    assert seen[0][1].tolist() == [-1.2345] * 3


@pytest.mark.parametrize("clock", ["t", "label", "lam"])
@pytest.mark.parametrize("lam", [-9.0, 9.0, np.inf, -np.inf, np.nan])
def test_outside_the_schedule(clock, lam):
    seen = []
    model = EpsModel(recorder(seen), schedules.ddpm_linear(), clock=clock)
    with pytest.raises(InputError, match="outside the schedule ddpm_linear"):
        model(torch.zeros(3, 1, 2, 2), lam)
    assert not seen


def test_unknown_names():
    with pytest.raises(InputError, match=r"`clock` must be t, label, lam, .* or a function of λ, not 'sigmas'"):
        EpsModel(recorder([]), schedules.flow(), clock="sigmas")
    with pytest.raises(InputError, match="unknown prediction 'epsilon': known are noise, data"):
        EpsModel(recorder([]), schedules.flow(), "epsilon")


# A λ for each sample

LAMS = np.array([-3.0, 2.5, 0.1, -0.4, 2.5])


@every_path
@every_prediction
@pytest.mark.parametrize("wanted", ["noise", "data", "flow"])
@pytest.mark.parametrize("hooked", [False, True])
def test_a_lam_for_each_sample(toy, path, predicts, wanted, hooked):
    """Each row is what the model gives for it alone at its λ: network, guidance, hooks and all conversions."""
    y = torch.tensor([0, 1, 1, 0, 1])
    model = speaking(toy(path), predicts)
    model = model.labelled(y).guided(2.0).clipped(0.5) if hooked else model
    x = state(model, 0.0)
    counter = Counter()
    together = model.at(x, LAMS, wanted, counter=counter)
    assert counter == Counter(1, 2 if hooked else 1)
    for i, lam in enumerate(LAMS):
        alone = model.taking([i])(x[i : i + 1], lam, wanted)
        assert abs(together[i] - alone[0]).max() < 1e-12 * max(1, abs(alone).max())
    assert torch.equal(x, state(model, 0.0))


def test_a_lam_for_each_sample_on_the_t_clock():
    seen, schedule = [], schedules.ddpm_linear()
    model = EpsModel(recorder(seen), schedule)
    model.at(torch.zeros(5, 1, 2, 2, dtype=torch.float64), LAMS)
    np.testing.assert_allclose(seen[0][1], schedule.t(LAMS), rtol=0, atol=1e-9)


def test_a_label_for_each_sample():
    seen, schedule = [], schedules.ddpm_linear()
    model = EpsModel(recorder(seen), schedule, clock="label")
    model.at(torch.zeros(3, 1, 2, 2), schedule.lam([999.0, 0.0, 41.0]))
    assert seen[0][1].dtype == torch.int64
    assert seen[0][1].tolist() == [999, 0, 41]
    with pytest.raises(InputError, match=r"label 41\.5000"):
        model.at(torch.zeros(3, 1, 2, 2), schedule.lam([999.0, 0.0, 41.5]))


@pytest.mark.parametrize("lams", [[0.0], [0.0, 1.0], [0.0] * 6], ids=len)
def test_as_many_lams_as_samples(toy, lams):
    with pytest.raises(InputError, match=f"one per sample: {len(lams)} do not go with a batch of 5"):
        toy().at(state(toy(), 0.0), lams)


@pytest.mark.parametrize("lam", [-9.0, np.nan])
def test_one_lam_outside_the_schedule(toy, lam):
    with pytest.raises(InputError, match="outside the schedule"):
        toy().at(state(toy(), 0.0), [0.0, 0.0, lam, 0.0, 0.0])


def test_rows_are_counted_and_watched_as_the_whole(toy):
    """at(..., rows=...) is taking(rows).at(...), but the numbers go on; a watch is given the smallest λ."""
    seen = []
    y = torch.tensor([0, 1, 1, 0, 1])
    model = toy().labelled(y).guided(2.0, y=1 - y).watched(lambda *args: seen.append(args[:2]))
    x = state(model, 0.0)
    counter = Counter()
    model(x, 0.0, counter=counter)
    rows = [4, 0, 1]
    result = model.at(x[rows], LAMS[rows], "data", rows, counter)
    assert torch.equal(result, model.taking(rows).at(x[rows], LAMS[rows], "data"))
    assert torch.equal(result, toy().labelled(y[rows]).guided(2.0, y=1 - y[rows]).at(x[rows], LAMS[rows], "data"))
    assert not torch.equal(result, toy().at(x[rows], LAMS[rows], "data"))
    assert seen == [(1, 0.0), (2, -3.0), (1, -3.0)]
    assert counter == Counter(2, 4)


def test_taking_follows_every_tensor_of_the_batch():
    seen = []
    y, text = torch.tensor([3, 1, 2]), torch.arange(12.0).view(3, 2, 2)
    model = EpsModel(recorder(seen), schedules.flow())
    model = model.conditioned(y=y, text=text, scale=torch.tensor(5.0), style="bold").guided(2.0, text=-text)
    model.taking([2, 0])(torch.zeros(2, 1, 2, 2), 0.0)
    for (_, _, condition), wanted in zip(seen, (text, -text), strict=True):
        assert condition["y"].tolist() == [2, 3]
        assert torch.equal(condition["text"], wanted[[2, 0]])
        assert (condition["scale"], condition["style"]) == (5.0, "bold")
    model(torch.zeros(3, 1, 2, 2), 0.0)
    assert seen[-2][2]["y"].tolist() == [3, 1, 2]  # the original is as it was


# Numbers and devices


class Linear(torch.nn.Linear):
    """A network that keeps what it is called with, and what it computed."""

    def forward(self, x, clock, y=None):
        self.seen = (x, clock, y)
        self.made = super().forward(x)
        return self.made


def test_autocast_is_for_the_network_alone():
    network = Linear(4, 4).requires_grad_(False)
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    exact = EpsModel(network, schedules.flow())(x, 0.0)
    assert network.made.dtype == torch.float32
    half = EpsModel(network, schedules.flow()).autocasted(torch.bfloat16)(x, 0.0)
    assert network.made.dtype == torch.bfloat16
    assert network.seen[0].dtype == network.seen[1].dtype == half.dtype == torch.float32
    assert 0 < abs(half - exact).max() < 0.05  # bfloat16 keeps 8 bits
    # what the network gave is not rounded again: ε is exactly its output in float32
    assert torch.equal(half, network.made.float())


def test_meta_device(toy):
    network = Linear(3, 3, device="meta")
    model = EpsModel(network, schedules.ddpm_linear(), "velocity", clock="label", classes=4).labelled([0, 3, 1, 2])
    x = torch.empty(4, 1, 2, 3, device="meta")
    evaluate = model.clipped().guided(2.0, y=torch.zeros(4, dtype=torch.int64)).bind([model.schedule.lam_max], x)
    result = evaluate(x)
    assert all(tensor.device.type == "meta" for tensor in (result, *network.seen))
    assert [tuple(tensor.shape) for tensor in network.seen] == [(4, 1, 2, 3), (4,), (4,)]
    assert network.seen[1].dtype == torch.int64


def test_to_moves_the_network():
    network = torch.nn.Linear(3, 3)
    model = EpsModel(network, schedules.flow())
    assert model.to("meta", torch.float64) is model
    assert network.weight.device.type == "meta"
    assert network.weight.dtype == torch.float64
    plain = EpsModel(recorder([]), schedules.flow())
    assert plain.to("meta") is plain  # nothing to move


@pytest.mark.parametrize("path", ["ve", "flow"])
def test_velocity_off_the_vp_path_is_refused(path):
    """What others call velocity there is ε − x0, another number."""
    with pytest.raises(InputError, match=f"on the {path} path it is called flow"):
        EpsModel(recorder([]), {"ve": schedules.edm, "flow": schedules.flow}[path](), "velocity")


def test_guidance_to_nothing_is_refused(toy):
    with pytest.raises(InputError, match="needs labels"):
        toy().guided(2.0)(torch.zeros(1, 1, 2, 3, dtype=torch.float64), 0.0)


def test_what_null_does_not_name_stays_in_the_unconditional_call(toy):
    seen = []

    def network(x, t, **condition):
        seen.append(condition)
        return x

    model = EpsModel(network, schedules.flow()).conditioned(text=1, size=2)
    model.guided(3.0, text=0)(torch.zeros(1, 2), 0.0)
    assert seen == [{"text": 1, "size": 2}, {"text": 0, "size": 2}]


VARIANTS = {
    "plain": lambda model: model,
    "guided": lambda model: model.labelled([0, 1]).guided(2.0),
    "clipped": lambda model: model.clipped(0.5),
    "thresholded": lambda model: model.thresholded(0.9, 0.5),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_reaches_the_state(toy, variant):
    model = VARIANTS[variant](toy())
    x = state(model, 0.5, batch=2).requires_grad_()
    along = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    (gradient,) = torch.autograd.grad(model(x, 0.5).sum(), x)
    h = 1e-6
    with torch.no_grad():
        change = (model(x + h * along, 0.5) - model(x - h * along, 0.5)).sum() / (2 * h)
    assert abs((gradient * along).sum() - change) < 1e-7  # roundings of 1e-15, divided by h


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_with_a_lam_for_each_sample(toy, variant):
    model = VARIANTS[variant](toy())
    x = state(model, 0.5, batch=2).requires_grad_()
    (gradient,) = torch.autograd.grad(model.at(x, np.array([0.5, -1.0])).sum(), x)
    for i, lam in enumerate((0.5, -1.0)):
        (alone,) = torch.autograd.grad(model.taking([i])(x[i : i + 1], lam).sum(), x)
        torch.testing.assert_close(gradient[i], alone[i], rtol=0, atol=1e-12)


# Counters and watches


def derivations(model):
    return {
        "taking": model.taking([0, 1]),
        "conditioned": model.conditioned(y=torch.tensor([0, 1])),
        "labelled": model.labelled([0, 1]),
        "guided": model.guided(2.0, y=torch.tensor([0, 1])),
        "autocasted": model.autocasted(torch.bfloat16),
        "clipped": model.clipped(),
        "thresholded": model.thresholded(),
        "watched": model.watched(lambda *_: None),
    }


@pytest.mark.parametrize(
    "name", ["taking", "conditioned", "labelled", "guided", "autocasted", "clipped", "thresholded", "watched"]
)
def test_counters_are_of_what_was_bound(toy, name):
    model = toy()
    x = state(model, 0.0, batch=2)
    first, other = model.bind([0.0], x), derivations(model)[name]
    second = other.bind([0.0, 1.0], x[:1] if name == "taking" else x)
    first(x)
    for i in range(2):
        second(x[:1] if name == "taking" else x, i)
    assert first.counter == Counter(1, 1)
    assert second.counter == Counter(2, 4 if name == "guided" else 2)


@pytest.mark.parametrize("name", ["conditioned", "labelled", "guided", "clipped", "thresholded"])
def test_deriving_changes_nothing_in_the_original(toy, name):
    model = toy()
    x = 3 * state(model, 0.0, batch=2)
    before = model(x, 0.0)
    other = derivations(model.labelled([1, 0]) if name == "guided" else model)[name]
    assert not torch.equal(other(x, 0.0), before)
    assert torch.equal(model(x, 0.0), before)


def test_watched(toy):
    seen, also = [], []
    plain = toy()
    model = plain.watched(lambda i, lam, m: seen.append((i, lam, m.clone()))).watched(lambda *args: also.append(args[:2]))
    x = state(model, 0.0)
    evaluate = model.clipped(0.5).bind([-1.0, 0.0], x, "data")
    results = [evaluate(x, i).clone() for i in (0, 1, 1)]
    assert [(i, lam) for i, lam, _ in seen] == also == [(1, -1.0), (2, 0.0), (3, 0.0)]
    assert all(torch.equal(m, result) for (_, _, m), result in zip(seen, results, strict=True))
    plain(x, 0.0)
    assert len(seen) == 3


def test_the_shape_of_a_sample_is_kept():
    schedule = schedules.ddpm_linear()
    for given in ((1, 28, 28), [1, 28, 28], torch.Size([1, 28, 28]), np.array([1, 28, 28])):
        model = EpsModel(torch.zeros_like, schedule, shape=given)
        assert model.shape == (1, 28, 28)
        assert all(type(size) is int for size in model.shape)
        assert model.clipped().guided(2.0).conditioned(c=1).taking([0]).shape == (1, 28, 28)
    for shape in ((5,), (2, 9), ()):
        assert EpsModel(torch.zeros_like, schedule, shape=shape).shape == shape
    assert EpsModel(torch.zeros_like, schedule).clipped().shape is None


@pytest.mark.parametrize("given", [(0, 28, 28), (1, -28, 28), (1.0, 28, 28), 784, "abc", "", (None,), ((1, 28), 28)], ids=str)
def test_a_shape_that_is_none(given):
    with pytest.raises(InputError, match=r"`shape` must be positive whole numbers, as \(1, 28, 28\), not "):
        EpsModel(torch.zeros_like, schedules.ddpm_linear(), shape=given)


def halved(x, t):
    return x / 2


def test_a_model_with_hooks_is_pickled():
    made = EpsModel(halved, schedules.ddpm_linear()).clipped(0.5).thresholded(0.9)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pickle.loads(pickle.dumps(made))(x, 0.3), made(x, 0.3))
