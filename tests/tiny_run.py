"""A run small enough to be trained, killed and resumed many times: a byte-level tokenizer, a corpus, a config.

`run_here` runs the recipe in this process, `start` and `run` in a process of its own that is forked from one
which has already imported torch, `command` gives the command line of a process that starts from nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import random
import runpy
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

ROOT = Path(__file__).resolve().parents[1]
PRETRAIN, SFT, RLHF = (ROOT / "recipes" / f"{name}.py" for name in ("pretrain", "sft", "rlhf"))
LIMIT_SECONDS = 120
POLL_SECONDS = 0.0005
LONGEST_BUILD_SECONDS = 900
MODEL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 96,
    "tie_word_embeddings": True,
}


def write_tokenizer(folder: Path, *, special_tokens: Sequence[str] = ("<|bos|>", "<|eos|>", "<|pad|>")) -> Path:
    """A tokenizer whose tokens are the 256 bytes and BOS, EOS, PAD, or none of these; the folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = dict(zip(("bos_token", "eos_token", "pad_token"), special_tokens, strict=False))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder


def write_corpus(path: Path, *, seed: int, num_documents: int = 200, max_words: int = 30) -> Path:
    """JSON lines of documents of 1 to `max_words` words from a small vocabulary; the file."""
    drawn = random.Random(seed)
    words = ["".join(drawn.choices("abcdefgh", k=drawn.randint(1, 6))) for _ in range(40)]
    texts = (" ".join(drawn.choices(words, k=drawn.randint(1, max_words))) for _ in range(num_documents))
    path.write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts), encoding="utf-8")
    return path


def write_config(folder: Path, tokenizer: Path, sources: Sequence[Path | dict[str, Any]], **sections: Any) -> Path:
    """A configuration of ten steps in `folder`, whose run goes to `folder/run`; `sections` replace or add keys."""
    tree: dict[str, Any] = {
        "run": {"dir": str(folder / "run")},
        "model": {"config": MODEL},
        "tokenizer": {"path": str(tokenizer)},
        "data": {
            "train": [source if isinstance(source, dict) else str(source) for source in sources],
            "max_seq_len": 32,
            "eval_fraction": 0.1,
            "cache_dir": str(folder / "cache"),
        },
        "train": {"steps": 10, "global_batch_tokens": 256, "microbatch_tokens": 128},
        "optim": {"lr": 0.01},
        "eval": {"every": 5},
        "checkpoint": {"every": 4},
        "log": {"every": 1, "report": False},
    }
    for name, section in sections.items():
        tree[name] = tree.get(name, {}) | section
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Ended:
    """How a run of the recipe ended."""

    code: int  # exit status; minus the signal's number where a signal ended it
    out: str
    err: str


def run_here(config: Path, *overrides: str, recipe: Path = PRETRAIN) -> Ended:
    """Run the recipe in this process as its command line does, and leave no trace of it here."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    argv, code = sys.argv, 0
    sys.argv = [str(recipe), str(config), *overrides]
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            runpy.run_path(str(recipe), run_name="__main__")
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    finally:
        sys.argv = argv
        AcceleratorState._reset_state(reset_partial_state=True)
    return Ended(code, out.getvalue(), err.getvalue())


def command(config: Path, *overrides: str, recipe: Path = PRETRAIN) -> list[str]:
    """The recipe's command line."""
    return [sys.executable, str(recipe), str(config), *overrides]


