r"""Texts of others in Markdown: a file's name, a base's or a task's is shown there and makes no link, table or HTML.

code("a`b.jsonl")         ``a`b.jsonl``
plain("<b> [x](y)")       \<b\> \[x\](y)
cell("a | b")             a \| b
"""

from __future__ import annotations

import json
import re

from llmtrain.system.visible import visible, visible_line

MEANS = re.compile(r"[\\`*\[\]<>#|&~]")
"""What begins something in Markdown, but for `_`, which does nothing inside a word."""
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def plain(text: str) -> str:
    """A text in one line that reads as it is."""
    return MEANS.sub(r"\\\g<0>", visible_line(text))


def code(text: str) -> str:
    """A text in one line as code, whatever backticks are in it."""
    line = visible_line(text)
    ticks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if "`" in (line[:1], line[-1:]) else ""
    return f"{ticks}{space}{line}{space}{ticks}"


def cell(markdown: str) -> str:
    """Markdown in the cell of a table, which `|` would end, in code too."""
    return re.sub(r"(?<!\\)\|", r"\\|", markdown)


def python_text(text: str) -> str:
    """What is between the quotes of a text in Python code."""
    return visible(json.dumps(text, ensure_ascii=False)[1:-1])


def hub_link(name: str, kind: str = "") -> str:
    """A name of the hub with its page, `kind` being "datasets/" for a dataset; code if it can be no such name."""
    return f"[{name}](https://huggingface.co/{kind}{name})" if HUB_ID.fullmatch(name) else code(name)
