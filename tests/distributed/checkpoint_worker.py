"""One process of the tests of checkpoints on several ranks: what it got of each case goes to `seen-RANK.json`.

Rank 1 plays another machine: it looks at `elsewhere/CASE`, the main process at `here/CASE`.
"""

from __future__ import annotations

import json
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from llmtrain.train import checkpoint
from llmtrain.train.checkpoint import Checkpoints
from llmtrain.train.runtime import Runtime

LATE_SECONDS = 1.0
STEP = "step-00000020"


def main() -> None:
    folder = Path(sys.argv[1])
    runtime = Runtime(precision="fp32", max_grad_norm=None, seed=0, timeout_minutes=1)
    model = torch.nn.Linear(6, 5)
    runtime.prepare(model, torch.optim.AdamW(model.parameters()))
    runtime.make_state()
    seen: dict[str, Any] = {}

    def place(case: str) -> Path:
        return folder / ("here" if runtime.is_main else "elsewhere") / case

    def attempt(case: str, action: Callable[[], Any]) -> None:
        """Note what an action gives on this rank, in which every rank takes part."""
        runtime.barrier()
        try:
            seen[case] = action()
        except Exception as error:
            seen[case] = f"{type(error).__name__}: {error}"
        runtime.barrier()

    def saved(case: str, keep: int = 2, may_write: Callable[[], bool] = lambda: True) -> Checkpoints:
        """The checkpoints of a case, the steps 10 and 20, which both machines see."""
        Checkpoints(folder / "here" / case, keep, False).save(runtime, 10, {"step": 10}, extra={})
        Checkpoints(folder / "here" / case, keep, False).save(runtime, 20, {"step": 20}, extra={})
        if not runtime.is_main:
            shutil.copytree(folder / "here" / case, place(case))
        runtime.barrier()
        return Checkpoints(place(case), keep, False, may_write)

    def latest(checkpoints: Checkpoints) -> Callable[[], Any]:
        def read() -> Any:
            found = checkpoints.latest(runtime)
            return None if found is None else [found.step, found.state]

        return read

    attempt("no checkpoint", latest(Checkpoints(place("no checkpoint"), 2, False)))
    attempt("whole", latest(saved("whole")))

    checkpoints = saved("not plain")
    attempt("not plain", lambda: checkpoints.save(runtime, 30, {"source": {3: "x"}}, extra={}))

    checkpoints = saved("disk")
    with file_size_limit(300) if runtime.is_main else file_size_limit(None):
        attempt("disk", lambda: checkpoints.save(runtime, 30, {}, extra={}))
    attempt("after disk", latest(checkpoints))

    checkpoints = saved("taken over", may_write=taken_over)
    attempt("taken over", lambda: checkpoints.save(runtime, 30, {}, extra={}))

    for case, spoil in SPOILT_EVERYWHERE.items():
        checkpoints = saved(case)
        if runtime.is_main:
            spoil(place(case) / STEP)
        attempt(case, latest(checkpoints))

    for case, spoil in LATE.items():
        checkpoints = saved(case)
        if not runtime.is_main:
            kept = place(case) / "kept"
            (place(case) / STEP).rename(kept)
            spoil(place(case))
            threading.Timer(LATE_SECONDS, lambda case=case, kept=kept: replace(place(case) / STEP, kept)).start()
        attempt(case, latest(checkpoints))

    for case, spoil in SPOILT_ELSEWHERE.items():
        checkpoints = saved(case)
        if not runtime.is_main:
            spoil(place(case) / STEP)
        with patch.object(checkpoint, "SEEN_SECONDS", LATE_SECONDS):
            attempt(case, latest(checkpoints))

    (folder / f"seen-{runtime.rank}.json").write_text(json.dumps(seen, default=str), encoding="utf-8")
    runtime.finish()


def taken_over() -> bool:
    raise ValueError("run.dir was taken over by another process")


@contextmanager
def file_size_limit(size: int | None) -> Any:
    """A disk on which no file may grow over a size."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, before if size is None else (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def replace(path: Path, by: Path) -> None:
    """Let a folder be another one from now on."""
    if path.exists():
        path.rename(path.with_name("stale"))
    by.rename(path)


def of_format(number: int) -> Callable[[Path], None]:
    def rewrite(step: Path) -> None:
        manifest = json.loads((step / "manifest.json").read_text())
        (step / "manifest.json").write_text(json.dumps(manifest | {"format": number}))

    return rewrite


def shorten(step: Path) -> None:
    file = step / "model-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def remove_all_states(step: Path) -> None:
    for file in step.parent.glob("*/state.json"):
        file.unlink()


def earlier_one(folder: Path) -> None:
    """Another checkpoint of the same step."""
    shutil.copytree(folder / "step-00000010", folder / STEP)


SPOILT_EVERYWHERE: dict[str, Callable[[Path], None]] = {
    "older format": of_format(0),
    "newer format": of_format(2),
    "none whole": remove_all_states,
}
LATE: dict[str, Callable[[Path], None]] = {
    "late": lambda folder: None,
    "late files": lambda folder: (folder / STEP).mkdir(),
    "stale": earlier_one,
}
SPOILT_ELSEWHERE: dict[str, Callable[[Path], None]] = {
    "no folder": shutil.rmtree,
    "piece missing": lambda step: (step / "optimizer-00001.safetensors").unlink(),
    "other length": shorten,
    "another one": lambda step: replace(step, step.parent / "step-00000010"),
}

if __name__ == "__main__":
    main()
