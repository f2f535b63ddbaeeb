"""LAMBADA (Paperno et al. 2016): the last word of a passage, which only the whole passage gives away."""

from __future__ import annotations

from llmtrain.tasks.task import ContinuationItem, ContinuationTask, Fields, Hub, RowFault, text_of


def item(fields: Fields) -> ContinuationItem:
    """`{text}`, or `{context, continuation}`."""
    if "continuation" in fields:
        return ContinuationItem(text_of(fields, "context"), f" {text_of(fields, 'continuation').lstrip()}")
    before, space, last = text_of(fields, "text").rpartition(" ")
    if not space or not last:
        raise RowFault("the text has no last word after a space")
    return ContinuationItem(before, f" {last}")


LAMBADA = ContinuationTask(
    "lambada",
    "LAMBADA (Paperno et al. 2016)",
    item,
    hub=Hub("EleutherAI/lambada_openai", "test", "default"),
    aliases=("lambada_openai",),
)
