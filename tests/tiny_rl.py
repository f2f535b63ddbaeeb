"""A task for reinforcement learning whose optimum is known: go on with the alphabet, from a letter.

Eight letters, a tiny Llama over them, and a reward: the share of a response's NUM_LETTERS places that hold the letter
after the one before, from the prompt's letter on, in a circle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml

LETTERS = "abcdefgh"
NUM_LETTERS = 4
SPECIAL = ("<bos>", "<eos>", "<pad>", "<unk>")


def alphabet(prompts: Sequence[str], responses: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """The reward."""
    return [share_right(prompt.strip(), response.split()) for prompt, response in zip(prompts, responses, strict=True)]


def share_right(letter: str, response: Sequence[str]) -> float:
    """Places that hold the letter after the one before, over NUM_LETTERS."""
    right, before = 0, letter
    for found in response[:NUM_LETTERS]:
        right += before in LETTERS and found == LETTERS[(LETTERS.index(before) + 1) % len(LETTERS)]
        before = found
    return right / NUM_LETTERS


def optimum() -> float:
    """The best mean score over all prompts, by trying every response."""
    best = [max(share_right(letter, word) for word in product(LETTERS, repeat=NUM_LETTERS)) for letter in LETTERS]
    return sum(best) / len(best)


def write_task(folder: Path) -> Path:
    """A model that knows nothing, its tokenizer, and a prompt for each letter, in a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    vocab = {token: i for i, token in enumerate((*SPECIAL, *LETTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = dict(zip(("bos_token", "eos_token", "pad_token", "unk_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder / "model")
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    LlamaForCausalLM(shape).save_pretrained(folder / "model")
    rows = [{"prompt": letter} for letter in LETTERS]
    (folder / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "held_out.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows * 8))
    return folder


def write_config(folder: Path, task: Path, **sections: Any) -> Path:
    """A configuration in `folder`, whose run goes to `folder/run`; `sections` replace or add keys."""
    prompts, held_out = str(task / "prompts.jsonl"), str(task / "held_out.jsonl")
    tree: dict[str, Any] = {
        "run": {"dir": str(folder / "run")},
        "model": {"path": str(task / "model")},
        "data": {"train": prompts, "eval": held_out, "chat_template": "none", "max_seq_len": 16},
        "policy": {"kl_coef": 0.0},
        "rollout": {
            "rewards": [f"{Path(__file__).resolve()}:alphabet"],
            "num_prompts": 64,
            "samples_per_prompt": 4,
            "max_new_tokens": NUM_LETTERS,
            "ppo_epochs": 2,
        },
        "train": {"steps": 160, "microbatch_tokens": 2048},
        "optim": {"lr": 3e-3, "schedule": "linear", "min_lr_ratio": 0.0, "warmup_steps": 0},
        "eval": {"every": 80, "before_after": 0},
        "checkpoint": {"every": None},
        "log": {"every": 20, "report": False},
    }
    for name, section in sections.items():
        tree[name] = tree.get(name, {}) | section
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path
