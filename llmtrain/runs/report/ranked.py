"""What held-out pairs show of scores: ROC, confusion, calibration, margins, and whether they follow length.

Of a reward model's scores and of the implied rewards of a policy: `score` is what a section calls them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from markupsafe import Markup

from llmtrain.runs.record import RunRecord
from llmtrain.runs.report.evaluated import Evaluated, first_evaluation
from llmtrain.runs.report.html import code, figure, note, source, subtitle, table, titled
from llmtrain.runs.report.names import short_names
from llmtrain.runs.report.over_time import measure_figure
from llmtrain.runs.report.ranking import (
    calibration_figure,
    confusion_figure,
    counts_figure,
    decisions_table,
    length_figure,
    margins_figure,
    roc_figure,
)
from llmtrain.runs.report.svg import plain
from llmtrain.runs.report.values import is_finite, number, percent
from llmtrain.statistics.intervals import wilson_interval

SURE = 0.05
"""A calibration error that is remarked on."""
FEW = 10
"""Fewer comparisons show no lean on length."""


def verdict(evaluated: Evaluated) -> str:
    """What the last evaluation found, in words."""
    report = evaluated.report
    low, high = report["accuracy_low"], report["accuracy_high"]
    if not is_finite(low):
        return "No held-out pairs were compared."
    text = (
        f"At step {evaluated.step:,} it ranks {percent(report['accuracy'])} of {number(report['comparisons'])} "
        f"held-out comparisons right (95 % interval {percent(low)} to {percent(high)})"
    )
    if low > 0.5:
        text += ", which is better than guessing."
    elif high < 0.5:
        text += ", which is worse than guessing: chosen and rejected may be swapped in the data."
    else:
        text += ". The interval holds 50 %, so it may be no better than guessing."
    if bad := report.get("comparisons_not_finite"):
        text += f" Scores of {number(bad)} of them are not finite; these count as wrong and are in no picture."
    return text


def roc_figures(found: Sequence[tuple[RunRecord, Evaluated]], good: str, bad: str) -> Iterator[Markup]:
    """The ROC curves of the last evaluations; of a single run also that of its first."""
    names = short_names([record.folder for record, _ in found])
    curves = {
        f"{name}, AUC {each.report['auc']:.3f}": each.report["roc"]
        for name, (_, each) in zip(names, found, strict=True)
        if each.report["roc"]["thresholds"]
    }
    if not curves:
        yield note("There is no ROC: it needs held-out answers of both labels with finite scores.")
        return
    places = [each.place("roc", "auc") for _, each in found]
    if len(found) == 1:
        record, last = found[0]
        first = first_evaluation(record)
        curves = {f"step {last.step:,}, AUC {last.report['auc']:.3f}": last.report["roc"]}
        if first is not None and first.step != last.step and first.report.get("roc", {}).get("thresholds"):
            curves[f"step {first.step:,}, AUC {first.report['auc']:.3f}"] = first.report["roc"]
            places.append(first.place("roc"))
    caption = (
        f"Each point is a threshold: of the answers that score at least as much, which share of the {good} and of the "
        f"{bad} ones is called good. AUC is the chance that any {good} answer scores higher than any {bad} one, also "
        "of different prompts."
    )
    yield figure(roc_figure(curves, good, bad), titled("ROC", caption), *places)


def accuracy_figure(records: Sequence[RunRecord], label: str, caption: str) -> Iterator[Markup]:
    """Accuracy over steps with its interval; nothing if no run has it."""
    drawn = measure_figure(records, "eval_accuracy", label, is_share=True, chance=0.5, training="accuracy")
    if drawn is not None:
        fields = "eval_accuracy, eval_accuracy_low, eval_accuracy_high, accuracy"
        yield figure(drawn, titled("Ranked right", caption), f"metrics.jsonl: {fields}")


def pair_figures(evaluated: Evaluated, score: str) -> Iterator[Markup]:
    """Confusion matrix, calibration, margins and scores of held-out pairs."""
    report = evaluated.report
    if is_finite(report["confusion"]["threshold"]):
        caption = (
            f"Single answers, called good if their {score} is at least {number(report['confusion']['threshold'])}: the "
            "threshold that calls most of these answers right, so new answers do somewhat worse."
        )
        drawn = confusion_figure(report["confusion"], "chosen", "rejected")
        yield figure(drawn, titled("Confusion matrix", caption), evaluated.place("confusion"))
    filled = [part for part in report["calibration"] if part["comparisons"]]
    if filled:
        caption = calibration_words(evaluated)
        yield figure(calibration_figure(filled), titled("Calibration", caption), evaluated.place("calibration"))
        margin = f"{score} of the chosen minus that of the rejected answer"
        caption = "Pairs by their margin. The bins widen outwards; the outer two are open."
        drawn = margins_figure(report["margin_histogram"], margin)
        yield figure(drawn, titled("Margins", caption), evaluated.place("margin_histogram"))
    scores = report["score_histogram"]
    if scores["edges"]:
        groups = {"chosen": scores["good"], "rejected": scores["bad"]}
        drawn = counts_figure(scores["edges"], groups, score, "answers")
        caption = "The less the two overlap, the better a single answer can be classed by its score."
        yield figure(drawn, titled(f"{score.capitalize()}s", caption), evaluated.place("score_histogram"))


def calibration_words(evaluated: Evaluated) -> str:
    """How the model's confidence compares with its accuracy."""
    report = evaluated.report
    error, bins = report["calibration_error"], [part for part in report["calibration"] if part["comparisons"]]
    total = sum(part["comparisons"] for part in bins)
    gap = sum(part["comparisons"] * (part["confidence"] - part["accuracy"]) for part in bins) / total
    text = (
        "The model's confidence in a choice is sigmoid(margin). On the diagonal it is right as often as it is sure. "
        f"The gap is {percent(error)} on average (ECE)"
    )
    if error < SURE:
        return f"{text}: well calibrated."
    return f"{text}: {'surer than it is right' if gap > 0 else 'right more often than it is sure'}."


