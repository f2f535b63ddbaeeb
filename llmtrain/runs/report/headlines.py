"""The held-out measures that a person looks at first, by recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmtrain.runs.record import RunRecord
from llmtrain.runs.report.story import is_kto
from llmtrain.runs.report.values import number, percent


@dataclass(frozen=True)
class Headline:
    """A held-out measure: its field, its name with the unit, how it is written."""

    field: str
    label: str
    written: Callable[[float], str] = number
    lower_is_better: bool | None = True  # None: neither


LOSS = Headline("eval_loss", "held-out loss, nats per token")
ACCURACY = Headline("eval_accuracy", "held-out pairs ranked right", percent, lower_is_better=False)
ENDS = Headline("eval_terminated_ratio", "answers that end by themselves", percent, lower_is_better=False)
ERROR = Headline("eval_error_rate", "held-out error rate: next token wrong", percent)

ON_THE_RIGHT_SIDE = Headline(
    "eval_accuracy", "held-out answers on the right side of the KL", percent, lower_is_better=False
)

HEADLINES: dict[str, Sequence[Headline]] = {
    "pretrain": (LOSS, ERROR, Headline("eval_bits_per_byte", "held-out bits per byte")),
    "sft": (LOSS, ERROR, ENDS),
    "reward": (
        ACCURACY,
        Headline("eval_loss", "held-out loss, nats per pair"),
        Headline("eval_auc", "area under the ROC curve", lower_is_better=False),
        Headline("eval_calibration_error", "calibration error"),
    ),
    "preference": (ACCURACY, Headline("eval_loss", "held-out loss"), ENDS),
    "policy": (
        Headline("eval_score", "held-out score: mean reward", lower_is_better=False),
        Headline("eval_response_tokens", "tokens of an answer", lower_is_better=None),
        ENDS,
    ),
}
"""Recipe -> what a person looks at first."""


def headlines_of(record: RunRecord) -> Sequence[Headline]:
    """What a person looks at first in a run; the accuracy of KTO is of single answers, not of pairs."""
    shown = HEADLINES[record.recipe]
    return [ON_THE_RIGHT_SIDE if each is ACCURACY and is_kto(record) else each for each in shown]
