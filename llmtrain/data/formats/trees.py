"""OpenAssistant's trees of replies -> the path of the best replies (Köpf et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmtrain.data.formats.faults import UnfitRow, UnwantedRow
from llmtrain.data.formats.messages import Message, turn_message


def is_tree(value: Any) -> bool:
    """Whether a value is a message with replies."""
    return isinstance(value, Mapping) and "replies" in value


def best_path(root: Any, place: str) -> list[Message]:
    """The best replies of an OpenAssistant tree, from its root to the last one by an assistant.

    Of several replies the one of lowest `rank` is taken, one without a rank after those that have one, the
    first of equals; deleted ones never. Raises UnwantedRow where no assistant has replied, UnfitRow for a
    node that is not a message.
    """
    messages: list[Message] = []
    node = root
    while node is not None:
        here = f"reply {len(messages)} of {place}" if messages else place
        messages.append(tree_message(node, here))
        replies = [reply for reply in node.get("replies") or [] if isinstance(reply, Mapping)]
        node = min((reply for reply in replies if not is_deleted(reply)), key=_rank, default=None)
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        raise UnwantedRow("no assistant turn")
    return messages


def tree_message(node: Any, place: str) -> Message:
    """The message of one node. Raises UnfitRow."""
    if not isinstance(node, Mapping) or not isinstance(node.get("replies") or [], list):
        raise UnfitRow("not a message", f"{place} is not an object with role, text and a list of replies")
    return turn_message({"role": node.get("role"), "content": node.get("text")}, place)


def is_deleted(reply: Any) -> bool:
    """Whether a reply was taken back."""
    return isinstance(reply, Mapping) and bool(reply.get("deleted"))


def _rank(reply: Mapping[str, Any]) -> tuple[bool, float]:
    rank = reply.get("rank")
    return (False, rank) if isinstance(rank, int | float) else (True, 0)
