"""An adapter whose base has changed since is refused wherever the two are put together, also to go on being trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny_chat import write_config, write_model, write_rows
from tiny_pairs import write_pairs
from tiny_run import PRETRAIN, RLHF, SFT, run_here
from transformers import AutoTokenizer

from llmtrain.config.sections import TunedModelConfig
from llmtrain.models.folders.adapter import merge_adapter
from llmtrain.models.folders.known_base import require_base
from llmtrain.models.folders.open import open_model
from llmtrain.models.folders.reward import open_classifier
from llmtrain.models.load import load_pretrained

LORA = {"kind": "lora", "rank": 4, "alpha": 8}
GOING_ON = {"kind": "lora", "continue": True}
WHOLE = {"steps": 1, "microbatch_tokens": 512, "global_batch_tokens": 65536}  # a rollout decides what a step is of
ROLLOUT = {"rewards": [{"name": "length", "target": 4}], "num_prompts": 4, "max_new_tokens": 6}


@pytest.fixture(scope="module", params=["lora", "rows of new tokens"])
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, a run that trained an adapter on it, and rows."""
    folder = tmp_path_factory.mktemp("tuned")
    base = write_model(folder / "base", spread=0.2, chat=request.param == "lora")
    write_pairs(folder / "pairs.jsonl", seed=1, num_pairs=40)
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": f"A fox {n}. " * 20}) + "\n" for n in range(40)))
    rows = write_rows(folder / "rows.jsonl", seed=1, num_rows=40)
    config = write_config(folder, base, [rows], adapter=LORA, train={"steps": 2}, eval={"every": None})
    ended = run_here(config, recipe=SFT)
    assert ended.code == 0, ended.err
    return folder


@pytest.fixture
def copied(tuned: Path, tmp_path: Path) -> Path:
    """A copy of that folder, whose adapter names the base of the copy."""
    folder = shutil.copytree(tuned, tmp_path / "copy")
    for name in ("adapter_config.json", "base.json"):
        path = folder / "run" / "model" / name
        path.write_text(path.read_text().replace(str(tuned), str(folder)))
    return folder


def change_weight(base: Path) -> None:
    """Add the smallest part of a value to one weight of many."""
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] += 1e-6
    save_file(tensors, base / "model.safetensors", {"format": "pt"})


def change_configuration(base: Path) -> None:
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 1e-3}))


TRAINED: dict[str, tuple[Path, dict[str, Any], str]] = {
    "sft goes on": (SFT, {"adapter": GOING_ON}, "rows"),
    "sft from it": (SFT, {}, "rows"),
    "pretraining from it": (PRETRAIN, {}, "text"),
    "dpo goes on": (RLHF, {"adapter": GOING_ON, "preference": {}}, "pairs"),
    "kto goes on": (RLHF, {"adapter": GOING_ON, "preference": {"loss": "kto"}}, "pairs"),
    "reward goes on": (RLHF, {"adapter": GOING_ON, "reward": {}}, "pairs"),
    "policy goes on": (RLHF, {"adapter": GOING_ON, "policy": {}, "rollout": ROLLOUT, "train": WHOLE}, "pairs"),
}
CHANGES = [(use, change_weight) for use in TRAINED] + [(use, change_configuration) for use in list(TRAINED)[:2]]


@pytest.mark.parametrize(("use", "change"), CHANGES)
def test_it_does_not_train(copied: Path, use: str, change: Callable[[Path], None]) -> None:
    recipe, sections, rows = TRAINED[use]
    settings = {"train": {"steps": 1}, "data": {"eval_fraction": 0.25}} | sections
    config = write_config(copied / "second", copied / "run", [copied / f"{rows}.jsonl"], **settings)
    change(copied / "base")
    ended = run_here(config, recipe=recipe)
    assert ended.code == 2 and ended.err.count("\n") == 1, ended.err
    what = "weights" if change is change_weight else "configuration: rms_norm_eps 1e-06 then, 0.001 now"
    assert f"was trained on another base than {copied / 'base'} is now ({what} differ)" in ended.err


@pytest.mark.parametrize("use", [open_model, lambda path: merge_adapter(Path(path), Path(path).parent / "merged")])
def test_it_neither_chats_nor_merges(copied: Path, use: Callable[[str], object]) -> None:
    change_weight(copied / "base")
    with pytest.raises(ValueError, match="was trained on another base"):
        use(str(copied / "run" / "model"))


def test_an_unchanged_base_is_trained_on_without_a_word_of_doubt(copied: Path) -> None:
    config = write_config(
        copied / "second", copied / "run", [copied / "rows.jsonl"], adapter=GOING_ON, train={"steps": 1}
    )
    ended = run_here(config, recipe=SFT)
    assert ended.code == 0 and "taken as it is" not in ended.out, ended.err


