"""`llmtrain crossval`: real runs of every kind, predictions that others compute too, folds killed, stopped, shared."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from tiny_chat import write_config, write_model, write_rows
from tiny_crossval import crossval_here
from tiny_pairs import pairs, write_pairs
from tiny_run import fork, metrics

from llmtrain.cli import crossval
from llmtrain.cli.main import main
from llmtrain.system.lease import contents

pytestmark = pytest.mark.timeout(600)  # several real runs each, also on a slow machine

LORA = {"adapter": {"kind": "lora", "rank": 4, "alpha": 8}}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("rows.jsonl", {"data": {"system_prompt": "Be brief."}}),
    "sft with an adapter": ("rows.jsonl", LORA),
    "reward": ("pairs.jsonl", {"reward": {}}),
    "dpo": ("pairs.jsonl", {"preference": {}, **LORA}),
    "simpo": ("pairs.jsonl", {"preference": {"loss": "simpo"}}),
    "kto": ("labelled.jsonl", {"preference": {"loss": "kto"}}),
}
SUITES = {"simpo": pytest.mark.slow, "sft with an adapter": pytest.mark.soak}  # of those that are not quick


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a chat model and rows of every kind."""
    folder = tmp_path_factory.mktemp("inputs")
    write_model(folder / "chat", spread=0.1)
    write_rows(folder / "rows.jsonl", seed=1, num_rows=24)
    write_pairs(folder / "pairs.jsonl", seed=1, num_pairs=16)
    with (folder / "labelled.jsonl").open("w", encoding="utf-8") as file:
        for row in pairs(seed=2, num_pairs=10):
            for side, label in (("chosen", True), ("rejected", False)):
                file.write(json.dumps({"prompt": row["prompt"], "completion": row[side], "label": label}) + "\n")
    return folder


def config_of(folder: Path, inputs: Path, kind: str, **sections: Any) -> Path:
    source, own = KINDS[kind]
    return write_config(folder, inputs / "chat", [inputs / source], **{"train": {"steps": 5}, **own, **sections})


@pytest.fixture(autouse=True)
def recipes_in_processes_again() -> Iterator[None]:
    before = crossval.run_recipe
    yield
    crossval.run_recipe = before


def ran(*argv: object) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        crossval_here(*map(str, argv))
    return out.getvalue()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def final_loss(folder: Path) -> float:
    """The recipe's own held-out loss at its end."""
    return float([row for row in metrics(folder) if "eval_loss" in row][-1]["eval_loss"])


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=SUITES.get(kind, ())) for kind in KINDS],
)
def test_every_item_is_predicted_once_as_others_compute_it(inputs: Path, tmp_path: Path, kind: str) -> None:
    config, folder = config_of(tmp_path, inputs, kind), tmp_path / "run-crossval"
    out = ran(config, "--folds", 2)
    predictions = lines(folder / "predictions.jsonl")
    source = inputs / KINDS[kind][0]
    assert [line["where"] for line in predictions] == [f"{source}:{i + 1}" for i in range(len(lines(source)))]
    assert {line["fold"] for line in predictions} == {1, 2}
    result = json.loads((folder / "crossval.json").read_text(encoding="utf-8"))
    assert (result["items"], result["rows"], result["dropped"]) == (len(predictions), len(predictions), {})
    assert "each once" in out and f"llmtrain {'sft' if 'sft' in kind else 'rlhf'} {config}" in out

    weights = [line.get("tokens", 1) for line in predictions]
    if kind != "kto":
        for fold in (1, 2):
            held_out = [(w, each["loss"]) for w, each in zip(weights, predictions, strict=True) if each["fold"] == fold]
            mean = math.fsum(w * loss for w, loss in held_out) / sum(w for w, _ in held_out)
            assert mean == pytest.approx(final_loss(folder / f"fold-{fold}"), rel=1e-5)
        mean = math.fsum(w * each["loss"] for w, each in zip(weights, predictions, strict=True)) / sum(weights)
        assert result["measures"][-1]["mean"] == pytest.approx(mean, rel=1e-12)
        assert result["measures"][-1]["low"] < mean < result["measures"][-1]["high"]

    rows = lines(source)
    for line in predictions[:8]:
        expected = by_hand(kind, folder / f"fold-{line['fold']}" / "model", inputs / "chat", rows[line["row"]])
        assert {name: line[name] for name in expected} == pytest.approx(expected, abs=1e-5)


