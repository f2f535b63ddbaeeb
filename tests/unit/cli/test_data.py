"""`llmtrain data`: which kinds of training rows fit, which not and why, and commands that exist."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from instruction_rows import GUANACO, HH, SHAREGPT, TREE, TURNS, write

from llmtrain.cli.main import main
from llmtrain.config.load import load_config
from llmtrain.config.recipes import PretrainConfig, SftConfig
from llmtrain.config.stages import load_stages
from llmtrain.config.tokenizer import TokenizerTrainConfig

CHOICE = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}
LABELLED = {"prompt": "2 + 2?", "completion": "4", "label": True}
RANKED = {"prompt": "2 + 2?", "responses": ["4", "5"], "ranks": [0, 1]}
ALL = ("sft", "pairs", "kto", "prompts", "pretrain")
WORDS = {"sft": "for sft", "pairs": "for reward", "kto": "for KTO", "prompts": "for PPO", "pretrain": "for pretrain"}


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What the command prints."""
    main(["data", *argv])
    return capsys.readouterr().out


def states(text: str) -> dict[str, str]:
    """Use -> fits, partly or no."""
    return {
        use: found[1] for use, word in WORDS.items() if (found := re.search(rf"^  (\w+) +[\w ,]*{word}", text, re.M))
    }


@pytest.mark.parametrize(
    ("row", "fits", "named"),
    [
        ({"messages": TURNS}, {"sft", "prompts"}, "messages rows"),
        ({"conversations": SHAREGPT}, {"sft", "prompts"}, "ShareGPT rows"),
        ({"prompt": "2 + 2?", "completion": "4"}, {"sft", "prompts"}, "prompt/completion rows"),
        ({"instruction": "Add", "input": "2 + 2", "output": "4"}, {"sft", "prompts"}, "Alpaca rows"),
        ({"question": "2 + 2?", "answer": "4"}, {"sft", "prompts"}, "prompt/completion rows"),
        ({"text": GUANACO}, {"sft", "prompts", "pretrain"}, "### Human dialogue rows"),
        ({"text": "Two and two."}, {"sft", "prompts", "pretrain"}, "text rows"),
        ({"content": "Two and two."}, {"pretrain"}, "text (field content)"),
        ({"prompt": "2 + 2?"}, {"prompts"}, "prompts (field prompt)"),
        (CHOICE, {"sft", "pairs", "kto", "prompts"}, "preference rows"),
        ({"chosen": HH, "rejected": f"{HH}5"}, {"sft", "pairs", "kto", "prompts"}, "HH-RLHF dialogue rows"),
        (RANKED, {"pairs", "kto", "prompts"}, "ranked list rows"),
        (LABELLED, {"sft", "kto", "prompts"}, "labelled prompt/completion rows"),
        ({"prompt": TREE}, {"sft", "prompts"}, "OpenAssistant tree rows"),
        ({"a": "2 + 2?", "b": "4"}, set[str](), "fields={prompt: a, completion: b}"),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_rows_fit_what_can_read_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, row: dict[str, Any], fits: set[str], named: str
) -> None:
    text = said(capsys, str(write(tmp_path, row)))
    assert states(text) == {use: "fits" if use in fits else "no" for use in ALL}
    assert named in text


@pytest.mark.parametrize("form", ["csv", "tsv", "json", "jsonl.gz", "parquet", "folder", "glob"])
def test_whatever_data_train_takes_is_looked_at(capsys: pytest.CaptureFixture[str], tmp_path: Path, form: str) -> None:
    rows = [{"instruction": f"Say {word}", "output": word} for word in ("one", "two")]
    path = tmp_path / f"rows.{form}"
    match form:
        case "csv" | "tsv":
            comma = "," if form == "csv" else "\t"
            path.write_text("".join(f"{comma.join(line)}\n" for line in (rows[0], *(row.values() for row in rows))))
        case "json":
            path.write_text(json.dumps(rows))
        case "jsonl.gz":
            path.write_bytes(gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in rows)))
        case "parquet":
            import pandas

            pandas.DataFrame(rows).to_parquet(path)
        case _:
            write(tmp_path, *rows)
            path = tmp_path if form == "folder" else tmp_path / "*.jsonl"
    text = said(capsys, str(path))
    assert f"{path}: 2 rows" in text
    assert states(text)["sft"] == "fits"
    assert 'user "Say one" -> assistant "one"' in text