def environment() -> dict[str, str]:
    """The environment of a process that runs the recipe: one thread, this checkout's modules."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    ours = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TORCH_EXTENSIONS_DIR": str(built_extensions())}
    return {**os.environ, **ours, "PYTHONPATH": path}


@cache
def built_extensions() -> Path:
    """The folder of DeepSpeed's extension for the tests: one per virtual environment, or each builds it again.

    A build that was killed leaves a lock for which all later ones wait for good: it is removed once no build is as old.
    """
    folder = Path.home() / ".cache" / "llmtrain-tests" / hashlib.sha256(sys.prefix.encode()).hexdigest()[:12]
    for lock in folder.glob("**/lock"):
        if time.time() - lock.stat().st_mtime > LONGEST_BUILD_SECONDS:
            lock.unlink(missing_ok=True)
    return folder


class Started:
    """The recipe in a process of its own."""

    def __init__(self, process: BaseProcess, output: Path) -> None:
        self._process, self._output = process, output

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Wait for a condition; False where the process ended before it held. Raises TimeoutError."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while not condition():
            self._process.join(POLL_SECONDS)
            if self._process.exitcode is not None:
                return condition()
            if time.monotonic() > deadline:
                self._give_up()
        return True

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended yet."""
        return self._process.is_alive()

    def run_for(self, seconds: float) -> None:
        """Let the process run for a time, or to its end."""
        self._process.join(seconds)

    def send(self, number: signal.Signals) -> None:
        """Send a signal, where the process still lives."""
        if self._process.is_alive():
            assert self._process.pid is not None
            os.kill(self._process.pid, number)

    @property
    def out(self) -> str:
        """What the process has written to stdout so far."""
        return self._written()[0]

    def kill(self) -> Ended:
        """`kill -9`, and how the process ended: before it, perhaps."""
        self.send(signal.SIGKILL)
        return self.wait()

    def wait(self, limit_seconds: float = LIMIT_SECONDS) -> Ended:
        """Wait for the end. Raises TimeoutError where it does not come, and ends all that the process started."""
        self._process.join(limit_seconds)
        if self._process.exitcode is None:
            self._give_up()
        assert self._process.exitcode is not None
        return Ended(self._process.exitcode, *self._written())

    def _give_up(self) -> None:
        assert self._process.pid is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        out, err = self._written()
        raise TimeoutError(f"waited in vain:\n{out}{err}")

    def _written(self) -> tuple[str, str]:
        out, err = (self._output.with_suffix(suffix).read_text(encoding="utf-8") for suffix in (".out", ".err"))
        return out, err


def start(config: Path, *overrides: str, recipe: Path = PRETRAIN) -> Started:
    """Start the recipe in a process of its own, forked from one that has done the imports."""
    return fork(run_script, recipe, [str(config), *overrides], output=config.parent / "process")


def fork(target: Callable[..., None], *arguments: Any, output: Path) -> Started:
    """Call a function in a process forked from one that has done the imports; it writes `output`.out and .err."""
    output.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".out", ".err"):
        output.with_suffix(suffix).write_text("", encoding="utf-8")  # a kill may come before the process makes them
    process = _forkserver().Process(target=_into_files, args=(output, target, arguments))
    process.start()
    return Started(process, output)


def run_script(script: Path, arguments: Sequence[str]) -> None:
    """Run a script in this process as `python SCRIPT ARGUMENTS` does."""
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")


def run(config: Path, *overrides: str, recipe: Path = PRETRAIN) -> Ended:
    """Run the recipe in a process of its own."""
    return start(config, *overrides, recipe=recipe).wait()


def metrics(run_folder: Path) -> list[dict[str, Any]]:
    """The whole rows of a run so far."""
    path = run_folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return list(_whole(lines))


def _whole(lines: Sequence[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:  # being written
            return


@cache
def _forkserver() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny_run_imports"])
    with patch.dict(os.environ, environment()):  # where Python 3.11's forkserver looks for what it preloads
        forkserver.ensure_running()
    first = context.Process(target=time.monotonic)
    first.start()
    first.join()  # so that no run is timed with the imports
    return context


def _into_files(output: Path, target: Callable[..., None], arguments: Sequence[Any]) -> None:
    """In the forked process: call the function with stdout and stderr written to files, as a process group."""
    os.setsid()
    for stream, suffix in ((1, ".out"), (2, ".err")):
        file = os.open(output.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream)
    target(*arguments)
