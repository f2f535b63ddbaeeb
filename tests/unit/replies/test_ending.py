"""Stop texts of a base end replies where they are complete: in `chat`, `generate` and `sample`."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from scripted_model import scripted_tokenizer, write_scripted
from tiny_chat import CHATML

from llmtrain.cli.main import main
from llmtrain.data.rendering import prompt_ids
from llmtrain.replies.reply import Reply, ReplyOptions, Speaker

QUESTION = "2 + 2?"
GREEDY = ReplyOptions(max_new_tokens=40, temperature=0.0, top_p=1.0)


def write_model(folder: Path, answer: str, **generation: object) -> tuple[str, list[int]]:
    """A model that answers QUESTION, and the ids of that prompt; `generation`: settings of its generation config."""
    tokenizer = scripted_tokenizer(folder, ("<|im_start|>", "<|end|>"), CHATML, "<|im_end|>")
    prompt = prompt_ids(tokenizer, [{"role": "user", "content": QUESTION}])
    says: list[int] = tokenizer(answer, add_special_tokens=False)["input_ids"]
    write_scripted(folder, tokenizer, {len(prompt): says}, [tokenizer.convert_tokens_to_ids("<|im_end|>")])
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | generation))
    return str(folder), prompt


def replied(model: str, prompt: list[int]) -> Reply:
    (reply,) = Speaker.opened(model).replies([prompt], GREEDY)
    return reply


@pytest.mark.parametrize("given", ["\nUser:", ["never", "User:", "\nUser:"]])
@pytest.mark.parametrize("answer", ["four\nUser: and more", "four\nUser:<|im_end|>"])
def test_a_reply_ends_where_a_stop_text_is_complete(tmp_path: Path, given: object, answer: str) -> None:
    model, prompt = write_model(tmp_path, answer, stop_strings=given)
    reply = replied(model, prompt)
    assert reply.stopped and reply.text == reply.content == "four"
    assert Speaker.opened(model).tokenizer.decode(reply.response_ids).endswith("User:")


def test_a_stop_text_that_is_a_token_ends_a_reply_as_a_token(tmp_path: Path) -> None:
    reply = replied(*write_model(tmp_path, "four<|end|>more", stop_strings=["<|end|>"]))
    assert reply.stopped and reply.text == "four" and reply.stop_text is None


def test_rows_of_a_batch_end_each_at_its_own_place(tmp_path: Path) -> None:
    model, prompt = write_model(tmp_path, "four\nUser: and more", stop_strings=["User:"])
    one, later = Speaker.opened(model).replies([prompt, prompt[:-1]], GREEDY)
    assert one.text == "four\n" and later.text.endswith("four\n")
    assert (len(one.response_ids), len(later.response_ids)) == (10, 11)


def test_what_may_begin_a_stop_text_is_shown_once_it_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = write_model(tmp_path, "a\n\nUs b\n\n\nUser: c", stop_strings="\n\nUser:")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION}\n"))
    main(["chat", model, "--temperature", "0"])
    said = capsys.readouterr()
    assert said.out.endswith("a\n\nUs b\n\n") and "cut at" not in said.err


def test_generate_and_sample_end_at_a_stop_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, prompt = write_model(tmp_path / "model", "four\nUser: and more", stop_strings="\nUser:")
    (tmp_path / "prompts.txt").write_text(QUESTION)
    main(["generate", model, str(tmp_path / "prompts.txt"), str(tmp_path / "out.jsonl"), "--temperature", "0"])
    assert json.loads((tmp_path / "out.jsonl").read_text())["response"] == "four"
    text = f"{'ab' * len(prompt)}"[: len(prompt)]
    capsys.readouterr()
    main(["sample", model, text])
    assert "\nUser" not in capsys.readouterr().out


@pytest.mark.parametrize("given", ["", [""], [7], {"a": 1}])
def test_stop_texts_that_are_none_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: object
) -> None:
    model, _ = write_model(tmp_path, "four", stop_strings=given)
    with pytest.raises(SystemExit) as stopped:
        main(["sample", model, "ab"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and "stop_strings" in error


@pytest.mark.parametrize("settings", [{"num_return_sequences": 2, "num_beams": 2}, {"return_dict_in_generate": True}])
def test_a_base_that_asks_for_other_answers_gives_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:
    model, _ = write_model(tmp_path, "four<|im_end|>", **settings)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION}\n"))
    main(["chat", model, "--temperature", "0"])
    assert capsys.readouterr().out.endswith("four\n")
    main(["sample", model, "ab"])
