"""The page of runs in every state: it is written, says how they ended, escapes their texts, and is the same twice."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from made_up_runs import write_run as write_made_up
from run_folders import curves, write_lines, write_run

from llmtrain.runs.record import read_run
from llmtrain.runs.report.ending import ending
from llmtrain.runs.report.headlines import headlines_of
from llmtrain.runs.report.names import short_names
from llmtrain.runs.report.outcomes import outcomes
from llmtrain.runs.report.policy import policy
from llmtrain.runs.report.report import report_run, write_report
from llmtrain.runs.report.settings import changed_keys, differing_keys
from llmtrain.runs.report.story import story
from llmtrain.system.lease import this_process

HOSTILE = "</title><script>alert(1)</script>\x1b[31m $x^$ ]]> \" onload='x' \u202e{{ 7 * 7 }}"
VOID = {"meta", "br", "img", "link", "hr", "input"}


class Tags(HTMLParser):
    """Whether each tag is closed by its own, and which there are."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            assert not name.startswith("on"), f"a script in {tag} {name}"
            self.ids += [str(value)] if name == "id" else []
            self.links += [str(value)] if name in ("href", "src", "xlink:href") else []

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def refuse(warning: str) -> None:
    raise AssertionError(warning)


def page_of(*folders: Path) -> str:
    """The page, of which no section failed, and which needs nothing from elsewhere."""
    output = folders[0].parent / "page.html"
    text = write_report(folders, output, warn=refuse).read_text(encoding="utf-8")
    tags = Tags(text)
    assert not tags.open
    assert "script" not in tags.seen
    assert all(link.startswith("#") for link in tags.links)
    assert not [name for name in tags.links if name[1:] not in tags.ids]
    assert len(tags.ids) == len(set(tags.ids))
    return text


def test_a_finished_run_is_explained(tmp_path: Path) -> None:
    text = page_of(write_run(tmp_path / "run", curves(100)))
    for words in (
        "Supervised fine-tuning (SFT) of <code>base</code>",
        "80 rows of <code>rows.jsonl</code> (and 10 held out)",
        "It finished all of its 100 steps.",
        "before training: 4",
        "metrics.jsonl: eval_loss",
        "loss, nats per token",
        "epoch",
    ):
        assert words in text


