"""`llmtrain prepare` by 1, 2 and 4 workers on 200 MB of text: time, and that the store is the same to the byte.

    python benchmarks/prepare.py [--work FOLDER] [--mb N] [--workers 1 2 4]

Each number of workers gets an empty cache. `--cores` pins the command to as many cores as it has workers, up to those
there are, so that the times of different numbers compare what a core more brings: one worker uses all cores it sees.
The text is the sources of Python's standard library with a number in each, tokenized by a BPE of 8,192 entries learnt
from it. The last line is JSON: seconds and ratios by workers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import corpus
import yaml
from data import MEGABYTE, train_tokenizer
from measure import REPOSITORY, run_python


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--work", type=Path, default=REPOSITORY / "runs" / "benchmark_prepare")
    options.add_argument("--mb", type=int, default=200, help="megabytes of text")
    options.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    options.add_argument("--cores", action="store_true", help="give a command no more cores than workers")
    arguments = options.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    texts = corpus.documents()
    tokenizer = train_tokenizer(texts, work)
    rows = work / "text.jsonl"
    corpus.write_rows(numbered(texts, arguments.mb * MEGABYTE), rows)
    run = {"run": {"dir": str(work / "run")}, "train": {"steps": 1}}
    text = {**run, "model": {"preset": "1m"}, "tokenizer": {"path": str(tokenizer)}, "data": {"train": str(rows)}}
    result = {"text": measure(work, text, arguments.workers, arguments.cores)}
    print(json.dumps(result))


def numbered(texts: Sequence[str], num_bytes: int) -> Iterator[str]:
    """The texts over and over, each with a number before it, so that no two are alike."""
    for number, text in enumerate(corpus.repeated(texts, num_bytes)):
        yield f"{number}\n{text}"


def measure(work: Path, config: dict[str, object], workers: Sequence[int], cores: bool) -> dict[str, dict[str, float]]:
    """Seconds by number of workers, and how many times faster than the first number; stores are compared."""
    path, seconds, digests = work / "config.yaml", dict[str, float](), set[str]()
    path.write_text(yaml.safe_dump(config))
    usable = os.sched_getaffinity(0)
    for number in workers:
        cache = work / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        os.sched_setaffinity(0, sorted(usable)[:number] if cores else usable)
        started = time.perf_counter()
        run_python(["-m", "llmtrain", "prepare", path, f"data.cache_dir={cache}", "--workers", number])
        seconds[str(number)] = round(time.perf_counter() - started, 1)
        os.sched_setaffinity(0, usable)
        digests.add(digest_of(cache))
        print(f"{number} workers: {seconds[str(number)]} s", flush=True)
    assert len(digests) == 1, "the stores differ"
    first = seconds[str(workers[0])]
    return {"seconds": seconds, "times_faster": {each: round(first / spent, 2) for each, spent in seconds.items()}}


def digest_of(cache: Path) -> str:
    """A digest of all files of the one store in a cache."""
    (meta,) = cache.glob("*/store.json")
    hasher = hashlib.blake2b()
    for path in sorted(meta.parent.iterdir()):
        if path.name != "lock":
            hasher.update(path.name.encode())
            hasher.update(path.read_bytes())
    return hasher.hexdigest()


if __name__ == "__main__":
    main()
