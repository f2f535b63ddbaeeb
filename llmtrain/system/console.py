"""The console that `rich` draws on: colours, tables and bars are its own, and the text in them is shown, not obeyed.

`rich` writes its escape sequences past `system.terminal`'s streams, so texts become visible before, piece by piece. It
would also drop some control characters without a word, and turn `:warning:` into a picture.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderHook
from rich.segment import Segment

from llmtrain.system.terminal import raw_stdout
from llmtrain.system.visible import visible, visible_message


def open_console() -> Console:
    """A console on stdout; made where it is used, since stdout may change."""
    console = Console(file=raw_stdout(), highlight=False, soft_wrap=True, emoji=False, markup=False)
    console.push_render_hook(_Shown())
    return console


def print_line(console: Console, line: str) -> None:
    """Print a message in one line."""
    console.print(visible_message(line))


class _Shown(RenderHook):
    """Shows what a text that was not made visible still holds."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_ShownText(each) for each in renderables]


class _ShownText:
    def __init__(self, drawn: RenderableType) -> None:
        self._drawn = drawn

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Segment]:
        for segment in console.render(self._drawn, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))
