"""Winogrande (Sakaguchi et al. 2020): which of two names a sentence means.

The options are two contexts, and what is compared is the same continuation after each.
"""

from __future__ import annotations

from llmtrain.tasks.task import ChoiceItem, ChoiceTask, Fields, Hub, RowFault, number_of, text_of, texts_of

BLANK = "_"


def item(fields: Fields) -> ChoiceItem:
    """`{sentence, option1, option2, answer: "1"}`, or `{context_options, continuation, gold: 0}`."""
    if "sentence" in fields:
        before, blank, after = text_of(fields, "sentence").partition(BLANK)
        if not blank:
            raise RowFault(f"the sentence has no blank {BLANK}")
        contexts = [before + text_of(fields, option) for option in ("option1", "option2")]
        continuation, gold = after.strip(), number_of(fields, "answer") - 1
    else:
        contexts, gold = texts_of(fields, "context_options"), number_of(fields, "gold")
        continuation = text_of(fields, "continuation")
    if not 0 <= gold < len(contexts):
        raise RowFault(f"the right option is number {gold + 1} of {len(contexts)}")
    return ChoiceItem(tuple(contexts), (f" {continuation}",) * len(contexts), gold, tuple(map(len, contexts)))


WINOGRANDE = ChoiceTask(
    "winogrande",
    "Winogrande (Sakaguchi et al. 2020)",
    item,
    hub=Hub("allenai/winogrande", "validation", "winogrande_xl"),
    has_lengths=False,
)
