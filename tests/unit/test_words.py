"""The words that AGENTS.md replaces are not in what people read: pages, `--help`, messages, docstrings, comments."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

REPLACED = {
    r"anew": "again",
    r"apart(?! from)": "separate, split",
    r"behind": "after, before",
    r"even groups": "zero-variance groups",
    r"gainsay\w*": "contradict",
    r"judged (answers?|rows?)": "labelled",
    r"kept tokens?": "sampling mask",
    r"kin": "variants",
    r"laid": "packed, stored",
    r"mend(s|ed|ing)?": "fix",
    r"(is|are|was|were) (\w+ )?told": "is logged",
    r"tells? (about|of|the|how|what|which|where|why|one)": "log, report, cover",
    r"stands?": "is",
    r"walk along": "join",
    r"(nats|bytes|tokens|seconds|rows|one) an? (token|response|answer|step|rollout|pair|row|microbatch)": "per",
    r"(of|with) all weights": "full fine-tuning",
    r"unheard": "ignored",
    r"wanting": "missing",
}
"""Pattern -> what to write; AGENTS.md has the list with the words that a search cannot judge."""

WORDS = re.compile(rf"\b({'|'.join(REPLACED)})\b", flags=re.IGNORECASE)

PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "tokenizer/README.md", "benchmarks/README.md", "docs/*.md"]
CODE = ["llmtrain/**/*.py", "recipes/*.py", "tokenizer/*.py", "benchmarks/*.py", "tests/**/*.py"]
SETTINGS = ["recipes/**/*.yaml", "tokenizer/*.yaml", "Makefile"]
LEFT_OUT = {"docs/LOG.md", "tests/unit/test_words.py"}
"""The log is a record of its days; this file lists the words."""

IDENTIFIER = re.compile(r"`[^`]*`")


def files(patterns: list[str]) -> list[Path]:
    """The files of the repository that match, in order."""
    found = {path for pattern in patterns for path in ROOT.glob(pattern)}
    return sorted(path for path in found if str(path.relative_to(ROOT)) not in LEFT_OUT)


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that people read; of code its comments and strings, docstrings included."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        yield from comments(text)
        yield from strings(text)
    else:
        yield from enumerate(text.splitlines(), 1)


def comments(text: str) -> Iterator[tuple[int, str]]:
    """Comments of Python code with their lines."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def strings(text: str) -> Iterator[tuple[int, str]]:
    """Lines of the strings of Python code, also of the constant parts of f-strings."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from enumerate(node.value.splitlines(), node.lineno)


def hits(path: Path) -> list[str]:
    """The places in a file that use a replaced word, as `file:line: word in its line`."""
    name = path.relative_to(ROOT)
    return [
        f"{name}:{number}: `{found.group()}` in: {line.strip()}"
        for number, line in sorted(set(lines(path)))
        for found in WORDS.finditer(IDENTIFIER.sub("``", line))
    ]


@pytest.mark.parametrize("path", files(PAGES + CODE + SETTINGS), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_uses_the_words_of_the_field(path: Path) -> None:
    assert not hits(path), "AGENTS.md says what to write:\n" + "\n".join(hits(path))


@pytest.mark.parametrize(
    "line", ["as one pack, laid once", "for you to mend it", "which is told", "nats a token", "what stands there"]
)
def test_a_replaced_word_is_found(line: str) -> None:
    assert WORDS.search(line)


@pytest.mark.parametrize("line", ["apart from that", "amend", "understand", "a kind of", "recommended"])
def test_words_that_only_look_alike_are_not(line: str) -> None:
    assert not WORDS.search(line)
