"""Two nodes of a real Slurm train what one machine trains, by the very scripts that users submit, whatever happens."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import NUM_NODES, Cluster
from fault_table import record
from jobs import ENGINES, RECIPES, WAITING_STEP, Job, write_inputs
from launch import launch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LeftAlone = Callable[[str, str], Path]
SLOW_SAVE_SECONDS = 40  # longer than Slurm's KillWait, within its GraceTime
LAST_SAVED_STEP = 4


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def left_alone(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> LeftAlone:
    """The run of a recipe under an engine that nothing disturbed, of two processes on this machine without Slurm."""
    runs: dict[tuple[str, str], Path] = {}

    def run(verb: str, engine: str) -> Path:
        if (verb, engine) not in runs:
            folder = tmp_path_factory.mktemp("left-alone")
            arguments = [str(inputs / verb / "config.yaml"), f"run.dir={folder / 'run'}"]
            launch(RECIPES[verb], arguments, config=ENGINES[engine], output=folder / "process")
            runs[verb, engine] = folder / "run"
        return runs[verb, engine]

    return run


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("verb", RECIPES)
def test_two_nodes_train_what_one_machine_trains(
    slurm: Cluster, inputs: Path, left_alone: LeftAlone, tmp_path: Path, verb: str, engine: str
) -> None:
    run = Job(slurm, inputs, tmp_path, verb, engine)
    job = run.submit()
    assert slurm.wait_ended(job) == "COMPLETED", slurm.output(job)
    run.assert_ends_as(left_alone(verb, engine))


def test_a_job_that_is_requeued_goes_on_and_a_second_job_on_its_folder_is_refused(
    slurm: Cluster, inputs: Path, left_alone: LeftAlone, tmp_path: Path
) -> None:
    run = Job(slurm, inputs, tmp_path, "pretrain", "ddp")
    job = run.submit_to_wait()
    second = run.submit()
    assert slurm.wait_ended(second) == "FAILED"
    assert slurm.show(second)["ExitCode"] == "2:0"
    refusals = [line for line in slurm.output(second).splitlines() if line.startswith("error: ")]
    assert len(refusals) == 1 and f"run.dir={run.run_dir}" in refusals[0], slurm.output(second)
    assert "Traceback" not in slurm.output(second)
    record(fault="a second job on the folder of a run", sees=refusals[0], lost="nothing")

    slurm.run("scontrol", "requeue", job)
    assert run.goes_on_from(job) == WAITING_STEP
    run.assert_ends_as(left_alone("pretrain", "ddp"))
    record(
        fault="`scontrol requeue` of a running job",
        sees=interrupted_line(slurm.output(job)),
        lost="nothing, if the save takes less than Slurm's KillWait (30 s by default)",
    )


def test_a_job_that_is_cancelled_saves_and_stays_cancelled(
    slurm: Cluster, inputs: Path, left_alone: LeftAlone, tmp_path: Path
) -> None:
    run = Job(slurm, inputs, tmp_path, "pretrain", "ddp")
    job = run.submit_to_wait()
    slurm.run("scancel", job)
    assert slurm.wait_ended(job) == "CANCELLED"
    assert run.saved_steps()[-1] == WAITING_STEP
    assert slurm.show(job)["Restarts"] == "0"
    record(
        fault="`scancel` of a running job",
        sees=interrupted_line(slurm.output(job)),
        lost="nothing, if the save takes less than Slurm's KillWait (30 s by default); submit the job again",
    )
    run.go.touch()
    assert run.ended_after_resuming(run.submit()) == WAITING_STEP
    run.assert_ends_as(left_alone("pretrain", "ddp"))


def test_a_job_at_its_time_limit_saves_and_goes_on(
    slurm: Cluster, inputs: Path, left_alone: LeftAlone, tmp_path: Path
) -> None:
    run = Job(slurm, inputs, tmp_path, "sft", "zero3")
    job = run.submit_to_wait()
    hours, minutes, seconds = map(int, slurm.show(job)["RunTime"].split(":"))
    limit_minutes = -(-(hours * 3600 + minutes * 60 + seconds + 75) // 60)  # the signal is due 60 s before
    slurm.run("scontrol", "update", f"JobId={job}", f"TimeLimit={limit_minutes}")
    assert run.goes_on_from(job) == WAITING_STEP
    assert f"saved; job {job} is queued again" in slurm.output(job)
    run.assert_ends_as(left_alone("sft", "zero3"))
    record(fault="the time limit", sees=interrupted_line(slurm.output(job)), lost="nothing")


def test_a_job_whose_processes_on_one_node_are_killed_ends_at_once_and_the_next_goes_on(
    slurm: Cluster, inputs: Path, left_alone: LeftAlone, tmp_path: Path
) -> None:
    run = Job(slurm, inputs, tmp_path, "pretrain", "zero3")
    job = run.submit_to_wait(waiting_ranks=[1])  # the other one waits for it in a collective
    workers = slurm.processes(SLURM_JOB_ID=job, RANK="1")
    assert workers
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    assert slurm.wait_ended(job) == "FAILED"
    assert slurm.show(job)["Restarts"] == "0" and slurm.show(job)["ExitCode"] != "75:0"
    errors = [line for line in slurm.output(job).splitlines() if "error: rank 1 " in line]
    assert len(errors) == 1 and "SIGKILL" in errors[0], slurm.output(job)
    run.go.touch()
    assert run.ended_after_resuming(run.submit()) == LAST_SAVED_STEP
    run.assert_ends_as(left_alone("pretrain", "zero3"))
    record(
        fault="`kill -9` of the processes of one node (out of memory)",
        sees=errors[0],
        lost="steps after the last checkpoint; submit the job again",
    )


def test_a_job_that_loses_a_node_is_queued_again_by_slurm(
    slurm: Cluster, inputs: Path, left_alone: LeftAlone, tmp_path: Path
) -> None:
    run = Job(slurm, inputs, tmp_path, "sft", "ddp")
    job = run.submit_to_wait()
    lost = slurm.run("scontrol", "show", "hostnames", slurm.show(job)["NodeList"]).split()[1]
    slurm.run("scontrol", "update", f"NodeName={lost}", "State=DOWN", "Reason=lost")
    assert run.goes_on_from(job) in (LAST_SAVED_STEP, WAITING_STEP)
    run.assert_ends_as(left_alone("sft", "ddp"))
    (line,) = [line for line in slurm.output(job).splitlines() if "srun: error: Node failure" in line]
    record(
        fault="Slurm loses a node",
        sees=line,
        lost="steps after the last checkpoint; Slurm queues the job again (`--requeue`)",
    )


def test_a_preempted_job_finishes_a_slow_save_and_goes_on(
    slurm: Cluster, inputs: Path, left_alone: LeftAlone, tmp_path: Path
) -> None:
    run = Job(slurm, inputs, tmp_path, "sft", "ddp")
    job = run.submit_to_wait(slow_save_seconds=SLOW_SAVE_SECONDS)
    urgent = ["sbatch", "--parsable", "--partition=urgent", f"--nodes={NUM_NODES}", "--exclusive", "--wrap=true"]
    preempting = slurm.run(*urgent, "--output=/dev/null").strip()
    assert slurm.wait_ended(preempting) == "COMPLETED"
    assert run.goes_on_from(job) == WAITING_STEP
    assert f"saved; job {job} is queued again" in slurm.output(job)
    run.assert_ends_as(left_alone("sft", "ddp"))
    record(
        fault=f"preemption, with a save of {SLOW_SAVE_SECONDS} s",
        sees=interrupted_line(slurm.output(job)),
        lost="nothing, if the save takes less than the GraceTime of the partition or QOS",
    )


def interrupted_line(output: str) -> str:
    """The line of the main rank that says where the run was interrupted."""
    (line,) = [line for line in output.splitlines() if "interrupted after step" in line]
    return line
