"""A run that starts from another run's folder: its model, or its adapter, added into its base or trained on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_chat import some_logits, write_config, write_model, write_rows
from tiny_run import PRETRAIN, SFT, run_here

from llmtrain.data.rendering import prompt_ids
from llmtrain.models.folders.adapter import merge_adapter
from llmtrain.models.folders.given import given_folder
from llmtrain.models.folders.open import open_model

LORA = {"kind": "lora", "rank": 4, "alpha": 8}
PROMPT = "Be brief."


@pytest.mark.parametrize("adapter", [{"kind": "none"}, LORA], ids=["full", "lora"])
def test_a_run_goes_on_from_the_model_of_another(
    tmp_path: Path, adapter: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "cache"))
    write_model(tmp_path / "base")
    rows = write_rows(tmp_path / "rows.jsonl", seed=1)
    first = write_config(
        tmp_path / "first",
        tmp_path / "base",
        [rows],
        adapter=adapter,
        train={"steps": 2},
        data={"system_prompt": PROMPT},
    )
    ended = run_here(first, recipe=SFT)
    assert ended.code == 0, ended.err
    tuned = tmp_path / "first" / "run"
    second = write_config(tmp_path / "second", tuned, [rows], adapter=LORA, train={"steps": 2})
    ended = run_here(second, recipe=SFT)
    assert ended.code == 0, ended.err
    assert ("added into its base in memory" in ended.out) == (adapter == LORA)
    said: list[str] = []
    given = given_folder(str(tuned), said.append)
    assert not said
    expected, tokenizer = open_model(str(tuned))
    found, _ = open_model(given)
    ids = prompt_ids(tokenizer, [{"role": "user", "content": "Hi"}])
    assert PROMPT in tokenizer.decode(ids)  # what was trained is what a chat sends
    logits = [model(input_ids=model.dummy_inputs["input_ids"] * 0 + 5).logits for model in (expected, found)]
    assert logits[0].allclose(logits[1], atol=1e-5)
    assert f'own, "{PROMPT}"' in ended.out  # the second run's rows get the first one's, and the log says so


def test_a_run_without_a_model_yet_is_refused_with_what_to_do(tmp_path: Path) -> None:
    write_model(tmp_path / "base")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    config = write_config(tmp_path, tmp_path / "run", [write_rows(tmp_path / "rows.jsonl", seed=1)])
    ended = run_here(config, f"run.dir={tmp_path / 'other'}", recipe=SFT)
    assert ended.code == 2 and "this run has no model yet" in ended.err and "llmtrain export" in ended.err


def run_sft(folder: Path, base: Path, **sections: Any) -> Any:
    rows = write_rows(folder.parent / "rows.jsonl", seed=1, num_rows=40)
    settings: dict[str, Any] = {"train": {"steps": 2}, "eval": {"every": None}, "checkpoint": {"every": 1}} | sections
    return run_here(write_config(folder, base, [rows], **settings), recipe=SFT)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapter_goes_on_being_trained(tmp_path: Path, kind: str) -> None:
    base = write_model(tmp_path / "base", spread=0.3)
    first = {"kind": kind, "rank": 4, "alpha": 8, "target": ["q_proj", "down_proj"]}
    assert run_sft(tmp_path / "first", base, adapter=first).code == 0
    tuned = tmp_path / "first" / "run"
    ended = run_sft(
        tmp_path / "second", tuned, adapter={"kind": kind, "continue": True}, optim={"lr": 1e-30}, train={"steps": 1}
    )
    assert ended.code == 0, ended.err
    went_on = tmp_path / "second" / "run"
    torch.testing.assert_close(some_logits(went_on), some_logits(tuned), rtol=1e-4, atol=1e-5)
    settings = json.loads((went_on / "model" / "adapter_config.json").read_text())
    assert (settings["r"], settings["base_model_name_or_path"]) == (4, str(base))  # one adapter, on the first base
    assert set(settings["target_modules"]) == {"q_proj", "down_proj"}


def test_an_adapter_on_an_adapters_model_opens_and_merges(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", spread=0.3)
    assert run_sft(tmp_path / "first", base, adapter=LORA).code == 0
    ended = run_sft(tmp_path / "second", tmp_path / "first" / "run", adapter={**LORA, "merge": True})
    assert ended.code == 0, ended.err
    run = tmp_path / "second" / "run"
    settings = json.loads((run / "model" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] is None  # peft would take the base without the first adapter
    torch.testing.assert_close(some_logits(run), some_logits(run / "merged"), rtol=1e-4, atol=1e-5)
    assert "llmtrain merge" in (run / "model" / "README.md").read_text()
    moved = tmp_path / "elsewhere"
    (tmp_path / "first" / "run").rename(moved)
    with pytest.raises(ValueError, match=r"its base cannot be made again: .* llmtrain merge .* --base PATH"):
        open_model(str(run))
    merge_adapter(run / "model", tmp_path / "merged", base=str(moved))
    torch.testing.assert_close(some_logits(tmp_path / "merged"), some_logits(run / "merged"))


def test_pretraining_goes_on_from_a_run_and_from_an_adapter(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", spread=0.3)
    assert run_sft(tmp_path / "first", base, adapter=LORA).code == 0
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"The quick brown fox {n}. " * 4}) + "\n" for n in range(99)))
    for number, path in enumerate((tmp_path / "first" / "run", tmp_path / "first" / "run" / "model")):
        config = write_config(tmp_path / f"more{number}", path, [text], train={"steps": 1}, eval={"every": None})
        ended = run_here(config, recipe=PRETRAIN)
        assert ended.code == 0, ended.err
        expected = some_logits(path)
        assert not some_logits(tmp_path / f"more{number}" / "run").equal(expected)


@pytest.mark.parametrize(
    ("place", "keys", "said"),
    [
        ("run/checkpoints/step-00000002", {}, "llmtrain export .*/run --step 2 --output FOLDER"),
        ("run/checkpoints", {}, "checkpoints: give the run, .*/run"),
        ("base", {"continue": True}, "adapter.continue: model.path=.*base holds no adapter"),
        ("run", {"continue": True, "rank": 8}, "adapter.rank=8: .* has 4, which it keeps"),
        ("run", {"continue": True, "kind": "dora"}, "adapter.kind=dora: .* has lora, which it keeps"),
        ("run", {"layers": "5"}, r"adapter.layers=5: this model has the layers 0 to 1"),
        ("run", {"target": "q_proj"}, r"adapter.target=q_proj: matches no whole name .*a list, \[q_proj\]"),
        ("run", {"target": ".*"}, r"adapter.target=\.\*"),
        ("run", {"modules_to_save": ["nrm"]}, r"modules_to_save=nrm: .*it has .*norm"),
        ("run", {"modules_to_save": ["lm_head"]}, r"modules_to_save: lm_head has its weight in common with"),
    ],
)
def test_what_cannot_be_gone_on_from_says_what_to_give(
    tmp_path_factory: pytest.TempPathFactory, place: str, keys: dict[str, Any], said: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "gone-on-from"
    if not folder.exists():
        write_model(folder / "base")
        assert run_sft(folder / "first", folder / "base", adapter=LORA, run={"dir": str(folder / "run")}).code == 0
    config = {"kind": "lora"} | keys
    ended = run_sft(folder / f"second{abs(hash(said))}", folder / place, adapter=config)
    assert ended.code == 2 and re.search(said, ended.err), ended.err
    assert len(ended.err.strip().splitlines()) == 1
