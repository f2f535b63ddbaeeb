"""Sections on the texts one by one: sizes, languages, repetition, odd characters, personal data, tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from markupsafe import Markup

from llmtrain.data.personal import kinds
from llmtrain.data.quality.characters import KINDS, MOJIBAKE, Characters
from llmtrain.data.quality.languages import LOOKED_AT_CHARS, SURE, Languages
from llmtrain.data.quality.measure import Quality
from llmtrain.data.quality.personal_items import PersonalData
from llmtrain.data.quality.repetition import FEWEST_WORDS, LIMITS, Repetition
from llmtrain.data.quality.sample import Sample
from llmtrain.data.quality.tokens import Efficiency, Tokens
from llmtrain.runs.report.figures import Scale, bar_chart
from llmtrain.runs.report.html import Cell, code, details, figure, grid, join, note, paragraph, subtitle, table, titled
from llmtrain.runs.report.quality.charts import log_histogram
from llmtrain.runs.report.quality.shown import (
    basis,
    item_box,
    marked,
    name_of,
    place,
    sample_box,
    share,
    side_by_side,
    start_of,
    things,
    unit,
)
from llmtrain.runs.report.section import Section
from llmtrain.runs.report.values import count, number, percent, size
from llmtrain.system.typing import Array

MOST_SOURCES = 20
MOST_LANGUAGES = 20
QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


def sizes(quality: Quality) -> Section:
    """How much there is, and how long."""
    sample = quality.sample
    rows = [
        (
            name_of(each.path),
            count(each.num_items),
            size(each.num_bytes),
            _mean(each.num_bytes, each.num_items),
            size(each.longest[0]),
            place(each.longest[1]) if each.longest[1] else "",
            _lost(each.lost),
        )
        for each in sample.sources[:MOST_SOURCES]
    ]
    head = ("source", unit(sample), "text", "mean", "longest", "which", "left out")
    parts: list[Cell] = [table(head, rows, numbers=(1, 2, 3, 4))]
    if len(sample.sources) > MOST_SOURCES:
        parts.append(note(f"{len(sample.sources) - MOST_SOURCES} more sources are not listed."))
    found_tokens = None if quality.tokens is None else quality.tokens.value
    caption = f"Bytes of text of each {unit(sample, False)}; {_quantiles(sample.sizes)}."
    drawn = [
        figure(
            log_histogram(
                {"": sample.sizes}, "bytes", unit(sample), title="Lengths in bytes", is_alone=found_tokens is None
            ),
            titled("Lengths in bytes", caption),
            f"all {things(sample.num_items, sample)}",
        )
    ]
    if found_tokens is not None:
        caption = (
            f"Tokens of each {unit(sample, False)}, without a chat template; "
            f"{_quantiles(np.array(found_tokens.lengths))}."
        )
        drawn.append(
            figure(
                log_histogram(
                    {"": found_tokens.lengths}, "tokens", unit(sample), title="Lengths in tokens", is_alone=False
                ),
                titled("Lengths in tokens", caption),
                basis(sample),
            )
        )
    for each in sample.sources[:MOST_SOURCES]:
        for why, message in each.first_lost.items():
            parts.append(note(join("Left out, ", why, ": the first is ", start_line(message))))
    return Section("Sizes and lengths", "sizes", join(*parts, grid(drawn)), "What was read, and how long each is.")


def start_line(message: str) -> str:
    """A message in one line, masked and cut."""
    from llmtrain.data.personal import masked

    line = " ".join(masked(message).split())
    return line if len(line) <= 240 else f"{line[:240]}…"


def _mean(total: float, number_of: float) -> str:
    return size(total / number_of) if number_of else ""


def _lost(lost: Mapping[str, int]) -> str:
    return ", ".join(f"{count(amount)}: {why}" for why, amount in lost.items())


def _quantiles(values: Array) -> str:
    found = np.quantile(values.astype(float), QUANTILES)
    low, middle, high = found[1], found[3], found[5]
    return f"half have up to {count(middle)}, one in ten up to {count(low)}, one in ten {count(high)} or more"


def languages(quality: Quality, found: Languages) -> Section:
    """Which languages, how surely, and examples of the rarer ones."""
    sample = quality.sample
    total = len(found.of_items)
    total_bytes = sum(each.num_bytes for each in found.shares.values())
    names = list(found.shares)
    rows = [
        (
            name,
            count(each.num_items),
            share(each.num_items, total),
            share(each.num_bytes, total_bytes),
            f"{each.confidence:.2f}" if each.confidence else "",
        )
        for name, each in list(found.shares.items())[:MOST_LANGUAGES]
    ]
    parts: list[Cell] = [
        table(("language", unit(sample), "share", "share of bytes", "confidence"), rows, numbers=(1, 2, 3, 4))
    ]
    if len(names) > MOST_LANGUAGES:
        parts.append(note(f"{len(names) - MOST_LANGUAGES} more, each rarer."))
    if len(sample.sources) > 1:
        shown = names[:6]
        by_source = [
            (name_of(source.path), *(count(found.shares[name].by_source[i]) for name in shown))
            for i, source in enumerate(sample.sources[:MOST_SOURCES])
        ]
        parts += [subtitle("By source"), table(("source", *shown), by_source, numbers=range(1, len(shown) + 1))]
    examples = [
        sample_box(join(name, " · ", place(item.where)), item_box(item, 240))
        for name in names[1:9]
        for item in found.shares[name].examples
    ]
    if examples:
        parts.append(details(f"Examples of all but the most frequent ({len(examples)})", join(*examples)))
    parts.append(
        note(
            f"From the first {LOOKED_AT_CHARS:,} characters of {basis(sample)}, without what half of a source's texts "
            "begin with, by py3langid. Its confidence is the probability of the language among 140; below "
            f"{SURE:g} the language counts as not clear: short texts, code, tables, names. Rare languages of few rows "
            "are often short texts that were taken for another."
        )
    )
    return Section("Languages", "languages", join(*parts), "Which languages the texts are in, and how sure that is.")


def repetition(quality: Quality, found: Repetition) -> Section:
    """Which texts repeat themselves."""
    sample = quality.sample
    rows = [
        (rule, percent(LIMITS[rule]), count(amount), share(amount, found.num_measured))
        for rule, amount in found.over.items()
    ]
    parts: list[Cell] = []
    if found.num_measured:
        parts.append(table(("share of a text", "limit", "beyond it", "of those measured"), rows, numbers=(1, 2, 3)))
    for each in found.most:
        phrase = marked_phrase(each.text, each.phrase)
        title = join(
            place(each.item.where),
            f" · {each.rule}: {percent(each.share)} (limit {percent(LIMITS[each.rule])}) · ",
            f"{each.count:,} times: ",
            Markup("<em>{}</em>").format(start_line(each.phrase)[:80]),
        )
        parts.append(sample_box(title, phrase))
    parts.append(
        note(
            "The rules and limits are those of Gopher (Rae et al. 2021, table A1) for English web "
            "pages; poems, tables, "
            f"code and lists exceed them rightly, and short texts easily. From {basis(sample)}, of which "
            f"{count(found.num_short)} have fewer than "
            f"{FEWEST_WORDS} words, too few to measure. Of a chat each message is measured, of a pair "
            f"all but the rejected answer."
        )
    )
    return Section("Repetition within texts", "repetition", join(*parts), "Texts that say the same again and again.")


def marked_phrase(text: str, phrase: str) -> Markup:
    """A text around the first place where some words in a row, or a line, are."""
    import re

    words = re.findall(r"\w+", phrase)
    pattern = r"\W+".join(map(re.escape, words)) or re.escape(phrase.strip())
    found = re.search(pattern, text, flags=re.IGNORECASE) if pattern else None
    return start_of(text) if found is None else marked(text, *found.span())


def characters(quality: Quality, found: Characters) -> Section:
    """What should not be in the texts, with what ftfy would make of it."""
    sample = quality.sample
    meanings = {
        MOJIBAKE: "UTF-8 read as another encoding: Ã© instead of é",
        **{kind.name: kind.meaning for kind in KINDS},
    }
    rows = [
        (name, count(amount), share(amount, found.num_items), meanings[name]) for name, amount in found.counts.items()
    ]
    parts: list[Cell] = []
    if rows:
        parts.append(table(("kind", unit(sample), "share", "what it is"), rows, numbers=(1, 2)))
    if found.repairs:
        parts.append(subtitle("As it is, and as ftfy would repair it"))
    for repair in found.repairs:
        before = start_of(repair.item.text[repair.span.start : repair.span.end], 300)
        parts.append(side_by_side([(place(repair.item.where), before), ("repaired", start_of(repair.after, 300))]))
    shown = [
        sample_box(join(name, " · ", place(odd.item.where)), marked(odd.item.text, *odd.span))
        for name, each in found.examples.items()
        for odd in each[:2]
    ]
    if shown:
        parts.append(details(f"Examples of the other kinds ({len(shown)})", join(*shown)))
    if found.others:
        listed = ", ".join(f"{char!r} {amount:,}" for char, amount in found.others)
        parts.append(
            note(f"{share(found.ascii_share, 1)} of all characters are ASCII. The most frequent others: {listed}.")
        )
    parts.append(
        note(
            f"From {basis(sample)}. ftfy repairs what has one plausible origin and leaves the rest; "
            f"what cannot be seen "
            r"is shown as an escape such as \u200b."
        )
    )
    return Section(
        "Odd characters", "characters", join(*parts), "What decoding, markup and converters left in the texts."
    )


def personal(quality: Quality, found: PersonalData) -> Section:
    """What has a pattern, masked."""
    sample = quality.sample
    parts: list[Cell] = []
    rows = [
        (
            kind,
            count(found.finds.get(kind, 0)),
            count(found.items.get(kind, 0)),
            share(found.items.get(kind, 0), len(sample.items)),
            how,
        )
        for kind, how in kinds()
    ]
    parts.append(table(("kind", "finds", unit(sample), "share", "how it is recognised"), rows, numbers=(1, 2, 3)))
    if len(sample.sources) > 1:
        lines = [
            (name_of(source.path), *(count(found.by_source[i].get(kind, 0)) for kind, _ in kinds()))
            for i, source in enumerate(sample.sources[:MOST_SOURCES])
        ]
        parts += [
            subtitle("Finds by source"),
            table(("source", *(kind for kind, _ in kinds())), lines, numbers=range(1, len(rows) + 1)),
        ]
    shown = [
        sample_box(
            join(kind, " · ", place(each.where)), Markup('<div class="text" dir="auto">{}</div>').format(each.text)
        )
        for kind, finds in found.examples.items()
        for each in finds
    ]
    if shown:
        parts.append(details(f"Where they are, masked ({len(shown)})", join(*shown), is_open=len(shown) <= 8))
    parts.append(
        note(
            f"From {basis(sample)}. Every text on this page is masked like this: letters and digits become dots, the "
            "last two digits of a number stay. Patterns cannot find names, streets, dates of birth, "
            "health or opinions, nor who a text is about; finding nothing is no proof that there is nothing. Made-up "
            "numbers such as 555-0100 are found too."
        )
    )
    return Section("Personal data by pattern", "personal", join(*parts), "What may identify a person and has a form.")


def tokens(quality: Quality, found: Tokens) -> Section:
    """How efficiently the tokenizer writes each source and language."""
    parts: list[Cell] = [
        paragraph(
            join(
                "The tokenizer ",
                code(found.tokenizer),
                f" has {count(found.vocab_size)} tokens. It makes ",
                f"{count(found.total.num_tokens)} of {basis(quality.sample)}: ",
                f"{number(found.total.bytes_per_token)} bytes per token.",
            )
        )
    ]
    drawn = []
    by_source = dict(zip((_short(s.path) for s in quality.sample.sources), found.by_source, strict=True))
    for name, each in (("source", by_source), ("language", found.by_language)):
        groups = {key: value for key, value in list(each.items())[:12] if value.num_tokens}
        if len(groups) > 1:
            bars = bar_chart(
                {key: value.bytes_per_token for key, value in groups.items()},
                Scale("bytes per token"),
                title=f"Bytes per token by {name}",
            )
            drawn.append(
                figure(
                    bars,
                    titled(f"By {name}", "More is cheaper: fewer tokens for the same text."),
                    basis(quality.sample),
                )
            )
    rows = list(_efficiencies(found, by_source))
    head = ("what", "kind", unit(quality.sample), "bytes per token", "tokens", "unknown")
    parts += [grid(drawn), table(head, rows, numbers=(2, 3, 4, 5))]
    parts.append(
        note(
            "A language with fewer bytes per token costs more to train on and to generate, and "
            "fills the context sooner. "
            "Letters outside ASCII take two to four bytes, so compare languages of one script, or mind that factor."
        )
    )
    return Section("Token efficiency", "tokens", join(*parts), "How much text a token is, by source and language.")


def _short(path: str) -> str:
    return "/".join(path.rstrip("/").split("/")[-2:])


def _efficiencies(found: Tokens, by_source: Mapping[str, Efficiency]) -> Iterator[Sequence[Cell]]:
    for kind, groups in (("source", by_source), ("language", found.by_language)):
        for name, each in list(groups.items())[:MOST_LANGUAGES]:
            if each.num_tokens:
                yield (
                    name,
                    kind,
                    count(each.num_items),
                    number(each.bytes_per_token),
                    count(each.num_tokens),
                    count(each.num_unknown),
                )


def sampled(sample: Sample) -> str:
    """How the sample was drawn, in a sentence."""
    if sample.is_whole:
        text = f"Every one of {things(sample.num_items, sample)} was measured."
    else:
        text = (
            f"Sizes and exact duplicates are of all {things(sample.num_items, sample)}; the rest is measured on "
            f"{count(len(sample.items))} of them, drawn at random with seed {sample.seed}."
        )
    if sample.num_cut:
        cut = (
            "one that is longer than 200,000 characters is"
            if sample.num_cut == 1
            else (f"{count(sample.num_cut)} that are longer than 200,000 characters are")
        )
        text += f" Of these, {cut} measured by the beginning."
    return text