def by_hand(kind: str, folder: Path, base: Path, row: dict[str, Any]) -> dict[str, float]:
    """What transformers alone computes of a row with the exported model."""
    if kind == "reward":
        chosen, rejected = (score(folder, row["prompt"], row[side]) for side in ("chosen", "rejected"))
        return {"chosen_score": chosen, "rejected_score": rejected, "margin": chosen - rejected}
    if "messages" in row:
        nats, tokens = logprob(folder, row["messages"])
        return {"loss": -nats / tokens, "tokens": tokens}
    sides = {"completion": "reward"} if kind == "kto" else {"chosen": "chosen_score", "rejected": "rejected_score"}
    found = {}
    for side, name in sides.items():
        messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]
        nats, tokens = logprob(folder, messages)
        found[name] = 2.0 * nats / tokens if kind == "simpo" else 0.1 * (nats - logprob(base, messages)[0])
    return found


def logprob(folder: Path, messages: list[dict[str, str]]) -> tuple[float, int]:
    """(nats, tokens) of all answers of a conversation, each with its end of turn."""
    model, tokenizer = loaded(folder)
    nats, tokens = 0.0, 0
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            before = tokenizer.apply_chat_template(messages[:i], tokenize=False, add_generation_prompt=True)
            prompt, answer = (
                tokenizer(text, add_special_tokens=False)["input_ids"]
                for text in (before, f"{message['content']}<|im_end|>")
            )
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            nats += float(logits.double().log_softmax(-1).gather(-1, torch.tensor(answer)[:, None]).sum())
            tokens += len(answer)
    return nats, tokens


def score(folder: Path, prompt: str, answer: str) -> float:
    model, tokenizer = loaded(folder, reward=True)
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    text = tokenizer.apply_chat_template(messages, tokenize=False).rstrip()
    with torch.no_grad():
        return float(model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits[0, 0])


@cache
def loaded(folder: Path, *, reward: bool = False) -> tuple[Any, Any]:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    loader = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    is_adapter = (folder / "adapter_config.json").is_file()
    model = (AutoPeftModelForCausalLM if is_adapter else loader).from_pretrained(folder)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def test_rows_that_are_too_long_or_bad_are_counted(inputs: Path, tmp_path: Path) -> None:
    rows = lines(inputs / "rows.jsonl")
    long = {"messages": [{"role": "user", "content": "a" * 200}, {"role": "assistant", "content": "b"}]}
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(f"{json.dumps(row)}\n" for row in [*rows, long, {"messages": []}]), encoding="utf-8")
    config = write_config(
        tmp_path, inputs / "chat", [source], data={"on_long_row": "drop", "on_bad_row": "skip", "max_seq_len": 128}
    )
    out = ran(config, "--folds", 2, "--dir", tmp_path / "folds")
    reasons = Counter(line["dropped"] for line in lines(tmp_path / "folds" / "dropped.jsonl"))
    assert reasons == {"longer than data.max_seq_len": 1, "empty conversation": 1}
    assert len(lines(tmp_path / "folds" / "predictions.jsonl")) + reasons.total() == len(rows) + 2
    assert "24 items predicted, each once, 2 rows left out" in out


def test_the_page_shows_the_result_the_folds_and_the_hardest_items(inputs: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, inputs, "sft", train={"steps": 2})
    assert f"report: {tmp_path / 'run-crossval' / 'crossval.html'}" in ran(config, "--folds", 2)
    page = (tmp_path / "run-crossval" / "crossval.html").read_text(encoding="utf-8")
    worst = max(lines(tmp_path / "run-crossval" / "predictions.jsonl"), key=lambda line: line["loss"])
    for text in ("Bengio and Grandvalet", worst["where"], "fold-1", "nats per token", "llmtrain sft"):
        assert text in page
    assert len(page) < 2_000_000


def run_pid(folder: Path) -> int | None:
    """The process that trains in a folder."""
    held = [json.loads(content) for _, content in contents(folder)] if folder.is_dir() else []
    return int(held[-1]["pid"]) if held else None


STEPS = {
    "train": {"steps": 60},
    "checkpoint": {"every": 10},
    "eval": {"every": None},
    "log": {"every": 10},
}


def has_checkpoint(folder: Path) -> bool:
    return any(path.name[5:].isdigit() for path in (folder / "checkpoints").glob("step-*"))


@pytest.fixture(scope="module")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The predictions of a cross-validation that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    with patch.object(crossval, "run_recipe"):
        ran(config_of(folder, inputs, "sft", **STEPS), "--folds", 2)
    return lines(folder / "run-crossval" / "predictions.jsonl")


def finished_as(whole: list[dict[str, Any]], config: Path) -> list[str]:
    """What happened in the first fold of a cross-validation that goes on; it ends as one that was never stopped."""
    folder = config.parent / "run-crossval"
    assert not (folder / "fold-1" / "finished.yaml").exists()
    assert not (folder / "predictions.jsonl").exists()
    ran(config, "--folds", 2)
    assert lines(folder / "predictions.jsonl") == whole
    return [event["event"] for event in lines(folder / "fold-1" / "events.jsonl")]


