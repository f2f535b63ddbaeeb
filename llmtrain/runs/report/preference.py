"""The section of preference runs: DPO and its variants by implied rewards of pairs, KTO by those of labelled answers.

The implied reward of an answer is what the policy has moved towards it: beta * (log p - log p of the reference).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from markupsafe import Markup

from llmtrain.runs.record import RunRecord
from llmtrain.runs.report.curves import column
from llmtrain.runs.report.evaluated import Evaluated, last_evaluation
from llmtrain.runs.report.figures import Line, Scale, line_chart
from llmtrain.runs.report.html import figure, grid, join, note, paragraph, titled
from llmtrain.runs.report.names import short_names
from llmtrain.runs.report.over_time import measure_figure
from llmtrain.runs.report.ranked import (
    accuracy_figure,
    by_source,
    correlation_words,
    length_figures,
    length_table,
    length_words,
    pair_figures,
    roc_figures,
    verdict,
)
from llmtrain.runs.report.ranking import confusion_figure, counts_figure, length_figure
from llmtrain.runs.report.section import Section
from llmtrain.runs.report.svg import SERIES
from llmtrain.runs.report.values import is_finite, number, percent

REWARD = "implied reward"
RANKED = (
    "Of pairs: the chosen answer has the higher implied reward; a tie counts half. Of labelled answers (KTO): the "
    "answer is on the right side of the KL. Where the loss has a reference, the policy before training equals it: "
    "rewards are zero but for rounding, and the value at step 0 is chance."
)
OF_PAIRS = {"eval_chosen_reward": "chosen", "eval_rejected_reward": "rejected"}
OF_ANSWERS = {"eval_desirable_reward": "desirable", "eval_undesirable_reward": "undesirable"}


def preferences(records: Sequence[RunRecord]) -> Section | None:
    """Accuracy and implied rewards over steps of every run; of one run also ROC, confusion and length."""
    records = [record for record in records if record.recipe == "preference"]
    if not records:
        return None
    accuracy = accuracy_figure(records, "ranked right", RANKED)
    figures = [*accuracy, *_rewards(records), *_likelihood(records), *_kl(records)]
    found = [(record, each) for record in records if (each := last_evaluation(record, "roc")) is not None]
    if not figures and not found:
        return Section("Preferences", "preferences", note("No answers were held out and evaluated."))
    if len(found) == 1 and len(records) == 1:
        parts = [*_words(found[0][0], found[0][1]), *_whole(figures, *found[0])]
    else:
        parts = [grid(figures)]
    lead = "Has the policy moved towards the better answers and away from the worse ones?"
    return Section("Preferences", "preferences", join(*parts), lead)


def _words(record: RunRecord, evaluated: Evaluated) -> Iterator[Markup]:
    if "accuracy" in evaluated.report:
        yield paragraph(f"{verdict(evaluated)} {length_words(evaluated.report['decisions'])}")
    elif record.eval_rows and is_finite(record.eval_rows[-1].get("eval_accuracy")):
        last = record.eval_rows[-1]
        low, high = (last.get(f"eval_accuracy_{end}") for end in ("low", "high"))
        interval = f" (95 % interval {percent(low)} to {percent(high)})" if is_finite(low) and is_finite(high) else ""
        yield paragraph(
            f"At step {last['step']:,} {percent(last['eval_accuracy'])} of {number(evaluated.report['answers'])} "
            f"held-out answers are on the right side of the KL{interval}: desirable ones above it, undesirable ones "
            f"below.{_not_finite(evaluated)}"
        )
    yield from (paragraph(words) for words in [falling_likelihood(record)] if words)


def _not_finite(evaluated: Evaluated) -> str:
    """What became of answers (KTO) whose rewards are not finite; "" if there are none."""
    bad = evaluated.report.get("answers_not_finite")
    return f" Rewards of {number(bad)} of them are not finite; these are in no picture." if bad else ""


def falling_likelihood(record: RunRecord) -> str:
    """Whether the chosen answers became less likely, as they may while they win; "" if not, or if it is not logged."""
    curve = column(record.eval_rows, "eval_chosen_logprob")
    if len(curve.y) < 2 or not is_finite(curve.y[0]) or not curve.y[-1] < curve.y[0]:
        return ""
    return (
        f"The chosen answers became less likely: their log-probability fell from {number(float(curve.y[0]))} to "
        f"{number(float(curve.y[-1]))} nats per answer. The policy moved away from the rejected answers more than "
        "towards the chosen ones; a lower learning rate, fewer epochs or a larger beta holds it closer."
    )


def _whole(figures: Sequence[Markup], record: RunRecord, evaluated: Evaluated) -> Iterator[Markup]:
    if "accuracy" in evaluated.report:
        ranked = [*roc_figures([(record, evaluated)], "chosen", "rejected"), *pair_figures(evaluated, REWARD)]
        yield grid([*figures, *ranked, *length_figures(evaluated, REWARD)])
        yield from length_table(evaluated)
        yield from by_source(record, evaluated)
    else:
        labelled = [*roc_figures([(record, evaluated)], "desirable", "undesirable"), *_of_answers(evaluated)]
        yield grid([*figures, *labelled, *_length_of_answers(evaluated)])


def _rewards(records: Sequence[RunRecord]) -> Iterator[Markup]:
    """Implied rewards of good and bad answers; several runs in one colour each, their bad answers dashed."""
    for fields in (OF_PAIRS, OF_ANSWERS):
        good, bad = fields
        lines = list(_lines(records, fields))
        if not lines:
            continue
        drawn = line_chart(lines, Scale("step"), Scale("implied reward, held out"), title="Implied rewards over steps")
        caption = (
            f"The {fields[good]} answers should rise and the {fields[bad]} ones fall. Zero is the policy before "
            "training; losses without a reference (ORPO, SimPO) have no such zero."
        )
        yield figure(drawn, titled("Implied rewards", caption), f"metrics.jsonl: {good}, {bad}")


def _lines(records: Sequence[RunRecord], fields: Mapping[str, str]) -> Iterator[Line]:
    names = short_names([record.folder for record in records])
    for number_of_run, (record, name) in enumerate(zip(records, names, strict=True)):
        for field, label in fields.items():
            is_good = field == next(iter(fields))
            if len((curve := column(record.eval_rows, field)).x):
                if len(records) == 1:
                    yield Line(label, curve, SERIES[0 if is_good else 1])
                else:
                    color = SERIES[number_of_run % len(SERIES)]
                    yield Line(f"{name}, {label}", curve, color, "solid" if is_good else "dashed")


def _likelihood(records: Sequence[RunRecord]) -> Iterator[Markup]:
    drawn = measure_figure(records, "eval_chosen_logprob", "log-probability, nats")
    if drawn is not None:
        caption = "If it falls while accuracy rises, both answers become less likely, the rejected ones faster."
        yield figure(drawn, titled("Likelihood of chosen answers", caption), "metrics.jsonl: eval_chosen_logprob")


def _kl(records: Sequence[RunRecord]) -> Iterator[Markup]:
    drawn = measure_figure(records, "eval_kl", "KL to the reference, nats per answer", training="kl")
    if drawn is not None:
        caption = "Estimated from answers to other prompts (KTO); an estimate below zero counts as zero."
        yield figure(drawn, titled("KL", caption), "metrics.jsonl: eval_kl, kl")


def _of_answers(evaluated: Evaluated) -> Iterator[Markup]:
    report = evaluated.report
    confusion = report["confusion"]
    if is_finite(confusion["threshold"]):
        caption = (
            f"Answers by label; called good if their implied reward is at least beta * KL = "
            f"{number(confusion['threshold'])}, as KTO's loss compares them."
        )
        drawn = confusion_figure(confusion, "desirable", "undesirable")
        yield figure(drawn, titled("Confusion matrix", caption), evaluated.place("confusion"))
    histogram = report["reward_histogram"]
    if histogram["edges"]:
        groups = {"desirable": histogram["good"], "undesirable": histogram["bad"]}
        drawn = counts_figure(histogram["edges"], groups, REWARD, "answers")
        caption = "The less the two overlap, the better the policy separates the labels."
        yield figure(drawn, titled("Implied rewards by label", caption), evaluated.place("reward_histogram"))


def _length_of_answers(evaluated: Evaluated) -> Iterator[Markup]:
    drawn = evaluated.report["examples"]
    rows = list(zip(drawn["desirable"], drawn["tokens"], drawn["rewards"], strict=True))
    groups = {
        name: ([row[1] for row in rows if row[0] == label], [row[2] for row in rows if row[0] == label])
        for name, label in OF_ANSWERS_LABELS.items()
    }
    if rows:
        caption = (
            f"{correlation_words(evaluated.report['length'], REWARD)} Shown: {len(rows)} of "
            f"{number(evaluated.report['answers'])} held-out answers."
        )
        yield figure(
            length_figure(groups, REWARD),
            titled("Implied reward and length", caption),
            evaluated.place("examples", "length"),
        )


OF_ANSWERS_LABELS = {"desirable": 1, "undesirable": 0}
