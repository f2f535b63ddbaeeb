"""Conversations in the layouts of well-known models, token by token: what is given and what is trained."""

from __future__ import annotations

import random

import pytest
from chat_rows import call, conversation, documents, expected, tokens, trained_text
from chat_templates import (
    DEEPSEEK_R1,
    FAMILIES,
    GEMMA,
    LLAMA3,
    MARKED_CHATML,
    MISTRAL,
    PHI3,
    QWEN3,
    QWEN25,
    SMOLLM2,
    SPOKEN,
    Family,
    family_tokenizer,
)
from tiny_tokenizers import metaspace_bpe
from tokenizers import normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llmtrain.data.chat.encode import BadExample, ChatEncoder, Encoded
from llmtrain.data.formats.messages import Conversation

CHAT = ("u: Hi there", "a: Hello you", "u: Bye", "a: Bye!")
SYSTEM_CHAT = ("s: Be brief.", *CHAT)
THOUGHT = ("u: Hi", "a: <think>\nthe sky\n</think>\n\nHello")

EXPECTED = [
    pytest.param(
        LLAMA3,
        SYSTEM_CHAT,
        [
            r"""
            - <|begin_of_text|>¦<|start_header_id|>¦system¦<|end_header_id|>¦\n\n¦Be¦ brief¦.¦<|eot_id|>
            - <|start_header_id|>¦user¦<|end_header_id|>¦\n\n¦Hi¦ there¦<|eot_id|>
            - <|start_header_id|>¦assistant¦<|end_header_id|>¦\n\n
            + Hello¦ you¦<|eot_id|>
            - <|start_header_id|>¦user¦<|end_header_id|>¦\n\n¦Bye¦<|eot_id|>
            - <|start_header_id|>¦assistant¦<|end_header_id|>¦\n\n
            + Bye¦!¦<|eot_id|>
            """
        ],
        id="Llama-3",
    ),
    pytest.param(
        QWEN25,
        CHAT,
        [
            r"""
            - <|im_start|>¦system¦\n¦You¦ are¦ a¦ helper¦.¦<|im_end|>¦\n
            - <|im_start|>¦user¦\n¦Hi¦ there¦<|im_end|>¦\n¦<|im_start|>¦assistant¦\n
            + Hello¦ you¦<|im_end|>
            - \n¦<|im_start|>¦user¦\n¦Bye¦<|im_end|>¦\n¦<|im_start|>¦assistant¦\n
            + Bye¦!¦<|im_end|>
            """
        ],
        id="Qwen2.5 with its own system prompt",
    ),
    pytest.param(
        QWEN25,
        SYSTEM_CHAT[:3],
        [
            r"""
            - <|im_start|>¦system¦\n¦Be¦ brief¦.¦<|im_end|>¦\n
            - <|im_start|>¦user¦\n¦Hi¦ there¦<|im_end|>¦\n¦<|im_start|>¦assistant¦\n
            + Hello¦ you¦<|im_end|>
            """
        ],
        id="Qwen2.5 with a system message",
    ),
    pytest.param(
        QWEN3,
        (*THOUGHT, "u: Bye", "a: Bye!"),
        [
            r"""
            - <|im_start|>¦user¦\n¦Hi¦<|im_end|>¦\n¦<|im_start|>¦assistant¦\n
            + <think>¦\n¦the¦ sky¦\n¦</think>¦\n\n¦Hello¦<|im_end|>
            """,
            r"""
            - <|im_start|>¦user¦\n¦Hi¦<|im_end|>¦\n¦<|im_start|>¦assistant¦\n¦Hello¦<|im_end|>¦\n
            - <|im_start|>¦user¦\n¦Bye¦<|im_end|>¦\n¦<|im_start|>¦assistant¦\n
            + <think>¦\n\n¦</think>¦\n\n¦Bye¦!¦<|im_end|>
            """,
        ],
        id="Qwen3, which drops earlier thoughts",
    ),
    pytest.param(
        GEMMA,
        CHAT,
        [
            r"""
            - <bos>¦<start_of_turn>¦user¦\n¦Hi¦ there¦<end_of_turn>¦\n¦<start_of_turn>¦model¦\n
            + Hello¦ you¦<end_of_turn>
            - \n¦<start_of_turn>¦user¦\n¦Bye¦<end_of_turn>¦\n¦<start_of_turn>¦model¦\n
            + Bye¦!¦<end_of_turn>
            """
        ],
        id="Gemma",
    ),
    pytest.param(
        MISTRAL,
        CHAT,
        [
            r"""
            - <s>¦[INST]¦ Hi¦ there¦[/INST]
            +  Hello¦ you¦</s>
            - [INST]¦ Bye¦[/INST]
            +  Bye¦!¦</s>
            """
        ],
        id="Mistral",
    ),
    pytest.param(
        MISTRAL,
        SYSTEM_CHAT,
        [
            r"""
            - <s>¦[INST]¦ Be¦ brief¦.¦\n\n¦Hi¦ there¦[/INST]
            +  Hello¦ you¦</s>
            """,
            r"""
            - <s>¦[INST]¦ Hi¦ there¦[/INST]¦ Hello¦ you¦</s>¦[INST]¦ Be¦ brief¦.¦\n\n¦Bye¦[/INST]
            +  Bye¦!¦</s>
            """,
        ],
        id="Mistral, whose system message moves to the last question",
    ),
    pytest.param(
        MARKED_CHATML,
        SYSTEM_CHAT,
        [
            r"""
            - <|im_start|>¦system¦\n¦Be¦ brief¦.¦<|im_end|>¦\n
            - <|im_start|>¦user¦\n¦Hi¦ there¦<|im_end|>¦\n¦<|im_start|>¦assistant¦\n
            + Hello¦ you¦<|im_end|>
            - \n¦<|im_start|>¦user¦\n¦Bye¦<|im_end|>¦\n¦<|im_start|>¦assistant¦\n
            + Bye¦!¦<|im_end|>
            """
        ],
        id="ChatML with generation blocks",
    ),
    pytest.param(
        SMOLLM2,
        CHAT[:2],
        [
            r"""
            - <|im_start|>¦system¦\n¦You¦ are¦ kind¦<|im_end|>¦\n
            - <|im_start|>¦user¦\n¦Hi¦ there¦<|im_end|>¦\n¦<|im_start|>¦assistant¦\n
            + Hello¦ you¦<|im_end|>
            """
        ],
        id="SmolLM2 with its own system prompt",
    ),
    pytest.param(
        PHI3,
        SYSTEM_CHAT,
        [
            r"""
            - <|system|>¦Be¦ brief¦.¦<|end|>¦<|user|>¦Hi¦ there¦<|end|>¦<|assistant|>
            + Hello¦ you¦<|end|>
            - <|user|>¦Bye¦<|end|>¦<|assistant|>
            + Bye¦!¦<|end|>
            """
        ],
        id="Phi-3, which ends a chat with EOS",
    ),
    pytest.param(
        DEEPSEEK_R1,
        ("s: Be brief.", *THOUGHT, "u: Bye", "a: <think>\nx\n</think>\n\nBye!"),
        [
            r"""
            - <|begin|>¦Be¦ brief¦.¦<|User|>¦Hi¦<|Assistant|>¦<think>¦\n
            + the¦ sky¦\n¦</think>¦\n\n¦Hello¦<|end|>
            """,
            r"""
            - <|begin|>¦Be¦ brief¦.¦<|User|>¦Hi¦<|Assistant|>¦\n\n¦Hello¦<|end|>
            - <|User|>¦Bye¦<|Assistant|>¦<think>¦\n
            + x¦\n¦</think>¦\n\n¦Bye¦!¦<|end|>
            """,
        ],
        id="DeepSeek-R1, whose prompt opens the thought",
    ),
]


