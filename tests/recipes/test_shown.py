"""No command lets what it prints rule the terminal: rows, names, values, tokens, answers and messages are shown."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile_texts import HOSTILE, obeyed
from tiny_chat import write_config, write_model
from tiny_run import environment

from llmtrain.cli.main import main
from llmtrain.system.visible import visible, visible_line

ANSWER = "\x1b]52;c;AAAA\x07\x9b2J\u202eevil"
"""What the model always answers: one token of its tokenizer."""


def write_parrot(folder: Path) -> Path:
    """A chat model whose only answer is a token that a terminal would obey."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(ANSWER)
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    model.resize_token_embeddings(len(tokenizer))
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(
            mean=1.0, std=0.5
        )  # the same direction for all, and an answer that points there
        model.lm_head.weight.normal_(std=0.1)
        model.lm_head.weight[tokenizer.convert_tokens_to_ids(ANSWER)] = 3.0
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def parrot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parrot(tmp_path_factory.mktemp("parrot"))


def ended(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """How a verb ends, and all it prints."""
    code = 0
    try:
        main(arguments)
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    out, err = capsys.readouterr()
    return code, out + err


Case = Callable[[Path, Path, str], list[str]]
"""(folder, model, hostile text) -> a command line that prints it."""


def named(folder: Path, text: str) -> Path:
    """A path whose name holds what a name can of a text."""
    return folder / os.fsdecode(text.replace("\0", "").replace("/", "").encode("utf-8", "replace"))


def file_with(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    return str(path)


def rows_with(folder: Path, text: str, name: str = "rows.jsonl") -> str:
    turns = [{"role": "user", "content": f"ask {text}"}, {"role": "assistant", "content": f"tell {text}"}]
    return file_with(folder / name, f"{json.dumps({'messages': turns})}\n" * 4)


def config_on(folder: Path, model: Path, rows: str) -> str:
    return str(write_config(folder, model, [Path(rows)], data={"eval_fraction": 0.0}))


COMMANDS: dict[str, Case] = {
    "preview of rows": lambda folder, model, text: [
        "preview",
        config_on(folder, model, rows_with(folder, text)),
    ],
    "preview of a file's name": lambda folder, model, text: [
        "preview",
        config_on(folder, model, rows_with(folder, "x", named(folder, f"{text}.jsonl").name)),
    ],
    "data: names and fields": lambda folder, model, text: [
        "data",
        file_with(named(folder, f"{text}.jsonl"), f"{json.dumps({text: text, 'more': [text]})}\n"),
    ],
    "prepare of a file's name": lambda folder, model, text: [
        "prepare",
        config_on(folder, model, rows_with(folder, "x", named(folder, f"{text}.jsonl").name)),
        "--workers=1",
        "--recipe=sft",
    ],
    "a configuration's name": lambda folder, model, text: ["sft", str(named(folder, f"{text}.yaml"))],
    "a configuration's value": lambda folder, model, text: [
        "sft",
        config_on(folder, model, rows_with(folder, "x")),
        f"data.loss_on={json.dumps(text)}",
    ],
    "a configuration's key": lambda folder, model, text: [
        "pretrain",
        file_with(folder / "config.yaml", json.dumps({"run": {text: text}})),
    ],
    "YAML that is none": lambda folder, model, text: ["rlhf", file_with(folder / "config.yaml", f"a: [{text}")],
    "a row's fault": lambda folder, model, text: [
        "sft",
        config_on(
            folder,
            model,
            file_with(folder / "rows.jsonl", json.dumps({"messages": [{"role": text, "content": text}]})),
        ),
    ],
    "JSON that is none": lambda folder, model, text: [
        "sft",
        config_on(folder, model, file_with(folder / "rows.jsonl", f"{{{text.encode(errors='replace').decode()}")),
    ],
    "a verb": lambda folder, model, text: [f"sft{text}"],
    "an option": lambda folder, model, text: ["sample", "a", "b", f"--{text}"],
    "launch of a verb": lambda folder, model, text: ["launch", f"sft{text}"],
    "a run's name": lambda folder, model, text: ["report", str(named(folder, text))],
    "export": lambda folder, model, text: ["export", str(named(folder, text))],
    "merge": lambda folder, model, text: ["merge", str(named(folder, text)), str(folder / "out")],
    "sample of a model's name": lambda folder, model, text: ["sample", str(named(folder, text)), "hi"],
    "sample of a prompt": lambda folder, model, text: ["sample", str(model), text.encode(errors="replace").decode()],
    "configs": lambda folder, model, text: ["configs", text],
    "crossval": lambda folder, model, text: [
        "crossval",
        config_on(folder, model, rows_with(folder, "x")),
        "--folds=2",
        f"--by={text}",
    ],
    "sweep": lambda folder, model, text: [
        "sweep",
        config_on(folder, model, rows_with(folder, "x")),
        file_with(folder / "space.yaml", json.dumps({f"optim.{text}": [1, 2]})),
        "--recipe=sft",
        "data.eval_fraction=0.5",
    ],
    "tokenizer": lambda folder, model, text: ["tokenizer", "bpe_32k", f"sources={json.dumps(text)}"],
}


SEEN = ("clipboard", "title", "C1 sequence")
UNQUOTED = {"YAML that is none", "JSON that is none", "launch of a verb"}
"""Commands that do not quote the text."""


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["clear screen", "clipboard", "C1 sequence", "overwritten", "line separator"])
def test_a_command_shows_it(
    command: str, name: str, parrot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed = ended(capsys, *COMMANDS[command](tmp_path, parrot, HOSTILE[name]))
    assert code in (0, 2)
    assert not obeyed(printed)
    assert command in UNQUOTED or visible(HOSTILE[name])[-4:] in printed  # it is there, shown


@pytest.mark.parametrize("command", ["a configuration's name", "a run's name", "a configuration's value", "configs"])
def test_an_error_stays_one_line(
    command: str, parrot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed = ended(capsys, *COMMANDS[command](tmp_path, parrot, "a\nfinished: all is well"))
    assert code == 2 and printed.count("\n") == 1 and "a\\nfinished" in printed


def test_what_a_model_answers_is_shown_and_kept(
    parrot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy = ["--temperature", "0", "--max-new-tokens", "2"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    code, printed = ended(capsys, "chat", str(parrot), *greedy)
    assert code == 0 and visible(ANSWER) in printed and not obeyed(printed)

    prompts = file_with(tmp_path / "prompts.txt", "hello")
    code, printed = ended(capsys, "generate", str(parrot), prompts, str(tmp_path / "answers.jsonl"), *greedy)
    assert code == 0 and not obeyed(printed)
    written = (tmp_path / "answers.jsonl").read_text(encoding="utf-8")
    assert json.loads(written)["response"] == ANSWER * 2 and not obeyed(written)


def test_answers_at_an_evaluation_are_kept_exactly_and_shown(
    parrot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_with(tmp_path, HOSTILE["clear screen"], "rows\n.jsonl")
    config = write_config(
        tmp_path,
        parrot,
        [Path(rows)],
        data={"eval": rows_with(tmp_path, "x", "eval.jsonl"), "eval_fraction": 0.0},
        train={"steps": 1},
        eval={"every": 1, "samples": 1, "sample_tokens": 1},
        optim={"lr": 1e-6},
    )
    code, printed = ended(capsys, "sft", str(config))
    assert code == 0, printed
    assert not obeyed(printed)
    log = (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
    assert not obeyed(log)
    written = (tmp_path / "run" / "samples.jsonl").read_text(encoding="utf-8")
    assert json.loads(written.splitlines()[0])["response"] == ANSWER and not obeyed(written)


def test_a_file_of_errors_gets_no_progress_bars() -> None:
    code = (
        "from llmtrain.recipes.command import prepare_process; prepare_process()\n"
        "from tqdm.auto import tqdm; print(sum(tqdm([1, 2])))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert (done.stdout, done.stderr) == ("3\n", "")


@pytest.mark.slow
def test_a_real_terminal_gets_only_what_we_draw(parrot: Path, tmp_path: Path) -> None:
    text = "".join(HOSTILE[title] for title in SEEN)
    config = config_on(tmp_path, parrot, rows_with(tmp_path, text))
    process, terminal = pty.fork()
    if process == 0:
        os.execve(sys.executable, [sys.executable, "-m", "llmtrain", "preview", config], environment())
    printed = b""
    try:
        while piece := os.read(terminal, 1 << 16):
            printed += piece
    except OSError:
        pass  # how a terminal ends
    _, status = os.waitpid(process, 0)
    seen = printed.decode()
    assert os.waitstatus_to_exitcode(status) == 0, seen
    for title in SEEN:
        assert visible_line(HOSTILE[title]) in seen
    assert not obeyed(re.sub(r"\x1b\[[0-9;]*m|\r\n", "", seen))
