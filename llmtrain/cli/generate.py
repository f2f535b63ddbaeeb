"""Answer a file of prompts: `llmtrain generate RUN_OR_MODEL PROMPTS OUTPUT.jsonl`.

PROMPTS is a text file with one prompt per line, or JSON lines with `prompt` (text) or `messages`. OUTPUT gets a JSON
line for each, in order: what was given, and `response`; and `message`, where the tokenizer's response template finds
thoughts or calls in it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtrain.cli.options import add_sampling, add_template_kwargs, check_sampling, template_kwargs
from llmtrain.data.formats.messages import Message, text_message, tool_list, turn_messages
from llmtrain.data.sources.compressed import readable
from llmtrain.data.sources.json_rows import read_jsonl
from llmtrain.data.sources.rows import BadRow, Wanted
from llmtrain.data.sources.text import decoded_chunks
from llmtrain.system.counted import counted
from llmtrain.system.files import require_file
from llmtrain.system.json_lines import json_line
from llmtrain.system.paths import local_path
from llmtrain.system.terminal import say

if TYPE_CHECKING:
    from llmtrain.replies.reply import Reply, Speaker

SECONDS_BETWEEN_LINES = 5.0
TABLES = (".csv", ".tsv", ".parquet", ".arrow", ".json")  # whose lines are not prompts
JSON_LINES = (".jsonl", ".ndjson")
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
PROMPT_FIELDS = "FILE.jsonl with `prompt` or `messages`"
WRITTEN = {"response", "message"}  # fields of OUTPUT
ALL_FIELDS = Wanted(lambda row: True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN_OR_MODEL", help="a run's folder, a model's, an adapter's, or a GGUF file")
    parser.add_argument("prompts", metavar="PROMPTS", type=local_path, help="file of prompts")
    parser.add_argument("output", metavar="OUTPUT.jsonl", type=local_path, help="file to write")
    parser.add_argument("--system", help="a system message before each prompt that is text")
    parser.add_argument("--batch-size", type=int, default=8, help="prompts answered at once (default: 8)")
    add_template_kwargs(parser)
    add_sampling(parser)


def run(arguments: argparse.Namespace) -> None:
    """Answer the prompts in batches of similar length; OUTPUT is there whole once all are answered."""
    import torch

    from llmtrain.replies.reply import ReplyOptions, Speaker

    check_sampling(arguments)
    given = template_kwargs(arguments)
    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size={arguments.batch_size}: give at least 1")
    rows = read_prompts(arguments.prompts)
    _check_output(arguments.output, arguments.prompts)
    partial = arguments.output.with_name(f"{arguments.output.name}.partial")
    partial.touch()  # a folder that is not there is found before the first answer
    partial.unlink()  # what ends before it leaves nothing
    say(f"loading {arguments.model}")
    speaker = Speaker.opened(arguments.model, given)
    said = time.monotonic()
    torch.manual_seed(arguments.seed)
    options = ReplyOptions(arguments.max_new_tokens, arguments.temperature, arguments.top_p)
    prompts = [_prompt_ids(speaker, row, arguments.system) for row in rows]
    length = f"of at most {arguments.max_new_tokens:,} tokens each"
    say(f"answering {counted(len(rows), 'prompt')}, {arguments.batch_size} at once, {length}")
    replaced = sum(bool(WRITTEN & row.fields.keys()) for row in rows)
    if replaced:
        say(
            f"{counted(replaced, 'row')} with a field {' or '.join(sorted(WRITTEN))}, which OUTPUT has from the model "
            "alone"
        )
    with_answer = sum(row.has_answer for row in rows)
    if with_answer:
        say(
            f"{counted(with_answer, 'row')} of messages that end with an answer, which the model is not given; to have "
            "it continued, call the messages `prompt`"
        )
    replies: dict[int, Reply] = {}
    for chosen in _batches(speaker, prompts, options.max_new_tokens, arguments.batch_size):
        answers = speaker.replies([prompts[i] for i in chosen], options, [rows[i].tools for i in chosen])
        for i, answer in zip(chosen, answers, strict=True):
            replies[i] = answer
        answered = [_answered(rows[i], replies[i]) for i in sorted(replies)]
        partial.write_text("".join(map(json_line, answered)), encoding="utf-8")
        if time.monotonic() - said > SECONDS_BETWEEN_LINES:
            say(f"{len(answered):,} of {counted(len(rows), 'prompt')} answered")
            said = time.monotonic()
    partial.rename(arguments.output)
    for line in _account(speaker, list(replies.values())):
        say(line)
    say(f"{counted(len(rows), 'answer')} in {arguments.output}")


def _check_output(output: Path, prompts: Path) -> None:
    """Raises ValueError where the answers would have no place of their own."""
    if output.is_dir():
        raise ValueError(f"{output}: a folder: name the file for the answers")
    if not output.parent.is_dir():
        raise ValueError(f"{output}: no folder {output.parent}")
    if output.exists() and output.samefile(prompts):
        raise ValueError(f"{output}: holds the prompts, which the answers would replace: name another file")


def _answered(row: PromptRow, reply: Reply) -> dict[str, Any]:
    """The row of OUTPUT; fields of its names that were given are replaced."""
    message = {"message": reply.message} if reply.is_parsed else {}
    return {
        **{name: row.fields[name] for name in row.fields if name not in WRITTEN},
        "response": reply.content,
        **message,
    }


def _prompt_ids(speaker: Speaker, row: PromptRow, system: str | None) -> list[int]:
    from llmtrain.data.chat.asked import left_out

    messages = row.messages(system)
    try:
        ids = speaker.prompt_ids(messages, row.tools)
    except ValueError as error:
        raise ValueError(f"{row.where}: {error}") from None
    if (part := left_out(speaker.tokenizer, messages, row.tools, speaker.template_kwargs)) is not None:
        raise ValueError(f"{row.where}: the chat template leaves out {part}, which the model would never read")
    return ids


def _batches(
    speaker: Speaker, prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_size: int
) -> Iterator[list[int]]:
    """Indices of prompts by length; one whose answer may reach the model's last position is alone.

    A batch grows until its longest prompt has no room left.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    roomy = [i for i in order if speaker.fits(prompts[i], max_new_tokens)]
    for start in range(0, len(roomy), batch_size):
        yield roomy[start : start + batch_size]
    for i in order[len(roomy) :]:
        yield [i]


