"""What a template is given besides messages is written into it: training, rollouts and chat render alike."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from chat_rows import call, conversation, documents
from chat_templates import GEMMA, LLAMA3, QWEN3, QWEN25, SMOLLM3, family_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmtrain.config.data import TemplatedSourcesConfig
from llmtrain.config.load import load_config, validate
from llmtrain.config.recipes import SftConfig
from llmtrain.config.sections import PretrainedModelConfig, TokenizerConfig
from llmtrain.data.chat.arguments import fixed_day, literal, with_arguments, with_fixed_date
from llmtrain.data.chat.speaker_names import reads_speaker_names
from llmtrain.data.chat.tokenizer import ChatTokenizer, open_chat_tokenizer
from llmtrain.data.rendering import GIVEN, prompt_ids, read_by

ASKS = [{"role": "user", "content": "Hi"}]
ROW = conversation("u: Hi", "a: Hello")


def opened(folder: Path, template: Any, **keys: Any) -> ChatTokenizer:
    """A chat tokenizer of SmolLM3's tokens with a template, as a run opens it with these `data` keys."""
    tokenizer = family_tokenizer(SMOLLM3)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    data = validate(TemplatedSourcesConfig, {"train": "rows.jsonl", **keys})
    return open_chat_tokenizer(PretrainedModelConfig(path=str(folder)), TokenizerConfig(), data, "assistant")


def asked(tokenizer: PreTrainedTokenizerFast, **arguments: Any) -> str:
    return str(tokenizer.apply_chat_template(ASKS, tokenize=False, add_generation_prompt=True, **arguments))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"enable_thinking": False}, "<think>\n\n</think>\n"),
        ({"enable_thinking": True}, "/think"),
        (
            {"xml_tools": [{"name": "sky", "default": None, "flag": True}]},
            '{"name": "sky", "default": null, "flag": true}',
        ),
        ({"xml_tools": ['say "hi"\n%} {{ x }}']}, r'"say \"hi\"\n%} {{ x }}"'),
    ],
)
def test_training_and_chat_render_with_the_arguments_of_the_run(
    tmp_path: Path, arguments: dict[str, Any], text: str
) -> None:
    chat = opened(tmp_path, SMOLLM3.template, template_kwargs=arguments)
    chat.tokenizer.save_pretrained(tmp_path / "tuned")
    tuned = AutoTokenizer.from_pretrained(tmp_path / "tuned")
    wanted = family_tokenizer(SMOLLM3, with_fixed_date(SMOLLM3.template, None)).apply_chat_template(
        ASKS, tokenize=False, add_generation_prompt=True, **arguments
    )
    assert text in wanted
    assert asked(tuned) == asked(chat.tokenizer) == wanted
    ((document,),) = chat.encoder.encode([ROW])
    assert chat.tokenizer.decode(document.input_ids).startswith(wanted)
    assert prompt_ids(tuned, ASKS) == tuned(wanted, add_special_tokens=False)["input_ids"]


