"""Real chat templates and kinds of rows: each answer is trained after the ids of generation, or the row is named."""

from __future__ import annotations

from collections import Counter

import pytest
from chat_rows import conversation, documents, trained_text
from template_kinds import ANSWER, KINDS, LATER, RESULT, TEMPLATES, calls, named, opened, outcome

from llmtrain.data.formats.messages import Conversation

pytest.importorskip("trl", reason="the chat templates of many families come with trl")


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_kind_of_row_is_trained_as_generation_sees_it_or_refused_by_name(name: str) -> None:
    outcomes = {kind: outcome(name, row) for kind, row in KINDS.items()}
    wrong = {kind: found for kind, found in outcomes.items() if found.split(":")[0] not in ("trained", "refused")}
    assert not wrong
    plain = ("one turn", "two turns", "three turns", "a question last", "other scripts")
    assert {kind: outcomes[kind] for kind in plain} == dict.fromkeys(plain, "trained")


TRAINED = {
    "glm4moe": 38,
    "glm4 (own layout)": 31,
    "mistral_v3 (own layout)": 24,
    "deepseek_r1_distill": 22,
    "deepseekv3": 23,
    "nemotron_3_nano": 38,
    "nemotron_3_super": 38,
    "nemotron_3_ultra": 38,
    "idefics3": 19,
    "smolvlm": 19,
    "llava_next": 19,
    "qwen3": 38,
    "gptoss": 35,
}


@pytest.mark.parametrize(("name", "count"), TRAINED.items())
def test_families_that_were_refused_whole_are_trained(name: str, count: int) -> None:
    assert Counter(outcome(name, row) for row in KINDS.values())["trained"] == count


@pytest.mark.parametrize(
    ("name", "kind", "part"),
    [
        ("qwen3_vl", "a later system message", "system messages"),
        ("qwen3_vl", "two system messages", "system messages"),
        ("gptoss", "a later system message", "system messages"),
        ("gptoss", "two calls", "tool calls"),
        ("smollm3 (own layout)", "two system messages", "system messages"),
        ("smollm3 (own layout)", "a call", "tool calls"),
        ("deepseek_r1_distill", "two system messages", "system messages"),
        ("glm4 (own layout)", "text and a call", "text beside tool calls"),
        ("deepseekv3", "tools that go unused", "tools"),
        ("llama3", "a thought", "reasoning"),
    ],
)
def test_what_a_template_drops_of_a_row_is_named(name: str, kind: str, part: str) -> None:
    assert outcome(name, KINDS[kind]).startswith(f"refused: template leaves out {part}: rows.jsonl:7: ")


CALL = named("sky", city="Paris", unit=None)


@pytest.mark.parametrize(
    "row",
    [
        conversation("u: Hi", calls(CALL), RESULT, ANSWER),
        conversation("u: Hi", calls(CALL, named("sun", 2, days=[1, 2.5])), RESULT, RESULT, ANSWER),
        conversation("u: Hi", calls(CALL, content="Looking"), RESULT, ANSWER, "u: Bye", LATER),
    ],
    ids=["one", "two", "text and one"],
)
def test_deepseek_calls_are_json_text_as_its_template_wants_them(row: Conversation) -> None:
    assert outcome("deepseekv3", row) == "trained"


@pytest.mark.parametrize("arguments", ['{"city":"Paris"}', '{"city": "Paris", "unit": null}', '{"city": "\\u00c9"}'])
def test_a_rows_own_json_text_is_written_as_it_is(arguments: str) -> None:
    made = {"id": "abcdef001", "type": "function", "function": {"name": "sky", "arguments": arguments}}
    tokenizer, _ = opened("deepseekv3")
    document = documents(tokenizer, conversation("u: Hi", calls(made)))[0]
    assert f"sky\n```json\n{arguments}\n```" in trained_text(tokenizer, document)


def test_a_call_with_nulls_has_the_ids_of_chat_time_on_every_template_that_writes_calls() -> None:
    kinds = ("a call with a null", "a schema with a null")
    trained = {name for name in TEMPLATES for kind in kinds if outcome(name, KINDS[kind]) == "trained"}
    assert len(trained) == 29
