"""`llmtrain prepare`: every store of a configuration, by several processes, so that training only opens them."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_chat
import tiny_rl
import tiny_stages
from refusals import refused
from tiny_run import PRETRAIN, RLHF, SFT, run_here, write_config, write_corpus, write_tokenizer

from llmtrain.cli.main import main
from llmtrain.data.store.token_store import is_store

LIMIT_SECONDS = 240


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_tokenizer(folder / "tokenizer")
    write_corpus(folder / "corpus.jsonl", seed=1)
    tiny_chat.write_rows(folder / "chats.jsonl", seed=1)
    return tiny_stages.write_inputs(folder)


def pretrain(folder: Path, inputs: Path) -> Path:
    data = {"cache_dir": str(folder / "cache")}
    return write_config(folder, inputs / "tokenizer", [inputs / "corpus.jsonl"], data=data)


def sft(folder: Path, inputs: Path) -> Path:
    return tiny_chat.write_config(folder, inputs / "base", [inputs / "chats.jsonl"], adapter={"kind": "none"})


def preference(loss: str) -> Callable[[Path, Path], Path]:
    def write(folder: Path, inputs: Path) -> Path:
        return tiny_chat.write_config(folder, inputs / "base", [inputs / "pairs.jsonl"], preference={"loss": loss})

    return write


CONFIGS = {
    "pretrain": (pretrain, PRETRAIN),
    "sft": (sft, SFT),
    "dpo": (preference("dpo"), RLHF),
    "kto": (preference("kto"), RLHF),
    "stages": (tiny_stages.write_config, RLHF),
}
ONE_STEP = ("train.steps=1", "optim.schedule=constant", "optim.warmup_steps=0")


def prepared(config: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The lines that `llmtrain prepare` prints in this process."""
    main(["prepare", str(config), *arguments])
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    "name", [name if name == "pretrain" else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def test_training_opens_what_was_prepared_and_builds_nothing(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
):
    write, recipe = CONFIGS[name]
    config = write(tmp_path, inputs)
    lines = prepared(config, capsys)
    assert any("1 shard: 1 by 1 process on" in line for line in lines), lines
    steps = ("policy_stage.train.steps=1",) if name == "stages" else ONE_STEP
    ended = run_here(config, *steps, recipe=recipe)
    assert ended.code == 0, ended.err
    assert "tokenizing" not in ended.out
    again = prepared(config, capsys, *steps)
    assert any("ready, in" in line for line in again) and not any("tokenizing" in line for line in again)


@pytest.mark.slow
def test_a_policy_has_prompts_which_are_read_and_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = tiny_rl.write_config(tmp_path / "run", tiny_rl.write_task(tmp_path / "task"))
    lines = prepared(config, capsys)
    assert any("train prompts" in line for line in lines) and "prompts have no store" in lines[-1]


def test_what_has_no_data_to_prepare_is_one_line(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "is a configuration of tokenizer" in refused(capsys, "prepare", "bpe_32k")
    config = pretrain(tmp_path, inputs)
    assert "unknown key zzz" in refused(capsys, "prepare", config, "zzz=1")
    assert "--workers=0" in refused(capsys, "prepare", config, "--workers", "0")
    assert "no such file or folder" in refused(capsys, "prepare", config, "data.train=nowhere.jsonl")
    file = tmp_path / "file"
    file.touch()
    assert f"{file}/file-hashes cannot be made" in refused(capsys, "prepare", config, f"data.cache_dir={file}")
    bad = tmp_path / "bad.jsonl"
    bad.write_text((inputs / "corpus.jsonl").read_text() + "{broken\n")
    assert "bad.jsonl:201: malformed JSON" in refused(
        capsys, "prepare", config, f"data.train={bad}", "data.eval_fraction=0"
    )
    either = tmp_path / "either.yaml"
    either.write_text(
        f"run: {{dir: x}}\nmodel: {{path: {inputs / 'base'}}}\ntrain: {{steps: 1}}\ndata: {{train: {bad}}}\n"
    )
    assert "may be a configuration of pretrain or sft: say which, --recipe sft" in refused(capsys, "prepare", either)


def write_megabytes(path: Path, megabytes: int) -> Path:
    """JSON lines of documents of random words, no two alike."""
    drawn = random.Random(0)
    words = ["".join(drawn.choices("abcdefgh", k=drawn.randint(2, 9))) for _ in range(5000)]
    with path.open("w") as file:
        while file.tell() < megabytes * 10**6:
            file.write(json.dumps({"text": " ".join(drawn.choices(words, k=4000))}) + "\n")
    return path


_started: list[subprocess.Popen[str]] = []


@pytest.fixture(scope="module", autouse=True)
def nothing_outlives_these_tests() -> Iterator[None]:
    yield
    for process in _started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def started(config: Path, cache: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "llmtrain", "prepare", str(config), f"data.cache_dir={cache}", *arguments]
    _started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    return _started[-1]


def holders(cache: Path) -> list[int]:
    """The processes that make shards just now."""
    found = []
    for path in (cache / "shards").glob("*-*/lease-*.json"):
        try:
            found.append(json.loads(path.read_text())["pid"])
        except (OSError, ValueError):
            continue  # released, or being written, just now
    return found


def waited_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not (value := condition()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)
    return value


def only_store(cache: Path) -> dict[str, bytes]:
    (folder,) = [folder for folder in cache.iterdir() if is_store(folder)]
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, inputs: Path) -> tuple[Path, Path]:
    """A configuration over several shards, and a cache with the store that one process makes of it."""
    folder = tmp_path_factory.mktemp("large")
    source = write_megabytes(folder / "text.jsonl", 18)
    config = write_config(folder, inputs / "tokenizer", [source])
    process = started(config, folder / "alone", "--workers", "1")
    output, _ = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 0, output
    return config, folder / "alone"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_worker_and_a_stopped_command_cost_their_shards_only(large: tuple[Path, Path], tmp_path: Path):
    config, alone = large
    cache = tmp_path / "cache"
    first = started(config, cache, "--workers", "2")
    worker = waited_for(lambda: holders(cache), first)[0]
    os.kill(worker, signal.SIGKILL)
    waited_for(lambda: list((cache / "shards").glob("*/documents.npz")), first)
    first.send_signal(signal.SIGTERM)
    output, _ = first.communicate(timeout=LIMIT_SECONDS)
    assert first.returncode == 75, output
    assert f"process {worker} ended with SIGKILL: others make what it has left" in output and "Traceback" not in output
    made = len(list((cache / "shards").glob("*/documents.npz")))
    waited = time.monotonic() + LIMIT_SECONDS
    while any(_lives(pid) for pid in holders(cache)):  # workers end with the command
        assert time.monotonic() < waited
    two = [started(config, cache, "--workers", "1"), started(config, cache, "--workers", "2")]
    outputs = [process.communicate(timeout=LIMIT_SECONDS)[0] for process in two]
    assert [process.returncode for process in two] == [0, 0], outputs
    assert made and only_store(cache) == only_store(alone)
    assert not list((cache / "shards").iterdir())


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_bad_row_found_by_a_worker_is_one_line(large: tuple[Path, Path], tmp_path: Path):
    config, _ = large
    bad = tmp_path / "bad.jsonl"
    bad.write_text((config.parent / "text.jsonl").read_text() + "{broken\n")
    process = started(config, tmp_path / "cache", "--workers", "2", f"data.train={bad}")
    output, _ = process.communicate(timeout=LIMIT_SECONDS)
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert process.returncode == 2 and len(errors) == 1 and "malformed JSON" in errors[0], output
    assert "Traceback" not in output
    assert list((tmp_path / "cache" / "shards").glob("*/documents.npz"))  # what was finished is kept


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_ten_kills_at_any_time_leave_the_same_store(large: tuple[Path, Path], tmp_path: Path):
    config, alone = large
    drawn = random.Random(0)
    for kill in range(10):
        cache = tmp_path / str(kill)
        process = started(config, cache, "--workers", "3")
        waited_for(lambda cache=cache: holders(cache), process)
        time.sleep(drawn.uniform(0, 4))  # any time is the point
        if alive := holders(cache):
            os.kill(drawn.choice(alive), signal.SIGKILL)
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
        assert only_store(cache) == only_store(alone)
