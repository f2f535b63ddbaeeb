"""Replies of a finished model: where they end, what is shown of them, and what the next prompt holds."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from scripted_model import POSITIONS, scripted_tokenizer, write_scripted
from tiny_chat import CHATML
from transformers import PreTrainedTokenizerFast
from trl import chat_template_utils as trl_templates

from llmtrain.cli.main import main
from llmtrain.data.rendering import prompt_ids
from llmtrain.replies.reply import Reply, ReplyOptions, Speaker

THINKS = CHATML.replace("assistant\n'", "assistant\n<think>\n'")
QUESTION = [{"role": "user", "content": "2 + 2?"}]
GREEDY = ReplyOptions(max_new_tokens=40, temperature=0.0, top_p=1.0)
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "adds",
        "parameters": {"type": "object", "properties": {"x": {"type": "integer", "description": "a number"}}},
    },
}


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def speaker_of(
    folder: Path,
    answer: str,
    *,
    template: str = CHATML,
    special: tuple[str, ...] = ("<|im_start|>",),
    stop: str = "<|im_end|>",
    stops: tuple[str, ...] = ("<|im_end|>",),
    response_template: dict[str, Any] | None = None,
    tools: tuple[dict[str, Any], ...] = (),
) -> tuple[Speaker, list[int]]:
    """A model that answers QUESTION, and the ids of that prompt."""
    tokenizer = scripted_tokenizer(folder, special, template, stop)
    if response_template is not None:
        tokenizer.response_template = response_template
    prompt = prompt_ids(tokenizer, QUESTION, tools)
    stop_ids = [tokenizer.convert_tokens_to_ids(token) for token in stops]
    write_scripted(folder, tokenizer, {len(prompt): ids_of(tokenizer, answer)}, stop_ids)
    return Speaker.opened(str(folder)), prompt


def reply_of(folder: Path, answer: str, **settings: Any) -> Reply:
    speaker, prompt = speaker_of(folder, answer, **settings)
    (reply,) = speaker.replies([prompt], GREEDY, [settings.get("tools", ())])
    return reply


@pytest.mark.parametrize("end", ["<|im_end|>", "<|endoftext|>", "<|eom|>"])
@pytest.mark.parametrize("stops", [("<|endoftext|>", "<|eom|>"), ("<|im_end|>", "<|endoftext|>", "<|eom|>")])
def test_a_reply_ends_at_every_stop_of_the_model_and_of_the_template(
    tmp_path: Path, end: str, stops: tuple[str, ...]
) -> None:
    special = ("<|im_start|>", "<|endoftext|>", "<|eom|>")
    reply = reply_of(tmp_path, f"four{end}more", special=special, stops=stops)
    assert reply.stopped and reply.text == "four"
    assert reply.message == {"role": "assistant", "content": "four"}


@pytest.mark.parametrize("written", ["<|call|>add(2)<|/call|>", "<|think|>easy<|/think|>4", "a<|pad|>b"])
def test_without_a_response_template_special_tokens_are_shown(tmp_path: Path, written: str) -> None:
    special = ("<|im_start|>", "<|call|>", "<|/call|>", "<|think|>", "<|/think|>")
    reply = reply_of(tmp_path, f"{written}<|im_end|>", special=special)
    assert reply.text == reply.content == written and not reply.is_parsed and reply.problem is None


def test_a_thought_that_the_prompt_opens_is_part_of_the_reply(tmp_path: Path) -> None:
    reply = reply_of(tmp_path, "easy</think>4<|im_end|>", template=THINKS)
    assert reply.message["content"] == "<think>\neasy</think>4"


GEMMA = {
    "template": trl_templates.gemma4_v5_chat_template,
    "response_template": trl_templates.gemma4_template,
    "special": (
        "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>', "<|tool>", "<tool|>",
        "<|tool_response>", "<tool_response|>", "<|think|>",
    ),
    "stop": "<eos>",
    "stops": ("<eos>", "<turn|>", "<|tool_response>"),
}  # fmt: skip
LFM2 = {
    "template": trl_templates.lfm2_2_5_v2_chat_template,
    "response_template": trl_templates.lfm2_2_5_template,
    "special": ("<|im_start|>", "<|tool_call_start|>", "<|tool_call_end|>", "<|tool_list_start|>", "<|tool_list_end|>"),
}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"x": 2}}}


@pytest.mark.parametrize(
    ("family", "written", "message"),
    [
        (GEMMA, "<|channel>thought\nEasy.<channel|>4<turn|>", {"reasoning_content": "Easy.", "content": "4"}),
        (GEMMA, "4<turn|>", {"content": "4"}),
        (GEMMA, "<|tool_call>call:add{x:2}<tool_call|><|tool_response>", {"tool_calls": [CALL]}),
        (LFM2, "<|tool_call_start|>[add(x=2)]<|tool_call_end|><|im_end|>", {"tool_calls": [CALL]}),
        (LFM2, "4<|im_end|>", {"content": "4"}),
    ],
)
def test_a_reply_is_parsed_by_the_tokenizers_own_response_template(
    tmp_path: Path, family: dict[str, Any], written: str, message: dict[str, Any]
) -> None:
    reply = reply_of(tmp_path, written, tools=(TOOL,), **family)
    assert reply.message == {"role": "assistant", "content": "", **message}
    assert reply.problem is None and reply.is_parsed == (set(message) != {"content"})


@pytest.mark.parametrize(
    ("written", "reason"),
    [("<|tool_call>call:add{x:<tool_call|>", "JSON"), ("<|channel>thought\n<channel|>", "nothing")],
)
def test_what_a_response_template_does_not_fit_is_shown_as_written(tmp_path: Path, written: str, reason: str) -> None:
    reply = reply_of(tmp_path, f"{written}<turn|>", tools=(TOOL,), **GEMMA)
    assert reply.content == reply.text == written
    assert reply.problem is not None and reason.lower() in reply.problem.lower()


def test_the_next_prompt_has_the_reply_as_the_template_writes_it(tmp_path: Path) -> None:
    speaker, prompt = speaker_of(tmp_path, "<|channel>thought\nEasy.<channel|>4<turn|>", **GEMMA)
    (reply,) = speaker.replies([prompt], GREEDY)
    following = speaker.prompt_ids([*QUESTION, reply.message, *QUESTION])
    text = speaker.tokenizer.decode(following)
    assert "model\n4<turn|>" in text and "Easy." not in text


def test_a_chat_shows_the_parts_of_a_reply_and_a_raw_one_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, family in {"parsed": GEMMA, "raw": GEMMA | {"response_template": None}}.items():
        speaker_of(tmp_path / name, "<|channel>thought\nEasy one.<channel|>It is 4.<turn|>", **family)
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION[0]['content']}\n"))
        main(["chat", str(tmp_path / name), "--temperature", "0"])
    parsed, raw = capsys.readouterr().out.split("It is 4.\n")[:2]
    assert parsed.endswith("[reasoning_content] Easy one.\n[content] ")
    assert raw.endswith("<|channel>thought\nEasy one.<channel|>")


@pytest.mark.parametrize("response_template", [GEMMA["response_template"], {"fields": {"content": {"close": "("}}}, {}])
def test_a_chat_shows_what_the_response_template_does_not_fit_and_says_so(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    response_template: dict[str, Any],
) -> None:
    written = "<|tool_call>call:add{x:<tool_call|> more"
    speaker_of(tmp_path, f"{written}<turn|>", **GEMMA | {"response_template": response_template})
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION[0]['content']}\n"))
    main(["chat", str(tmp_path), "--temperature", "0"])
    said = capsys.readouterr()
    assert said.out.endswith(f"{written}\n") and "response template does not fit this answer" in said.err


def test_control_characters_of_a_reply_are_shown_not_obeyed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    speaker_of(tmp_path, "a\x1b[2Jb<|im_end|>")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION[0]['content']}\n"))
    main(["chat", str(tmp_path), "--temperature", "0"])
    assert capsys.readouterr().out.endswith("a\\x1b[2Jb\n")


def test_generated_rows_have_the_answer_and_the_message_it_is_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    speaker_of(tmp_path / "model", "<|channel>thought\nEasy.<channel|>4<turn|>", **GEMMA)
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": QUESTION[0]["content"]}))
    files = [str(tmp_path / name) for name in ("model", "prompts.jsonl", "out.jsonl")]
    main(["generate", *files, "--temperature", "0"])
    (row,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert row["response"] == "4"
    assert row["message"] == {"role": "assistant", "reasoning_content": "Easy.", "content": "4"}


@pytest.mark.parametrize("line_end", ["\u2028", "\x85", "\r", "\x0b", "\x1c"])
@pytest.mark.parametrize("name", ["prompts.jsonl", "prompts.txt"])
def test_only_line_feeds_end_a_prompt(tmp_path: Path, name: str, line_end: str) -> None:
    from llmtrain.cli.generate import read_prompts

    text = f"one{line_end}line"
    as_json = json.dumps({"prompt": text}, ensure_ascii=False)
    (tmp_path / name).write_bytes(f"{as_json if name.endswith('jsonl') else text}\r\n\n".encode())
    (row,) = read_prompts(tmp_path / name)
    assert row.fields["prompt"] == text and row.where.endswith(f"{name}:1")


@pytest.mark.parametrize("num_words", [200, POSITIONS, 3 * POSITIONS])
def test_a_prompt_that_leaves_no_room_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, num_words: int
) -> None:
    speaker_of(tmp_path / "model", "4<|im_end|>")
    text = "ab " * num_words
    (tmp_path / "prompts.txt").write_text(text)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{text}\n"))
    model, *files = (str(tmp_path / name) for name in ("model", "prompts.txt", "out.jsonl"))
    for arguments in (["generate", model, *files], ["chat", model], ["sample", model, text]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and error.count("\n") == 1 and f"{POSITIONS} positions" in error


def test_answers_end_at_the_models_last_position(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    speaker_of(tmp_path / "model", "a" * 10)
    (tmp_path / "prompts.txt").write_text(f"{QUESTION[0]['content']}\n{'ab ' * 60}\n")
    model, *files = (str(tmp_path / name) for name in ("model", "prompts.txt", "out.jsonl"))
    main(["generate", model, *files, "--temperature", "0", "--max-new-tokens", "300"])
    assert (
        f"2 of 2 answers were cut at --max-new-tokens or the model's {POSITIONS} positions" in capsys.readouterr().out
    )
    answers = [json.loads(line)["response"] for line in Path(files[1]).read_text().splitlines()]
    prompts = [Speaker.opened(model).prompt_ids([{"role": "user", "content": text}])
               for text in (QUESTION[0]["content"], "ab " * 60)]  # fmt: skip
    assert [len(answer) for answer in answers] == [POSITIONS - len(ids) for ids in prompts]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION[0]['content']}\n"))
    main(["chat", model, "--temperature", "0", "--max-new-tokens", "300"])
    assert f"cut at the model's {POSITIONS} positions" in capsys.readouterr().err
    main(["sample", model, "ab " * 60])
    assert f"cut at the model's {POSITIONS} positions" in capsys.readouterr().err


def test_a_response_that_a_row_has_is_replaced_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speaker_of(tmp_path / "model", "4<|im_end|>")
    row = {"prompt": QUESTION[0]["content"], "response": "5", "message": "x", "id": 7}
    (tmp_path / "prompts.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(row)}\n")
    files = [str(tmp_path / name) for name in ("model", "prompts.jsonl", "out.jsonl")]
    main(["generate", *files, "--temperature", "0", "--batch-size", "1"])
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows == [{"prompt": QUESTION[0]["content"], "id": 7, "response": "4"}] * 2
    assert "2 rows with a field message or response, which OUTPUT has from the model alone" in capsys.readouterr().out


NO_SYSTEM = CHATML.replace("{{ '<|im_start|>'", "{% if m['role'] != 'system' %}{{ '<|im_start|>'").replace(
    "{% endfor %}", "{% endif %}{% endfor %}", 1
)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "2 + 2?", "tools": [TOOL]}, "leaves out tools, which the model would never read"),
        ({"messages": [{"role": "system", "content": "x"}, *QUESTION]}, "leaves out system messages"),
        ({"prompt": "2 + 2?", "messages": QUESTION}, "holds both `prompt` and `messages`: leave one of them out"),
    ],
)
def test_what_a_model_would_never_read_of_a_prompt_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: dict[str, Any], message: str
) -> None:
    speaker_of(tmp_path / "model", "4<|im_end|>", template=NO_SYSTEM)
    (tmp_path / "prompts.jsonl").write_text(json.dumps(row))
    with pytest.raises(SystemExit):
        main(["generate", *(str(tmp_path / name) for name in ("model", "prompts.jsonl", "out.jsonl"))])
    error = capsys.readouterr().err
    assert "prompts.jsonl:1: " in error and message in error and error.count("\n") == 1


def test_a_system_prompt_that_a_chat_leaves_out_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speaker_of(tmp_path / "model", "4<|im_end|>", template=NO_SYSTEM)
    with pytest.raises(SystemExit):
        main(["chat", str(tmp_path / "model"), "--system", "Be kind."])
    assert "error: --system: the chat template leaves system messages out" in capsys.readouterr().err


def test_one_message_is_a_prompt(tmp_path: Path) -> None:
    from llmtrain.cli.generate import read_prompts

    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": QUESTION[0]}))
    assert read_prompts(tmp_path / "prompts.jsonl")[0].given == QUESTION


THINKING = CHATML.replace("assistant\n'", "assistant\n' + ('<think>\n' if enable_thinking else '')")


def test_the_chat_template_gets_the_arguments_that_are_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    speaker_of(tmp_path / "model", "4<|im_end|>", template=THINKING)
    model, *files = (str(tmp_path / name) for name in ("model", "prompts.txt", "out.jsonl"))
    thinking = Speaker.opened(model, {"enable_thinking": True})
    assert thinking.tokenizer.decode(thinking.prompt_ids(QUESTION)).endswith("assistant\n<think>\n")
    Path(files[0]).write_text(f"{QUESTION[0]['content']}\n")
    main(["generate", model, *files, "--temperature", "0", "--template-kwarg", "enable_thinking=false"])
    assert json.loads(Path(files[1]).read_text())["response"] == "4"
    for given, message in (
        ("enable_thinking", "--template-kwarg enable_thinking: give it as KEY=VALUE"),
        ("think=true", "the chat template never reads it; it reads enable_thinking"),
    ):
        monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n"))
        with pytest.raises(SystemExit) as stopped:
            main(["chat", model, "--template-kwarg", given])
        assert stopped.value.code == 2 and message in capsys.readouterr().err


HARMONY = {
    "template": (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% if m.thinking and loop.last and not add_generation_prompt %}"
        "<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
        "<|start|>assistant<|channel|>final<|message|>{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}"
        "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    ),
    "special": ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>"),
    "stop": "<|return|>",
    "stops": ("<|return|>", "<|call|>"),
}
THINKS_FIRST = "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>4"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (THINKS_FIRST, {"reasoning_content": "Easy.", "content": "4"}),
        ("<|channel|>final<|message|>4", {"content": "4"}),
        ("<|channel|>analysis<|message|>Easy", {"reasoning_content": "Easy", "content": ""}),
        ("<|channel|>commentary to=f<|message|>{}", {"content": "<|channel|>commentary to=f<|message|>{}"}),
        (f"{THINKS_FIRST}<|end|>5", {"content": f"{THINKS_FIRST}<|end|>5"}),
    ],
)
def test_a_form_of_control_tokens_is_known_by_rendering(tmp_path: Path, written: str, message: dict[str, Any]) -> None:
    reply = reply_of(tmp_path, f"{written}<|return|>", **HARMONY)
    assert reply.message == {"role": "assistant", **message} and reply.text == written


def test_the_next_prompt_has_no_thought_of_such_a_form(tmp_path: Path) -> None:
    speaker, prompt = speaker_of(tmp_path, f"{THINKS_FIRST}<|return|>", **HARMONY)
    (reply,) = speaker.replies([prompt], GREEDY)
    text = speaker.tokenizer.decode(speaker.prompt_ids([*QUESTION, reply.message, *QUESTION]))
    assert "<|channel|>final<|message|>4<|end|>" in text and "Easy." not in text


@pytest.mark.parametrize(
    ("written", "shown", "note"),
    [
        (THINKS_FIRST, "[reasoning_content] Easy.\n[content] 4\n", None),
        ("<|channel|>final<|message|>4", "4\n", None),
        (
            "<|channel|>x<|message|>{}",
            "<|channel|>x<|message|>{}\n",
            "shown as the model wrote it, <|channel|>, <|mess",
        ),
        ("plain 4", "plain 4\n", None),
    ],
)
def test_a_chat_shows_such_a_form_or_says_that_it_is_raw(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    written: str,
    shown: str,
    note: str | None,
) -> None:
    speaker_of(tmp_path, f"{written}<|return|>", **HARMONY)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION[0]['content']}\n"))
    main(["chat", str(tmp_path), "--temperature", "0"])
    said = capsys.readouterr()
    assert said.out.endswith(shown) and (note in said.err if note else "as the model wrote it" not in said.err)


def test_a_template_without_a_thought_has_no_form(tmp_path: Path) -> None:
    speaker, _ = speaker_of(tmp_path, "4<|im_end|>")
    assert speaker.form is None
