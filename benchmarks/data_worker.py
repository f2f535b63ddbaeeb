"""The measurements of `data.py` that need a process of their own; each prints its result as JSON.

python benchmarks/data_worker.py speed TOKENIZER ROWS BYTES ROUNDS
python benchmarks/data_worker.py build TOKENIZER SOURCE
python benchmarks/data_worker.py open TOKENIZER FOLDER
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llmtrain.config.data import DataConfig
from llmtrain.config.recipes import PretrainConfig
from llmtrain.data.loader.batches import SingleProcess, collate
from llmtrain.data.loader.plan import plan_data
from llmtrain.data.packing.documents import StreamPacking
from llmtrain.data.store.text import build_text_stores
from llmtrain.data.store.token_store import FORMAT, META, TokenStore, open_store
from llmtrain.data.tokenize import load_tokenizer

MEGABYTE = 10**6
BARE_BATCH_ROWS = 1000  # the batch of `datasets.map`
STORE_TOKENS = 10**9
DOCUMENT_TOKENS = 500
RESUME_STEP = 100_000


def build(tokenizer: str, source: str) -> float:
    """Seconds of building a store from a source, in a folder that is removed."""
    with tempfile.TemporaryDirectory(dir=Path(source).parent) as cache:
        config = DataConfig.model_validate({"train": source, "eval_fraction": 0.0, "cache_dir": cache})
        loaded = load_tokenizer(tokenizer)
        started = time.perf_counter()
        build_text_stores(config, loaded, report=print)
        return time.perf_counter() - started


def bare(tokenizer: str, texts: list[str]) -> float:
    """Seconds of encoding texts that lie in memory."""
    backend = load_tokenizer(tokenizer).backend_tokenizer
    started = time.perf_counter()
    for start in range(0, len(texts), BARE_BATCH_ROWS):
        backend.encode_batch_fast(texts[start : start + BARE_BATCH_ROWS], add_special_tokens=False)
    return time.perf_counter() - started


def speed(tokenizer: str, rows: str, num_bytes: str, rounds: str) -> dict[str, list[float]]:
    """MB/s of both, by turns; the first turn of each only warms up."""
    with Path(rows).open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    megabytes = int(num_bytes) / MEGABYTE
    speeds: dict[str, list[float]] = {"build": [], "bare": []}
    for _ in range(1 + int(rounds)):
        speeds["bare"].append(megabytes / bare(tokenizer, texts))
        speeds["build"].append(megabytes / build(tokenizer, rows))
    return {side: measured[1:] for side, measured in speeds.items()}


def write_large_store(folder: Path, vocab_size: int) -> None:
    """A finished store of STORE_TOKENS tokens, all of id 0, in documents of equal length."""
    folder.mkdir(parents=True, exist_ok=True)
    num_documents = STORE_TOKENS // DOCUMENT_TOKENS
    splits = {}
    for split, tokens, documents in (("train", STORE_TOKENS, num_documents), ("eval", 0, 0)):
        with (folder / f"{split}.tokens").open("wb") as file:
            file.truncate(tokens * 2)
        np.arange(0, tokens + 1, DOCUMENT_TOKENS, dtype=np.int64).tofile(folder / f"{split}.offsets")
        np.full(documents, 4 * DOCUMENT_TOKENS, dtype=np.int64).tofile(folder / f"{split}.bytes")
        splits[split] = {"tokens": tokens, "documents": documents, "bytes": documents * 4 * DOCUMENT_TOKENS}
    meta: dict[str, Any] = {"format": FORMAT, "dtype": "uint16", "splits": splits}
    (folder / META).write_text(json.dumps(meta), encoding="utf-8")


def first_batch(stores: list[TokenStore], weighted: bool) -> None:
    """What a resumed run does before its first step."""
    sources = [{"path": str(store.path), "weight": 1.0 + i if weighted else None} for i, store in enumerate(stores)]
    config = PretrainConfig.model_validate(
        {
            "run": {"dir": "run"},
            "model": {"preset": "1m"},
            "tokenizer": {"path": "tokenizer"},
            "data": {"train": sources, "eval_fraction": 0.0, "max_seq_len": 1024},
            "train": {"steps": 2 * RESUME_STEP, "global_batch_tokens": 65536},
            "eval": {"every": None},
        }
    )
    packed = [StreamPacking(store, config.data.max_seq_len, config.data.isolate_documents) for store in stores]
    source = plan_data(config, packed, [], SingleProcess()).batches(collate, SingleProcess())
    source.load_state_dict({**source.state_dict(), "step": RESUME_STEP})
    assert source.next_step()


def open_large(tokenizer: str, folder: str) -> dict[str, float]:
    """Milliseconds to open the large store, and seconds to the first batch from one and from four of them."""
    path = Path(folder) / "large_store"
    write_large_store(path, load_tokenizer(tokenizer).vocab_size)
    started = time.perf_counter()
    store = open_store(path, "train")
    opened = time.perf_counter()
    assert store.num_tokens == STORE_TOKENS
    first_batch([store], weighted=False)
    one = time.perf_counter()
    first_batch([open_store(path, "train") for _ in range(4)], weighted=True)
    mixture = time.perf_counter()
    return {"open_ms": 1000 * (opened - started), "one_s": one - started, "mixture_s": mixture - one}


def main() -> None:
    tasks: dict[str, Callable[..., Any]] = {"speed": speed, "build": build, "open": open_large}
    task, *arguments = sys.argv[1:]
    print(json.dumps(tasks[task](*arguments)))


if __name__ == "__main__":
    main()
