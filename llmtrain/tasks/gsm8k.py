"""GSM8K (Cobbe et al. 2021): word problems of grade school, whose answer is a number after ####.

`acc` compares final answers as numbers, as the reward of this name does; `strict` and `flexible` are the two scores of
lm-evaluation-harness, the number after the first #### and the last number, compared as texts.
"""

from __future__ import annotations

import re
from typing import Any

from llmtrain.rewards.functions import gsm8k
from llmtrain.tasks.task import AnswerItem, AnswerTask, Fields, Hub, text_of

AFTER_MARK = re.compile(r"#### (-?[0-9.,]+)")
LAST_NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
BEFORE_MARK = re.compile(r".*#### ", re.DOTALL)
INVALID = "[invalid]"


def item(fields: Fields) -> AnswerItem:
    """`{question, answer: "... #### 42"}`."""
    return AnswerItem(f"Question: {text_of(fields, 'question')}\nAnswer:", f" {text_of(fields, 'answer')}")


def strict(prompts: list[Any], responses: list[str], rows: list[Fields]) -> list[float]:
    """1 if the number after the first #### is the row's."""
    return [
        _same(found[1] if (found := AFTER_MARK.search(text)) else INVALID, row)
        for text, row in zip(responses, rows, strict=True)
    ]


def flexible(prompts: list[Any], responses: list[str], rows: list[Fields]) -> list[float]:
    """1 if the last number is the row's."""
    found = [LAST_NUMBER.findall(text) for text in responses]
    return [_same(numbers[-1] if numbers else INVALID, row) for numbers, row in zip(found, rows, strict=True)]


def _same(answer: str, row: Fields) -> float:
    return float(_plain(answer) == _plain(text_of(row, "answer")))


def _plain(text: str) -> str:
    """What is compared: no comma, no dollar, nothing before ####, no full stop at the end."""
    return re.sub(r"\.$", "", BEFORE_MARK.sub("", text.replace(",", "").replace("$", ""))).lower().strip()


GSM8K = AnswerTask(
    "gsm8k",
    "GSM8K (Cobbe et al. 2021)",
    item,
    {"acc": gsm8k, "strict": strict, "flexible": flexible},
    stop=("Question:", "</s>", "<|im_end|>"),
    hub=Hub("openai/gsm8k", "test", "main"),
    shots=5,
)
