"""Rows -> prompts to roll out from: ids, the messages they come from, and the row, which may hold what to score by.

A prompt is a row's `prompt` alone, or what comes before the last answer of a row in any format of `instructions`.
Prompts are few and short, so they are kept in memory; the held-out split is by content.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import Any

from transformers import PreTrainedTokenizerFast

from llmtrain.config.rl import PromptDataConfig
from llmtrain.config.sections import Source
from llmtrain.data.formats.instructions import (
    RowFormat,
    check_canonical,
    recognise,
    recognised_as,
    renamed,
    with_extras,
)
from llmtrain.data.formats.messages import (
    Dialogue,
    Message,
    UnfitRow,
    shortened,
    shown,
    text_message,
    turn_messages,
)
from llmtrain.data.formats.read import FormatReader, read_examples
from llmtrain.data.ledger import Ledger, SourceLedger, Split, files_not_read
from llmtrain.data.sources.files import content_of, resolve_rows
from llmtrain.data.sources.overlap import Read, as_read, require_disjoint
from llmtrain.data.sources.rows import Fields, Row
from llmtrain.data.split import split_of
from llmtrain.protocols import Report
from llmtrain.system.files import one_line

PROMPT_FIELDS = ("prompt", "question", "query")
TOO_LONG = "no room for a response within data.max_seq_len"


@dataclass(frozen=True)
class Prompt:
    """What responses are generated for."""

    ids: tuple[int, ...]
    messages: str | tuple[Message, ...]  # a text where no chat template is used
    row: Mapping[str, Any]  # `tools` in it, where it has any under whatever name
    where: str  # file:line, for messages to the user
    num_bytes: int = 0  # of the messages, written as JSON

    def digest(self) -> bytes:
        """16 bytes that depend on the prompt alone."""
        return blake2b(repr(self.ids).encode(), digest_size=16).digest()


@dataclass(frozen=True)
class Prompts:
    """The prompts of a run: of each training source, and those held out."""

    train: Sequence[Sequence[Prompt]]
    eval: Sequence[Prompt]
    ledger: Ledger

    @property
    def names(self) -> dict[str, list[str]]:
        """What identifies the content of each training source, and of what is held out, wherever it is."""
        return {"train": [_name(prompts) for prompts in self.train], "eval": [_name(self.eval)]}


def _name(prompts: Sequence[Prompt]) -> str:
    """32 hexadecimal digits of prompts in their order, with the rows that rewards compare answers to."""
    hasher = blake2b(digest_size=16)
    for prompt in prompts:
        hasher.update(repr((prompt.ids, prompt.messages, sorted(prompt.row.items()))).encode())
    return hasher.hexdigest()


def load_prompts(
    data: PromptDataConfig, tokenizer: PreTrainedTokenizerFast, *, max_new_tokens: int, report: Report
) -> Prompts:
    """Read every source; a tokenizer without a chat template takes prompts as text.

    Raises ValueError, one line, for a source or row that cannot be read, and a source of which nothing is left.
    """
    max_tokens = data.max_seq_len - max_new_tokens
    if max_tokens < 1:
        raise ValueError(
            f"rollout.max_new_tokens={max_new_tokens} leaves no room for a prompt in data.max_seq_len="
            f"{data.max_seq_len}"
        )

    def loaded(key: str, source: Source, eval_fraction: float) -> tuple[dict[Split, list[Prompt]], SourceLedger]:
        ledger = SourceLedger(path=source.path)
        prompts = iter_prompts(source, data, tokenizer, ledger, report)
        kept = _kept(prompts, max_tokens, eval_fraction, ledger)
        if not kept["train"]:
            raise ValueError(f"{key}={source.path}: no prompt is left ({_account(ledger)})")
        report(f"{key} ({source.path}): {_account(ledger)}")
        return kept, ledger

    def read(key: str, source: Source) -> Read:
        return as_read(key, source, content_of(source, resolve_rows(source), data.cache_dir, report))

    if data.eval is not None:
        require_disjoint(
            [read(f"data.train[{i}]", source) for i, source in enumerate(data.train)],
            [read(f"data.eval[{i}]", source) for i, source in enumerate(data.eval)],
        )
    fraction = data.eval_fraction if data.eval is None else 0.0
    train = [loaded(f"data.train[{i}]", source, fraction) for i, source in enumerate(data.train)]
    held_out = [loaded(f"data.eval[{i}]", source, 0.0) for i, source in enumerate(data.eval or ())]
    return Prompts(
        train=[kept["train"] for kept, _ in train],
        eval=[prompt for kept, _ in train for prompt in kept["eval"]]
        + [prompt for kept, _ in held_out for prompt in kept["train"]],
        ledger=Ledger([ledger for _, ledger in train], [ledger for _, ledger in held_out]),
    )


def iter_prompts(
    source: Source,
    data: PromptDataConfig,
    tokenizer: PreTrainedTokenizerFast,
    ledger: SourceLedger,
    report: Report,
) -> Iterator[Prompt]:
    """The prompts of a source, read as `read_examples` does."""
    check_canonical(source.fields, source.path)
    recognised = partial(_reader, source.fields, tokenizer)
    return read_examples(source, recognised, data.on_bad_row, ledger, report, unit="prompt")


def _kept(
    prompts: Iterator[Prompt], max_tokens: int, eval_fraction: float, ledger: SourceLedger
) -> dict[Split, list[Prompt]]:
    """The prompts that leave room for a response, by split, entered in the ledger."""
    kept: dict[Split, list[Prompt]] = {"train": [], "eval": []}
    for prompt in prompts:
        if len(prompt.ids) > max_tokens:
            ledger.drop(TOO_LONG, prompt.num_bytes)
            continue
        split = split_of(prompt, eval_fraction)
        kept[split].append(prompt)
        ledger.kept[split].add(prompt.num_bytes)
    ledger.check()
    return kept


def _reader(fields: Mapping[str, str], tokenizer: PreTrainedTokenizerFast, row: Row) -> FormatReader[Prompt]:
    """How the rows of a source are read whose first row is `row`: by a field that holds prompts, else by its format."""
    view = renamed(row.fields, fields)
    name = next((name for name in PROMPT_FIELDS if view.get(name)), None)
    if name is not None:
        format_name, described = "prompt", f"prompts (field {fields.get(name, name)})"
        asked: Callable[[Fields], Dialogue] = partial(_asked, name)
    else:
        row_format = recognise(row, fields)
        format_name, described = row_format.name, recognised_as(row_format, fields)
        asked = partial(_before_the_answer, row_format)
    return FormatReader(format_name, partial(_prompts, asked, fields, tokenizer), partial(_described, described))


def _asked(name: str, row: Fields) -> Dialogue:
    """The prompt that a field holds, with the row's system prompt and tools. Raises UnfitRow."""
    given = row.get(name)
    if not given:
        raise UnfitRow("no prompt", f"{name!r} is missing or empty")
    messages = [text_message("user", given, name)] if isinstance(given, str) else turn_messages(given, name)
    if messages[-1]["role"] == "assistant":
        raise UnfitRow("no prompt", f"{name!r} ends with an answer: leave it out, or put all of it into messages")
    return with_extras(row, messages, 0)


