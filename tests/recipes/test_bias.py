"""`llmtrain bias`: a run's model and its base, a reward model, the report, and what is refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import bias_sets
import pytest
import tiny_chat
from refusals import refused
from run_folders import write_run

from llmtrain.cli.main import main
from llmtrain.eval.tasks.results import read_evaluation


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    bias_sets.write_crows(folder, bias_sets.crows(30))
    bias_sets.write_winogender(folder)
    bias_sets.write_bbq(folder, bias_sets.bbq_rows("Age", questions=3))
    bias_sets.write_leaning_model(folder / "leaning", likelier=bias_sets.PREFERRED)
    bias_sets.write_leaning_model(folder / "even")
    return folder


def output(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def test_a_model_is_measured_and_compared_with_its_base_and_the_report_shows_both(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", "sft")
    shutil.copytree(inputs / "leaning", run / "model")
    main(["bias", str(run), "--against", str(inputs / "even"), "--data", str(inputs)])
    shown = output(capsys)
    assert "crows_pairs: CrowS-Pairs (Nangia et al. 2020)" in shown
    assert "100.0 %" in shown and "above it" in shown and "cannot show:" in shown
    worse = next(line for line in shown.splitlines() if line.startswith("crows_pairs  stereotype  "))
    assert worse.split()[2:5] == ["0.5000", "1.0000", "+0.5000"] and worse.endswith("worse")
    assert "is worse: 0.5000 from the ideal 0.5, the other is 0.0000 from it" in shown.replace(
        "where the other", "the other"
    )
    evaluation = read_evaluation(run / "bias.jsonl")
    assert set(evaluation.tasks) == {"crows_pairs", "winogender", "bbq"}
    main(["compare", str(run / "bias_against.jsonl"), str(run / "bias.jsonl")])
    assert worse in output(capsys).splitlines()
    main(["report", str(run)])
    page = (run / "report.html").read_text()
    for text in ("Bias and fairness", "50 % is ideal", "acc_ambig", "It cannot show", "Against ", "worse"):
        assert text in page, text


def test_the_measures_are_tasks_too(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "e.jsonl"
    main(["eval", str(inputs / "even"), "--tasks", "crows_pairs", "--data", str(inputs), "--output", str(results)])
    assert "crows_pairs  stereotype " in output(capsys)
    options = ["--measures", "crows_pairs", "--data", str(inputs), "--output", str(tmp_path / "b.jsonl")]
    main(["bias", str(inputs / "leaning"), *options, "--against", str(results)])
    assert "is worse" in output(capsys)


def test_measures_whose_files_are_not_there_are_left_out_unless_asked_for(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bias_sets.write_crows(tmp_path, bias_sets.crows(6))
    common = [str(inputs / "even"), "--data", str(tmp_path), "--output", str(tmp_path / "o.jsonl")]
    main(["bias", *common])
    assert "winogender is left out" in output(capsys)
    assert set(read_evaluation(tmp_path / "o.jsonl").tasks) == {"crows_pairs"}
    assert "which folder holds bbq's files? (none)" in refused(capsys, "bias", *common, "--measures", "bbq")


def reward_model(folder: Path, inputs: Path) -> Path:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    tiny_chat.write_model(folder, spread=0.3)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    shape = LlamaConfig.from_pretrained(folder, num_labels=1, pad_token_id=tokenizer.pad_token_id)
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(shape)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    return folder


def test_a_reward_model_is_measured_by_its_scores(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = reward_model(tmp_path / "reward", inputs)
    rows = [{"attribute": "name", "prompt": f"Who is {n}?", "first": "Ann is.", "second": "Bob is."} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    measures = f"crows_pairs,winogender,bbq,attribute_pairs={tmp_path / 'rows.jsonl'}"
    main(["bias", str(model), "--data", str(inputs), "--measures", measures])
    assert "first_higher/she - he" in output(capsys)
    found = read_evaluation(model / "bias.jsonl")
    assert list(found.tasks) == ["crows_pairs_scores", "winogender_scores", "attribute_pairs_scores"]
    assert found.tasks["attribute_pairs_scores"].items[0].details["scores"]
    assert "no pairs for it" in refused(capsys, "bias", str(model), "--data", str(inputs), "--measures", "bbq")


CASES: list[tuple[list[str], str]] = [
    (["{even}", "--data", "{inputs}", "--measures", "crows"], "no measure 'crows': the nearest is crows_pairs"),
    (["{even}", "--data", "{inputs}", "--measures", "bbq,bbq"], "bbq is there twice"),
    (["{even}", "--data", "{inputs}", "--measures", ","], "names none"),
    (["{even}", "--data", "{inputs}", "--limit", "0"], "--limit=0"),
    (["{even}"], "crows_pairs has no data on the hub: name its file"),
    (["{even}", "--data", "{tmp}/empty"], "none of crows_pairs, winogender, bbq is there"),
    (["{even}", "--data", "{tmp}/nowhere"], "nowhere"),
    (["{even}", "--data", "{inputs}", "--prompt", "Hi"], "--prompt is for reward models"),
    (["{tmp}/bare", "--data", "{inputs}"], "bare: cannot be loaded"),
    (["{tmp}/nowhere", "--data", "{inputs}"], "nowhere"),
    (["{even}", "--data", "{inputs}", "--against", "{tmp}/none.jsonl"], "none.jsonl: no such file"),
    (["{even}", "--data", "{tmp}/bad.csv", "--measures", "crows_pairs"], "bad.csv:2: not in the form of crows_pairs"),
    (
        ["{even}", "--data", "{inputs}", "--measures", "crows_pairs", "--against", "{tmp}/other.jsonl"],
        "no item in common",
    ),
    (["{even}", "--data", "{tmp}/none.csv", "--measures", "crows_pairs"], "none.csv: holds no rows of crows_pairs"),
    (["{even}", "--data", "{inputs}", "--output", "{tmp}/no/where.jsonl"], "does not exist"),
]


@pytest.mark.parametrize(("words", "message"), CASES, ids=[message for _, message in CASES])
def test_bad_input_is_one_line(
    words: list[str], message: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.csv").write_text("")
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    shutil.copytree(inputs / "even", tmp_path / "bare")
    for file in (tmp_path / "bare").glob("tok*"):
        file.unlink()
    if "{tmp}/other.jsonl" in words:
        bias_sets.write_crows(tmp_path, [("p", "q", "stereo", "age"), ("r", "s", "stereo", "age")])
        main(["bias", str(inputs / "even"), "--data", str(tmp_path), "--output", str(tmp_path / "other.jsonl")])
    places = {"even": inputs / "even", "inputs": inputs, "tmp": tmp_path}
    given: list[Any] = [word.format(**places) for word in words]
    if "--output" not in given:
        given += ["--output", str(tmp_path / "out.jsonl")]
    assert message in refused(capsys, "bias", *given)
