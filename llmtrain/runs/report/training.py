"""The section of training curves: loss, error rate, learning rate, gradient norm, speed and memory over steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from llmtrain.runs.record import RunRecord
from llmtrain.runs.report.curves import Curve, column, running_mean, scaled
from llmtrain.runs.report.figures import Line, Mark, Scale, line_chart
from llmtrain.runs.report.happenings import happenings, marks_of
from llmtrain.runs.report.html import figure, grid, join, note
from llmtrain.runs.report.names import short_names
from llmtrain.runs.report.section import Section
from llmtrain.runs.report.svg import GOOD, SERIES
from llmtrain.runs.report.verdict import verdict_of

STEPS = Scale("step")


@dataclass(frozen=True)
class Chart:
    """What a chart shows: a field of training rows, of evaluation rows, or both."""

    title: str
    scale: Scale
    train: str | None
    held_out: str | None
    caption: str
    factor: float = 1.0  # values are multiplied with it


LOSS = Chart(
    "Loss",
    Scale("loss, nats per token", may_be_log=True),
    "loss",
    "eval_loss",
    "Lower is better. Held-out loss that rises while training loss falls is overfitting; two flat curves have "
    "nothing left to learn, or a learning rate that is too low.",
)
HEROES = {
    "pretrain": LOSS,
    "sft": LOSS,
    "reward": Chart(
        "Loss",
        Scale("loss, nats per pair", may_be_log=True),
        "loss",
        "eval_loss",
        "Lower is better; ln 2 = 0.693 is a guess. Held-out loss that rises while training loss falls is overfitting.",
    ),
    "preference": Chart(
        "Loss",
        Scale("loss", may_be_log=True),
        "loss",
        "eval_loss",
        "Lower is better. Held-out loss that rises while training loss falls is overfitting.",
    ),
    "policy": Chart(
        "Reward",
        Scale("mean score of answers"),
        "rollout_score",
        "eval_score",
        "Higher is better, as long as the answers stay good to read: a reward can be gamed.",
    ),
}
"""Recipe -> the chart that a person looks at first."""

CHARTS = (
    Chart(
        "Error rate",
        Scale("next token wrong", is_share=True),
        "error_rate",
        "eval_error_rate",
        "1 minus top-1 accuracy: how often the likeliest next token is not the right one.",
    ),
    Chart("Learning rate", Scale("learning rate", from_zero=True), "lr", None, "Of the first group of parameters."),
    Chart(
        "Gradient norm",
        Scale("gradient norm", may_be_log=True),
        "grad_norm",
        None,
        "Before clipping. Peaks come before spikes of the loss; a rising trend is a sign of divergence.",
    ),
    Chart(
        "Speed",
        Scale("tokens per second", from_zero=True),
        "tokens_per_second",
        None,
        "Tokens read per second of training steps, over all processes.",
    ),
    Chart(
        "Model FLOPs utilisation (MFU)",
        Scale("share of the peak", is_share=True, from_zero=True),
        "mfu",
        None,
        "Arithmetic that the model needs, over what the hardware can do.",
    ),
    Chart("Memory", Scale("GB", from_zero=True), "memory_bytes", None, "Peak so far, of one process.", factor=1e-9),
)


def training_curves(records: Sequence[RunRecord]) -> Section | None:
    """The charts of what the runs have rows of; several runs are overlaid."""
    hero = _hero(records)
    large = _figure(records, hero, is_hero=True)
    figures = (_figure(records, chart, has_legend=large is None or len(records) == 1) for chart in _charts(records))
    small = [made for made in figures if made is not None]
    if large is None and not small:
        return None
    events = [note(line) for line in happenings(records)]
    return Section("Training", "training", join(large or "", *events, grid(small)))


def _hero(records: Sequence[RunRecord]) -> Chart:
    """The first chart of the recipes; of recipes whose first charts differ their losses, without a unit."""
    recipes = {record.recipe for record in records}
    if len({HEROES[recipe] for recipe in recipes}) == 1:
        return HEROES[records[0].recipe]
    return Chart("Loss", Scale("loss", may_be_log=True), "loss", "eval_loss", "Losses of other recipes do not compare.")


def _charts(records: Sequence[RunRecord]) -> Iterator[Chart]:
    yield from CHARTS
    if _hero(records) is HEROES["policy"]:
        yield Chart("Loss", Scale("loss"), "loss", None, "The loss of a policy: its fall is not what is wanted.")


def _figure(
    records: Sequence[RunRecord], chart: Chart, *, is_hero: bool = False, has_legend: bool = True
) -> Markup | None:
    lines, smoothed = _lines(records, chart)
    if not lines:
        return None
    title = f"{chart.title} over steps"
    per_epoch = _steps_per_epoch(records[0]) if len(records) == 1 and (is_hero or chart.held_out) else None
    drawing = line_chart(
        lines,
        STEPS,
        chart.scale,
        title=title,
        marks=[*marks_of(records[0]), *(_stop(records[0]) if is_hero else ())] if len(records) == 1 else (),
        second_x=None if per_epoch is None else ("epoch", per_epoch),
        hero=is_hero,
        has_legend=has_legend,
    )
    fields = [field for field in (chart.train, chart.held_out) if field is not None]
    how = f" Faint: each row; solid: mean of {smoothed:,} rows." if smoothed else ""
    caption = Markup("<strong>{}.</strong> {}{}").format(chart.title, chart.caption, how)
    return figure(drawing, caption, *(f"metrics.jsonl: {field}" for field in fields))


def _stop(record: RunRecord) -> Iterator[Mark]:
    """The step at which the verdict would have stopped."""
    step = verdict_of(record).stop_step
    if step is not None:
        yield Mark(f"best: step {step:,}", [step], GOOD)


def _lines(records: Sequence[RunRecord], chart: Chart) -> tuple[list[Line], int]:
    """The lines of a chart, and the rows of the running mean; 0: as they are."""
    lines: list[Line] = []
    smoothed = 0
    both = chart.train is not None and chart.held_out is not None
    names = short_names([record.folder for record in records])
    for number, (name, record) in enumerate(zip(names, records, strict=True)):
        color = SERIES[number % len(SERIES)]
        train = _column(record, chart.train, chart.factor, held_out=False)
        held_out = _column(record, chart.held_out, chart.factor, held_out=True)
        alone = len(records) == 1
        if train is not None:
            label = ("training" if both else "") if alone else ("" if held_out is not None else name)
            mean, rows = running_mean(train) if both else (train, 0)
            if rows:
                smoothed = max(smoothed, rows)
                lines.append(Line("", train, color, "faint"))
            lines.append(Line(label, mean, color, "solid" if alone or held_out is None else "thin"))
        if held_out is not None:
            label = "held out" if alone else name
            lines.append(Line(label, held_out, SERIES[1] if alone else color, "marked"))
    return lines, smoothed


def _column(record: RunRecord, field: str | None, factor: float, *, held_out: bool) -> Curve | None:
    """A field of a run's rows; None if no row has a finite value of it."""
    if field is None:
        return None
    curve = column(record.eval_rows if held_out else record.train_rows, field)
    return scaled(curve, factor) if np.isfinite(curve.y).any() else None


def _steps_per_epoch(record: RunRecord) -> float | None:
    """Steps of one pass over the data, by the last row that counts epochs; None if none does."""
    for field in ("epoch", "epochs"):  # the second: of runs by earlier versions
        curve = column(record.train_rows, field)
        if len(curve.x) and curve.y[-1] > 0:
            return float(curve.x[-1] / curve.y[-1])
    epochs, steps = (record.ledger.get("training", {}).get(name) for name in ("epochs", "steps"))
    return float(steps / epochs) if epochs and steps else None
