"""Answer a file of prompts: `llmtrain generate RUN_OR_MODEL PROMPTS OUTPUT.jsonl`.

PROMPTS is a text file with a prompt a line, or JSON lines with `prompt` (text) or `messages`. OUTPUT gets a JSON line
for each, in order: what was given, and `response`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from llmtrain.cli.options import add_sampling
from llmtrain.models.tuned import load_tuned, prompt_ids, reply


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN_OR_MODEL", help="a run's folder, a model's or an adapter's")
    parser.add_argument("prompts", metavar="PROMPTS", type=Path)
    parser.add_argument("output", metavar="OUTPUT.jsonl", type=Path)
    parser.add_argument("--system", help="a system message before each prompt that is text")
    parser.add_argument("--batch-size", type=int, default=8, help="prompts answered at once (default: 8)")
    add_sampling(parser)


def run(arguments: argparse.Namespace) -> None:
    """Answer the prompts in batches of similar length; the output is written whole at the end of each batch."""
    rows = read_prompts(arguments.prompts)
    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size={arguments.batch_size}: give at least 1")
    model, tokenizer = load_tuned(arguments.model)
    torch.manual_seed(arguments.seed)
    prompts = [prompt_ids(tokenizer, _messages(row, arguments.system)) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), arguments.batch_size):
        chosen = order[start : start + arguments.batch_size]
        answers = reply(
            model,
            tokenizer,
            [prompts[i] for i in chosen],
            max_new_tokens=arguments.max_new_tokens,
            temperature=arguments.temperature,
            top_p=arguments.top_p,
        )
        for i, answer in zip(chosen, answers, strict=True):
            rows[i]["response"] = answer
    partial = arguments.output.with_name(f"{arguments.output.name}.partial")
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    partial.rename(arguments.output)
    print(f"{len(rows)} answers in {arguments.output}")


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """The prompts of a file. Raises ValueError naming the file and line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if path.suffix != ".jsonl":
            rows.append({"prompt": line})
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: not valid JSON ({error})") from None
        if not isinstance(row, dict) or not ({"prompt", "messages"} & row.keys()):
            raise ValueError(f"{path}:{number}: holds neither `prompt` nor `messages`")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: holds no prompt")
    return rows


def _messages(row: dict[str, Any], system: str | None) -> list[dict[str, Any]]:
    if "messages" in row:
        return list(row["messages"])
    given = row["prompt"]
    if not isinstance(given, str):
        return list(given)
    before = [{"role": "system", "content": system}] if system else []
    return [*before, {"role": "user", "content": given}]
