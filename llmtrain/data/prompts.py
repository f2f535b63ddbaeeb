"""Rows -> prompts to roll out from: ids, the messages they come from, and the row, which may hold what to score by.

A prompt is a row's `prompt` alone, or what comes before the last answer of a row in any format of `instructions`.
Prompts are few and short, so they are kept in memory; the held-out split is by content.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import blake2b
from typing import Any

from transformers import PreTrainedTokenizerFast

from llmtrain.config.data import Source, SpeltTokens
from llmtrain.config.rl import PromptDataConfig
from llmtrain.data import rendering
from llmtrain.data.chat.asked import left_out
from llmtrain.data.formats.asked import asks
from llmtrain.data.formats.faults import UnfitRow, UnwantedRow, masked_quote
from llmtrain.data.formats.instructions import check_canonical
from llmtrain.data.formats.messages import Dialogue, Message, asks_nothing, shown
from llmtrain.data.formats.naming import Naming
from llmtrain.data.formats.read import FormatReader, read_examples
from llmtrain.data.formats.weights import without_weights
from llmtrain.data.ledger import Ledger, SourceLedger, Split, files_not_read, noted
from llmtrain.data.sources.files import content_of, resolve_rows
from llmtrain.data.sources.overlap import Read, as_read, require_disjoint
from llmtrain.data.sources.rows import Fields, Row
from llmtrain.data.sources.weight_values import NOT_TRAINED, ROW_KEYS, text_weights
from llmtrain.data.spelt_tokens import SpeltTokenError
from llmtrain.data.split import split_of
from llmtrain.data.tokenize import TextEncoder
from llmtrain.system.counted import counted
from llmtrain.system.typing import Report

TOO_LONG = "no room for a response within data.max_seq_len"


@dataclass(frozen=True)
class Prompt:
    """What responses are generated for."""

    ids: tuple[int, ...]
    messages: str | tuple[Message, ...]  # a text where no chat template is used
    row: Mapping[str, Any]  # `tools` in it, where it has any under whatever name
    where: str  # file:line, for messages to the user
    num_bytes: int = 0  # of the messages, written as JSON
    notes: tuple[str, ...] = ()  # what was found in its text, to be counted

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

    def loaded(
        key: str, source: Source, eval_fraction: float = 0.0, *, is_held_out: bool = False
    ) -> tuple[dict[Split, list[Prompt]], SourceLedger]:
        ledger = SourceLedger(path=source.path)
        prompts = iter_prompts(source, data, tokenizer, ledger, report)
        kept = _kept(prompts, max_tokens, eval_fraction, ledger)
        if not kept["train"]:
            raise ValueError(f"{key}={source.path}: no prompt is left ({_account(ledger)})")
        report(f"{key} ({source.path}): {_account(ledger.held_out() if is_held_out else ledger)}")
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
    held_out = [loaded(f"data.eval[{i}]", source, is_held_out=True) for i, source in enumerate(data.eval or ())]
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
    if weighed := [name for name in ROW_KEYS if name in source.fields]:
        raise ValueError(
            f"{source.path}: fields: {{{weighed[0]}: {source.fields[weighed[0]]}}} does nothing: prompts are drawn "
            "equally often; leave it out (the weight of a source is its share)"
        )
    recognised = partial(_reader, Naming.of(source), tokenizer, data.special_tokens_in_text)
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
        ledger.note(prompt.notes)
        split = split_of(prompt, eval_fraction)
        kept[split].append(prompt)
        ledger.kept[split].add(prompt.num_bytes)
    ledger.check()
    return kept


def _reader(
    names: Naming, tokenizer: PreTrainedTokenizerFast, spelt_tokens: SpeltTokens, row: Row
) -> FormatReader[Prompt]:
    """How the rows of a source are read whose first row is `row`."""
    how = asks(names, row)
    read = partial(_prompts, how.convert, names, tokenizer, spelt_tokens)
    return FormatReader(how.name, read, partial(_described, how.described))


def _prompts(
    asked: Callable[[Fields], Dialogue],
    names: Naming,
    tokenizer: PreTrainedTokenizerFast,
    spelt_tokens: SpeltTokens,
    row: Row,
) -> list[Prompt]:
    """A row's one prompt; raises UnfitRow, UnwantedRow, UnicodeEncodeError, RecursionError."""
    dialogue = asked(names.view(row.fields))
    messages, tools = without_weights(dialogue.messages), dialogue.tools
    if asks_nothing(messages):
        raise UnfitRow("no prompt", "none of its messages has text, so that nothing is asked")
    weights = text_weights(row.fields)
    if 0.0 in weights.values():
        raise UnwantedRow(NOT_TRAINED)
    unused = tuple(f"{key} of a row, which prompts do not use" for key, weight in weights.items() if weight != 1)
    if tokenizer.chat_template is None:
        text = _only_text(dialogue)
        return [Prompt(_text_ids(tokenizer, text), text, row.fields, row.where, len(text.encode()), unused)]
    ids = prompt_ids(tokenizer, messages, tools, spelt_tokens)
    num_bytes = len(json.dumps(messages, ensure_ascii=False, default=str).encode())
    scored_by = {"tools": list(tools), **row.fields} if tools else row.fields
    notes = unused + rendering.control_tokens(tokenizer).notes(messages, spelt_tokens, tools)
    return [Prompt(ids, messages, scored_by, row.where, num_bytes, notes)]


