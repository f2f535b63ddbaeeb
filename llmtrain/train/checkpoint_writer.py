"""Writes one checkpoint, in pieces, under another name, which it loses once everything is on disk.

What a checkpoint holds is in `checkpoint.py`, which reads it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from llmtrain.system.files import sync_folder

FORMAT = 1
PIECE_BYTES = 1 << 28  # a file holds no more, one larger tensor excepted: bounds the memory of saving
STATE_SEPARATOR = "/"  # between a parameter's name, which never holds it, and the optimizer state's
PARTIAL, REMOVED = ".partial", ".removed"  # suffixes of a folder that is being written, and of one being deleted
MANIFEST = "manifest.json"
TENSOR_KEY = "$tensor"  # marks, in state.json, the place of a tensor


def write_checkpoint(
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
        self._write(MANIFEST, json.dumps(manifest, indent=1).encode())
        sync_folder(self._partial)
        replaced = None
        if self._final.exists():  # incomplete, or from before this step was evaluated, or the run went back
            replaced = set_aside(self._final)
        self._partial.rename(self._final)
        if replaced is not None:
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


def set_aside(path: Path) -> Path:
    """Rename a checkpoint that is to be deleted, so that a kill leaves no part of it that looks whole; its new name.

    `step-00000200.removed`, or `.removed1` if files of an earlier one of that name could not be deleted: NFS keeps a
    file that another process has open.
    """
    names = (path.with_name(f"{path.name}{REMOVED}{number or ''}") for number in count())
    aside = next(name for name in names if not name.exists())
    path.rename(aside)
    return aside


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Turn safetensors' error for a full disk or the like into an OSError with its text; the error number is lost."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from None


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
