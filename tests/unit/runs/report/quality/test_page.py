"""The page of `llmtrain data --report`: findings with evidence, nothing personal in full, one broken part no ruin."""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

import pytest
from planted_texts import ACCENTED, MADE, changed, personal, sentence

from llmtrain.config.data import Source
from llmtrain.data.quality import measure
from llmtrain.data.quality.items import CUT_CHARS, Item
from llmtrain.data.quality.measure import Asked, Quality, measured
from llmtrain.data.quality.sample import Reading, Sample, read_sample
from llmtrain.data.quality.typical import ItemLoss, Losses
from llmtrain.data.survey import Use
from llmtrain.runs.report.quality.charts import log_histogram
from llmtrain.runs.report.quality.findings import Level, findings
from llmtrain.runs.report.quality.report import write_page

for library in ("matplotlib", "sklearn", "ftfy", "py3langid", "rensa"):
    pytest.importorskip(library, reason="the page needs what pip install 'llmtrain[data]' brings")


def losses(sample: Sample) -> Losses:
    return Losses("a model", [ItemLoss(item, 1.0 + i, 0.5, 9) for i, item in enumerate(sample.items)], 256, 0)


def quality_of(folder: Path, rows: list[dict[str, str]], use: Use, against: list[str] | None = None) -> Quality:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluated = folder / "eval.jsonl"
    evaluated.write_text("".join(json.dumps({"question": text}) + "\n" for text in against or ()))
    readings = [Reading(Source(path=str(path)), use, True)]
    asked = Asked(against=[Source(path=str(evaluated))] if against else [], model="a model", losses=losses)
    return measured(read_sample(readings, 1000, 0), readings, asked, lambda line: None)


def planted(draw: random.Random) -> tuple[list[str], list[str], list[str]]:
    """Texts that reach every section, evaluation texts, and the personal data that is in nearly all of them."""
    secrets: list[str] = []

    def secret() -> str:
        each = personal(draw, draw.choice(list(MADE)))
        secrets.append(each.secret)
        return each.text

    plain = [f"{sentence(draw, 30)} {secret()} {sentence(draw, 30)}" for _ in range(40)]
    loops = [f"{sentence(draw, 30)} {' '.join([secret()] * 5)}" for _ in range(3)]
    broken = [f"{secret()} {ACCENTED[1].encode().decode('cp1252')} {secret()}\x07" for _ in range(3)]
    near = [changed(draw, text, 1) for text in plain[:5]]
    return [*plain, *loops, *broken, *near, *plain[5:8], "é" * 30 + secret()], plain[20:25], secrets


@pytest.mark.parametrize(("low", "high", "least"), [(95, 6500, 4), (40, 80, 3), (1, 900_000, 5)])
def test_sizes_have_an_axis_that_can_be_read(low: float, high: float, least: int) -> None:
    sizes = [low * (high / low) ** (i / 99) for i in range(100)]
    drawn = str(log_histogram({"all": sizes}, "bytes", "rows", title="Sizes"))
    named = {
        word for word in re.findall(r"<text[^>]*>([\d,]+)</text>", drawn) if low <= float(word.replace(",", "")) <= high
    }
    assert len(named) >= least, named


def test_no_personal_data_is_shown_in_full_in_any_section(tmp_path: Path) -> None:
    texts, evaluated, secrets = planted(random.Random(0))
    quality = quality_of(tmp_path, [{"text": text} for text in texts], "pretrain", evaluated)
    assert not [outcome.fault for _, outcome in quality.outcomes() if outcome.fault]
    write_page(quality, tmp_path / "data.html")
    page = (tmp_path / "data.html").read_text()
    for title in ("Duplicates", "Contamination", "Odd characters", "Topics", "Typical", "cleaning would drop"):
        assert title in page
    assert "Not shown" not in page and "Not measured" not in page
    assert not [secret for secret in secrets if secret in page]
    assert not [secret for secret in secrets if any(secret in found.sentence for found in findings(quality))]


def test_each_finding_leads_to_a_section_and_the_pressing_ones_come_first(tmp_path: Path) -> None:
    texts, evaluated, _ = planted(random.Random(1))
    quality = quality_of(tmp_path, [{"text": text} for text in texts], "pretrain", evaluated)
    found = findings(quality)
    write_page(quality, tmp_path / "data.html")
    page = (tmp_path / "data.html").read_text()
    for each in found:
        assert page.count(f'<section id="{each.anchor}">') == 1, each
    order = [each.level.value[1] for each in found]
    assert order == sorted(order)
    urgent = {each.anchor for each in found if each.level is Level.ACT}
    assert urgent == {"contamination", "personal", "duplicates"}
    assert (tmp_path / "data.html").stat().st_size < 2 * 10**6
    assert not re.findall(r'(?:src|href)="(?!#)', page) and "<script" not in page


