"""The pieces that sections are built from: tables, tiles, figures with captions, details. All text is escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence

from markupsafe import Markup, escape

Cell = str | Markup
CODE = re.compile(r"`([^`]+)`")


def paragraph(text: Cell) -> Markup:
    return Markup("<p>{}</p>\n").format(with_code(text))


def note(text: Cell) -> Markup:
    """A smaller remark, such as where numbers are from."""
    return Markup('<p class="note">{}</p>\n').format(with_code(text))


def subtitle(text: Cell) -> Markup:
    return Markup("<h3>{}</h3>\n").format(text)


def source(*places: str) -> Markup:
    """Where numbers are from: `metrics.jsonl: loss`."""
    return Markup('<p class="source">From {}</p>\n').format(Markup(", ").join(map(code, places)))


def code(text: str) -> Markup:
    return Markup("<code>{}</code>").format(text)


def with_code(text: Cell) -> Markup:
    """A sentence with what is between two backticks as code; markup stays as it is."""
    if isinstance(text, Markup):
        return text
    return join(*(code(part) if i % 2 else part for i, part in enumerate(CODE.split(text))))


def table(head: Sequence[Cell], rows: Sequence[Sequence[Cell]], *, numbers: Sequence[int] = ()) -> Markup:
    """A table that scrolls sideways where it is too wide; the columns `numbers` are set right, in tabular figures."""
    titles = Markup("").join(
        Markup("<th{} scope=col>{}</th>").format(_number(i in numbers), title) for i, title in enumerate(head)
    )
    lines = Markup("\n").join(
        Markup("<tr>{}</tr>").format(
            Markup("").join(Markup("<td{}>{}</td>").format(_number(i in numbers), cell) for i, cell in enumerate(row))
        )
        for row in rows
    )
    return Markup(
        '<div class="scroll"><table>\n<thead><tr>{}</tr></thead>\n<tbody>\n{}\n</tbody></table></div>\n'
    ).format(titles, lines)


def _number(is_number: bool) -> Markup:
    return Markup(' class="number"') if is_number else Markup("")


def tile(label: Cell, value: Cell, remark: Cell = "", where: str = "") -> Markup:
    """A number to be seen first: what it is, its value, what it was before, and the file and field it is from."""
    return Markup(
        '<div class="tile"><div class="label">{}</div><div class="value">{}</div><div class="remark">{}</div>{}</div>\n'
    ).format(label, value, remark, Markup('<div class="where">{}</div>').format(where) if where else "")


def tiles(each: Sequence[Markup]) -> Markup:
    return Markup('<div class="tiles">\n{}</div>\n').format(Markup("").join(each))


def figure(drawing: Markup, caption: Cell, *places: str) -> Markup:
    """A drawing with what it shows, and the files and fields that its numbers are from."""
    return Markup("<figure>\n{}\n<figcaption>{}{}</figcaption>\n</figure>\n").format(
        drawing, caption, source(*places) if places else ""
    )


def titled(title: Cell, text: Cell) -> Markup:
    """A caption that begins with what the figure is."""
    return Markup("<strong>{}.</strong> {}").format(title, text)


def grid(each: Sequence[Markup]) -> Markup:
    """Figures side by side where the page is wide enough."""
    return Markup('<div class="grid">\n{}</div>\n').format(Markup("").join(each))


def details(summary: Cell, body: Markup, *, is_open: bool = False) -> Markup:
    return Markup("<details{}><summary>{}</summary>\n{}</details>\n").format(
        Markup(" open") if is_open else "", summary, body
    )


def preformatted(text: str) -> Markup:
    """Text as it is, lines kept and wrapped."""
    return Markup("<pre>{}</pre>\n").format(text)


def join(*each: Cell) -> Markup:
    return Markup("").join(escape(part) for part in each)
