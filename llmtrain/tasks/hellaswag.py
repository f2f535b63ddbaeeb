"""HellaSwag (Zellers et al. 2019): how a described scene goes on."""

from __future__ import annotations

import re

from llmtrain.tasks.task import ChoiceItem, ChoiceTask, Fields, Hub, choices_after, number_of, text_of, texts_of

BRACKETS = re.compile(r"\[.*?\]")


def item(fields: Fields) -> ChoiceItem:
    """`{activity_label, ctx_a, ctx_b, endings, label: "3"}`, or `{query, choices, gold}`."""
    if "endings" not in fields:
        return choices_after(text_of(fields, "query"), texts_of(fields, "choices"), number_of(fields, "gold"))
    before, after = text_of(fields, "ctx_a"), str(fields.get("ctx_b") or "")
    context = f"{text_of(fields, 'activity_label')}: {before} {after.capitalize()}"
    endings = [_plain(ending) for ending in texts_of(fields, "endings")]
    return choices_after(_plain(context), endings, number_of(fields, "label"))


def _plain(text: str) -> str:
    """A text without the marks of WikiHow's pages: "Roof [title] Wait. [step] Rain" is "Roof. Wait. Rain"."""
    return BRACKETS.sub("", text.strip().replace(" [title]", ". ")).replace("  ", " ")


HELLASWAG = ChoiceTask("hellaswag", "HellaSwag (Zellers et al. 2019)", item, hub=Hub("Rowan/hellaswag", "validation"))
