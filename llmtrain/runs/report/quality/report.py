"""The page of what is in the data: measures in, one HTML file out.

Quality -> findings, sections -> page
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from markupsafe import Markup

from llmtrain.data.quality.measure import Outcome, Quality
from llmtrain.data.quality.sample import SourceTotals
from llmtrain.runs.report.html import Cell, code, join, note, paragraph, table, tile, tiles
from llmtrain.runs.report.page import page
from llmtrain.runs.report.quality import texts, whole
from llmtrain.runs.report.quality.findings import findings
from llmtrain.runs.report.quality.shown import name_of, things, unit
from llmtrain.runs.report.section import Section
from llmtrain.runs.report.svg import plain
from llmtrain.runs.report.values import count, number, size
from llmtrain.system.files import one_line, write_bytes

KINDS = {
    "pairs": "preference pairs",
    "kto": "labelled answers",
    "sft": "instructions and chats",
    "prompts": "prompts",
    "pretrain": "plain text",
    None: "rows of no known format, whose strings are read",
}
PACKAGES = ("llmtrain", "py3langid", "ftfy", "rensa", "scikit-learn")
MEASURES: Sequence[tuple[str, str, Callable[[Quality, Any], Section]]] = (
    ("contamination", "Contamination", whole.contamination),
    ("pairs", "Balance of preferences", whole.preferences),
    ("labels", "Balance of labels", whole.labels),
    ("personal", "Personal data by pattern", texts.personal),
    ("languages", "Languages", texts.languages),
    ("repetition", "Repetition within texts", texts.repetition),
    ("characters", "Odd characters", texts.characters),
    ("tokens", "Token efficiency", texts.tokens),
    ("topics", "Topics", whole.topics),
    ("losses", "Typical and untypical", whole.typical),
    ("cleaning", "What cleaning would drop", whole.cleaning),
)
"""Field of `Quality`, title and section of each measure, in the order of the page."""
ANCHORS = {"pairs": "preferences", "losses": "typical"}
"""Fields whose sections have another anchor than their name."""


def write_page(quality: Quality, output: Path) -> None:
    """Write the page. Raises ValueError if it cannot be written, or matplotlib is missing."""
    names = [plain(_short(source), 40) for source in quality.sample.sources[:3]]
    more = f" and {len(quality.sample.sources) - 3} more" if len(quality.sample.sources) > 3 else ""
    title = f"Data: {', '.join(names)}{more}"
    text = page(title, list(_sections(quality)), about=f"llmtrain {version('llmtrain')}")
    write_bytes(output, text.encode("utf-8"), "free some space or name another file with --report")


def _short(source: SourceTotals) -> str:
    return source.path.rstrip("/").split("/")[-1] or source.path


def _sections(quality: Quality) -> Iterator[Section]:
    yield _top(quality)
    yield _drawn(lambda: texts.sizes(quality), "Sizes and lengths", "sizes")
    yield _drawn(lambda: whole.duplicates(quality), "Duplicates", "duplicates")
    outcomes = dict(quality.outcomes())
    for field, title, section in MEASURES:
        if (outcome := outcomes.get(field)) is not None:
            yield _of(outcome, title, ANCHORS.get(field, field), partial(section, quality))
    yield _how(quality)


def _of(outcome: Outcome[Any], title: str, anchor: str, section: Callable[[Any], Section]) -> Section:
    """The section of a measure, or a line that says why there is none."""
    if outcome.value is None:
        return Section(title, anchor, note(f"Not measured: {outcome.fault}"))
    return _drawn(lambda: section(outcome.value), title, anchor)


def _drawn(section: Callable[[], Section], title: str, anchor: str) -> Section:
    try:
        return section()
    except Exception as error:  # the other sections are well
        return Section(title, anchor, note(f"Not shown ({type(error).__name__}: {one_line(error)})"))


def _top(quality: Quality) -> Section:
    sample = quality.sample
    sources = Markup(", ").join(name_of(source.path) for source in sample.sources[:6])
    more = f" and {len(sample.sources) - 6} more" if len(sample.sources) > 6 else ""
    kinds = ", ".join(dict.fromkeys(KINDS[source.use] for source in sample.sources))
    story = join(
        f"{things(sample.num_items, sample)} of text ({kinds}) in ",
        sources,
        more,
        f", {size(sample.num_bytes)}. ",
        texts.sampled(sample),
    )
    found = findings(quality)
    lines = Markup("\n").join(
        Markup('<li class="{}"><span class="word">{}</span><a href="#{}">{}</a></li>').format(
            each.level.css, each.level.word, each.anchor, each.sentence
        )
        for each in found
    )
    listed = Markup('<ul class="findings">{}</ul>\n').format(lines)
    meaning = note(
        "act: before training. look: read the evidence, then decide. note: good to know. fine: nothing found."
    )
    return Section("What was found", "found", join(paragraph(story), _tiles(quality), listed, meaning))


def _tiles(quality: Quality) -> Markup:
    sample = quality.sample
    each = [
        tile(
            unit(sample),
            count(sample.num_items),
            f"in {count(len(sample.sources))} sources" if len(sample.sources) > 1 else "",
        ),
        tile("text", size(sample.num_bytes), f"{size(sample.num_bytes / sample.num_items)} on average"),
    ]
    if quality.tokens is not None and (tokens := quality.tokens.value) is not None:
        total = sample.num_bytes / tokens.total.bytes_per_token
        each.append(tile("tokens, about", count(total), f"{number(tokens.total.bytes_per_token)} bytes per token"))
    if (languages := quality.languages.value) is not None and languages.named:
        others = len(languages.named) - 1
        each.append(tile("language", languages.named[0], f"and {others} others seen" if others else "and no other"))
    return tiles(each)


def _how(quality: Quality) -> Section:
    """What was asked for, what each measure cost, what was not measured."""
    rows = [(name, outcome.fault or "measured", f"{outcome.seconds:.1f}") for name, outcome in quality.outcomes()]
    asked = {
        "contamination": (
            quality.contamination,
            "give evaluation files with --against, or data.eval in a configuration",
        ),
        "tokens": (quality.tokens, "give --tokenizer"),
        "losses": (quality.losses, "give --model"),
    }
    rows += [(name, f"not asked for: {how}", "") for name, (outcome, how) in asked.items() if outcome is None]
    packages = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    body: list[Cell] = [table(("measure", "", "seconds"), rows, numbers=(2,))]
    body.append(note(join(texts.sampled(quality.sample), f" Made with {packages}.")))
    if quality.asked.against:
        files = Markup(", ").join(code(plain(each.path, 80)) for each in quality.asked.against)
        body.append(note(join("Evaluation files: ", files, ".")))
    return Section("How it was measured", "how", join(*body))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"
