"""Continue a prompt with a trained model: `python -m llmtrain.cli.sample MODEL PROMPT`."""

from __future__ import annotations

import os
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from llmtrain.cli.recipe import EXIT_USER_ERROR

NUM_TOKENS = 160
TEMPERATURE = 0.7
TOP_K = 40


def sample(folder: str, prompt: str, seed: int = 0) -> str:
    """The prompt and what the model in a folder writes after it, up to NUM_TOKENS tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.manual_seed(seed)
    ids = model.generate(
        **tokenizer(prompt, return_tensors="pt"),
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=TOP_K,
        max_new_tokens=NUM_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
    )
    return str(tokenizer.decode(ids[0], skip_special_tokens=True))


def main() -> None:
    """Print one continuation; a folder that holds no model is told in one line."""
    if len(sys.argv) != 3 or not os.path.isdir(sys.argv[1]):
        print("usage: python -m llmtrain.cli.sample MODEL PROMPT, where MODEL is a folder", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print(sample(sys.argv[1], sys.argv[2]))


if __name__ == "__main__":
    main()
