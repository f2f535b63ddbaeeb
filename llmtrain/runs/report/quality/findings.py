"""What was found, in plain sentences, the most pressing first; each leads to its evidence on the page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from llmtrain.data.quality.contamination import FEWEST_WORDS
from llmtrain.data.quality.duplicates import NEAR, ONE_WORD_OF
from llmtrain.data.quality.items import CUT_CHARS
from llmtrain.data.quality.languages import SHORT, UNCLEAR
from llmtrain.data.quality.measure import Quality
from llmtrain.data.quality.pairs import Share
from llmtrain.data.quality.sample import Sample
from llmtrain.runs.report.quality.shown import basis, share, things, unit
from llmtrain.runs.report.values import count, counted, number, percent

MANY = 0.01
"""A share of duplicates, or of repetitive texts, that asks for cleaning."""
SOME = 0.003
"""A share of near duplicates that asks for a look."""
TEMPLATE = 0.5
"""A share of near duplicates that are all like one text."""
ALIKE = 0.4
"""A similarity of two texts drawn by chance, from which on all are of one template."""
FEW_SURE = 0.05
"""A share of rows that cannot be used, that asks for a look."""
UNEVEN_TOKENS = 1.5
SECOND_LANGUAGE = 0.01
FEWEST_FOR_A_LANGUAGE = 5
BALANCED = 0.2  # width of an interval around one half from which on a share is called balanced
HALF_IN = 0.05
TOPIC_TERMS = 4
CLEAR = 0.1
"""A silhouette below which groups are not clearly separate."""


class Level(Enum):
    """What a finding asks of the reader."""

    ACT = ("act", 0)
    LOOK = ("look", 1)
    INFO = ("note", 2)
    FINE = ("fine", 3)

    @property
    def css(self) -> str:
        return self.name.lower()

    @property
    def word(self) -> str:
        return self.value[0]


@dataclass(frozen=True)
class Finding:
    """One sentence, and the section that shows why."""

    level: Level
    sentence: str
    anchor: str


def findings(quality: Quality) -> list[Finding]:
    """All findings."""
    parts = (_contaminated, _personal, _duplicated, _preferences, _labels, _lost, _odd, _repetitive)
    others = (_cut, _languages, _tokens, _sizes, _cleaned, _topics, _losses)
    found = [finding for part in (*parts, *others) for finding in part(quality)]
    return sorted(found, key=lambda finding: finding.level.value[1])


def _contaminated(quality: Quality) -> Iterator[Finding]:
    if quality.contamination is None or (found := quality.contamination.value) is None:
        return
    hit, rows, looked_for = sum(found.num_hit), sum(found.num_rows), sum(found.num_looked_for)
    if looked_for < rows:
        text = (
            f"{count(rows - looked_for)} of {counted(rows, 'evaluation row')} cannot be looked for: no text of theirs "
            f"has {FEWEST_WORDS} words that are not the wording of many rows."
        )
        yield Finding(Level.LOOK if looked_for < rows / 2 else Level.INFO, text, "contamination")
    if not hit:
        text = f"No text of the evaluation files ({counted(looked_for, 'row')}) was found in {basis(quality.sample)}."
        if looked_for:
            yield Finding(Level.FINE, text, "contamination")
        return
    longest = found.matches[0].num_words if found.matches else 0
    text = (
        f"{_in_sample(found.num_items, quality.sample)} {_have(found.num_items)} text of {count(hit)} of "
        f"{count(looked_for)} evaluation rows, up to {longest:,} words in a row: judge them, or a score measures "
        "memory."
    )
    yield Finding(Level.ACT, text, "contamination")


def _personal(quality: Quality) -> Iterator[Finding]:
    if (found := quality.personal.value) is None:
        return
    if not found.num_items:
        yield Finding(
            Level.FINE,
            "No e-mail address, phone, card or account number was found by its pattern; names have none.",
            "personal",
        )
        return
    kinds = sorted(found.items.items(), key=lambda each: -each[1])
    listed = ", ".join(f"{kind} in {count(amount)}" for kind, amount in kinds)
    text = f"{_in_sample(found.num_items, quality.sample)} {_hold(found.num_items)} personal data by pattern: {listed}."
    yield Finding(Level.ACT, text, "personal")


def _duplicated(quality: Quality) -> Iterator[Finding]:
    sample, exact, near = quality.sample, quality.exact.value, quality.near.value
    if exact is not None and exact.num_repeats:
        part = exact.num_repeats / exact.num_items
        text = (
            f"{things(exact.num_repeats, sample)} ({share(exact.num_repeats, exact.num_items)}) "
            f"{'repeats an earlier one' if exact.num_repeats == 1 else 'repeat earlier ones'} word for word."
        )
        yield Finding(Level.ACT if part >= MANY else Level.LOOK, text, "duplicates")
    elif exact is not None and exact.num_items > 1:
        yield Finding(Level.FINE, f"No {unit(sample, False)} repeats another word for word.", "duplicates")
    if near is not None and near.num_similar:
        part = near.num_similar / near.num_items
        text = (
            f"Of {basis(sample)}, {count(near.num_similar)} ({share(near.num_similar, near.num_items)}) "
            f"{_are(near.num_similar)} nearly the same as an earlier one (similarity {NEAR:g} or more)"
        )
        if near.usual >= ALIKE:
            text += f"; any two are alike ({near.usual:.2f} in the middle), as rows of a template are."
            yield Finding(Level.LOOK, text, "duplicates")
        elif near.num_like_one >= max(TEMPLATE * near.num_similar, 20):
            text += f", {count(near.num_like_one)} of them in one group, as texts of a template are."
            yield Finding(Level.LOOK, text, "duplicates")
        else:
            level = Level.ACT if part >= MANY else Level.LOOK if part >= SOME else Level.INFO
            yield Finding(level, f"{text}.", "duplicates")
    elif near is not None and near.num_items > 1:
        least = "" if sample.is_whole else ", as far as the sample shows"
        text = f"No two {unit(sample)} are nearly the same{least} (similarity {NEAR:g}: one word of {ONE_WORD_OF})."
        yield Finding(Level.FINE, text, "duplicates")


def _preferences(quality: Quality) -> Iterator[Finding]:
    if quality.pairs is None or (found := quality.pairs.value) is None:
        return
    yield _leaning(found.longer, "the chosen answer is longer", "the chosen answer is shorter", "length")
    if found.first.of:
        yield _leaning(found.first, "the answer listed first is chosen", "the answer listed last is chosen", "position")
    if found.num_contradictions:
        text = f"{counted(found.num_contradictions, 'pair')} of answers {_have(found.num_contradictions)} another pair "
        yield Finding(Level.ACT, f"{text}that prefers the opposite.", "preferences")
    if found.num_identical:
        text = (
            f"{counted(found.num_identical, 'pair')} of equal answers {_have(found.num_identical)} nothing to prefer."
        )
        yield Finding(Level.LOOK, text, "preferences")
    if found.num_prompts < found.num_pairs:
        text = (
            f"{count(found.num_pairs)} pairs have {counted(found.num_prompts, 'prompt')}: hold out by prompt, as "
            "data.eval_fraction does."
        )
        yield Finding(Level.INFO, text, "preferences")


def _leaning(found: Share, what: str, other: str, of: str) -> Finding:
    """Whether a share differs from one half, in the words of the side that is more frequent."""
    if found.value < 0.5:
        found, what = found.rest, other
    low, high = found.interval
    text = (
        f"In {percent(found.value)} of pairs {what} (95 % interval {percent(low)} to {percent(high)}, "
        f"{count(found.of)} pairs)"
    )
    if low <= 0.5 <= high:
        if high - low <= BALANCED:
            return Finding(Level.FINE, f"{text}: balanced.", "preferences")
        return Finding(Level.INFO, f"{text}: too few to know whether {of} is balanced.", "preferences")
    return Finding(Level.LOOK, f"{text}: a model may learn {of} in place of quality.", "preferences")


def _labels(quality: Quality) -> Iterator[Finding]:
    if quality.labels is None or (found := quality.labels.value) is None:
        return
    text = f"{percent(found.desirable.value)} of {counted(found.desirable.of, 'labelled answer')} are desirable"
    ratio = min(found.desirable.value, 1 - found.desirable.value)
    if ratio < 0.2:
        yield Finding(Level.LOOK, f"{text}: weigh the rarer kind up (preference.desirable_weight).", "labels")
    else:
        yield Finding(Level.FINE, f"{text}.", "labels")
    if found.num_both:
        text = f"{counted(found.num_both, 'answer')} {_are(found.num_both)} labelled both desirable and undesirable."
        yield Finding(Level.ACT, text, "labels")


def _lost(quality: Quality) -> Iterator[Finding]:
    sample = quality.sample
    lost = {why: amount for source in sample.sources for why, amount in source.lost.items()}
    total = sum(sum(source.lost.values()) for source in sample.sources)
    if not total:
        return
    part = total / (total + sample.num_items)
    text = (
        f"{count(total)} {'row is' if total == 1 else 'rows are'} left out ({share(total, total + sample.num_items)}): "
    )
    text += ", ".join(f"{why}" for why in sorted(lost, key=lambda why: -lost[why])[:3])
    yield Finding(Level.LOOK if part >= FEW_SURE else Level.INFO, f"{text}.", "sizes")


def _odd(quality: Quality) -> Iterator[Finding]:
    if (found := quality.characters.value) is None:
        return
    if not found.counts:
        yield Finding(Level.FINE, "No text is decoded wrongly or has odd characters.", "characters")
        return
    listed = ", ".join(
        f"{kind} in {count(amount)}" for kind, amount in sorted(found.counts.items(), key=lambda each: -each[1])
    )
    text = f"{_in_sample(found.num_odd, quality.sample)} ({share(found.num_odd, found.num_items)}) "
    yield Finding(Level.LOOK, f"{text}{_hold(found.num_odd)} odd characters: {listed}.", "characters")


def _repetitive(quality: Quality) -> Iterator[Finding]:
    if (found := quality.repetition.value) is None or not found.num_measured:
        return
    if not found.num_over:
        yield Finding(Level.FINE, "No text repeats itself beyond the limits of Gopher.", "repetition")
        return
    text = (
        f"{_in_sample(found.num_over, quality.sample)} ({share(found.num_over, found.num_measured)} of "
        f"those long enough) "
        f"{'repeats itself' if found.num_over == 1 else 'repeat themselves'} beyond a limit of Gopher"
    )
    if found.num_far_over:
        text += f", {count(found.num_far_over)} more than twice"
    yield Finding(
        Level.LOOK if found.num_far_over >= MANY * found.num_measured else Level.INFO, f"{text}.", "repetition"
    )


def _languages(quality: Quality) -> Iterator[Finding]:
    if (found := quality.languages.value) is None:
        return
    total = sum(each.num_items for each in found.shares.values())
    named = found.named
    if not named:
        yield Finding(Level.INFO, "The texts are too short or too mixed for a language to be seen.", "languages")
        return
    amounts = {name: found.shares[name].num_items for name in named}
    first = amounts.pop(named[0])
    listed = [name for name in amounts if amounts[name] >= max(FEWEST_FOR_A_LANGUAGE, SECOND_LANGUAGE * total)][:5]
    others = [f"{name} {share(amounts[name], total)}" for name in listed]
    if rest := sum(amounts.values()) - sum(amounts[name] for name in listed):
        others.append(f"others {share(rest, total)}")
    unsure = total - first - sum(amounts.values())
    unclear = f"; of {share(unsure, total)} the language is not clear" if unsure else ""
    if others:
        text = f"{named[0]} {share(first, total)}, then {', '.join(others)}{unclear}."
    else:
        text = f"{'All texts' if first == total else share(first, total)} are {named[0]}{unclear}."
    yield Finding(Level.INFO, text, "languages")


def _tokens(quality: Quality) -> Iterator[Finding]:
    if quality.tokens is None or (found := quality.tokens.value) is None:
        return
    text = f"A token is {number(found.total.bytes_per_token)} bytes of this text on average"
    large = {
        name: each.bytes_per_token
        for name, each in found.by_language.items()
        if name not in (SHORT, UNCLEAR) and each.num_items >= FEWEST_FOR_A_LANGUAGE
    }
    if len(large) > 1:
        best, worst = max(large, key=lambda name: large[name]), min(large, key=lambda name: large[name])
        ratio = large[best] / large[worst]
        if ratio >= UNEVEN_TOKENS:
            text += f"; {worst} takes {ratio:.1f} times as many for the same bytes as {best}"
            yield Finding(Level.LOOK, f"{text}.", "tokens")
            return
    yield Finding(Level.INFO, f"{text}.", "tokens")


def _cut(quality: Quality) -> Iterator[Finding]:
    sample = quality.sample
    if not sample.num_cut:
        return
    read = sum(len(part.text) for item in sample.items for part in item.parts)
    part = share(read, sum(item.num_chars for item in sample.items))
    text = (
        f"Of {_in_sample(sample.num_cut, sample)} longer than {CUT_CHARS:,} characters the beginning is measured: all "
        f"but sizes and exact duplicates is of {part} of the text."
    )
    yield Finding(Level.LOOK, text, "sizes")


def _sizes(quality: Quality) -> Iterator[Finding]:
    sizes = quality.sample.sizes.astype(float)
    ordered = sizes.copy()
    ordered.sort()
    reached = ordered[::-1].cumsum().searchsorted(ordered.sum() / 2) + 1
    if reached / len(ordered) <= HALF_IN and len(ordered) >= 20:
        text = f"Half of the text is in {share(reached, len(ordered))} of the {unit(quality.sample)}: the longest."
        yield Finding(Level.INFO, text, "sizes")


def _cleaned(quality: Quality) -> Iterator[Finding]:
    if (found := quality.cleaning.value) is None or not any(step.is_set for step in found.steps):
        return
    dropped = found.num_items - found.num_kept
    text = f"The configured cleaning would drop {things(dropped, quality.sample)} of {basis(quality.sample)}."
    yield Finding(Level.INFO, text, "cleaning")


def _topics(quality: Quality) -> Iterator[Finding]:
    if (found := quality.topics.value) is None:
        return
    named = [topic for topic in found.topics if topic.terms]
    text = f"The texts fall into {len(found.topics)} groups by their words"
    if named:
        text += (
            f", the largest with words of its own ({share(named[0].num_items, found.num_items)}) around "
            f"{', '.join(named[0].terms[:TOPIC_TERMS])}"
        )
    text += "; they run into each other." if found.silhouette < CLEAR else "."
    yield Finding(Level.INFO, text, "topics")


def _losses(quality: Quality) -> Iterator[Finding]:
    if quality.losses is None or (found := quality.losses.value) is None or not found.items:
        return
    middle = found.items[len(found.items) // 2].loss
    text = (
        f"The model's loss is {number(middle)} nats per token in the middle, {number(found.items[0].loss)} on the most "
        f"and {number(found.items[-1].loss)} on the least typical {unit(quality.sample, False)}."
    )
    yield Finding(Level.INFO, text, "typical")


def _in_sample(number: int, sample: Sample) -> str:
    """`12 rows`, or `12 rows of the sample`."""
    return things(number, sample) + ("" if sample.is_whole else " of the sample")


def _have(number: int) -> str:
    return "has" if number == 1 else "have"


def _hold(number: int) -> str:
    return "holds" if number == 1 else "hold"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"
