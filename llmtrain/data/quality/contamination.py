"""Text of evaluation files in the data: runs of words that an item of both has, with both texts side by side.

Which of them matter, a person judges: a famous sentence is in many texts, a question with its answer is in few.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from llmtrain.config.data import Source
from llmtrain.data.quality.items import Item, Span
from llmtrain.data.sources.documents import strings_of
from llmtrain.data.sources.files import resolve
from llmtrain.data.sources.items import iter_items
from llmtrain.data.sources.ngrams import WORD, WordHashes, join_hashes, word_hashes, word_places
from llmtrain.data.sources.rows import BadRow, Row, Wanted

NGRAM_WORDS = 13  # Brown et al. 2020, appendix C
FEWEST_WORDS = 8  # of a text that is shorter than an n-gram, and compared as a whole
WORDING_SHARE = 0.1  # an n-gram of more of a file's items is wording that they share
MOST_SHOWN = 8
LARGEST_TEXT_CHARS = 1_000_000


@dataclass(frozen=True)
class Evaluated:
    """A text of an evaluation file."""

    file: int
    row: int  # of the file
    where: str
    text: str


@dataclass(frozen=True)
class Match:
    """Words in a row that an item and an evaluation text have in common."""

    item: Item
    evaluated: Evaluated
    num_words: int  # of the longest run
    share: float  # of the evaluation text's n-grams, how many the item has
    in_item: Span
    in_evaluated: Span


@dataclass(frozen=True)
class Contamination:
    """What the sample has of the evaluation files."""

    files: Sequence[str]
    num_rows: Sequence[int]  # of each file
    num_looked_for: Sequence[int]  # of these, rows with words enough
    num_hit: Sequence[int]  # rows of each file of which an item has text
    num_items: int  # of the sample, with text of any file
    by_source: Sequence[int]
    matches: Sequence[Match]  # the longest first


def contamination(items: Sequence[Item], sources: Sequence[Source], num_sources: int) -> Contamination:
    """Look for the texts of evaluation files. Raises ValueError for a file that cannot be read."""
    words = WordHashes()
    texts = [text for number, source in enumerate(sources) for text in evaluation_texts(source, number)]
    wanted = _wanted(texts, words)
    looked_for = {
        (texts[place].file, texts[place].row)
        for of_hash in wanted.values()
        for places in of_hash.values()
        for place in places
    }
    hit_rows: set[tuple[int, int]] = set()
    by_source: Counter[int] = Counter()
    best: list[tuple[int, float, int, int]] = []  # words of a run, share, item, evaluation text
    for number, item in enumerate(items):
        runs = _runs(item.text, wanted, texts, words)
        by_source[item.source] += bool(runs)
        for evaluated, (length, num_hit, num_all) in runs.items():
            hit_rows.add((texts[evaluated].file, texts[evaluated].row))
            best.append((length, num_hit / num_all, number, evaluated))
    best.sort(key=lambda each: (-each[0], -each[1], each[2]))
    return Contamination(
        files=[source.path for source in sources],
        num_rows=[len({text.row for text in texts if text.file == i}) for i in range(len(sources))],
        num_looked_for=[sum(file == i for file, _ in looked_for) for i in range(len(sources))],
        num_hit=[sum(file == i for file, _ in hit_rows) for i in range(len(sources))],
        num_items=sum(by_source.values()),
        by_source=[by_source[number] for number in range(num_sources)],
        matches=[_match(items[number], texts[text], length, share) for length, share, number, text in _distinct(best)],
    )


def evaluation_texts(source: Source, number: int) -> Iterator[Evaluated]:
    """Every text of an evaluation file: each string of a row. Raises ValueError."""
    for row, found in enumerate(iter_items(source, resolve(source), Wanted(lambda row: True))):
        if isinstance(found, BadRow):
            continue
        texts: Iterable[str] = strings_of(found.fields) if isinstance(found, Row) else found.pieces()
        for text in texts:
            yield Evaluated(number, row, found.where, text[:LARGEST_TEXT_CHARS])


def _wanted(texts: Sequence[Evaluated], words: WordHashes) -> dict[int, dict[int, list[int]]]:
    """Words of an n-gram -> its hash -> the evaluation texts that have it, but for wording that many rows share."""
    found: dict[int, dict[int, list[int]]] = {}
    rows: defaultdict[tuple[int, int, int], set[int]] = defaultdict(set)
    for place, text in enumerate(texts):
        run = word_hashes(text.text, words)
        size = min(NGRAM_WORDS, len(run))
        if size < FEWEST_WORDS:
            continue
        for value in set(join_hashes(run, size).tolist()):
            found.setdefault(size, {}).setdefault(value, []).append(place)
            rows[(text.file, size, value)].add(text.row)
    num_rows = Counter(file for file, _ in {(text.file, text.row) for text in texts})
    for (file, size, value), of_rows in rows.items():
        if len(of_rows) > max(2.0, WORDING_SHARE * num_rows[file]):
            found[size][value] = [place for place in found[size][value] if texts[place].file != file]
    return found


def _runs(
    text: str, wanted: dict[int, dict[int, list[int]]], texts: Sequence[Evaluated], words: WordHashes
) -> dict[int, tuple[int, int, int]]:
    """Evaluation text -> words of the longest run in common, its n-grams that are found, and all of them."""
    run = word_hashes(text, words)
    found: dict[int, tuple[int, int, int]] = {}
    for size, of_hash in wanted.items():
        if len(run) < size:
            continue
        places: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        for place, value in enumerate(join_hashes(run, size).tolist()):
            for evaluated in of_hash.get(value, ()):
                places[evaluated].append((place, value))
        for evaluated, hits in places.items():
            num_all = len(set(join_hashes(word_hashes(texts[evaluated].text, words), size).tolist()))
            num_hit = len({value for _, value in hits})
            found[evaluated] = (_longest([place for place, _ in hits]) + size - 1, num_hit, num_all)
    return found


def _longest(places: Sequence[int]) -> int:
    """The most places in a row."""
    longest = length = 1
    for before, place in pairwise(places):
        length = length + 1 if place == before + 1 else 1
        longest = max(longest, length)
    return longest


def _distinct(best: Sequence[tuple[int, float, int, int]]) -> list[tuple[int, float, int, int]]:
    """The first of each item and of each evaluation text, so that the few that are shown are different."""
    chosen: list[tuple[int, float, int, int]] = []
    items: set[int] = set()
    texts: set[int] = set()
    for each in best:
        if each[2] not in items and each[3] not in texts and len(chosen) < MOST_SHOWN:
            items.add(each[2])
            texts.add(each[3])
            chosen.append(each)
    return chosen


def _match(item: Item, evaluated: Evaluated, num_words: int, share: float) -> Match:
    """The places of the run that both have."""
    sizes = (num_words, min(NGRAM_WORDS, num_words), FEWEST_WORDS)
    in_item, in_evaluated = next(filter(None, (common_run(item.text, evaluated.text, size) for size in sizes)))
    return Match(item, evaluated, num_words, share, in_item, in_evaluated)


def common_run(one: str, other: str, num_words: int) -> tuple[Span, Span] | None:
    """The first run of so many words that two texts have in common, in each of them; None: they have none."""
    spans = [word_places(text) for text in (one, other)]
    first, second = (WORD.findall(text.lower()) for text in (one, other))
    runs = {tuple(second[i : i + num_words]): i for i in range(len(second) - num_words, -1, -1)}
    for i in range(len(first) - num_words + 1):
        if (j := runs.get(tuple(first[i : i + num_words]))) is not None:
            places = zip(spans, (i, j), strict=True)
            in_one, in_other = (Span(each[at][0], each[at + num_words - 1][1]) for each, at in places)
            return in_one, in_other
    return None