def test_a_fold_that_was_killed_goes_on_to_the_same_predictions(
    inputs: Path, whole: list[dict[str, Any]], tmp_path: Path
) -> None:
    config = config_of(tmp_path / "killed", inputs, "sft", **STEPS)
    process = fork(crossval_here, str(config), "--folds", "2", output=tmp_path / "process")
    assert process.wait_until(lambda: has_checkpoint(tmp_path / "killed" / "run-crossval" / "fold-1")), process.wait()
    process.kill()
    assert finished_as(whole, config) == ["started", "resumed", "finished"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "stop",
    [
        pytest.param("killed with its run", marks=pytest.mark.soak),
        *(pytest.param(stop, marks=pytest.mark.slow) for stop in ("killed alone", "asked to stop")),
    ],
)
def test_recipes_of_their_own_process_are_stopped_and_waited_for(
    inputs: Path, whole: list[dict[str, Any]], tmp_path: Path, stop: str
) -> None:
    config = config_of(tmp_path / "stopped", inputs, "sft", **STEPS)
    folder = tmp_path / "stopped" / "run-crossval" / "fold-1"
    process = fork(main, ["crossval", str(config), "--folds", "2"], output=tmp_path / "process")
    assert process.wait_until(lambda: has_checkpoint(folder)), process.wait()
    pid = run_pid(folder)
    assert pid is not None
    if stop == "asked to stop":
        process.send(signal.SIGTERM)
        ended = process.wait()
        assert "stopped: the same command goes on from here" in ended.out
        assert ended.code == 75
    else:
        process.kill()
    if stop == "killed with its run":
        os.kill(pid, signal.SIGKILL)
    events = finished_as(whole, config)
    assert events[0] == "started" and events[-1] == "finished"
    # A run whose crossval is killed is asked to save by Linux; elsewhere it trains to its end.
    assert ("resumed" in events) == (stop != "killed alone" or sys.platform == "linux")


def test_processes_share_the_folds(inputs: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path / "shared", inputs, "sft", train={"steps": 4})
    folder = tmp_path / "shared" / "run-crossval"
    both = [fork(crossval_here, str(config), "--folds", "4", output=tmp_path / f"process {i}") for i in range(2)]
    ended = [process.wait() for process in both]
    assert [each.code for each in ended] == [0, 0], ended
    for fold in range(1, 5):
        assert [event["event"] for event in lines(folder / f"fold-{fold}" / "events.jsonl")] == ["started", "finished"]
    assert [line["row"] for line in lines(folder / "predictions.jsonl")] == list(range(24))


def test_a_fold_that_fails_is_named(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(tmp_path, inputs, "sft", model={"path": str(tmp_path / "none")})
    with pytest.raises(SystemExit) as stopped:
        crossval_here(str(config), "--folds", "2")
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert "model.path" in captured.out
    assert "error: fold 1: `llmtrain sft" in captured.err and "ended with exit code 2" in captured.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["demo", "--folds", "3"], "demo is a configuration of pretrain: its documents are so many"),
        (
            ["ppo_smollm2_brief", "--folds", "3"],
            "ppo_smollm2_brief trains a policy: a policy trains on what",
        ),
        (["rlhf_smollm2_hh", "--folds", "3"], "rlhf_smollm2_hh has several stages: cross-validate one"),
        (["demo_tokenizer", "--folds", "3"], "demo_tokenizer is a configuration of tokenizer: it has no model"),
        (["CONFIG", "--folds", "1"], "--folds 1: give at least 2"),
        (
            ["CONFIG", "--folds", "2", "--dir", "cv[1]"],
            "--dir cv[1]: its rows are read as data.train, where *, ? and [",
        ),
        (["CONFIG", "--folds", "25"], "--folds 25: the 24 rows have "),
        (["CONFIG", "--folds", "2", "--by", "author"], "--by author: 24 of 24 rows have no author"),
        (["CONFIG", "--folds", "2", "optim.lrr=1"], "unknown key optim.lrr: the nearest is optim.lr"),
        (["CONFIG", "--folds", "2", "data.train=none.jsonl"], "none.jsonl: no such file or folder"),
    ],
)
def test_bad_input_is_one_line_before_torch_is_imported(
    inputs: Path, tmp_path: Path, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(tmp_path, inputs, "sft")
    with pytest.raises(SystemExit) as stopped:
        crossval_here(*(str(config) if word == "CONFIG" else word for word in argv))
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run-crossval").exists()


def test_held_out_data_of_the_configuration_stays_unused(inputs: Path, tmp_path: Path) -> None:
    own = tmp_path / "test.jsonl"
    write_rows(own, seed=5, num_rows=4)
    config = config_of(tmp_path, inputs, "sft", train={"steps": 2}, data={"eval": str(own), "eval_fraction": 0.01})
    assert "data.eval is not used: each fold holds out its own rows of data.train" in ran(config, "--folds", 2)
    assert len(lines(tmp_path / "run-crossval" / "predictions.jsonl")) == 24
