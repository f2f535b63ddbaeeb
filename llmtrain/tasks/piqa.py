"""PIQA (Bisk et al. 2020): which of two ways reaches a goal of everyday life."""

from __future__ import annotations

from llmtrain.tasks.task import ChoiceItem, ChoiceTask, Fields, Hub, choices_after, number_of, text_of, texts_of

LEAD = "Question: "


def item(fields: Fields) -> ChoiceItem:
    """`{goal, sol1, sol2, label}`, or `{query, choices, gold}`."""
    if "goal" in fields:
        goal, gold = text_of(fields, "goal"), number_of(fields, "label")
        choices = [text_of(fields, "sol1"), text_of(fields, "sol2")]
    else:
        goal, gold = text_of(fields, "query").removeprefix(LEAD).removesuffix("\n"), number_of(fields, "gold")
        choices = texts_of(fields, "choices")
    return choices_after(f"{LEAD}{goal}\nAnswer:", choices, gold)


PIQA = ChoiceTask("piqa", "PIQA (Bisk et al. 2020)", item, hub=Hub("baber/piqa", "validation"))
