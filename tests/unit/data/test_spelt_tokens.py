"""Control tokens that text spells: counted, refused, or the ids of the text that they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from chat_rows import conversation, trained_text
from chat_templates import LLAMA3, MARKED_CHATML, QWEN3, QWEN25, Family, family_tokenizer
from tiny_tokenizers import metaspace_bpe

from llmtrain.data.chat.encode import BadExample, ChatEncoder, Encoded
from llmtrain.data.formats.instructions import PlainText
from llmtrain.data.formats.messages import Conversation
from llmtrain.data.rendering import prompt_ids
from llmtrain.data.spelt_tokens import MARK, SpeltTokenError

SPELT = [
    (QWEN25, "u: x <|im_end|> y", "a: Hi", "<|im_end|> spelt in user text"),
    (QWEN25, "u: <|im_end|>", "a: Hi", "<|im_end|> spelt in user text"),
    (QWEN25, "u: x", "a: Hi <|endoftext|> you", "<|endoftext|> spelt in assistant text"),
    (QWEN25, "u: what is <tool_call>?", "a: Hi", "<tool_call> spelt in user text"),
    (LLAMA3, "s: <|eot_id|><|eot_id|>", "u: x", "<|eot_id|> spelt in system text"),
    (QWEN3, "u: why </think>?", "a: Hi", "</think> spelt in user text"),
]


def encoded(family: Family, row: Conversation | PlainText, spelt_tokens: Any) -> list[Encoded] | BadExample:
    encoder = ChatEncoder(family_tokenizer(family), plain=False, loss_on="assistant", spelt_tokens=spelt_tokens)
    (found,) = encoder.encode([row])
    return found


@pytest.mark.parametrize(("family", "first", "second", "note"), SPELT)
def test_spelt_tokens_are_counted_refused_or_text(family: Family, first: str, second: str, note: str) -> None:
    row = conversation(first, second, *(("a: Hi",) if second.startswith("u") else ()))
    warned, as_text = encoded(family, row, "warn"), encoded(family, row, "encode_as_text")
    assert not isinstance(warned, BadExample) and not isinstance(as_text, BadExample)
    assert warned[0].notes == (f"{note}, read as that token (data.special_tokens_in_text)",)
    assert as_text[0].notes == (f"{note}, encoded as text",)
    tokenizer = family_tokenizer(family)
    token = note.split()[0]
    token_id = tokenizer.convert_tokens_to_ids(token)
    times = [int((documents[0].input_ids == token_id).sum()) for documents in (warned, as_text)]
    assert times[0] - times[1] == (first + second).count(token)
    assert tokenizer.decode(as_text[0].input_ids) == tokenizer.decode(warned[0].input_ids)
    fault = encoded(family, row, "error")
    assert isinstance(fault, BadExample) and fault.reason == "control token in text"
    assert f"spells the control token {token} in its text" in str(fault) and str(fault).startswith("rows.jsonl:7: ")


@pytest.mark.parametrize(("family", "first", "second", "note"), SPELT)
def test_as_text_the_prompt_is_that_of_transformers_own_care(family: Family, first: str, second: str, note: str):
    tokenizer = family_tokenizer(family)
    messages = [message for message in conversation(first, second).messages if message["role"] != "assistant"]
    wanted = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, sanitize_control_tokens=True
    )
    found = prompt_ids(tokenizer, messages, spelt_tokens="encode_as_text")
    assert found == wanted
    is_spelt = any(note.split()[0] in message["content"] for message in messages)
    assert (found != prompt_ids(tokenizer, messages)) == is_spelt
    with_answer = encoded(family, conversation(*messages, "a: Hi"), "encode_as_text")
    assert not isinstance(with_answer, BadExample)
    assert with_answer[0].input_ids.tolist()[: len(wanted)] == wanted


@pytest.mark.parametrize(
    "row",
    [
        conversation("u: x", "a: <think>\nthe sky\n</think>\n\nHi"),
        conversation("u: x", "a: <tool_call>\n{}\n</tool_call>"),
        conversation("u: im_end < | >", "a: Hi"),
    ],
)
def test_what_an_answers_own_format_spells_is_no_fault(row: Conversation) -> None:
    found = encoded(QWEN3, row, "error")
    assert not isinstance(found, BadExample) and found[0].notes == ()


def test_the_answer_is_trained_to_its_own_end_where_it_spells_one() -> None:
    tokenizer = family_tokenizer(MARKED_CHATML)
    found = encoded(MARKED_CHATML, conversation("u: x", "a: say <|im_end|>\nnow", "u: y", "a: z"), "encode_as_text")
    assert not isinstance(found, BadExample)
    (document,) = found
    assert trained_text(tokenizer, document) == "say <|im_end|>\nnow<|im_end|>z<|im_end|>"
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert int((document.input_ids[document.trained] == end).sum()) == 2


def test_tokens_within_a_calls_arguments_and_results_are_text() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": "<|im_end|>"}}}
    row = conversation("u: x", {"role": "assistant", "content": "", "tool_calls": [call]}, "t: <|im_start|>", "a: Hi")
    found = encoded(QWEN25, row, "encode_as_text")
    assert not isinstance(found, BadExample)
    assert found[0].notes == (
        "<|im_end|> spelt in assistant text, encoded as text",
        "<|im_start|> spelt in tool text, encoded as text",
    )
    tokenizer = family_tokenizer(QWEN25)
    assert trained_text(tokenizer, found[0]).count("<|im_end|>") == 3
    assert int((found[0].input_ids == tokenizer.convert_tokens_to_ids("<|im_end|>")).sum()) == 5


def test_a_tokenizer_that_marks_the_start_of_a_text_has_no_space_after_a_spelt_token() -> None:
    tokenizer = metaspace_bpe()
    tokenizer.chat_template = "{%- for m in messages %}{{- m.content }}{%- endfor %}"
    token = tokenizer.eos_token
    ids = prompt_ids(tokenizer, [{"role": "user", "content": f"a{token}b"}], spelt_tokens="encode_as_text")
    assert tokenizer.decode(ids).replace("<unk>", "") == "aeosb"  # it has no < and no >
    assert tokenizer.eos_token_id not in ids


def test_the_mark_itself_is_no_character() -> None:
    with pytest.raises(SpeltTokenError, match=r"U\+FDD0, which is no character"):
        prompt_ids(family_tokenizer(QWEN25), [{"role": "user", "content": f"x{MARK}"}], spelt_tokens="encode_as_text")


def test_tokens_within_descriptions_of_tools_are_counted_refused_or_text() -> None:
    parameters = {"type": "object", "properties": {"x": {"type": "string", "description": "ends with <|im_end|>"}}}
    tool = {"type": "function", "function": {"name": "f", "description": "does", "parameters": parameters}}
    row = replace(conversation("u: x", "a: Hi"), tools=(tool,))
    warned, as_text = encoded(QWEN25, row, "warn"), encoded(QWEN25, row, "encode_as_text")
    assert not isinstance(warned, BadExample) and not isinstance(as_text, BadExample)
    where = "<|im_end|> spelt in descriptions of tools"
    assert warned[0].notes == (f"{where}, read as that token (data.special_tokens_in_text)",)
    assert as_text[0].notes == (f"{where}, encoded as text",)
    tokenizer = family_tokenizer(QWEN25)
    token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    times = [int((documents[0].input_ids == token_id).sum()) for documents in (warned, as_text)]
    assert times[0] - times[1] == 1
    assert tokenizer.decode(as_text[0].input_ids) == tokenizer.decode(warned[0].input_ids)
    fault = encoded(QWEN25, row, "error")
    assert isinstance(fault, BadExample) and "a description of a tool spells the control token <|im_end|>" in str(fault)
    with pytest.raises(SpeltTokenError, match="a description of a tool spells"):
        prompt_ids(tokenizer, [row.messages[0]], [tool], spelt_tokens="error")


def test_tokens_within_plain_text_are_counted_refused_or_text() -> None:
    row = PlainText("<|im_start|>user\nx<|im_end|>\n", "rows.jsonl:7", 30)
    warned, as_text = encoded(QWEN25, row, "warn"), encoded(QWEN25, row, "encode_as_text")
    assert not isinstance(warned, BadExample) and not isinstance(as_text, BadExample)
    assert warned[0].notes == tuple(
        f"{token} spelt in plain text, read as that token (data.special_tokens_in_text)"
        for token in ("<|im_start|>", "<|im_end|>")
    )
    tokenizer = family_tokenizer(QWEN25)
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert start in warned[0].input_ids and start not in as_text[0].input_ids
    assert tokenizer.decode(as_text[0].input_ids) == tokenizer.decode(warned[0].input_ids)
    fault = encoded(QWEN25, row, "error")
    assert isinstance(fault, BadExample) and "spells the control token <|im_start|> in its text" in str(fault)
