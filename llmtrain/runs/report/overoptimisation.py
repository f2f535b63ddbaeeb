"""Signs that a policy serves its reward at the cost of what the reward was to measure (Gao 2023: over-optimisation).

Each sign is a comparison of numbers that the run logged, with a threshold fixed here. None of them can see whether the
answers are better: that takes a judge that was not trained on, or a person who reads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llmtrain.runs.record import RunRecord
from llmtrain.runs.report.curves import Curve, column
from llmtrain.runs.report.parts_of_run import Part, clear_change, parts
from llmtrain.runs.report.responses import distinct_share, first_and_last, length_correlation, repeated_share
from llmtrain.runs.report.svg import plain
from llmtrain.runs.report.values import is_finite, number, percent

State = Literal["seen", "not seen", "unknown"]

LENGTH_CHANGE = 1.25
"""Answers so many times as long, or as short, as at first have drifted."""
LENGTH_CORRELATION = 0.3
FEW_RESPONSES = 30
"""Fewer responses give no correlation."""
REPEATED = 0.2
"""A share of repeated text that is much, if it also grew by half of this."""
COLLAPSED = 0.2
"""Entropy below this share of what it was at first."""
KL_GROWTH = 1.25
"""KL that grew by so much from the best evaluation on, without a better one, was paid for nothing."""


@dataclass(frozen=True)
class Sign:
    """What was looked for, whether it is there, and the numbers that show it."""

    name: str
    state: State
    evidence: str
    meaning: str
    place: str  # file and fields
    step: int | None = None  # from which on, if it says when to stop


def signs(record: RunRecord) -> Sequence[Sign]:
    """Every sign, for a policy run."""
    checks: Sequence[Callable[[RunRecord], Sign]] = (
        held_out_score_falls,
        one_reward_falls,
        kl_without_gain,
        length_explains_reward,
        repeats_itself,
        entropy_collapsed,
    )
    return [check(record) for check in checks]


def best_evaluation(record: RunRecord) -> tuple[Curve, int] | None:
    """The held-out scores and the place of the best; None with fewer than three that are finite."""
    curve = column(record.eval_rows, "eval_score")
    finite = np.isfinite(curve.y)
    curve = Curve(curve.x[finite], curve.y[finite])
    return (curve, int(curve.y.argmax())) if len(curve.y) > 2 else None


def held_out_score_falls(record: RunRecord) -> Sign:
    """The training score goes on rising after the best held-out score, which then falls."""
    name, place = "Held-out score falls, training score does not", "metrics.jsonl: eval_score, rollout_score"
    meaning = "The policy has learnt its training prompts, not the task: stop at the best held-out score."
    found = best_evaluation(record)
    if found is None:
        return Sign(name, "unknown", "fewer than three held-out evaluations", meaning, place)
    curve, best = found
    at, top, last = int(curve.x[best]), float(curve.y[best]), float(curve.y[-1])
    noise = math.hypot(*(half_interval(record, step) for step in (curve.x[best], curve.x[-1])))
    training = parts(record.train_rows, "rollout_score")
    score = f"held out {number(top)} at step {at:,}, {number(last)} at step {int(curve.x[-1]):,}"
    if not top - last > noise:
        evidence = f"{score}: not below its best" if last >= top else f"{score}: within the noise of {number(noise)}"
        return Sign(name, "not seen", evidence, meaning, place)
    if not training:
        return Sign(name, "unknown", f"{score}, but there are too few training rows to compare with", meaning, place)
    before = part_at(training, at)
    change = clear_change(before, training[-1])
    evidence = f"{score}; training {number(before.mean)} then, {number(training[-1].mean)} at the end"
    if change < 0:
        return Sign(name, "not seen", f"{evidence}: both fall, which is instability", meaning, place)
    return Sign(name, "seen", evidence, meaning, place, at)


def one_reward_falls(record: RunRecord) -> Sign:
    """One of several rewards falls from its best while the score, their weighted sum, does not."""
    name = "One reward falls while the score does not"
    meaning = "The policy pays for one aim with another. A reward of weight 0 is a judge that is not trained on."
    names = [field for field in record.train_rows.names if field.startswith("rollout_score/")]
    place = f"metrics.jsonl: rollout_score, {', '.join(names) or 'rollout_score/NAME'}"
    total = parts(record.train_rows, "rollout_score")
    if len(names) < 2 or not total:
        evidence = "only one reward" if len(names) < 2 else "too few rows to compare"
        return Sign(name, "unknown", evidence, meaning, place)
    found: list[tuple[float, str, Part, Part]] = []
    for field in names:
        each = parts(record.train_rows, field)
        if not each:
            continue
        best = max(each, key=lambda part: part.mean)
        if clear_change(best, each[-1]) < 0 and clear_change(part_at(total, best.last_step), total[-1]) >= 0:
            spread = max(part.mean for part in each) - min(part.mean for part in each)
            found.append(((best.mean - each[-1].mean) / spread, field, best, each[-1]))
    if not found:
        return Sign(name, "not seen", "no reward fell clearly from its best", meaning, place)
    _, field, best, last = max(found)
    evidence = (
        f"{reward_name(field)}: {number(best.mean)} up to step {best.last_step:,}, "
        f"{number(last.mean)} at the end; score {number(part_at(total, best.last_step).mean)}, then "
        f"{number(total[-1].mean)}"
    )
    return Sign(name, "seen", evidence, meaning, place, best.last_step)


def kl_without_gain(record: RunRecord) -> Sign:
    """The KL exceeds its budget, or grows after the best held-out score."""
    name, place = "KL beyond what it buys", "metrics.jsonl: rollout_kl, eval_score"
    meaning = "The policy moves away from the model it began as, and gets nothing for it."
    policy = record.config.get("policy", {})
    found = parts(record.train_rows, "rollout_kl")
    if not policy.get("kl_coef") and not any(part.mean for part in found):
        return Sign(name, "unknown", "policy.kl_coef is 0, so no reference was loaded", meaning, place)
    if not found:
        return Sign(name, "unknown", "too few rows to compare", meaning, place)
    last = found[-1]
    budget, target = policy.get("kl_budget"), policy.get("kl_target")
    for key, limit, times in (("kl_budget", budget, 1.0), ("kl_target", target, 1.5)):
        if is_finite(limit) and last.mean > times * limit:
            evidence = f"{number(last.mean)} nats per response at the end, policy.{key} is {number(limit)}"
            return Sign(name, "seen", evidence, meaning, place)
    evaluated = best_evaluation(record)
    if evaluated is None:
        evidence = f"{number(last.mean)} nats per response at the end; fewer than three held-out evaluations"
        return Sign(name, "unknown", evidence, meaning, place)
    curve, best = evaluated
    at = int(curve.x[best])
    then = part_at(found, at)
    evidence = (
        f"{number(then.mean)} nats per response at step {at:,}, which has the best held-out score; {number(last.mean)} "
        "at the end"
    )
    is_seen = last.mean > KL_GROWTH * then.mean and clear_change(then, last) > 0
    return Sign(name, "seen" if is_seen else "not seen", evidence, meaning, place, at if is_seen else None)


def length_explains_reward(record: RunRecord) -> Sign:
    """Answers drift in length, and those of the drifted length score higher."""
    name = "Length explains the reward"
    meaning = "The policy may be paid for length: compare scores of answers of equal length."
    place = "metrics.jsonl: rollout_response_tokens; samples.jsonl: response, score"
    lengths, responses = parts(record.train_rows, "rollout_response_tokens"), first_and_last(record.samples)
    tokens = column(record.train_rows, "rollout_response_tokens").y
    if len(tokens) and np.ptp(tokens) == 0:
        return Sign(name, "not seen", f"every answer has {number(float(tokens[0]))} tokens", meaning, place)
    if not lengths or responses is None:
        return Sign(name, "unknown", "too few rollouts to compare", meaning, place)
    correlation, count = length_correlation(responses[1])
    first, last = lengths[0].mean, lengths[-1].mean
    evidence = f"{number(first)} tokens at first, {number(last)} at the end"
    if not is_finite(correlation) or count < FEW_RESPONSES:
        return Sign(name, "unknown", f"{evidence}; length and score of the last responses do not vary", meaning, place)
    evidence += f"; correlation of score and length {correlation:+.2f} over the last {count:,} responses"
    ratio = last / first if first else math.inf
    drift = 1 if ratio > LENGTH_CHANGE else -1 if ratio < 1 / LENGTH_CHANGE else 0
    is_seen = drift * correlation > LENGTH_CORRELATION
    return Sign(name, "seen" if is_seen else "not seen", evidence, meaning, place)


def repeats_itself(record: RunRecord) -> Sign:
    """A growing share of text that repeats itself within an answer."""
    name, place = "Repeated text", "samples.jsonl: response"
    meaning = "Answers that repeat themselves are the commonest way to please a reward without content."
    responses = first_and_last(record.samples)
    first, last = map(repeated_share, responses) if responses is not None else (math.nan, math.nan)
    if not (is_finite(first) and is_finite(last)):
        return Sign(name, "unknown", "too few rollouts, or answers of few words", meaning, place)
    evidence = f"{percent(first)} of groups of three words at first, {percent(last)} at the end"
    is_seen = last > REPEATED and last - first > REPEATED / 2
    return Sign(name, "seen" if is_seen else "not seen", evidence, meaning, place)


def entropy_collapsed(record: RunRecord) -> Sign:
    """The policy hardly chooses any more: all answers to a prompt become one."""
    name, place = "Entropy collapse", "metrics.jsonl: entropy; samples.jsonl: response"
    meaning = "Nothing new is tried any more. A task with one right answer ends like this too."
    found = parts(record.train_rows, "entropy")
    if not found:
        return Sign(name, "unknown", "too few rows to compare", meaning, place)
    first, last = found[0].mean, found[-1].mean
    evidence = f"{number(first)} nats per token at first, {number(last)} at the end"
    responses = first_and_last(record.samples)
    distinct = [distinct_share(each) for each in responses] if responses is not None else [math.nan]
    if all(map(is_finite, distinct)):
        evidence += f"; different answers to a prompt: {percent(distinct[0])} of them, then {percent(distinct[1])}"
    return Sign(name, "seen" if last < COLLAPSED * first else "not seen", evidence, meaning, place)


def reward_name(field: str) -> str:
    """The name of one of several rewards: `good` of `rollout_score/my/rewards.py:good`."""
    return plain(field.rsplit("/", 1)[-1].rsplit(":", 1)[-1], 32)


def half_interval(record: RunRecord, step: float) -> float:
    """Half the width of the 95 % interval of a step's held-out score; 0 if it has none."""
    rows = [row for row in record.eval_rows if row["step"] == step]
    low, high = (rows[-1].get(f"eval_score_{end}") for end in ("low", "high")) if rows else (None, None)
    return (high - low) / 2 if is_finite(low) and is_finite(high) else 0.0


def part_at(found: Sequence[Part], step: float) -> Part:
    """The part of a run that holds a step, or is nearest after it."""
    return next((part for part in found if part.last_step >= step), found[-1])
