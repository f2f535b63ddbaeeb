"""What both sides of `ppo.py` start from: `python benchmarks/ppo_inputs.py SETTING.json`.

Written beside the setting: a tokenizer whose end and padding tokens a model never draws, so that every response has
full length; prompts of one length, from the running Python's standard library; a reward model, as an adapter
(`reward_adapter`) and with it merged (`reward`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from corpus import documents, short_documents
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llmtrain.config.adapter import AdapterConfig
from llmtrain.config.sections import TunedModelConfig
from llmtrain.models.adapters.base import base_facts
from llmtrain.models.adapters.lora import add_adapter
from llmtrain.models.folders.adapter import export_adapter, merge_adapter
from llmtrain.models.folders.bases import origin_of
from llmtrain.models.folders.kind import REWARD
from llmtrain.models.folders.model import ExportSpec
from llmtrain.models.load import load_pretrained
from llmtrain.models.wrappers.reward_model import RewardModel, score_model

NEVER_DRAWN: dict[str, Any] = {"eos_token": "<issue_closed>", "pad_token": "<empty_output>"}
ADAPTER_SPREAD = 0.02  # of its second matrices, which start at zero


def write_tokenizer(model: str, folder: Path) -> PreTrainedTokenizerBase:
    """The model's tokenizer without a chat template, and with other tokens for end and padding."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({**NEVER_DRAWN})
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_prompts(tokenizer: PreTrainedTokenizerBase, path: Path, num_prompts: int, prompt_tokens: int) -> None:
    """Beginnings of documents, as text that is `prompt_tokens` tokens long, and as these."""
    rows: list[str] = []
    for text in short_documents(documents()):
        cut = tokenizer.decode(tokenizer(text)["input_ids"][:prompt_tokens])
        input_ids = tokenizer(cut)["input_ids"]
        if len(input_ids) == prompt_tokens:
            rows.append(json.dumps({"prompt": cut, "input_ids": input_ids}) + "\n")
        if len(rows) == num_prompts:
            break
    path.write_text("".join(rows), encoding="utf-8")


def write_reward_model(setting: dict[str, Any], tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """A reward model of random head and adapter."""
    config = TunedModelConfig(path=setting["model"])
    adapter = AdapterConfig(kind="lora", rank=setting["rank"], alpha=setting["alpha"])
    causal = load_pretrained(config, tokenizer, max_seq_len=1024)
    add_adapter(causal, adapter, (), seed=0)
    for name, parameter in causal.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=ADAPTER_SPREAD)
    model = RewardModel(score_model(causal, config, pad_token_id=tokenizer.pad_token_id, seed=0), "segments")
    trained = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    origin, facts = origin_of(setting["model"]), base_facts(model.model)
    spec = ExportSpec(model.model.config, tokenizer, REWARD, origin=origin, adapter=adapter, base=facts)
    export_adapter(folder / "reward_adapter", trained, "", spec)
    merge_adapter(folder / "reward_adapter", folder / "reward")


def main() -> None:
    path = Path(sys.argv[1])
    setting = json.loads(path.read_text(encoding="utf-8"))
    tokenizer = write_tokenizer(setting["model"], path.parent / "tokenizer")
    num_prompts = setting["episodes"] * (setting["updates"] + 1)  # TRL steps otherwise on the last batch of the data
    write_prompts(tokenizer, path.parent / "prompts.jsonl", num_prompts, setting["prompt_tokens"])
    write_reward_model(setting, tokenizer, path.parent)


if __name__ == "__main__":
    main()
