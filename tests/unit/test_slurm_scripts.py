"""What the scripts of slurm/ do with the exit codes of nodes, with programs in place of Slurm's: checked anywhere.

tests/slurm submits the same files to a real Slurm.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "slurm"
TRAIN = ("pretrain", "sft", "rlhf")
PROGRAMS = {
    "srun": """#!/bin/bash
# Runs the command of a step once per node, and ends with the highest exit code.
while [[ $1 == --* ]]; do shift; done
export BATCH=$PPID
highest=0
for code in $NODE_CODES; do
  code=$code "$@" || { ended=$?; ((ended > highest)) && highest=$ended; }
done
exit $highest
""",
    "llmtrain": '#!/bin/bash\necho "$@" >> commands\neval "$ON_START"\nexit "$code"\n',
    "scontrol": '#!/bin/bash\necho "$@" >> scontrol\n',
}
SLURM = {"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "16", "SLURM_CPUS_PER_TASK": "8"}


def run(folder: Path, script: str, codes: str, *arguments: str, on_start: str = "") -> int:
    """Run a script as a batch job of nodes that end with `codes`; its exit code."""
    for name, text in PROGRAMS.items():
        (folder / "bin").mkdir(exist_ok=True)
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **SLURM, "PATH": path, "NODE_CODES": codes, "ON_START": on_start}
    environment.pop("LLMTRAIN_ACCELERATE", None)
    return subprocess.run(
        ["bash", str(SCRIPTS / f"{script}.sbatch"), *arguments], cwd=folder, env=environment
    ).returncode


def requeued(folder: Path) -> bool:
    return (folder / "scontrol").exists() and (folder / "scontrol").read_text() == "requeue 7\n"


@pytest.mark.parametrize("script", TRAIN)
@pytest.mark.parametrize(
    ("codes", "ends_with", "is_requeued"),
    [
        ("0 0", 0, False),
        ("75 75", 75, True),
        ("2 75", 2, False),  # the second was stopped because the first one refused
        ("2 143", 2, False),  # before it could hear the signal
        ("75 1", 1, False),
        ("130 130", 130, False),
    ],
)
def test_a_job_is_queued_again_if_all_its_nodes_have_saved(
    tmp_path: Path, script: str, codes: str, ends_with: int, is_requeued: bool
) -> None:
    assert run(tmp_path, script, codes) == ends_with
    assert requeued(tmp_path) == is_requeued


@pytest.mark.parametrize("script", ["sweep", "prepare"])
@pytest.mark.parametrize(("code", "is_requeued"), [(0, False), (75, True), (1, False)])
def test_a_job_of_one_node_is_queued_again_if_it_has_saved(
    tmp_path: Path, script: str, code: int, is_requeued: bool
) -> None:
    assert run(tmp_path, script, str(code)) == code
    assert requeued(tmp_path) == is_requeued


@pytest.mark.parametrize("script", [*TRAIN, "sweep", "prepare"])
def test_a_cancelled_job_is_not_queued_again(tmp_path: Path, script: str) -> None:
    """Slurm sends SIGTERM to all processes of the job, the script's shell among them."""
    assert run(tmp_path, script, "75", on_start="kill -TERM $BATCH") == 75
    assert not requeued(tmp_path)


@pytest.mark.parametrize("script", TRAIN)
def test_arguments_replace_the_fourth_line(tmp_path: Path, script: str) -> None:
    assert run(tmp_path, script, "0", "my own.yaml", "optim.lr=1") == 0
    launched = f"launch --config_file ddp --log_dir logs {script}"
    assert (tmp_path / "commands").read_text() == f"{launched} my own.yaml optim.lr=1\n"
    assert run(tmp_path, script, "0") == 0
    assert (tmp_path / "commands").read_text().splitlines()[1].startswith(f"{launched} my.yaml data.train=/shared/")


def test_the_scripts_that_train_differ_in_what_they_train_only() -> None:
    texts = [(SCRIPTS / f"{name}.sbatch").read_text().replace(name, "VERB").splitlines() for name in TRAIN]
    for lines in zip(*texts, strict=True):
        assert len(set(lines)) == 1 or lines[0].startswith(("run=", "# Pretraining"))
