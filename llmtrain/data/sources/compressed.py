"""Files opened for reading, decompressed by their suffix; `COMPRESSIONS` is the table."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

MAX_ZSTD_WINDOW = 1 << 31
"""Bytes that a frame may refer back to: `zstd --long=31`, as Pushshift's dumps use; the most that zstd has."""

MAGIC = {
    b"\x1f\x8b\x08": "gzip data (.gz)",
    b"\x28\xb5\x2f\xfd": "zstd data (.zst)",
    b"\xfd7zXZ\x00": "xz data (.xz)",
    b"PAR1": "a Parquet file (.parquet)",
    b"ARROW1\x00\x00": "an Arrow file (.arrow)",
    b"PK\x03\x04": "a zip archive, which has to be unpacked",
}
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns the errors of a file that is missing, cut off or damaged into a ValueError of one line."""
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None


def open_text(path: Path) -> BinaryIO:
    """The bytes of a file of text, decompressed by its suffix.

    Raises ValueError for a file of UTF-16 and one whose content is of another kind than its name.
    """
    file = open_binary(path)
    start = cast(io.BufferedReader, file).peek(8)[:8]
    fault = next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), None)
    if fault is None and not start.startswith(UTF16_MARKS):
        return file
    file.close()
    if fault is not None:
        raise ValueError(f"{path}: holds {fault}, not text; rename the file")
    raise ValueError(f"{path}: is UTF-16, and UTF-8 is read; convert it: iconv -f UTF-16 -t UTF-8")


def open_binary(path: Path) -> BinaryIO:
    """A file opened for reading, decompressed by its suffix."""
    return COMPRESSIONS.get(path.suffix.lower(), _open_plain)(path)


def seekable(path: Path) -> BinaryIO:
    """A file open for reading at any place; a compressed one is unpacked to a temporary file first."""
    if path.suffix.lower() not in COMPRESSIONS:
        return path.open("rb")
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    with open_binary(path) as packed:
        shutil.copyfileobj(packed, unpacked)
    unpacked.seek(0)
    return cast(BinaryIO, unpacked)


def _open_plain(path: Path) -> BinaryIO:
    return path.open("rb")


def _open_gzip(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb"))


def _open_zstd(path: Path) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(_ZstdReader(path), buffer_size=1 << 18))


def _open_bzip2(path: Path) -> BinaryIO:
    return cast(BinaryIO, bz2.open(path, "rb"))


def _open_xz(path: Path) -> BinaryIO:
    return cast(BinaryIO, lzma.open(path, "rb"))


COMPRESSIONS: dict[str, Callable[[Path], BinaryIO]] = {
    ".gz": _open_gzip,
    ".zst": _open_zstd,
    ".bz2": _open_bzip2,
    ".xz": _open_xz,
}
"""Suffix -> how the file is opened."""


def _zstd_frame() -> Any:
    return zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW).decompressobj(read_across_frames=False)


class _ZstdReader(io.RawIOBase):
    """Decompresses all frames of a file; unlike zstandard's own reader it does not take a cut-off file for a whole."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._decompressor = _zstd_frame()
        self._compressed = b""
        self._plain = b""
        self._in_frame = False

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._plain:
            self._compressed = self._compressed or self._file.read(1 << 17)
            if not self._compressed:
                if self._in_frame:
                    raise EOFError("the compressed file ends before its end-of-stream marker")
                return 0
            if self._decompressor.eof:
                self._decompressor = _zstd_frame()
            self._plain = self._decompressor.decompress(self._compressed)
            self._in_frame = not self._decompressor.eof
            self._compressed = self._decompressor.unused_data if self._decompressor.eof else b""
        size = min(len(buffer), len(self._plain))
        buffer[:size] = self._plain[:size]
        self._plain = self._plain[size:]
        return size