def _account(speaker: Speaker, replies: Sequence[Reply]) -> Iterator[str]:
    """What became of the replies, where they are not plain answers."""
    cut = sum(not reply.stopped for reply in replies)
    if cut:
        limits = "--max-new-tokens" + (
            f" or the model's {speaker.positions:,} positions" if speaker.positions is not None else ""
        )
        yield f"{cut} of {len(replies)} answers were cut at {limits}"
    problems = [reply.problem for reply in replies if reply.problem is not None]
    if problems:
        yield (
            f"{len(problems)} of {len(replies)} answers are as the model wrote them, since the tokenizer's response "
            f"template does not fit them ({problems[0]})"
        )
    special = {token.content for token in speaker.tokenizer.added_tokens_decoder.values() if token.special}
    if speaker.response_template is None:
        shown = sum(any(token in reply.content for token in special) for reply in replies)
        if shown:
            yield f"{shown} of {len(replies)} answers hold special tokens: the tokenizer has no response template"


@dataclass(frozen=True)
class PromptRow:
    """One row of a prompts file, checked."""

    fields: dict[str, Any]
    given: list[Message]
    tools: tuple[Mapping[str, Any], ...]
    is_text: bool
    where: str  # file:line
    has_answer: bool = False  # `messages` end with an answer, which the model is not given

    def messages(self, system: str | None) -> list[Message]:
        """The messages before the answer; a system message goes before a prompt that is text."""
        before = [text_message("system", system, "--system")] if system and self.is_text else []
        return [*before, *self.given]


def read_prompts(path: Path) -> list[PromptRow]:
    """The prompts of a file. Lines end with "\\n" or "\\r\\n" alone. Raises ValueError naming the file and line."""
    suffix = next((suffix for suffix in reversed(path.suffixes) if suffix not in COMPRESSED), "")
    if suffix in TABLES:
        raise ValueError(f"{path}: prompts are read from a text file, one a line, or from JSON lines ({PROMPT_FIELDS})")
    require_file(path)
    rows = []
    with readable(path):
        for fields, where in _json_fields(path) if suffix in JSON_LINES else _lines(path):
            try:
                rows.append(_row(fields, where))
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
    if not rows:
        raise ValueError(f"{path}: holds no prompt")
    return rows


def _json_fields(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    for row in read_jsonl(path, ALL_FIELDS):
        if isinstance(row, BadRow):
            raise ValueError(row.message)
        yield dict(row.fields), row.where


def _lines(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    for number, line in enumerate("".join(decoded_chunks(path)).split("\n"), start=1):
        if line.strip():
            yield {"prompt": line.removesuffix("\r")}, f"{path}:{number}"


def _row(fields: dict[str, Any], where: str) -> PromptRow:
    """A row's prompt. Raises ValueError saying what is wrong with it."""
    if not ({"prompt", "messages"} & fields.keys()):
        raise ValueError("holds neither `prompt` nor `messages`")
    if {"prompt", "messages"} <= fields.keys():
        raise ValueError("holds both `prompt` and `messages`: leave one of them out")
    name = "messages" if "messages" in fields else "prompt"
    tools = tool_list(fields.get("tools"), "tools")
    if name == "prompt" and isinstance(fields[name], str):
        return PromptRow(fields, [text_message("user", fields[name], name)], tools, is_text=True, where=where)
    given = [fields[name]] if isinstance(fields[name], Mapping) else fields[name]
    messages = turn_messages(given, name)
    has_answer = name == "messages" and messages[-1]["role"] == "assistant"
    if has_answer and len(messages) == 1:
        raise ValueError("`messages` holds an answer alone, so that nothing is asked")
    asked = messages[:-1] if has_answer else messages
    return PromptRow(fields, asked, tools, is_text=False, where=where, has_answer=has_answer)
