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
all. Folders and files with other names are left alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmtrain.system.files import sync_folder
from llmtrain.train.runtime import Runtime

FORMAT = 1
PIECE_BYTES = 1 << 28  # a file holds no more, one larger tensor excepted: bounds the memory of saving
STATE_SEPARATOR = "/"  # between a parameter's name, which never holds it, and the optimizer state's
PARTIAL, REMOVED = ".partial", ".removed"  # suffixes of a folder that is being written, and of one being deleted
TENSOR_KEY = "$tensor"  # marks, in state.json, the place of a tensor


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
            error = self._refused() or _write(final, step, named_state, state, extra, best)
        for _ in named_state:  # reading the state is collective: also after an error every rank iterates over all of it
            pass
        if runtime.any(error is not None):
            by_disk = runtime.any(isinstance(error, OSError))
            if error is not None and not isinstance(error, OSError):
                raise error  # not the disk's fault, so the advice below would mislead
            if not by_disk:
                raise CheckpointError(f"cannot write the checkpoint {final}: see the main process")
            raise CheckpointError(
                f"cannot write the checkpoint {final}: {error or 'see the main process'}; the last good one is "
                "untouched: free space on the disk, or move run.dir"
            )
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

        Raises ValueError on every rank if none verifies, or if one is of another format. Collective.
        """
        return self._newest(runtime, best_only=False)

    def best(self, runtime: Runtime) -> Checkpoint | None:
        """The newest that was saved as the best, if it verifies. Collective."""
        return self._newest(runtime, best_only=True)

    def _newest(self, runtime: Runtime, best_only: bool) -> Checkpoint | None:
        searched = self._search(runtime.say, best_only) if runtime.is_main else [0, 0, 0]
        (found, bad, foreign), *_ = runtime.gather_floats(searched)  # the main process's
        if foreign:
            raise ValueError(
                f"a checkpoint in {self._folder} is of another format than {FORMAT}: continue with the version of "
                "llmtrain that wrote it, or remove the folder to start from the beginning"
            )
        if found >= 0:
            return Checkpoint(self._path(int(found)))
        if bad:
            raise ValueError(f"no checkpoint in {self._folder} is whole: remove the folder to start from the beginning")
        return None

    def _search(self, say: Callable[[str], None], best_only: bool) -> list[int]:
        """Step of the newest that verifies, or -1; how many newer ones do not; how many are of another format."""
        self._clear_leftovers()
        num_bad = 0
        for path in reversed(self._paths()):
            try:
                checkpoint = Checkpoint(path)
                if checkpoint.is_best or not best_only:
                    checkpoint.verify()
                    return [checkpoint.step, num_bad, 0]
            except FormatError as error:
                say(str(error))
                return [-1, num_bad, 1]
            except ValueError as error:
                say(f"{error}; it is skipped in favour of the one before it")
                num_bad += 1
        return [-1, num_bad, 0]

    def _clear_leftovers(self) -> None:
        """Remove what a killed save or removal left, after putting back a checkpoint that was being replaced."""
        for path in _folders(self._folder, REMOVED):
            final = path.with_suffix("")
            if path.with_suffix(PARTIAL).exists() and not final.exists():  # killed while replacing it
                path.rename(final)
        for path in _folders(self._folder, PARTIAL) + _folders(self._folder, REMOVED):
            shutil.rmtree(path)

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}"

    def _paths(self) -> list[Path]:
        return _folders(self._folder, suffix="")

    def _prune(self, step: int, say: Callable[[str], None]) -> None:
        """Remove what need not be kept now that `step` is saved, later steps included: the run went back."""
        paths = [path for path in self._paths() if path <= self._path(step)]
        kept = set(paths[-self._keep :])
        if self._keep_best:
            kept.update([path for path in paths if _is_best(path)][-1:])
        for path in set(self._paths()) - kept:
            try:
                _remove(path)
            except OSError as error:
                say(f"cannot remove the old checkpoint {path}: {error}")


class Checkpoint:
    """One saved step, read lazily: `kinds` of named tensors, and `state`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
            if manifest["format"] != FORMAT:
                raise FormatError(f"checkpoint {path} is of format {manifest['format']}, not {FORMAT}")
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
            raise ValueError(f"checkpoint {path} has no good manifest.json ({error})") from None

    @property
    def kinds(self) -> list[str]:
        return [kind for kind in self._tensors if kind != "state"]

    @property
    def state(self) -> dict[str, Any]:
        """The state that was saved, with its tensors back in their places."""
        plain = json.loads((self.path / "state.json").read_text(encoding="utf-8"))
        restored = join_tensors(plain, lambda name: self.read("state", name))
        assert isinstance(restored, dict)
        return restored

    def names(self, kind: str) -> list[str]:
        return list(self._tensors[kind])

    def read(self, kind: str, name: str) -> Tensor:
        """One tensor, on the CPU. Raises KeyError if the checkpoint has none of that name."""
        with safe_open(self.path / self._tensors[kind][name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def read_all(self, kind: str) -> dict[str, Tensor]:
        """Every tensor of a kind, by name; each file is opened, and so mapped, once."""
        tensors: dict[str, Tensor] = {}
        for file_name in dict.fromkeys(self._tensors[kind].values()):
            with safe_open(self.path / file_name, framework="pt") as file:
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
        for name, expected in self._files.items():
            file = self.path / name
            if not file.is_file() or file.stat().st_size != expected["bytes"]:
                raise ValueError(f"checkpoint {self.path} is incomplete: {name} is missing or has another size")
            with file.open("rb") as opened:
                if hashlib.file_digest(opened, "sha256").hexdigest() != expected["sha256"]:
                    raise ValueError(f"checkpoint {self.path} was changed: {name} does not match its hash")


def find_checkpoint(folder: Path, which: str) -> Checkpoint:
    """The checkpoint `latest`, `best` or of a step's number in a folder, verified; nothing is changed there.

    Raises ValueError naming the steps that there are, or the damage.
    """
    paths = _folders(folder, suffix="")
    steps = [int(path.name.removeprefix("step-")) for path in paths]
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


def _write(
    final: Path,
    step: int,
    named_state: Iterator[tuple[str, dict[str, Tensor]]],
    state: Mapping[str, Any],
    extra: Mapping[str, Mapping[str, Tensor]],
    best: bool,
) -> Exception | None:
    """Write a whole checkpoint, or nothing; returns the error that prevented it, so that ranks can agree on it."""
    writer = _Writer(final)
    try:
        writer.make_folder()
        for name, tensors in named_state:
            writer.add_parameter(name, tensors)
        for kind, named in extra.items():
            for name, tensor in named.items():
                writer.add(kind, name, tensor)
        writer.finish(step, state, best)
    except Exception as error:
        writer.discard()
        return error
    return None


class _Writer:
    """Writes one checkpoint, in pieces, into a folder beside its final name. Its methods raise OSError."""

    def __init__(self, final: Path) -> None:
        self._final, self._partial = final, final.with_name(f"{final.name}{PARTIAL}")
        self._files: dict[str, dict[str, Any]] = {}
        self._tensors: dict[str, dict[str, str]] = {}
        self._pending: dict[str, dict[str, Tensor]] = {}
        self._pending_bytes: dict[str, int] = {}

    def make_folder(self) -> None:
        """An empty folder to write into."""
        if self._partial.exists():
            shutil.rmtree(self._partial)
        self._partial.mkdir(parents=True)

    def add_parameter(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """A parameter (`param`) and its optimizer state."""
        for key, tensor in tensors.items():
            if key == "param":
                self.add("model", name, tensor)
            else:
                self.add("optimizer", f"{name}{STATE_SEPARATOR}{key}", tensor)

    def add(self, kind: str, name: str, tensor: Tensor) -> None:
        """One tensor of a kind; what is pending goes to disk first if both do not fit in a piece."""
        size = tensor.numel() * tensor.element_size()
        if self._pending.get(kind) and self._pending_bytes[kind] + size > PIECE_BYTES:
            self._flush(kind)
        self._pending.setdefault(kind, {})[name] = tensor.detach().cpu().contiguous()
        self._pending_bytes[kind] = self._pending_bytes.get(kind, 0) + size

    def finish(self, step: int, state: Mapping[str, Any], best: bool) -> None:
        """Write what is pending, the state and the manifest, and give the folder its final name."""
        plain, tensors = split_tensors(state)
        for name, tensor in tensors.items():
            self.add("state", name, tensor)
        for kind in list(self._pending):
            self._flush(kind)
        self._write("state.json", json.dumps(plain, indent=1).encode())
        manifest = {"format": FORMAT, "step": step, "best": best, "files": self._files, "tensors": self._tensors}
        self._write("manifest.json", json.dumps(manifest, indent=1).encode())
        sync_folder(self._partial)
        replaced = self._final.with_suffix(REMOVED)
        if self._final.exists():  # incomplete, or from before this step was evaluated, or the run went back
            self._final.rename(replaced)
        self._partial.rename(self._final)
        shutil.rmtree(replaced, ignore_errors=True)
        sync_folder(self._final.parent)

    def discard(self) -> None:
        """Remove what was written so far."""
        shutil.rmtree(self._partial, ignore_errors=True)

    def _flush(self, kind: str) -> None:
        tensors, self._pending_bytes[kind] = self._pending.pop(kind), 0
        pieces = sum(name.startswith(f"{kind}-") for name in self._files)
        file = f"{kind}-{pieces + 1:05d}.safetensors"
        with _as_os_error():
            safetensors.torch.save_file(tensors, self._partial / file)  # without a copy of the tensors
        self._seal(file)
        self._tensors.setdefault(kind, {}).update(dict.fromkeys(tensors, file))

    def _write(self, name: str, content: bytes) -> None:
        (self._partial / name).write_bytes(content)
        self._seal(name)

    def _seal(self, name: str) -> None:
        """Sync a file that was written to disk, and note its size and the hash of what can be read from it."""
        with (self._partial / name).open("rb+") as file:
            os.fchmod(file.fileno(), self._partial.stat().st_mode & 0o666)  # safetensors' are for their owner alone
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._files[name] = {"bytes": (self._partial / name).stat().st_size, "sha256": digest}


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Turn safetensors' error for a full disk or the like into an OSError with its text; the error number is lost."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from None


def _folders(parent: Path, suffix: str) -> list[Path]:
    """The folders of steps with a suffix ("" for whole checkpoints), in order; anything else there is not ours."""
    name = re.compile(rf"step-\d{{8,}}{re.escape(suffix)}")
    return sorted(path for path in parent.glob(f"step-*{suffix}") if name.fullmatch(path.name) and path.is_dir())


def _is_best(path: Path) -> bool:
    try:
        return Checkpoint(path).is_best
    except ValueError:  # incomplete
        return False


def split_tensors(state: Mapping[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    """A state as plain JSON values with a mark in place of each tensor, and the tensors by their dotted place.

    Raises TypeError if a key is not a string or a value is neither plain nor a tensor: JSON would change it.
    """
    tensors: dict[str, Tensor] = {}

    def plain(value: Any, place: str) -> Any:
        if isinstance(value, Tensor):
            tensors[place] = value.detach().clone()  # a copy: safetensors refuses shared memory
            return {TENSOR_KEY: place}
        if isinstance(value, Mapping):
            if not all(isinstance(key, str) for key in value):
                raise TypeError(f"state {place}: keys must be strings")
            return {key: plain(item, f"{place}.{key}" if place else key) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item, f"{place}.{i}") for i, item in enumerate(value)]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise TypeError(f"state {place}: {type(value).__name__} is neither a plain value nor a tensor")

    return plain(state, ""), tensors


def join_tensors(plain: Any, read: Callable[[str], Tensor]) -> Any:
    """The inverse of `split_tensors`; tuples come back as lists."""
    if isinstance(plain, dict):
        if set(plain) == {TENSOR_KEY}:
            return read(plain[TENSOR_KEY])
        return {key: join_tensors(item, read) for key, item in plain.items()}
    if isinstance(plain, list):
        return [join_tensors(item, read) for item in plain]
    return plain


def _remove(path: Path) -> None:
    """Delete a checkpoint so that a kill during it leaves a leftover, never a part that looks whole."""
    leftover = path.with_name(f"{path.name}{REMOVED}")
    path.rename(leftover)
    shutil.rmtree(leftover)
