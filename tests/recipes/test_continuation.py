"""Continuing a given model: at a longer context, and with a tokenizer that has grown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_chat import write_model, write_rows
from tiny_run import PRETRAIN, SFT, Ended, run_here, write_corpus
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

NEW = ("<|tool|>", "<|end_of_tool|>")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model, its form with an untied head, and a tokenizer of two tokens more."""
    folder = tmp_path_factory.mktemp("inputs")
    write_model(folder / "base", spread=0.1)
    write_corpus(folder / "corpus.jsonl", seed=1)
    write_rows(folder / "rows.jsonl", seed=1)
    untied = AutoModelForCausalLM.from_pretrained(folder / "base")
    shape = AutoConfig.from_pretrained(folder / "base", tie_word_embeddings=False)
    other = AutoModelForCausalLM.from_config(shape)
    other.load_state_dict(untied.state_dict())
    other.save_pretrained(folder / "untied")
    AutoTokenizer.from_pretrained(folder / "base").save_pretrained(folder / "untied")
    grown = AutoTokenizer.from_pretrained(folder / "base")
    grown.add_tokens(list(NEW), special_tokens=True)
    grown.save_pretrained(folder / "grown")
    return folder


def ran(folder: Path, inputs: Path, recipe: Path, **sections: Any) -> Ended:
    data = "corpus" if recipe is PRETRAIN else "rows"
    tree: dict[str, Any] = {
        "run": {"dir": str(folder / "run")},
        "model": {"path": str(inputs / "base")},
        "data": {"train": str(inputs / f"{data}.jsonl"), "max_seq_len": 128, "cache_dir": str(inputs / "cache")},
        "train": {"steps": 1, "global_batch_tokens": 512, "microbatch_tokens": 512},
        "optim": {"lr": 1e-9, "warmup_steps": 0},
        "eval": {"every": None},
        "log": {"report": False},
    }
    for name, section in sections.items():
        tree[name] = tree.get(name, {}) | section
    tree["train"]["global_batch_tokens"] = tree["train"]["microbatch_tokens"] = max(512, tree["data"]["max_seq_len"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return run_here(folder / "config.yaml", recipe=recipe)


YARN = {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}, "max_position_embeddings": 1024}


@pytest.mark.parametrize("recipe", [PRETRAIN, SFT], ids=lambda path: path.stem)
def test_a_longer_context_is_trained_said_and_exported(inputs: Path, tmp_path: Path, recipe: Path) -> None:
    model = {"path": str(inputs / "base"), "config": YARN}
    ended = ran(tmp_path, inputs, recipe, model=model, data={"max_seq_len": 1024})
    assert ended.code == 0 and "with other positions: max_position_embeddings 256 -> 1024" in ended.out, ended.err
    shape = AutoConfig.from_pretrained(tmp_path / "run" / "model")
    assert shape.max_position_embeddings == 1024
    expected = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    assert expected.items() <= shape.rope_parameters.items()


def test_a_resumed_run_keeps_its_context(inputs: Path, tmp_path: Path) -> None:
    model = {"path": str(inputs / "base"), "config": YARN}
    assert ran(tmp_path, inputs, SFT, model=model).code == 0
    ended = ran(tmp_path, inputs, SFT, train={"steps": 2})
    assert ended.code == 2 and "model.config" in ended.err, ended.err


def test_an_adapter_cannot_hold_another_context(inputs: Path, tmp_path: Path) -> None:
    model = {"path": str(inputs / "base"), "config": YARN}
    ended = ran(tmp_path, inputs, SFT, model=model, adapter={"kind": "lora"})
    assert ended.code == 2 and "model.config: an adapter's folder names its base" in ended.err, ended.err


@pytest.mark.parametrize("base", ["base", "untied"])
@pytest.mark.parametrize("recipe", [PRETRAIN, SFT], ids=lambda path: path.stem)
def test_rows_of_new_tokens_start_at_the_mean_of_the_others(
    inputs: Path, tmp_path: Path, recipe: Path, base: str
) -> None:
    sections = {"model": {"path": str(inputs / base)}, "tokenizer": {"path": str(inputs / "grown")}}
    ended = ran(tmp_path, inputs, recipe, **sections)
    assert ended.code == 0 and ended.out.count("2 tokens that model.path=") == 1 and NEW[0] in ended.out, ended.err
    before = AutoModelForCausalLM.from_pretrained(inputs / base)
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert after.config.vocab_size == before.config.vocab_size + 2
    for matrix in ("get_input_embeddings", "get_output_embeddings"):
        old, new = (getattr(model, matrix)().weight for model in (before, after))
        torch.testing.assert_close(new[:-2], old, rtol=0, atol=1e-6)
        torch.testing.assert_close(new[-2:], old.mean(0).expand(2, -1), rtol=0, atol=1e-6)


def test_new_tokens_within_spare_rows_start_at_the_mean_too(inputs: Path, tmp_path: Path) -> None:
    spare = AutoModelForCausalLM.from_pretrained(inputs / "base")
    num_known = spare.config.vocab_size
    spare.resize_token_embeddings(num_known + 60, mean_resizing=False)
    spare.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(inputs / "base").save_pretrained(tmp_path / "base")
    sections = {"model": {"path": str(tmp_path / "base")}, "tokenizer": {"path": str(inputs / "grown")}}
    assert ran(tmp_path, inputs, PRETRAIN, **sections).code == 0
    weight = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model").get_input_embeddings().weight
    mean = weight[:num_known].mean(0).expand(2, -1)
    torch.testing.assert_close(weight[num_known : num_known + 2], mean, rtol=0, atol=1e-6)


def test_a_tokenizer_with_other_tokens_at_the_models_ids_is_refused(inputs: Path, tmp_path: Path) -> None:
    other = shutil.copytree(inputs / "base", tmp_path / "other")
    tree = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tree["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tree))
    for recipe in (PRETRAIN, SFT):
        ended = ran(tmp_path / recipe.stem, inputs, recipe, tokenizer={"path": str(other)})
        assert ended.code == 2 and ended.err.count("\n") == 1, ended.err
        assert f"tokenizer.path={other}: 2 ids of the 260 tokens of model.path=" in ended.err


def test_a_tokenizer_that_lacks_tokens_of_the_model_is_warned_of(inputs: Path, tmp_path: Path) -> None:
    sections = {"model": {"path": str(tmp_path / "base")}, "tokenizer": {"path": str(inputs / "base")}}
    model = AutoModelForCausalLM.from_pretrained(inputs / "base")
    model.resize_token_embeddings(model.config.vocab_size + 2, mean_resizing=False)
    model.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(inputs / "grown").save_pretrained(tmp_path / "base")
    ended = ran(tmp_path, inputs, PRETRAIN, **sections)
    assert ended.code == 0 and "2 tokens of model.path=" in ended.out and "are not in it" in ended.out, ended.err


@pytest.mark.parametrize("recipe", [PRETRAIN, SFT], ids=lambda path: path.stem)
@pytest.mark.parametrize("path", ["/no/such/folder", "./nothing"])
def test_a_model_that_is_not_there_is_named_by_its_own_key(
    inputs: Path, tmp_path: Path, recipe: Path, path: str
) -> None:
    ended = ran(tmp_path, inputs, recipe, model={"path": path})
    assert ended.code == 2 and f"error: model.path={path}: no such folder" in ended.err, ended.err
    ended = ran(tmp_path, inputs, recipe, tokenizer={"path": path})
    assert ended.code == 2 and f"error: tokenizer.path={path}: no such folder" in ended.err, ended.err


def test_missing_data_is_found_before_a_gguf_file_is_converted(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmtrain.models.load.given_folder", lambda path: pytest.fail("converts"))
    data = {"train": str(tmp_path / "nothing.jsonl")}
    ended = ran(tmp_path, inputs, SFT, model={"path": "model.gguf"}, data=data)
    assert ended.code == 2 and "nothing.jsonl: no such file or folder" in ended.err, ended.err