def encoder(tokenizer: PreTrainedTokenizerFast) -> ChatEncoder:
    return ChatEncoder(tokenizer, plain=False, loss_on="assistant")


@pytest.mark.parametrize(("family", "messages", "wanted"), EXPECTED)
def test_every_token_is_given_or_trained_as_written_down(
    family: Family, messages: tuple[str, ...], wanted: list[str]
) -> None:
    tokenizer = family_tokenizer(family)
    found = documents(tokenizer, conversation(*messages))
    assert [tokens(tokenizer, document) for document in found] == [expected(text) for text in wanted]


@pytest.mark.parametrize(
    ("family", "stops"),
    [
        (LLAMA3, ["<|eot_id|>", "<|end_of_text|>"]),
        (QWEN25, ["<|im_end|>"]),
        (GEMMA, ["<end_of_turn>", "<eos>"]),
        (MISTRAL, ["</s>"]),
        (MARKED_CHATML, ["<|im_end|>", "<|endoftext|>"]),
        (PHI3, ["<|end|>", "<|endoftext|>"]),
        (DEEPSEEK_R1, ["<|end|>"]),
    ],
)
def test_generation_stops_on_the_end_of_turn_and_then_on_eos(family: Family, stops: list[str]) -> None:
    tokenizer = family_tokenizer(family)
    assert tokenizer.convert_ids_to_tokens(list(encoder(tokenizer).end_of_turn_ids)) == stops


TOOL = {"type": "function", "function": {"name": "add"}}
CALLS = ("u: x", call("add", x=1), "t: 2", "a: 2!")


def test_qwen_calls_are_trained_and_results_are_not():
    tokenizer = family_tokenizer(QWEN25)
    (document,) = documents(tokenizer, conversation(*CALLS, tools=[TOOL]))
    text = tokenizer.decode(document.input_ids)
    assert '<tools>\n{"type": "function", "function": {"name": "add"}}\n</tools>' in text
    assert "<tool_response>\n2\n</tool_response>" in text
    assert trained_text(tokenizer, document) == (
        '<tool_call>\n{"name": "add", "arguments": {"x": 1}}\n</tool_call><|im_end|>2!<|im_end|>'
    )