def test_tokens_added_since_do_not_make_it_another_base(copied: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(copied / "run" / "model")
    tokenizer.add_tokens(["<|tool|>", "<|end_of_tool|>"], special_tokens=True)
    tokenizer.save_pretrained(copied / "grown")
    sections = {"adapter": GOING_ON, "train": {"steps": 1}, "tokenizer": {"path": str(copied / "grown")}}
    config = write_config(copied / "second", copied / "run", [copied / "rows.jsonl"], **sections)
    ended = run_here(config, recipe=SFT)
    assert ended.code == 0, ended.err
    third = copied / "third"
    config = write_config(third, copied / "second" / "run", [copied / "rows.jsonl"], **sections)
    ended = run_here(config, recipe=SFT)
    assert ended.code == 0, ended.err
    change_weight(copied / "base")
    with pytest.raises(ValueError, match="was trained on another base"):
        open_model(str(third / "run"))


def test_the_base_of_a_reward_adapter_is_compared_without_a_head(copied: Path) -> None:
    sections = {"adapter": LORA, "train": {"steps": 1}, "data": {"eval_fraction": 0.25}, "reward": {}}
    config = write_config(copied / "scores", copied / "base", [copied / "pairs.jsonl"], **sections)
    assert run_here(config, recipe=RLHF).code == 0
    folder = copied / "scores" / "run" / "model"
    open_classifier(folder)
    change_weight(copied / "base")
    with pytest.raises(ValueError, match="was trained on another base"):
        open_classifier(folder)


def test_an_adapter_from_elsewhere_is_said_to_name_no_base(copied: Path) -> None:
    (copied / "run" / "model" / "base.json").unlink()
    change_weight(copied / "base")
    config = write_config(
        copied / "second", copied / "run", [copied / "rows.jsonl"], adapter=GOING_ON, train={"steps": 1}
    )
    ended = run_here(config, recipe=SFT)
    assert ended.code == 0 and "does not say which base it was trained on" in ended.out, ended.err


USES: dict[str, Callable[[Path, Path], object]] = {
    "chat and eval": lambda folder, copied: open_model(str(folder)),
    "merge": lambda folder, copied: merge_adapter(folder, copied / "merged"),
    "a base of another run": lambda folder, copied: load_pretrained(
        TunedModelConfig(path=str(folder)), AutoTokenizer.from_pretrained(folder), max_seq_len=32
    ),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("recorded", [(), ("configuration",), ("weights", "configuration")], ids=str)
def test_what_could_not_be_compared_of_a_base_is_said_wherever_it_is_opened(
    copied: Path, use: str, recorded: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied / "run" / "model"
    path = folder / "base.json"
    known = json.loads(path.read_text())
    path.write_text(json.dumps({name: known[name] for name in (*recorded, "origin")}))
    USES[use](folder, copied)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(str(folder))]
    if len(recorded) == 2:
        assert lines == []
    else:
        what = "weights its base had" if recorded else "base it was trained on"
        assert len(lines) == 1 and f"does not say which {what}" in lines[0] and "4 bits" not in lines[0]


def test_a_reward_adapter_is_opened_with_what_could_not_be_compared(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sections = {"adapter": LORA, "train": {"steps": 1}, "data": {"eval_fraction": 0.25}, "reward": {}}
    config = write_config(copied / "scores", copied / "base", [copied / "pairs.jsonl"], **sections)
    assert run_here(config, recipe=RLHF).code == 0
    folder = copied / "scores" / "run" / "model"
    (folder / "base.json").unlink()
    capsys.readouterr()
    open_classifier(folder)
    assert f"{folder} does not say which base it was trained on" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["[]", "3", '{"weights": 3}', '{"configuration": []}', '{"origin": {"a": 1}}', "{"])
def test_what_is_no_account_of_a_base_is_one_line(copied: Path, text: str) -> None:
    folder = copied / "run" / "model"
    (folder / "base.json").write_text(text)
    for use in (open_model, lambda path: merge_adapter(Path(path), copied / "merged")):
        with pytest.raises(ValueError, match=r"base\.json") as caught:
            use(str(folder))
        assert "\n" not in str(caught.value)


def test_weights_in_4_bits_are_known_by_their_configuration(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import PeftConfig

    folder = copied / "run" / "model"
    model, _ = open_model(str(copied / "base"))
    monkeypatch.setattr("llmtrain.models.folders.known_base.in_4_bits", lambda model: True)
    doubt = require_base(folder, "base", PeftConfig.from_pretrained(str(folder)), model)
    assert doubt is not None and "weights in 4 bits" in doubt
    model.config.rms_norm_eps = 0.5
    with pytest.raises(ValueError, match="configuration: rms_norm_eps"):
        require_base(folder, "base", PeftConfig.from_pretrained(str(folder)), model)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"target_modules": ["q_proj"]}, "holds weights for model.layers.0.mlp.down_proj.lora_A"),
        (None, "it has no adapter_model.safetensors"),
    ],
)
def test_an_adapter_that_would_be_opened_in_part_is_refused(
    copied: Path, change: dict[str, Any] | None, expected: str
) -> None:
    folder = copied / "run" / "model"
    if change is None:
        (folder / "adapter_model.safetensors").unlink()
    else:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=expected) as caught:
        open_model(str(folder))
    assert "\n" not in str(caught.value)
