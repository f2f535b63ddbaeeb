"""The demo: Python's own standard library -> a tokenizer -> a small language model -> a continuation.

Needs no network and no data of ours. Each step is a plain command, printed before it runs, that can be
repeated by hand; only the corpus is written here. Overrides that are given (`train.steps=40`) go to the training.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
import tokenize
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DEMO = Path("runs/demo")
RUN = DEMO / "pretrain"
CORPUS = DEMO / "corpus"
NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
STOPPED = "stopped; `make demo` continues from the last checkpoint"
PROMPT = "def __init__(self"


def main() -> None:
    """Run the steps from the repository's root; a finished demo starts afresh, a stopped one continues."""
    os.chdir(ROOT)
    os.environ["HF_HUB_OFFLINE"] = "1"
    if (RUN / "model").exists():
        print(f"removing the finished demo in {DEMO} to start afresh")
        shutil.rmtree(DEMO)
    started = time.perf_counter()
    heading("1. Corpus: the standard library of the Python that runs this")
    write_corpus()
    heading("2. Tokenizer: byte-level BPE")
    run("tokenizer/train.py", "recipes/configs/demo_tokenizer.yaml")
    heading("3. Pretraining: a Llama of 1.4 M parameters")
    run("recipes/pretrain.py", "recipes/configs/demo.yaml", *sys.argv[1:])
    if not (RUN / "model").exists():  # a signal stopped it: saved, and no failure
        sys.exit(STOPPED)
    heading("4. A continuation")
    run("-m", "llmtrain", "sample", str(RUN / "model"), PROMPT)
    heading("Summary")
    for line in summary():
        print(line)
    print(f"{'all of it':<16}{time.perf_counter() - started:.0f} s")


def heading(text: str) -> None:
    print(f"\n== {text}", flush=True)


def run(*arguments: str) -> None:
    """Print and run one command with this Python; the demo ends with it where it fails."""
    print(f"$ {shlex.join(['python', *arguments])}", flush=True)
    code = subprocess.run([sys.executable, *arguments], check=False).returncode
    if code:
        sys.exit(code)


def write_corpus() -> None:
    """Two JSON Lines files: the library's modules, and the topics of its help."""
    for name, documents in (("modules", modules()), ("topics", help_topics())):
        path = CORPUS / f"{name}.jsonl"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            with partial.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps({"text": text, "path": where}) + "\n" for where, text in documents)
            partial.replace(path)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def modules() -> Iterator[tuple[str, str]]:
    """(path, source) of every module of the standard library; tests and tables of character codes are left out."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        if NOT_LIBRARY.isdisjoint(relative.parts):
            with tokenize.open(path) as file:  # honours a module's declared encoding
                yield str(relative), file.read()


def help_topics() -> Iterator[tuple[str, str]]:
    """(name, text) of every topic that `help()` knows."""
    yield from sorted(topics.topics.items())


def summary() -> Iterator[str]:
    """The run's figures, from what it wrote into its folder."""
    rows = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]
    environment: dict[str, Any] = json.loads((RUN / "environment.json").read_text())
    before, *_, after = [row for row in rows if "eval_loss" in row]
    trained = [row for row in rows if "tokens_per_second" in row]
    speed, mfu = (statistics.median(row[name] for row in trained) for name in ("tokens_per_second", "mfu"))
    yield f"{'':<16}{'before':>8}{'after':>8}"
    for label, name in (("held-out loss", "eval_loss"), ("bits per byte", "eval_bits_per_byte")):
        yield f"{label:<16}{before[name]:>8.3f}{after[name]:>8.3f}"
    yield f"{'speed':<16}{speed:,.0f} tokens/s, MFU {mfu:.0%} of {environment['peak_flops'] / 1e9:.0f} GFLOP/s"
    yield f"{'':<16}({environment['peak_flops_source']})"
    yield f"{'model':<16}{RUN / 'model'}"


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(STOPPED)
