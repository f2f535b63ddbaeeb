"""Held-out texts: their loss in bits per byte, which no tokenizer can flatter."""

from __future__ import annotations

from llmtrain.tasks.task import TextTask, text_of

TEXT = TextTask("text", "texts, by their loss", lambda fields: text_of(fields, "text", "content", "extract", "body"))
