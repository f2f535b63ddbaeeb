"""Ids of tool calls for templates that write them and refuse a call without: 9 letters and digits, as Mistral's do.

Rows mostly have none (ShareGPT), or longer ones (OpenAI's `call_...`). An id depends on the place, name and arguments
of its call alone, so a prompt has the ids that the whole conversation has; results get the ids of their calls.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

SYMBOLS = string.digits + string.ascii_letters
LENGTH = 9
FITTING = re.compile(rf"[0-9a-zA-Z]{{{LENGTH}}}")

Messages = Sequence[Mapping[str, Any]]


def lacks_ids(messages: Messages) -> bool:
    """Whether a call or a result has no id of that form."""
    ids = [call.get("id") for message in messages for call in message.get("tool_calls") or ()]
    ids += [message.get("tool_call_id") for message in messages if message["role"] == "tool"]
    return not all(map(_fits, ids))


def with_call_ids(messages: Messages) -> list[Mapping[str, Any]]:
    """Messages whose calls and results have ids of that form; those that do keep them."""
    new_ids: dict[str, str] = {}
    waiting: list[tuple[str, str]] = []  # calls without a result: id and function
    found: list[Mapping[str, Any]] = []
    for place, message in enumerate(messages):
        if message.get("tool_calls"):
            calls = [_with_id(call, f"{place}/{number}") for number, call in enumerate(message["tool_calls"])]
            for old, new in zip(message["tool_calls"], calls, strict=True):
                waiting.append((new["id"], new["function"]["name"]))
                if old.get("id") is not None:
                    new_ids[old["id"]] = new["id"]
            message = {**message, "tool_calls": calls}
        elif message["role"] == "tool":
            result_id = new_ids.get(message.get("tool_call_id") or "") or _answered(waiting, message.get("name"))
            if result_id is not None:
                message = {**message, "tool_call_id": result_id}
                waiting = [call for call in waiting if call[0] != result_id]
        found.append(message)
    return found


def _with_id(call: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    if _fits(call.get("id")):
        return call
    function = call["function"]
    content = json.dumps([place, function["name"], function.get("arguments")], sort_keys=True, default=str)
    number = int.from_bytes(blake2b(content.encode(errors="surrogatepass"), digest_size=8).digest(), "little")
    digits = [SYMBOLS[number // len(SYMBOLS) ** power % len(SYMBOLS)] for power in range(LENGTH)]
    return {**call, "id": "".join(digits)}


def _answered(waiting: Sequence[tuple[str, str]], name: str | None) -> str | None:
    """The id of the first call without a result, of the function of this name where there is one."""
    named = [call_id for call_id, function in waiting if function == name]
    return next(iter([*named, *(call_id for call_id, _ in waiting)]), None)


def _fits(call_id: Any) -> bool:
    return isinstance(call_id, str) and FITTING.fullmatch(call_id) is not None
