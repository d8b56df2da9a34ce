"""The commands of docs/networks.md for EDM, EDM2 and score_sde, as they stand but for the number of images, on small networks in
files of the same names and formats; the evaluations are those that its table says."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import cli
from tests import edm_files, test_score_sde
from tests.pipelines import seeded, vae

TEXT = (Path(__file__).parents[1] / "docs" / "networks.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python cli\.py ((?:sample|compare) --model (?:edm|edm2|score-sde|guided_by):.*)$", TEXT, re.M)
TABLE = dict(re.findall(r"^\| `([\w.-]+\.p(?:kl|th))`[^|]*\| (\d+|adaptive)[^|]*\| [\d.]+ \|", TEXT, re.M))  # file -> evaluations
GUIDED_BY = re.search(r"<!-- autoguidance -->\n```python\n(.*?)```", TEXT, re.S)[1]
QUICK = ("cifar10-32x32-cond-vp", "img64")  # of each kind one; a comparison takes minutes, an adaptive solver a quarter of one


def file_of(name):
    """Write a small network to the file of a name: labels if it has any, latents if it does."""
    labels = 0 if "uncond" in name else 1000 if "img512" in name or "imagenet" in name or "img64" in name else 10
    if name.endswith(".pth"):
        return test_score_sde.written(Path(), test_score_sde.WRITTEN["tiny"]["vp-ddpmpp"]).partition(":")[2]
    if name.startswith("edm2"):
        channels = 4 if "img512" in name else 3
        return edm_files.write(Path(name), replace(edm_files.SMALLEST2, img_channels=channels, label_dim=labels))
    return edm_files.write(Path(name), replace(edm_files.SMALLEST, label_dim=labels))


def run(words):
    """Two images of a command."""
    for option, value in {"--seeds": "0-1", "--label": "1,2"}.items():
        if option in words:
            words[words.index(option) + 1] = value
    ended = CliRunner().invoke(cli.main, words if "--seeds" in words else [*words, "--n", "2"])
    assert ended.exit_code == 0, ended.output


def test_the_table_and_the_commands_are_of_the_same_files():
    assert len(COMMANDS) == 15
    files = [command.split()[2].partition(":")[2] for command in COMMANDS if "0-49999" in command]
    assert sorted(TABLE) == sorted("edm2-img512-s-2147483-0.070.pkl" if file == "model" else file for file in files)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(line, marks=[] if any(name in line for name in QUICK) and "0-4" in line else [pytest.mark.slow])
        for line in COMMANDS
    ],
    ids=lambda line: line.split()[2],
)
def test_documented_commands_run_on_small_networks(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    name = words[2].partition(":")[2]
    if name == "model":
        Path("guided_by.py").write_text(re.sub(r'decoder\(main.card, ".*"\)', "decoder(main.card, 'vae')", GUIDED_BY))
        for name in re.findall(r"edm2:([\w.-]+)", GUIDED_BY):
            file_of(name)
        name = "edm2-img512-s-2147483-0.070.pkl"
    else:
        Path(file_of(name)).rename(name)
    if "img512" in name:
        pytest.importorskip("diffusers")
        with seeded():
            vae().save_pretrained("vae")
    if "--decoder" in words:
        words[words.index("--decoder") + 1] = "vae"
    run(words)
    if "--out" in words:
        assert TABLE[name] in ("adaptive", f"{json.loads(Path('samples.npz.json').read_text())['nfe']:g}")
        with np.load("samples.npz") as written:
            side = 32 if name.endswith(".pth") else 8 if "img512" in name else 4  # which the autoencoder doubles
            assert written["arr_0"].shape == (2, side, side, 3)
            assert len(np.unique(written["arr_0"])) > 1
