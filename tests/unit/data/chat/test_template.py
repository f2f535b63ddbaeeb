"""What is trained of a turn as a template writes it, what a template passes over, and templates that are refused."""

from __future__ import annotations

import pytest
from chat_rows import call, conversation, documents, expected, fault, tokens, trained_text
from chat_templates import DEEPSEEK_R1, GEMMA, LLAMA3, MARKED_CHATML, PHI3, QWEN25, Family, family_tokenizer
from tiny_tokenizers import byte_level_bpe

from llmtrain.config.tokenizer import SpecialTokens
from llmtrain.data.chat.default_template import chat_template
from llmtrain.data.chat.encode import ChatEncoder
from llmtrain.data.chat.opening import EMPTY_THOUGHT
from llmtrain.data.chat.template import DEVELOPER_AS_SYSTEM, OPENING_ANSWER
from llmtrain.data.formats.instructions import Example
from llmtrain.data.formats.messages import Message
from llmtrain.data.rendering import prompt_ids

CHAT = ("u: Hi there", "a: Hello you", "u: Bye", "a: Bye!")
ANSWER = {"role": "assistant", "content": "Hi"}


def test_generation_blocks_train_what_transformers_marks():
    tokenizer = family_tokenizer(MARKED_CHATML)
    row = conversation("s: Be brief.", *CHAT)
    (document,) = documents(tokenizer, row)
    marked = tokenizer.apply_chat_template(list(row.messages), return_assistant_tokens_mask=True)
    length = len(document.input_ids)
    assert document.trained.tolist() == [bool(mark) for mark in marked["assistant_masks"][:length]]
    assert not any(marked["assistant_masks"][length:])


TURN = '{{- "<|im_start|>" + m.role + "\\n" + m.content + "<|im_end|>\\n" }}'
PROMPT = '{%- if add_generation_prompt %}{{- "<|im_start|>assistant\\n" }}{%- endif %}'


def chatml(answer: str) -> str:
    """ChatML whose assistant turns are written by `answer`."""
    turn = f'{{%- if m.role == "assistant" %}}{answer}{{%- else %}}{TURN}{{%- endif %}}'
    return f"{{%- for m in messages %}}{turn}{{%- endfor %}}{PROMPT}"


@pytest.mark.parametrize(
    "answer",
    [
        '{{- "<|im_start|>assistant\\n" }}{% generation %}{{- m.content }}{% endgeneration %}{{- "<|im_end|>\\n" }}',
        '{% generation %}{{- "<|im_start|>assistant\\n" + m.content + "<|im_end|>\\n" }}{% endgeneration %}',
        '{{- "<|im_start|>" }}{% generation %}{{- "assistant\\n" + m.content + "<|im_end|>" }}{% endgeneration %}',
    ],
    ids=["ends before the end of turn", "holds the whole turn", "holds half of the header"],
)
def test_generation_blocks_are_extended_to_answer_and_end_of_turn(answer: str) -> None:
    tokenizer = family_tokenizer(MARKED_CHATML, chatml(answer))
    (document,) = documents(tokenizer, conversation(*CHAT))
    assert trained_text(tokenizer, document) == "Hello you<|im_end|>Bye!<|im_end|>"


def test_a_generation_block_may_leave_out_the_start_of_an_answer():
    answer = '{{- "<|im_start|>assistant\\nthink" }}{% generation %}{{- m.content + "<|im_end|>" }}{% endgeneration %}'
    tokenizer = family_tokenizer(MARKED_CHATML, chatml(answer))
    (document,) = documents(tokenizer, conversation("u: Hi", "a:  Hello"))
    assert tokens(tokenizer, document) == expected(r"""
        - <|im_start|>¦user¦\n¦Hi¦<|im_end|>¦\n¦<|im_start|>¦assistant¦\n¦think
        +  Hello¦<|im_end|>
    """)


def test_what_the_template_refuses_is_reported_in_its_words():
    tokenizer = family_tokenizer(GEMMA)
    found = fault(tokenizer, conversation("s: Be brief.", *CHAT))
    assert found.reason == "template refuses the row" and "no system role here" in str(found)
    assert "roles must alternate" in str(fault(tokenizer, conversation("u: x", "u: y", "a: Hi")))


