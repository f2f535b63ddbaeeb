"""Sections on the texts together: duplicates, contamination, topics, what a model finds typical, pairs, cleaning."""

from __future__ import annotations

from markupsafe import Markup

from llmtrain.data.quality.cleaning import Cleaning, Step
from llmtrain.data.quality.contamination import FEWEST_WORDS, NGRAM_WORDS, Contamination
from llmtrain.data.quality.duplicates import NEAR, ONE_WORD_OF
from llmtrain.data.quality.measure import Quality
from llmtrain.data.quality.pairs import Labels, Pairs
from llmtrain.data.quality.topics import COUNTS, NAMING, Topics
from llmtrain.data.quality.typical import ItemLoss, Losses
from llmtrain.runs.report.html import Cell, code, details, figure, join, note, paragraph, subtitle, table, titled
from llmtrain.runs.report.quality.charts import balance_histogram, log_histogram, topic_map
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
from llmtrain.runs.report.values import count, counted, number, percent, size

UNNAMED = "no words that many of its texts share"
ENDS = 5
"""Texts of the lowest and of the highest loss that are shown."""


def duplicates(quality: Quality) -> Section:
    """What is repeated, word for word and nearly."""
    sample, exact, near = quality.sample, quality.exact.value, quality.near.value
    parts: list[Cell] = [subtitle("Word for word")]
    if exact is None:
        parts.append(note(f"Not measured: {quality.exact.fault}"))
    elif exact.num_repeats:
        parts.append(
            paragraph(
                f"{counted(exact.num_texts, 'text')} {'occurs' if exact.num_texts == 1 else 'occur'} more than once. "
                f"Keeping each once leaves out {things(exact.num_repeats, sample)} "
                f"({share(exact.num_repeats, exact.num_items)}), {size(exact.repeated_bytes)}."
            )
        )
        for each in exact.most:
            where = Markup(", ").join(map(place, each.places))
            more = ", …" if each.count > len(each.places) else ""
            parts.append(sample_box(join(f"{each.count:,} times: ", where, more), start_of(each.text, 400)))
    else:
        parts.append(paragraph(f"None of all {things(sample.num_items, sample)} is equal to another."))
    parts.append(subtitle("Nearly"))
    if near is None:
        parts.append(note(f"Not measured: {quality.near.fault}"))
    else:
        parts.append(
            paragraph(
                f"Of {basis(sample)}, {things(near.num_similar, sample)} ({share(near.num_similar, near.num_items)}) "
                f"{'is' if near.num_similar == 1 else 'are'} nearly the same "
                "as an earlier one, those that are equal to one aside."
            )
        )
        for pair in near.most:
            title = join(place(pair.later.where), f" · similarity {pair.similarity:.2f}")
            parts.append(
                side_by_side(
                    [(place(pair.earlier.where), item_box(pair.earlier, 500)), (title, item_box(pair.later, 500))]
                )
            )
        if not sample.is_whole:
            part = len(sample.items) / sample.num_items
            parts.append(
                note(
                    f"A pair is seen only if both of it are in the sample, which {percent(part**2)} "
                    f"of pairs are: in all "
                    "rows the share is higher. Raise --rows to see more."
                )
            )
        parts.append(
            note(
                f"Similarity is the shared part of two texts' sets of 5 words in a row (Jaccard); {NEAR:g} or more is "
                f"looked for by MinHash, which misses a few pairs; those that it finds are compared word by word. One "
                f"word that differs in {ONE_WORD_OF} leaves 0.8: of shorter texts that differ in a word few are found. "
                f"{count(near.num_short)} with fewer than "
                "5 words are not compared. `data.clean.exact_dedup` and `near_dedup` drop both kinds in pretraining."
            )
        )
    return Section("Duplicates", "duplicates", join(*parts), "A text that is there ten times is learned ten times.")


