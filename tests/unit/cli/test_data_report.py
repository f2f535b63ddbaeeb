"""`llmtrain data --report`: paths and configurations in, a page and its findings out; bad input in one line."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from planted_texts import sentence
from tiny_chat import write_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmtrain.cli.main import main
from llmtrain.eval.typical import MOST_TOKENS

for library in ("matplotlib", "sklearn", "ftfy", "py3langid", "rensa"):
    pytest.importorskip(library, reason="the page needs what pip install 'llmtrain[data]' brings")

SECRET = "jane.doe@smithson.org"


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [sentence(draw, 40) for _ in range(count)]


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line of a command that ends with code 2."""
    with pytest.raises(SystemExit) as end:
        main(["data", *argv])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and error.startswith("error: ")
    return error


def test_a_path_is_measured_and_its_findings_are_printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = [{"prompt": text, "completion": f"Write to {SECRET}"} for text in texts(40)]
    path, page = write(tmp_path / "rows.jsonl", [*rows, rows[3]]), tmp_path / "data.html"
    against = write(tmp_path / "eval.jsonl", [{"question": rows[5]["prompt"]}, {"question": texts(1, 9)[0]}])
    main(["data", str(path), "--report", str(page), "--against", str(against)])
    output = capsys.readouterr().out
    assert "for sft: 41 of 41 rows" in output and f"\n{page}\n" in output
    assert "1 row has text of 1 of 2 evaluation rows" in output
    assert "1 row (2.4 %) repeats an earlier one word for word." in output
    assert "41 rows hold personal data by pattern: e-mail addresses in 41." in output
    for measure in ("languages", "near duplicates", "topics", "contamination"):
        assert [line for line in output.splitlines() if line.startswith(f"{measure}: ") and line.endswith(" s")]
    assert SECRET not in output and SECRET not in page.read_text()


