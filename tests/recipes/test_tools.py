"""The `llmtrain` command: preview, chat, generate, merge and sample on a tuned adapter."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from refusals import refused
from tiny_chat import write_config, write_model, write_rows
from tiny_run import SFT, run_here

from llmtrain.cli.main import main

GREEDY = ["--temperature", "0", "--max-new-tokens", "8"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `config.yaml` and the run that it made, of an adapter."""
    folder = tmp_path_factory.mktemp("tuned")
    rows = write_rows(folder / "rows.jsonl", seed=1)
    config = write_config(folder, write_model(folder / "chat", spread=0.3), [rows], adapter={"kind": "lora", "rank": 4})
    assert run_here(config, recipe=SFT).code == 0
    return folder


def test_preview_shows_the_first_packs_and_the_account(tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["preview", str(tuned / "config.yaml"), "--packs", "2"])
    out = capsys.readouterr().out
    assert out.count("<|im_start|>assistant") >= 4
    assert "pack 0:" in out and "pack 1:" in out and "pack 2:" not in out
    assert "tokens are trained in an epoch" in out
    assert "rows.jsonl" in out


def test_preview_colours_what_is_trained(tuned: Path) -> None:
    from llmtrain.cli.preview import MASKED, TRAINED, TRAINED_SPECIAL, shown
    from llmtrain.config.data import ChatDataConfig
    from llmtrain.config.sections import PretrainedModelConfig, TokenizerConfig
    from llmtrain.data.chat.tokenizer import open_chat_tokenizer
    from llmtrain.data.packing.documents import pack_documents
    from llmtrain.data.store.kinds import build_chat_stores

    row = {"messages": [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]}
    (tuned / "one.jsonl").write_text(json.dumps(row))
    data = ChatDataConfig(train=str(tuned / "one.jsonl"), eval_fraction=0.0, cache_dir=str(tuned / "cache"))
    model = str(tuned / "chat")
    chat = open_chat_tokenizer(PretrainedModelConfig(path=model), TokenizerConfig(), data, "assistant")
    (store,) = build_chat_stores(data, chat.encoder, report=lambda line: None).train
    (text,) = shown(pack_documents(store, 64).pack(0), chat.tokenizer)
    pieces = [(text.plain[span.start : span.end], span.style) for span in text.spans]
    assert ("cd", TRAINED) in pieces and ("<|im_end|>", TRAINED_SPECIAL) in pieces
    assert ("user\nab", MASKED) in pieces and ("\n", MASKED) in pieces


