"""Which items hold personal data: how many finds of each kind, and where some are, masked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmtrain.data.personal import Found, find_personal, masked_part
from llmtrain.data.quality.items import Item

SHOWN_AROUND = 60
"""Characters before and after a find that are shown with it."""
MOST_SHOWN = 5


@dataclass(frozen=True)
class Shown:
    """A find as it may be shown."""

    where: str
    text: str  # masked, with what is around it


@dataclass(frozen=True)
class PersonalData:
    """What was found in the items."""

    finds: Mapping[str, int]  # kind -> finds
    items: Mapping[str, int]  # kind -> items with any
    num_items: int  # with a find of any kind
    by_source: Sequence[Mapping[str, int]]  # of each source, kind -> finds
    examples: Mapping[str, Sequence[Shown]]


def personal_data(items: Sequence[Item], num_sources: int) -> PersonalData:
    """What has a pattern in the items' texts."""
    finds: Counter[str] = Counter()
    with_any: Counter[str] = Counter()
    by_source: list[Counter[str]] = [Counter() for _ in range(num_sources)]
    examples: dict[str, list[Shown]] = {}
    num_items = 0
    for item in items:
        found = find_personal(item.text)
        num_items += bool(found)
        kinds = Counter(each.kind for each in found)
        finds.update(kinds)
        with_any.update(kinds.keys())
        by_source[item.source].update(kinds)
        for kind in kinds:
            shown = examples.setdefault(kind, [])
            if len(shown) < MOST_SHOWN:
                first = next(each for each in found if each.kind == kind)
                shown.append(Shown(item.where, _around(item.text, first)))
    return PersonalData(finds, with_any, num_items, by_source, examples)


def _around(text: str, found: Found) -> str:
    return masked_part(text, found.start - SHOWN_AROUND, found.end + SHOWN_AROUND)