def test_evaluation_rows_that_are_too_short_are_not_said_to_be_absent(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = write(tmp_path / "rows.jsonl", [{"prompt": "2 + 2?", "completion": text} for text in texts(40)])
    against = write(tmp_path / "eval.jsonl", [{"question": "2 + 2?"}, {"question": "3 + 3?"}])
    main(["data", str(path), "--report", str(tmp_path / "data.html"), "--against", str(against)])
    output = capsys.readouterr().out
    assert "look  2 of 2 evaluation rows cannot be looked for: no text of theirs has 8 words" in output
    assert "No text of the evaluation files" not in output


def test_few_pairs_are_not_called_balanced(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def balance(count: int) -> str:
        rows = [
            {"prompt": text, "chosen": "a b" if number % 2 else "a", "rejected": "c" if number % 2 else "c d"}
            for number, text in enumerate(texts(count))
        ]
        path = write(tmp_path / "rows.jsonl", rows)
        main(["data", str(path), "--report", str(tmp_path / "data.html")])
        return next(line for line in capsys.readouterr().out.splitlines() if "the chosen answer is" in line)

    assert "note  In 50.0 % of pairs" in balance(10) and "too few to know" in balance(10)
    assert "fine  In 50.0 % of pairs" in balance(120) and balance(120).endswith("balanced.")


def test_nothing_personal_is_printed_without_a_report_either(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    long = f"{'word ' * 2}jane.doe.of.the.long.name@smithson.org and more words after it to be cut"
    rows = [{"prompt": f"From {SECRET}: +49 30 1234567?", "completion": long, "note": SECRET}]
    main(["data", str(write(tmp_path / "rows.jsonl", rows))])
    output = capsys.readouterr().out
    assert "1234567" not in output and "jane.doe" not in output and "j•••.•••@" in output


@pytest.mark.parametrize("place", range(20, 50))
def test_an_address_that_is_cut_anywhere_is_masked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, place: int
) -> None:
    text = f"{'x' * (place - 1)} {SECRET} and more words after it that are to be cut"
    main(["data", str(write(tmp_path / "rows.jsonl", [{"prompt": text, "completion": text, "note": text}]))])
    output = capsys.readouterr().out
    assert "xxx" in output and "ane" not in output and "doe" not in output


def test_a_configuration_names_data_cleaning_and_held_out_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = [{"text": text} for text in texts(40)]
    write(tmp_path / "train.jsonl", [*rows, {"text": "short"}])
    write(tmp_path / "held_out.jsonl", rows[:4])
    config = tmp_path / "mine.yaml"
    tree = {
        "run": {"dir": str(tmp_path / "run")},
        "model": {"preset": "tiny"},
        "tokenizer": {"path": str(tmp_path / "none")},
        "data": {
            "train": str(tmp_path / "train.jsonl"),
            "eval": str(tmp_path / "held_out.jsonl"),
            "clean": {"min_chars": 10},
        },
        "train": {"steps": 1, "global_batch_tokens": 1024, "microbatch_tokens": 1024},
    }
    config.write_text(yaml.safe_dump(tree))
    page = tmp_path / "data.html"
    main(["data", str(config), "data.clean.exact_dedup=true", "--report", str(page)])
    output = capsys.readouterr().out
    assert "4 texts have text of 4 of 4 evaluation rows" in output
    assert "The configured cleaning would drop 1 text of all 41 texts." in output
    assert "tokens: not measured, tokenizer.path=" in output and "no such folder" in output
    assert "(set)" in page.read_text()


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path, page = str(write(tmp_path / "rows.jsonl", [{"text": "some text"}])), str(tmp_path / "data.html")
    assert "is a folder: name a file in it" in refused(capsys, path, "--report", str(tmp_path))
    assert "does not exist" in refused(capsys, path, "--report", str(tmp_path / "no" / "data.html"))
    assert "no such file" in refused(capsys, path, "--report", page, "--against", str(tmp_path / "no.jsonl"))
    assert "no such folder" in refused(capsys, path, "--report", page, "--tokenizer", str(tmp_path / "no"))
    assert "--model" in refused(capsys, path, "--model", "x") and not Path(page).exists()
    assert "add --report" in refused(capsys, path, "--against", path)
    assert "--seed -1" in refused(capsys, path, "--seed", "-1")
    assert "holds no text to measure" in refused(
        capsys, str(write(tmp_path / "ids.jsonl", [{"input_ids": [1, 2]}])), "--report", page
    )
    (tmp_path / "odd.yaml").write_text("a: 1\n")
    assert "a configuration of no recipe" in refused(capsys, str(tmp_path / "odd.yaml"))
    assert "cannot read the configuration" in refused(capsys, str(tmp_path / "none.yaml"))
    (tmp_path / "sft.yaml").write_text("run: {dir: x}\nmodel: {path: y}\ndata: {loss_on: last}\ntrain: {epochs: 1}\n")
    assert "data.train is missing" in refused(capsys, str(tmp_path / "sft.yaml"))


def test_a_model_shows_which_rows_it_expects_and_which_surprise_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = write_model(tmp_path / "model", spread=0.2)
    rows = texts(12)
    path = write(tmp_path / "rows.jsonl", [*({"text": text} for text in rows), {"text": "short"}])
    page = tmp_path / "data.html"
    main(["data", str(path), "--report", str(page), "--model", str(model)])
    output = capsys.readouterr().out
    assert [line for line in output.splitlines() if re.fullmatch(r"losses: [\d.]+ s", line)]
    text = page.read_text()
    typical = text[text.index('id="typical"') :]
    assert "The most typical" in typical and "The least typical" in typical and "Not measured" not in typical
    shown = [float(found) for found in re.findall(r"([\d.]+) nats per token", typical)]
    assert "on 12 texts as they are" in typical
    losses = plain_losses(model, rows)
    assert shown[0] == pytest.approx(min(losses), rel=1e-3)
    assert shown[len(shown) // 2] == pytest.approx(max(losses), rel=1e-3)


def plain_losses(model: Path, rows: list[str]) -> list[float]:
    """The loss of each row's first tokens after the first token of all, by transformers alone."""
    tokenizer, plain = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    found = []
    for text in rows:
        ids = [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)[:MOST_TOKENS]]
        given = torch.tensor([ids[: plain.config.max_position_embeddings]])
        found.append(plain(input_ids=given, labels=given).loss.item())
    return found


def test_a_model_without_a_folder_is_refused_before_anything_is_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = str(write(tmp_path / "rows.jsonl", [{"text": "some text"}]))
    error = refused(capsys, path, "--report", str(tmp_path / "data.html"), "--model", str(tmp_path / "none"))
    assert str(tmp_path / "none") in error
