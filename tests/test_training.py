"""Training: the loss is L_γ, the stream is a pure function of the step, and a resumed run ends with the same bits."""

import numpy as np
import pytest
import torch

from diffode import InputError
from diffode.images import datasets
from diffode.images.datasets import ImageSet
from diffode.models import checkpoint
from diffode.networks.unet import UNetConfig
from diffode.schedules import SCHEDULES
from experiments.training.stream import Batch, Stream
from experiments.training.trainer import TrainConfig, Trainer, losses, train

TINY = UNetConfig((1, 28, 28), 10, width=16, attention=())


def few(n=96):
    subset = datasets.packaged()
    return ImageSet("few", subset.pixels[:n], subset.labels[:n], subset.classes)


def config(**changes):
    return TrainConfig(TINY, **{"batch": 16, "lr": 1e-3, "warmup": 64, "lr_images": 64, **changes})


def stream(subset, batch=16, drop_label=0.1):
    return Stream(subset, SCHEDULES["ddpm_linear"](), batch, seed=0, drop_label=drop_label, no_label=10)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def go(trainer, images, every=10**9):
    train(trainer, images, every, lambda: False, lambda loss: None, lambda: None)
    return trainer


@pytest.mark.parametrize("predicts", ["noise", "data", "velocity", "flow"])
@pytest.mark.parametrize("schedule", ["ddpm_linear", "flow"])
def test_l_simple_is_the_squared_error_of_epsilon(schedule, predicts):
    """Whatever the network predicts: a network that errs by δ in its own terms errs by what the algebra says in ε's."""
    schedule = SCHEDULES[schedule]()
    rng = torch.Generator().manual_seed(0)
    x0, eps, delta = (torch.randn(5, 1, 2, 2, generator=rng) for _ in range(3))
    lam = np.linspace(-2, 2, 5)
    alpha, sigma = (torch.as_tensor(f(lam)).float().view(-1, 1, 1, 1) for f in (schedule.alpha, schedule.sigma))
    x = alpha * x0 + sigma * eps
    wrong_x0 = x0 + delta
    wrong_eps = (x - alpha * wrong_x0) / sigma
    output = {
        "noise": wrong_eps,
        "data": wrong_x0,
        "velocity": alpha * wrong_eps - sigma * wrong_x0,
        "flow": wrong_eps - wrong_x0,
    }[predicts]
    truth = {"noise": eps, "data": x0, "velocity": alpha * eps - sigma * x0, "flow": eps - x0}[predicts]
    simple, native = losses(lambda *_: output, Batch(x0, eps, lam, torch.zeros(5, dtype=torch.int64)), schedule, predicts)
    torch.testing.assert_close(simple, (wrong_eps - eps).square().mean((1, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(native, (output - truth).square().mean((1, 2, 3)), rtol=1e-4, atol=1e-5)


def test_the_loss_of_edm_is_that_of_its_paper():
    """Eq. 2, 5, 7, 8 of Karras et al. (2022), with the weight (σ² + σ_data²)/(σ σ_data)² of Table 1, written out."""
    schedule, rng, sigma_data = SCHEDULES["edm"](), torch.Generator().manual_seed(0), 0.5
    x0, eps = (torch.randn(5, 1, 2, 2, generator=rng) for _ in range(2))
    lam = np.linspace(-4, 5, 5)
    sigma = torch.as_tensor(np.exp(-lam)).float().view(-1, 1, 1, 1)

    def network(x, lam, y):
        return x.sin() + lam[:, None, None, None]

    total = sigma**2 + sigma_data**2
    c_skip, c_out, c_in = sigma_data**2 / total, sigma * sigma_data * total**-0.5, total**-0.5
    noisy = x0 + sigma * eps
    denoised = c_skip * noisy + c_out * network(c_in * noisy, torch.as_tensor(lam).float(), None)
    expected = (total / (sigma * sigma_data) ** 2 * (denoised - x0) ** 2).mean((1, 2, 3))
    _, native = losses(network, Batch(x0, eps, lam, torch.zeros(5, dtype=torch.int64)), schedule, "edm")
    torch.testing.assert_close(native, expected, rtol=1e-4, atol=1e-5)


def test_noise_levels_of_edm_are_log_normal():
    schedule = SCHEDULES["edm"]()
    make = Stream(few(), schedule, 64, seed=0, drop_label=0.0, no_label=10)
    log_sigma = -np.concatenate([make(step).lam for step in range(200)])
    assert abs(log_sigma.mean() + 1.2) < 0.01  # stratified: far below 1.2/sqrt(n)
    assert abs(log_sigma.std() - 1.2) < 0.02
    assert schedule.lam_min <= -log_sigma.max()
    assert -log_sigma.min() <= schedule.lam_max


def test_a_network_that_is_fed_a_growing_x_is_refused():
    with pytest.raises(InputError, match=r'predicts="edm"'):
        config(schedule="edm", predicts="data")
    trainer = go(Trainer(config(schedule="edm", predicts="edm", gamma="native"), few()), 160)
    assert torch.isfinite(trainer.model(torch.randn(2, 1, 28, 28) * 80, trainer.schedule.lam_min)).all()


def test_a_batch_is_a_pure_function_of_its_step():
    make = stream(few())
    first, again = make(3), (make(0), make(7), make(3))[2]
    assert torch.equal(first.x0, again.x0)
    assert torch.equal(first.eps, again.eps)
    assert np.array_equal(first.lam, again.lam)
    assert torch.equal(first.y, again.y)
    assert not torch.equal(first.eps, make(4).eps)


def test_an_epoch_sees_every_image_once():
    subset = few(96)
    make = stream(subset, drop_label=0.0)
    seen = torch.cat([make(step).x0 for step in range(6)]).flatten(1)
    expected = datasets.to_tensor(subset.pixels).flatten(1)
    assert sorted(map(bytes, seen.numpy())) == sorted(map(bytes, expected.numpy()))


def test_times_are_uniform_on_the_clock_and_labels_dropped_at_their_rate():
    schedule = SCHEDULES["ddpm_linear"]()
    make = stream(few(), batch=64, drop_label=0.25)
    batches = [make(step) for step in range(200)]
    t = schedule.t(np.concatenate([batch.lam for batch in batches]))
    assert np.allclose(t, np.round(t), atol=1e-6)
    assert np.abs(np.histogram(t, 10, (-0.5, 999.5))[0] / len(t) - 0.1).max() < 0.005  # stratified: far below 1/sqrt(n)
    dropped = torch.cat([batch.y for batch in batches]) == 10
    assert abs(dropped.float().mean() - 0.25) < 4 * (0.25 * 0.75 / 12800) ** 0.5


@pytest.mark.parametrize("gamma", ["simple", "native"])
def test_training_learns(gamma):
    """The loss that is trained falls by a fifth at least, and the other with it."""
    trainer = go(Trainer(config(gamma=gamma, lr=3e-3), few()), 16)
    before = trainer.validate(few(32))
    after = go(trainer, 800).validate(few(32))
    assert after[f"l_{gamma}"] < 0.8 * before[f"l_{gamma}"]
    assert all(after[loss] < before[loss] for loss in ("l_simple", "l_native"))


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    straight = go(Trainer(config(), few()), 16 * 8)
    go(Trainer(config(), few()), 16 * 3).save(tmp_path / "state.safetensors")
    torch.manual_seed(99)
    torch.randn(1000)
    resumed = Trainer(config(), few())
    resumed.load(tmp_path / "state.safetensors")
    assert resumed.images == 48
    go(resumed, 16 * 8)
    assert same(straight.network, resumed.network)
    assert same(straight.ema, resumed.ema)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    go(Trainer(config(), few()), 16).save(path)
    for other in (Trainer(config(lr=5e-4), few()), Trainer(config(), ImageSet("others", few().pixels, few().labels))):
        with pytest.raises(InputError, match=r"other settings \((lr|data)\)"):
            other.load(path)
    with pytest.raises(InputError, match="'training', where a 'unet'"):
        checkpoint.read(path, "unet")


def damaged(tensors, header):
    """What a state may be damaged to: tensors and header."""
    name = next(name for name, tensor in tensors.items() if name.startswith("network") and tensor.ndim > 1)
    bare = {key: value for key, value in header.items() if key != "checksum"}
    yield "another number", {**tensors, name: tensors[name] + 1e-3}, header
    yield "a tensor less", {key: value for key, value in tensors.items() if key != name}, bare
    yield "a tensor more", {**tensors, "network.more": torch.zeros(1)}, bare
    yield "another shape", {**tensors, name: tensors[name][:1]}, bare
    yield "no optimizer", {key: value for key, value in tensors.items() if not key.startswith("optimizer")}, bare
    for key in ("config", "data", "step", "log"):
        yield f"no {key}", tensors, {name: value for name, value in header.items() if name != key}
        yield f"{key} null", tensors, {**header, key: None}
    yield "a negative step", tensors, {**header, "step": -1}
    for log in ([], [1], [{"images": 16}]):
        yield f"a log of {log}", tensors, {**header, "log": log}


def test_a_damaged_state_is_one_sentence(tmp_path):
    """Truncated, with bits flipped, or with parts of it missing or of another kind. An older one without checksum is resumed."""
    path, other = tmp_path / "state.safetensors", tmp_path / "other.safetensors"
    go(Trainer(config(), few()), 16).save(path)
    tensors, header = checkpoint.read(path, "training")
    checkpoint.save(other, tensors, {key: value for key, value in header.items() if key != "checksum"})
    resumed = Trainer(config(), few())
    resumed.load(other)
    assert resumed.images == 16
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[-100] ^= 4
    for content in (b"", data[:100], data[:-100], bytes(flipped)):
        other.write_bytes(content)
        with pytest.raises(InputError):
            resumed.load(other)
    for what, arrays, fields in damaged(tensors, header):
        checkpoint.save(other, arrays, fields)
        with pytest.raises(InputError, match="is damaged") as raised:
            resumed.load(other)
        assert len(str(raised.value)) < 400, what


def test_the_ema_is_the_weighted_mean_of_the_weights():
    trainer = Trainer(config(), few())
    expected = next(trainer.ema.parameters()).clone().double()
    for _ in range(5):
        trainer.advance()
        decay = 0.5 ** (16 / (0.05 * trainer.images))
        expected = decay * expected + (1 - decay) * next(trainer.network.parameters()).detach().double()
    torch.testing.assert_close(next(trainer.ema.parameters()).double(), expected, rtol=0, atol=1e-6)


def test_the_log_has_a_row_at_each_saving():
    saved = []
    trainer = Trainer(config(), few())
    train(trainer, 16 * 7, 48, lambda: False, lambda loss: None, lambda: saved.append(trainer.images))
    assert saved == [48, 96, 112]
    assert [row["images"] for row in trainer.log] == saved


def test_data_must_fit_the_network():
    with pytest.raises(InputError, match="made for"):
        Trainer(TrainConfig(UNetConfig((3, 32, 32))), few())
    with pytest.raises(InputError, match="classes"):
        Trainer(TrainConfig(UNetConfig((1, 28, 28), 2, width=16)), few())


@pytest.mark.parametrize("change", [{"gamma": "none"}, {"predicts": "x"}, {"schedule": "x"}, {"batch": 0}, {"lr": -1.0}])
def test_settings_that_cannot_be(change):
    with pytest.raises(InputError):
        config(**change)
