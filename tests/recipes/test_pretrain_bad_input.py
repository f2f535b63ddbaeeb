"""Bad input to recipes/pretrain.py: one clear line, exit code 2, nothing half-written."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tiny_run import command, environment, metrics, run, run_here, start, write_corpus, write_tokenizer

from llmtrain.runs.folder import FINISHED


@pytest.fixture(autouse=True)
def _no_library_says_more(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A library's warning would be a second line on stderr."""
    yield
    assert [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.WARNING] == []


def assert_nothing_written(config: Path) -> None:
    assert not (config.parent / "run").exists()
    assert not list((config.parent / "cache").rglob("store.json"))


def refusal(config: Path, *overrides: str) -> str:
    """What the recipe says, in one line, of input that it refuses."""
    ended = run_here(config, *overrides)
    assert ended.code == 2, ended
    assert ended.err.startswith("error: ") and ended.err.endswith("\n") and ended.err.count("\n") == 1, ended.err
    return ended.err.removeprefix("error: ").removesuffix("\n")


def refusal_of(config: Path, *overrides: str) -> str:
    """The same, where nothing must have been written."""
    line = refusal(config, *overrides)
    assert_nothing_written(config)
    return line


def given(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# What a source can have wrong: name of the file, its content, what the message must say.
GOOD = '{"text": "some words to train on"}\n'
SOURCES: dict[str, tuple[str, str | bytes, str]] = {
    "an empty text file": ("a.txt", "", "{path}: no document with text"),
    "a file of blank lines": ("a.jsonl", "\n\n", "{path}: no document with text"),
    "documents without text": ("a.jsonl", '{"text": ""}\n{"text": "  "}\n', "{path}: no document with text"),
    "a malformed line": ("a.jsonl", GOOD * 4 + '{"text": "abc\n', "{path}:5: malformed JSON"),
    "a line that is no object": ("a.jsonl", GOOD + "[1, 2]\n", "{path}:2: "),
    "text that is no string": ("a.jsonl", GOOD + '{"text": 3}\n', "{path}:2: field 'text' holds int"),
    "a row without the field": ("a.jsonl", GOOD + '{"body": "abc"}\n', "{path}:2: no field 'text', only 'body'"),
    "invalid UTF-8 in a text": ("a.txt", b"good\nbad \xff\xfe\n", "{path}:2: invalid UTF-8"),
    "invalid UTF-8 in a line": ("a.jsonl", GOOD.encode() + b'{"text": "\xff"}\n', "{path}:2: invalid UTF-8"),
    "a lone surrogate": ("a.jsonl", GOOD + '{"text": "\\ud800"}\n', "{path}:2: field 'text' is not valid Unicode"),
    "no field known as text": ("a.jsonl", '{"story": "x", "id": 1}\n', "{path}:1: no field is known to hold the text"),
    "two fields known as text": ("a.jsonl", '{"text": "x", "content": "y"}\n', "{path}:1: fields text and content"),
    "a CSV row cut short": ("a.csv", "id,text\n1,abc\n2\n", "{path}:3: 1 values where the header names 2"),
    "a suffix that is not read": ("a.pdf", "%PDF", "{path}: files of this suffix are not read"),
    "a broken Parquet file": ("a.parquet", "PAR1", "{path}: not a readable Parquet file"),
    "a broken gzip file": ("a.txt.gz", b"\x1f\x8b\x08\x00", "{path}: cannot be read"),
}


@pytest.mark.parametrize("case", SOURCES)
def test_a_bad_source_is_named_with_its_line(config: Path, tmp_path: Path, case: str) -> None:
    name, content, message = SOURCES[case]
    path = given(tmp_path / name, content)
    assert message.format(path=path) in refusal_of(config, f"data.train={path}")


@pytest.mark.parametrize("path", ["missing.txt", "missing/", "missing/*.txt"])
def test_a_missing_source_is_named(config: Path, tmp_path: Path, path: str) -> None:
    line = refusal_of(config, f"data.train={tmp_path}/{path}")
    assert f"{tmp_path}/{path}" in line and ("no such file" in line or "no file matches" in line)


def test_a_folder_without_a_file_that_is_read_says_what_is_read(config: Path, tmp_path: Path) -> None:
    given(tmp_path / "folder" / "a.bin", "x")
    assert f"{tmp_path}/folder: holds no file that is read (.txt" in refusal_of(config, f"data.train={tmp_path}/folder")


def test_a_bad_held_out_source_is_named(config: Path, tmp_path: Path) -> None:
    path = given(tmp_path / "a.jsonl", GOOD + "{\n")
    ended = run_here(config, f"data.eval={path}", "data.eval_fraction=0")
    assert ended.code == 2 and f"error: {path}:2: malformed JSON" in ended.err
    assert not (config.parent / "run").exists()


def test_bad_rows_are_skipped_and_counted_where_asked(config: Path, tmp_path: Path) -> None:
    corpus = Path(yaml.safe_load(config.read_text())["data"]["train"][0]).read_text(encoding="utf-8")
    path = given(tmp_path / "a.jsonl", f'{corpus}{{"text": "abc\n[1]\n')
    ended = run_here(config, f"data.train={path}", "data.on_bad_row=skip", "train.steps=1", "eval.every=null")
    assert ended.code == 0, ended.err
    (source,) = json.loads((config.parent / "run" / "ledger.json").read_text())["train"]
    assert sum(tally["documents"] for tally in source["bad_rows"].values()) == 2
    assert "1 bad row skipped: malformed JSON" in ended.out


# Overrides that are refused, and what the message must say.
KEYS: dict[str, tuple[list[str], list[str]]] = {
    "an unknown key": (["optim.learning_rate=1"], ["unknown key optim.learning_rate", "optim.lr"]),
    "an unknown section": (["optimizer.lr=1"], ["unknown key optimizer", "optim"]),
    "a value out of range": (["data.eval_fraction=1.5"], ["data.eval_fraction=1.5", "less than 1"]),
    "a value of the wrong type": (["train.steps=many"], ["train.steps='many'", "integer"]),
    "a choice there is not": (["optim.schedule=step"], ["optim.schedule='step'", "'cosine'"]),
    "a value that is not YAML": (["train.steps=[1"], ["train.steps=[1"]),
    "no key": (["adamw"], ["'adamw'", "key=value"]),
    "steps and epochs": (["train.epochs=1"], ["train.steps", "train.epochs"]),
    "neither steps nor epochs": (["train.steps=null"], ["train.steps", "train.epochs"]),
    "a batch of broken packs": (
        ["train.global_batch_tokens=100"],
        ["train.global_batch_tokens=100", "data.max_seq_len"],
    ),
    "a microbatch below a pack": (["train.microbatch_tokens=16"], ["train.microbatch_tokens=16", "data.max_seq_len"]),
    "the best of nothing": (["checkpoint.best=true", "data.eval_fraction=0"], ["checkpoint.best", "data.eval"]),
    "patience without the best": (["eval.patience=2"], ["eval.patience", "checkpoint.best"]),
    "a roll-back to nothing": (["train.spike_factor=2", "checkpoint.every=null"], ["train.spike_factor"]),
    "a preset there is not": (["model.preset=2b"], ["model.preset='2b'", "125m"]),
    "an architecture there is not": (["model.architecture=lama"], ["model.architecture='lama'"]),
    "a field there is not": (["model.config.num_layer=2"], ["model.config.num_layer"]),
    "a model without a shape": (["model.config=null"], ["model.config"]),
    "heads that do not divide": (["model.config.num_attention_heads=5"], ["model.config"]),
    "a preset for a given model": (["model.path=/nowhere", "model.preset=1m"], ["model.path", "model.preset"]),
    "half precision on a CPU": (["train.precision=fp16"], ["train.precision=fp16", "bf16"]),
    "no held-out document": (["data.eval_fraction=1e-9"], ["data.eval_fraction=1e-09", "none"]),
    "no such tokenizer": (["tokenizer.path=/nowhere"], ["tokenizer.path=/nowhere"]),
    "no such model": (["model={path: /nowhere}"], ["model.path=/nowhere"]),
    "longer than the positions": (["model.config.max_position_embeddings=16"], ["data.max_seq_len=32", "16 positions"]),
    "one source weighted of two": (
        ["data.train=[{path: a.txt, weight: 1}, b.txt]"],
        ["data.train", "every source a weight"],
    ),
    "a tracker that is not installed": (["log.trackers=[wandb]"], ["wandb"]),
}


@pytest.mark.parametrize("case", KEYS)
def test_a_bad_key_is_named_with_what_to_do(config: Path, case: str) -> None:
    overrides, words = KEYS[case]
    line = refusal_of(config, *overrides)
    assert all(word in line for word in words), line


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused_in_one_line(config: Path) -> None:
    ended = run(config, "model.config.vocab_size=100")
    assert (ended.code, ended.err) == (
        2,
        "error: the tokenizer has 259 tokens but the model only 100 embeddings: raise model.config.vocab_size\n",
    )


def test_a_warm_up_without_end_is_refused(config: Path) -> None:
    line = refusal(config, "optim.warmup_steps=10")
    assert "optim.warmup_steps=10" in line and "10 steps" in line
    assert not (config.parent / "run").exists()


def test_a_tokenizer_folder_without_a_tokenizer_is_named(config: Path, tmp_path: Path) -> None:
    given(tmp_path / "empty" / "notes.txt", "no tokenizer here")
    assert f"tokenizer.path={tmp_path}/empty" in refusal_of(config, f"tokenizer.path={tmp_path}/empty")


def test_a_configuration_that_is_not_yaml_is_named_with_its_line(tmp_path: Path) -> None:
    path = given(tmp_path / "config.yaml", "run:\n  dir: x\ntrain: {steps: 3\n")
    line = refusal(path)
    assert str(path) in line and "line 4" in line


def test_a_configuration_that_is_missing_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path}/none.yaml" in refusal(tmp_path / "none.yaml")


