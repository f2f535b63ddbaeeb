"""The demo's data, from the Python that runs it: signatures and descriptions of the standard library.

    def getline(filename, lineno, module_globals=None)
    Get a line for a Python source file from the cache.

Four kinds of rows: text for pretraining, instructions (signature -> description), preferences (the real description
over a corrupted one), and prompts (signatures of functions without a description). A tenth of the modules is held out
of all four, by a hash of the module's name.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import random
import re
import sys
import sysconfig
import tokenize
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from pydoc_data import topics
from typing import Any

HELD_OUT_SHARE = 0.1
NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
COMPILED: Any = (types.BuiltinFunctionType, types.MethodDescriptorType)
SUFFIXES = tuple(EXTENSION_SUFFIXES)
MAX_SIGNATURE_CHARS = 80
MIN_DESCRIPTION_CHARS, MAX_DESCRIPTION_CHARS = 20, 120

FILES = {
    "text": "modules and help topics: pretraining",
    "instructions": "signatures with descriptions: SFT",
    "instructions_held_out": "held out",
    "preferences": "real and corrupted descriptions: reward",
    "preferences_held_out": "held out",
    "prompts": "signatures without a description: PPO",
}
"""File -> what it is for."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Definition:
    """A class or function of the library: `def read(self, size=-1)` and its docstring, if it has one."""

    module: str
    signature: str
    doc: str | None


def main(folder: Path) -> None:
    """Write the files that are not there yet, each as a whole or not at all."""
    if any(not (folder / f"{name}.jsonl").exists() for name in FILES):
        for name, rows in files(library()).items():
            write(folder / f"{name}.jsonl", rows)
    for name, meaning in FILES.items():
        path = folder / f"{name}.jsonl"
        with path.open("rb") as file:
            print(f"{sum(1 for _ in file):6,} {meaning:<42} {path}")


def files(definitions: Sequence[Definition]) -> dict[str, list[Row]]:
    """The rows of each file of FILES."""
    parts = {
        "": [one for one in definitions if not is_held_out(one.module)],
        "_held_out": [one for one in definitions if is_held_out(one.module)],
    }
    helped = [{"text": text, "source": f"help({name!r})"} for name, text in sorted(topics.topics.items())]
    rows = {"text": [*texts(parts[""]), *helped]}
    for suffix, part in parts.items():
        rows[f"instructions{suffix}"] = instructions(part)
    seen = {(row["prompt"], row["completion"]) for row in rows["instructions"]}
    rows["instructions_held_out"] = [
        row for row in rows["instructions_held_out"] if (row["prompt"], row["completion"]) not in seen
    ]
    for suffix in parts:
        rows[f"preferences{suffix}"] = preferences(rows[f"instructions{suffix}"], random.Random(0))
    rows["prompts"] = prompts(parts[""])
    return rows


