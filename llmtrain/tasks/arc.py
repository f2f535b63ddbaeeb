"""ARC (Clark et al. 2018): science questions of school exams, easy and hard ones."""

from __future__ import annotations

from collections.abc import Mapping

from llmtrain.tasks.task import (
    ChoiceItem,
    ChoiceTask,
    Fields,
    Hub,
    RowFault,
    choices_after,
    number_of,
    text_of,
    texts_of,
)

LEAD = "Question: "


def item(fields: Fields) -> ChoiceItem:
    """`{question, choices: {text, label}, answerKey}`, or `{query, choices, gold}`."""
    question = text_of(fields, "question", "query").removeprefix(LEAD)
    choices = fields.get("choices")
    if isinstance(choices, Mapping):
        texts, labels = texts_of(choices, "text"), texts_of(choices, "label")
        key = text_of(fields, "answerKey")
        if key not in labels:
            raise RowFault(f"answerKey {key!r} is none of the labels {', '.join(labels)}")
        gold = labels.index(key)
    else:
        texts, gold = texts_of(fields, "choices"), number_of(fields, "gold")
    return choices_after(f"{LEAD}{question}\nAnswer:", texts, gold)


ARC_EASY = ChoiceTask(
    "arc_easy",
    "ARC-Easy (Clark et al. 2018)",
    item,
    hub=Hub("allenai/ai2_arc", "test", "ARC-Easy"),
    aliases=("ARC-Easy",),
)
ARC_CHALLENGE = ChoiceTask(
    "arc_challenge",
    "ARC-Challenge (Clark et al. 2018)",
    item,
    hub=Hub("allenai/ai2_arc", "test", "ARC-Challenge"),
    aliases=("ARC-Challenge",),
)
