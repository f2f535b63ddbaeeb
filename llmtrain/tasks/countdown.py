"""Countdown: an equation that reaches a target with given numbers, each used once."""

from __future__ import annotations

from collections.abc import Mapping

from llmtrain.rewards.functions import countdown
from llmtrain.tasks.task import AnswerItem, AnswerTask, Fields, RowFault, number_of, value_of


def item(fields: Fields) -> AnswerItem:
    """`{nums, target}`, with a `prompt` of its own if it has one, as text or as messages."""
    nums, target = value_of(fields, "nums"), number_of(fields, "target")
    if not isinstance(nums, list) or not nums or not all(isinstance(num, int) for num in nums):
        raise RowFault(f"field 'nums' is not a list of whole numbers: {nums!r:.80}")
    given = fields.get("prompt")
    if isinstance(given, str):
        return AnswerItem(given)
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], Mapping):
        return AnswerItem(str(given[0].get("content")))
    return AnswerItem(
        f"Using the numbers {nums}, write an equation that equals {target}. Use + - * / and each number once. "
        "End with the equation in <answer></answer>.\n"
    )


COUNTDOWN = AnswerTask("countdown", "Countdown", item, {"acc": countdown}, stop=("</answer>",), max_new_tokens=512)