def test_the_page_is_the_same_twice(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", curves(50))
    assert page_of(folder) == page_of(folder)


@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_few_rows_are_enough(tmp_path: Path, num_steps: int) -> None:
    assert "What was run" in page_of(write_run(tmp_path / "run", curves(num_steps), is_finished=False))


def test_a_run_without_any_row_says_so(tmp_path: Path) -> None:
    text = page_of(write_run(tmp_path / "run", is_finished=False))
    assert "No training step is on record." in text
    assert "No held-out evaluation is on record" in text


def test_without_evaluations_there_is_no_verdict_and_why(tmp_path: Path) -> None:
    rows = [row for row in curves(100) if "eval_loss" not in row]
    text = page_of(write_run(tmp_path / "run", rows))
    assert "No verdict" in text and "There are no evaluation rows" in text


def test_losses_that_are_not_finite_are_marked(tmp_path: Path) -> None:
    rows = [{**row, "loss": None} if row["step"] in (40, 41) and "loss" in row else row for row in curves(100)]
    text = page_of(write_run(tmp_path / "run", rows))
    assert "step skipped: not finite" in text and "steps 40, 41" in text


def test_events_are_marked_and_named(tmp_path: Path) -> None:
    events = [
        {"event": "started", "step": 0},
        {"event": "rolled_back", "step": 30, "to_step": 20, "loss": 9.0},
        {"event": "resumed", "step": 60},
        {"event": "slow", "step": 70, "rank": 3, "seconds": 2.0, "others": 0.5},
        {"event": "finished", "step": 100, "outcome": "finished"},
    ]
    text = page_of(write_run(tmp_path / "run", curves(100), events=events))
    assert "loss spike, rolled back" in text and "restarted" in text and "a slow rank" in text
    assert "1 restart (step 60); 1 report of a slow rank (step 70); 1 roll-back after a loss spike (step 30)" in text


def test_a_torn_last_line_is_no_matter_and_a_bad_one_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", curves(20), is_finished=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 19, "los\n{"step": 20, "los')
    assert "metrics.jsonl: 1 line cannot be read" in page_of(folder)


def test_a_run_of_an_earlier_version_is_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [{"step": 5, "loss": 2.0}, {"step": 5, "eval_loss": 2.0}])
    for name in ("environment.json", "ledger.json"):
        (folder / name).unlink()
    tree = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(re.sub(r"(?m)^  (report|patience|samples|neftune_alpha):.*\n", "", tree))
    assert "It did 5 steps." in page_of(folder)


def test_what_a_run_calls_things_cannot_become_markup(tmp_path: Path) -> None:
    ledger = json.loads((write_run(tmp_path / "other") / "ledger.json").read_text())
    ledger["train"][0] |= {"path": HOSTILE, "dropped": {HOSTILE: {"documents": 7, "bytes": 1}}}
    folder = write_run(
        tmp_path / "<img src=x onerror=alert(1)>",
        curves(100),
        ledger=ledger,
        events=[{"event": HOSTILE, "step": 3}, {"event": "failed", "step": 5, "reason": HOSTILE}],
        data={"train": HOSTILE},
    )
    (folder / "environment.json").write_text(json.dumps({"device": HOSTILE, "packages": {"torch": HOSTILE}}))
    text = page_of(folder)
    assert "&lt;/title&gt;&lt;script&gt;" in text
    assert "\x1b" not in text and "\u202e" not in text
    assert text.count("<title>") == text.count("<svg") + 1


def test_names_of_runs_are_drawn_as_they_are(tmp_path: Path) -> None:
    page_of(write_run(tmp_path / "$\\frac{", curves(10)), write_run(tmp_path / "_<b>&amp;", curves(10)))


def test_files_of_a_wrong_form_cost_their_section_only(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", curves(20), ledger={"train": [{"path": 5}]})
    warnings: list[str] = []
    text = write_report([folder], warn=warnings.append).read_text()
    assert len(warnings) == 2 and all(warning.startswith("warning: report: ") for warning in warnings)
    assert "ledger flow: not shown (KeyError" in text and "Gradient norm" in text


def test_several_runs_are_overlaid_and_their_differences_named(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a" / "run", curves(100))
    two = write_run(tmp_path / "b" / "run", curves(60, start=5.0), is_finished=False, optim={"lr": 0.5})
    text = page_of(one, two)
    assert "2 runs compared" in text
    records = [read_run(one), read_run(two)]
    assert set(differing_keys(records)) == {"run.dir", "optim.lr"}
    assert short_names([one, two]) == ["a", "b"]
    assert "Keys that differ between the runs:" in text
    assert len(re.findall("do not compare", text)) == 0


def test_runs_of_several_recipes_say_that_losses_do_not_compare(tmp_path: Path) -> None:
    text = page_of(write_run(tmp_path / "a", curves(20)), write_run(tmp_path / "b", curves(20), recipe="reward"))
    assert "These runs are of several recipes, whose losses do not compare." in text


def test_each_run_of_several_recipes_has_its_own_measure_before_and_after(tmp_path: Path) -> None:
    records = [read_run(write_made_up(tmp_path / recipe, recipe)) for recipe in ("sft", "reward", "kto")]
    head, *rows = re.findall(r"<tr>(.*?)</tr>", str(outcomes(records)))
    assert "held out, before and after" in head
    names = (
        "held-out loss, nats per token",
        "held-out pairs ranked right",
        "held-out answers on the right side of the KL",
    )
    fields = ("eval_loss", "eval_accuracy", "eval_accuracy")
    for row, record, name, field in zip(rows, records, names, fields, strict=True):
        cell = re.findall(r"<td[^>]*>(.*?)</td>", row)[-1]
        headline = next(each for each in headlines_of(record) if each.label == name)
        first, last = (headline.written(record.eval_rows[place][field]) for place in (0, -1))
        assert cell == f"{name}: {first} to {last}"


def test_the_tile_of_kto_speaks_of_answers(tmp_path: Path) -> None:
    text = page_of(write_made_up(tmp_path / "run", "kto"))
    assert "held-out answers on the right side of the KL" in text and "pairs ranked right" not in text


def test_answers_of_kto_without_a_finite_reward_are_counted(tmp_path: Path) -> None:
    folder = write_made_up(tmp_path / "run", "kto")
    path = sorted((folder / "evaluations").iterdir())[-1]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"answers_not_finite": 3.0}))
    assert "Rewards of 3 of them are not finite; these are in no picture." in page_of(folder)


