"""The report in a real browser: it asks for nothing, fits any screen, can be read in both themes, and prints."""

from __future__ import annotations

import base64
from pathlib import Path

import made_up_runs
import pytest
from headless import CONTRASTS, DESK, FIGURES, PHONE, READABLE, Browser

from llmtrain.runs.report.report import write_report

pytest.importorskip("matplotlib", reason="a report needs matplotlib: pip install 'llmtrain[report]'")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of each recipe, and one of two runs."""
    folder = tmp_path_factory.mktemp("runs")
    runs = {recipe: made_up_runs.write_run(folder / recipe, recipe) for recipe in made_up_runs.RECIPES}
    other = made_up_runs.write_run(folder / "other" / "sft", "sft", seed=1)
    pages = {recipe: write_report([run]) for recipe, run in runs.items()}
    return pages | {"two runs": write_report([runs["sft"], other], folder / "two.html")}


KINDS = [*made_up_runs.RECIPES, "two runs"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_whole_on_every_screen(
    browser: Browser, pages: dict[str, Path], kind: str, width: int, dark: bool
) -> None:
    browser.requests()
    browser.open(pages[kind], width=width, dark=dark)
    assert browser.complaints() == []
    assert browser.requests() == [pages[kind].as_uri()]
    wide, seen = browser.run("const e = document.documentElement; return [e.scrollWidth, e.clientWidth]")
    assert width - 20 <= seen <= width and wide <= seen  # a scroll bar takes a part
    figures = browser.run(FIGURES)
    assert len(figures) >= 5
    for figure in figures:
        assert figure["width"] > 200 and figure["height"] > 100, figure
        assert len(figure["words"]) >= 2, f"both axes are labelled: {figure}"
        assert figure["source"], f"says where its numbers are from: {figure['name']}"
    too_pale = [each for each in browser.run(CONTRASTS) if each[0] < READABLE]
    assert not too_pale, sorted(too_pale)[:5]
    assert "Not shown" not in browser.run("return document.body.textContent")


def test_the_theme_follows_the_readers(browser: Browser, pages: dict[str, Path]) -> None:
    colors = []
    for dark in (False, True):
        browser.open(pages["sft"], dark=dark)
        colors.append(browser.run("return getComputedStyle(document.body).backgroundColor"))
        axis = browser.run("return getComputedStyle(document.querySelector('svg text')).fill")
        colors.append(axis)
    assert len(set(colors)) == 4


def test_a_page_prints(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["policy"])
    printed = browser.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})
    pdf = base64.b64decode(printed["data"])
    assert pdf.startswith(b"%PDF") and len(pdf) > 20_000
    assert browser.complaints() == []


def test_every_link_of_the_contents_has_its_section(browser: Browser, pages: dict[str, Path]) -> None:
    for page in pages.values():
        browser.open(page)
        missing = "a => document.querySelectorAll(a.getAttribute('href')).length !== 1"
        assert browser.run(f"return [...document.querySelectorAll('nav a')].filter({missing}).length") == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_fits_a_mail(pages: dict[str, Path], kind: str) -> None:
    assert pages[kind].stat().st_size < 2 * 10**6