def _before_the_answer(row_format: RowFormat, row: Fields) -> Dialogue:
    """What comes before the last answer of a row. Raises UnfitRow and UnwantedRow."""
    dialogue = row_format.convert(row)
    if isinstance(dialogue, str):
        return Dialogue([text_message("user", dialogue, "text")])
    answers = [index for index, message in enumerate(dialogue.messages) if message["role"] == "assistant"]
    messages = list(dialogue.messages[: answers[-1]] if answers else dialogue.messages)
    if not messages:
        raise UnfitRow("no prompt", "nothing comes before the answer")
    return replace(dialogue, messages=messages)


def _prompts(
    asked: Callable[[Fields], Dialogue], fields: Mapping[str, str], tokenizer: PreTrainedTokenizerFast, row: Row
) -> list[Prompt]:
    """A row's one prompt; raises UnfitRow, UnwantedRow, UnicodeEncodeError, RecursionError."""
    dialogue = asked(renamed(row.fields, fields))
    messages = dialogue.messages
    tools: list[Any] = list(dialogue.tools)
    if tokenizer.chat_template is None:
        if len(messages) > 1 or tools:
            what = "tools need" if tools else "several messages need"
            raise UnfitRow("no template", f"{what} a chat template (data.chat_template)")
        text = str(messages[0]["content"])
        num_bytes = len(text.encode())
        return [Prompt(tuple(tokenizer(text)["input_ids"]), text, row.fields, row.where, num_bytes)]
    num_bytes = len(json.dumps(messages, ensure_ascii=False, default=str).encode())
    given: Any = list(messages)
    try:
        ids: Any = tokenizer.apply_chat_template(
            given, tools=tools or None, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except Exception as error:  # a template may raise anything; jinja2 has no class for what it raises itself
        raise UnfitRow("template refuses the row", f"the chat template refuses the row: {one_line(error)}") from None
    scored_by = {"tools": tools, **row.fields} if tools else row.fields
    return [Prompt(tuple(ids), tuple(messages), scored_by, row.where, num_bytes)]


def _described(recognised: str, first: Prompt) -> str:
    """What was recognised, and one prompt of it, on one line."""
    text = shortened(first.messages) if isinstance(first.messages, str) else shown(first.messages)
    return f"{recognised}; the first: {text}"


def _account(ledger: SourceLedger) -> str:
    parts = [f"{tally.documents:,} {split} prompts" for split, tally in ledger.kept.items() if tally.documents]
    parts += [f"{tally.documents:,} bad rows skipped: {reason}" for reason, tally in ledger.bad_rows.items()]
    parts += [f"{tally.documents:,} dropped: {reason}" for reason, tally in ledger.dropped.items()]
    return "; ".join(parts + files_not_read(ledger)) or "no rows"
