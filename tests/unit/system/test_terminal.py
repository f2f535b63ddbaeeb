"""What meets the terminal is shown, not obeyed, whoever prints it; files keep it."""

from __future__ import annotations

import io
import json
import logging
import sys
from pathlib import Path

import pytest
from hostile_texts import HOSTILE, obeyed
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from llmtrain.system.console import open_console, print_line
from llmtrain.system.json_lines import json_line
from llmtrain.system.terminal import ShownStream, say, say_error, shown_output
from llmtrain.system.visible import MESSAGE_CHARS, visible_line


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_whoever_prints_it_is_shown(
    text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with shown_output():
        print(text)
        print(text, end="", file=sys.stderr)
        sys.stdout.writelines([text, "\n"])
        handler = logging.StreamHandler()
        handler.emit(logging.LogRecord("library", logging.WARNING, "", 0, text, None, None))
    out, err = capsys.readouterr()
    assert not obeyed(out + err)
    shown = visible_line(text)
    assert out == f"{shown}\n{shown}\n" and err.count(shown) == 2


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_message_is_one_line_whatever_is_in_it(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(f"{text}\nfinished: all is well")
    say_error(f"{text}\nfinished: all is well")
    for output in capsys.readouterr():
        assert output == f"{visible_line(text)}\\nfinished: all is well\n"


def test_a_message_that_quotes_a_million_letters_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    say("its fields: " + "k" * 1_000_000)
    say_error("k" * MESSAGE_CHARS)
    out, err = capsys.readouterr()
    assert len(out) < MESSAGE_CHARS + 100 and out.endswith("k... (1,000,012 characters)\n")
    assert err == "k" * MESSAGE_CHARS + "\n"


def test_texts_with_lines_keep_them(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_output():
        print("one\ntwo\r\n\tthree")
    assert capsys.readouterr().out == "one\ntwo\n\tthree\n"


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_rich_draws_its_own_and_shows_the_rest(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    with shown_output():
        console = open_console()
        print_line(console, text)
        console.print(Text(text, "green"))
        console.print(Rule(text))
        table = Table("name")
        table.add_row(text)
        console.print(table)
    drawn = terminal.getvalue()
    assert "\x1b[32m" in drawn  # the colour is rich's
    assert not obeyed(
        drawn.replace("\x1b[32m", "").replace("\x1b[92m", "").replace("\x1b[1m", "").replace("\x1b[0m", "")
    )
    assert drawn.startswith(f"{visible_line(text)}\n")


@pytest.mark.parametrize("text", ["[red]loss[/red]", ":warning: loss", "[/]", "[link=http://a.example]here[/link]"])
def test_a_message_is_no_markup(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_line(open_console(), text)
    assert capsys.readouterr().out == f"{text}\n"


def test_letters_that_the_terminal_lacks_become_escapes() -> None:
    under = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    ShownStream(under, has_bars=False).write("é \ud800 ok\n")
    under.flush()
    assert under.buffer.getvalue() == b"\\xe9 \\ud800 ok\n"


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("\r50% loading", "\r50% loading"),
        ("\n\x1b[A", "\n\x1b[A"),
        ("\r\x1b[2J", "\r\\x1b[2J"),
        ("a\rb", "a\\x0db"),
        ("\rdone\n", "\\x0ddone\n"),
    ],
)
def test_a_progress_bar_is_drawn_where_there_is_a_terminal(text: str, drawn: str) -> None:
    under = io.StringIO()
    ShownStream(under, has_bars=True).write(text)
    assert under.getvalue() == drawn
    piped = io.StringIO()
    ShownStream(piped, has_bars=False).write(text)
    assert not obeyed(piped.getvalue())


def test_streams_are_as_before_afterwards() -> None:
    before = sys.stdout, sys.stderr
    with shown_output():
        once = sys.stdout
        with shown_output():
            assert sys.stdout is once
        assert sys.stdout is once
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_line_of_a_file_holds_the_text_exactly_and_can_be_shown(text: str, tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(json_line({"response": text, "é": "ü"}), encoding="utf-8")
    written = path.read_text(encoding="utf-8")
    assert json.loads(written) == {"response": text, "é": "ü"}
    assert not obeyed(written) and "é" in written and written.count("\n") == len(written.splitlines()) == 1
