"""`sweep.html`: what was searched, what was found, what matters, the best configuration, every trial."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from markupsafe import Markup

from llmtrain.config.help import yaml_scalar
from llmtrain.runs.report.figures import Scale, bar_chart
from llmtrain.runs.report.html import (
    details,
    figure,
    grid,
    join,
    note,
    paragraph,
    preformatted,
    subtitle,
    table,
    tile,
    tiles,
)
from llmtrain.runs.report.page import page
from llmtrain.runs.report.section import Section
from llmtrain.runs.report.values import counted, duration
from llmtrain.tune.sweep.drawings import best_so_far, curves, parallel_coordinates, tree_drawing
from llmtrain.tune.sweep.influence import FEW_TRIALS, LEAST_TRIALS, importances, scored, sentences, tree_of
from llmtrain.tune.sweep.space import Dimension
from llmtrain.tune.sweep.study import Search, TrialRecord, best_of
from llmtrain.tune.sweep.words import ranked, score_text, setting_text

JOURNAL = "study/journal.log"
WORDS = {"finished": "finished", "pruned": "stopped early", "failed": "failed", "running": "still running"}


@dataclass(frozen=True)
class SweepResult:
    """What the page shows."""

    folder: Path
    search: Search
    space: Sequence[Dimension]
    given: Mapping[str, Any]  # dotted key -> the configuration's own value, of the keys that vary
    records: Sequence[TrialRecord]
    changes: Sequence[str]  # of the best setting
    best_yaml: str
    command: str  # that runs the best
    proposal: Sequence[str]  # why this was searched, of --auto

    @property
    def best(self) -> TrialRecord | None:
        return best_of(self.records, self.search.maximize)


def sweep_page(result: SweepResult) -> str:
    """The HTML of the page."""
    name = result.folder.resolve().name
    return page(f"Sweep {name}", list(_sections(result)), about=f"llmtrain {version('llmtrain')}")


def _sections(result: SweepResult) -> Iterator[Section]:
    yield _summary(result)
    if scored(result.records):
        yield _course(result)
        yield _influence(result)
    if result.best is not None:
        yield _best(result)
    yield _trials(result)


def _summary(result: SweepResult) -> Section:
    search, records, best = result.search, result.records, result.best
    ends = [record.state for record in records]
    numbers = [f"{ends.count(state)} {word}" for state, word in WORDS.items() if state in ends]
    seeds = f", each the mean of {search.seeds} seeds" if search.seeds > 1 else ""
    text = (
        f"{counted(len(records), 'setting')} of a {search.recipe} run {'were' if len(records) != 1 else 'was'} tried "
        f"({', '.join(numbers)}){seeds}, chosen by {search.sampler}. Each is a real run of the recipe; its score is "
        f"the {search.metric} of its last evaluation, of which {'higher' if search.maximize else 'lower'} is better. "
        "(A run that exports its best checkpoint has the score of that one.)"
    )
    shown = []
    if best is not None:
        shown.append(tile(f"best {search.metric}", score_text(best), f"trial {best.number}", JOURNAL))
        as_is = next((record for record in records if not record.values and record.score is not None), None)
        if as_is is not None:
            shown.append(tile("the configuration as it is", score_text(as_is), WORDS[as_is.state], JOURNAL))
    shown.append(tile("time of all runs", duration(sum(record.seconds for record in records)), "", JOURNAL))
    shown.append(tile("tokens trained on", f"{sum(record.tokens for record in records):,}", "", JOURNAL))
    parts = [tiles(shown), paragraph(text)]
    if best is not None:
        parts.append(paragraph(f"The best: {setting_text(best.values)}. To train with it:"))
        parts.append(preformatted(result.command))
    if result.proposal:
        parts.append(subtitle("Why this was searched (--auto)"))
        parts += [paragraph(line) for line in result.proposal]
    parts.append(details("What was searched", preformatted("\n".join(map(str, result.space)))))
    refused = sum(record.num_refused for record in records)
    if refused:
        reason = next(record.refusal for record in records if record.num_refused)
        parts.append(note(f"{counted(refused, 'draw')} refused by the configuration; the first: {reason}"))
    return Section("What was found", "found", join(*parts))


def _course(result: SweepResult) -> Section:
    search = result.search
    side_by_side: list[Markup] = []
    if any(record.is_finished for record in scored(result.records)):
        side_by_side.append(
            figure(
                best_so_far(result.records, search.metric, search.maximize),
                "The score of each trial in the order in which they started, and the best up to it. If the line has "
                "been flat for long, more trials would change little.",
                JOURNAL,
            )
        )
    if any(record.curve for record in result.records if record.is_finished):
        side_by_side.append(
            figure(
                curves(result.records, search.metric, search.maximize),
                "The evaluations of the best trials (of several seeds, the first).",
                JOURNAL,
            )
        )
    parts = [grid(side_by_side)]
    parts.append(
        figure(
            parallel_coordinates(result.records, result.space, result.given, search.metric, search.maximize),
            "A line for each trial, from its settings on the left to its score on the right; the best quarter in "
            "colour. Where the coloured lines meet, a key matters; where they spread, it does not.",
            JOURNAL,
        )
    )
    return Section("The search", "search", join(*parts))


def _influence(result: SweepResult) -> Section:
    search, num_trials = result.search, len(scored(result.records))
    if num_trials < LEAST_TRIALS:
        text = (
            f"{counted(num_trials, 'trial')} with a score, too few to say which key matters: {LEAST_TRIALS} are needed."
        )
        return Section("What matters", "matters", paragraph(text))
    parts: list[Markup] = []
    shares = importances(result.records, result.space, result.given, search.maximize)
    if shares:
        hint = "" if num_trials >= FEW_TRIALS else f" With {num_trials} trials this is a hint, not a measurement."
        drawing = figure(
            bar_chart(shares, Scale("share of the variance"), title="Importance of each key"),
            "fANOVA (Hutter et al. 2014, Optuna's): of what the keys explain of the "
            f"scores' variance over the space that was searched, the share of each.{hint}",
            JOURNAL,
        )
        parts.append(grid([drawing, Markup("<div></div>")]))
    tree = tree_of(result.records, result.space, result.given, search.maximize)
    if tree is None:
        parts.append(paragraph("No split of the settings separates good runs from bad ones better than chance would."))
    else:
        failed = sum(record.state == "failed" for record in result.records)
        left_out = f" {failed} that failed are not in it." if failed else ""
        parts.append(
            figure(
                tree_drawing(tree, search.metric, search.maximize),
                "What separates good runs from bad: a decision tree (scikit-learn, at most three levels, splits that "
                f"are better than chance) over {num_trials} trials, with the mean {search.metric} and the number of "
                f"runs of each group. Runs that were stopped early count with their last evaluation.{left_out}",
                JOURNAL,
            )
        )
        lines = [Markup("<li>{}</li>").format(line) for line in sentences(tree, search.metric, search.maximize)]
        parts.append(Markup("<ul>{}</ul>").format(Markup("").join(lines)))
    return Section("What matters", "matters", join(*parts))


def _best(result: SweepResult) -> Section:
    best, search = result.best, result.search
    assert best is not None
    parts = [
        paragraph("What it changes of the configuration:"),
        preformatted("\n".join(result.changes)),
        details("The whole of best.yaml, which runs as it is", preformatted(result.best_yaml)),
    ]
    if search.seeds > 1:
        rows = [
            [str(record.number), setting_text(record.values), score_text(record), *(f"{s:.4f}" for s in record.scores)]
            for record in ranked(result.records, search.maximize)
            if record.is_finished
        ]
        head = ["trial", "setting", "mean +- deviation", *(f"seed {i}" for i in range(search.seeds))]
        parts += [
            subtitle("How much the seed changes"),
            table(head, rows[:10], numbers=range(2, len(head))),
            note("Settings whose means are closer than the deviation over seeds cannot be told which is better."),
        ]
    return Section("The best configuration", "best", join(*parts))


def _trials(result: SweepResult) -> Section:
    keys = [dimension.key for dimension in result.space]
    best_first = ranked(result.records, result.search.maximize)
    rows = [
        [
            str(record.number),
            *(yaml_scalar(record.values[key]) if key in record.values else "" for key in keys),
            score_text(record),
            str(record.steps),
            duration(record.seconds),
            record.error or WORDS[record.state],
        ]
        for record in best_first
    ]
    head = ["trial", *keys, result.search.metric, "steps", "time", "end"]
    runs = [f"Trial {each.number} is the run in {result.folder}/trials/{each.number:04d}." for each in best_first[:1]]
    body = join(
        table(head, rows, numbers=range(len(head) - 1)), *(note(f"{line} `llmtrain report` shows it.") for line in runs)
    )
    return Section(
        "Every trial", "trials", body, lead="The best first; an empty field has the configuration's own value."
    )
