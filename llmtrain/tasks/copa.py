"""COPA (Roemmele et al. 2011): the more plausible cause or effect of a premise.

As lm-evaluation-harness has it, two spaces are before a choice, and the comma before "because" is left out.
"""

from __future__ import annotations

import re

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

CONNECTORS = {"cause": "because", "effect": "therefore"}
COMMA = re.compile(r", (?=(?:because|therefore)$)")


def item(fields: Fields) -> ChoiceItem:
    """`{premise, question: cause, choice1, choice2, label}`, or `{query, choices, gold}`."""
    if "premise" in fields:
        premise, asked = text_of(fields, "premise").strip(), text_of(fields, "question")
        if asked not in CONNECTORS:
            raise RowFault(f"question {asked!r} is neither cause nor effect")
        context, gold = f"{premise[:-1]} {CONNECTORS[asked]}", number_of(fields, "label")
        choices = [text_of(fields, "choice1"), text_of(fields, "choice2")]
    else:
        context, gold = COMMA.sub(" ", text_of(fields, "query").strip()), number_of(fields, "gold")
        choices = texts_of(fields, "choices")
    return choices_after(context, [f" {choice[0].lower()}{choice[1:]}" for choice in choices], gold)


COPA = ChoiceTask("copa", "COPA (Roemmele et al. 2011)", item, hub=Hub("aps/super_glue", "validation", "copa"))
