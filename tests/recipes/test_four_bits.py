"""A base whose folder holds its weights in 4 bits: adapters are trained on it, all else is refused by name."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_chat import some_logits, write_config, write_model, write_rows
from tiny_pairs import write_pairs
from tiny_run import PRETRAIN, RLHF, SFT, Ended, run_here
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmtrain.cli.main import main
from llmtrain.models.adapters import quantized
from llmtrain.models.folders import packed_weights
from llmtrain.models.folders.open import open_model

LORA = {"kind": "lora", "rank": 4, "alpha": 8}
NF4: dict[str, Any] = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_quant_storage": "uint8",
}
installed = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: make test-quantize"
)


def write_marked(folder: Path, quantization: dict[str, Any]) -> Path:
    """A base whose configuration says that its weights are quantized."""
    base = write_model(folder / "base")
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantization}))
    return base


def ran(folder: Path, base: Path, **sections: Any) -> Ended:
    recipe = RLHF if sections.keys() & {"preference", "reward", "policy"} else SFT
    rows = write_pairs(folder.parent / "pairs.jsonl", seed=1, num_pairs=40)
    if recipe == SFT:
        rows = write_rows(folder.parent / "rows.jsonl", seed=1, num_rows=40)
    settings = {"data": {"eval_fraction": 0.25}, "train": {"steps": 1}, "eval": {"every": None}} | sections
    return run_here(write_config(folder, base, [rows], **settings), recipe=recipe)


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no adapter": (NF4, {}, "its weights are quantized (nf4) and cannot be trained: set adapter.kind=lora"),
    "fp4": (NF4 | {"bnb_4bit_quant_type": "fp4"}, {}, "quantized (fp4) and cannot be trained"),
    "twice": (NF4, {"adapter": LORA, "model": {"quantize": "nf4"}}, ""),
    "8 bits": (
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {"adapter": LORA},
        "its weights are quantized (int8): take the model that they were made from",
    ),
    "gptq": ({"quant_method": "gptq", "bits": 4}, {"adapter": LORA}, "its weights are quantized (gptq): take the"),
    "fp8": ({"quant_method": "fp8"}, {"adapter": LORA}, "its weights are quantized (fp8): take the model"),
    "packed as floats": (
        NF4 | {"bnb_4bit_quant_storage": "bfloat16"},
        {"adapter": LORA},
        "its weights in 4 bits are stored as bfloat16",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.setattr(packed_weights, "find_spec", lambda name: True)
    form, sections, expected = REFUSED[case]
    ended = ran(tmp_path / "run", write_marked(tmp_path, form), **sections)
    assert ended.code == 2 and ended.err.count("\n") == 1 and expected in ended.err, ended.err


def test_pretraining_does_not_go_on_from_it(tmp_path: Path) -> None:
    base = write_marked(tmp_path, NF4)
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"A fox {n}. " * 20}) + "\n" for n in range(40)))
    ended = run_here(write_config(tmp_path / "run", base, [text]), recipe=PRETRAIN)
    assert ended.code == 2 and "(nf4), and pretraining trains every weight" in ended.err, ended.err


def test_without_bitsandbytes_it_is_said_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_weights, "find_spec", lambda name: None)
    base = write_marked(tmp_path, NF4)
    ended = ran(tmp_path / "run", base, adapter=LORA)
    assert ended.code == 2 and ended.err.count("\n") == 1, ended.err
    expected = r"its weights are in 4 bits \(nf4\), which needs bitsandbytes: pip install 'llmtrain\[quantize\]'"
    assert re.search(expected, ended.err), ended.err
    with pytest.raises(ValueError, match=expected):
        open_model(str(base))


@pytest.fixture(scope="module", params=["nf4", "fp4"])
def four_bits(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base as bitsandbytes saves it."""
    from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp(request.param)
    plain = write_model(folder / "plain")
    tokenizer = AutoTokenizer.from_pretrained(plain)
    shape = LlamaConfig.from_pretrained(plain, hidden_size=64, intermediate_size=128, num_key_value_heads=2)
    model = LlamaForCausalLM(shape)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(plain)
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=request.param, bnb_4bit_use_double_quant=request.param == "nf4"
    )
    packed = AutoModelForCausalLM.from_pretrained(plain, quantization_config=settings, dtype=torch.float32)
    packed.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    return folder / "base"


@installed
@pytest.mark.slow
def test_an_adapter_is_trained_chats_merges_and_goes_on(four_bits: Path, tmp_path: Path) -> None:
    assert quantized.in_4_bits(open_model(str(four_bits))[0])
    ended = ran(tmp_path / "first", four_bits, adapter=LORA, train={"steps": 3}, optim={"lr": 0.03, "warmup_steps": 0})
    assert ended.code == 0, ended.err
    run = tmp_path / "first" / "run"
    trained = some_logits(run)
    assert (trained - some_logits(four_bits)).abs().max() > 0.1
    main(["merge", str(run), str(tmp_path / "merged")])
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    torch.testing.assert_close(some_logits(tmp_path / "merged"), trained, rtol=1e-4, atol=1e-4)
    for name, adapter in (("on", {"kind": "lora", "continue": True}), ("from", {"kind": "none"})):
        ended = ran(tmp_path / name, run, adapter=adapter, optim={"lr": 1e-30, "warmup_steps": 0})
        assert ended.code == 0, ended.err
        torch.testing.assert_close(some_logits(tmp_path / name / "run"), trained, rtol=1e-4, atol=1e-4)
    base = json.loads((run / "model" / "base.json").read_text())
    (run / "model" / "base.json").write_text(json.dumps(base | {"weights": "0" * 32}))
    with pytest.raises(ValueError, match=r"was trained on another base .* \(weights differ\)"):
        open_model(str(run))


@installed
@pytest.mark.slow
@pytest.mark.parametrize(
    "stage",
    [
        {"preference": {}},
        {"reward": {}},
        {
            "policy": {"critic": "separate", "advantage": "gae"},
            "rollout": {"rewards": [{"name": "length", "target": 4}], "num_prompts": 4, "max_new_tokens": 6},
            "train": {"steps": 1, "microbatch_tokens": 512, "global_batch_tokens": 65536},
        },
    ],
    ids=["dpo", "reward", "ppo"],
)
def test_alignment_trains_on_it(four_bits: Path, tmp_path: Path, stage: dict[str, Any]) -> None:
    ended = ran(tmp_path / "run", four_bits, adapter=LORA, **stage)
    assert ended.code == 0, ended.err
