"""A DoRA adapter opened by peft and by transformers alone: docs/sft.md says that the second answers wrongly.

If the second half fails, transformers reads DoRA now: take the sentence out of docs/sft.md, and this test.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

IDS = torch.arange(10)[None]


@pytest.fixture
def adapter(tmp_path: Path) -> tuple[Path, Path, Tensor]:
    """A base, a DoRA adapter with other magnitudes than at its start, and the logits of both together."""
    torch.manual_seed(0)
    shape = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    LlamaForCausalLM(shape).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", use_dora=True, init_lora_weights=False))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "magnitude" in name:
                weight.mul_(1.5)
        logits = model.eval()(IDS).logits
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "base", tmp_path / "adapter", logits


@torch.no_grad()
def test_peft_opens_what_transformers_alone_opens_wrongly(adapter: tuple[Path, Path, Tensor]) -> None:
    base, folder, logits = adapter
    by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()(IDS).logits
    assert torch.equal(by_peft, logits)
    by_transformers = AutoModelForCausalLM.from_pretrained(folder).eval()(IDS).logits
    assert (by_transformers - logits).abs().max() > 0.5 * logits.abs().max()
