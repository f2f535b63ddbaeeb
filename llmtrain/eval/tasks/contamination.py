"""Which items of a task a model was trained on: word n-grams that an item and the training data have in common.

The text that matches is shown beside the item, with where it is from, so that a person judges.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from llmtrain.config.data import Source
from llmtrain.data.sources.documents import strings_of
from llmtrain.data.sources.files import resolve
from llmtrain.data.sources.items import iter_items
from llmtrain.data.sources.ngrams import WORD, WordHashes, join_hashes, ngram_hashes, word_hashes, word_places
from llmtrain.data.sources.rows import BadRow, Row, Wanted
from llmtrain.data.sources.text import PIECE_CHARS, cut_pieces
from llmtrain.eval.tasks.results import TaskResult
from llmtrain.tasks.rows import TaskRows

NGRAM_WORDS = 13  # Brown et al. 2020, appendix C
FEWEST_WORDS = 8  # of a text that is shorter than an n-gram, and compared as a whole
WORDING_SHARE = 0.1  # an n-gram of more of a task's items is an instruction that they share
SHOWN_CHARS = 300


@dataclass(frozen=True)
class Match:
    """Text of the training data that an item shares."""

    where: str  # file:line
    text: str  # around the first n-gram in common


@dataclass(frozen=True)
class Matches:
    """What was found of the items, each by its task and key."""

    found: Mapping[tuple[str, str], Match]  # the first text of the training data that has an n-gram of it
    looked_for: frozenset[tuple[str, str]]  # items with words enough


def find_matches(tasks: Sequence[TaskRows], sources: Sequence[Source]) -> Matches:
    """The items that have an n-gram in common with the training data.

    Raises ValueError for data that cannot be read.
    """
    words = WordHashes()
    wanted: dict[int, dict[int, list[tuple[str, str]]]] = {}  # words of an n-gram -> its hash -> items
    for task_rows in tasks:
        for size, value, keys in _ngrams(task_rows, words):
            of_value = wanted.setdefault(size, {}).setdefault(value, [])
            of_value += [(task_rows.task.name, key) for key in keys]
    found: dict[tuple[str, str], Match] = {}
    looked_for = {size: np.array(sorted(of_hash), dtype=np.uint64) for size, of_hash in wanted.items()}
    for where, text in _training_texts(sources) if wanted else ():
        pieces = list(cut_pieces([text], PIECE_CHARS)) or [""]
        run = np.concatenate([word_hashes(piece, words) for piece in pieces])
        for size, values in looked_for.items():
            hashes = join_hashes(run, size)
            for place in np.flatnonzero(np.isin(hashes, values)).tolist():
                for item in wanted[size][int(hashes[place])]:
                    if item not in found:
                        found[item] = Match(where, _excerpt(text, place, size))
    looked_for_items = {item for of_hash in wanted.values() for items in of_hash.values() for item in items}
    return Matches(found, frozenset(looked_for_items))


def with_matches(result: TaskResult, matches: Matches) -> TaskResult:
    """The results with the text beside each item that is contaminated, and a note that counts them."""
    items = [
        item
        if (match := matches.found.get((item.task, item.item))) is None
        else replace(item, details={**item.details, "trained_on": asdict(match)})
        for item in result.items
    ]
    hit = [item for item in items if "trained_on" in item.details]
    num_looked_for = sum((item.task, item.item) in matches.looked_for for item in items)
    note = f"{len(hit):,} of {num_looked_for:,} items share {NGRAM_WORDS} words in a row with the training data"
    if num_short := len(items) - num_looked_for:
        note += (
            f"; {num_short:,} others have no text of {FEWEST_WORDS} words that is their own, and cannot be looked for"
        )
    if hit:
        match = hit[0].details["trained_on"]
        note += f"; the first, {hit[0].where}, with {match['where']}: {match['text']!r}"
    return replace(result, items=items, notes=[*result.notes, note])


def _ngrams(task_rows: TaskRows, words: WordHashes) -> Iterator[tuple[int, int, list[str]]]:
    """(words, hash, keys of the items that have it) of each n-gram of a task's rows, but for the task's own wording."""
    items: dict[tuple[int, int], dict[str, None]] = {}
    for row in task_rows.rows:
        for text in strings_of(row.fields):
            size = min(NGRAM_WORDS, len(WORD.findall(text.lower())))
            if size < FEWEST_WORDS:
                continue
            for hashes in ngram_hashes([text], size, words):
                for value in hashes.tolist():
                    items.setdefault((size, value), {})[row.key] = None
    most = max(2.0, WORDING_SHARE * len(task_rows.rows))
    for (size, value), keys in items.items():
        if len(keys) <= most:
            yield size, value, list(keys)


def _training_texts(sources: Sequence[Source]) -> Iterator[tuple[str, str]]:
    """(where, text) of all training data, whatever its format: each row's strings together."""
    for source in sources:
        for item in iter_items(source, resolve(source), Wanted(lambda row: True)):
            if isinstance(item, BadRow):
                continue  # nothing was trained on it
            if isinstance(item, Row):
                yield item.where, "\n".join(strings_of(item.fields))
            else:
                yield item.where, "".join(item.pieces())


def _excerpt(text: str, first: int, size: int) -> str:
    """The words of an n-gram in their text, as they are written there."""
    places = word_places(text)[first : first + size]
    return text[places[0][0] : places[-1][1]][:SHOWN_CHARS] if places else ""
