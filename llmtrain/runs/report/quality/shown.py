"""Texts of the data on the page: personal data masked, long ones cut, what matters marked."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from llmtrain.data.personal import masked_part
from llmtrain.data.quality.items import Item
from llmtrain.data.quality.sample import Sample
from llmtrain.runs.report.html import Cell, code, join
from llmtrain.runs.report.svg import plain
from llmtrain.runs.report.values import count, percent

SHOWN_CHARS = 700
"""Of a longer text the beginning is shown."""
AROUND = 180
MARKED_CHARS = 600


def start_of(text: str, longest: int = SHOWN_CHARS) -> Markup:
    """The beginning of a text, masked."""
    rest = len(text) - longest
    more = Markup(' <span class="remark">… {} characters more</span>').format(f"{rest:,}") if rest > 0 else ""
    return _box(join(masked_part(text, 0, longest), more))


def marked(text: str, start: int, end: int) -> Markup:
    """A stretch of a text, marked, with what is around it, all masked."""
    first, last = max(0, start - AROUND), min(len(text), end + AROUND)
    cut_end = min(end, start + MARKED_CHARS)
    shown = masked_part(text, first, last)
    before, within, after = shown[: start - first], shown[start - first : cut_end - first], shown[end - first :]
    return _box(
        Markup("{}{}<mark>{}</mark>{}{}{}").format(
            "…" if first else "", before, within, " … " if cut_end < end else "", after, "…" if last < len(text) else ""
        )
    )


def item_box(item: Item, longest: int = SHOWN_CHARS) -> Markup:
    """An item, each of its texts with what it is, the first ones if they are long."""
    if len(item.parts) == 1:
        return start_of(item.text, longest)
    boxes: list[Cell] = []
    left = longest
    for part in item.parts:
        if left <= 0:
            boxes.append(Markup('<div class="role">… more</div>'))
            break
        boxes.append(Markup('<div class="role">{}</div>{}').format(part.name, start_of(part.text, left)))
        left -= len(part.text)
    return join(*boxes)


def side_by_side(columns: Sequence[tuple[Cell, Markup]]) -> Markup:
    """Texts beside each other where there is room, each with its title."""
    cells = (Markup('<div><div class="role">{}</div>{}</div>').format(title, body) for title, body in columns)
    return Markup('<div class="sample"><div class="answers">{}</div></div>\n').format(join(*cells))


def sample_box(title: Cell, body: Markup) -> Markup:
    """A text with its title over it."""
    return Markup('<div class="sample"><div class="role">{}</div>{}</div>\n').format(title, body)


def place(where: str) -> Markup:
    """Where a text is: the end of its path, and the line."""
    return code(plain("/".join(where.split("/")[-2:]), 80))


def name_of(path: str) -> Markup:
    """A source by the end of its path."""
    return code(plain("/".join(path.rstrip("/").split("/")[-2:]), 60))


def unit(sample: Sample, many: bool = True) -> str:
    """What an item is called."""
    uses = {source.use for source in sample.sources}
    names = {"pairs": "pair", "kto": "answer", "sft": "row", "prompts": "prompt", None: "row"}
    word = names.get(next(iter(uses)), "text") if len(uses) == 1 else "row"
    return f"{word}s" if many else word


def things(number: int, sample: Sample) -> str:
    """`1,200 rows`."""
    return f"{count(number)} {unit(sample, number != 1)}"


def share(number: float, of: float) -> str:
    """`12.3 %`; of a part that is not zero never `0.0 %`, and of one that is not all never `100.0 %`."""
    if not of:
        return "none"
    if 0.9995 <= number / of < 1:
        return "over 99.9 %"
    return "under 0.1 %" if 0 < number / of < 0.0005 else percent(number / of)


def basis(sample: Sample) -> str:
    """What a number of the sample is of."""
    if sample.is_whole:
        return f"all {things(sample.num_items, sample)}"
    return f"{count(len(sample.items))} of {things(sample.num_items, sample)}, sampled with seed {sample.seed}"


def _box(shown: Cell) -> Markup:
    return Markup('<div class="text" dir="auto">{}</div>').format(shown)
