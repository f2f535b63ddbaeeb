"""The rows that a fold holds out -> items to predict: what training stores of them, each with the row it is of.

An item is a conversation or text (SFT), a pair (reward models, DPO and its variants), or a labelled answer (KTO). Rows
become tokens as in training, in `data.max_seq_len` as there; a row of which nothing is left is named with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from llmtrain.config.data import Source
from llmtrain.config.recipes import PreferenceStageConfig, RecipeConfig, SftConfig
from llmtrain.data.chat.encode import BadExample, ChatEncoder, Encoded
from llmtrain.data.formats.labelled import Labelled
from llmtrain.data.formats.preferences import EQUAL, Preference
from llmtrain.data.formats.read import ReadRow, read_rows
from llmtrain.data.store.fitting import fitted_answers, fitted_chat
from llmtrain.data.store.kinds import BATCH_ROWS, NO_PROMPT_LEFT, NOTHING_LEFT, TOO_LONG, encoded_pair, is_equal
from llmtrain.tune.crossval.plan import Plan
from llmtrain.tune.crossval.rows import fold_file, read_records, reader_of

Record = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """One thing that is predicted, before it is."""

    record: dict[str, Any]  # which it is: row, where, group, fold, and what its kind has
    documents: list[Encoded]  # of a conversation all, of a pair chosen and rejected, of an answer the one


def held_out_items(plan: Plan, fold: int, encoder: ChatEncoder) -> tuple[list[Item], list[Record]]:
    """The items of the rows that a fold holds out, and the records of rows of which nothing is left, with why."""
    records = [record for record in read_records(plan.data) if record.get("fold") == fold]
    items: list[Item] = []
    dropped: list[Record] = []
    for index, source in enumerate(plan.config.data.train):
        of_source = [record for record in records if record["source"] == index]
        if not of_source:
            continue
        part = Source(path=str(fold_file(plan.data, index, fold)), **source.naming)
        rows = zip(of_source, read_rows(part, reader_of(plan.config, part)), strict=True)
        while batch := list(islice(rows, BATCH_ROWS)):
            for record, found in _encoded(plan.config, batch, encoder):
                kept = [Item({**record, **each.identity}, each.documents) for each in found if each.documents]
                items += kept
                if not kept:
                    dropped.append({**record, "dropped": found[0].fault})
    return items, dropped


@dataclass(frozen=True)
class _Found:
    """An item, or the fault that leaves nothing of it."""

    identity: Record  # what its kind says of it
    documents: list[Encoded]
    fault: str


def _encoded(
    config: RecipeConfig, batch: Sequence[tuple[Record, ReadRow[Any]]], encoder: ChatEncoder
) -> Iterator[tuple[Record, list[_Found]]]:
    """Each row's record and what it becomes, encoded together."""
    encoded = iter(encoder.encode([side for _, read in batch for each in read.examples for side in _sides(each)]))
    for record, read in batch:
        found: list[_Found] = []
        for number, example in enumerate(read.examples):
            sides: list[list[Encoded]] = []
            faults: list[BadExample] = []
            for side in islice(encoded, len(_sides(example))):
                if isinstance(side, BadExample):
                    faults.append(side)
                else:
                    sides.append(side)
            found += _faulty(faults[0]) if faults else _stored(config, number, example, sides)
        yield record, found


def _sides(example: Any) -> list[Any]:
    """The conversations of a row's example."""
    if isinstance(example, Preference):
        return [example.chosen, example.rejected]
    return [example.conversation] if isinstance(example, Labelled) else [example]


def _faulty(fault: BadExample) -> list[_Found]:
    return [_Found({}, [], fault.reason)]


def _stored(config: RecipeConfig, number: int, example: Any, sides: list[list[Encoded]]) -> list[_Found]:
    """What is stored of an example, as `data.store.kinds` stores it."""
    data: Any = config.data
    drops = data.on_long_row == "drop"
    if isinstance(config, SftConfig):
        pieces = [piece for pieces in fitted_chat(sides[0], data) for piece in pieces]
        return [_Found({}, pieces, TOO_LONG if drops else NOTHING_LEFT)]
    too_long = TOO_LONG if drops else NO_PROMPT_LEFT
    if isinstance(example, Labelled):
        return [_Found({"desirable": example.desirable}, fitted_answers([sides[0][-1]], data) or [], too_long)]
    pair = encoded_pair(example, *sides)
    if isinstance(pair, BadExample):
        return _faulty(pair)
    identity = {"pair": number, "weight": example.weight}
    fitted = [] if is_equal(pair) else fitted_answers(pair, data)
    if not fitted:
        return [_Found(identity, [], EQUAL if is_equal(pair) else too_long)]
    if not (isinstance(config, PreferenceStageConfig) and config.preference.loss == "kto"):
        return [_Found(identity, fitted, "")]
    return [
        _Found({**identity, "desirable": desirable}, [document], "")
        for desirable, document in zip((True, False), fitted, strict=True)
    ]
