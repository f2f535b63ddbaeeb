"""Runs of models on other paths than plain packs: trained, stopped, resumed to the bit, exported, loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_run import metrics, run_here, write_config, write_corpus, write_tokenizer
from transformers import AutoModelForCausalLM

from llmtrain.recipes.trainer import _path_line
from llmtrain.runs.folder import FINISHED

LAYERS = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_key_value_heads": 1, "tie_word_embeddings": True}
MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "mixers": (
        {"architecture": "lfm2", "config": LAYERS | HEADS | {"layer_types": ["conv", "full_attention"]}},
        "documents run in packs, attention by segments; Lfm2ShortConv per group of them",
    ),
    "rows": (
        {"architecture": "gptj", "config": {"n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 4}},
        "a document runs as a row, padded to the longest beside it: slower than packs, as gptj does not go through "
        "transformers' attention interface; ",
    ),
    "experts": (
        {
            "architecture": "mixtral",
            "config": LAYERS | HEADS | {"num_local_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.02},
        },
        "documents run in packs, attention by segments",
    ),
}


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, list[Path]]:
    return write_tokenizer(tmp_path / "tokenizer"), [write_corpus(tmp_path / "corpus.jsonl", seed=3)]


@pytest.mark.parametrize(
    ("attention", "line"), [("padded", "rows; 25% of this rank's first step is padding"), ("equal", "rows")]
)
def test_the_log_line_of_rows_reads_stored_batches(attention: str, line: str) -> None:
    def compute() -> None:
        raise AssertionError("the source of KTO computes a step's KL")

    training: Any = SimpleNamespace(
        module=SimpleNamespace(facts=lambda: {"attention": attention, "path": "rows"}),
        source=SimpleNamespace(next_step=compute),
        stored=SimpleNamespace(next_step=lambda: [SimpleNamespace(segment_lengths=(8, 4))]),
    )
    assert _path_line(training) == line


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODELS))
def test_a_run_resumes_to_the_bit_and_its_folder_loads(
    name: str, tmp_path: Path, written: tuple[Path, list[Path]]
) -> None:
    model, line = MODELS[name]
    whole = write_config(tmp_path / "whole", *written, model=model)
    ended = run_here(whole)
    assert ended.code == 0, ended.err
    assert line in ended.out
    folder = tmp_path / "whole" / "run"
    path = json.loads((folder / "environment.json").read_text())["path"]
    assert line.removesuffix("; ") == path
    assert ("is padding" in ended.out) == (name == "rows")
    rows = [row for row in metrics(folder) if "loss" in row]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert all(("balance_loss" in row) == (name == "experts") for row in rows)
    assert all("balance_loss" not in row for row in metrics(folder) if "eval_loss" in row)

    before = AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()
    shutil.rmtree(folder / "checkpoints" / "step-00000010")
    (folder / FINISHED).unlink()
    assert "resumed at step 8" in run_here(whole).out
    after = AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
