"""Calls without ids, or with those of another service, on a template that refuses them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from chat_rows import call, conversation, documents, trained_text
from chat_templates import QWEN25, family_tokenizer
from transformers import PreTrainedTokenizerFast

from llmtrain.data.formats.call_ids import lacks_ids, with_call_ids
from llmtrain.data.prompts import prompt_ids

NEEDS_IDS = """\
{%- for m in messages %}
{%- for c in m.tool_calls or [] %}
{%- if c.id is not defined or c.id|length != 9 %}{{ raise_exception("Tool call IDs need 9 characters!") }}{% endif %}
{%- endfor %}
{%- if m.role == "tool" and m.tool_call_id|length != 9 %}{{ raise_exception("IDs need 9 characters!") }}{% endif %}
{{- '<|im_start|>' + m.role + '\\n' }}
{%- for c in m.tool_calls or [] %}{{ c.function.name + ' ' + c.id + ' ' + c.function.arguments|tojson }}{% endfor %}
{{- m.content + ((' ' + m.tool_call_id) if m.tool_call_id else '') + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
RESULT = {"role": "tool", "content": "4"}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return family_tokenizer(QWEN25, NEEDS_IDS)


def ids_of(messages: Any) -> list[Any]:
    calls = [each["id"] for message in messages for each in message.get("tool_calls") or ()]
    return calls + [message["tool_call_id"] for message in messages if message["role"] == "tool"]


@pytest.mark.parametrize("given", [None, "call_AbCdEf0123456789", "a"])
def test_a_row_is_trained_with_ids_that_are_made(tokenizer: PreTrainedTokenizerFast, given: str | None) -> None:
    calling, result = call("add", a=2), dict(RESULT)
    if given is not None:
        calling["tool_calls"][0]["id"] = result["tool_call_id"] = given
    row = conversation("u: 2 + 2?", calling, result, "a: 4")
    made = with_call_ids(row.messages)
    first, second = ids_of(made)
    assert first == second and re.fullmatch(r"[0-9a-zA-Z]{9}", first)
    (document,) = documents(tokenizer, row)
    assert trained_text(tokenizer, document).startswith(f"add {first}")
    prompt = prompt_ids(tokenizer, row.messages[:3], ())
    assert tuple(document.input_ids[: len(prompt)].tolist()) == prompt
    assert f"4 {first}" in tokenizer.decode(prompt)


def test_ids_of_the_right_form_stay() -> None:
    calling = call("add")
    calling["tool_calls"][0]["id"] = "abcdefgh1"
    messages = [calling, {**RESULT, "tool_call_id": "abcdefgh1"}]
    assert not lacks_ids(messages)
    assert with_call_ids(messages) == messages


def test_ids_depend_on_the_call_alone_and_results_find_theirs() -> None:
    one, two = call("add", a=1), call("mul", a=1)
    calling = {**one, "tool_calls": [*one["tool_calls"], *two["tool_calls"]]}
    messages = [calling, {**RESULT, "name": "mul"}, {**RESULT, "name": "add"}]
    add, mul, first, second = ids_of(with_call_ids(messages))
    assert (first, second) == (mul, add) and add != mul
    assert ids_of(with_call_ids(messages[:1])) == [add, mul]
    assert ids_of(with_call_ids([call("add", a=2)])) != [add]


def test_a_template_that_does_without_ids_gets_none() -> None:
    writes_those_that_are_there = NEEDS_IDS.replace("c.id is not defined or c.id|length != 9", "false")
    tokenizer = family_tokenizer(QWEN25, writes_those_that_are_there.replace("c.id +", "(c.id or '-') +"))
    row = conversation("u: 2 + 2?", call("add", a=2))
    (document,) = documents(tokenizer, row)
    assert trained_text(tokenizer, document) == 'add - {"a": 2}<|im_end|>'
