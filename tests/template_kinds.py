"""Kinds of rows that people tune on, and the chat templates of many families: what each becomes of each.

The templates are those that TRL ships for its own tests, each with a tokenizer that has its tokens, and our layouts of
families that it lacks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from chat_rows import call, conversation
from chat_templates import (
    DEEPSEEK_R1,
    GLM4,
    MISTRAL_V3,
    SMOLLM3,
    Family,
    family_tokenizer,
)
from transformers import PreTrainedTokenizerFast

from llmtrain.data.chat.encode import BadExample, ChatEncoder, Encoded
from llmtrain.data.formats.messages import Conversation

SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "description": "where"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "sky", "description": "tells", "parameters": SCHEMA}}
WITH_DEFAULT = {
    "type": "function",
    "function": {
        "name": "sky",
        "description": "tells",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "where", "default": None}},
            "required": [],
        },
    },
}
RESULT = {"role": "tool", "name": "sky", "tool_call_id": "abcdef001", "content": "blueish"}
OTHER_RESULT = {"role": "tool", "name": "sun", "tool_call_id": "abcdef002", "content": "reddish"}


def named(name: str, number: int = 1, /, **arguments: Any) -> dict[str, Any]:
    """A tool call with an id."""
    (made,) = call(name, **arguments)["tool_calls"]
    return {"id": f"abcdef00{number}", **made}


def calls(*made: Mapping[str, Any], content: str = "", **others: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(made), **others}


PARIS = named("sky", city="Paris")
LYON = named("sun", 2, city="Lyon")
ANSWER = {"role": "assistant", "content": "Hello you"}
LATER = {"role": "assistant", "content": "Bye you"}

KINDS: dict[str, Conversation] = {
    "one turn": conversation("u: Hi there", "a: Hello you"),
    "two turns": conversation("u: Hi there", "a: Hello you", "u: Bye", "a: Bye you"),
    "three turns": conversation("u: Hi there", "a: Hello you", "u: Bye", "a: Bye you", "u: xx", "a: yy"),
    "a system message": conversation("s: Be brief.", "u: Hi there", "a: Hello you"),
    "a system message and two turns": conversation("s: Be brief.", "u: Hi", "a: Hello you", "u: Bye", "a: Bye you"),
    "a later system message": conversation("u: Hi", "a: Hello you", "s: Be brief.", "u: Bye", "a: Bye you"),
    "two system messages": conversation("s: Be brief.", "s: Be kind.", "u: Hi", "a: Hello you"),
    "a developer message": conversation({"role": "developer", "content": "Be brief."}, "u: Hi", "a: Hello you"),
    "an answer first": conversation("a: Welcome", "u: Hi", "a: Hello you"),
    "system, then an answer": conversation("s: Be brief.", "a: Welcome", "u: Hi", "a: Hello you"),
    "two questions in a row": conversation("u: Hi", "u: there", "a: Hello you"),
    "two answers in a row": conversation("u: Hi", "a: Hello you", "a: Bye you"),
    "a question last": conversation("u: Hi", "a: Hello you", "u: Bye"),
    "a call": conversation("u: Hi", calls(PARIS), tools=[TOOL]),
    "a call and its result": conversation("u: Hi", calls(PARIS), RESULT, ANSWER, tools=[TOOL]),
    "a call, a result, another question": conversation(
        "u: Hi", calls(PARIS), RESULT, ANSWER, "u: Bye", LATER, tools=[TOOL]
    ),
    "a system message and a call": conversation("s: Be brief.", "u: Hi", calls(PARIS), RESULT, ANSWER, tools=[TOOL]),
    "text and a call": conversation("u: Hi", calls(PARIS, content="Looking"), RESULT, ANSWER, tools=[TOOL]),
    "two calls": conversation("u: Hi", calls(PARIS, LYON), RESULT, OTHER_RESULT, ANSWER, tools=[TOOL]),
    "two calls, one after the other": conversation(
        "u: Hi", calls(PARIS), RESULT, calls(LYON), OTHER_RESULT, ANSWER, tools=[TOOL]
    ),
    "a call without arguments": conversation("u: Hi", calls(named("sky")), RESULT, ANSWER, tools=[TOOL]),
    "a call with a null": conversation(
        "u: Hi", calls(named("sky", city="Paris", unit=None)), RESULT, ANSWER, tools=[TOOL]
    ),
    "a call with numbers and lists": conversation(
        "u: Hi", calls(named("sky", city="Paris", days=[1, 2.5], all=True, at={"x": 1})), RESULT, ANSWER, tools=[TOOL]
    ),
    "tools that go unused": conversation("u: Hi", "a: Hello you", tools=[TOOL]),
    "a schema with a null": conversation("u: Hi", calls(PARIS), RESULT, ANSWER, tools=[WITH_DEFAULT]),
    "a thought": conversation("u: Hi", {**ANSWER, "reasoning_content": "Greets"}),
    "two thoughts": conversation(
        "u: Hi", {**ANSWER, "reasoning_content": "Greets"}, "u: Bye", {**LATER, "reasoning_content": "Leaves"}
    ),
    "a thought, then none": conversation("u: Hi", {**ANSWER, "reasoning_content": "Greets"}, "u: Bye", LATER),
    "none, then a thought": conversation("u: Hi", ANSWER, "u: Bye", {**LATER, "reasoning_content": "Leaves"}),
    "a thought and a call": conversation(
        "u: Hi",
        calls(PARIS, reasoning_content="Looks"),
        RESULT,
        {**ANSWER, "reasoning_content": "Greets"},
        tools=[TOOL],
    ),
    "a thought within the text": conversation("u: Hi", "a: <think>\nGreets\n</think>\n\nHello you"),
    "two thoughts within the text": conversation(
        "u: Hi", "a: <think>\nGreets\n</think>\n\nHello you", "u: Bye", "a: <think>\nLeaves\n</think>\n\nBye you"
    ),
    "white space around": conversation("s:  Be brief. ", "u:  Hi \n", "a: \n Hello you \n"),
    "an empty system message": conversation("s: ", "u: Hi", "a: Hello you"),
    "an empty question": conversation("u: Hi", "a: Hello you", "u: ", "a: Bye you"),
    "other scripts": conversation("u: 日本語 🙂", "a: e\u0301 \ufb01"),
    "JSON as a result": conversation(
        "u: Hi", calls(PARIS), {**RESULT, "content": '{"sky": "blueish"}'}, ANSWER, tools=[TOOL]
    ),
    "a call in an earlier turn and thoughts": conversation(
        "u: Hi", calls(PARIS, reasoning_content="Looks"), RESULT, ANSWER, "u: Bye",
        {**LATER, "reasoning_content": "Leaves"}, tools=[TOOL],
    ),
}  # fmt: skip

TOKENS = re.compile(
    r"<[|\uff5c][^<>\s'\"|\uff5c]+[|\uff5c]>|<\|\w+>|<\w+\|>|\[/?[A-Z_]+\]|</?(?:think|tool_call|tool_response|s|turn)>"
    r"|<(?:start|end)_of_(?:turn|utterance|sentence)>|<end_of_utterance>|<bos>|<eos>|</s>"
    r"|\[gMASK\]|<sop>"
)
BOS = {"gemma": "<bos>", "diffusion": "<bos>", "llama3": "<|begin_of_text|>", "lfm2": "<|startoftext|>"}
EOS = {
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "deepseek": "<\uff5cend\u2581of\u2581sentence\uff5c>", "gemma4": "<turn|>", "diffusion": "<turn|>",
    "gemma": "<eos>", "gptoss": "<|return|>", "idefics": "<end_of_utterance>", "smolvlm": "<end_of_utterance>",
    "llama3": "<|eot_id|>", "glm4": "<|endoftext|>", "phi": "<|endoftext|>", "llava": "</s>", "muse": "<|eom|>",
}  # fmt: skip


def _by_prefix(table: Mapping[str, str], name: str) -> str | None:
    return next((table[prefix] for prefix in sorted(table, key=len, reverse=True) if name.startswith(prefix)), None)


def _shipped() -> dict[str, Family]:
    spec = find_spec("trl")
    if spec is None or spec.origin is None:
        return {}
    found = {}
    for path in sorted((Path(spec.origin).parent / "chat_templates").glob("*.jinja")):
        if "_training" in path.stem:
            continue
        source = path.read_text(encoding="utf-8")
        eos, bos = _by_prefix(EOS, path.stem) or "<|im_end|>", _by_prefix(BOS, path.stem)
        written = dict.fromkeys([*TOKENS.findall(source), eos, *([bos] if bos else [])])
        plain = tuple(t for t in written if re.fullmatch(r"</?(think|tool_call|tool_response)>", t))
        special = tuple(t for t in written if t not in plain)
        found[path.stem] = Family(template=source, special=special, bos=bos, eos=eos, plain=plain)
    return found


OWN = {"glm4 (own layout)": GLM4, "mistral_v3 (own layout)": MISTRAL_V3, "smollm3 (own layout)": SMOLLM3}
TEMPLATES: dict[str, Family] = {**_shipped(), **OWN, "deepseek_r1 (own layout)": DEEPSEEK_R1}


@cache
def opened(name: str) -> tuple[PreTrainedTokenizerFast, ChatEncoder | str]:
    """A template's tokenizer and encoder, or why it has none."""
    tokenizer = family_tokenizer(TEMPLATES[name])
    try:
        return tokenizer, ChatEncoder(tokenizer, plain=False, loss_on="assistant")
    except ValueError as error:
        return tokenizer, str(error)