def test_evaluations_of_an_older_version_are_named_as_what_the_roc_lacks(tmp_path: Path) -> None:
    folder = write_made_up(tmp_path / "run", "reward")
    for path in (folder / "evaluations").iterdir():
        path.write_text(json.dumps({"accuracy": 0.7}))
    text = page_of(folder)
    assert "An older version of llmtrain wrote the evaluations" in text
    assert "No pairs were held out" not in text and "eval_accuracy_low" in text


def test_a_model_is_named_also_if_its_path_ends_with_a_slash(tmp_path: Path) -> None:
    found = read_run(write_run(tmp_path / "run"))
    path = {"model": {**found.config["model"], "path": "runs/base/"}}
    assert "of <code>base</code>" in story(replace(found, config={**found.config, **path}))


def test_the_peak_learning_rate_of_muon_is_muons(tmp_path: Path) -> None:
    adamw = read_run(write_run(tmp_path / "adamw", optim={"lr": 3e-4}))
    assert "with AdamW at a peak learning rate of 0.0003, " in story(adamw)
    muon = read_run(write_run(tmp_path / "muon", optim={"name": "muon", "lr": 3e-4, "muon_lr": 0.05}))
    assert "with Muon at a peak learning rate of 0.05 (AdamW for what is no hidden matrix: 0.0003), " in story(muon)


def test_changed_keys_are_those_that_are_not_the_defaults(tmp_path: Path) -> None:
    changed = changed_keys(read_run(write_run(tmp_path / "run", optim={"beta2": 0.5})))
    assert changed["optim.beta2"] == 0.5
    assert changed["adapter.rank"] == 8
    assert "optim.beta1" not in changed and "log.every" not in changed


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["/x/runs/a"], ["a"]),
        (["/x/mine/run"], ["mine/run"]),
        (["/run"], ["/run"]),
        (["/x/runs/a", "/x/runs/b"], ["a", "b"]),
        (["/x/one/run", "/x/two/run"], ["one", "two"]),
        (["/x/one/a", "/x/two/a", "/x/one/b"], ["one/a", "two/a", "one/b"]),
        (["/x/a", "/x/a/b"], ["a", "a/b"]),
        (["/x/a", "/x/a"], ["a", "a"]),
    ],
)
def test_names_are_what_differs_of_paths(names: list[str], short: list[str]) -> None:
    assert short_names([Path(name) for name in names]) == short


def lease_of(process: dict[str, Any]) -> str:
    return json.dumps({**vars(this_process()), "beats": 1, "heartbeat": "now", **process})


@pytest.mark.parametrize(
    ("events", "lease", "is_finished", "how"),
    [
        ([], None, True, "finished"),
        ([], None, False, "unknown"),
        ([], {}, False, "running"),
        ([], {"pid_started": "long ago"}, False, "killed"),
        ([], {"host": f"not {socket.gethostname()}"}, False, "unknown"),
        ([{"event": "started"}], {"pid_started": "long ago"}, False, "killed"),
        ([{"event": "started"}, {"event": "interrupted", "reason": "SIGTERM"}], None, False, "interrupted"),
        ([{"event": "failed", "reason": "loss not finite"}], None, False, "failed"),
        ([{"event": "finished", "outcome": "stopped early"}], None, True, "stopped early"),
        ([{"event": "finished", "outcome": "finished"}, {"event": "resumed"}], {}, True, "running"),
    ],
)
def test_how_a_run_ended(
    tmp_path: Path, events: list[dict[str, Any]], lease: dict[str, Any] | None, is_finished: bool, how: str
) -> None:
    folder = write_run(tmp_path / "run", curves(100), is_finished=is_finished)
    write_lines(folder / "events.jsonl", [{"step": 100, **event} for event in events])
    if lease is not None:
        (folder / "lease-000001.json").write_text(lease_of(lease))
    record = read_run(folder)
    assert ending(record).how == how
    assert ending(record).sentence in story(record)


