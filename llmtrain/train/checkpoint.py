"""Checkpoints in the format of record: safetensors by parameter name, JSON for the rest, a manifest of hashes.

A checkpoint is a folder `step-00000200/`:

    model-00001.safetensors      weights by parameter name
    optimizer-00001.safetensors  optimizer state, keyed `PARAMETER/STATE`
    ema-00001.safetensors        any further kind, keyed by parameter name
    state-00001.safetensors      tensors of the state
    state.json                   everything else of the state
    manifest.json                format, step, best or not, size and SHA-256 of each file, which file holds which tensor

No engine's format is used, so any engine and world size resumes any other's. The folder is written under the name
`step-00000200.partial`, each file and the folder are synced to disk, then it is renamed: it is there whole or not at
all (`checkpoint_writer.py`). Folders and files with other names are left alone.

The main process writes, prunes and verifies. What it finds, every rank has to see too before any of them goes on: on a
network file system another machine may see a new folder, or the new one of two with the same name, a minute late.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmtrain.system.files import one_line
from llmtrain.train.checkpoint_writer import (
    FORMAT,
    MANIFEST,
    PARTIAL,
    REMOVED,
    STATE_SEPARATOR,
    join_tensors,
    set_aside,
    write_checkpoint,
)
from llmtrain.train.runtime import Runtime

SEEN_SECONDS = 90.0  # for every rank to see what the main process does: NFS looks again after 60 s at the latest
POLL_SECONDS = 0.2


class CheckpointError(ValueError):
    """A checkpoint could not be written; the ones before are untouched."""


class FormatError(ValueError):
    """A checkpoint is of a format that this version does not read."""


class Checkpoints:
    """The checkpoints of one run: the newest `keep` of them, and also the best one if `keep_best` is on."""

    def __init__(self, folder: Path, keep: int, keep_best: bool, may_write: Callable[[], bool] = lambda: True) -> None:
        """`may_write` raises ValueError on the main process if another launch has taken the run over."""
        self._folder, self._keep, self._keep_best, self._may_write = folder, keep, keep_best, may_write

    def save(
        self,
        runtime: Runtime,
        step: int,
        state: Mapping[str, Any],
        *,
        extra: Mapping[str, Mapping[str, Tensor]],
        best: bool = False,
    ) -> Path:
        """Write what the runtime prepared, as `step`, and prune the old ones. Collective; the main process writes.

        `state` holds plain values, and tensors at any depth; `extra` further kinds of named tensors. Raises on every
        rank if it cannot be written, CheckpointError if the disk is full or fails: the partial checkpoint is removed,
        the last good one stays.
        """
        final = self._path(step)
        named_state = runtime.named_state()
        error: Exception | None = None
        if runtime.is_main:
            error = self._refused() or write_checkpoint(final, step, named_state, state, extra, best)
        for _ in named_state:  # reading the state is collective: also after an error every rank iterates over all of it
            pass
        reason = _from_main(runtime, "" if error is None else _why_not_written(final, error))
        if error is not None and not isinstance(error, OSError):
            raise error
        if reason:
            raise CheckpointError(reason)
        if runtime.is_main:
            self._prune(step, runtime.say)
        return final

    def _refused(self) -> Exception | None:
        """Why this process may no longer write, for all ranks to agree on; None: it may."""
        try:
            self._may_write()
        except ValueError as error:
            return error
        return None

    def latest(self, runtime: Runtime) -> Checkpoint | None:
        """The newest checkpoint that verifies, the same on every rank; a damaged one is reported and skipped.

        Raises ValueError on every rank if none verifies, if the newest is of another format, and if a rank does not see
        what the main process sees. Collective.
        """
        return self._newest(runtime, best_only=False)

    def best(self, runtime: Runtime) -> Checkpoint | None:
        """The newest that was saved as the best, if it verifies. Collective."""
        return self._newest(runtime, best_only=True)

    def _newest(self, runtime: Runtime, best_only: bool) -> Checkpoint | None:
        found, refusal = None, ""
        if runtime.is_main:
            try:
                found = self._search(runtime.say, best_only)
            except ValueError as error:
                refusal = str(error)
            except OSError as error:
                refusal = f"{self._folder}: the checkpoints cannot be read ({one_line(error)})"
        if refusal := _from_main(runtime, refusal):
            raise ValueError(refusal)
        (step, digest), *_ = runtime.gather_floats([-1, 0] if found is None else [found.step, found.digest])
        if step < 0:
            return None
        return found if runtime.world_size == 1 else _seen_by_all(runtime, self._path(int(step)), int(digest))

    def _search(self, say: Callable[[str], None], best_only: bool) -> Checkpoint | None:
        """The newest that verifies; raises ValueError if there are some and none verifies, or for another format."""
        self._clear_leftovers(say)
        num_bad = 0
        for path in reversed(self._paths()):
            try:
                checkpoint = Checkpoint(path)
                if checkpoint.is_best or not best_only:
                    checkpoint.verify()
                    return checkpoint
            except FormatError as error:
                raise FormatError(f"{error}, or remove {self._folder} to start from the beginning") from None
            except ValueError as error:
                say(f"{error}; it is skipped in favour of the one before it")
                num_bad += 1
        if num_bad:
            raise ValueError(f"no checkpoint in {self._folder} is whole: remove the folder to start from the beginning")
        return None

    def _clear_leftovers(self, say: Callable[[str], None]) -> None:
        """Remove what a killed save or removal left, after putting back a checkpoint that was being replaced."""
        removed = _folders(self._folder, REMOVED)
        for path in reversed(removed):
            final = path.with_suffix("")
            if final.with_suffix(PARTIAL).exists() and not final.exists():  # killed while replacing it
                path.rename(final)
        for path in _folders(self._folder, PARTIAL) + _folders(self._folder, REMOVED):
            try:
                shutil.rmtree(path)
            except OSError as error:
                say(f"cannot remove {path}, which an earlier save left: {one_line(error)}")

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}"

    def _paths(self) -> list[Path]:
        return _folders(self._folder, suffix="")

    def _prune(self, step: int, say: Callable[[str], None]) -> None:
        """Remove what need not be kept now that `step` is saved, later steps included: the run went back."""
        paths = [path for path in self._paths() if _step(path) <= step]
        kept = set(paths[-self._keep :])
        if self._keep_best:
            kept.update([path for path in paths if _is_best(path)][-1:])
        for path in set(self._paths()) - kept:
            try:
                shutil.rmtree(set_aside(path))
            except OSError as error:
                say(f"cannot remove the old checkpoint {path}: {one_line(error)}")


class Checkpoint:
    """One saved step, read lazily: `kinds` of named tensors, and `state`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            content = (path / MANIFEST).read_bytes()
            self.digest = int.from_bytes(hashlib.sha256(content).digest()[:6], "big")  # exact as a float
            manifest = json.loads(content)
            if manifest["format"] != FORMAT:
                raise FormatError(
                    f"checkpoint {path} is of format {manifest['format']}, this version of llmtrain reads format "
                    f"{FORMAT}: continue with the version that wrote it"
                )
            self.step: int = manifest["step"]
            self.is_best: bool = manifest["best"]
            self._files: dict[str, dict[str, Any]] = manifest["files"]
            self._tensors: dict[str, dict[str, str]] = manifest["tensors"]
            self._state_keys: dict[str, list[str]] = {}  # of the optimizer, by parameter
            for full in self._tensors.get("optimizer", {}):
                name, key = full.rsplit(STATE_SEPARATOR, 1)
                self._state_keys.setdefault(name, []).append(key)
        except FormatError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"checkpoint {path} has no good {MANIFEST} ({error})") from None

    @property
    def kinds(self) -> list[str]:
        return [kind for kind in self._tensors if kind != "state"]

    @property
    def state(self) -> dict[str, Any]:
        """The state that was saved, with its tensors back in their places."""
        with self._read_errors_named():
            plain = json.loads((self.path / "state.json").read_text(encoding="utf-8"))
        restored = join_tensors(plain, lambda name: self.read("state", name))
        assert isinstance(restored, dict)
        return restored

    def names(self, kind: str) -> list[str]:
        return list(self._tensors[kind])

    def read(self, kind: str, name: str) -> Tensor:
        """One tensor, on the CPU. Raises ValueError if the checkpoint has none of that name, or it cannot be read."""
        if (holder := self._tensors.get(kind, {}).get(name)) is None:
            raise ValueError(f"checkpoint {self.path} has no {kind} tensor {name}: it is of another model")
        with self._read_errors_named(), safe_open(self.path / holder, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor.clone()  # it is the mapped file: what stays in use would hold that after it is removed

    def read_all(self, kind: str) -> dict[str, Tensor]:
        """Every tensor of a kind, by name; each file is opened, and so mapped, once. Raises ValueError as `read`."""
        if kind not in self._tensors:
            raise ValueError(f"checkpoint {self.path} has no {kind}: it is of another run")
        tensors: dict[str, Tensor] = {}
        for file_name in dict.fromkeys(self._tensors[kind].values()):
            with self._read_errors_named(), safe_open(self.path / file_name, framework="pt") as file:
                names = [name for name, holder in self._tensors[kind].items() if holder == file_name]
                tensors |= {name: file.get_tensor(name) for name in names}
        return tensors

    def read_parameter(self, name: str) -> dict[str, Tensor]:
        """A parameter under `param`, and its optimizer state by key, for `Runtime.load_named_state`."""
        keys = self._state_keys.get(name, [])
        state = {key: self.read("optimizer", f"{name}{STATE_SEPARATOR}{key}") for key in keys}
        return {"param": self.read("model", name)} | state

    def verify(self) -> None:
        """Compare every file with the manifest. Raises ValueError naming the first that differs."""
        self.check_sizes()
        for name, expected in self._files.items():
            with self._read_errors_named(), (self.path / name).open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            if digest != expected["sha256"]:
                raise ValueError(f"checkpoint {self.path} was changed: {name} does not match its hash")

    def check_sizes(self) -> None:
        """Raise ValueError naming the first file that is missing or has another size."""
        for name, expected in self._files.items():
            try:
                size = (self.path / name).stat().st_size
            except OSError:  # it may be removed at any moment
                size = -1
            if size != expected["bytes"]:
                raise ValueError(f"checkpoint {self.path} is incomplete: {name} is missing or has another size")

    @contextmanager
    def _read_errors_named(self) -> Iterator[None]:
        """Turn an error of reading into a ValueError: a run that goes on removes its old checkpoints."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"checkpoint {self.path} cannot be read ({one_line(error)}): if the run has gone on and removed it, "
                "take a later one"
            ) from None


def _from_main(runtime: Runtime, text: str) -> str:
    """The main process's text, on every rank. Collective."""
    own = list(text.encode()) if runtime.is_main else []
    size = int(runtime.sum_floats([float(len(own))])[0])
    if not size:
        return ""
    return bytes(int(byte) for byte in runtime.sum_floats([*map(float, own), *[0.0] * (size - len(own))])).decode()


def _why_not_written(final: Path, error: Exception) -> str:
    reason = f"cannot write the checkpoint {final}: {one_line(error)}"
    if not isinstance(error, OSError):
        return reason  # not the disk's fault, so the advice below would mislead
    return f"{reason}; the last good one is untouched: free space on the disk, or move run.dir"


def _seen_by_all(runtime: Runtime, path: Path, digest: int) -> Checkpoint:
    """What the main process found, once every rank sees the same manifest and files of its sizes. Collective.

    Raises ValueError on every rank if one of them does not within SEEN_SECONDS.
    """
    deadline = time.monotonic() + SEEN_SECONDS
    while isinstance(seen := _seen(path, digest), ValueError) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    failed = runtime.gather_floats([float(isinstance(seen, ValueError))])
    if late := [str(rank) for rank, (is_late,) in enumerate(failed) if is_late]:
        reason = f" ({seen})" if isinstance(seen, ValueError) else ""
        raise ValueError(
            f"rank {', '.join(late)} does not see {path} as the main process does{reason}: run.dir must be on a file "
            "system that all machines share"
        )
    assert isinstance(seen, Checkpoint)
    return seen


def _seen(path: Path, digest: int) -> Checkpoint | ValueError:
    """A checkpoint as this process sees it now, or what is wrong with it."""
    try:
        os.listdir(path.parent)  # on NFS, looks again for the folder if it was not there before
        checkpoint = Checkpoint(path)
        if checkpoint.digest != digest:
            raise ValueError(f"it is another checkpoint here: {MANIFEST} differs")
        checkpoint.check_sizes()
    except ValueError as error:
        return error
    except OSError as error:
        return ValueError(one_line(error))
    return checkpoint


def find_checkpoint(folder: Path, which: str) -> Checkpoint:
    """The checkpoint `latest`, `best` or of a step's number in a folder, verified; nothing is changed there.

    Raises ValueError naming the steps that there are, or the damage.
    """
    paths = _folders(folder, suffix="")
    steps = [_step(path) for path in paths]
    there = f"{folder} holds {'no checkpoint' if not steps else 'the steps ' + ', '.join(map(str, steps))}"
    if which == "best":
        paths = [path for path in paths if _is_best(path)]
        there += ", of which none was kept as the best" if steps else ""
    elif which != "latest":
        if not which.isdecimal():
            raise ValueError(f"step {which!r}: give a number, latest or best")
        paths = [path for path, step in zip(paths, steps, strict=True) if step == int(which)]
    if not paths:
        raise ValueError(f"no checkpoint {which}: {there}")
    checkpoint = Checkpoint(paths[-1])
    try:
        checkpoint.verify()
    except ValueError as error:
        raise ValueError(f"{error}; {there}") from None
    return checkpoint


def _folders(parent: Path, suffix: str) -> list[Path]:
    """The folders of steps with a suffix ("" for whole checkpoints), in order; anything else there is not ours."""
    number = r"\d*" if suffix == REMOVED else ""
    name = re.compile(rf"step-\d{{8,}}{re.escape(suffix)}{number}")
    found = [path for path in parent.glob("step-*") if name.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: (_step(path), len(path.name), path.name))


def _step(path: Path) -> int:
    """The step of a folder's name, which is longer than others from step 100,000,000 on."""
    return int(path.name.removeprefix("step-").partition(".")[0])


def _is_best(path: Path) -> bool:
    try:
        return Checkpoint(path).is_best
    except ValueError:  # incomplete
        return False
