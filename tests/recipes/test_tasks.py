"""Tasks in a run: measured at each evaluation, as rewards of a policy, and after it by `llmtrain eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_chat
import tiny_rl
import tiny_run
from refusals import refused
from tiny_run import PRETRAIN, RLHF, SFT, Ended, metrics, run_here

from llmtrain.cli.main import main
from llmtrain.eval.tasks.results import NATS_PER_TOKEN, estimate, read_evaluation

CHOICES = [
    {"prompt": f"{a} or {b}?", "choices": [a, b], "answer": n % 2} for n, (a, b) in enumerate(["ab", "cd", "ef"] * 2)
]
ANSWERS = [{"prompt": f"Say {word}.", "answer": word} for word in ("a", "b", "c")]
LOUD = (
    "from llmtrain.tasks.task import AnswerItem, AnswerTask, text_of\n\n"
    "def item(fields):\n    return AnswerItem(text_of(fields, 'prompt'))\n\n"
    "def share(prompts, responses, rows):\n    return [text.count('a') / 8 for text in responses]\n\n"
    "TASK = AnswerTask('letters', 'ours', item, {'share': share}, max_new_tokens=4)\n"
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    tiny_chat.write_model(folder / "chat", spread=0.1)
    tiny_chat.write_rows(folder / "rows.jsonl", seed=1)
    for name, rows in (("choices", CHOICES), ("answers", ANSWERS)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "letters.py").write_text(LOUD)
    return folder


def ran(config: Path, recipe: Path, *overrides: str) -> Ended:
    ended = run_here(config, *overrides, recipe=recipe)
    assert (ended.code, ended.err) == (0, "")
    return ended


def sft_config(folder: Path, inputs: Path, sections: dict[str, Any] | None = None, **evaluation: Any) -> Path:
    rows = [inputs / "rows.jsonl"]
    return tiny_chat.write_config(
        folder, inputs / "chat", rows, eval={"every": 5, "samples": 0} | evaluation, **(sections or {})
    )


@pytest.mark.parametrize("sections", [{}, {"adapter": {"kind": "lora", "rank": 4}}], ids=["full", "adapter"])
def test_tasks_are_measured_at_every_evaluation_as_eval_measures_the_model(
    sections: dict[str, Any], inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [str(inputs / "choices.jsonl"), f"{inputs / 'letters.py'}={inputs / 'answers.jsonl'}"]
    ended = ran(sft_config(tmp_path, inputs, sections, tasks=own), SFT)
    rows = [row for row in metrics(tmp_path / "run") if "eval_loss" in row]
    assert len(rows) == 3
    names = {"eval_task/choices/acc", "eval_task/choices/acc_norm", "eval_task/letters/share", "eval_task/letters/ends"}
    for row in rows:
        found = {name for name in row if name.startswith("eval_task/")}
        guessed = {f"{name}_chance" for name in names if "choices" in name}
        assert found == names | {f"{name}_{end}" for name in names for end in ("low", "high")} | guessed
    assert "choices acc" in ended.out
    main(["eval", str(tmp_path / "run"), "--tasks", ",".join(own)])
    evaluation = read_evaluation(tmp_path / "run" / "evaluation.jsonl")
    for task, result in evaluation.tasks.items():
        for measure in result.measures:
            value = estimate(result.items, measure).value
            assert value == pytest.approx(rows[-1][f"eval_task/{task}/{measure.name}"], abs=1e-6)
    out = capsys.readouterr().out
    assert "95 % interval" in out and "not distinguishable from chance" in out


def test_tasks_of_a_run_are_asked_through_the_chat_template_if_it_says_so(inputs: Path, tmp_path: Path) -> None:
    own = [str(inputs / "choices.jsonl"), str(inputs / "answers.jsonl")]
    ran(sft_config(tmp_path, inputs, tasks=own, task_chat=True), SFT)
    last = [row for row in metrics(tmp_path / "run") if "eval_loss" in row][-1]
    main(["eval", str(tmp_path / "run"), "--tasks", ",".join(own), "--chat"])
    for task, result in read_evaluation(tmp_path / "run" / "evaluation.jsonl").tasks.items():
        assert result.facts["chat"] is True
        for measure in result.measures:
            value = estimate(result.items, measure).value
            assert value == pytest.approx(last[f"eval_task/{task}/{measure.name}"], abs=1e-6)


def test_pretraining_measures_tasks_too(inputs: Path, tmp_path: Path) -> None:
    tokenizer = tiny_run.write_tokenizer(tmp_path / "tokenizer")
    corpus = tiny_run.write_corpus(tmp_path / "corpus.jsonl", seed=0)
    config = tiny_run.write_config(
        tmp_path, tokenizer, [corpus], eval={"every": None, "tasks": [str(inputs / "choices.jsonl")]}
    )
    ran(config, PRETRAIN)
    assert all("eval_task/choices/acc" in row for row in metrics(tmp_path / "run") if "eval_loss" in row)


def test_two_pretraining_runs_are_compared_on_what_they_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tiny_run.write_tokenizer(tmp_path / "tokenizer")
    corpus = tiny_run.write_corpus(tmp_path / "corpus.jsonl", seed=0)
    for name, steps in (("short", 1), ("long", 12)):
        config = tiny_run.write_config(tmp_path / name, tokenizer, [corpus], data={"eval_fraction": 0.2})
        ran(config, PRETRAIN, f"train.steps={steps}", "eval.every=null", "optim.warmup_steps=0")
    short, long = (str(tmp_path / name / "run") for name in ("short", "long"))
    main(["compare", short, long, "--tasks", "held_out", "--trained-on", "none"])
    out = capsys.readouterr().out
    assert f"text bits_per_byte: {long} is better" in out
    held_out = read_evaluation(tmp_path / "long" / "run" / "evaluation.jsonl").tasks["text"]
    (last,) = [row for row in metrics(tmp_path / "long" / "run") if "eval_loss" in row][-1:]
    # Documents that are cut between packs are whole here, so that the two losses are close and not equal.
    assert estimate(held_out.items, NATS_PER_TOKEN).value == pytest.approx(last["eval_loss"], rel=0.05)
    ledger = json.loads((tmp_path / "long" / "run" / "ledger.json").read_text())
    assert ledger["train"][0]["kept"]["eval"]["documents"] == len(held_out.items) > 10


def test_a_task_rewards_a_policy(inputs: Path, tmp_path: Path) -> None:
    task = tiny_rl.write_task(tmp_path / "task")
    config = tiny_rl.write_config(
        tmp_path,
        task,
        train={"steps": 2},
        eval={"every": None, "tasks": [str(inputs / "choices.jsonl")]},
        rollout={"rewards": [f"task:{inputs / 'letters.py'}"]},
    )
    ran(config, RLHF)
    rows = [row for row in metrics(tmp_path / "run") if "eval_score" in row]
    assert rows and all(0 <= row["eval_score"] <= 1 and "eval_task/choices/acc" in row for row in rows)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["arc_eazy"], "eval.tasks: no task 'arc_eazy': the nearest is arc_easy"),
        (["piqa=nowhere.jsonl"], "nowhere.jsonl: no such file or folder"),
        (["piqa={inputs}/choices.jsonl"], "choices.jsonl:1: not in the form of piqa: no field"),
        (["countdown"], "countdown has no data on the hub"),
    ],
)
def test_a_wrong_task_is_refused_before_a_model_is_loaded(
    inputs: Path, tmp_path: Path, tasks: list[str], message: str
) -> None:
    config = sft_config(tmp_path, inputs, tasks=[task.format(inputs=inputs) for task in tasks])
    ended = run_here(config, recipe=SFT)
    assert ended.code == 2 and message in ended.err and ended.err.count("\n") == 1
    assert "loading" not in ended.out


@pytest.mark.parametrize("reward", ["task:piqa", "task:gsm9k", "task:nowhere.py"])
def test_a_reward_that_is_no_task_is_refused(reward: str, tmp_path: Path) -> None:
    task = tiny_rl.write_task(tmp_path / "task")
    ended = run_here(tiny_rl.write_config(tmp_path, task, rollout={"rewards": [reward]}), recipe=RLHF)
    assert ended.code == 2 and "rollout.rewards[0]" in ended.err and ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--tasks", "choices={inputs}/answers.jsonl"],
            "answers.jsonl:1: not in the form of choices: no field 'choices'",
        ),
        (["--tasks", ""], "--tasks names no task"),
        (["--tasks", "piqa", "--data", "{inputs}"], "which file is piqa's? (none)"),
        (["--tasks", "{inputs}/choices.jsonl", "--limit", "0"], "--limit=0: give at least 1"),
        (["--tasks", "{inputs}/choices.jsonl,choices={inputs}/choices.jsonl"], "choices is there twice"),
        (["--tasks", "{inputs}/choices.jsonl", "--output", "no/where.jsonl"], "the folder no does not exist"),
        (["--tasks", "{inputs}/choices.jsonl", "--output", "{inputs}"], "is a folder"),
        (["--tasks", "held_out"], "this is no run's folder"),
        (["--tasks", "nowhere.py"], "error: --tasks: nowhere.py: no such file\n"),
        (["--tasks", "{inputs}/choices.jsonl", "--harness"], "needs lm-evaluation-harness"),
    ],
)
def test_bad_input_of_eval_is_one_line(
    inputs: Path, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, "eval", inputs / "chat", *(word.format(inputs=inputs) for word in argv))


def test_results_of_other_tasks_stay_if_the_weights_are_the_same_and_are_named_if_not(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_chat.write_model(tmp_path / "model", spread=0.2)
    choices, answers = (str(inputs / name) for name in ("choices.jsonl", "answers.jsonl"))
    main(["eval", str(model), "--tasks", f"{choices},{answers}", "--max-new-tokens", "2"])
    assert "earlier" not in capsys.readouterr().out
    main(["eval", str(model), "--tasks", choices])
    assert "evaluation.jsonl: keeps earlier results of the same weights: answers" in capsys.readouterr().out
    assert read_evaluation(model / "evaluation.jsonl").tasks.keys() == {"choices", "answers"}
    tiny_chat.write_model(model, spread=0.3)
    main(["eval", str(model), "--tasks", choices])
    out = capsys.readouterr().out
    assert "evaluation.jsonl: replaces earlier results of other weights, which had answers too" in out
    assert read_evaluation(model / "evaluation.jsonl").tasks.keys() == {"choices"}
    assert not (model / "evaluation.jsonl.unfinished").exists()


def test_a_second_file_of_rows_of_a_kind_goes_by_its_name(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in CHOICES[:4]))
    model, output = str(inputs / "chat"), str(tmp_path / "out.jsonl")
    main(["eval", model, "--tasks", f"{inputs / 'choices.jsonl'},{tmp_path / 'more.jsonl'}", "--output", output])
    assert {name: len(result.items) for name, result in read_evaluation(Path(output)).tasks.items()} == {
        "choices": len(CHOICES),
        "more": 4,
    }


def test_a_model_without_a_tokenizer_is_refused(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((inputs / "chat" / name).read_bytes())
    assert "tokenizer" in refused(capsys, "eval", tmp_path, "--tasks", inputs / "choices.jsonl")


def test_tasks_are_not_announced_where_nothing_is_held_out(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "Say a."}) + "\n")
    config = tiny_chat.write_config(
        tmp_path,
        inputs / "chat",
        [tmp_path / "prompts.jsonl"],
        policy={},
        rollout={"rewards": [{"name": "length", "target": 4}], "num_prompts": 2, "max_new_tokens": 4},
        data={"eval_fraction": 0.01},
        eval={"every": 1, "tasks": [str(inputs / "choices.jsonl")]},
        train={"steps": 1, "microbatch_tokens": 512, "global_batch_tokens": 65536},
    )
    ended = ran(config, RLHF)
    assert "eval.tasks: nothing is measured: nothing is held out" in ended.out
    assert "6 items of" not in ended.out and not any("eval_score" in row for row in metrics(tmp_path / "run"))
