"""The documents that a pretraining run held out, as a task: a model's loss on each of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from llmtrain.config.load import read_yaml, validate
from llmtrain.config.recipes import PretrainConfig
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.sources.documents import iter_documents
from llmtrain.data.sources.text import Document
from llmtrain.data.split import split_of
from llmtrain.tasks.rows import TaskRow, TaskRows, key_of, with_unique_keys
from llmtrain.tasks.texts import TEXT

HELD_OUT = "held_out"


def held_out_rows(run: str, config_file: Path, limit: int | None) -> TaskRows:
    """The first documents that a run held out, read again from the sources that its configuration names.

    What its cleaning dropped is among them. Raises ValueError if the folder is not that of a pretraining run, or its
    sources are no longer there.
    """
    if not config_file.is_file():
        raise ValueError(f"{run}: {HELD_OUT} are the documents that a run held out, and this is no run's folder")
    tree = read_yaml(config_file)
    if "isolate_documents" not in tree.get("data", {}):
        raise ValueError(f"{run}: {HELD_OUT} is of pretraining runs; name texts or rows, as text=FILE or FILE.jsonl")
    config = validate(PretrainConfig, tree)
    rows = [
        TaskRow[object](text, key_of(text), document.where, {"text": text})
        for document in islice(_documents(config), limit)
        for text in ["".join(document.pieces())]
    ]
    if not rows:
        raise ValueError(f"{run}: none of its documents was held out")
    return TaskRows(TEXT, f"what {run} held out", with_unique_keys(rows), [])


def _documents(config: PretrainConfig) -> Iterator[Document]:
    data = config.data
    for source in data.eval if data.eval is not None else data.train:
        for document in iter_documents(source, data.on_bad_row, SourceLedger(path=source.path)):
            if data.eval is not None or split_of(document, data.eval_fraction) == "eval":
                yield document
