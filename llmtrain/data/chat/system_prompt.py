"""The system message of chats that bring none: written into the chat template itself.

So training, rollouts, the exported folder and every tool that opens it send the same message. What a template sends by
itself is found by comparing what it writes with and without a system message.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerFast

from llmtrain.data.chat.arguments import headed
from llmtrain.data.rendering import PROBE, QUESTION, Template
from llmtrain.system.files import one_line


def with_system_prompt(template: Template, prompt: str) -> Template:
    """A chat template that puts a system message before messages that do not begin with one."""
    text = json.dumps(prompt, ensure_ascii=False)  # Jinja reads an escaped pair of surrogates as two characters
    message = f'{{"role": "system", "content": {text}}}'
    return headed(
        template,
        '{%- if not messages or messages[0]["role"] != "system" %}'
        f"{{%- set messages = [{message}] + messages %}}"
        "{%- endif %}\n",
    )


def require_sent(tokenizer: PreTrainedTokenizerFast, prompt: str) -> None:
    """Raise ValueError if a tokenizer's template, which has been given this system prompt, does not write it."""
    try:
        is_sent = prompt.strip() in _written(tokenizer, [QUESTION])
    except TemplateError as error:
        raise ValueError(
            f"data.system_prompt: the chat template takes no system message ({one_line(error)}): remove the key, or "
            "set data.chat_template=ours or a Jinja file"
        ) from None
    if not is_sent:
        raise ValueError(
            "data.system_prompt: the chat template leaves system messages out: remove the key, or set "
            "data.chat_template=ours or a Jinja file"
        )


def own_system_prompt(tokenizer: PreTrainedTokenizerFast) -> str | None:
    r"""The system message that a template writes where a chat has none; None: it writes none, or has no system turn.

    `<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user...` without one, and with one `<|im_start|>system\nzqx7
    <|im_end|>\n<|im_start|>user...`: what is written in the place of `zqx7`.
    """
    if tokenizer.chat_template is None:
        return None
    try:
        before, found, after = _written(tokenizer, [{"role": "system", "content": PROBE}, QUESTION]).partition(PROBE)
        alone = _written(tokenizer, [QUESTION])
    except TemplateError:
        return None
    if not found or not alone.startswith(before) or not alone.endswith(after):
        return None
    return alone[len(before) : len(alone) - len(after)].strip() or None


def _written(tokenizer: PreTrainedTokenizerFast, messages: list[Mapping[str, str]]) -> str:
    return str(tokenizer.apply_chat_template([*map(dict, messages)], tokenize=False, add_generation_prompt=True))
