"""The schema of a run: what it refuses and how it says so, overrides, and what `--help` lists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmtrain.config.data import Source
from llmtrain.config.help import help_text
from llmtrain.config.load import load_config, parsed_yaml, save_config, validate, yaml_text
from llmtrain.config.marks import Feature
from llmtrain.config.other_tools import OURS
from llmtrain.config.recipes import (
    PolicyStageConfig,
    PreferenceStageConfig,
    PretrainConfig,
    RewardStageConfig,
    SftConfig,
)
from llmtrain.config.sections import iter_keys
from llmtrain.config.tokenizer import TokenizerTrainConfig
from llmtrain.config.which import STAGES
from llmtrain.system.visible import visible
from llmtrain.train.engines.table import FEATURES

LEAST: dict[str, Any] = {
    "run": {"dir": "runs/x"},
    "tokenizer": {"path": "tok"},
    "data": {"train": "a.txt"},
    "train": {"steps": 1000},
}


@pytest.fixture
def least(tmp_path: Path) -> str:
    """A YAML file with what is required and nothing else."""
    path = tmp_path / "least.yaml"
    path.write_text(yaml.safe_dump(LEAST))
    return str(path)


def test_what_is_required_is_enough(least: str) -> None:
    config = load_config(PretrainConfig, [least])
    assert config.data.train == [Source(path="a.txt")]
    assert config.train.steps == 1000


@pytest.mark.parametrize(("steps", "warmup"), [(1000, 1000), (1000, 5000), (1, 1)])
def test_a_warm_up_that_leaves_nothing_of_the_run_is_refused_before_anything_is_loaded(
    least: str, steps: int, warmup: int
) -> None:
    with pytest.raises(
        ValueError, match=rf"optim.warmup_steps={warmup} leaves nothing of the run's {steps} steps: lower it"
    ):
        load_config(PretrainConfig, [least, f"train.steps={steps}", f"optim.warmup_steps={warmup}"])
    assert load_config(PretrainConfig, [least, "train.steps=1", "optim.warmup_steps=0"]).train.steps == 1


def test_overrides_are_parsed_by_key_and_type(least: str) -> None:
    overrides = [
        "optim.lr=1e-4",
        "train.compile=true",
        "checkpoint.every=null",
        "data.train=[b.txt, {path: c.txt, text_field: body}]",
        "model.config.num_hidden_layers=8",
        "run.dir=runs/a=b",
    ]
    config = load_config(PretrainConfig, [least, *overrides])
    assert config.optim.lr == 1e-4
    assert config.train.compile is True
    assert config.checkpoint.every is None
    assert config.data.train == [Source(path="b.txt"), Source(path="c.txt", text_field="body")]
    assert config.model.config == {"num_hidden_layers": 8}
    assert config.run.dir == "runs/a=b"


def test_the_last_override_of_a_key_counts(least: str) -> None:
    assert load_config(PretrainConfig, [least, "train.steps=5000", "train.steps=700"]).train.steps == 700


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.learning_rate=1"], "unknown key optim.learning_rate: here it is optim.lr"),
        (["train.step=5"], "unknown key train.step: the nearest is train.steps"),
        (["checkpoints.every=5"], "unknown key checkpoints: the nearest is checkpoint"),
        (["data.clean.min_char=5"], "unknown key data.clean.min_char: the nearest is data.clean.min_chars"),
        (
            ["data.train=[{path: a.txt, wieght: 1}]"],
            "unknown key data.train.0.wieght: the nearest is data.train.0.weight",
        ),
        (["optim.lr=-1"], "optim.lr=-1: input should be greater than 0"),
        (["optim.lr=fast"], "optim.lr='fast': input should be a valid number"),
        (["optim.beta1=1"], "optim.beta1=1: input should be less than 1"),
        (["train.precision=fp8"], "train.precision='fp8': input should be 'fp32', 'bf16' or 'fp16'"),
        (["data.eval_fraction=1.5"], "data.eval_fraction=1.5: input should be less than 1"),
        (
            ["train.epochs=2"],
            "give exactly one of train.steps and train.epochs: both are set: add train.epochs=null or",
        ),
        (["train.steps=null"], "give exactly one of train.steps and train.epochs: neither is set"),
        (["data.max_seq_len=1000"], "train.global_batch_tokens=65536 is not a multiple of data.max_seq_len=1000"),
        (["train.microbatch_tokens=512"], "train.microbatch_tokens=512 is smaller than one pack"),
        (["tokenizer.path=null"], "a new model needs tokenizer.path"),
        (["model.path=m", "model.preset=1m"], "keeps the model's own shape: remove model.preset"),
        (["data.eval=b.txt", "data.eval_fraction=0.1"], "give data.eval or data.eval_fraction, not both"),
        (["data.eval_fraction=0", "eval.patience=3"], "need held-out data"),
        (["eval.patience=3"], "need checkpoint.best=true"),
        (["checkpoint.export_best=true"], "need checkpoint.best=true"),
        (["train.spike_factor=2", "checkpoint.every=null"], "train.spike_factor rolls back to a checkpoint"),
        (["optim.muon_lr=0.1"], "optim.muon_lr does nothing without optim.name=muon"),
        (["optim.decay_fraction=0.1"], "optim.decay_fraction does nothing without optim.schedule=wsd"),
        (["log.project=x"], "log.project does nothing without log.trackers"),
        (
            ["tokenizer.path=.", "tokenizer.revision=v1"],
            "tokenizer.revision does nothing without tokenizer.path on the",
        ),
        (["train.steps=true"], "train.steps=True: input should be a valid integer"),
        (["data.train=[{path: a.txt, weight: 1}, b.txt]"], "give every source a weight, or none"),
        (["data.train=[]"], "data.train: names no source"),
        (["log.profile=[5, 2]"], "log.profile=[5, 2]: give the first and the last step"),
        (["run.dir=null"], "run.dir=None: input should be a valid string"),
        (["steps"], "override 'steps' is not of the form key=value"),
        (["train.steps=[1"], "override 'train.steps=[1': the value is not valid YAML"),
        (["run.dir.x=1"], "override run.dir.x: run.dir is not a section"),
        (["train.steps=" + "9" * 400], "train.steps=9999"),
        (["run.timeout_minutes=1000000"], "run.timeout_minutes=1000000: input should be less than or equal to 525600"),
        (["run.seed=9223372036854775808"], "run.seed=9223372036854775808: the number has more than 64 bits"),
    ],
)
def test_a_bad_value_is_one_line_that_names_the_key(least: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_config(PretrainConfig, [least, *overrides])
    assert "\n" not in str(caught.value)


def test_every_fault_is_told_at_once(least: str) -> None:
    with pytest.raises(ValueError, match=r"optim\.lr.*unknown key log\.evry"):
        load_config(PretrainConfig, [least, "optim.lr=0", "log.evry=1"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: [", "line 1"),
        ("- a\n- b", "not a mapping of sections"),
        ("", "not a mapping of sections"),
        ("run: {dir: x}\n\trun: 1", "line 2"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_config(PretrainConfig, [str(path)])
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("way", ["[{0}, {0}]", "{{<<: [{0}, {0}], x: 1}}"])
def test_aliases_that_stand_for_millions_of_values_are_refused(tmp_path: Path, way: str) -> None:
    lines = ["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {way.format(f'*a{i - 1}')}" for i in range(1, 24))]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"bomb\.yaml: not valid YAML: its aliases \(\*NAME\) repeat more than 1,000,000"
    ):
        load_config(PretrainConfig, [str(tmp_path / "bomb.yaml")])


def test_aliases_that_repeat_little_are_read() -> None:
    tree = {"a": [1, 2], "b": [1, 2], "c": {"d": 3, "e": [1, 2]}}
    assert parsed_yaml("a: &a [1, 2]\nb: *a\nc: {<<: {d: 3}, e: *a}") == tree
    assert parsed_yaml("") is None


@pytest.mark.parametrize("argv", [[], ["optim.lr=1"]])
def test_a_command_without_a_file_tells_the_usage(argv: list[str]) -> None:
    with pytest.raises(ValueError, match=r"usage: llmtrain \w+ CONFIG "):
        load_config(PretrainConfig, argv)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ValueError, match=r"cannot read the configuration nowhere\.yaml"):
        load_config(PretrainConfig, ["nowhere.yaml"])


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match=r"run is missing; data is missing; train is missing"):
        validate(PretrainConfig, {})


@pytest.mark.parametrize(
    "overrides",
    [["data.train=[{path: b.txt, weight: 2.5}]", "optim.l1=1e-6"], ["data.eval=c.txt"]],
    ids=["weights", "held-out sources"],
)
def test_a_saved_configuration_loads_as_itself(least: str, tmp_path: Path, overrides: list[str]) -> None:
    config = load_config(PretrainConfig, [least, *overrides])
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(PretrainConfig, [str(tmp_path / "saved.yaml")]) == config


@pytest.mark.parametrize("schema", [PretrainConfig, TokenizerTrainConfig])
def test_help_lists_every_key_with_its_meaning(schema: type[PretrainConfig] | type[TokenizerTrainConfig]) -> None:
    text = help_text(schema)
    for key, field in iter_keys(schema):
        assert f"{key}  (" in text, key
        assert field.description, f"{key} has no meaning"
    for name, field in Source.model_fields.items():
        assert f"{name}  (" in text, f"a source's {name}"
        assert field.description


def test_help_indents_every_line_of_a_meaning() -> None:
    text = help_text(SftConfig)
    assert "bits and nothing else reads them" in text  # the second line of `model.dtype`
    odd = [
        line
        for line in text.split("The keys:\n")[1].splitlines()
        if not re.match(r"    |[a-z_\d.]+  \(|$|A source is", line)
    ]
    assert odd == []


def test_help_on_several_schemas_names_what_each_adds_changes_and_lacks() -> None:
    first, *others = STAGES.values()
    parts = help_text(first, *others).split("The keys above, but for these")
    for schema, part in zip((first, *others), parts, strict=True):
        keys, lacking = dict(iter_keys(schema)), part.partition("and without: ")[2]
        assert all(f"\n{key}  (" in "".join(parts) for key in keys)
        assert not [key for key in keys if re.search(rf"\b{re.escape(key)}[,\n]", lacking)], "named as lacking"
    assert "policy.critic  (" in parts[2] and "preference.beta, " in parts[2].partition("and without: ")[2]
    assert "default 3.0e-06" in parts[2]  # its own learning rate


def test_there_are_at_most_120_keys() -> None:
    keys = {key for schema in (PretrainConfig, TokenizerTrainConfig) for key, _ in iter_keys(schema)}
    assert len(keys) + len(Source.model_fields) <= 120


def test_the_features_of_a_run_are_those_that_its_keys_ask_for(least: str) -> None:
    def asked(*overrides: str) -> set[str]:
        return {name for name, on in load_config(PretrainConfig, [least, *overrides]).features().items() if on}

    assert asked() == set()
    assert asked("optim.name=muon", "optim.l1=1e-6") == {"muon", "l1"}
    assert asked("optim.name=paged_adamw8bit", "train.precision=bf16") == {"8-bit optimizer", "bf16"}
    assert asked("train.ema_decay=0.9", "checkpoint.best=true", "train.spike_factor=3") == {
        "ema",
        "best checkpoint",
        "spike rollback",
    }


def test_every_feature_that_a_key_asks_for_is_in_the_table_of_engines() -> None:
    for schema in (PretrainConfig, SftConfig, RewardStageConfig, PreferenceStageConfig, PolicyStageConfig):
        marks = [mark for _, field in iter_keys(schema) for mark in field.metadata if isinstance(mark, Feature)]
        assert marks
        assert {mark.name for mark in marks} <= set(FEATURES)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("zzz=1", "unknown key zzz: a configuration has run, model, tokenizer, data, train,"),
        ("train.zzz=1", "unknown key train.zzz: train has steps, epochs,"),
        ("log.push_to_hub=me/x", "unknown key log.push_to_hub: the nearest is run.push_to_hub"),
        ("data.train=[{path: a.txt, zzz: 1}]", "unknown key data.train.0.zzz: data.train.0 has path, weight,"),
        ("--optim.lr=1", "override '--optim.lr=1': write it without dashes, optim.lr=1"),
        ("=1", "override '=1' is not of the form key=value"),
    ],
)
def test_the_nearest_key_is_named_only_if_it_is_near(least: str, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        load_config(PretrainConfig, [least, override])


def test_a_typing_error_does_not_make_a_file_that_of_another_recipe(least: str, tmp_path: Path) -> None:
    path = tmp_path / "either.yaml"
    path.write_text(yaml.safe_dump({name: section for name, section in LEAST.items() if name != "tokenizer"}))
    with pytest.raises(ValueError, match=r"^unknown key optim\.lrr: the nearest is optim\.lr$"):
        load_config(SftConfig, [str(path), "model.path=x", "optim.lrr=1"])


@pytest.mark.parametrize(
    ("key", "ours"),
    [
        ("learning_rate", "optim.lr"),
        ("optim.learning_rate", "optim.lr"),
        ("per_device_train_batch_size", "train.microbatch_tokens"),
        ("num_train_epochs", "train.epochs"),
        ("lora_r", "adapter.rank"),
        ("max_seq_length", "data.max_seq_len"),
        ("bf16", "train.precision=bf16"),
        ("output_dir", "run.dir"),
        ("dataset", "data.train"),
    ],
)
def test_a_key_of_another_tool_is_refused_with_ours(key: str, ours: str) -> None:
    with pytest.raises(ValueError, match=f"^unknown key {key}: here it is {ours}$"):
        load_config(SftConfig, ["sft_full", f"{key}=1"])


def test_what_is_near_nothing_gets_no_suggestion() -> None:
    with pytest.raises(ValueError, match="unknown key zzz: a configuration has run, model") as refused:
        load_config(SftConfig, ["sft_full", "zzz=1"])
    assert "nearest" not in str(refused.value) and "here it is" not in str(refused.value)


def test_every_name_of_another_tool_leads_to_a_key_that_some_recipe_has() -> None:
    schemas = [PretrainConfig, SftConfig, *STAGES.values()]
    keys = {key for schema in schemas for key, _ in iter_keys(schema)}
    sections = {key.split(".")[0] for key in keys}
    for name, ours in OURS.items():
        key = re.split("[^a-z0-9_.]", ours)[0]
        assert key in keys | sections, (name, ours)
        assert name not in {each.rsplit(".", 1)[-1] for each in keys}, f"{name} is a key of ours"


def test_a_file_that_only_lacks_a_section_is_not_that_of_another_recipe(least: str, tmp_path: Path) -> None:
    path = tmp_path / "either.yaml"
    path.write_text(yaml.safe_dump({name: section for name, section in LEAST.items() if name != "tokenizer"}))
    with pytest.raises(ValueError, match=r"^model is missing$"):
        load_config(SftConfig, [str(path)])


def test_a_file_wins_over_a_shipped_configuration_of_its_name(
    least: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(PretrainConfig, ["demo"]).run.dir == "runs/demo/pretrain"
    (tmp_path / "demo").mkdir()
    assert load_config(PretrainConfig, ["demo"]).run.dir == "runs/demo/pretrain"
    (tmp_path / "demo").rmdir()
    (tmp_path / "least.yaml").rename(tmp_path / "demo")
    assert load_config(PretrainConfig, ["demo"]).run.dir == "runs/x"


@pytest.mark.parametrize("text", ["a\u202eb", "a\u200b\U000e0041", "\x1b[2J\x9b", "one\ntwo\r", "é 中 😀"])
def test_a_configuration_is_saved_so_that_all_of_it_is_seen_and_read_back(text: str, tmp_path: Path) -> None:
    saved = yaml_text({"data": {"system_prompt": text}})
    assert visible(saved) == saved and parsed_yaml(saved) == {"data": {"system_prompt": text}}
    assert "é 中 😀" in yaml_text("é 中 😀")


def test_an_emoji_in_the_escapes_of_json_is_one_and_half_of_it_is_refused(tmp_path: Path) -> None:
    assert parsed_yaml('{"a": ["\\ud83d\\ude00"]}') == {"a": ["😀"]}
    (tmp_path / "least.yaml").write_text(yaml.safe_dump(LEAST))
    with pytest.raises(ValueError, match=r"^data\.train: the text holds \\ud83d, half a surrogate pair"):
        load_config(PretrainConfig, [str(tmp_path / "least.yaml"), 'data.train="half \\ud83d"'])
    byte = load_config(PretrainConfig, [str(tmp_path / "least.yaml"), 'data.train="latin \\udce9"'])
    assert byte.data.train[0].path == "latin \udce9"