def contamination(quality: Quality, found: Contamination) -> Section:
    """What the data and the evaluation files share, side by side."""
    rows = [
        (
            name_of(path),
            count(found.num_rows[i]),
            count(found.num_looked_for[i]),
            count(found.num_hit[i]),
            share(found.num_hit[i], found.num_looked_for[i]),
        )
        for i, path in enumerate(found.files)
    ]
    head = ("evaluation file", "rows", "looked for", "found in the data", "share of these")
    parts: list[Cell] = [table(head, rows, numbers=(1, 2, 3, 4))]
    for match in found.matches:
        title = f"data · {match.num_words:,} words in a row"
        second = f"evaluation · {percent(match.share)} of it is in the data"
        parts.append(
            side_by_side(
                [
                    (join(title, " · ", place(match.item.where)), marked(match.item.text, *match.in_item)),
                    (
                        join(second, " · ", place(match.evaluated.where)),
                        marked(match.evaluated.text, *match.in_evaluated),
                    ),
                ]
            )
        )
    least = (
        "" if quality.sample.is_whole else " What is not in the sample is not found: the counts are the least there is."
    )
    parts.append(
        note(
            f"Looked for in {basis(quality.sample)}: {NGRAM_WORDS} words in a row of any text of an evaluation row "
            f"(Brown et al. 2020, appendix C), or all of it if it has {FEWEST_WORDS} to {NGRAM_WORDS - 1}; rows "
            f"whose texts are all shorter cannot be looked for. Words that "
            f"more than one row in ten shares are its wording, and do not count.{least} A quotation or a phrase of "
            "law is no leak; a question with its answer is. Paraphrases and translations are not found."
        )
    )
    lead = "Text of evaluation files in the data, the longest first: a person judges."
    return Section("Contamination", "contamination", join(*parts), lead)


def topics(quality: Quality, found: Topics) -> Section:
    """Groups of texts by their words."""
    sample = quality.sample
    drawn = figure(
        topic_map(found, title="Map of topics"),
        titled(
            "Map of topics",
            "Each dot is a text; near dots have similar words (t-SNE). The distance between groups, their size and "
            "their shape on the map mean nothing.",
        ),
        f"{count(len(found.places))} of {basis(sample)}",
    )
    with_sources = len(sample.sources) > 1
    rows = []
    for rank, topic in enumerate(found.topics, 1):
        main = max(range(len(topic.by_source)), key=lambda i: topic.by_source[i])
        source = (join(name_of(sample.sources[main].path), f" {share(topic.by_source[main], topic.num_items)}"),)
        rows.append(
            (
                str(rank),
                ", ".join(topic.terms) or UNNAMED,
                count(topic.num_items),
                share(topic.num_items, found.num_items),
                *(source if with_sources else ()),
            )
        )
    head = ("group", "words that set it apart from the others", unit(sample), "share")
    parts: list[Cell] = [drawn, table((*head, *(("mostly of",) if with_sources else ())), rows, numbers=(2, 3))]
    for rank, topic in enumerate(found.topics, 1):
        body = join(*(sample_box(place(item.where), item_box(item, 400)) for item in topic.examples))
        parts.append(details(f"Group {rank}: {', '.join(topic.terms[:3]) or UNNAMED}", body))
    parts.append(
        note(
            f"{count(found.num_items)} texts by TF-IDF of their words, reduced by SVD (which keeps "
            f"{percent(found.variance)} of the differences), grouped by k-means; of the numbers of groups that were "
            f"tried, {COUNTS[0]} to {COUNTS[-1]}, this one has the best silhouette, {found.silhouette:.2f} (1: clearly "
            f"separate, 0: they run into each other). A word names a group if {percent(NAMING)} of its texts have it; "
            "the groups were not labelled by anyone, and another seed gives somewhat others."
        )
    )
    return Section("Topics", "topics", join(*parts), "What the texts are about, found without labels.")


