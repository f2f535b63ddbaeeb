"""Files named by their content: a hash of every byte, remembered while a file's identity and times stay the same.

The hash is xxh3 of 128 bits: it tells different files from each other, at the speed of memory (a cryptographic hash is
five to ten times slower), and is no protection from one who forges files. A file is hashed in blocks, by threads. What
is remembered is a table in the cache folder: records of (device, inode, size, mtime, ctime) and hash, each with a check
sum, appended under a lock, so that one process of a node hashes while the others wait for it. A torn or damaged record
is ignored and its file hashed again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import compress, groupby
from pathlib import Path

import xxhash

from llmtrain.system.cores import usable_cores
from llmtrain.system.files import cache_root, exclusive, full_disk_named
from llmtrain.system.typing import Report

FOLDER, TABLE = "file-hashes", "table"
BLOCK_BYTES = 16 << 20
TURN_BYTES, TURN_FILES = 4 << 30, 10_000
"""What a process hashes before others that wait for the lock may have a turn."""
SETTLED_SECONDS = 2.0
"""A file that changed more recently is not remembered: file systems keep times in steps of up to 2 seconds, so that
another edit might leave them as they are."""

RECORD_BYTES = 64  # 40 of identity, 16 of hash, 8 of check sum

Identity = bytes


def content_hashes(paths: Sequence[Path], cache_dir: str | None, report: Report) -> list[str]:
    """32 hexadecimal digits for each file, equal for equal content.

    Raises ValueError for a file that cannot be read or changes meanwhile, and a cache folder that cannot be written.
    """
    folder = cache_root(cache_dir) / FOLDER
    found = _remembered(folder / TABLE)
    files = [(_identity(_stat(path)), path) for path in paths]
    while missing := {identity: path for identity, path in files if identity not in found}:
        with exclusive(folder, report):
            found |= _remembered(folder / TABLE)
            turn = _turn({identity: path for identity, path in missing.items() if identity not in found})
            started = time.time()
            hashes = dict(zip(turn, _hashes(list(turn.values()), report), strict=True))
            stats = [_stat(path) for path in turn.values()]
            for (identity, path), stat in zip(turn.items(), stats, strict=True):
                if _identity(stat) != identity:
                    raise ValueError(f"{path}: changes while it is read; start again when it is whole")
            settled = [started - stat.st_ctime > SETTLED_SECONDS for stat in stats]
            _remember(folder / TABLE, dict(compress(hashes.items(), settled)))
        found |= hashes
    return [found[identity].hex() for identity, _ in files]


def _turn(missing: Mapping[Identity, Path]) -> dict[Identity, Path]:
    """The first files, which are hashed under one hold of the lock."""
    turn: dict[Identity, Path] = {}
    num_bytes = 0
    for identity, path in missing.items():
        if turn and (num_bytes >= TURN_BYTES or len(turn) >= TURN_FILES):
            break
        turn[identity] = path
        num_bytes += _stat(path).st_size
    return turn


def _hashes(paths: Sequence[Path], report: Report) -> Iterator[bytes]:
    """The hash of each file, of the hashes of its blocks."""
    sizes = [_stat(path).st_size for path in paths]
    if sum(sizes) > TURN_BYTES // 2:
        report(f"{paths[0]} and {len(paths) - 1} more files: hashing {sum(sizes) / 1e9:.1f} GB")
    blocks = (
        (number, path, start)
        for number, (path, size) in enumerate(zip(paths, sizes, strict=True))
        for start in range(0, max(size, 1), BLOCK_BYTES)
    )
    with ThreadPoolExecutor(max_workers=usable_cores()) as pool:
        for _, hashed in groupby(pool.map(_block_hash, blocks), key=lambda block: block[0]):
            yield xxhash.xxh3_128_digest(b"".join(digest for _, digest in hashed))


def _block_hash(block: tuple[int, Path, int]) -> tuple[int, bytes]:
    number, path, start = block
    try:
        with path.open("rb") as file:
            file.seek(start)
            return number, xxhash.xxh3_128_digest(file.read(BLOCK_BYTES))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None


def _identity(stat: os.stat_result) -> Identity:
    parts = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    return b"".join((part & (2**64 - 1)).to_bytes(8, "little") for part in parts)


def _remembered(table: Path) -> dict[Identity, bytes]:
    """identity -> hash, of every record that is whole."""
    if not table.is_file():
        return {}
    data = table.read_bytes()
    records = (data[start : start + RECORD_BYTES] for start in range(0, len(data), RECORD_BYTES))
    return {record[:40]: record[40:56] for record in records if record[56:] == _check(record[:56])}


def _remember(table: Path, hashes: dict[Identity, bytes]) -> None:
    """Append records, after the last whole one; the caller holds the lock."""
    records = (identity + found for identity, found in hashes.items())
    with full_disk_named(table), table.open("ab") as file:
        os.truncate(file.fileno(), os.fstat(file.fileno()).st_size // RECORD_BYTES * RECORD_BYTES)
        file.write(b"".join(record + _check(record) for record in records))


def _check(record: bytes) -> bytes:
    return xxhash.xxh3_64_digest(record)