def test_what_is_well_is_said_to_be(tmp_path: Path) -> None:
    draw = random.Random(2)
    quality = quality_of(tmp_path, [{"text": sentence(draw, 60)} for _ in range(40)], "pretrain", [sentence(draw, 30)])
    fine = {each.anchor for each in findings(quality) if each.level is Level.FINE}
    assert fine == {"contamination", "personal", "duplicates", "characters", "repetition"}
    assert not [each for each in findings(quality) if each.level in (Level.ACT, Level.LOOK)]


def test_of_one_long_text_the_part_that_is_measured_is_reported(tmp_path: Path) -> None:
    quality = quality_of(
        tmp_path, [{"text": "All that we see or seem is but a dream. " * (CUT_CHARS // 32)}], "pretrain"
    )
    found = {each.anchor: each for each in findings(quality)}
    assert found["sizes"].level is Level.LOOK and "is of 80.0 % of the text" in found["sizes"].sentence
    assert "duplicates" not in found  # there is nothing to compare it with


def test_languages_of_a_few_rows_are_reported_together(tmp_path: Path) -> None:
    draw = random.Random(3)
    english = "The weather was fine and we walked along the river until the evening"
    others = (
        "Das Wetter war schön und wir gingen am Fluss entlang",
        "Il faisait beau et nous avons marché le long de l'eau",
    )
    rows = [{"text": f"{sentence(draw, 2)} {text}"} for text in (*[english] * 38, *others)]
    (found,) = (each for each in findings(quality_of(tmp_path, rows, "pretrain")) if each.anchor == "languages")
    assert found.sentence == "English 95.0 %, then others 5.0 %."


def test_pairs_that_lean_on_length_and_contradict_are_reported(tmp_path: Path) -> None:
    draw = random.Random(3)
    rows = [
        {"prompt": sentence(draw, 9), "chosen": sentence(draw, 20), "rejected": sentence(draw, 9)} for _ in range(40)
    ]
    rows.append({"prompt": rows[0]["prompt"], "chosen": rows[0]["rejected"], "rejected": rows[0]["chosen"]})
    found = {each.sentence: each.level for each in findings(quality_of(tmp_path, rows, "pairs"))}
    (length,) = [text for text in found if "the chosen answer is longer" in text]
    assert found[length] is Level.LOOK and "learn length in place of quality" in length
    (opposite,) = [text for text in found if "prefers the opposite" in text]
    assert found[opposite] is Level.ACT


@pytest.mark.parametrize("library", ["py3langid", "ftfy", "sklearn", "rensa"])
def test_a_missing_library_is_one_line_in_its_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    quality = quality_of(tmp_path, [{"text": sentence(random.Random(4), 30)}], "pretrain")
    write_page(quality, tmp_path / "data.html")
    page = (tmp_path / "data.html").read_text()
    assert re.search(rf"Not measured: [^<]*{library.replace('sklearn', 'scikit-learn')}[^<]*pip install", page)
    assert "Sizes and lengths" in page and "Personal data by pattern" in page


def test_a_measure_that_fails_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(items: list[Item], num_sources: int) -> None:
        raise RuntimeError("no\nluck")

    monkeypatch.setattr(measure, "repetition", broken)
    quality = quality_of(tmp_path, [{"text": sentence(random.Random(5), 30)}], "pretrain")
    assert quality.repetition.fault == "RuntimeError: no luck"
    write_page(quality, tmp_path / "data.html")
    page = (tmp_path / "data.html").read_text()
    assert "Not measured: RuntimeError: no luck" in page and "Personal data by pattern" in page


def test_a_sample_is_named_as_one(tmp_path: Path) -> None:
    draw = random.Random(6)
    rows = [{"text": sentence(draw, 30)} for _ in range(50)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    readings = [Reading(Source(path=str(path)), "pretrain", True)]
    quality = measured(read_sample(readings, 20, 7), readings, Asked(), lambda line: None)
    write_page(quality, tmp_path / "data.html")
    page = (tmp_path / "data.html").read_text()
    assert "20 of them, drawn at random with seed 7" in page and "20 of 50 texts, sampled with seed 7" in page
    assert "16.0 % of pairs" in page  # both of a pair are in the sample
