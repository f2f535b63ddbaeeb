"""The pair of before and after: both models on the same things, kept once, on the model card, and never in the way."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_chat
import tiny_pairs
import tiny_rl
from tiny_run import RLHF, SFT, Ended, metrics, run_here

from llmtrain.cli.main import main
from llmtrain.eval.before_after.answers import ANSWERS, Answers
from llmtrain.eval.tasks.results import Evaluation, estimate, read_evaluation
from llmtrain.runs.folder import FINISHED
from llmtrain.system.run_files import after_path, before_path

LORA = {"adapter": {"kind": "lora", "rank": 4}}
ALL = 1000  # more than is held out
TABLE = "| measured | before | after | difference, 95 % interval | items | after training it is |"
CHOICES = [{"prompt": f"{a} or {b}?", "choices": [a, b], "answer": 0} for a, b in ("ab", "cd", "ef")]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    tiny_chat.write_model(folder / "chat", spread=0.1)
    tiny_chat.write_rows(folder / "rows.jsonl", seed=1)
    tiny_pairs.write_pairs(folder / "pairs.jsonl", seed=1)
    tiny_rl.write_task(folder / "task")
    (folder / "general.txt").write_text("abc def, abc gh. " * 400)
    (folder / "choices.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in CHOICES))
    return folder


def sft_config(folder: Path, inputs: Path, sections: dict[str, Any] | None = None, **evaluation: Any) -> Path:
    found = {"every": 5, "before_after": ALL, "sample_tokens": 8, "samples": 0} | evaluation
    return tiny_chat.write_config(folder, inputs / "chat", [inputs / "rows.jsonl"], eval=found, **(sections or {}))


def ran(config: Path, *overrides: str, recipe: Path = SFT) -> Ended:
    ended = run_here(config, *overrides, recipe=recipe)
    assert ended.code == 0, ended.err
    return ended


def both(run: Path) -> tuple[Evaluation, Evaluation]:
    return read_evaluation(before_path(run)), read_evaluation(after_path(run))


def value(evaluation: Evaluation, task: str, name: str) -> float:
    result = evaluation.tasks[task]
    return estimate(result.items, next(each for each in result.measures if each.name == name)).value


def losses(run: Path) -> list[float]:
    return [row["eval_loss"] for row in metrics(run) if "eval_loss" in row]


@pytest.mark.parametrize(
    "sections",
    [
        {},
        LORA,
        {"train": {"ema_decay": 0.9}},
        {"optim": {"lr": 3.0}, "checkpoint": {"best": True, "export_best": True}},
    ],
    ids=["full", "adapter", "average", "best"],
)
def test_the_base_and_the_exported_weights_are_measured(
    sections: dict[str, Any], inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choices, general = str(inputs / "choices.jsonl"), str(inputs / "general.txt")
    ran(sft_config(tmp_path, inputs, sections, tasks=[choices], general_text=general, before_after=3))
    before, after = both(tmp_path / "run")
    assert len(before.tasks["held_out"].items) > len(before.tasks[ANSWERS].items) == 3  # the loss is the evaluation's
    found = losses(tmp_path / "run")
    assert value(before, "held_out", "nats_per_token") == pytest.approx(found[0], abs=1e-5)
    last = min(found) if "checkpoint" in sections else found[-1]
    assert value(after, "held_out", "nats_per_token") == pytest.approx(last, abs=1e-5)
    assert len(before.tasks["general_text"].items) == 3
    assert {ANSWERS, "choices"} <= before.tasks.keys() == after.tasks.keys()
    main(["eval", str(inputs / "chat"), "--tasks", choices, "--output", str(tmp_path / "base.jsonl")])
    base = read_evaluation(tmp_path / "base.jsonl").tasks["choices"]
    for item, same in zip(base.items, before.tasks["choices"].items, strict=True):
        assert (item.item, item.values) == (same.item, same.values)
        assert item.details["logprobs"] == pytest.approx(same.details["logprobs"], abs=1e-4)
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert TABLE in card and "| held-out loss, nats per token |" in card and "| loss on general text" in card
    capsys.readouterr()
    main(["compare", str(before_path(tmp_path / "run")), str(after_path(tmp_path / "run"))])
    assert "held_out" in capsys.readouterr().out


def test_a_run_that_goes_on_keeps_the_base_and_measures_it_if_it_is_missing(inputs: Path, tmp_path: Path) -> None:
    config = sft_config(tmp_path, inputs)
    ran(config)
    run = tmp_path / "run"
    before, after = before_path(run).read_text(), after_path(run).read_text()

    def again() -> Ended:
        (run / FINISHED).unlink()
        return ran(config)

    assert "measuring" not in again().out  # both are there
    after_path(run).unlink()
    assert "measuring" in (out := again().out) and "before training" not in out
    before_path(run).unlink()
    assert "before training" in again().out
    assert (before_path(run).read_text(), after_path(run).read_text()) == (before, after)
    (run / FINISHED).unlink()
    assert "before training" in ran(config, "eval.before_after=1").out  # other things are measured


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_preferences_are_measured_by_the_likelihood_of_both_answers(loss: str, inputs: Path, tmp_path: Path) -> None:
    config = tiny_chat.write_config(
        tmp_path,
        inputs / "chat",
        [inputs / "pairs.jsonl"],
        preference={"loss": loss},
        eval={"every": None, "before_after": ALL, "sample_tokens": 8},
    )
    ran(config, recipe=RLHF)
    before, after = both(tmp_path / "run")
    if loss == "kto":
        assert {"desirable", "undesirable"} <= after.tasks.keys()
        return
    assert 0 < value(before, "held_out", "prefers_chosen") < value(after, "held_out", "prefers_chosen")
    (row, *_) = [row for row in metrics(tmp_path / "run") if "eval_chosen_logprob" in row]
    items = before.tasks["held_out"].items
    mean = sum(item.values["chosen_nats_per_token"] for item in items) / len(items)
    assert mean == pytest.approx(-row["eval_chosen_logprob"], rel=1e-4)


def test_of_a_policy_the_reward_of_the_same_prompts_is_measured(inputs: Path, tmp_path: Path) -> None:
    config = tiny_rl.write_config(
        tmp_path, inputs / "task", train={"steps": 3}, eval={"every": None, "before_after": ALL}
    )
    ran(config, recipe=RLHF)
    before, after = both(tmp_path / "run")
    scores = [row["eval_score"] for row in metrics(tmp_path / "run") if "eval_score" in row]
    assert [value(each, ANSWERS, "score") for each in (before, after)] == pytest.approx(scores)
    assert "mean reward of answers" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_a_file_that_cannot_be_written_is_a_line_of_the_log(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, evaluation: Evaluation) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr("llmtrain.eval.before_after.measure.save_evaluation", refused)
    out = ran(sft_config(tmp_path, inputs)).out
    for path in (before_path(tmp_path / "run"), after_path(tmp_path / "run")):
        assert f"warning: {path}: not written: read-only" in out


def test_a_run_that_ends_while_it_measures_the_base_measures_it_when_it_starts_again(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ends(BaseException):
        pass

    def ends(self: Answers, numbers: list[int]) -> None:
        raise Ends

    config = sft_config(tmp_path, inputs)
    with monkeypatch.context() as patched:
        patched.setattr(Answers, "_answered", ends)
        with pytest.raises(Ends):
            run_here(config, recipe=SFT)
    assert not before_path(tmp_path / "run").exists()
    assert "before training" in ran(config).out
    before, after = both(tmp_path / "run")
    assert before.model["step"] == 0 and {"held_out", ANSWERS} == before.tasks.keys() == after.tasks.keys()
    assert value(before, "held_out", "nats_per_token") == pytest.approx(losses(tmp_path / "run")[0], abs=1e-5)


def test_a_failure_is_a_line_on_the_card_and_fails_nothing(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Answers, numbers: list[int]) -> None:
        raise RuntimeError("no\nmemory")

    monkeypatch.setattr(Answers, "_answered", broken)
    ended = ran(sft_config(tmp_path, inputs))
    assert ended.out.count("warning: held out answers: not measured: no memory") == 2
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "Not measured: held out answers (no memory)." in card and "| held-out loss, nats per token |" in card


def test_messages_with_what_json_has_no_form_for_are_kept_as_text(inputs: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (inputs / "rows.jsonl").read_text().splitlines()]
    dated = [{"messages": [each | {"time": datetime(2020, 1, 1)} for each in row["messages"]]} for row in rows]
    pq.write_table(pa.Table.from_pylist(dated), tmp_path / "rows.parquet")
    evaluation = {"every": 5, "before_after": 4, "samples": 2, "sample_tokens": 8}
    ran(tiny_chat.write_config(tmp_path, inputs / "chat", [tmp_path / "rows.parquet"], eval=evaluation))
    before, _ = both(tmp_path / "run")
    assert before.tasks[ANSWERS].items[0].details["prompt"][0]["time"] == "2020-01-01 00:00:00"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["eval.general_text=nowhere.txt"], "eval.general_text: nowhere.txt: no such file or folder"),
        (
            ["eval.before_after=0", "eval.sample_tokens=128", "eval.general_text=x.txt"],
            "eval.general_text does nothing without eval.before_after",
        ),
        (["eval.before_after=-1"], "eval.before_after"),
    ],
)
def test_what_cannot_be_measured_is_refused_first(
    overrides: list[str], message: str, inputs: Path, tmp_path: Path
) -> None:
    ended = run_here(sft_config(tmp_path, inputs), *overrides, recipe=SFT)
    assert ended.code == 2 and message in ended.err and ended.err.count("\n") == 1
    assert "loading" not in ended.out


def test_without_held_out_data_there_is_nothing_and_a_line_says_so(inputs: Path, tmp_path: Path) -> None:
    config = sft_config(tmp_path, inputs, {"data": {"eval_fraction": 0.0}}, sample_tokens=128, samples=4, every=500)
    ended = ran(config)
    assert "eval.before_after: nothing is held out" in ended.out
    assert not before_path(tmp_path / "run").exists()
