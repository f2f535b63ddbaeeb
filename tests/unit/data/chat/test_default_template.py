"""Our own template: functions, calls, results and thoughts as plain text, token by token, and thoughts left out."""

from __future__ import annotations

from typing import Any

import pytest
from chat_rows import call, conversation, documents, expected, fault, tokens, trained_text
from chat_templates import DEEPSEEK_R1, LLAMA3, QWEN3, QWEN25, SMOLLM2, Family, family_tokenizer

from llmtrain.config.tokenizer import SpecialTokens
from llmtrain.data.chat.choice import choose_template
from llmtrain.data.chat.default_template import chat_template
from llmtrain.data.chat.encode import BadExample, ChatEncoder

OURS = chat_template(SpecialTokens())
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"x": {"default": None}}}}
THOUGHT = {"reasoning_content": "the sky"}
ANSWER = {"role": "assistant", "content": "Hi"}


def test_a_call_its_result_and_a_thought_are_written_and_trained_as_plain_text() -> None:
    tokenizer = family_tokenizer(QWEN25, OURS)
    row = conversation("s: Be brief.", "u: x", call("add", x=None) | THOUGHT, "t: 2", ANSWER | THOUGHT, tools=[TOOL])
    (document,) = documents(tokenizer, row)
    assert tokenizer.decode(document.input_ids) == (
        "<|im_start|>system\nBe brief.\n\n"
        "# Functions\n\nYou can call these functions, each described by JSON:\n<tools>\n"
        '{"type": "function", "function": {"name": "add", "parameters": {"x": {"default": null}}}}\n</tools>\n\n'
        "To call one, write its name and arguments as JSON:\n<tool_call>\n"
        '{"name": NAME, "arguments": {ARGUMENT: VALUE}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n<think>\nthe sky\n</think>\n\n"
        '<tool_call>\n{"name": "add", "arguments": {"x": null}}\n</tool_call><|im_end|>\n'
        "<|im_start|>tool\n2<|im_end|>\n<|im_start|>assistant\n<think>\nthe sky\n</think>\n\nHi<|im_end|>"
    )
    assert trained_text(tokenizer, document) == (
        '<think>\nthe sky\n</think>\n\n<tool_call>\n{"name": "add", "arguments": {"x": null}}\n</tool_call><|im_end|>'
        "<think>\nthe sky\n</think>\n\nHi<|im_end|>"
    )


def test_a_bos_that_is_the_mark_of_a_turn_is_written_once() -> None:
    smollm2, llama = family_tokenizer(SMOLLM2), family_tokenizer(LLAMA3)
    for tokenizer, begins in ((smollm2, "<|im_start|>user\nx"), (llama, f"{llama.bos_token}<|im_start|>user\nx")):
        template, missing = choose_template(tokenizer, "ours")
        tokenizer.add_tokens(missing, special_tokens=True)
        tokenizer.chat_template = template
        (document,) = documents(tokenizer, conversation("u: x", "a: Hi"))
        assert tokenizer.decode(document.input_ids) == f"{begins}<|im_end|>\n<|im_start|>assistant\nHi<|im_end|>"


def test_text_and_two_calls_are_written_below_each_other() -> None:
    tokenizer = family_tokenizer(QWEN25, OURS)
    two = call("add", x=1)["tool_calls"] + call("mul")["tool_calls"]
    (document,) = documents(tokenizer, conversation("u: x", {**ANSWER, "tool_calls": two}))
    assert trained_text(tokenizer, document) == (
        'Hi\n<tool_call>\n{"name": "add", "arguments": {"x": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "mul", "arguments": {}}\n</tool_call><|im_end|>'
    )


@pytest.mark.parametrize("tools", [[], [TOOL]])
def test_rows_without_a_system_message_have_a_system_turn_for_functions_alone(tools: list[Any]) -> None:
    tokenizer = family_tokenizer(QWEN25, OURS)
    (document,) = documents(tokenizer, conversation("u: x", "a: Hi", tools=tools))
    text = tokenizer.decode(document.input_ids)
    assert text.startswith("<|im_start|>system\n# Functions" if tools else "<|im_start|>user\nx")
    assert trained_text(tokenizer, document) == "Hi<|im_end|>"


def test_a_plain_chat_is_as_it_was() -> None:
    tokenizer = family_tokenizer(QWEN25, OURS)
    (document,) = documents(tokenizer, conversation("s: Be brief.", "u: Hi there", "a: Hello you"))
    assert tokens(tokenizer, document) == expected(r"""
        - <|im_start|>¦system¦\n¦Be¦ brief¦.¦<|im_end|>¦\n
        - <|im_start|>¦user¦\n¦Hi¦ there¦<|im_end|>¦\n¦<|im_start|>¦assistant¦\n
        + Hello¦ you¦<|im_end|>
    """)


