r"""Where text meets the terminal: what a command prints is shown, not obeyed.

A row, a file's name, a model's answer or a library's message may hold what moves the cursor, renames the window, writes
to the clipboard (`\x1b]52;...`), hides a link or reverses the line. Within `shown_output`, which every command enters,
all that is printed, by libraries too, passes `visible`; nobody calls it before printing.

    print("loss\x1b[2J")        loss\x1b[2J
    say("rows\nb.jsonl: ...")   rows\nb.jsonl: ...      a message is one line, whatever is in it

Files of data keep texts exactly. What `rich` draws is in `system.console`.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO, cast

from llmtrain.system.visible import visible, visible_message

BAR_MOVES = re.compile(r"(?:\n|\x1b\[A)+")
"""How tqdm goes from one bar to another, in a write of nothing else."""


class ShownStream:
    """A text stream whose control characters are shown; a letter that its encoding lacks becomes an escape too."""

    def __init__(self, stream: TextIO, *, has_bars: bool) -> None:
        """`has_bars`: libraries draw progress bars there, which begin with a carriage return."""
        self.stream, self._has_bars = stream, has_bars

    def write(self, text: str) -> int:
        if self._has_bars and BAR_MOVES.fullmatch(text):
            shown = text
        elif self._has_bars and text.startswith("\r") and "\n" not in text:  # a bar's line stays open; a message's ends
            shown = f"\r{visible(text[1:])}"
        else:
            shown = visible(text)
        encoding = self.stream.encoding or "utf-8"
        self.stream.write(shown.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def shown_output() -> Iterator[None]:
    """Within it, stdout, stderr and the traceback of an error that ends the process show control characters.

    Progress bars stay bars where stderr is a terminal.
    """
    out, err = sys.stdout, sys.stderr
    sys.excepthook = _print_traceback
    if not isinstance(out, ShownStream):
        sys.stdout = cast("TextIO", ShownStream(out, has_bars=False))
    if not isinstance(err, ShownStream):
        sys.stderr = cast("TextIO", ShownStream(err, has_bars=err.isatty()))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err


def raw_stdout() -> TextIO:
    """What stdout was before `shown_output`, for what draws by escape sequences and escapes the text in them itself."""
    out: Any = sys.stdout
    return out.stream if isinstance(out, ShownStream) else sys.stdout


def say(line: str) -> None:
    """Print a message in one line."""
    print(visible_message(line), flush=True)


def say_error(line: str) -> None:
    """Print a message in one line to stderr."""
    print(visible_message(line), file=sys.stderr, flush=True)


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """As Python does, but shown."""
    sys.stderr.write(visible("".join(traceback.format_exception(kind, error, trace))))
