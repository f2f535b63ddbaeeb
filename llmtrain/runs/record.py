"""What a run's folder says of the run: everything that a report, a comparison or a search reads, from files only.

The run may be finished, stopped, killed or still going: what is missing is empty, a line that a kill cut short is left
out, and what cannot be read is named in `problems`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain.config.load import read_yaml
from llmtrain.config.recipes import PretrainConfig, SftConfig
from llmtrain.config.sections import Section
from llmtrain.config.which import STAGES, saved_schema
from llmtrain.models.folders.files import REWARD_CARD
from llmtrain.runs.folder import CONFIG, ENVIRONMENT, FINISHED, LEDGER, read_json
from llmtrain.runs.rows import Row, Rows
from llmtrain.system.counted import counted
from llmtrain.system.files import one_line
from llmtrain.system.json_lines import parsed, whole_lines
from llmtrain.system.lease import Verdict, Watch, contents
from llmtrain.system.paths import no_folder
from llmtrain.system.run_files import EVALUATIONS, EVENTS_FILE, METRICS_FILE, SAMPLES_FILE

SCHEMAS: dict[type[Section], str] = {
    PretrainConfig: "pretrain",
    SftConfig: "sft",
    **{schema: stage for stage, schema in STAGES.items()},
}
"""Schema of a saved configuration -> its recipe; the stages of rlhf are recipes of their own."""


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run's folder, read once; two records are equal if they are the same one."""

    folder: Path
    recipe: str  # pretrain, sft, reward, preference (DPO and its variants, KTO) or policy (PPO and its family)
    config: Mapping[str, Any]  # `config.yaml`: nested, defaults included
    environment: Mapping[str, Any]
    ledger: Mapping[str, Any]
    train_rows: Rows  # of `metrics.jsonl`, by step; a loss that was not finite is None
    eval_rows: Rows  # those with `eval_loss`
    events: Sequence[Row]  # of `events.jsonl`, in the order in which they happened
    samples: Sequence[Row]  # of `samples.jsonl`
    evaluations: Mapping[int, Mapping[str, Any]]  # step -> its report
    reward_card: Mapping[str, Any]
    is_finished: bool
    problems: Sequence[str]  # a line for each file that cannot be read whole
    writer: Verdict | None = None  # whether the process that holds the folder lives; None: no process holds it


def read_run(folder: Path) -> RunRecord:
    """Read the folder of a run. Raises ValueError if it is not a run's, or its configuration cannot be read."""
    if not folder.exists():
        raise ValueError(f"{folder}: {no_folder(folder)}")
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} has no {CONFIG}: it is not the folder of a run")
    config = read_yaml(folder / CONFIG)
    problems: list[str] = []
    train_rows, eval_rows, num_bad = Rows.read(folder / METRICS_FILE)
    if num_bad:
        problems.append(f"{METRICS_FILE}: {counted(num_bad, 'line')} cannot be read")
    evaluations = {
        int(path.stem.removeprefix("step-")): report
        for path in sorted((folder / EVALUATIONS).glob("step-*.json"))
        if path.stem.removeprefix("step-").isdecimal() and (report := _tree(path, problems))
    }
    return RunRecord(
        folder=folder,
        recipe=SCHEMAS[saved_schema(config, folder / CONFIG)],
        config=config,
        environment=_tree(folder / ENVIRONMENT, problems),
        ledger=_tree(folder / LEDGER, problems),
        train_rows=train_rows,
        eval_rows=eval_rows,
        events=_lines(folder / EVENTS_FILE, problems),
        samples=_lines(folder / SAMPLES_FILE, problems),
        evaluations=evaluations,
        reward_card=_tree(folder / REWARD_CARD, problems),
        is_finished=(folder / FINISHED).is_file(),
        writer=_writer(folder),
        problems=problems,
    )


def _writer(folder: Path) -> Verdict | None:
    """Whether the last process that took the folder lives; "unknown" if it is on another machine."""
    *_, last = (None, *(Watch().verdict(number, content) for number, content in sorted(contents(folder))))
    return last


def _tree(path: Path, problems: list[str]) -> Mapping[str, Any]:
    """The mapping in a JSON file; empty if there is none, or if it cannot be read, which is noted."""
    if not path.is_file():
        return {}
    try:
        return read_json(path, "left out")
    except ValueError as error:
        problems.append(one_line(error))
        return {}


def _lines(path: Path, problems: list[str]) -> Sequence[Row]:
    """The mappings in a JSON Lines file, but for a last line that is not whole: it may be being written."""
    lines = [parsed(line) for line in whole_lines(path)]
    rows = [row for row in lines if row is not None]
    if num_bad := len(lines) - len(rows):
        problems.append(f"{path.name}: {counted(num_bad, 'line')} cannot be read")
    return rows
