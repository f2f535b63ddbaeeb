"""The signs by which a run is judged: one function each, from the course of a run to what was found, or None.

docs/verdict.md gives the definitions in words, with the reasons for the thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llmtrain.runs.report.course import LEAST_EVALUATIONS, Course, Measure
from llmtrain.runs.report.values import percent
from llmtrain.runs.rows import Row
from llmtrain.statistics.trend import rise_probability, rolling_median, spikes
from llmtrain.system.run_files import EVENTS_FILE

LOST_SHARE = 0.5  # of what a run had gained: it diverged
SUSTAINED_SHARE = 0.05  # of the rows: above the start for so long is no spike
NUM_LOST_ROWS = 3  # last rows without a finite loss
LEAST_ROWS = 16  # training rows whose trend is trusted alone: of fewer, noise and trend look alike
RISE_SHARE = 0.02  # of the lowest held-out loss per token, Prechelt's generalisation loss: it rose
RISE_GAIN = 0.1  # of the gain, the same for other losses and for scores
NOISE_RATIO = 3.0  # standard deviations that a difference needs to count
LOWEST_RATIO = 4.0  # the same for one from the lowest point, which is chosen among many
TREND_PROBABILITY = 0.01  # of a rise by chance
SPIKE_WIDTH = 41  # rows around a row that it is compared with
SPIKE_DEVIATIONS = 6.0  # of the noise around it
SPIKE_SHARE = 0.05  # of the fall of the loss: smaller ones matter to nobody
NUM_SPIKES = 3
UNDONE = {"skipped": "not applied: loss or gradient not finite", "rolled_back": "undone by going back"}  # events
STEEP_SHARE = 0.12  # of the whole gain, in the last quarter of the training done: a straight line has 0.25
STEEP_LOSS_SHARE, STEEP_LOSS_GAIN = 0.05, 0.025  # of the last loss per token, and of the gain: steep as well
FLAT_LOSS_SHARE, FLAT_LOSS_GAIN = 0.01, 0.005  # of the last loss per token, or of the gain: flat
FLAT_GAIN = 0.05  # of the gain of any other loss or score: flat
LEAST_GAIN_SHARE = 0.002  # of the first loss: a smaller gain is none
GAIN_WIDTH = 3  # evaluations whose median is the lowest
REPEATS = 2.0  # times that the data was seen: below, no row was seen twice
GAP_SHARE, GROWTH_SHARE = 0.05, 0.01  # of the held-out loss: the training loss is below it, and the gap widened


Word = Literal[
    "diverged", "overfitting", "spiking", "data exhausted", "underfitting", "converged", "healthy", "no verdict"
]


@dataclass(frozen=True)
class Finding:
    """A word, the sentences that support it, and what a person can do."""

    word: Word
    evidence: Sequence[str]
    advice: Sequence[str]
    stop_step: int | None = None  # where training should have stopped


def divergence(course: Course, events: Sequence[Row]) -> Finding | None:
    """Not finite at the end, or most of what was gained lost again, or above the start for long."""
    evidence = _not_finite(course, events) or _lost(course)
    if not evidence:
        return None
    advice = [
        f"lower {course.lr_keys}, to a third at first, or lengthen the warm-up (`optim.warmup_steps`)",
        "keep gradient clipping on (`optim.max_grad_norm=1`)",
    ]
    return Finding("diverged", evidence, advice)


def _not_finite(course: Course, events: Sequence[Row]) -> list[str]:
    train, held_out = course.train_measure, course.held_out_measure
    evidence = []
    if not course.last_is_finite:
        evidence.append(f"the last {held_out.name} is not a finite number {held_out.source}")
    known = np.flatnonzero(np.isfinite(course.train))
    if len(course.train) - (int(known[-1]) + 1 if len(known) else 0) >= NUM_LOST_ROWS:
        evidence.append(f"the {train.name} of the last rows, to step {course.last_step}, is not finite {train.source}")
    if events and events[-1].get("event") == "failed" and "not finite" in str(events[-1].get("reason")):
        evidence.append(f"the run ended at step {events[-1].get('step')}: loss not finite ({EVENTS_FILE}: failed)")
    return evidence


def _lost(course: Course) -> list[str]:
    """Where training itself went back up; that of held-out data alone is overfitting.

    Of fewer than LEAST_ROWS rows, which may be noise, only if held-out data got worse as well.
    """
    smooth, steps, measure = course.smooth, course.known_steps, course.train_measure
    if len(smooth) < 2 * NUM_LOST_ROWS:
        return []
    first, last, lowest, highest = course.first, smooth[-1], float(smooth.min()), float(smooth.max())
    least = max(NOISE_RATIO * course.train_noise, _least_gain(course, first))
    gained, at = first - lowest, int(smooth.argmin())
    is_lost = last - lowest > max(least, LOST_SHARE * gained)
    is_evaluated, is_long = len(course.held_out) >= 2, len(smooth) >= LEAST_ROWS
    held_out_lost = is_evaluated and _held_out_lost(course)
    if is_lost and (held_out_lost or (is_long and not is_evaluated)):
        return [
            f"the {measure.name} was {measure.show(first)} at the start; by {course.smoothing} it was at best "
            f"{measure.show(lowest)} at step {steps[at]:.0f}, and then {measure.show(last)} at the end, step "
            f"{steps[-1]:.0f} {measure.source}"
        ]
    num_above = int((smooth > first + max(least, gained)).sum())
    is_above = num_above >= max(NUM_LOST_ROWS, SUSTAINED_SHARE * len(smooth)) and highest - first > gained
    if is_above and (held_out_lost or is_long):
        return [
            f"the {measure.name} was {measure.show(first)} at the start; by {course.smoothing} it rose to "
            f"{measure.show(highest)} at step {steps[smooth.argmax()]:.0f}, more than it ever fell below its start, "
            f"and was {measure.show(last)} at the end {measure.source}"
        ]
    return []


def _held_out_lost(course: Course) -> bool:
    first, last, lowest = course.held_out[0], course.held_out[-1], course.held_out.min()
    return bool(last - lowest > max(LOST_SHARE * (first - lowest), NOISE_RATIO * course.eval_noise))


def overfitting(course: Course) -> Finding | None:
    """Held-out data got worse after its best evaluation, by more than noise, while training did not."""
    held_out, measure = course.held_out, course.held_out_measure
    if len(held_out) < 2:
        return None
    smooth = rolling_median(held_out, 3) if len(held_out) >= 5 else held_out
    best = int(smooth.argmin())
    turn = max(0, best - 1) + int(held_out[max(0, best - 1) : best + 2].argmin())  # of those that were smoothed
    after = held_out[turn:]
    end = float(np.median(after[-3:])) if len(after) >= LEAST_EVALUATIONS else float(after[-1])
    rise, gain = end - float(smooth[best]), float(held_out[0] - smooth[best])
    if not rise > max(_least_rise(course, gain, float(smooth[best])), LOWEST_RATIO * course.eval_noise):
        return None
    if len(after) > 4 and rise_probability(after) > TREND_PROBABILITY:
        return None
    best = int(held_out.argmin())
    step, last = int(course.eval_steps[best]), int(course.eval_steps[-1])
    at_best, at_end = course.smooth_at(step), course.smooth_at(last)
    if at_end - at_best > rise / 2:  # training got worse too; never true of NaN
        return None
    evidence = [_change(measure, held_out[0], held_out[best], held_out[-1], step, last)]
    if math.isfinite(at_end):
        train = course.train_measure
        evidence.append(
            f"meanwhile the {train.name}, by {course.smoothing}, went from {train.show(at_best)} to "
            f"{train.show(at_end)} {train.source}: what was still learned is true of the training rows only"
        )
    if math.isfinite(course.epochs):
        evidence.append(f"the data was seen {course.epochs:.3g} times (metrics.jsonl: epoch)")
    if course.is_policy:
        advice = [
            "stop earlier (`eval.patience=3 checkpoint.best=true`), or hold the policy nearer to its start: raise "
            "`policy.kl_coef`",
            "or train on more prompts (`data.train`)",
        ]
    else:
        advice = [
            "stop earlier: `eval.patience=3 checkpoint.best=true` ends the run there and exports the best checkpoint",
            f"or use more data, fewer `train.epochs`, lower {course.lr_keys}, more `optim.weight_decay` or dropout",
        ]
    return Finding("overfitting", evidence, advice, stop_step=step)


def _least_rise(course: Course, gain: float, best: float) -> float:
    if course.is_per_token:
        return RISE_SHARE * best
    return max(RISE_GAIN * gain, 0.0 if course.is_policy else RISE_SHARE * float(course.held_out[0]))


def _change(measure: Measure, first: float, best: float, end: float, step: int, last: int) -> str:
    word = "got worse, to"
    if not step:
        return (
            f"the {measure.name} was best before training, {measure.show(first)}, and {word} {measure.show(end)} at "
            f"step {last} {measure.source}"
        )
    return (
        f"the {measure.name} went from {measure.show(first)} to {measure.show(best)} at step {step}, then {word} "
        f"{measure.show(end)} at step {last} {measure.source}"
    )


def spiking(course: Course, events: Sequence[Row]) -> Finding | None:
    """The training loss leapt above its surroundings several times, or steps were skipped or rolled back."""
    measure = course.train_measure
    found: list[int] = []
    if not course.is_policy and len(course.smooth):  # scores of rollouts are noisy by nature
        fall = course.first - float(course.smooth.min())
        found = spikes(course.train, SPIKE_WIDTH, SPIKE_DEVIATIONS, SPIKE_SHARE * fall)
    evidence = []
    if found:
        shown = ", ".join(f"{course.steps[row]:.0f}" for row in found[:5]) + (", ..." if len(found) > 5 else "")
        usual = [course.smooth_at(float(course.steps[row])) for row in found]
        excess, row, around = max(
            (float(course.train[row]) - each, row, each) for row, each in zip(found, usual, strict=True)
        )
        evidence.append(
            f"the {measure.name} leapt up {len(found)} times (steps {shown}), to {measure.show(around + excess)} at "
            f"step {course.steps[row]:.0f}, where {measure.show(around)} is usual {measure.source}"
        )
    steps = {name: [str(each.get("step")) for each in events if each.get("event") == name] for name in UNDONE}
    counts = {"skipped": len(set(steps["skipped"])), "rolled_back": len(steps["rolled_back"])}  # once if done again
    for name, words in UNDONE.items():
        if counts[name]:
            evidence.append(f"{counts[name]} steps were {words} ({EVENTS_FILE}: {name})")
    if len(found) + sum(counts.values()) < NUM_SPIKES:
        return None
    advice = [
        "look at the rows of those steps: damaged or foreign text does this (`data.clean`, `llmtrain preview`)",
        f"or lower {course.lr_keys} or `optim.max_grad_norm`; `train.spike_factor=2` goes back and skips such rows",
    ]
    if course.is_policy:
        advice = [f"lower {course.lr_keys} or `optim.max_grad_norm`"]
    return Finding("spiking", evidence, advice)


def ending(course: Course, is_over: bool) -> Finding:
    """Whether a run that neither diverged nor overfits could still gain, by what its last quarter gained."""
    if len(course.held_out) >= 3:
        measure, positions, values = course.held_out_measure, course.eval_steps, course.held_out
        noise, lowest = course.eval_noise, float(rolling_median(values, GAIN_WIDTH).min())
    else:
        measure, positions, values = course.train_measure, course.known_steps, course.smooth
        noise, lowest = course.train_noise, float(values.min())
    first, last = float(values[0]), float(values[-1])
    middle = float(np.interp(course.late, positions, values))
    gain, late = first - lowest, middle - last
    share = late / gain if gain > 0 else 0.0
    if gain <= max(LOWEST_RATIO * noise, _least_gain(course, first)):
        return _nothing_learned(course, measure, first, last)
    curve = (
        f"the {measure.name} went from {measure.show(first)} to {measure.show(last)}; the last quarter of the "
        f"training, by the sum of the learning rate, began at step {course.late:.0f} at {measure.show(middle)}, and "
        f"brought {percent(max(0.0, share))} of it {measure.source}"
    )
    if _is_flat(course, late, gain, last, noise):
        return _exhausted(course, curve) or _converged(course, curve)
    if not _is_steep(course, late, gain, last, noise):
        return _healthy(course, [curve])
    return _steep(course, curve) if is_over else _healthy(course, [curve, "it still falls, and steps are left"])


def _is_flat(course: Course, late: float, gain: float, last: float, noise: float) -> bool:
    if course.is_per_token:
        return late <= max(FLAT_LOSS_SHARE * last, FLAT_LOSS_GAIN * gain, noise)
    return late <= max(FLAT_GAIN * gain, noise)


def _is_steep(course: Course, late: float, gain: float, last: float, noise: float) -> bool:
    of_loss = course.is_per_token and late >= max(STEEP_LOSS_SHARE * last, STEEP_LOSS_GAIN * gain)
    return late > NOISE_RATIO * noise and (of_loss or late >= STEEP_SHARE * gain)


def _least_gain(course: Course, first: float) -> float:
    return 0.0 if course.is_policy else LEAST_GAIN_SHARE * abs(first)


def _nothing_learned(course: Course, measure: Measure, first: float, last: float) -> Finding:
    evidence = [
        f"the {measure.name} was {measure.show(first)} at the start and {measure.show(last)} at step "
        f"{course.last_step}: no gain beyond its noise {measure.source}"
    ]
    advice = [f"raise {course.lr_keys}: try three times as much", "look at what is trained: `llmtrain preview`"]
    if course.is_policy:
        advice[1] = (
            "look whether the responses of a prompt differ in score (samples.jsonl): without that nothing is learned"
        )
    return Finding("underfitting", evidence, advice)


def _steep(course: Course, curve: str) -> Finding:
    advice = [
        "train longer: more `train.steps` or `train.epochs`",
        f"if the curve was slow from the start, raise {course.lr_keys}: try three times as much",
    ]
    return Finding("underfitting", [curve], advice)


def _healthy(course: Course, evidence: Sequence[str]) -> Finding:
    return Finding(
        "healthy",
        [*evidence, *_gap_lines(course)],
        ["nothing needs to change; more `train.steps` would still bring a little"],
    )


def _exhausted(course: Course, curve: str) -> Finding | None:
    found = gap(course)
    if not course.epochs >= REPEATS or found is None:
        return None
    at_end, before = found
    least = abs(float(course.held_out[-1]))
    if at_end < max(GAP_SHARE * least, NOISE_RATIO * course.smooth_noise) or at_end - before < GROWTH_SHARE * least:
        return None
    evidence = [
        curve,
        f"the data was seen {course.epochs:.3g} times (metrics.jsonl: epoch)",
        *_gap_lines(course),
    ]
    advice = [
        "add data: more steps over these rows only fit these rows",
        "or stop here: fewer `train.epochs` or `train.steps` give the same held-out loss",
    ]
    return Finding("data exhausted", evidence, advice)


def _converged(course: Course, curve: str) -> Finding:
    short = "score is not high enough" if course.is_policy else "loss is not low enough"
    advice = [
        f"longer training brings nothing; if the {short}, a larger model (`model.preset`, `adapter.rank`) or other "
        "data can",
    ]
    return Finding("converged", [curve, *_gap_lines(course)], advice)


def gap(course: Course) -> tuple[float, float] | None:
    """How far the training loss is below the held-out loss at the end, and when its last quarter began."""
    if course.is_policy or len(course.held_out) < 2 or not len(course.smooth):
        return None
    ends = (float(course.eval_steps[-1]), course.late)
    at_end, before = (course.held_out_at(step) - course.smooth_at(step) for step in ends)
    return at_end, before


def _gap_lines(course: Course) -> list[str]:
    if gap(course) is None:
        return []
    at_end = course.smooth_at(course.eval_steps[-1])
    return [
        f"at the end the training loss, by {course.smoothing}, is {course.train_measure.show(at_end)} and the "
        f"held-out loss {course.held_out_measure.show(course.held_out[-1])} (metrics.jsonl: loss, eval_loss)"
    ]
