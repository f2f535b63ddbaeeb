"""Whether a prompt is asked whole: what its chat template would leave out of it, tried as for rows that are trained."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from llmtrain.data.chat.shown import Shape, message_shape, probe_of, shape_of
from llmtrain.data.formats.messages import Message
from llmtrain.data.rendering import FAULTS, Renderer, renderer_of

TAGS = re.compile("</?think>")


def left_out(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] = (),
    arguments: Mapping[str, Any] | None = None,
) -> str | None:
    """What the template leaves out of a prompt of these messages ("tools", "system messages"); None: nothing.

    `arguments` are the template's own. Messages that the template refuses are left to the prompt itself.
    """
    if not messages or tokenizer.chat_template is None:
        return None
    renderer = renderer_of(tokenizer, arguments, has_tools=bool(tools))
    return _left_out(renderer, shape_of([message_shape(message, TAGS) for message in messages], bool(tools)))


@lru_cache(maxsize=512)
def _left_out(renderer: Renderer, shape: Shape) -> str | None:
    probe = probe_of(shape)
    is_begun = probe.messages[-1]["role"] == "assistant"
    try:
        text, _ = renderer.text(probe.messages, probe.tools, is_prompt=not is_begun, is_begun=is_begun)
    except FAULTS:
        return None
    missing = probe.missing(text)
    return None if missing is None else missing.part