def test_a_fault_within_the_template_is_a_fault_of_the_row():
    found = fault(family_tokenizer(PHI3), conversation("u: x", {"role": "assistant", "content": None}))
    assert found.reason == "template refuses the row" and "content" in str(found)


@pytest.mark.parametrize(
    ("family", "row", "part"),
    [
        (GEMMA, conversation("u: x", call("add")), "tool calls"),
        (GEMMA, conversation(*CHAT, tools=[{"type": "function", "function": {"name": "add"}}]), "tools"),
        (LLAMA3, conversation("u: x", call("add", x=1) | {"content": "Hi"}), "text beside tool calls"),
        (LLAMA3, conversation("u: x", {**ANSWER, "reasoning": "y"}), "reasoning"),
        (DEEPSEEK_R1, conversation("u: x", "a: <think>\ny", "t: x", "a: <think>\nz"), "tool messages"),
    ],
)
def test_what_the_template_would_pass_over_is_named(family: Family, row: Example, part: str) -> None:
    assert fault(family_tokenizer(family), row).reason == f"template leaves out {part}"


SYSTEM_IN_NEXT = """{%- set first = messages[0].content + '\n' if messages and messages[0].role == 'system' else '' -%}
{%- for m in messages if m.role != 'system' -%}
<|im_start|>{{ m.role }}
{{ (first if loop.first else '') + m.content }}<|im_end|>
{% endfor -%}{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""  # as Llama 2's


def test_a_system_message_that_would_be_trained_with_the_answer_is_named() -> None:
    tokenizer = family_tokenizer(MARKED_CHATML, SYSTEM_IN_NEXT)
    assert (
        fault(tokenizer, conversation("s: x", "a: y")).reason == "template leaves out system messages from the prompt"
    )
    (document,) = documents(tokenizer, conversation("s: x", "u: y", "a: z"))
    assert trained_text(tokenizer, document) == "z<|im_end|>"


DEVELOPER = {"role": "developer", "content": "Be brief."}
ANY_ROLE = "{%- for m in messages %}" + TURN + "{%- endfor %}" + PROMPT
OF_A_USER = (
    "{%- for m in messages %}{%- if m.role in ['system', 'assistant'] %}" + TURN + "{%- else %}"
    '{{- "<|im_start|>user\\n" + m.content + "<|im_end|>\\n" }}{%- endif %}{%- endfor %}' + PROMPT
)


@pytest.mark.parametrize(
    ("family", "template", "role"),
    [
        (QWEN25, None, "system"),  # writes nothing of it
        (QWEN25, chat_template(SpecialTokens()), "system"),  # refuses it
        (QWEN25, OF_A_USER, "system"),  # its `else` is a user's turn
        (QWEN25, ANY_ROLE, "developer"),
        (LLAMA3, None, "developer"),
    ],
)
def test_a_developers_message_is_a_system_message_where_the_template_does_not_know_it(
    family: Family, template: str | None, role: str
) -> None:
    tokenizer = family_tokenizer(family, template)
    (found,), (wanted,) = (
        documents(tokenizer, conversation({**DEVELOPER, "role": each}, *CHAT)) for each in ("developer", "system")
    )
    is_system = role == "system"
    assert (found.input_ids.tolist() == wanted.input_ids.tolist()) is is_system
    assert found.notes == ((DEVELOPER_AS_SYSTEM,) if is_system else ())
    asked = prompt_ids(tokenizer, [DEVELOPER, {"role": "user", "content": "Hi there"}])
    assert found.input_ids[: len(asked)].tolist() == asked and "Be brief." in tokenizer.decode(asked)


def test_a_developers_message_is_refused_where_a_system_message_is() -> None:
    found = fault(family_tokenizer(GEMMA), conversation(DEVELOPER, *CHAT))
    assert found.reason == "template refuses the row"
    ours = family_tokenizer(QWEN25, chat_template(SpecialTokens()))
    assert "a system message comes first" in str(fault(ours, conversation("s: x", DEVELOPER, *CHAT)))


def test_an_answer_that_nothing_comes_before_has_no_prompt():
    assert fault(family_tokenizer(LLAMA3), conversation("a: Hi", "u: x")).reason == "no prompt"


def test_an_answer_that_nothing_comes_before_is_given_to_those_that_follow():
    tokenizer = family_tokenizer(LLAMA3)
    (document,) = documents(tokenizer, conversation("a: Hi", "u: x", "a: y"))
    assert "assistant<|end_header_id|>\n\nHi<|eot_id|>" in tokenizer.decode(document.input_ids)
    assert trained_text(tokenizer, document) == "y<|eot_id|>"
    assert document.notes == (OPENING_ANSWER,)


def test_an_answer_that_the_template_leaves_open_is_named():
    answer = '{{- "<|im_start|>assistant\\n" + m.content + ("" if m.content == "Hi" else "<|im_end|>\\n") }}'
    tokenizer = family_tokenizer(QWEN25, chatml(answer))
    found = fault(tokenizer, conversation("u: x", "a: Hi"))
    assert found.reason == "untrained stop token" and "message 1 does not end with <|im_end|>" in str(found)


@pytest.mark.parametrize(
    ("message", "trained", "notes"),
    [
        (ANSWER, "\n</think>\n\nHi<|end|>", (EMPTY_THOUGHT,)),
        ({**ANSWER, "reasoning_content": "the sky"}, "the sky\n</think>\n\nHi<|end|>", ()),
        ({**ANSWER, "thinking": "\nthe sky\n"}, "the sky\n</think>\n\nHi<|end|>", ()),
        ({**ANSWER, "content": "<think>\nthe sky\n</think>\n\nHi"}, "the sky\n</think>\n\nHi<|end|>", ()),
    ],
    ids=["none", "reasoning_content", "thinking", "within the text"],
)
def test_a_thought_goes_on_from_a_prompt_that_opens_it(message: Message, trained: str, notes: tuple[str, ...]) -> None:
    tokenizer = family_tokenizer(DEEPSEEK_R1)
    row = conversation("u: x", message)
    (document,) = documents(tokenizer, row)
    asked = tokenizer.apply_chat_template([row.messages[0]], add_generation_prompt=True, return_dict=False)
    assert document.input_ids.tolist()[: len(asked)] == asked
    assert trained_text(tokenizer, document) == trained and document.notes == notes


def test_a_thought_that_is_never_closed_is_named():
    found = fault(family_tokenizer(DEEPSEEK_R1), conversation("u: x", "a: y <think> z"))
    assert found.reason == "answer does not follow its prompt" and "begin its content with <think>" in str(found)


THINKING = """\
{%- for m in messages %}
    {%- if m.role == "assistant" %}
        {%- set thought = "\\n" + m.reasoning_content + "\\n" if m.reasoning_content else "" %}
        {{- "<|im_start|>assistant\\n<think>" + thought + "</think>" + m.content + "<|im_end|>\\n" }}
    {%- else %}
        {{- "<|im_start|>" + m.role + "\\n" + m.content + "<|im_end|>\\n" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n<think>\\n" }}
{%- endif %}
"""


def test_a_thought_that_the_prompt_opens_is_trained_from_there():
    tokenizer = family_tokenizer(QWEN25, THINKING)
    (document,) = documents(tokenizer, conversation("u: x", {**ANSWER, "reasoning_content": "y"}))
    assert trained_text(tokenizer, document) == "y\n</think>Hi<|im_end|>"


def test_an_answer_without_a_thought_closes_the_one_that_its_prompt_opens():
    tokenizer = family_tokenizer(QWEN25, THINKING)
    (document,) = documents(tokenizer, conversation("u: x", ANSWER))
    assert trained_text(tokenizer, document) == "</think>Hi<|im_end|>"
    assert document.notes == (EMPTY_THOUGHT,)


def test_an_answer_ends_with_the_last_token_that_stays_after_it():
    tokenizer = family_tokenizer(
        MARKED_CHATML, chatml('{{- "<|im_start|>assistant\\n" + m.content + "<|endoftext|><|im_end|>\\n" }}')
    )
    encoder = ChatEncoder(tokenizer, plain=False, loss_on="assistant")
    assert tokenizer.convert_ids_to_tokens(list(encoder.end_of_turn_ids)) == ["<|im_end|>", "<|endoftext|>"]
    (document,) = documents(tokenizer, conversation(*CHAT))
    assert trained_text(tokenizer, document) == "Hello you<|endoftext|><|im_end|>Bye!<|endoftext|><|im_end|>"


def test_a_token_that_ends_only_the_whole_chat_is_not_trained():
    answer = '{{- "<|im_start|>assistant\\n" + m.content + "<|im_end|>" }}'
    ending = "{%- if not add_generation_prompt %}{{- eos_token }}{%- endif %}"
    tokenizer = family_tokenizer(MARKED_CHATML, chatml(answer) + ending)
    (document,) = documents(tokenizer, conversation(*CHAT))
    assert trained_text(tokenizer, document) == "Hello you<|im_end|>Bye!<|im_end|>"


def test_a_token_that_ends_calls_only_is_one_to_stop_on():
    said = 'm.tool_calls[0].function.name + "<|endoftext|>" if m.tool_calls else m.content + "<|im_end|>"'
    answer = f'{{{{- "<|im_start|>assistant\\n" + ({said}) }}}}'
    tokenizer = family_tokenizer(QWEN25, chatml(answer))
    encoder = ChatEncoder(tokenizer, plain=False, loss_on="assistant")
    assert tokenizer.convert_ids_to_tokens(list(encoder.end_of_turn_ids)) == ["<|im_end|>", "<|endoftext|>"]
    (document,) = documents(tokenizer, conversation("u: x", call("add")))
    assert trained_text(tokenizer, document) == "add<|endoftext|>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("\n{%- for m in messages %}\n{{ m.content }", r"not Jinja: line 3: "),
        ("{{- m|nonsense }}", "not Jinja: line 1: .*nonsense"),
        ('{{- raise_exception("not today") }}', "refuses a plain chat: not today"),
        ('{{- messages[0].content + "<|im_end|>" }}', "leaves out the assistant's text"),
        ("{%- for m in messages %}{{- m.content }}{%- endfor %}", "no token of the tokenizer after an answer"),
        (f"{{%- for m in messages %}}{TURN}{{%- endfor %}}", "ignores add_generation_prompt"),
        (MARKED_CHATML.template.replace("<|im_start|>assistant\\n", "Say: "), "asks for an answer with 'Say: '"),
    ],
)
def test_a_template_that_cannot_be_trained_is_refused_in_one_line(template: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        ChatEncoder(family_tokenizer(QWEN25, template), plain=False, loss_on="assistant")
    assert "\n" not in str(raised.value)


def test_a_tokenizer_without_a_template_is_refused():
    with pytest.raises(ValueError, match=r"no chat template; set data\.chat_template=ours"):
        ChatEncoder(byte_level_bpe(), plain=False, loss_on="assistant")


NO_THINK = """\
{%- for m in messages %}
    {%- if m.role == "assistant" %}
        {%- set thought = m.reasoning_content if m.reasoning_content else "" %}
        {{- "<|im_start|>assistant\\n<think>\\n" + thought + "\\n</think>\\n\\n" + m.content + "<|im_end|>\\n" }}
    {%- else %}
        {{- "<|im_start|>" + m.role + "\\n" + m.content + "<|im_end|>\\n" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n<think>\\n" + ("" if enable_thinking else "\\n</think>\\n\\n") }}
{%- endif %}
"""


def test_a_thought_after_a_prompt_that_has_ended_one_is_refused_with_what_to_do():
    tokenizer = family_tokenizer(MARKED_CHATML, NO_THINK)
    assert documents(tokenizer, conversation("u: x", "a: Hi"))
    found = fault(tokenizer, conversation("u: x", {**ANSWER, "reasoning_content": "the sky"}))
    assert found.reason == "thought after an ended one"
    assert "take the thought out, or let the prompt leave it open by data.template_kwargs (enable_thinking)" in str(
        found
    )


def test_what_follows_the_last_answer_is_left_out_and_counted():
    tokenizer = family_tokenizer(QWEN25)
    (document,) = documents(tokenizer, conversation("u: x", "a: Hi", "u: and then?"))
    assert document.notes == ("messages after its last answer, left out",)
    assert "and then" not in tokenizer.decode(document.input_ids)
    (document,) = documents(tokenizer, conversation("u: x", "a: Hi"))
    assert document.notes == ()
