"""A command line of `llmtrain launch` as accelerate's: processes, nodes, engines, and what cannot be launched."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from llmtrain.config.shipped import shipped_configs
from llmtrain.launch.options import complete, is_alone, parsed

NODE = {
    "SLURM_JOB_ID": "7",
    "SLURM_NNODES": "4",
    "SLURM_NODEID": "2",
    "SLURM_STEP_NUM_NODES": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "localhost,node[1-3]",
}
RECIPE = ["sft", "CONFIG", "optim.lr=1e-5"]


def completed(
    tmp_path: Path, *words: str, environment: Mapping[str, str] | None = None, devices: int = 0
) -> argparse.Namespace:
    """The options of a command line on a node with so many GPUs."""
    options = parsed([*words, *RECIPE])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.accelerator, "device_count", lambda: devices)
        complete(options, environment or {}, tmp_path)
    return options


@pytest.mark.parametrize(
    ("words", "devices", "num_processes"),
    [
        ([], 0, 1),
        ([], 8, 8),
        (["--num_processes", "3"], 0, 3),
        (["--num_processes", "3"], 8, 3),
        (["--config_file", "cpu_zero2"], 0, 2),  # as the file says
        (["--config_file", "zero3"], 4, 4),  # of which it says 8
        (["--config_file", "zero3", "--gpu_ids", "0,2"], 4, 2),
    ],
)
def test_processes_of_one_node(tmp_path: Path, words: list[str], devices: int, num_processes: int) -> None:
    options = completed(tmp_path, *words, devices=devices)
    assert (options.num_processes, options.num_machines, options.machine_rank or 0) == (num_processes, 1, 0)
    assert options.main_process_port == 0  # a free one
    assert options.training_script == "sft" and options.training_script_args == RECIPE[1:]


@pytest.mark.parametrize(("words", "devices", "num_processes"), [(["--num_processes", "2"], 0, 8), ([], 8, 32)])
def test_nodes_come_from_slurm(tmp_path: Path, words: list[str], devices: int, num_processes: int) -> None:
    options = completed(tmp_path, *words, environment=NODE, devices=devices)
    assert (options.num_processes, options.num_machines, options.machine_rank) == (num_processes, 4, 2)
    assert options.main_process_ip == "localhost" and options.main_process_port > 1024
    given = completed(tmp_path, "--main_process_ip", "node9", "--main_process_port", "99", environment=NODE)
    assert (given.main_process_ip, given.main_process_port, given.machine_rank) == ("node9", 99, 2)


def test_nodes_that_are_given_need_no_slurm(tmp_path: Path) -> None:
    words = ["--num_machines", "2", "--machine_rank", "1", "--main_process_ip", "a", "--main_process_port", "9"]
    options = completed(tmp_path, *words, environment=NODE, devices=4)
    assert (options.num_processes, options.num_machines, options.machine_rank) == (8, 2, 1)
    alone = completed(tmp_path, "--num_machines", "1", environment=NODE, devices=4)
    assert (alone.num_processes, alone.num_machines) == (4, 1)


def test_one_process_without_an_engine_needs_no_launcher(tmp_path: Path) -> None:
    for words in ([], ["--cpu"], ["--num_processes", "1"], ["--num_machines", "1"], ["--gpu_ids", "0"]):
        assert is_alone(completed(tmp_path, *words)), words
    assert not is_alone(completed(tmp_path, "--num_processes", "2"))
    assert not is_alone(completed(tmp_path, "--config_file", "zero2", "--num_processes", "1"))


@pytest.mark.parametrize(
    "words",
    [
        ["--mixed_precision", "bf16"],
        ["--dynamo_backend", "inductor"],
        ["--num_cpu_threads_per_process", "3"],
        ["--log_dir", "logs"],
        ["--save_seconds", "5"],
        ["--use_deepspeed"],
    ],
)
def test_an_option_that_a_launcher_sees_to_is_not_dropped_for_one_process(tmp_path: Path, words: list[str]) -> None:
    assert not is_alone(completed(tmp_path, *words))


@pytest.mark.parametrize("name", shipped_configs("accelerate"))
def test_every_configuration_of_ours_starts_torchrun_on_every_node(tmp_path: Path, name: str) -> None:
    options = completed(tmp_path, "--config_file", name, environment=NODE, devices=2)
    assert options.deepspeed_multinode_launcher == "standard"
    assert options.num_processes == 8 and not is_alone(options)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_processes", "0"], "--num_processes 0: must be at least 1"),
        (["--num_processes", "9"], "--num_processes 9: this node has 8 GPUs to use"),
        (["--num_processes", "two"], "argument --num_processes.*: invalid int value: 'two'; `llmtrain launch --help`"),
        (["--config_file", "zero4"], "--config_file zero4: no such file, and not one of .*zero3"),
        (["--num_machines", "3"], "--num_machines 3, but srun started launchers on 4 nodes"),
        (["--num_machines", "2", "--machine_rank", "0"], "2 nodes: give --machine_rank, --main_process_ip and"),
    ],
)
def test_what_cannot_be_launched_is_one_line(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        completed(tmp_path, *words, environment=NODE, devices=8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("words", [["--num_processes", "2", "CONFIG"], ["CONFIG", "--num_processes=2"]])
def test_an_option_after_the_verb_is_refused(words: list[str]) -> None:
    with pytest.raises(ValueError, match="--num_processes: options of llmtrain launch come before sft, not after it"):
        parsed(["--config_file", "cpu", "sft", *words])
    assert parsed(["sft", "CONFIG", "--optim.lr=1"]).training_script_args == ["CONFIG", "--optim.lr=1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("distributed_type: 'NO'\ncompute_environment: LOCAL_MACHINE\n", "starts distributed_type MULTI_GPU"),
        ("distributed_type: MULTI_CPU\ncompute_environment: LOCAL_MACHINE\n", "starts distributed_type MULTI_GPU"),
        ("distributed_type: MULTI_GPU\nuse_cpu: true\ncompute_environment: LOCAL_MACHINE\n", "with use_cpu: false"),
        ("distributed_type: MULTI_GPU\ncompute_environment: LOCAL_MACHINE\nnonsense: 1\n", "accelerate cannot read it"),
        ("[", "not valid YAML"),
        ("", "not a mapping"),
    ],
)
def test_a_file_of_another_kind_of_launch_is_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "file.yaml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        completed(tmp_path, "--config_file", str(file))
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)
