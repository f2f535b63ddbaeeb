"""At each evaluation a run answers the same held-out prompts, and keeps the answers in `samples.jsonl`."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiny_rl
from tiny_chat import write_config, write_model, write_rows
from tiny_pairs import pairs, write_pairs
from tiny_run import RLHF, SFT, Ended, metrics, run_here
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmtrain.config.data import Source
from llmtrain.data.formats.instructions import iter_examples
from llmtrain.data.ledger import SourceLedger
from llmtrain.data.split import split_of

FIELDS = {"step", "index", "prompt", "response", "stopped", "reference"}
SAMPLING = {"every": 5, "sample_tokens": 12}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_model(folder / "chat", spread=0.1)
    write_rows(folder / "rows.jsonl", seed=1)
    write_pairs(folder / "pairs.jsonl", seed=1, num_pairs=60)
    labelled = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in pairs(seed=1, num_pairs=60)
        for side in ("rejected", "chosen")
    ]
    (folder / "labelled.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in labelled))
    tiny_rl.write_task(folder / "task")
    return folder


def config_of(recipe: str, folder: Path, inputs: Path, **sections: Any) -> tuple[Path, Path]:
    """(configuration, script) of a tiny run."""
    data = {"eval_fraction": 0.2}
    if recipe == "sft":
        sections = {"eval": SAMPLING} | sections
        return write_config(folder, inputs / "chat", [inputs / "rows.jsonl"], data=data, **sections), SFT
    if recipe == "policy":
        sections = {"train": {"steps": 8}, "eval": {"every": 4}} | sections
        return tiny_rl.write_config(folder, inputs / "task", **sections), RLHF
    loss, rows = ("dpo", "pairs") if recipe == "dpo" else ("kto", "labelled")
    sections = {"preference": {"loss": loss}, "eval": SAMPLING} | sections
    return write_config(folder, inputs / "chat", [inputs / f"{rows}.jsonl"], data=data, **sections), RLHF


def ran(config: Path, recipe: Path, *overrides: str) -> Ended:
    ended = run_here(config, *overrides, recipe=recipe)
    assert (ended.code, ended.err) == (0, "")
    return ended


def samples(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "run" / "samples.jsonl").read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    return [row for row in map(json.loads, lines) if "step" in row]


def by_step(folder: Path) -> dict[int, list[dict[str, Any]]]:
    found = samples(folder)
    return {step: [row for row in found if row["step"] == step] for step in sorted({row["step"] for row in found})}


@pytest.mark.parametrize("recipe", ["sft", "dpo", "kto", "policy"])
def test_the_same_prompts_are_answered_at_every_evaluation(inputs: Path, tmp_path: Path, recipe: str) -> None:
    ended = ran(*config_of(recipe, tmp_path, inputs))
    evaluated = [row for row in metrics(tmp_path / "run") if "eval_loss" in row]
    found = by_step(tmp_path)
    assert list(found) == [row["step"] for row in evaluated] and len(found) >= 3
    for rows in found.values():
        assert [row["index"] for row in rows] == [0, 1, 2, 3]
        assert all(set(row) == ((FIELDS - {"reference"}) | {"score"} if recipe == "policy" else FIELDS) for row in rows)
        assert all(row["prompt"][-1]["role"] == "user" for row in rows)
    asked = [[row["prompt"] for row in rows] for rows in found.values()]
    assert all(one == other for one, other in pairwise(asked))
    answers = [[row["response"] for row in rows] for rows in found.values()]
    assert answers[0] != answers[-1]
    for row in evaluated:
        if recipe != "policy":  # whose ratio is of all held-out prompts
            ended_here = sum(each["stopped"] for each in found[row["step"]])
            assert row["eval_terminated_ratio"] == ended_here / 4
            assert f"{ended_here} of 4 answers end by themselves" in ended.out
    lines = [line for line in ended.out.splitlines() if "  evaluation: " in line]
    assert len(lines) == len(evaluated) and max(map(len, lines)) <= 120


def test_the_questions_are_held_out_rows_and_the_references_their_answers(inputs: Path, tmp_path: Path) -> None:
    config, script = config_of("sft", tmp_path, inputs)
    ran(config, script)
    source = Source(path=str(inputs / "rows.jsonl"))
    rows = iter_examples(source, "error", SourceLedger(path=source.path), lambda line: None)
    held_out = [[*row.messages] for row in rows if split_of(row, 0.2) == "eval"]  # type: ignore[union-attr]
    for sample in by_step(tmp_path)[0]:
        answer = {"role": "assistant", "content": sample["reference"]}
        assert [*sample["prompt"], answer] in held_out


@pytest.mark.parametrize("recipe", ["dpo", "kto"])
def test_the_reference_is_an_answer_that_is_wanted(inputs: Path, tmp_path: Path, recipe: str) -> None:
    ran(*config_of(recipe, tmp_path, inputs, train={"steps": 1}))
    chosen = {row["prompt"]: row["chosen"] for row in pairs(seed=1, num_pairs=60)}
    found = by_step(tmp_path)[0]
    wanted = {None} if recipe == "kto" else set()  # each prompt comes first with its undesirable answer
    assert all(row["reference"] in {chosen[row["prompt"][0]["content"]], *wanted} for row in found)


def test_the_last_answers_are_those_of_the_exported_model(inputs: Path, tmp_path: Path) -> None:
    ran(*config_of("sft", tmp_path, inputs))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    for sample in by_step(tmp_path)[10]:
        inputs_ = tokenizer.apply_chat_template(
            sample["prompt"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        ids = model.generate(**inputs_, do_sample=False, max_new_tokens=12)[0, inputs_["input_ids"].shape[1] :]
        assert tokenizer.decode(ids, skip_special_tokens=True) == sample["response"]


def test_sampling_changes_nothing_of_the_training(inputs: Path, tmp_path: Path) -> None:
    rows = []
    for name, changes in (("with", {}), ("without", {"samples": 0, "sample_tokens": 128})):
        ran(*config_of("sft", tmp_path / name, inputs, eval=SAMPLING | changes, model={"dropout": 0.1}))
        rows.append([(row["step"], row["loss"]) for row in metrics(tmp_path / name / "run") if "loss" in row])
    assert rows[0] == rows[1]
    assert not (tmp_path / "without" / "run" / "samples.jsonl").exists()


def test_a_run_that_is_resumed_keeps_each_answer_once(inputs: Path, tmp_path: Path) -> None:
    sections = {"checkpoint": {"every": 3}, "optim": {"schedule": "constant", "min_lr_ratio": 0.1}}
    config, script = config_of("policy", tmp_path / "one", inputs, **sections)
    ran(config, script)
    config, script = config_of("policy", tmp_path / "two", inputs, **sections)
    ran(config, script, "train.steps=4")
    with (tmp_path / "two" / "run" / "samples.jsonl").open("a") as file:
        file.write('{"step": 4, "ind')  # a kill
    shutil.rmtree(tmp_path / "two" / "run" / "checkpoints" / "step-00000004")  # as if it had come before the last save
    ran(config, script, "train.steps=8")
    one, two = ((tmp_path / name / "run" / "samples.jsonl").read_text() for name in ("one", "two"))
    assert one == two


def test_rows_without_a_prompt_are_not_asked_and_that_is_said(inputs: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(f"{json.dumps({'text': f'a text, the {n}th of them'})}\n" for n in range(60)))
    config = write_config(tmp_path, inputs / "chat", [texts], data={"eval_fraction": 0.2}, train={"steps": 1})
    ended = ran(config, SFT)
    assert "eval.samples: no held-out row has a prompt" in ended.out
    assert not (tmp_path / "run" / "samples.jsonl").exists()


@pytest.mark.parametrize("key", ["eval.samples=2", "eval.sample_tokens=7"])
@pytest.mark.parametrize("recipe", ["reward", "no held-out data"])
def test_where_nothing_is_answered_the_keys_are_refused(inputs: Path, tmp_path: Path, recipe: str, key: str) -> None:
    section = {"reward": {"reward": {}}, "no held-out data": {"preference": {}, "data": {"eval_fraction": 0}}}[recipe]
    config = write_config(tmp_path, inputs / "chat", [inputs / "pairs.jsonl"], **section)
    ended = run_here(config, key, recipe=RLHF)
    assert ended.code == 2 and f"{key.split('=')[0]} does nothing without" in ended.err
