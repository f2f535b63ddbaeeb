"""What a policy run bought with its training: its score, and what changed beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llmtrain.runs.record import RunRecord
from llmtrain.runs.report.curves import column
from llmtrain.runs.report.overoptimisation import Sign, best_evaluation, reward_name
from llmtrain.runs.report.parts_of_run import parts
from llmtrain.runs.report.responses import first_and_last, repeated_share
from llmtrain.runs.report.values import is_finite, number, percent

CERTAIN = ("Held-out score falls, training score does not", "One reward falls while the score does not")
"""Signs that are over-optimisation itself; the others are hints."""


@dataclass(frozen=True)
class Change:
    """A measure before and after."""

    name: str
    before: float
    after: float
    written: Callable[[float], str]
    place: str
    unit: str = ""

    @property
    def label(self) -> str:
        """The name with the unit."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    @property
    def sentence(self) -> str:
        return f"{self.name} from {self.written(self.before)} to {self.written(self.after)} {self.unit}".rstrip()


def changes(record: RunRecord) -> Iterator[Change]:
    """Measures that the run logged, at its beginning and its end."""
    for field in record.eval_rows.names:
        if field == "eval_score" or field.startswith("eval_score/"):
            values = column(record.eval_rows, field).y
            name = f"held-out score{part_name(field)}"
            yield Change(name, float(values[0]), float(values[-1]), number, f"metrics.jsonl: {field}")
    fields = [field for field in record.train_rows.names if field.startswith("rollout_score/")]
    of_rewards = {field: (f"training score{part_name(field)}", number, "") for field in fields}
    for field, (label, written, unit) in (of_rewards | MEASURES).items():
        found = parts(record.train_rows, field)
        if found:
            yield Change(label, found[0].mean, found[-1].mean, written, f"metrics.jsonl: {field}", unit)
    responses = first_and_last(record.samples)
    if responses is not None:
        first, last = map(repeated_share, responses)
        if is_finite(first) and is_finite(last):
            yield Change("repeated text in an answer", first, last, percent, "samples.jsonl: response")


MEASURES: dict[str, tuple[str, Callable[[float], str], str]] = {
    "rollout_score": ("training score", number, ""),
    "rollout_kl": ("KL to the model it began as", number, "nats per response"),
    "entropy": ("entropy", number, "nats per token"),
    "rollout_response_tokens": ("length of an answer", number, "tokens"),
    "rollout_terminated_ratio": ("answers that end by themselves", percent, ""),
}


def part_name(field: str) -> str:
    """The name of one of several rewards in a field's name."""
    return f", {reward_name(field)}" if "/" in field else ""


def summary(record: RunRecord, found: list[Sign]) -> str:
    """What was gained, what it cost, and whether to stop earlier, in a few sentences."""
    text = _gained(record)
    costs = [change.sentence for change in _costs(record)]
    if costs:
        text += f" Meanwhile: {', '.join(costs)}."
    seen = [sign for sign in found if sign.state == "seen"]
    certain = [sign for sign in seen if sign.name in CERTAIN]
    if certain:
        steps = [sign.step for sign in certain if sign.step is not None]
        stop = f" Stop at about step {min(steps):,}." if steps else ""
        return f"{text} The reward is over-optimised: {certain[0].evidence}.{stop}"
    if seen:
        return f"{text} {_hints(seen)}"
    looked = [sign for sign in found if sign.state != "unknown"]
    if not looked:
        return f"{text} Too little is logged to look for over-optimisation."
    return f"{text} Of {len(found)} signs of over-optimisation {len(looked)} could be looked for; none is seen."


def _hints(seen: list[Sign]) -> str:
    names = ", ".join(sign.name[0].lower() + sign.name[1:] for sign in seen)
    return f"A hint of over-optimisation, to be checked in the samples: {names}."


def _gained(record: RunRecord) -> str:
    curve = column(record.eval_rows, "eval_score")
    if len(curve.y) > 1 and is_finite(float(curve.y[0])) and is_finite(float(curve.y[-1])):
        best = best_evaluation(record)
        text = f"The held-out score went from {number(float(curve.y[0]))} to {number(float(curve.y[-1]))}"
        if best is not None and best[0].y[best[1]] > curve.y[-1]:
            text += f" (best: {number(float(best[0].y[best[1]]))} at step {int(best[0].x[best[1]]):,})"
        return f"{text}{_interval(record)}."
    training = parts(record.train_rows, "rollout_score")
    if training:
        return (
            f"The training score went from {number(training[0].mean)} to {number(training[-1].mean)}; none is held out."
        )
    return "There are too few rows for a before and after."


def _interval(record: RunRecord) -> str:
    """The 95 % interval of the last held-out score, in words."""
    low, high = (record.eval_rows[-1].get(f"eval_score_{end}") for end in ("low", "high"))
    return f", 95 % interval {number(low)} to {number(high)}" if is_finite(low) and is_finite(high) else ""


def _costs(record: RunRecord) -> list[Change]:
    wanted = ("rollout_kl", "entropy", "rollout_response_tokens")
    found = [change for change in changes(record) if change.place.removeprefix("metrics.jsonl: ") in wanted]
    return [change for change in found if not math.isclose(change.before, change.after, rel_tol=0.02, abs_tol=1e-9)]