@pytest.mark.parametrize("place", [1, 2])
def test_a_later_system_message_is_refused(place: int) -> None:
    messages = ["u: x", "a: y", "u: z", "a: Hi"]
    messages.insert(place, "s: Be brief.")
    found = fault(family_tokenizer(QWEN25, OURS), conversation(*messages))
    assert found.reason == "template refuses the row" and "comes first or not at all" in str(found)


@pytest.mark.parametrize(
    ("family", "template", "message", "trained"),
    [
        (QWEN25, OURS, ANSWER | THOUGHT, "\n</think>\n\nHi<|im_end|>"),
        (QWEN25, OURS, {**ANSWER, "content": "<think>\nthe sky\n</think>\n\nHi"}, "\n</think>\n\nHi<|im_end|>"),
        (QWEN25, OURS, ANSWER, "Hi<|im_end|>"),
        (QWEN3, None, ANSWER | THOUGHT, "\n</think>\n\nHi<|im_end|>"),
        (QWEN3, None, {**ANSWER, "content": "<think>the sky</think>Hi"}, "\n</think>\n\nHi<|im_end|>"),
        (QWEN3, None, ANSWER, "<think>\n\n</think>\n\nHi<|im_end|>"),
        (DEEPSEEK_R1, None, {**ANSWER, "content": "<think>\nthe sky\n</think>\n\nHi"}, "\n</think>\n\nHi<|end|>"),
        (DEEPSEEK_R1, None, ANSWER | THOUGHT, "\n</think>\n\nHi<|end|>"),
        (QWEN3, None, {**ANSWER, "content": "<think>th</think>Hi"}, "\n</think>\n\nHi<|im_end|>"),
        (QWEN3, None, ANSWER | {"reasoning_content": "i"}, "\n</think>\n\nHi<|im_end|>"),
        (DEEPSEEK_R1, None, {**ANSWER, "content": "<think>think</think>Hi"}, "</think>Hi<|end|>"),
        (QWEN25, OURS, {**ANSWER, "content": "[THINK]the sky[/THINK]Hi"}, "[/THINK]Hi<|im_end|>"),
        (QWEN25, OURS, {**ANSWER, "content": "<reasoning>the sky</reasoning>Hi"}, "</reasoning>Hi<|im_end|>"),
        (
            QWEN25,
            OURS,
            {**ANSWER, "content": "<think>the sky</think>Hi<think>you</think>Bye"},
            "</think>Hi</think>Bye<|im_end|>",
        ),
    ],
)
def test_a_thought_is_given_and_its_end_and_the_answer_are_trained(
    family: Family, template: str | None, message: dict[str, Any], trained: str
) -> None:
    tokenizer = family_tokenizer(family, template)
    encoders = [ChatEncoder(tokenizer, plain=False, loss_on="assistant", loss_on_thoughts=on) for on in (True, False)]
    row = conversation("u: x", message)
    ((whole,),), ((without,),) = (encoder.encode([row]) for encoder in encoders)
    assert not isinstance(whole, BadExample) and not isinstance(without, BadExample)
    assert whole.input_ids.tolist() == without.input_ids.tolist()
    assert trained_text(tokenizer, without) == trained
    assert encoders[0].fingerprint != encoders[1].fingerprint


@pytest.mark.parametrize("answer", ["Hi", "<think>\n</think>Hi", "<plan>the sky</plan>Hi"])
def test_answers_without_a_thought_to_leave_out_are_counted(answer: str) -> None:
    encoder = ChatEncoder(family_tokenizer(QWEN25, OURS), plain=False, loss_on="assistant", loss_on_thoughts=False)
    rows = [conversation("u: x", f"a: {answer}"), conversation("u: x", ANSWER | THOUGHT, "u: y", f"a: {answer}")]
    notes = [documents[0].notes for documents in encoder.encode(rows) if not isinstance(documents, BadExample)]
    assert notes == [
        ("data.loss_on_thoughts=false leaves nothing out: no answer has a thought, such as <think>...</think>",),
        (),
    ]


@pytest.mark.parametrize("begun", ["<think>\nthe sky", "<think>", "\n<think> Hi"])
def test_a_thought_that_never_ends_is_refused_where_thoughts_are_not_trained(begun: str) -> None:
    encoder = ChatEncoder(family_tokenizer(QWEN25), plain=False, loss_on="assistant", loss_on_thoughts=False)
    (refused,) = encoder.encode([conversation("u: x", {**ANSWER, "content": begun})])
    assert isinstance(refused, BadExample) and "never ends it" in str(refused)