def test_texts_are_for_pretraining(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("Once upon a time.")
    (tmp_path / "two.md").write_text("The end.")
    text = said(capsys, str(tmp_path))
    assert "2 texts in 2 files, 25 bytes, very roughly 6 tokens" in text
    assert states(text) == {use: "fits" if use == "pretrain" else "no" for use in ALL}


def test_a_readme_beside_rows_is_no_text_to_train_on(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write(tmp_path, CHOICE)
    (tmp_path / "about.md").write_text("These are pairs.")
    assert states(said(capsys, str(tmp_path)))["pretrain"] == "no"


def test_rows_that_do_not_fit_are_counted_with_the_first(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    good, empty = {"prompt": "Hi", "completion": "Hello"}, {"prompt": "Hi", "completion": ""}
    path = write(tmp_path, good, good, empty, {"prompt": "Ho", "completion": "Hey"}, empty)
    text = said(capsys, str(path))
    assert "for sft: 3 of 5 rows" in text
    assert "2 left out: 2 message without content; the first: rows.jsonl:3: 'completion'" in text
    assert "1 row repeats an earlier one word for word, the first: rows.jsonl:2" in text
    assert "only 3 rows" in text
    (command,) = re.findall(r"^  (llmtrain sft .*)", text, re.M)
    assert command.endswith(" data.on_bad_row=skip")


def test_rows_that_ask_nothing_fit_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows: list[dict[str, Any]] = [{"prompt": " ", "completion": "b"}, {"prompt": "a", "completion": "b"}]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    text = said(capsys, str(path))
    assert "instructions and chats, for sft: 1 of 2 rows" in text and "prompts, for PPO and its family: 1 of 2" in text
    assert "1 left out: 1 no prompt; the first: rows.jsonl:1: no message has text but answers: nothing is asked" in text


def test_most_rows_of_another_kind_are_partly_fit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    chat = {"prompt": "Hi", "completion": "Hello"}
    text = said(capsys, str(write(tmp_path, CHOICE, chat, chat)))
    assert states(text)["pairs"] == "partly"
    assert "for reward models and DPO: 1 of 3 rows" in text
    assert "dpo_smollm2" not in text  # others fit


def test_long_rows_are_pointed_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write(tmp_path, {"prompt": "Hi", "completion": "a" * 4096}, {"prompt": "Hi", "completion": "b" * 8000})
    assert "2 rows may be longer than 1,024 tokens (the longest, rows.jsonl:2, roughly 2,000)" in said(
        capsys, str(path)
    )


def test_no_more_rows_are_read_than_asked_for(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write(tmp_path, *({"prompt": f"{i}", "completion": "x"} for i in range(5)))
    with path.open("a") as file:
        file.write("not JSON\n")
    text = said(capsys, str(path), "--rows", "5")
    assert "the first 5 rows" in text
    assert "malformed" not in text


@pytest.mark.parametrize("name", ["it's: a #1 folder", "a: b: c"])
def test_commands_have_configurations_that_they_load_with(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    """Every command of every kind is one that the recipe's own parser takes."""
    folder = tmp_path / name
    folder.mkdir()
    verbs = set()
    for row in (CHOICE, LABELLED, {"text": "Two."}, {"content": "Two."}, {"prompt": "Hi"}):
        text = said(capsys, str(write(folder, row)))
        for command in re.findall(r"^  (llmtrain .*)", text, re.M):
            _, verb, *argv = shlex.split(command)
            verbs.add(verb)
            if verb == "rlhf":
                (config,) = load_stages(argv).configs.values()
            elif verb == "tokenizer":
                assert load_config(TokenizerTrainConfig, argv).sources[0].path == str(folder / "rows.jsonl")
                continue
            else:
                config = load_config(PretrainConfig if verb == "pretrain" else SftConfig, argv)
            assert config.data.train[0].path == str(folder / "rows.jsonl")
    assert verbs == {"preview", "sft", "rlhf", "tokenizer", "pretrain"}


def test_keys_of_the_source_are_kept_in_the_commands(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write(tmp_path, {"q": "2 + 2?", "a": "4"})
    text = said(capsys, str(path), "fields={prompt: q, completion: a}", "slice=0%:100%")
    (command,) = re.findall(r"^  (llmtrain sft .*)", text, re.M)
    (source,) = load_config(SftConfig, shlex.split(command)[2:]).data.train
    assert (source.path, source.fields, source.slice) == (str(path), {"prompt": "q", "completion": "a"}, "0%:100%")


def test_several_paths_share_a_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name, row in (("one", CHOICE), ("two", LABELLED)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, row)
    text = said(capsys, str(tmp_path / "one"), str(tmp_path / "two"))
    commands = re.findall(r"^  llmtrain rlhf (\w+) (.*)", text, re.M)
    assert [config for config, _ in commands] == ["dpo_smollm2", "ppo_smollm2_brief"]
    assert "preference.loss=kto" in commands[0][1]
    assert "nothing here can be trained" not in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["no.jsonl"], "no.jsonl: no such file or folder"),
        (["some/name"], "some/name: no such file or folder, and the hub is off"),
        (["PATH", "feilds={}"], "a source has no key feilds: the nearest is fields"),
        (["PATH", "split=[1"], "the value is not valid YAML"),
        (["PATH", "split=test"], "split=test does nothing here: this is a file"),
        (["PATH", "fields=3"], "fields=3: input should be a valid dictionary"),
        (["PATH", "--rows", "0"], "--rows 0: give at least 1"),
        (["fields={}"], "usage: llmtrain data PATH"),
        (["FOLDER"], "has no split train, only test (1 files); add split=NAME, or split=all for every file"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: list[str], message: str
) -> None:
    path = write(tmp_path, CHOICE)
    (tmp_path / "hub" / "test").mkdir(parents=True)
    write(tmp_path / "hub" / "test", CHOICE)
    places = {"PATH": str(path), "FOLDER": str(tmp_path / "hub")}
    with pytest.raises(SystemExit) as stopped:
        main(["data", *(places.get(word, word) for word in argv)])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_no_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom llmtrain.cli.main import main\nmain(sys.argv[1:])\n"
        "heavy = [name for name in ('torch', 'transformers', 'datasets', 'pyarrow') if name in sys.modules]\n"
        "assert not heavy, heavy"
    )
    argv = [sys.executable, "-c", code, "data", str(write(tmp_path, CHOICE))]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
