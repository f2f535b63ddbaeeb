"""A row's documents -> what is stored of them, so that none is longer than `data.max_seq_len`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmtrain.config.data import ChatDataConfig
from llmtrain.config.rl import PreferenceDataConfig
from llmtrain.data.chat.encode import Encoded


def fitted_chat(documents: Sequence[Encoded], data: ChatDataConfig) -> list[list[Encoded]]:
    """Of each document of a row, what is stored of it: itself, its beginning, pieces, or nothing."""
    return [fit(document, data.max_seq_len, data.on_long_row) for document in documents]


def fitted_answers(documents: list[Encoded], data: PreferenceDataConfig) -> list[Encoded] | None:
    """What is stored of a row's documents: as they are, with shorter prompts, or, None, nothing."""
    fitted = cut_prompts(documents, data.max_seq_len)
    return None if fitted is not documents and data.on_long_row == "drop" else fitted


def fit(document: Encoded, max_seq_len: int, on_long_row: str) -> list[Encoded]:
    """A document as it is, without its end, in pieces, or not at all, so that none is longer than `max_seq_len`.

    A piece's first token has nothing before it, so it is never a target; pieces without a target are left out. With
    `max_seq_len` 4, `ab<eot>cdefgh<eot>` of one token per letter becomes `ab<eot>c` (truncate), or also `defg` and
    `h<eot>` (split).
    """
    if len(document.input_ids) <= max_seq_len:
        return [document]
    if on_long_row == "drop":
        return []
    length = len(document.input_ids) if on_long_row == "split" else max_seq_len
    pieces = []
    for start in range(0, length, max_seq_len):
        part = document.part(slice(start, start + max_seq_len))
        if part.trained.any():
            pieces.append(part)
    return pieces


def cut_prompts(documents: list[Encoded], max_seq_len: int) -> list[Encoded] | None:
    """The documents of a row as they are, or with the beginning of their prompt cut so that all fit, or None.

    All lose the same tokens; the first of all, which may be BOS, and the last of the prompt stay: to take 2 tokens off
    `<bos>why not? yes` of one token per word is impossible, to take 1 off gives `<bos>not? yes`.
    """
    excess = num_tokens(documents) - max_seq_len
    if excess <= 0:
        return documents
    num_cut = -(-excess // len(documents))
    prompt_tokens = min(int(document.trained.argmax()) for document in documents)
    if num_cut > prompt_tokens - 2:
        return None
    return [
        document.part(np.concatenate([[0], np.arange(1 + num_cut, len(document.input_ids))])) for document in documents
    ]


def num_tokens(documents: Sequence[Encoded]) -> int:
    """The tokens of all documents together."""
    return sum(len(document.input_ids) for document in documents)
