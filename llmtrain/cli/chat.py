"""Chat with a tuned model in the terminal: `llmtrain chat RUN_OR_MODEL`.

An empty line or end of input ends it; `/new` starts over. Answers stream as they are written.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from transformers import TextStreamer

from llmtrain.cli.options import add_sampling, check_sampling
from llmtrain.models.folders.open import open_model, prompt_ids, reply


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN_OR_MODEL", help="a run's folder, a model's or an adapter's")
    parser.add_argument("--system", help="a system message to begin with")
    add_sampling(parser)


def run(arguments: argparse.Namespace) -> None:
    """Read a line, answer it, until there is none."""
    check_sampling(arguments)
    model, tokenizer = open_model(arguments.model)
    torch.manual_seed(arguments.seed)
    start: list[dict[str, Any]] = [{"role": "system", "content": arguments.system}] if arguments.system else []
    messages = list(start)
    is_terminal = sys.stdin.isatty()
    while line := _read("> " if is_terminal else ""):
        if line == "/new":
            messages = list(start)
            continue
        messages.append({"role": "user", "content": line})
        streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        (answer,) = reply(
            model,
            tokenizer,
            [prompt_ids(tokenizer, messages)],
            max_new_tokens=arguments.max_new_tokens,
            temperature=arguments.temperature,
            top_p=arguments.top_p,
            streamer=streamer,
        )
        messages.append({"role": "assistant", "content": answer})


def _read(prompt: str) -> str | None:
    try:
        return input(prompt).strip()
    except EOFError:
        return None
