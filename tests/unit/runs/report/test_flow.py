"""The flow of the data adds up, and its numbers are the ledger's."""

from __future__ import annotations

from pathlib import Path

from run_folders import write_ledger, write_run

from llmtrain.runs.record import read_run
from llmtrain.runs.report.flow import ledger_flow, rows_flow, tokens_flow


def test_each_loss_of_rows_is_named_with_its_count(tmp_path: Path) -> None:
    lines = rows_flow(read_run(write_run(tmp_path / "run")))
    assert [(line.label, line.amount) for line in lines] == [
        ("rows read", 100),
        ("bad: not JSON", 3),
        ("dropped: no answer", 5),
        ("dropped: too long", 2),
        ("held out for evaluation", 10),
        ("rows to train on", 80),
    ]
    read, *lost, kept = lines
    assert read.amount - sum(line.amount for line in lost) == kept.amount


def test_the_tokens_add_up_from_the_rows_to_an_epoch(tmp_path: Path) -> None:
    lines = tokens_flow(read_run(write_run(tmp_path / "run")))
    assert [line.amount for line in lines] == [4600, 600, 4000, 2500, 20, 1480, 2900]
    assert lines[-1].label == "tokens trained, in 2 epochs"
    assert lines[-1].field == "training.tokens_trained"


def test_a_reward_model_reads_shared_prompts_once(tmp_path: Path) -> None:
    record = read_run(write_run(tmp_path / "run", recipe="reward", ledger=write_ledger(tokens_per_epoch=3700)))
    amounts = {line.label: line.amount for line in tokens_flow(record)}
    assert amounts["prompts of pairs, which both answers share"] == 300
    assert "read but not trained: prompts and templates" not in amounts


def test_a_run_that_has_trained_nothing_yet_shows_what_was_stored(tmp_path: Path) -> None:
    ledger = {name: value for name, value in write_ledger().items() if name != "training"}
    record = read_run(write_run(tmp_path / "run", is_finished=False, ledger=ledger))
    assert [line.amount for line in tokens_flow(record)] == [4600, 600, 4000, 2500]
    section = ledger_flow([record])
    assert section is not None and "4,600" in section.body


def test_without_a_ledger_there_is_no_section(tmp_path: Path) -> None:
    assert ledger_flow([read_run(write_run(tmp_path / "run", ledger={}))]) is None