def test_llama_calls_are_trained_and_results_are_not():
    tokenizer = family_tokenizer(LLAMA3)
    (document,) = documents(tokenizer, conversation(*CALLS))
    assert '<|start_header_id|>ipython<|end_header_id|>\n\n"2"<|eot_id|>' in tokenizer.decode(document.input_ids)
    assert trained_text(tokenizer, document) == '{"name": "add", "parameters": {"x": 1}}<|eot_id|>2!<|eot_id|>'


def test_thoughts_between_calls_of_one_question_share_a_document():
    tokenizer = family_tokenizer(QWEN3)
    thinking = {"reasoning_content": "the sky"}
    messages = ("u: x", call("add", x=1) | thinking, "t: 2", {"role": "assistant", "content": "2!"} | thinking)
    (document,) = documents(tokenizer, conversation(*messages))
    assert trained_text(tokenizer, document) == (
        '<think>\nthe sky\n</think>\n\n<tool_call>\n{"name": "add", "arguments": {"x": 1}}\n</tool_call><|im_end|>'
        "<think>\nthe sky\n</think>\n\n2!<|im_end|>"
    )


def test_a_chat_that_ends_with_a_question_is_trained_up_to_its_last_answer():
    tokenizer = family_tokenizer(QWEN25)
    assert [d.input_ids.tolist() for d in documents(tokenizer, conversation(*CHAT, "u: x"))] == [
        d.input_ids.tolist() for d in documents(tokenizer, conversation(*CHAT))
    ]


SNIPPETS = ["Hi", " there", "\n", "\n\n", " ", "  ", "日本語", "🙂", "👩‍👩‍👧", "\u0301", "e\u0301", "\ufb01"]
SNIPPETS += ["<", "<|", ".", " .", "\t", "</think>", "é", "\u00bd", "x", "\u200f"]


def random_conversation(drawn: random.Random, family: Family) -> Conversation:
    """One to three questions and answers of odd text, which begins with white space now and then."""
    opening = "<think>\n" if family is DEEPSEEK_R1 else ""
    messages = []
    for _ in range(drawn.randint(1, 3)):
        question, answer = ("".join(drawn.choices(SNIPPETS, k=drawn.randint(1, 6))) for _ in range(2))
        messages += [f"u: {question}", f"a: {opening}{answer}"]
    return conversation(*messages)


def prompts(document: Encoded) -> list[tuple[int, ...]]:
    """The ids before each stretch of trained ones."""
    trained = document.trained
    starts = [i for i in range(1, len(trained)) if trained[i] and not trained[i - 1]]
    return [tuple(document.input_ids[:start].tolist()) for start in starts]


def check_prompts(tokenizer: PreTrainedTokenizerFast, family: Family) -> None:
    """Each answer follows the ids that generation would see, over conversations drawn with a fixed seed."""
    drawn = random.Random(0)
    rows = [random_conversation(drawn, family) for _ in range(60)]
    for row, found in zip(rows, encoder(tokenizer).encode(rows), strict=True):
        assert not isinstance(found, BadExample), found
        wanted = [
            tuple(tokenizer.apply_chat_template(list(row.messages[:i]), add_generation_prompt=True)["input_ids"])
            for i in range(1, len(row.messages), 2)
        ]
        assert sorted(prompt for document in found for prompt in prompts(document)) == sorted(wanted), row.messages


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_each_answer_follows_the_ids_that_generation_sees(family: Family) -> None:
    check_prompts(family_tokenizer(family), family)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_prompts_are_exact_where_the_tokenizer_composes_characters(family: Family) -> None:
    tokenizer = family_tokenizer(family)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    check_prompts(tokenizer, family)


def test_prompts_are_exact_where_a_break_is_cut_by_what_follows():
    tokenizer = family_tokenizer(LLAMA3)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # GPT-2's pieces
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in ("\n\n", "\n\nx")]
    assert ids[1][: len(ids[0])] != ids[0]  # so the test can fail
    check_prompts(tokenizer, LLAMA3)


def test_prompts_are_exact_where_the_tokenizer_marks_the_start_of_a_text():
    tokenizer = metaspace_bpe()
    tokenizer.chat_template = SPOKEN.template
    check_prompts(tokenizer, SPOKEN)


@pytest.mark.parametrize("family", [LLAMA3, GEMMA, PHI3], ids=["Llama-3", "Gemma", "Phi-3"])
def test_a_document_is_what_the_template_gives_up_to_its_last_answer(family: Family) -> None:
    tokenizer = family_tokenizer(family)
    drawn = random.Random(1)
    for _ in range(30):
        row = random_conversation(drawn, family)
        (document,) = documents(tokenizer, row)
        whole = tokenizer.apply_chat_template(list(row.messages))["input_ids"]
        assert document.input_ids.tolist() == whole[: len(document.input_ids)]