def length_figures(evaluated: Evaluated, score: str) -> Iterator[Markup]:
    """Points of score and length."""
    drawn = evaluated.report["examples"]
    if drawn["chosen"]:
        groups = {
            "chosen": (drawn["chosen_tokens"], drawn["chosen"]),
            "rejected": (drawn["rejected_tokens"], drawn["rejected"]),
        }
        caption = (
            f"{correlation_words(evaluated.report['length'], score)} Shown: {len(drawn['chosen'])} of "
            f"{number(evaluated.report['pairs'])} held-out pairs, evenly spaced by score."
        )
        places = evaluated.place("examples", "length")
        yield figure(length_figure(groups, score), titled(f"{score.capitalize()} and length", caption), places)


def length_table(evaluated: Evaluated) -> Iterator[Markup]:
    """How often the choice is right where the longer answer is the better one, and where it is not."""
    yield subtitle("Is it the length?")
    yield decisions_table(evaluated.report["decisions"])
    yield source(evaluated.place("decisions"))


def length_words(decisions: Mapping[str, Any]) -> str:
    """Whether the choices lean on length; "" if too few pairs show it."""
    right, counts = {}, {}
    for key in ("chosen_longer", "rejected_longer"):
        found = decisions[key]
        counts[key] = sum(found.values())
        right[key] = (found["prefers_chosen"] + found["tie"] / 2) / counts[key] if counts[key] else 0.0
    if min(counts.values()) < FEW:
        return ""
    longer, shorter = (wilson_interval(right[key], counts[key]) for key in ("chosen_longer", "rejected_longer"))
    shares = (
        f"{percent(right['chosen_longer'])} right where the chosen answer is longer, "
        f"{percent(right['rejected_longer'])} where the rejected one is"
    )
    if longer[0] > shorter[1]:
        misled = ", no better than guessing" if shorter[0] <= 0.5 else ""
        return f"It leans on length, towards longer answers: {shares}{misled}."
    if shorter[0] > longer[1]:
        misled = ", no better than guessing where the chosen one is" if longer[0] <= 0.5 else ""
        return f"It leans on length, towards shorter answers: {shares}{misled}."
    return f"It does not clearly lean on length: {shares}."


def correlation_words(length: Mapping[str, Any], score: str) -> str:
    """Spearman's correlation in words."""
    spearman = length["spearman"]
    if not is_finite(spearman):
        return f"Lengths or {score}s do not vary."
    return f"Spearman's correlation {spearman:+.2f}: 0 is none, 1 is that longer answers always score higher."


def by_source(record: RunRecord, evaluated: Evaluated) -> Iterator[Markup]:
    """Accuracy of each source of data, if there are several."""
    sources = evaluated.report["sources"]
    if len(sources) < 2:
        return
    data = record.config.get("data", {})
    given = [str(source.get("path")) for source in data.get("eval") or data.get("train") or []]
    rows = []
    for place, found in enumerate(sources):
        name = given[place] if place < len(given) else f"source {place + 1}"
        numbers = ["0", "", "no pairs", ""]
        if found["pairs"]:
            interval = f"{percent(found['accuracy_low'])} to {percent(found['accuracy_high'])}"
            numbers = [number(found["pairs"]), percent(found["accuracy"]), interval, number(found["loss"])]
        rows.append([code(plain(PurePath(name).name or name, 48)), *numbers])
    yield subtitle("By source")
    yield table(["source", "pairs", "ranked right", "95 % interval", "loss, nats per pair"], rows, numbers=range(1, 5))
    yield source(evaluated.place("sources"))
