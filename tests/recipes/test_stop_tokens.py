"""Answers sampled while training end at every stop: those of the chat template, the tokens and texts of the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scripted_model import scripted_tokenizer, write_scripted
from tiny_chat import CHATML, write_config, write_rows
from tiny_run import RLHF, SFT, metrics, run_here

from llmtrain.cli.main import main
from llmtrain.data.rendering import prompt_ids
from llmtrain.eval.tasks.results import read_evaluation
from llmtrain.models.folders.open import open_model

QUESTION = [{"role": "user", "content": "2 + 2?"}]
STOPS = ("<|endoftext|>", "<|eom|>")  # of the model, which the template does not write


STOP_TEXT = "\nUser:"


@pytest.fixture(params=["<|eom|>", STOP_TEXT])
def base(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A model that ends its answers with one of its own stop tokens, or with its stop text."""
    tokenizer = scripted_tokenizer(tmp_path / "base", ("<|im_start|>", *STOPS), CHATML)
    length = len(prompt_ids(tokenizer, QUESTION))
    answer = tokenizer(f"4{request.param}abc", add_special_tokens=False)["input_ids"]
    stops = [tokenizer.convert_tokens_to_ids(token) for token in STOPS]
    return with_stop_text(write_scripted(tmp_path / "base", tokenizer, {length: answer}, stops))


def with_stop_text(base: Path) -> Path:
    file = base / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"stop_strings": [STOP_TEXT]}))
    return base


def test_rollouts_end_at_the_stop_tokens_of_the_model(tmp_path: Path, base: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": QUESTION[0]["content"]}) + "\n")
    config = write_config(
        tmp_path,
        base,
        [rows],
        data={"eval_fraction": 0.0},
        policy={"kl_coef": 0.0},
        rollout={
            "rewards": [{"name": "length", "target": 1}],
            "num_prompts": 1,
            "max_new_tokens": 8,
            "temperature": 0.01,
        },
        train={"steps": 1, "microbatch_tokens": 256, "global_batch_tokens": 65536},
        eval={"every": None},
        checkpoint={"every": None},
    )
    result = run_here(config, recipe=RLHF)
    assert result.code == 0, result
    (sample,) = map(json.loads, (tmp_path / "run" / "samples.jsonl").read_text().splitlines())
    assert sample["response"] == "4" and sample["stopped"] is True
    assert f"the text {STOP_TEXT!r}" in result.out
    final = tmp_path / "run" / "model"
    assert json.loads((final / "generation_config.json").read_text())["stop_strings"] == [STOP_TEXT]
    assert "max_new_tokens=200, tokenizer=tokenizer" in (final / "README.md").read_text()
    open_model(str(final))


def test_samples_at_evaluation_end_there_too(tmp_path: Path, base: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    chat = [*QUESTION, {"role": "assistant", "content": "4"}]
    rows.write_text(json.dumps({"messages": chat}) + "\n")
    train = tmp_path / "train.jsonl"
    train.write_text(json.dumps({"messages": [{"role": "user", "content": "3"}, chat[1]]}) + "\n")
    config = write_config(
        tmp_path, base, [train],
        data={"eval": str(rows), "eval_fraction": 0.0},
        train={"steps": 1},
        eval={"every": 1, "samples": 1, "sample_tokens": 8},
        checkpoint={"every": None},
    )  # fmt: skip
    result = run_here(config, recipe=SFT)
    assert result.code == 0, result
    (file,) = (tmp_path / "run").glob("*samples*")
    first = json.loads(file.read_text().splitlines()[0])
    assert first["response"] == "4" and first["stopped"] is True


TASK = """\
from llmtrain.tasks.task import AnswerItem, AnswerTask

def right(prompts, responses, rows):
    return [float(response == "4") for response in responses]

TASK = AnswerTask("sums", "s", lambda fields: AnswerItem(fields["q"]), {"right": right}, max_new_tokens=8)
"""


@pytest.mark.parametrize("stop", ["<|eom|>", "<|im_end|>", STOP_TEXT])
def test_answers_of_tasks_end_there_too(tmp_path: Path, stop: str) -> None:
    tokenizer = scripted_tokenizer(tmp_path / "base", ("<|im_start|>", *STOPS), CHATML, stop="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|eom|>"]})
    stops = [tokenizer.convert_tokens_to_ids(token) for token in STOPS]  # the template alone has <|im_end|>
    base = write_scripted(tmp_path / "base", tokenizer, {3: tokenizer(f"4{stop}abc")["input_ids"]}, stops)
    with_stop_text(base)
    (tmp_path / "sums.py").write_text(TASK)
    (tmp_path / "sums.jsonl").write_text(json.dumps({"q": "2+2"}) + "\n")
    task = f"{tmp_path / 'sums.py'}={tmp_path / 'sums.jsonl'}"
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": [*QUESTION, {"role": "assistant", "content": "4"}]}) + "\n")
    config = write_config(
        tmp_path, base, [rows],
        data={"eval": str(write_rows(tmp_path / "eval.jsonl", seed=1, num_rows=4)), "eval_fraction": 0.0},
        train={"steps": 1},
        optim={"lr": 1e-30},
        eval={"every": 1, "samples": 0, "tasks": [task]},
        checkpoint={"every": None},
    )  # fmt: skip
    result = run_here(config, recipe=SFT)
    assert result.code == 0, result
    assert [row["eval_task/sums/right"] for row in metrics(tmp_path / "run") if "eval_loss" in row] == [1.0, 1.0]
    main(["eval", str(base), "--tasks", task, "--output", str(tmp_path / "found.jsonl")])
    (item,) = read_evaluation(tmp_path / "found.jsonl").tasks["sums"].items
    assert item.details["response"] == "4" and item.values["ends"] == 1.0