def variants(messages: Sequence[Mapping[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The ways in which clients hand the same messages to a template: arguments as object or text, content or none."""
    for as_text in (False, True):
        for content in ("", None):
            yield [_written(message, as_text, content) for message in messages]
    yield [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


def _written(message: Mapping[str, Any], as_text: bool, content: str | None) -> dict[str, Any]:
    made = dict(message)
    if "tool_calls" in made:
        made["content"] = made["content"] or content
        if as_text:
            made["tool_calls"] = [
                {**c, "function": {**c["function"], "arguments": json.dumps(c["function"]["arguments"])}}
                for c in made["tool_calls"]
            ]
    return made


def generated_prompts(tokenizer: PreTrainedTokenizerFast, row: Conversation, index: int) -> set[tuple[int, ...]]:
    """What generation sees before the message at a place, from clients of every kind; none: the template refuses."""
    found = set()
    for messages in variants(row.messages[:index]):
        try:
            ids = tokenizer.apply_chat_template(
                messages, tools=list(row.tools) or None, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except Exception:  # whatever a template raises
            continue
        found.add(tuple(ids))
    return found


def wanted_of(message: Mapping[str, Any], *, with_thought: bool) -> Iterator[str]:
    """The texts of a message that must be seen."""
    *thought, content = re.split(r"</?think>", message["content"])
    yield from re.findall(r"\w+", content)
    if with_thought:
        yield from re.findall(r"\w+", " ".join(thought))
        yield from re.findall(r"\w+", message.get("reasoning_content", ""))
    for made in message.get("tool_calls", ()):
        yield made["function"]["name"]
        for key, value in made["function"]["arguments"].items():
            yield key
            yield from [value] if isinstance(value, str) else []


def stretches(document: Encoded) -> list[tuple[int, int]]:
    """Where trained stretches of a document begin and end."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], document.trained, [False]]).astype(int)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def as_the_template_knows_it(tokenizer: PreTrainedTokenizerFast, row: Conversation) -> Conversation:
    """A developer's message as a system message, where the template refuses it or writes nothing of it."""
    first, *others = row.messages
    if first["role"] != "developer":
        return row
    texts = []
    for messages in variants(row.messages[:2]):
        with suppress(Exception):  # whatever a template raises
            texts.append(str(tokenizer.apply_chat_template(messages, tokenize=False)))
    known = any(first["content"] in text for text in texts)
    return row if known else replace(row, messages=({**first, "role": "system"}, *others))


def outcome(name: str, row: Conversation) -> str:
    """`trained`, `refused: ...` or `WRONG: ...`."""
    tokenizer, encoder = opened(name)
    if isinstance(encoder, str):
        return f"refused whole: {encoder}"
    (found,) = encoder.encode([row])
    if isinstance(found, BadExample):
        return f"refused: {found.reason}: {found}"
    answers = [i for i, message in enumerate(row.messages) if message["role"] == "assistant"]
    pieces = [(d, *stretch) for d in found for stretch in stretches(d)]
    by_prompt = {tuple(d.input_ids[:start].tolist()): (d, start, end) for d, start, end in pieces}
    left = set(by_prompt)
    row = as_the_template_knows_it(tokenizer, row)
    for index in answers:
        seen = generated_prompts(tokenizer, row, index) & by_prompt.keys()
        if not seen:
            if index == 0 or all(m["role"] == "system" for m in row.messages[:index]):
                continue  # an opening answer is context where the template can't be asked for it
            return f"WRONG: message {index + 1} is not trained after what generation sees"
        (prompt,) = seen
        document, start, end = by_prompt[prompt]
        left.discard(prompt)
        answer = tokenizer.decode(document.input_ids[start:end])
        before = tokenizer.decode(document.input_ids[:start])
        if int(document.input_ids[end - 1]) not in encoder.end_of_turn_ids:
            return f"WRONG: message {index + 1} ends with {answer[-20:]!r}"
        lost = [w for w in wanted_of(row.messages[index], with_thought=True) if w not in answer]
        lost += [w for m in row.messages[:index] for w in wanted_of(m, with_thought=False) if w not in before]
        lost += [t["function"]["name"] for t in row.tools if t["function"]["name"] not in before]
        if lost:
            return f"WRONG: message {index + 1} lost {lost}"
    if left:
        return f"WRONG: {len(left)} more answers trained"
    return "trained"
