"""Texts of models and data on the page: long ones cut and folded, and how an answer ended."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from llmtrain.runs.report.html import join

SHOWN_CHARS = 400
"""A longer text is folded."""
MOST_CHARS = 8_000
"""Of a longer text the beginning and the end are on the page, the whole in the run's file."""


def text_box(text: str) -> Markup:
    """A text as it is, lines kept; a long one folded after its beginning."""
    if len(text) <= SHOWN_CHARS:
        return _box(text)
    return Markup("<details><summary>{}… <em>{} characters: show</em></summary>{}</details>").format(
        " ".join(text[:160].split()), f"{len(text):,}", _box(cut(text))
    )


def _box(text: str) -> Markup:
    shown: str | Markup = text if text else Markup("<em>(empty)</em>")
    return Markup('<div class="text" dir="auto">{}</div>').format(shown)


def cut(text: str) -> str:
    """The text, or its beginning and end with the number of characters between."""
    if len(text) <= MOST_CHARS:
        return text
    half = MOST_CHARS // 2
    return f"{text[:half]}\n[{len(text) - 2 * half:,} characters, in samples.jsonl]\n{text[-half:]}"


def prompt_box(prompt: object) -> Markup:
    """The messages of a prompt, each with its role; any other form as it is written in the file."""
    if isinstance(prompt, str):
        return text_box(prompt)
    if not isinstance(prompt, Sequence) or not all(isinstance(message, Mapping) for message in prompt):
        return text_box(json.dumps(prompt, ensure_ascii=False))
    return join(*(_message(message) for message in prompt))


def _message(message: Mapping[str, Any]) -> Markup:
    content = message.get("content")
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return Markup('<div class="role">{}</div>{}').format(str(message.get("role", "")), text_box(text))


def how_it_ended(row: Mapping[str, Any]) -> Markup:
    """Whether an answer ended by itself or was cut off; empty if its row does not say."""
    stopped = row.get("stopped")
    if not isinstance(stopped, bool):
        return Markup("")
    return Markup('<span class="{}">{}</span>').format(
        "ended" if stopped else "cut", "ended by itself" if stopped else "cut off"
    )