def prompt_ids(
    tokenizer: PreTrainedTokenizerFast,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    spelt_tokens: SpeltTokens = "warn",
) -> tuple[int, ...]:
    """The ids of messages up to where an answer begins, or goes on, if the last message is the beginning of one.

    Without a template, of the one message as text. Raises UnfitRow.
    """
    if tokenizer.chat_template is None:
        return _text_ids(tokenizer, _only_text(Dialogue(messages, tools=tuple(tools))))
    try:
        if (part := left_out(tokenizer, messages, tools)) is not None:
            raise UnfitRow(
                f"template leaves out {part}",
                f"the chat template leaves out {part}; take them out of the row, or set data.chat_template to a Jinja "
                "file that writes them",
            )
        return tuple(rendering.prompt_ids(tokenizer, messages, tools, spelt_tokens=spelt_tokens))
    except SpeltTokenError as error:
        raise UnfitRow("control token in text", str(error)) from None
    except (UnfitRow, UnicodeEncodeError):
        raise
    except ValueError as error:
        raise UnfitRow("template refuses the row", str(error)) from None


def _only_text(dialogue: Dialogue) -> str:
    """The one text that a prompt is where there is no chat template. Raises UnfitRow."""
    if dialogue.prompt_text is not None and not dialogue.tools:
        return dialogue.prompt_text
    if len(dialogue.messages) > 1 or dialogue.tools or dialogue.messages[0]["role"] != "user":
        one = f"a {dialogue.messages[0]['role']} message needs"
        what = "tools need" if dialogue.tools else "several messages need" if len(dialogue.messages) > 1 else one
        raise UnfitRow("no template", f"{what} a chat template (data.chat_template)")
    return str(dialogue.messages[0]["content"])


def _text_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    """A text's ids as its continuation is trained: after what the tokenizer begins a text with, without an end."""
    around = _around(tokenizer)
    ids = tuple(around.backend.encode(text, add_special_tokens=False).ids)
    return ids if ids[: len(around.prefix)] == around.prefix else (*around.prefix, *ids)


@lru_cache(maxsize=4)
def _around(tokenizer: PreTrainedTokenizerFast) -> TextEncoder:
    around = TextEncoder(tokenizer)
    around.backend.encode_special_tokens = False  # as in tuning with data.chat_template=none
    around.backend.post_processor = None
    return around


def _described(recognised: str, first: Prompt) -> str:
    """What was recognised, and one prompt of it, on one line."""
    text = masked_quote(first.messages) if isinstance(first.messages, str) else shown(first.messages)
    return f"{recognised}; the first: {text}"


def _account(ledger: SourceLedger) -> str:
    parts = [counted(tally.documents, f"{split} prompt") for split, tally in ledger.kept.items() if tally.documents]
    parts += [f"{counted(tally.documents, 'bad row')} skipped: {reason}" for reason, tally in ledger.bad_rows.items()]
    parts += [f"{tally.documents:,} dropped: {reason}" for reason, tally in ledger.dropped.items()]
    return "; ".join(parts + noted(ledger, "prompts") + files_not_read(ledger)) or "no rows"
