"""What an export keeps of its base: number type, generation settings, files that transformers 4 reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_chat import write_config, write_model, write_rows
from tiny_llama import LLAMA3_ROPE
from tiny_run import SFT, run_here
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig

from llmtrain.config.adapter import AdapterConfig
from llmtrain.models.adapters.lora import add_adapter
from llmtrain.models.adapters.quantized import hold_linear_layers
from llmtrain.models.folders.compatible import add_older_names
from llmtrain.models.folders.generation import generation_config
from llmtrain.models.folders.open import open_model
from llmtrain.models.folders.saved_dtype import differing_dtype, saved_dtype
from llmtrain.system.precision import name_of

SETTINGS = {"eos_token_id": [257, 256], "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.05, "top_k": 20}
LORA = {"kind": "lora", "rank": 4, "alpha": 8, "merge": True}


def write_base(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    write_model(folder)
    AutoModelForCausalLM.from_pretrained(folder).to(dtype).save_pretrained(folder)
    GenerationConfig(**SETTINGS, do_sample=True).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("adapter", [{"kind": "none"}, LORA], ids=["full", "lora"])
def test_a_run_exports_in_the_type_of_its_base_with_its_settings(tmp_path: Path, adapter: dict[str, Any]) -> None:
    base = write_base(tmp_path / "base")
    rows = write_rows(tmp_path / "rows.jsonl", seed=1, num_rows=40)
    config = write_config(
        tmp_path / "sft", base, [rows], adapter=adapter, train={"steps": 2}, eval={"every": None}, checkpoint={}
    )
    ended = run_here(config, recipe=SFT)
    assert ended.code == 0, ended.err
    run = tmp_path / "sft" / "run"
    whole = run / ("merged" if adapter == LORA else "model")
    assert {t.dtype for t in load_file(whole / "model.safetensors").values()} == {torch.bfloat16}
    assert f"{whole}, in bf16" in ended.out
    for folder in {whole, run / "model"}:
        kept = GenerationConfig.from_pretrained(folder)
        assert (kept.temperature, kept.top_p, kept.repetition_penalty, kept.top_k) == (0.6, 0.9, 1.05, 20)
        assert kept.eos_token_id == [257, 256] and kept.do_sample
        tokens = json.loads((folder / "tokenizer_config.json").read_text())
        assert tokens["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert tokens["additional_special_tokens"] == ["<|im_start|>"] and "extra_special_tokens" not in tokens
        loaded, own = (AutoTokenizer.from_pretrained(each) for each in (folder, base))
        text = "<|im_start|>user\nHi<|im_end|>"
        assert loaded(text).input_ids == own(text).input_ids and loaded.model_input_names == own.model_input_names


def test_the_key_and_the_flag_give_another_type(tmp_path: Path) -> None:
    from llmtrain.cli.main import main

    base = write_base(tmp_path / "base")
    rows = write_rows(tmp_path / "rows.jsonl", seed=1, num_rows=40)
    config = write_config(tmp_path / "sft", base, [rows], train={"steps": 1}, eval={"every": None})
    assert run_here(config, "checkpoint.export_dtype=fp32", recipe=SFT).code == 0
    run = tmp_path / "sft" / "run"
    assert {t.dtype for t in load_file(run / "model" / "model.safetensors").values()} == {torch.float32}
    assert not main(["export", str(run), "--output", str(tmp_path / "half"), "--dtype", "fp16"])
    assert {t.dtype for t in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.float16}


@pytest.mark.parametrize(
    ("base", "stops", "expected"),
    [
        ({}, (5,), {"eos_token_id": [5], "do_sample": True}),
        ({"eos_token_id": 7}, (5,), {"eos_token_id": [5, 7]}),
        ({"eos_token_id": [7, 5]}, (5, 6), {"eos_token_id": [5, 6, 7]}),
        ({"do_sample": False}, (5,), {"do_sample": False}),
        ({"do_sample": False, "temperature": 0.7}, (5,), {"do_sample": True, "temperature": 0.7}),
        (
            {"eos_token_id": 7, "bos_token_id": 9, "max_new_tokens": 64},
            (),
            {"eos_token_id": [1, 7], "max_new_tokens": 64},
        ),
    ],
)
def test_settings_are_kept_and_stops_added(
    base: dict[str, Any], stops: tuple[int, ...], expected: dict[str, Any], tmp_path: Path
) -> None:
    from tiny_tokenizers import byte_level_bpe

    config = generation_config(base, byte_level_bpe(), stops)
    config.save_pretrained(tmp_path)  # which refuses settings that contradict each other
    found = GenerationConfig.from_pretrained(tmp_path).to_dict()
    assert {name: found[name] for name in expected} == expected


ROPE = {
    "llama3": LLAMA3_ROPE,
    "plain": {"rope_type": "default", "rope_theta": 1e6},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
}


@pytest.mark.parametrize("rope", ROPE)
def test_ropes_theta_has_the_name_that_transformers_4_reads(tmp_path: Path, rope: str) -> None:
    LlamaConfig(hidden_size=32, num_attention_heads=2, rope_parameters=dict(ROPE[rope])).save_pretrained(tmp_path)
    before = AutoConfig.from_pretrained(tmp_path).to_dict()
    add_older_names(tmp_path)
    tree = json.loads((tmp_path / "config.json").read_text())
    scaling = {name: value for name, value in ROPE[rope].items() if name != "rope_theta"}
    assert tree["rope_theta"] == ROPE[rope]["rope_theta"]
    assert tree.get("rope_scaling") == (None if rope == "plain" else scaling)
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == before  # and transformers 5 reads what it did


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.parametrize(("kind", "saved"), [("lora", "bfloat16"), ("dora", "float16")])
def test_a_frozen_base_held_as_it_is_saved_trains_the_same(tmp_path: Path, kind: str, saved: str) -> None:
    base = write_base(tmp_path / "base", vars(torch)[saved])
    rows = write_rows(tmp_path / "rows.jsonl", seed=1, num_rows=60)
    told: dict[str, Any] = {}
    for dtype in ("auto", "fp32"):
        config = write_config(
            tmp_path / dtype,
            base,
            [rows],
            model={"path": str(base), "dtype": dtype},
            adapter={"kind": kind, "rank": 4},
            train={"steps": 3, "precision": "bf16"},
            eval={"every": None},
        )
        told[dtype] = run_here(config, recipe=SFT)
        assert told[dtype].code == 0, told[dtype].err
    assert losses(tmp_path / "auto" / "run") == losses(tmp_path / "fp32" / "run")
    assert ("linear layers stay in" in told["auto"].out) and ("linear layers stay in" not in told["fp32"].out)


def test_an_fp32_run_holds_its_base_in_fp32(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    rows = write_rows(tmp_path / "rows.jsonl", seed=1, num_rows=40)
    config = write_config(
        tmp_path / "a", base, [rows], adapter={"kind": "lora"}, train={"steps": 1}, eval={"every": None}
    )
    ended = run_here(config, recipe=SFT)
    assert ended.code == 0 and "linear layers stay in" not in ended.out


def test_frozen_linear_layers_take_half_the_memory(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(write_base(tmp_path), dtype=torch.float32)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    add_adapter(model, AdapterConfig(kind="lora", target=["q_proj"]), (), 0)
    hold_linear_layers(model, torch.bfloat16)
    for name, parameter in model.named_parameters():
        is_held = "_proj" in name and "lora_" not in name
        assert parameter.dtype == (torch.bfloat16 if is_held else torch.float32), name
        assert is_held != parameter.requires_grad or "norm" in name or "embed" in name
        if (known := before.get(name.replace(".base_layer", ""))) is not None:
            assert torch.equal(parameter.float(), known)  # they were saved in bf16


def write_base_named(folder: Path, named: str, dtype: torch.dtype) -> Path:
    """A base whose configuration names another type than that of its weights."""
    write_model(folder, spread=0.2)
    AutoModelForCausalLM.from_pretrained(folder).to(dtype).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": named}))
    return folder


NAMED = [("bfloat16", torch.float32), ("float32", torch.bfloat16), ("float16", torch.bfloat16)]


@pytest.mark.parametrize(("named", "dtype"), NAMED)
def test_the_weights_own_type_counts_and_a_configuration_of_another_is_said(
    tmp_path: Path, named: str, dtype: torch.dtype, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_base_named(tmp_path / "base", named, dtype)
    line = f"{base}: its config.json names {name_of(getattr(torch, named))}, its weights are in {name_of(dtype)}"
    model, _ = open_model(str(base))
    assert capsys.readouterr().out.count(line) == 1
    stored = load_file(base / "model.safetensors")
    held = model.state_dict()
    assert all(held[name].dtype == dtype and held[name].equal(stored[name]) for name in stored)

    rows = write_rows(tmp_path / "rows.jsonl", seed=1, num_rows=40)
    sections = {"train": {"steps": 1, "precision": "bf16"}, "eval": {"every": None}, "adapter": LORA}
    ended = run_here(write_config(tmp_path / "sft", base, [rows], **sections), recipe=SFT)
    assert ended.code == 0 and ended.out.count(line) == 1, ended.err
    assert ("stay in bf16" in ended.out) == (dtype == torch.bfloat16)  # rounded to what a file names, it is another
    merged = load_file(tmp_path / "sft" / "run" / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in merged.values()} == {dtype}
    capsys.readouterr()
    open_model(str(tmp_path / "sft" / "run"))
    assert capsys.readouterr().out.count(line) == 1


def test_the_type_is_that_of_most_values_in_the_files_that_are_loaded(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    model.model.norm.float()
    model.save_pretrained(base, max_shard_size="20KB")
    assert len(list(base.glob("model-*.safetensors"))) > 1
    (base / "model.safetensors").unlink()
    save_file({"other": torch.zeros(1 << 20)}, base / "consolidated.safetensors")
    assert saved_dtype(str(base)) == torch.bfloat16 and differing_dtype(str(base)) is None
