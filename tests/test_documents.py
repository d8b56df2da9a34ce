"""The documents show the committed results, and nothing but their blocks is generated."""

import shutil

import pytest
from click.testing import CliRunner

from diffode.errors import InputError
from experiments import documents


@pytest.mark.parametrize("document", documents.DOCUMENTS, ids=lambda path: path.name)
def test_a_document_shows_the_committed_results(document):
    text = document.read_text(encoding="utf-8")
    assert documents.BLOCK.search(text)
    assert documents.filled(text) == text


def test_every_claim_has_its_block_and_its_picture():
    text = (documents.HERE / "README.md").read_text(encoding="utf-8")
    blocks = [match["name"] for match in documents.BLOCK.finditer(text)]
    assert blocks == [name for name in documents.CLAIMS if name in blocks]
    for name in blocks:
        assert f"](results/{name}.png)" in text
        assert (documents.RESULTS / f"{name}.png").exists()
        assert f"`python -m {documents.MODULES[name]}`" in text


def test_a_block_that_nothing_makes_is_refused():
    with pytest.raises(InputError, match="no experiment makes the block 'foo'"):
        documents.filled("<!-- foo -->\n<!-- /foo -->")


@pytest.fixture
def document(tmp_path, monkeypatch):
    """A document with a block of an experiment that has several results, and its results."""
    shutil.copy(documents.RESULTS / "table1_mixture.json", tmp_path / "table1_x.json")
    monkeypatch.setattr(documents, "RESULTS", tmp_path)
    monkeypatch.setattr(documents, "DOCUMENTS", (tmp_path / "a.md", tmp_path / "b.md"))
    (tmp_path / "a.md").write_text("no blocks")
    (tmp_path / "b.md").write_text("a\n<!-- table1_x -->\nold\n<!-- /table1_x -->\nb <!-- c -->\n")
    return tmp_path / "b.md"


def test_blocks_are_replaced_and_nothing_else(document):
    done = documents.filled(document.read_text())
    assert done.startswith("a\n<!-- table1_x -->\nSamples per cell: ")
    assert done.endswith("<!-- /table1_x -->\nb <!-- c -->\n")
    assert "old" not in done
    assert documents.filled(done) == done


def test_a_stale_document_is_reported_and_then_written(document):
    stale = CliRunner().invoke(documents.main, ["--check"])
    assert stale.exit_code == 1
    assert "b.md is out of date" in stale.output
    assert "old" in document.read_text()
    assert CliRunner().invoke(documents.main).exit_code == 0
    assert "old" not in document.read_text()
    assert CliRunner().invoke(documents.main, ["--check"]).exit_code == 0