def test_the_last_step_is_that_of_the_event_that_ended_the_run_if_rows_are_rarer(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", curves(100), is_finished=False)
    write_lines(folder / "events.jsonl", [{"event": "interrupted", "step": 107, "reason": "SIGTERM"}])
    assert "It was stopped (SIGTERM) after 107 steps and saved" in ending(read_run(folder)).sentence


@pytest.mark.parametrize(
    ("outcome", "why"),
    [("finished", "the KL exceeded policy.kl_budget"), ("stopped early", "the held-out score no longer rose")],
)
def test_a_policy_run_says_why_it_ended_before_its_last_step(tmp_path: Path, outcome: str, why: str) -> None:
    found = read_run(write_made_up(tmp_path / "run", "policy"))
    events = [{"event": "finished", "step": 60, "outcome": outcome}]
    config = {**found.config, "train": {**found.config["train"], "steps": 90}}
    ended = ending(replace(found, config=config, events=events))
    assert (ended.how, ended.sentence) == ("stopped early", f"It stopped early, after 60 steps of 90: {why}.")


def test_ten_thousand_rows_are_a_page_under_two_megabytes(tmp_path: Path) -> None:
    rows = curves(10_000, every=100)
    rows[5000]["grad_norm"] = 123.0
    assert len(page_of(write_run(tmp_path / "run", rows)).encode()) < 2_000_000


def test_many_events_and_evaluations_are_a_page_under_two_megabytes(tmp_path: Path) -> None:
    folder = write_made_up(tmp_path / "run", "reward")
    rows = [{"step": step, "loss": 0.5, "lr": 1e-3} for step in range(1, 3001)]
    measured = {"eval_loss": 0.5, "eval_accuracy": 0.6, "eval_accuracy_low": 0.5, "eval_accuracy_high": 0.7}
    write_lines(folder / "metrics.jsonl", [*rows, *({"step": row["step"], **measured} for row in rows)])
    events = ("skipped", "resumed", "rolled_back")
    write_lines(folder / "events.jsonl", [{"event": each, "step": row["step"]} for row in rows for each in events])
    assert len(page_of(folder).encode()) < 2_000_000


def test_no_run_of_many_is_left_out_of_a_figure(tmp_path: Path) -> None:
    records = [read_run(write_made_up(tmp_path / f"number-{i}", "policy", seed=i)) for i in range(10)]
    section = policy(records)
    assert section is not None
    entropy = next(part for part in section.body.split("<figure>") if "Entropy over steps" in part)
    assert all(f">number-{i}<" in entropy for i in range(10))


def test_a_loss_of_zero_is_drawn_and_not_lost_on_a_logarithmic_axis(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": 0.0 if step == 50 else 100.0 / step} for step in range(1, 101)]
    assert "log scale" not in page_of(write_run(tmp_path / "zero", rows))
    assert "log scale" in page_of(write_run(tmp_path / "above", [row for row in rows if row["loss"]]))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it is not the folder of a run"):
        write_report([tmp_path])


def test_a_report_that_fails_is_a_line_and_no_error(tmp_path: Path) -> None:
    lines: list[str] = []
    report_run(tmp_path, lines.append)
    assert len(lines) == 1 and lines[0].startswith("warning: no report: ")


def test_without_matplotlib_a_line_says_what_to_install(tmp_path: Path) -> None:
    folder, lines = write_run(tmp_path / "run", curves(10)), list[str]()
    with patch.dict("sys.modules", {"matplotlib": None}):
        report_run(folder, lines.append)
    assert lines == ["warning: no report: a report needs matplotlib: pip install 'llmtrain[report]'"]
    assert not (folder / "report.html").exists()


def test_the_report_of_a_run_is_in_its_folder(tmp_path: Path) -> None:
    folder, lines = write_run(tmp_path / "run", curves(10)), list[str]()
    moved = folder.rename(tmp_path / "moved")
    report_run(moved, lines.append)
    assert lines == [f"report: {moved / 'report.html'}"]
    assert os.listdir(moved).count("report.html") == 1


def test_a_report_needs_no_torch() -> None:
    heavy = "import sys, llmtrain.cli.report; print({'torch', 'transformers', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout == "set()\n"
