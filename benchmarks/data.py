"""The data path: speed of tokenizing, memory of a build, time to open a store and to resume.

    python benchmarks/data.py [--work FOLDER] [--rounds N] [--large-mb N]

- `tokenize_vs_bare`: MB/s of building a store from a JSON-lines file (read, split, tokenized, written, made durable)
  over MB/s of `tokenizers`' `encode_batch_fast` on the same rows, already in memory, with all cores, whose result is
  thrown away. The two take turns in one process; medians.
- `peak_mb_10mb`, `peak_mb_1gb`: the largest resident set of a process that builds a store from 10 MB and from 1 GB
  of repeated text, cleaning off: once as JSON lines, once as one text file. The kind that grows more is reported.
- `open_1b_tokens_ms`: the first `open_store` of a process, on a store of a billion tokens in two million documents.
  Its token file is sparse, so that no disk is read; opening reads none of it in any case.
- `first_batch_at_100k_s`: from there to the first step's batches of a run resumed at step 100,000 (65,536 tokens a
  step, so in its seventh epoch), opening included; the slower of one source and of a mixture of four by weight.

The text is the sources of the running Python's standard library, tokenized by a BPE of 8,192 entries learnt from it.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import corpus
from measure import REPOSITORY, Measured, run_python

MEGABYTE = 10**6
VOCAB_SIZE = 8192
SMALL_MB = 10
SPEED_MB = 50

HERE = Path(__file__).resolve().parent


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--work", type=Path, default=REPOSITORY / "runs" / "benchmark_data")
    options.add_argument("--rounds", type=int, default=3, help="builds, and bare encodings, that are timed")
    options.add_argument("--large-mb", type=int, default=1000, help="megabytes of the large input")
    arguments = options.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    texts = corpus.documents()
    tokenizer = train_tokenizer(texts, work)

    rows = work / "speed.jsonl"
    num_bytes = corpus.write_rows(corpus.repeated(texts, SPEED_MB * MEGABYTE), rows)
    speed = worker("speed", tokenizer, rows, num_bytes, arguments.rounds).last_json()
    ours, bare = statistics.median(speed["build"]), statistics.median(speed["bare"])
    print(f"store build {shown(speed['build'])} MB/s, bare encode_batch_fast {shown(speed['bare'])} MB/s")
    rows.unlink()

    small, large = peak_memory(texts, tokenizer, work, arguments.large_mb)

    opened = worker("open", tokenizer, work).last_json()
    print(f"first open_store of 1e9 tokens: {opened['open_ms']:.2f} ms")
    print(f"first batch at step 100,000: one {opened['one_s']:.3f} s, mixture {opened['mixture_s']:.3f} s")
    result = {
        "tokenize_vs_bare": round(ours / bare, 3),
        "peak_mb_10mb": round(small / MEGABYTE, 1),
        "peak_mb_1gb": round(large / MEGABYTE, 1),
        "open_1b_tokens_ms": round(opened["open_ms"], 2),
        "first_batch_at_100k_s": round(max(opened["one_s"], opened["mixture_s"]), 3),
    }
    print(json.dumps(result))


def worker(task: str, *arguments: str | Path | int) -> Measured:
    """Run one measurement of `data_worker.py` in a process of its own."""
    return run_python([HERE / "data_worker.py", task, *map(str, arguments)])


def train_tokenizer(texts: list[str], work: Path) -> Path:
    """A tokenizer learnt from the text, in a folder."""
    rows, folder = work / "text.jsonl", work / "tokenizer"
    if not rows.exists():
        corpus.write_rows(texts, rows)
    overrides = [f"output={folder}", f"sources={rows}", f"vocab_size={VOCAB_SIZE}"]
    run_python([REPOSITORY / "tokenizer" / "train.py", REPOSITORY / "tokenizer" / "bpe_32k.yaml", *overrides])
    return folder


def peak_memory(texts: list[str], tokenizer: Path, work: Path, large_mb: int) -> tuple[int, int]:
    """Peak resident bytes of a build from the small and from the large input, of the kind that grows more."""
    peaks = {}
    for kind, write in {"rows.jsonl": corpus.write_rows, "text.txt": corpus.write_text}.items():
        sizes = []
        for megabytes in (SMALL_MB, large_mb):
            path = work / f"{megabytes}mb_{kind}"
            write(corpus.repeated(texts, megabytes * MEGABYTE), path)
            sizes.append(worker("build", tokenizer, path).peak_bytes)
            path.unlink()
        peaks[kind] = (sizes[0], sizes[1])
        print(
            f"peak memory of a build, {kind}: {sizes[0] / MEGABYTE:,.0f} MB from {SMALL_MB} MB, "
            f"{sizes[1] / MEGABYTE:,.0f} MB from {large_mb} MB: {sizes[1] / sizes[0]:.3f} times",
            flush=True,
        )
    return max(peaks.values(), key=lambda pair: pair[1] / pair[0])


def shown(speeds: list[float]) -> str:
    return ", ".join(f"{speed:.2f}" for speed in speeds)


if __name__ == "__main__":
    main()