def typical(quality: Quality, found: Losses) -> Section:
    """The texts that a model predicts best and worst."""
    losses = [each.loss for each in found.items]
    parts: list[Cell] = []
    if losses:
        parts.append(
            figure(
                log_histogram(
                    {"": [max(loss, 0.01) * 1000 for loss in losses]},
                    "loss, thousandths of a nat per token",
                    unit(quality.sample),
                    title="Losses",
                ),
                titled("Losses", f"Of the first {found.most_tokens} tokens of each."),
                f"{count(len(losses))} of {basis(quality.sample)}",
            )
        )
    shown = min(ENDS, len(found.items) // 2)
    for title, each in (("The most typical", found.items[:shown]), ("The least typical", found.items[-shown:][::-1])):
        parts.append(subtitle(title))
        parts += [_loss_box(loss) for loss in each] if shown else []
    parts.append(
        note(
            join(
                f"By {found.model}, on {count(len(found.items))} texts as they are, without a chat "
                f"template. A very low "
                "loss is boilerplate, a list, or what the model learned by heart; a very high one another language, "
                "noise, or what is new to it. Neither is bad by itself: read them."
            )
        )
    )
    return Section("Typical and untypical", "typical", join(*parts), "What a model expects, and what surprises it.")


def _loss_box(found: ItemLoss) -> Markup:
    title = join(
        place(found.item.where),
        f" · {number(found.loss)} nats per token, {number(found.bits_per_byte)} bits per byte, "
        f"{found.num_tokens} tokens",
    )
    return sample_box(title, item_box(found.item, 500))


def preferences(quality: Quality, found: Pairs) -> Section:
    """What separates chosen from rejected besides quality."""
    rows = [("the chosen answer is longer", found.longer)]
    rows += [("the chosen answer is listed first", found.first)] if found.first.of else []
    lines = [
        (what, percent(each.value), f"{percent(each.interval[0])} to {percent(each.interval[1])}", count(each.of))
        for what, each in rows
    ]
    parts: list[Cell] = [
        table(("in what share of pairs", "share", "95 % interval", "pairs that decide"), lines, numbers=(1, 2, 3)),
        figure(
            balance_histogram(found.differences, title="Length of chosen and rejected answers"),
            titled("Length", "Right of the line the chosen answer is longer, in characters; the ends are open."),
            basis(quality.sample),
        ),
        table(
            ("what", "count"),
            [
                ("pairs", count(found.num_pairs)),
                ("prompts", count(found.num_prompts)),
                ("pairs of equal answers, left out", count(found.num_identical)),
                ("pairs that contradict another", count(found.num_contradictions)),
                ("pairs with an empty answer", count(found.num_blank)),
            ],
            numbers=(1,),
        ),
    ]
    for first, second in found.contradictions:
        parts.append(
            side_by_side([(place(first.where), item_box(first, 500)), (place(second.where), item_box(second, 500))])
        )
    parts += _repeated(found.most_repeated, "pairs")
    if not found.first.of:
        parts.append(
            note(
                "Position cannot be seen: the rows name the chosen and the rejected answer, and do "
                "not say in which order "
                "the judge saw them."
            )
        )
    return Section(
        "Balance of preferences", "preferences", join(*parts), "What a model could learn in place of quality."
    )


def labels(quality: Quality, found: Labels) -> Section:
    """How labelled answers are balanced."""
    low, high = found.desirable.interval
    parts: list[Cell] = [
        paragraph(
            f"{percent(found.desirable.value)} of {counted(found.desirable.of, 'answer')} are desirable (95 % interval "
            f"{percent(low)} to {percent(high)}); {counted(found.num_prompts, 'prompt')}."
        ),
        figure(
            log_histogram(dict(found.lengths), "characters of the answer", "answers", title="Lengths by label"),
            titled("Lengths by label", "If one kind is longer, a model may learn length."),
            basis(quality.sample),
        ),
    ]
    parts += _repeated(found.most_repeated, "answers")
    return Section("Balance of labels", "labels", join(*parts), "What a model could learn in place of quality.")


def _repeated(most: list[tuple[str, int]] | object, what: str) -> list[Cell]:
    assert isinstance(most, list)
    boxes = [sample_box(f"{amount:,} {what}", start_of(prompt, 240)) for prompt, amount in most]
    return [details(f"The most repeated prompts ({len(boxes)})", join(*boxes))] if boxes else []


def cleaning(quality: Quality, found: Cleaning) -> Section:
    """What each step would drop."""
    sample = quality.sample
    rows = []
    for step in found.steps:
        value = _value(step)
        if step.fault:
            rows.append((code(step.name), value, step.fault, "", ""))
            continue
        in_turn = count(step.num_in_turn) if step.is_set else "not set"
        rows.append((code(step.name), value, count(step.num_alone), share(step.num_alone, found.num_items), in_turn))
    parts: list[Cell] = [
        table(("data.clean.", "value", "drops alone", "share", "drops in its turn"), rows, numbers=(2, 3, 4))
    ]
    if any(step.is_set for step in found.steps):
        parts.append(paragraph(f"The steps that are set keep {count(found.num_kept)} of {basis(sample)}."))
    for step in found.steps:
        if step.examples:
            body = join(
                *(
                    sample_box(join(place(item.where), f" · {why}" if why else ""), item_box(item, 300))
                    for item, why in step.examples
                )
            )
            parts.append(details(join(code(step.name), " would drop, for example"), body))
    where = (
        "" if found.applies else " These are keys of `llmtrain pretrain`; for other recipes, filter the rows yourself."
    )
    parts.append(
        note(
            f"Tried on {basis(sample)}. A step that is not set is tried with a usual value, which "
            f"may be wrong here: short "
            f"answers are not bad, and code has few letters.{where}"
        )
    )
    return Section(
        "What cleaning would drop", "cleaning", join(*parts), "Each step with what it takes away, before it does."
    )


def _value(step: Step) -> str:
    text = f"{len(step.value)} files" if isinstance(step.value, list) else str(step.value)
    return f"{text} (set)" if step.is_set else text
