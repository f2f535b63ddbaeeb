"""Values, rows and files that nobody means to give, drawn from a random generator."""

from __future__ import annotations

import copy
import gzip
import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SCALARS: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 0.5, -0.0, 1e-300, 1e300, 10**9, 2**31, 2**63, -(2**63), 10**30, 10**400,
    float("nan"), float("inf"), -float("inf"), "", " ", "0", "1", "-1", "1e3", "nan", "null", "none", "auto", "true",
    "~", "a", "text", "../..", "/", ".", "~/x", "\0", "a\0b", "\n", "\r\n", "\u2028", "\ud800", "\udc80x", "\ufeff",
    "\u202e", "\x1b[2J", "\U0001f600", "x" * 100_000, "{}", "[]", "{{ x }}", "{% for %}", "%s", "a/b", "org/name",
    "file.py:f", "0%:50%", "1:2:3", "*", "**/*.jsonl", "[", "http://a.example/x", "cuda", "user", "assistant", "system",
)  # fmt: skip
"""Of every type that JSON and YAML have; lists and objects are made of them."""


def value(drawn: random.Random, depth: int = 0) -> Any:
    """A value of any type."""
    kind = drawn.random()
    if kind < 0.75 or depth > 2:
        return drawn.choice(SCALARS)
    if kind < 0.87:
        return [value(drawn, depth + 1) for _ in range(drawn.choice((0, 1, 2, 5)))]
    if kind < 0.97:
        return {as_json(drawn.choice(SCALARS))[:50]: value(drawn, depth + 1) for _ in range(drawn.choice((0, 1, 3)))}
    deep: Any = "deep"
    for _ in range(drawn.choice((50, 500, 5_000))):
        deep = [deep] if drawn.random() < 0.5 else {"a": deep}
    return deep


def word(drawn: random.Random, most: int = 300) -> str:
    """A value as a word of a command line."""
    given = value(drawn)
    try:
        return str(given)[:most]
    except (RecursionError, ValueError):
        return "[" * most


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a tree."""
    found: list[tuple[Any, Any]] = []
    open_ = [tree]
    while open_:
        node = open_.pop()
        items: Sequence[tuple[Any, Any]] = ()
        if isinstance(node, dict):
            items = list(node.items())
        elif isinstance(node, list):
            items = list(enumerate(node))
        for key, child in items:
            found.append((node, key))
            open_.append(child)
    return found


def mutated(tree: Any, drawn: random.Random, times: int) -> Any:
    """A copy of a tree with so many places changed."""
    tree = copied(tree)
    for _ in range(times):
        found = places(tree)
        if not found:
            return value(drawn)
        node, key = drawn.choice(found)
        match drawn.randrange(8):
            case 0 | 1 | 2:
                node[key] = value(drawn)
            case 3:
                del node[key]
            case 4 if isinstance(node, dict):
                node[misspelt(key, drawn)] = node.pop(key)
            case 5 if isinstance(node, dict):
                node[word(drawn, 40)] = value(drawn)
            case 6:
                node[key] = [node[key]] if drawn.random() < 0.5 else {"value": node[key]}
            case _:
                other, its = drawn.choice(found)
                node[key] = copied(other[its]) if isinstance(other, dict) and its in other else value(drawn)
    return tree


def copied(tree: Any) -> Any:
    """A copy; of what is too deep for that, a word."""
    try:
        return copy.deepcopy(tree)
    except RecursionError:
        return "deep"


def misspelt(word: Any, drawn: random.Random) -> str:
    """A word with one letter changed, doubled, or left out."""
    text = str(word) or "x"
    at = drawn.randrange(len(text))
    return drawn.choice(
        (text[:at] + text[at + 1 :], text[:at] + text[at] + text[at:], text.upper(), f"{text}_", " " + text)
    )


def as_json(tree: Any) -> str:
    """A tree as JSON; one that is too deep is cut."""
    try:
        return json.dumps(tree)
    except (RecursionError, ValueError):
        return "[" * 3_000 + "]" * 3_000


def bytes_of(text: str, drawn: random.Random) -> bytes:
    """A text in an encoding."""
    encoding = drawn.choice(["utf-8"] * 12 + ["utf-8-sig", "utf-16", "latin-1", "utf-32"])
    return text.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")


def damaged(content: bytes, drawn: random.Random) -> bytes:
    """A file's content as a disk, an editor or a wrong tool may leave it."""
    at = drawn.randrange(len(content) + 1)
    match drawn.randrange(9):
        case 0:
            return content[:at]
        case 1:
            return content[:at] + drawn.randbytes(drawn.choice((1, 8, 200))) + content[at:]
        case 2:
            return content.replace(b"\n", drawn.choice((b"\r", b"\r\n", b"\xe2\x80\xa8", b"\0", b"\n\n\n")))
        case 3:
            return b""
        case 4:
            return content + b"\0" * 100
        case 5:
            return gzip.compress(content, mtime=0)[: drawn.randrange(10, 60)]
        case 6:
            return drawn.randbytes(300)
        case 7:
            return content[at:]
    return content


def other_thing(path: Path, drawn: random.Random) -> None:
    """Put something at a path that is no file of content."""
    if path.is_dir():
        return
    path.unlink(missing_ok=True)
    makers: Sequence[Callable[[], Any]] = (
        path.mkdir,
        lambda: None,
        lambda: os.mkfifo(path),
        lambda: path.symlink_to("/dev/null"),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to(path),
        lambda: path.symlink_to(path.parent),
        lambda: path.symlink_to("/proc/self/mem"),
        lambda: path.symlink_to("nowhere"),
    )
    drawn.choice(makers)()


def spoil(path: Path, drawn: random.Random, change: Callable[[Path], None]) -> None:
    """Remove a file, damage it, put something else there, or, twice as often as each, change what it holds."""
    match drawn.randrange(5):
        case 0:
            path.unlink()
        case 1:
            path.write_bytes(damaged(path.read_bytes(), drawn))
        case 2:
            other_thing(path, drawn)
        case _:
            change(path)
