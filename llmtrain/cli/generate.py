"""Answer a file of prompts: `llmtrain generate RUN_OR_MODEL PROMPTS OUTPUT.jsonl`.

PROMPTS is a text file with one prompt per line, or JSON lines with `prompt` (text) or `messages`. OUTPUT gets a JSON
line for each, in order: what was given, and `response`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmtrain.cli.options import add_sampling, check_sampling
from llmtrain.data.formats.messages import Message, text_message, tool_list, turn_messages
from llmtrain.models.folders.open import open_model, prompt_ids, reply


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN_OR_MODEL", help="a run's folder, a model's or an adapter's")
    parser.add_argument("prompts", metavar="PROMPTS", type=Path)
    parser.add_argument("output", metavar="OUTPUT.jsonl", type=Path)
    parser.add_argument("--system", help="a system message before each prompt that is text")
    parser.add_argument("--batch-size", type=int, default=8, help="prompts answered at once (default: 8)")
    add_sampling(parser)


def run(arguments: argparse.Namespace) -> None:
    """Answer the prompts in batches of similar length; OUTPUT is there whole once all are answered."""
    check_sampling(arguments)
    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size={arguments.batch_size}: give at least 1")
    rows = read_prompts(arguments.prompts)
    partial = arguments.output.with_name(f"{arguments.output.name}.partial")
    partial.touch()  # a folder that is not there is found before the first answer
    partial.unlink()  # what ends before it leaves nothing
    model, tokenizer = open_model(arguments.model)
    torch.manual_seed(arguments.seed)
    prompts = [prompt_ids(tokenizer, row.messages(arguments.system), row.tools) for row in rows]
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
            rows[i].fields["response"] = answer
        answered = [row.fields for row in rows if "response" in row.fields]
        partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in answered), encoding="utf-8")
    partial.rename(arguments.output)
    print(f"{len(rows)} answers in {arguments.output}")


@dataclass(frozen=True)
class PromptRow:
    """One row of a prompts file, checked."""

    fields: dict[str, Any]
    given: list[Message]
    tools: tuple[Mapping[str, Any], ...]
    is_text: bool

    def messages(self, system: str | None) -> list[Message]:
        """The messages before the answer; a system message goes before a prompt that is text."""
        before = [text_message("system", system, "--system")] if system and self.is_text else []
        return [*before, *self.given]


def read_prompts(path: Path) -> list[PromptRow]:
    """The prompts of a file. Raises ValueError naming the file and line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(_row(json.loads(line) if path.suffix == ".jsonl" else {"prompt": line}))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not valid JSON ({error})") from None
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
    if not rows:
        raise ValueError(f"{path}: holds no prompt")
    return rows


def _row(fields: Any) -> PromptRow:
    """A row's prompt. Raises ValueError saying what is wrong with it."""
    if not isinstance(fields, dict) or not ({"prompt", "messages"} & fields.keys()):
        raise ValueError("holds neither `prompt` nor `messages`")
    name = "messages" if "messages" in fields else "prompt"
    tools = tool_list(fields.get("tools"), "tools")
    if name == "prompt" and isinstance(fields[name], str):
        return PromptRow(fields, [text_message("user", fields[name], name)], tools, is_text=True)
    return PromptRow(fields, turn_messages(fields[name], name), tools, is_text=False)
