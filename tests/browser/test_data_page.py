"""The page of `llmtrain data --report` in a real browser: whole on every screen, nothing hostile in it works."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from headless import ALL, CONTRASTS, DESK, DOM, FIGURES, HTML, PHONE, READABLE, Browser
from planted_texts import ACCENTED, sentence

from llmtrain.config.data import Source
from llmtrain.data.quality.measure import Asked, measured
from llmtrain.data.quality.sample import Reading, read_sample
from llmtrain.data.quality.typical import ItemLoss, Losses
from llmtrain.runs.report.quality.report import write_page
from llmtrain.system.visible import HIDDEN

for library in ("matplotlib", "sklearn", "ftfy", "py3langid", "rensa"):
    pytest.importorskip(library, reason="the page needs what pip install 'llmtrain[data]' brings")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every section, its texts hostile, of two sources with odd names."""
    folder = tmp_path_factory.mktemp("data")
    draw = random.Random(0)
    hostile = ALL.encode(errors="replace").decode()
    question = sentence(draw, 30)
    rows = [
        {"prompt": f"{sentence(draw, 12)} {hostile}", "chosen": sentence(draw, 80), "rejected": f"{hostile} {number}"}
        for number in range(40)
    ]
    rows += [rows[0], {**rows[1], "chosen": f"{question} {ACCENTED[1].encode().decode('cp1252')} {'again and ' * 90}"}]
    labelled = [{"prompt": sentence(draw, 9), "completion": hostile, "label": bool(i % 3)} for i in range(10)]
    names = ("<img src=x onerror=alert(8)>.jsonl", "b" * 200 + ".jsonl", "eval.jsonl")
    for name, each in zip(names, (rows, labelled, [{"question": question}]), strict=True):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in each))
    readings = [
        Reading(Source(path=str(folder / name)), use, True)  # type: ignore[arg-type]
        for name, use in zip(names, ("pairs", "kto"), strict=False)
    ]
    asked = Asked(
        against=[Source(path=str(folder / names[2]))],
        model="m",
        losses=lambda sample: Losses("m", [ItemLoss(item, 1.5, 0.5, 9) for item in sample.items], 256, 0),
    )
    quality = measured(read_sample(readings, 1000, 0), readings, asked, lambda line: None)
    assert not [outcome.fault for _, outcome in quality.outcomes() if outcome.fault]
    write_page(quality, folder / "data.html")
    return folder / "data.html"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_the_page_is_whole_on_every_screen(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.requests()
    browser.open(page, width=width, dark=dark)
    assert browser.complaints() == [] and browser.requests() == [page.as_uri()]
    wide, seen = browser.run("const e = document.documentElement; return [e.scrollWidth, e.clientWidth]")
    assert width - 20 <= seen <= width and wide <= seen
    figures = browser.run(FIGURES)
    assert len(figures) >= 5
    for figure in figures:
        assert figure["width"] > 200 and figure["height"] > 100, figure
        assert len(figure["words"]) >= 2 and figure["source"], figure
    too_pale = [each for each in browser.run(CONTRASTS) if each[0] < READABLE]
    assert not too_pale, sorted(too_pale)[:5]
    assert "Not shown" not in browser.run("return document.body.textContent")
    assert page.stat().st_size < 2 * 10**6


def test_every_finding_and_title_leads_to_its_section(browser: Browser, page: Path) -> None:
    browser.open(page)
    missing = "a => document.querySelectorAll(a.getAttribute('href')).length !== 1"
    assert browser.run(f"return [...document.querySelectorAll('nav a, .findings a')].filter({missing}).length") == 0
    assert browser.run("return document.querySelectorAll('.findings a').length") >= 6


def test_no_text_of_the_data_becomes_part_of_the_page(browser: Browser, page: Path) -> None:
    browser.open(page)
    dom = browser.run(DOM)
    assert not dom["tags"].keys() & {"script", "img", "iframe", "base", "link", "form", "input"}
    assert not [name for name in dom["attributes"] if name.startswith("on")]
    assert all(link.startswith("#") for link in dom["links"])
    shown = browser.run("return document.documentElement.textContent + document.title")
    assert not HIDDEN.findall(shown)
    assert HTML[0] in shown
