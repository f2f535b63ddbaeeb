"""An instruction run small enough to be trained, killed and resumed many times: a model, rows, a configuration."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from tiny_run import write_tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_model(folder: Path, *, chat: bool = True, spread: float | None = None) -> Path:
    """A Llama of 30,000 parameters over bytes with its tokenizer: a chat model, or a base one without a template.

    `spread`: the deviation of its weights, where it must not answer everything alike; None: as Llama is initialised.
    """
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    names = ("<|bos|>", "<|im_end|>" if chat else "<|eos|>", "<|pad|>")
    write_tokenizer(folder, special_tokens=names)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if chat:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
        tokenizer.chat_template = CHATML
        tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    for parameter in model.parameters() if spread is not None else ():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=spread)
    model.save_pretrained(folder)
    return folder


def some_logits(path: Path) -> torch.Tensor:
    """What the model of a folder gives to some tokens."""
    from llmtrain.models.folders.open import open_model

    model, _ = open_model(str(path))
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.arange(60, 90)[None]).logits
    return logits


def write_rows(path: Path, *, seed: int, num_rows: int = 120) -> Path:
    """Conversations of one or two turns whose answer repeats a word of the question; the file."""
    drawn = random.Random(seed)
    words = ["".join(drawn.choices("abcdefgh", k=drawn.randint(1, 6))) for _ in range(40)]
    rows = []
    for _ in range(num_rows):
        messages = []
        for _ in range(drawn.randint(1, 2)):
            question = drawn.choices(words, k=drawn.randint(1, 6))
            messages.append({"role": "user", "content": " ".join(question)})
            messages.append({"role": "assistant", "content": question[0]})
        rows.append({"messages": messages})
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def write_config(folder: Path, base: Path, sources: Sequence[Path | dict[str, Any]], **sections: Any) -> Path:
    """A configuration of ten steps in `folder`, whose run goes to `folder/run`; `sections` replace or add keys."""
    tree: dict[str, Any] = {
        "run": {"dir": str(folder / "run")},
        "model": {"path": str(base)},
        "data": {
            "train": [source if isinstance(source, dict) else str(source) for source in sources],
            "max_seq_len": 128,
            "eval_fraction": 0.1,
            "cache_dir": str(folder / "cache"),
        },
        "train": {"steps": 10, "global_batch_tokens": 512, "microbatch_tokens": 256},
        "optim": {"lr": 0.01},
        "eval": {"every": 5},
        "checkpoint": {"every": 4},
        "log": {"every": 1, "report": False},
    }
    for name, section in sections.items():
        tree[name] = tree.get(name, {}) | section
    if "reward" not in tree:  # which measures nothing before and after, so that the key would do nothing
        tree["eval"] = {"before_after": 0} | tree["eval"]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path