def write(path: Path, rows: Iterable[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    partial.replace(path)


def is_held_out(module: str) -> bool:
    return int.from_bytes(hashlib.sha256(module.encode()).digest()[:4]) < HELD_OUT_SHARE * 2**32


def library() -> list[Definition]:
    """All classes and functions of the standard library, by module, in the order in which they are written."""
    found: list[Definition] = []
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if NOT_LIBRARY.isdisjoint(relative.parts):
            with tokenize.open(path) as file:  # honours a module's declared encoding
                found += written(str(relative), ast.parse(file.read()))
    return [*found, *compiled()]


def written(module: str, tree: ast.AST) -> Iterator[Definition]:
    """The classes and functions of a module's source."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            bases = ", ".join(map(ast.unparse, node.bases))
            yield Definition(module, f"class {node.name}({bases})" if bases else f"class {node.name}", docstring(node))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Definition(module, f"def {node.name}({ast.unparse(node.args)})", docstring(node))
        yield from written(module, node)


def docstring(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str | None:
    return (ast.get_docstring(node) or "").strip() or None


def compiled() -> Iterator[Definition]:
    """The functions and methods of the library's compiled modules that state their signature."""
    for module in sorted(sys.stdlib_module_names):
        spec = importlib.util.find_spec(module)
        if "test" in module or spec is None or not (spec.origin == "built-in" or str(spec.origin).endswith(SUFFIXES)):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of deprecated modules
                imported = importlib.import_module(module)
        except ImportError:  # a library that it needs is not on this machine
            continue
        classes = [value for _, value in sorted(vars(imported).items()) if isinstance(value, type)]
        for owner in (imported, *classes):
            for name, value in sorted(vars(owner).items()):
                text = value.__text_signature__ if isinstance(value, COMPILED) else None
                if text and value.__doc__:
                    yield Definition(module, signature(name, text), value.__doc__.strip())


def signature(name: str, text: str) -> str:
    """`def read(self, size=-1)` for the text signature `($self, size=-1, /)`."""
    parts = [part for part in text[1:-1].split(", ") if part not in {"/", "$module"}]
    return f"def {name}({', '.join(parts).replace('$', '')})"


def texts(definitions: Sequence[Definition]) -> list[Row]:
    """One document per module: its definitions with their docstrings."""
    by_module: dict[str, list[str]] = {}
    for one in definitions:
        if one.doc:
            by_module.setdefault(one.module, []).append(f'{one.signature}:\n    """{one.doc}"""\n')
    return [{"text": "\n".join(parts), "source": module} for module, parts in by_module.items()]


def instructions(definitions: Sequence[Definition]) -> list[Row]:
    """Signature -> the first sentence of its docstring, each pair once."""
    pairs = [
        (one.signature, sentence)
        for one in definitions
        if one.doc and (sentence := first_sentence(one.doc)) and len(one.signature) <= MAX_SIGNATURE_CHARS
    ]
    return [{"prompt": prompt, "completion": completion} for prompt, completion in dict.fromkeys(pairs)]


def first_sentence(doc: str) -> str | None:
    """The first sentence of a docstring as one line; None where it does not begin with a sentence of fair length."""
    text = " ".join(doc.split("\n\n")[0].split())
    text = re.split(r"(?<=[a-z)][.])\s", text)[0]
    if not re.match(r"[A-Za-z]+ [A-Za-z(]", text) or re.search(r"->|=>|>>>|[:|]|\.\.\.", text):
        return None
    text = f"{text[0].upper()}{text[1:].rstrip('.')}."
    return text if MIN_DESCRIPTION_CHARS <= len(text) <= MAX_DESCRIPTION_CHARS else None


def preferences(rows: Sequence[Row], draw: random.Random) -> list[Row]:
    """Each real description over a corrupted one, the kind of corruption drawn."""
    pairs: list[Row] = []
    for row in rows:
        corrupt = draw.choice((another, spliced, garbled, looped, cut))
        rejected = corrupt(row["completion"].split(), draw.choice(rows)["completion"].split(), draw)
        if rejected != row["completion"].split():
            pairs.append({"prompt": row["prompt"], "chosen": row["completion"], "rejected": " ".join(rejected)})
    return pairs


def another(words: Sequence[str], other: Sequence[str], draw: random.Random) -> Sequence[str]:
    """The description of another function: fluent, and wrong."""
    return other


def spliced(words: Sequence[str], other: Sequence[str], draw: random.Random) -> Sequence[str]:
    """The beginning of this description and the end of another one."""
    return [*words[: draw.randint(1, len(words) - 1)], *other[draw.randint(1, len(other) - 1) :]]


def garbled(words: Sequence[str], other: Sequence[str], draw: random.Random) -> Sequence[str]:
    """Every third word, on average, replaced by one of another description."""
    return [draw.choice(other) if draw.random() < 1 / 3 else word for word in words]


def looped(words: Sequence[str], other: Sequence[str], draw: random.Random) -> Sequence[str]:
    """A phrase again and again: `Return the name of the name of the file.`"""
    start, length = draw.randrange(len(words)), draw.randint(1, 3)
    phrase = words[start : start + length]
    return [*words[:start], *(draw.randint(2, 4) * list(phrase)), *words[start + length :]]


def cut(words: Sequence[str], other: Sequence[str], draw: random.Random) -> Sequence[str]:
    """A description that ends too early."""
    return words[: draw.randint(1, len(words) - 1)]


def prompts(definitions: Sequence[Definition]) -> list[Row]:
    """Signatures of functions that nobody described."""
    found = {one.signature for one in definitions if not one.doc and len(one.signature) <= MAX_SIGNATURE_CHARS}
    return [{"prompt": one} for one in sorted(found) if one.startswith("def ") and not one.startswith("def __")]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
