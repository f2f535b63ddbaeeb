"""Arrays that follow from a store and are slow to compute: computed once, by one process, and kept beside the tokens.

A run of many processes, and later runs, open them memory-mapped. An array's name holds all that decides it besides the
store: `train.packs-1024-documents-1.npy`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llmtrain.data.store.token_store import TokenStore
from llmtrain.system.files import exclusive, write_whole
from llmtrain.system.typing import Array, Report


def derived(store: TokenStore, name: str, compute: Callable[[], Array], report: Report) -> Array:
    """The array of this name, memory-mapped; if it is not kept yet, computed while other processes wait for it.

    `compute` must not call `derived`, which holds the store's lock. Every process computes for itself if the store's
    folder cannot be written. Raises ValueError for a full disk.
    """
    path = _path(store, name)
    if not path.is_file():
        if not os.access(store.path, os.W_OK):
            return compute()
        with exclusive(store.path, report):
            if not path.is_file():
                computed = compute()
                write_whole(path, lambda file: np.save(file, computed, allow_pickle=False))
    array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _path(store: TokenStore, name: str) -> Path:
    return store.path / f"{store.split}.{name}.npy"