def test_chat_answers_each_line_and_starts_over(
    tuned: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("ab cd\n/new\nab cd\n"))
    main(["chat", str(tuned / "run"), *GREEDY])
    answers = capsys.readouterr().out.splitlines()
    assert len(answers) == 2 and answers[0] == answers[1]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_lines_can_be_edited_in_a_terminal(tuned: Path, monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    class Stdin(io.StringIO):
        def isatty(self) -> bool:
            return is_terminal

    imported: list[str] = []
    monkeypatch.setattr("llmtrain.cli.chat.import_module", imported.append)
    monkeypatch.setattr("sys.stdin", Stdin("\n"))
    main(["chat", str(tuned / "run"), *GREEDY])
    assert imported == ["readline"] * is_terminal


def test_generate_answers_each_prompt_as_alone(
    tuned: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmtrain.cli.generate.SECONDS_BETWEEN_LINES", 0.0)
    prompts = tuned / "prompts.jsonl"
    rows = [{"prompt": text} for text in ("ab", "abc de fgh ab cd", "h")]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for size in ("1", "3"):
        main(
            ["generate", str(tuned / "run"), str(prompts), str(tuned / f"{size}.jsonl"), "--batch-size", size, *GREEDY]
        )
    one, three = ((tuned / f"{size}.jsonl").read_text() for size in ("1", "3"))
    assert one == three
    out = capsys.readouterr().out
    assert f"loading {tuned / 'run'}" in out and "2 of 3 prompts answered" in out
    answers = [json.loads(line)["response"] for line in one.splitlines()]
    assert len(set(answers)) > 1
    assert [json.loads(line)["prompt"] for line in one.splitlines()] == [row["prompt"] for row in rows]


def test_generate_leaves_out_the_answer_that_messages_end_with(tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [{"role": "user", "content": "ab cd"}]
    answered = [*asked, {"role": "assistant", "content": "cd cd"}]
    rows = [{"messages": asked}, {"messages": answered}, {"prompt": answered}]
    prompts = tuned / "answered.jsonl"
    prompts.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    main(["generate", str(tuned / "run"), str(prompts), str(tuned / "answers.jsonl"), *GREEDY])
    found = [json.loads(line) for line in (tuned / "answers.jsonl").read_text().splitlines()]
    assert found[0]["response"] == found[1]["response"] != found[2]["response"]
    assert found[1]["messages"] == answered
    assert "1 row of messages that end with an answer, which the model is not given" in capsys.readouterr().out
    alone = {"messages": answered[1:]}
    prompts.write_text(json.dumps(alone))
    line = refused(capsys, "generate", str(tuned / "run"), str(prompts), str(tuned / "none.jsonl"))
    assert line.endswith("answered.jsonl:1: `messages` holds an answer alone, so that nothing is asked\n")


def test_a_merged_adapter_answers_as_the_adapter_does(tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tuned / "lines.txt"
    prompts.write_text("ab cd\n\nfgh\n")
    main(["merge", str(tuned / "run"), str(tuned / "merged")])
    for name in ("run", "merged"):
        main(["generate", str(tuned / name), str(prompts), str(tuned / f"{name}.jsonl"), *GREEDY])
    assert (tuned / "run.jsonl").read_text() == (tuned / "merged.jsonl").read_text()
    assert "exists already" in refused(capsys, "merge", str(tuned / "run"), str(tuned / "merged"))
    assert "nothing to merge" in refused(capsys, "merge", str(tuned / "merged"), str(tuned / "again"))


def test_sample_continues_a_text(tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["sample", str(tuned / "run"), "ab cd"])
    assert capsys.readouterr().out.startswith("ab cd")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no prompt"),
        ("{", "prompts.jsonl:1: malformed JSON"),
        ('{"a": 1}', "holds neither `prompt` nor"),
        ('{"messages": 5}', "prompts.jsonl:1: "),
        ('{"prompt": null}', "prompts.jsonl:1: "),
        ('{"messages": [{"role": "user"}]}', "prompts.jsonl:1: "),
    ],
)
def test_prompts_that_cannot_be_answered_are_refused(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    (tmp_path / "prompts.jsonl").write_text(content)
    line = refused(capsys, "generate", str(tuned / "run"), str(tmp_path / "prompts.jsonl"), str(tmp_path / "out.jsonl"))
    assert message in line
    assert not (tmp_path / "out.jsonl").exists()


def test_a_table_is_no_file_of_prompts(tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "faq.csv").write_text("question,answer\na,b\n")
    line = refused(capsys, "generate", str(tuned / "run"), str(tmp_path / "faq.csv"), str(tmp_path / "out.jsonl"))
    assert "faq.csv: prompts are read from a text file" in line


def test_options_out_of_range_and_folders_that_are_not_there_are_refused(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, prompts = str(tuned / "run"), tmp_path / "prompts.txt"
    prompts.write_text("ab\n")
    given = ("generate", run, str(prompts), str(tmp_path / "out.jsonl"))
    assert "--temperature=-1.0" in refused(capsys, *given, "--temperature", "-1")
    assert "--top-p=2.0" in refused(capsys, *given, "--top-p", "2")
    assert "--seed=" in refused(capsys, *given, "--seed", str(2**64))
    assert "out.jsonl: no folder" in refused(capsys, *given[:3], str(tmp_path / "nowhere" / "out.jsonl"))
    assert f"{tmp_path}: a folder: name the file" in refused(capsys, *given[:3], str(tmp_path))
    assert "holds the prompts, which the answers would replace" in refused(capsys, *given[:3], str(prompts))
    assert prompts.read_text() == "ab\n"
    assert "No such file" in refused(capsys, "generate", run, str(tmp_path / "no.txt"), str(tmp_path / "out.jsonl"))


def test_a_folder_without_a_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "neither a run's folder nor a model's" in refused(capsys, "chat", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    assert "has no model yet" in refused(capsys, "chat", str(tmp_path))


def test_a_base_model_without_a_template_cannot_chat(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write_model(tmp_path / "base", chat=False)
    monkeypatch.setattr("sys.stdin", io.StringIO("ab\n"))
    assert "has no chat template" in refused(capsys, "chat", str(base))