def test_whoever_calls_a_tuned_template_may_give_another_value(tmp_path: Path) -> None:
    chat = opened(tmp_path, SMOLLM3.template, template_kwargs={"enable_thinking": False})
    assert "/no_think" in asked(chat.tokenizer) and "/no_think" not in asked(chat.tokenizer, enable_thinking=True)
    given = prompt_ids(chat.tokenizer, ASKS, arguments={"enable_thinking": True})
    assert "/no_think" not in chat.tokenizer.decode(given)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (
            {"enable_thinkin": True},
            r"data\.template_kwargs\.enable_thinkin: the chat template never reads it; it reads .*enable_thinking",
        ),
        ({"messages": []}, r"data\.template_kwargs\.messages: rows and tokenizer give this"),
        ({"bos_token": "x"}, r"data\.template_kwargs\.bos_token: rows and tokenizer give this"),
    ],
)
def test_an_argument_that_no_template_reads_is_refused_by_name(
    tmp_path: Path, arguments: dict[str, Any], fault: str
) -> None:
    with pytest.raises(ValueError, match=fault):
        opened(tmp_path, SMOLLM3.template, template_kwargs=arguments)
    chat = opened(tmp_path, SMOLLM3.template)
    with pytest.raises(ValueError, match=fault.replace(r"data\.template_kwargs\.", "template argument ")):
        prompt_ids(chat.tokenizer, ASKS, arguments=arguments)


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"template_kwargs": "enable_thinking"}, "data.template_kwargs|template_kwargs.*give a mapping"),
        ({"template_date": "yesterday"}, "template_date.*give a day as YYYY-MM-DD"),
        ({"template_date": "26 Jul 2024"}, "template_date.*give a day as YYYY-MM-DD"),
        ({"special_tokens_in_text": "drop"}, "special_tokens_in_text.*warn.*encode_as_text.*error"),
    ],
)
def test_a_wrong_value_is_refused(keys: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        validate(TemplatedSourcesConfig, {"train": "rows.jsonl", **keys})


@pytest.mark.parametrize(
    ("day", "written"),
    [(None, "26 July 2024"), ("2026-01-04", "04 January 2026"), (date(2026, 1, 4), "04 January 2026")],
)
def test_the_date_of_a_template_is_fixed_and_exported(tmp_path: Path, day: Any, written: str) -> None:
    chat = opened(tmp_path, SMOLLM3.template, template_date=day)
    assert f"system\n{written} /think" in asked(chat.tokenizer) and fixed_day(chat.tokenizer.chat_template) == written
    assert written in chat.tokenizer.decode(documents(chat.tokenizer, ROW)[0].input_ids)
    again = opened(tmp_path / "again", chat.tokenizer.chat_template)  # tuned further: as it is
    assert written in asked(again.tokenizer)
    moved = opened(tmp_path / "moved", chat.tokenizer.chat_template, template_date="2025-12-31")
    assert "31 December 2025" in asked(moved.tokenizer)


def test_the_date_is_part_of_what_names_a_store(tmp_path: Path) -> None:
    days = (None, "2024-07-26", "2024-07-27")
    same, also, other = (opened(tmp_path, SMOLLM3.template, template_date=day).encoder.fingerprint for day in days)
    assert same == also != other
    thinking = opened(tmp_path, SMOLLM3.template, template_kwargs={"enable_thinking": False})
    assert thinking.encoder.fingerprint != same


def test_a_date_in_a_computed_format_is_refused() -> None:
    with pytest.raises(ValueError, match="a format that it computes"):
        with_fixed_date("{{ strftime_now(messages[0].content) }}", None)


@pytest.mark.parametrize(
    "start", ["\n", "  {% if true %}x{% endif %}", "\n\n  {{- 'x' }}", "x", "{%- if true %}\n  x{% endif %}"]
)
def test_a_head_writes_nothing(start: str) -> None:
    source = f"{start}{SMOLLM3.template}"
    plain, headed = (
        asked(family_tokenizer(SMOLLM3, template))
        for template in (
            with_fixed_date(source, None),
            with_arguments(with_fixed_date(source, None), {"xml_tools": []}),
        )
    )
    assert plain == headed
    text = start + "{{ messages[0].content }}{{ x }}"
    assert asked(family_tokenizer(SMOLLM3, text)) == asked(family_tokenizer(SMOLLM3, with_arguments(text, {"x": ""})))


def test_arguments_are_seen_within_macros() -> None:
    source = (
        "{%- macro effort() %}{%- if e is not defined %}{%- set e = 'medium' %}{%- endif %}{{- e }}{%- endmacro %}"
        "{{- effort() }}{%- for m in messages %}{{- effort() + m.content }}{%- endfor %}"
    )
    assert asked(family_tokenizer(SMOLLM3, with_arguments(source, {"e": "high"}))) == "highhighHi"


def test_jinja_reads_back_what_is_written_of_a_value() -> None:
    value = {"a": [None, True, False, 1, -2.5, "x\ny\"'\\ \u00e9 %} }}"], "b": {}}
    source = "{{- x|tojson }}" + "{{- messages|length }}"
    text = asked(family_tokenizer(SMOLLM3, with_arguments(source, {"x": value})))
    assert json.loads(text.removesuffix("1")) == value and literal(None) == "none"


NAMED = {"default": QWEN25.template, "tool_use": LLAMA3.template.replace("{{- bos_token }}", "{{- tools|tojson }}")}
WANTS_TEXT = """\
{%- for tool in tools %}{{ tool.function.name }}{% endfor %}
{%- for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>' }}
{%- for c in m.tool_calls or [] %}{{ c.function.name ~ ' ' ~ c.function.arguments }}{% endfor %}
{{- m.content + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>' }}{% endif %}
"""
TOOL = {"type": "function", "function": {"name": "add"}}


def test_of_several_templates_the_one_for_tools_writes_chats_with_tools() -> None:
    tokenizer = family_tokenizer(LLAMA3)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = dict(NAMED)
    for tools in ([], [TOOL]):
        (document,) = documents(tokenizer, conversation("u: Hi", "a: Hello", tools=tools))
        prompt = tokenizer.apply_chat_template(ASKS, tools=tools or None, add_generation_prompt=True, return_dict=False)
        assert document.input_ids.tolist()[: len(prompt)] == prompt == prompt_ids(tokenizer, ASKS, tools)
        end = "<|eot_id|>" if tools else "<|im_end|>"
        assert tokenizer.decode(document.input_ids[document.trained]) == f"Hello{end}"


def test_a_template_for_tools_takes_calls_in_prompts_as_in_training() -> None:
    tokenizer = family_tokenizer(LLAMA3)
    tokenizer.chat_template = {"default": LLAMA3.template, "tool_use": WANTS_TEXT}
    row = conversation("u: 2 + 2?", call("add", a=2), {"role": "tool", "content": "4"}, "a: Four", tools=[TOOL])
    (document,) = documents(tokenizer, row)
    prompt = prompt_ids(tokenizer, row.messages[:3], [TOOL])
    assert document.input_ids.tolist()[: len(prompt)] == prompt
    assert 'add {"a": 2}' in tokenizer.decode(prompt)


def test_each_of_several_templates_gets_the_arguments_and_the_date(tmp_path: Path) -> None:
    both = {
        "default": SMOLLM3.template,
        "tool_use": "{{- strftime_now('%Y') }}" + SMOLLM3.template,
        "rag": GEMMA.template,
    }
    chat = opened(tmp_path, both, template_kwargs={"enable_thinking": False}, template_date="2026-01-04")
    assert set(chat.tokenizer.chat_template) == set(both)
    assert "04 January 2026 /no_think" in asked(chat.tokenizer)
    assert asked(chat.tokenizer, tools=[TOOL]).startswith("2026")


@pytest.mark.parametrize("template", [QWEN25.template, GEMMA.template, {"default": QWEN25.template}])
def test_a_day_that_no_template_writes_is_refused(tmp_path: Path, template: Any) -> None:
    with pytest.raises(ValueError, match=r"data\.template_date=2026-01-04 does nothing: .* never writes today's date"):
        opened(tmp_path, template, template_date="2026-01-04")


@pytest.mark.parametrize(
    ("source", "read"),
    [
        (QWEN3.template, set()),  # `thought` and `said` are its own
        ("{% set x = x or 1 %}{{ x }}", {"x"}),
        ("{% if y is not defined %}{% set y = 1 %}{% endif %}{{ y }}", {"y"}),
        ("{% for m in messages %}{% if m %}{% set z = 1 %}{% endif %}{{ z }}{% endfor %}", set()),
    ],
)
def test_what_a_template_sets_first_is_no_argument(source: str, read: set[str]) -> None:
    assert read_by(source) - GIVEN == read


@pytest.mark.parametrize(
    ("messages", "unread"),
    [
        (["u: x", {"role": "assistant", "content": "Hi", "mask": 1}], ["mask"]),
        ([{"role": "system", "content": "x", "tools": [{"name": "f"}]}, "u: x", "a: Hi"], ["tools"]),
        ([{"role": "user", "content": "x", "lang": "en", "images": []}, "a: Hi"], ["images", "lang"]),
        (["u: x", {"role": "assistant", "content": "Hi", "tool_calls": []}], []),
        ([{"role": "user", "content": "x", "name": "Ann"}, "a: Hi"], ["name"]),  # that of functions is read
    ],
)
def test_a_key_of_messages_that_the_template_does_not_read_is_counted(messages: list[Any], unread: list[str]) -> None:
    (document,) = documents(family_tokenizer(QWEN25), conversation(*messages))
    assert document.notes == tuple(f"the chat template does not read {key!r} of messages" for key in unread)


@pytest.mark.parametrize(
    ("source", "read"),
    [
        (QWEN25.template, False),
        ("{% for t in tools %}{{ t.function.name }}{{ t['name'] }}{% endfor %}", False),
        ("{% for c in m.tool_calls %}{% set f = c.function if c.function else c %}{{ f.name }}{% endfor %}", False),
        ("{% for m in messages %}{{ m.role }}{{ m.name }}{% endfor %}", True),
        ("{% for m in messages %}{{ m['name'] }}{% endfor %}", True),
        ("{% for m in messages %}{{ m.get('name', '') }}{% endfor %}", True),
        ("{% macro turn(m) %}{{ m.name }}{% endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}", True),
    ],
)
def test_the_name_of_a_function_is_no_speakers(source: str, read: bool) -> None:
    assert reads_speaker_names(source) == read


@pytest.mark.parametrize("key", ["template_kwargs={a: 1}", "template_date=2026-01-04", "loss_on_thoughts=false"])
def test_a_key_of_the_template_does_nothing_without_one(key: str) -> None:
    given = ["sft_smollm2_lora", "data.train=rows.jsonl", "data.chat_template=none", f"data.{key}"]
    with pytest.raises(ValueError, match=rf"data\.{key.split('=')[0]} does nothing without a chat template"):
        load_config(SftConfig, given)
