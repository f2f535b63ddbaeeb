"""Rows -> prompts to roll out from: ids, the messages they come from, and the row, which may hold what to score by.

A prompt is what stands before the last answer of a row in any format of `row_formats.py`, or a row's `prompt` alone.
Prompts are few and short, so they are kept in memory; the held-out split is by content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from transformers import PreTrainedTokenizerFast

from llmtrain.config.rl import PromptDataConfig
from llmtrain.config.sections import Source
from llmtrain.data.formats.instructions import Dialogue, check_canonical, recognise, renamed, with_extras
from llmtrain.data.formats.messages import Message, UnfitRow, UnwantedRow, text_message, turn_messages
from llmtrain.data.ledger import Ledger, SourceLedger, Split
from llmtrain.data.sources.documents import iter_items
from llmtrain.data.sources.files import resolve
from llmtrain.data.sources.readers import BadRow, Row
from llmtrain.data.store.build import eval_share
from llmtrain.protocols import Report

PROMPT_FIELDS = ("prompt", "question", "query")
TOO_LONG = "no room for a response within data.max_seq_len"


@dataclass(frozen=True)
class Prompt:
    """What a response is drawn behind."""

    ids: tuple[int, ...]
    messages: str | tuple[Message, ...]  # a text where no chat template is used
    row: Mapping[str, Any]  # `tools` in it, where it has any under whatever name
    where: str

    def digest(self) -> bytes:
        """16 bytes that stand for the prompt."""
        return blake2b(repr(self.ids).encode(), digest_size=16).digest()


@dataclass(frozen=True)
class Prompts:
    """The prompts of a run: of each training source, and those held out."""

    train: Sequence[Sequence[Prompt]]
    eval: Sequence[Prompt]
    ledger: Ledger


def load_prompts(
    data: PromptDataConfig, tokenizer: PreTrainedTokenizerFast, *, max_new_tokens: int, report: Report
) -> Prompts:
    """Read every source; a tokenizer without a chat template takes prompts as text.

    Raises ValueError, one line, for a source or row that cannot be read, and a source of which nothing is left.
    """
    longest = data.max_seq_len - max_new_tokens
    if longest < 1:
        raise ValueError(
            f"rollout.max_new_tokens={max_new_tokens} leaves no room for a prompt in data.max_seq_len="
            f"{data.max_seq_len}"
        )
    train, held_out, ledgers, eval_ledgers = [], [], [], []
    fraction = data.eval_fraction if data.eval is None else 0.0
    for index, source in enumerate(data.train):
        ledger = SourceLedger(path=source.path)
        kept = _prompts(source, data, tokenizer, longest, fraction, ledger)
        train.append(kept["train"])
        held_out += kept["eval"]
        ledgers.append(ledger)
        if not kept["train"]:
            raise ValueError(f"data.train[{index}]={source.path}: no prompt is left to train on ({_account(ledger)})")
        report(f"data.train[{index}] ({source.path}): {_account(ledger)}")
    for index, source in enumerate(data.eval or ()):
        ledger = SourceLedger(path=source.path)
        kept = _prompts(source, data, tokenizer, longest, 0.0, ledger)
        held_out += kept["train"]
        eval_ledgers.append(ledger)
        report(f"data.eval[{index}] ({source.path}): {_account(ledger)}")
    return Prompts(train, held_out, Ledger(ledgers, eval_ledgers))


def _prompts(
    source: Source,
    data: PromptDataConfig,
    tokenizer: PreTrainedTokenizerFast,
    longest: int,
    eval_fraction: float,
    ledger: SourceLedger,
) -> dict[Split, list[Prompt]]:
    check_canonical(source.fields, source.path)
    kept: dict[Split, list[Prompt]] = {"train": [], "eval": []}
    for item in iter_items(source, resolve(source)):
        read = _read(item, source, tokenizer) if isinstance(item, Row) else item
        if isinstance(read, BadRow):
            if data.on_bad_row == "error":
                raise ValueError(f"{read.message}; mend it, or set data.on_bad_row=skip")
            ledger.bad_row(read.reason, read.num_bytes)
            continue
        assert isinstance(read, Prompt), f"{source.path}: not a file of rows"
        num_bytes = len(str(read.messages).encode())
        ledger.read.add(num_bytes)
        if len(read.ids) > longest:
            ledger.drop(TOO_LONG, num_bytes)
            continue
        split: Split = "eval" if eval_share(read) < eval_fraction else "train"
        kept[split].append(read)
        ledger.kept[split].add(num_bytes)
    ledger.check()
    return kept


def _read(row: Row, source: Source, tokenizer: PreTrainedTokenizerFast) -> Prompt | BadRow:
    try:
        said = _before_the_answer(row, source)
    except (UnfitRow, UnwantedRow) as fault:
        return BadRow("no prompt", f"{row.where}: {fault}", 0)
    messages = said.messages
    tools: list[Any] = list(said.tools)
    if tokenizer.chat_template is None:
        if len(messages) > 1 or tools:
            what = "tools need" if tools else "several messages need"
            return BadRow("no template", f"{row.where}: {what} a chat template (data.chat_template)", 0)
        text = str(messages[0]["content"])
        return Prompt(tuple(tokenizer(text)["input_ids"]), text, row.fields, row.where)
    given: Any = list(messages)
    try:
        ids: Any = tokenizer.apply_chat_template(
            given, tools=tools or None, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except Exception as error:  # a template may raise anything; jinja2 has no class for what it raises itself
        return BadRow("template refuses the row", f"{row.where}: {' '.join(str(error).split())}", 0)
    fields = {"tools": tools, **row.fields} if tools else row.fields
    return Prompt(tuple(ids), tuple(messages), fields, row.where)


def _before_the_answer(row: Row, source: Source) -> Dialogue:
    """The messages of a row's prompt, and its tools. Raises UnfitRow and UnwantedRow."""
    fields = renamed(row.fields, source.fields)
    name = next((name for name in PROMPT_FIELDS if fields.get(name)), None)
    if name is not None:
        given = fields[name]
        asked = [text_message("user", given, name)] if isinstance(given, str) else turn_messages(given, name)
        if asked[-1]["role"] == "assistant":
            raise UnfitRow("no prompt", f"{name!r} ends with an answer: leave it out, or put all of it into messages")
        return with_extras(fields, asked, 0)
    said = recognise(row, source.fields).convert(fields)
    if isinstance(said, str):
        return Dialogue([text_message("user", said, "text")])
    answers = [index for index, message in enumerate(said.messages) if message["role"] == "assistant"]
    messages = list(said.messages[: answers[-1]] if answers else said.messages)
    if not messages:
        raise UnfitRow("no prompt", "nothing stands before the answer")
    return replace(said, messages=messages)


def _account(ledger: SourceLedger) -> str:
    parts = [f"{tally.documents:,} {split} prompts" for split, tally in ledger.kept.items() if tally.documents]
    parts += [f"{tally.documents:,} bad rows skipped: {reason}" for reason, tally in ledger.bad_rows.items()]
    parts += [f"{tally.documents:,} dropped: {reason}" for reason, tally in ledger.dropped.items()]
    return "; ".join(parts) or "no rows"
