"""The commands of docs/cluster.md, run as they are, in a folder with a small `my.yaml` and a disk `/shared`."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import tiny_run
import yaml
from cluster import NUM_GPUS, Cluster
from tiny_run import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BLOCKS = re.findall(r"^```\n(.*?)^```", (ROOT / "docs" / "cluster.md").read_text(), flags=re.DOTALL | re.MULTILINE)
LIMIT_SECONDS = 240
HERE = {"SBATCH_GPUS_PER_NODE": str(NUM_GPUS), "SBATCH_TIMELIMIT": "10", "SBATCH_SIGNAL": "USR1@60"}
"""What else would be edited in the scripts: a node of the tests has fewer GPUs."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder: the copied scripts, a configuration; `/shared` is within it."""
    tokenizer = tiny_run.write_tokenizer(tmp_path / "tokenizer")
    corpus = tmp_path / "shared" / "corpus"
    corpus.mkdir(parents=True)
    config = tiny_run.write_config(tmp_path / "written", tokenizer, [tiny_run.write_corpus(corpus / "a.jsonl", seed=1)])
    config.rename(tmp_path / "my.yaml")
    for script in (ROOT / "slurm").glob("*.sbatch"):
        text = script.read_text(encoding="utf-8").replace("/shared/", f"{tmp_path}/shared/")
        (tmp_path / script.name).write_text(text, encoding="utf-8")
    cpu = (ROOT / "recipes" / "accelerate" / "cpu.yaml").read_text(encoding="utf-8")
    tree = yaml.safe_load(cpu) | {"num_processes": 1}
    (tmp_path / "one-per-node.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return tmp_path


def block(word: str) -> list[str]:
    """The lines of the one block of the page that has a word."""
    (found,) = [text for text in BLOCKS if word in text]
    return found.splitlines()


def run(slurm: Cluster, folder: Path, lines: list[str], **variables: str) -> str:
    """Run lines as a shell does; what they print."""
    script = "\n".join(lines).replace("/shared/", f"{folder}/shared/").replace("node0", "127.0.0.1")
    environment = slurm.environment | HERE | {"LLMTRAIN_ACCELERATE": str(folder / "one-per-node.yaml")} | variables
    argv = ["bash", "-e", "-c", script]
    ended = subprocess.run(argv, env=environment, cwd=folder, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    assert ended.returncode == 0, f"{script}\n{ended.stdout}{ended.stderr}"
    return ended.stdout


def wait_completed(slurm: Cluster, folder: Path, submitted: str, name: str) -> None:
    """Wait until a job has completed; `submitted`: what sbatch has printed."""
    job = re.findall(r"Submitted batch job (\d+)", submitted)[-1]
    assert slurm.wait_ended(job) == "COMPLETED", (folder / f"{name}-{job}.out").read_text(errors="replace")


def test_from_the_laptop_to_two_nodes(slurm: Cluster, folder: Path) -> None:
    *here, submit = block("sbatch pretrain.sbatch ")
    assert len(here) == 3
    for i, line in enumerate(here):
        command = line.split("#")[0].rstrip()
        run(slurm, folder, [f"{command} run.dir={folder}/run-{i}"])
        assert (folder / f"run-{i}" / "model" / "model.safetensors").exists()
    wait_completed(slurm, folder, run(slurm, folder, [submit]), "pretrain")
    assert (folder / "shared" / "runs" / "my-run" / "model" / "model.safetensors").exists()


def test_the_lines_that_are_set_are_those_of_the_script() -> None:
    script = (ROOT / "slurm" / "pretrain.sbatch").read_text(encoding="utf-8").splitlines()
    assert [line for line in script if line in block("#SBATCH")] == block("#SBATCH")


def test_two_nodes_without_slurm(slurm: Cluster, folder: Path) -> None:
    first, second = block("--machine_rank")
    run(slurm, folder, [f"{first} &", second, "wait $!"])
    assert (folder / "written" / "run" / "model" / "model.safetensors").exists()


def test_data_first_without_gpus(slurm: Cluster, folder: Path) -> None:
    wait_completed(slurm, folder, run(slurm, folder, block("prepare.sbatch")), "pretrain")
    (printed,) = folder.glob("prepare-*.out")
    assert "error" not in printed.read_text(encoding="utf-8")
    assert (folder / "shared" / "runs" / "my-run" / "model" / "model.safetensors").exists()
