"""What the tests of the recipes start from: a tokenizer, a corpus, a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import write_config, write_corpus, write_tokenizer


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer and a corpus."""
    folder = tmp_path_factory.mktemp("inputs")
    write_tokenizer(folder / "tokenizer")
    write_corpus(folder / "corpus.jsonl", seed=1)
    return folder


@pytest.fixture
def config(inputs: Path, tmp_path: Path) -> Path:
    return write_config(tmp_path / "given", inputs / "tokenizer", [inputs / "corpus.jsonl"])
