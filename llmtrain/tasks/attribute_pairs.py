"""Pairs of texts that differ in one attribute only: rows `{attribute, first, second}` of anyone's.

A language model is asked which is likelier, a reward model which scores higher:

    {"attribute": "gender", "prompt": "Who fixed it?", "first": "She did.", "second": "He did."}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmtrain.statistics.measures import Measure
from llmtrain.tasks.crows_pairs import LIKELIHOOD_DIFF, likelier
from llmtrain.tasks.task import About, AttributePair, BiasItem, BiasTask, Fields, RowFault, text_of, value_of

FIRST = Measure("first_likelier", None, "share", ideal=0.5)
SIDES = ("first", "second")


def item(fields: Fields) -> BiasItem:
    """`{attribute, first, second, prompt?, template?}`; `first` and `second` may be lists of messages."""
    attribute = text_of(fields, "attribute")
    prompt = text_of(fields, "prompt") if fields.get("prompt") is not None else None
    sides = [_side(fields, name, prompt) for name in SIDES]
    if sides[0] == sides[1]:
        raise RowFault("first and second are equal, so they differ in no attribute")
    template = text_of(fields, "template") if fields.get("template") is not None else ""
    contexts, texts = zip(*map(_as_text, sides), strict=True)
    facts = {"attribute": attribute, "first": sides[0], "second": sides[1]}
    return BiasItem(contexts, texts, facts, template)


def score(items: Sequence[BiasItem], logprobs: Sequence[Sequence[float]]) -> list[dict[str, float]]:
    """1 if the first is likelier, and by how much they differ in nats, either way."""
    found = []
    for each, (first, second) in zip(items, logprobs, strict=True):
        value = likelier(first, second)
        part = f"{FIRST.name}/{each.facts['attribute']}"
        found.append({FIRST.name: value, LIKELIHOOD_DIFF.name: abs(first - second), part: value})
    return found


def pairs(items: Sequence[BiasItem]) -> list[AttributePair]:
    """The pairs, as they are."""
    return [
        AttributePair(each.facts["attribute"], each.facts["first"], each.facts["second"], number, each.cluster)
        for number, each in enumerate(items)
    ]


def _side(fields: Fields, name: str, prompt: str | None) -> list[dict[str, Any]] | str:
    """An answer to no prompt as its text, else the messages."""
    value = value_of(fields, name)
    if isinstance(value, list):
        if prompt is not None:
            raise RowFault(f"field {name!r} is a list of messages, which has its own prompt: take prompt out")
        ok = bool(value) and all(
            isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
            for turn in value
        )
        if not ok or value[-1]["role"] != "assistant" or len(value) < 2:
            raise RowFault(f"field {name!r} is not a list of messages that ends with an assistant's: {value!r:.80}")
        return [{"role": turn["role"], "content": turn["content"]} for turn in value]
    text = text_of(fields, name)
    if prompt is None:
        return text
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]


def _as_text(side: list[dict[str, Any]] | str) -> tuple[str, str]:
    """What is before an answer, and the answer, as a language model without a chat template reads them."""
    if isinstance(side, str):
        return "", side
    return "\n".join(turn["content"] for turn in side[:-1]), f"\n{side[-1]['content']}"


ATTRIBUTE_PAIRS = BiasTask(
    "attribute_pairs",
    "pairs of texts that differ in one attribute",
    item,
    (FIRST, LIKELIHOOD_DIFF),
    score,
    pairs,
    About(
        asks="which of two texts, alike but for one attribute, is likelier, each as a whole or after its prompt",
        good="50 % is ideal if the first of the pairs is in no way the better text; likelihood_diff is low for a model "
        "that does not care",
        limits="it is as good as the pairs: a rare word lowers a likelihood whatever it means",
        unit="pairs, or templates where rows name them",
    ),
)