def test_a_folder_that_holds_no_run_is_left_alone(config: Path) -> None:
    mine = given(config.parent / "run" / "thesis.tex", "years of work")
    assert f"run.dir={config.parent}/run is not empty and is not a run" in refusal(config)
    assert [path.name for path in (config.parent / "run").iterdir()] == [mine.name]


def test_a_run_folder_that_is_a_file_is_left_alone(config: Path) -> None:
    given(config.parent / "run", "not a folder")
    assert f"run.dir={config.parent}/run" in refusal(config)
    assert (config.parent / "run").read_text() == "not a folder"
    assert f"{config.parent}/run is not a folder that you may write to" in refusal(
        config, f"run.dir={config.parent}/run/new"
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("/proc/run", r"cannot be written \(No such file or directory\)"),
        ("x" * 300, r"cannot be read \(File name too long\)"),
        ("link", "link is not a folder that you may write to"),
        ("link/run", "link is not a folder that you may write to"),
    ],
)
def test_a_run_folder_that_cannot_be_made_is_refused(config: Path, name: str, said: str) -> None:
    (config.parent / "link").symlink_to(config.parent / "purged")
    error = refusal(config, f"run.dir={config.parent / name}")
    assert re.search(rf"run\.dir={re.escape(str(config.parent / name))}: .*{said}", error), error


