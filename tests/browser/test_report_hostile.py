"""What is in a run's files can neither change the report's page nor hide in it: checked in a real browser's DOM."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import made_up_runs
import pytest
from headless import ALL, DOM, HTML, Browser

from llmtrain.cli.main import main
from llmtrain.runs.report.report import write_report
from llmtrain.system.visible import HIDDEN

pytest.importorskip("matplotlib", reason="a report needs matplotlib: pip install 'llmtrain[report]'")


RECIPES = ("sft", "reward", "kto", "policy")
"""One of each kind of section."""


def hostile(value: str) -> str:
    return f"{value} {ALL}"


def harmless(value: str) -> str:
    """Texts long enough to be folded; what has no space is the name of a file."""
    return value + " word" * 100 if " " in value else value


def endless(value: str) -> str:
    """Some texts without end, and names of files as long as they can be."""
    if value in ("answer 0 at step 0", "question 0", "the right answer 0", "no more memory", "too long", "no answer"):
        return value + "x" * 10**6
    return value if " " in value else value + "x" * 200


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports whose every text is hostile, of a folder whose name is too."""
    folder = tmp_path_factory.mktemp("runs")
    name = "<img src=x onerror=alert(8)>\x1b[31m\u202e" + os.fsdecode(b"\xff")
    return {
        recipe: write_report([made_up_runs.write_run(folder / recipe / name, recipe, text=hostile)])
        for recipe in RECIPES
    }


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_text_becomes_part_of_the_page(
    browser: Browser, pages: dict[str, Path], recipe: str, tmp_path: Path
) -> None:
    browser.open(write_report([made_up_runs.write_run(tmp_path / "run", recipe, text=harmless)]), width=390)
    expected = browser.run(DOM)
    browser.requests()
    browser.open(pages[recipe], width=390)
    assert browser.complaints() == []
    assert browser.requests() == [pages[recipe].as_uri()]
    dom = browser.run(DOM)
    assert dom["tags"].keys() <= expected["tags"].keys()
    assert dom["attributes"].keys() <= expected["attributes"].keys()
    assert all(link.startswith("#") for link in dom["links"])
    assert not [style for style in dom["styles"] if "url(" in re.sub(r"url\(#\w+\)", "", style) or "position" in style]
    wide, seen = browser.run("const e = document.documentElement; return [e.scrollWidth, e.clientWidth]")
    assert wide <= seen


@pytest.mark.parametrize("recipe", RECIPES)
def test_texts_are_shown_as_they_are_and_nothing_hides(browser: Browser, pages: dict[str, Path], recipe: str) -> None:
    browser.open(pages[recipe])
    shown = browser.run("return document.documentElement.textContent + document.title")
    assert not HIDDEN.findall(shown)
    for text in HTML:
        assert text in shown, text
    for escape in (r"\x1b[2J", r"\u202e", r"\u2066", r"\U000e0048", r"\ud800", r"\x00", r"\udcff"):
        assert escape in shown, escape


def test_text_without_end_is_cut(browser: Browser, tmp_path: Path) -> None:
    page = write_report([made_up_runs.write_run(tmp_path / "long", "policy", text=endless)])
    assert page.stat().st_size < 2 * 10**6
    browser.open(page, width=390)
    wide, seen = browser.run("const e = document.documentElement; return [e.scrollWidth, e.clientWidth]")
    assert wide <= seen and browser.complaints() == []


def test_the_terminal_gets_no_escape_sequences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made_up_runs.write_run(tmp_path / "a\x1b[31m\u202eb\udcff", "sft", text=hostile)
    (run / "ledger.json").write_text('{"train": ["\\u001b[2J"]}')  # of a form that no version wrote: a section fails
    for folder, code in ((run, 0), (tmp_path / "not\x1b[31mthere\udcff", 2)):
        with pytest.raises(SystemExit) if code else contextlib.nullcontext() as end:
            main(["report", str(folder)])
        assert end is None or end.value.code == code
        output = "".join(capsys.readouterr())
        output.encode("utf-8")
        assert not HIDDEN.findall(output) and output.count("\n") <= 3
        assert r"\x1b[31m" in output and r"\udcff" in output
