"""Continue a text with a trained model: `llmtrain sample RUN_OR_MODEL PROMPT`."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from llmtrain.models.folders.open import open_model

NUM_TOKENS = 160
TEMPERATURE = 0.7
TOP_K = 40


def sample(path: str, prompt: str, seed: int = 0) -> str:
    """The prompt and its continuation by the model of a path, up to NUM_TOKENS tokens."""
    model, tokenizer = open_model(path)
    torch.manual_seed(seed)
    generate: Any = model.generate
    ids = generate(
        **tokenizer(prompt, return_tensors="pt").to(model.device),
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=TOP_K,
        max_new_tokens=NUM_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
    )
    return str(tokenizer.decode(ids[0], skip_special_tokens=True))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN_OR_MODEL")
    parser.add_argument("prompt", metavar="PROMPT")


def run(arguments: argparse.Namespace) -> None:
    """Print one continuation."""
    print(sample(arguments.model, arguments.prompt))