def test_the_folder_of_another_run_is_left_alone(config: Path) -> None:
    assert run_here(config, "train.steps=1").code == 0
    before = {path: path.read_bytes() for path in (config.parent / "run").rglob("*") if path.is_file()}
    line = refusal(config, "train.steps=1", "optim.lr=0.5")
    assert "holds another run (optim.lr is 0.01 there and 0.5 here)" in line
    line = refusal(config, "train.steps=1", "run.resume=never")
    assert "holds a run already and run.resume is never" in line
    assert before == {path: path.read_bytes() for path in (config.parent / "run").rglob("*") if path.is_file()}


def test_changed_data_is_another_run(config: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "mine.jsonl", seed=3)
    assert run_here(config, f"data.train={corpus}", "train.steps=1").code == 0
    write_corpus(corpus, seed=4)
    line = refusal(config, f"data.train={corpus}", "train.steps=2")
    assert f"run.dir={config.parent}/run" in line and "data" in line


def test_a_store_of_another_tokenizer_is_refused(config: Path, tmp_path: Path) -> None:
    assert run_here(config, "train.steps=1").code == 0
    (store,) = (path.parent for path in (config.parent / "cache").rglob("store.json"))
    other = write_tokenizer(tmp_path / "other", special_tokens=("<s>", "</s>", "<pad>"))
    line = refusal(config, f"data.train={store}", f"tokenizer.path={other}", f"run.dir={tmp_path}/new")
    assert f"data.train[0]={store}: a store of the tokenizer" in line and str(other) in line
    assert not (tmp_path / "new").exists()


def test_documents_of_one_token_cannot_be_trained_on(config: Path, tmp_path: Path) -> None:
    bare = write_tokenizer(tmp_path / "bare", special_tokens=())
    corpus = given(tmp_path / "a.jsonl", '{"text": "x"}\n' * 1000)
    overrides = (f"tokenizer.path={bare}", f"data.train={corpus}", "data.eval_fraction=0")
    assert "no tokens to train on" in refusal(config, *overrides)


