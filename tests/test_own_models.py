"""Models of one's own that are conditioned, guided and clipped: by commands as they are, each seed with its own row."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cli import main
from diffode import InputError, sample
from diffode.models import pretrained
from diffode.models.identity import parts
from diffode.models.turns import in_turn, rows_of
from experiments.comparison import compare

HEAD = """
import torch
from diffode import EpsModel, guidance, schedules
torch.manual_seed(0)
class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(5, 8), torch.nn.Linear(8, 2)
    def forward(self, x, t, c):
        return self.last(self.first(torch.cat([x, c], 1)).tanh())
net, weak, prompts = Network(), Network(), torch.randn(4, 3)
plain = EpsModel(net, schedules.vp_linear(), "velocity", shape=(2,))
"""
GUIDED = "model = plain.conditioned(c=prompts).guided(3.0, c=torch.zeros(1, 3))"


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """mine(code): MODULE:model with this code, imported anew each time."""
    monkeypatch.chdir(tmp_path)

    def make(code, head=HEAD):
        sys.modules.pop("own_module", None)
        Path("own_module.py").write_text(f"{head}\n{code}\n", encoding="utf-8")
        return "own_module:model"

    yield make
    sys.modules.pop("own_module", None)


def run(*args):
    return CliRunner().invoke(main, [*map(str, args)])


def said(result):
    return " ".join(result.output.replace("│", " ").split())


def test_a_seed_takes_its_own_row_in_any_batch(mine):
    name = mine(GUIDED)
    for out, more in (("a.npz", ["--batch", 64]), ("b.npz", ["--batch", 3]), ("c.npz", ["--batch", 3])):
        seeds = "0-8" if out != "c.npz" else "5,2,7"
        result = run("sample", "--model", name, "--seeds", seeds, "--nfe", 4, "--out", out, *more)
        assert result.exit_code == 0, result.output
        assert "8 network calls" in result.output
    a, b, c = (np.load(out)["arr_0"] for out in ("a.npz", "b.npz", "c.npz"))
    assert np.allclose(a, b, rtol=0, atol=1e-6)
    assert np.allclose(a[[5, 2, 7]], c, rtol=0, atol=1e-6)
    module = sys.modules["own_module"]
    for seed in (2, 6):  # the same row, and another noise
        x = sample(
            module.plain.conditioned(c=module.prompts[[2]]).guided(3.0, c=torch.zeros(1, 3)), shape=(1, 2), seed=seed, nfe=4
        ).x
        assert np.allclose(a[seed], x[0], rtol=0, atol=1e-6)


def test_what_a_model_has_of_its_own_is_in_its_digest(mine):
    """Also what the text of the file does not say: here it is read from another."""
    read = "import json; from pathlib import Path; v = json.loads(Path('v.json').read_text())\n"
    variants = {
        "condition": ("plain.conditioned(c=v * prompts)", 1.0, 2.0),
        "list": ("plain.conditioned(c=prompts, names=['a', v, 'c', 'd'])", "a", "b"),
        "weight": ("plain.conditioned(c=prompts).guided(v, c=0 * prompts)", 2.0, 3.0),
        "null": ("plain.conditioned(c=prompts).guided(2.0, c=v * prompts)", 0.0, 0.5),
        "function": ("plain.conditioned(c=prompts).guided(guidance.interval(2.0, v, 3.0), c=0 * prompts)", -1.0, 0.0),
        "network": ("plain.conditioned(c=prompts).guided(2.0, network=[net, weak][v])", 0, 1),
        "rule": ("plain.conditioned(c=prompts).guided(2.0, rules=[guidance.rescaled(v)], c=0 * prompts)", 0.5, 0.7),
        "clip": ("plain.conditioned(c=prompts).clipped(v)", 1.0, 2.0),
        "threshold": ("plain.conditioned(c=prompts).thresholded(v)", 0.9, 0.99),
    }
    for what, (code, *values) in variants.items():
        found = []
        for value in (*values, values[0]):
            Path("v.json").write_text(json.dumps(value))
            network = "Network.forward = lambda self, x, t, c, names=None: self.last(self.first(torch.cat([x, c], 1)).tanh())\n"
            found.append(pretrained.load(mine(f"{network}{read}model = {code}")).sha256)
        assert found[0] == found[2] != found[1], what


@pytest.mark.parametrize(
    "of_number",
    [lambda i: {0, i}, lambda i: frozenset({i, 0}), lambda i: np.array([f"{i} coats", None], object)],
    ids=["set", "frozenset", "objects"],
)
def test_equal_values_have_the_same_parts(of_number):
    """Sets of 0 and 8 are walked in the order in which they were filled; equal texts are two objects."""
    one, same, other = of_number(8), of_number(int("8")), of_number(16)
    if isinstance(one, set | frozenset):
        same = type(one)([8, 0] if [*one] == [0, 8] else [0, 8])
        assert [*one] != [*same]
    assert [*parts(one)] == [*parts(same)] != [*parts(other)]


def test_float64_takes_conditions_and_every_network_along(mine):
    name = mine("model = plain.conditioned(c=prompts).guided(2.0, network=weak)")
    for dtype in (torch.float32, torch.float64):
        model = pretrained.load(name, dtype).model
        assert model.condition["c"].dtype == dtype
        assert {weight.dtype for module in model.modules for weight in module.parameters()} == {dtype}
        assert in_turn(model, [1, 5, 2])(torch.zeros(3, 2, dtype=dtype), 0.0).dtype == dtype
    assert sys.modules["own_module"].weak.first.weight.dtype == torch.float32  # one's own stays as it is
    assert rows_of(model) == 4


@pytest.mark.parametrize(
    ("code", "args", "words"),
    [
        (GUIDED, ["--guidance", "2"], "the model has guidance 3 of its own: leave --guidance out"),
        ("model = plain.conditioned(c=prompts)", ["--guidance", "2"], "needs labels to guide to"),
        ("model = plain.conditioned(c=prompts, d=prompts[:3])", [], "d has 3 rows, and c has 4: give each as many, or one"),
        ("model = plain.conditioned(c=prompts).watched(print)", [], "labelled, watched or autocast"),
        ("model = plain.conditioned(c=prompts).autocasted()", [], "labelled, watched or autocast"),
        ("model = plain.replace(classes=3).labelled([1])", [], "labelled, watched or autocast"),
        ("model = plain", [], "missing a required argument: 'c'"),
        ("model = plain.conditioned(c=prompts[:, :2])", [], "fails as network(x, t, c=...)"),
    ],
)
def test_what_commands_cannot_take_is_said(mine, code, args, words):
    name = mine(code)
    for command in (["sample", "--n", 2, "--nfe", 2, "--out", "a.npz"], ["compare", "--n", 2, "--out", "compared"]):
        result = run(*command, "--model", name, *args)
        assert (result.exit_code, words in said(result)) == (2, True), result.output
    assert {path.name for path in Path().iterdir()} - {"__pycache__"} == {"own_module.py"}


LATENT = """
import torch
from diffusers import UNet2DConditionModel
from diffode import EpsModel, schedules
torch.manual_seed(0)
kinds = {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"], "mid_block_type": None}
sizes = {"block_out_channels": [8], "layers_per_block": 1, "cross_attention_dim": 6, "attention_head_dim": 2, }
unet = UNet2DConditionModel(sample_size=4, in_channels=4, out_channels=4, norm_num_groups=4, **kinds, **sizes)
unet.time_embedding.linear_1.weight.data.mul_(0.01)  # smooth in t, as a trained one
prompts, empty = torch.randn(3, 5, 6), torch.zeros(1, 5, 6)
table = schedules.ddpm_table(torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).numpy() ** 2)
model = EpsModel(unet, table, shape=(4, 4, 4)).conditioned(encoder_hidden_states=prompts).guided(5.0, encoder_hidden_states=empty)
"""


def test_compare_takes_a_guided_conditioned_latent_model_in_one_command(mine, monkeypatch):
    """The best row and the reference solution are those of loops that are written here, of diffusers' network alone."""
    pytest.importorskip("diffusers")
    monkeypatch.setattr(compare, "save_curves", lambda rows, out: None)  # for time
    name = mine("", LATENT)
    args = ["--solvers", "ddim,dpmpp2m", "--nfe", "4,8", "--grids", "logsnr", "--n", 4, "--batch", 4, "--dtype", "float64"]
    result = run("compare", "--model", name, *args, "--tolerance", "1e-3", "--out", "compared")
    assert result.exit_code == 0, result.output
    rows = json.loads(Path("compared/rows.json").read_text())["rows"]
    best = min(rows, key=lambda row: row["rmse"])
    assert (best["solver"], best["nfe"], best["calls"]) == ("dpmpp2m", 8, 16)

    module = sys.modules["own_module"]
    unet, schedule, seeds = module.unet.double(), module.model.schedule, range(4)
    prompts, empty = module.prompts[[0, 1, 2, 0]].double(), module.empty.double().repeat(4, 1, 1)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    noise = [torch.randn((4, 4, 4), generator=torch.Generator().manual_seed(seed)) for seed in seeds]

    @torch.no_grad()
    def eps(x, lam):
        t = torch.full((4,), float(schedule.t(lam)), dtype=torch.float64)
        with_prompt, without = (unet(x, t, encoder_hidden_states=each).sample for each in (prompts, empty))
        return without + 5 * (with_prompt - without)

    def ends(lam):
        return (1 + np.exp(-2 * lam)) ** -0.5, (1 + np.exp(2 * lam)) ** -0.5

    bars = torch.cumprod(1 - betas, 0).numpy()
    lams = np.linspace(*(0.5 * np.log(bars[[-1, 0]] / (1 - bars[[-1, 0]]))), 9)
    start = torch.stack(noise).double() * ends(lams[0])[1]

    x, before = start, None
    for i in range(8):  # DPM-Solver++(2M), Alg. 2 of Lu et al. (2022), its first step of order 1
        (alpha_s, sigma_s), (alpha_t, sigma_t), h = ends(lams[i]), ends(lams[i + 1]), lams[i + 1] - lams[i]
        x0 = (x - sigma_s * eps(x, lams[i])) / alpha_s
        d = x0 if before is None else x0 + 0.5 * (x0 - before)
        x, before = sigma_t / sigma_s * x - alpha_t * np.expm1(-h) * d, x0
    (file,) = Path("compared/solution").glob("*.npz")
    solution = torch.from_numpy(np.load(file)["x"])
    assert abs(float((x - solution).square().mean().sqrt()) / best["rmse"] - 1) < 1e-4

    y = start / ends(lams[0])[0]  # dy/dλ = −e^(−λ) ε, by the classical Runge-Kutta method
    fine = np.linspace(lams[0], lams[-1], 17)
    for lam, end in itertools.pairwise(fine):
        h = end - lam
        k = [torch.zeros_like(y)]
        for c in (0, 0.5, 0.5, 1):
            at = lam + c * h
            k.append(-np.exp(-at) * eps(ends(at)[0] * (y + c * h * k[-1]), at))
        y = y + h / 6 * (k[1] + 2 * k[2] + 2 * k[3] + k[4])
    assert float((ends(lams[-1])[0] * y - solution).abs().max()) < 0.1 * best["rmse"]


def test_conditions_that_disagree_are_an_error_of_the_api(mine):
    model = pretrained.load(mine(GUIDED)).model
    with pytest.raises(InputError, match="rows"):
        rows_of(model.conditioned(d=torch.zeros(3, 1)))
