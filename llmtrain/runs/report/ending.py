"""How a run ended, or that it has not, by its events, its mark of the end and the process that holds its folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmtrain.runs.record import RunRecord
from llmtrain.runs.report.values import counted, is_finite

How = Literal["finished", "stopped early", "interrupted", "failed", "running", "killed", "unknown"]


@dataclass(frozen=True)
class Ending:
    how: How
    sentence: str


def ending(record: RunRecord) -> Ending:
    """How a run ended."""
    last = next((event for event in reversed(record.events) if event.get("event") in _SAYING), {})
    reason = str(last.get("reason", "")).strip().rstrip(".")
    at = f"after {counted(last_step(record), 'step')}"
    match last.get("event"):
        case "finished":
            return _came_to_its_end(record, str(last.get("outcome", "finished")))
        case "interrupted":
            how = f" ({reason})" if reason else ""
            return Ending("interrupted", f"It was stopped{how} {at} and saved; the same command continues it.")
        case "failed":
            return Ending("failed", f"It failed {at}{f': {reason}' if reason else ''}.")
        case None if record.is_finished:  # by a version that kept no events
            return _came_to_its_end(record, "stopped early" if _is_short(record) else "finished")
    match record.writer:
        case "alive":
            return Ending("running", f"It is still running: this is what it had written {at}.")
        case "dead":
            return Ending("killed", f"It was killed {at}; the same command continues it from its last checkpoint.")
        case "unknown":
            return Ending("unknown", f"It may still be running on another machine: this is what it had written {at}.")
    return Ending("unknown", f"It ended {at}, before its end, and its files do not show why.")


_ENDING = ("interrupted", "finished", "failed")
_SAYING = ("started", "resumed", *_ENDING)


def last_step(record: RunRecord) -> int:
    """The last step that the run's rows name, or the event that ended it: rows are only of every `log.every` steps."""
    rows = (record.train_rows, record.eval_rows)
    last = record.events[-1] if record.events else {}
    ended = int(last["step"]) if last.get("event") in _ENDING and is_finite(last.get("step")) else 0
    return max(ended, *(int(each[-1]["step"]) if each else 0 for each in rows))


def num_steps(record: RunRecord) -> int | None:
    """Steps that were planned; None: its files do not say."""
    planned = record.ledger.get("training", {}).get("steps_planned") or record.config.get("train", {}).get("steps")
    return planned if isinstance(planned, int) else None


def _came_to_its_end(record: RunRecord, outcome: str) -> Ending:
    step, planned = counted(last_step(record), "step"), num_steps(record)
    if outcome != "stopped early" and not _is_short(record):
        return Ending("finished", f"It finished all of its {step}.")
    of = "" if planned is None else f" of {planned:,}"
    why = "the held-out score no longer rose" if record.recipe == "policy" else "the held-out loss no longer fell"
    if outcome != "stopped early":
        why = "the KL exceeded policy.kl_budget" if record.recipe == "policy" else "its files do not show why"
    return Ending("stopped early", f"It stopped early, after {step}{of}: {why}.")


def _is_short(record: RunRecord) -> bool:
    planned = num_steps(record)
    return planned is not None and last_step(record) < planned