def test_a_damaged_checkpoint_is_skipped_and_reported(config: Path) -> None:
    assert run_here(config).code == 0
    folder = config.parent / "run" / "checkpoints"
    weights = (config.parent / "run" / "model" / "model.safetensors").read_bytes()
    newest = folder / "step-00000010" / "model-00001.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    (config.parent / "run" / FINISHED).unlink()
    ended = run_here(config)
    assert ended.code == 0, ended.err
    assert (
        f"checkpoint {folder}/step-00000010 was changed" in ended.out
        and "skipped in favour of the one before it" in ended.out
    )
    assert f"resumed at step 8 from {folder}/step-00000008" in ended.out
    assert (config.parent / "run" / "model" / "model.safetensors").read_bytes() == weights


def test_a_run_with_only_torn_checkpoints_is_refused(config: Path) -> None:
    assert run_here(config).code == 0
    folder = config.parent / "run" / "checkpoints"
    for file in folder.glob("step-*/model-00001.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    (config.parent / "run" / FINISHED).unlink()
    assert f"no checkpoint in {folder} is whole" in refusal(config)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, leave_bytes: int = 0) -> Path:
    """Take the room on a disk, but some; the file that takes it."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        file.write(bytes(max(0, shutil.disk_usage(disk).free - leave_bytes)))
        while not leave_bytes:
            file.write(bytes(4096))
    return ballast


def test_a_disk_full_of_checkpoints_leaves_the_last_good_one(config: Path, small_disk: Path) -> None:
    overrides = (f"run.dir={small_disk}/run", "checkpoint.every=1", "checkpoint.keep=10")
    line = refusal(config, *overrides)
    assert f"cannot write the checkpoint {small_disk}/run/checkpoints/step-00000006" in line and "free space" in line
    saved = sorted(path.name for path in (small_disk / "run" / "checkpoints").iterdir())
    assert saved == [f"step-{step:08d}" for step in range(1, 6)]
    for step in (1, 2, 3):
        shutil.rmtree(small_disk / "run" / "checkpoints" / f"step-{step:08d}")
    ended = run_here(config, *overrides, "checkpoint.keep=2")
    assert ended.code == 0 and "resumed at step 5" in ended.out, ended


@pytest.mark.parametrize("at", ["start", "training"])
def test_a_disk_that_others_fill_stops_the_run_in_one_line(config: Path, small_disk: Path, at: str) -> None:
    overrides = (f"run.dir={small_disk}/run", "train.steps=200", "checkpoint.every=3", "eval.every=null")
    if at == "start":
        ballast = fill(small_disk)
    process = start(config, *overrides)
    if at == "training":
        process.wait_until(lambda: any((small_disk / "run" / "checkpoints").glob("step-????????")))
        ballast = fill(small_disk)
    ended = process.wait()
    assert ended.code == 2 and ended.err.count("\n") == 1, ended
    assert ended.err.startswith("error: ") and "free s" in ended.err
    assert "No space left" in ended.err or "the disk is full" in ended.err
    ballast.unlink()
    process = start(config, *overrides)
    assert process.wait_until(lambda: len(metrics(small_disk / "run")) > 20)
    process.kill()


def test_a_disk_without_room_for_the_model_keeps_the_checkpoint(config: Path, small_disk: Path) -> None:
    overrides = (f"run.dir={small_disk}/run", "checkpoint.keep=1")
    assert run_here(config, *overrides).code == 0
    shutil.rmtree(small_disk / "run" / "model")
    ballast = fill(small_disk, leave_bytes=60_000)
    line = refusal(config, *overrides)
    assert f"cannot write the model {small_disk}/run/model" in line and "step-00000010 holds it" in line
    assert not list((small_disk / "run").glob("model*"))
    ballast.unlink()
    assert run_here(config, *overrides).code == 0
    assert (small_disk / "run" / "model" / "model.safetensors").exists()


def test_a_disk_without_room_for_the_store_names_the_cache(config: Path, small_disk: Path) -> None:
    (small_disk / "cache").mkdir()
    fill(small_disk)
    ended = run(config, f"data.cache_dir={small_disk}/cache")
    assert ended.code == 2 and ended.err.count("\n") == 1, ended
    assert f"error: {small_disk}/cache" in ended.err and "full" in ended.err and "data.cache_dir" in ended.err
    assert_nothing_written(config)


def test_help_lists_every_key(config: Path) -> None:
    ended = run_here(Path("--help"))
    assert ended.code == 0 and "train.global_batch_tokens" in ended.out


def test_a_process_of_its_own_prints_one_line_and_exits_with_2(config: Path, tmp_path: Path) -> None:
    name, content, _ = SOURCES["a malformed line"]
    ended = subprocess.run(
        command(config, f"data.train={given(tmp_path / name, content)}"),
        capture_output=True,
        text=True,
        env=environment(),
        timeout=120,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1
    assert_nothing_written(config)
