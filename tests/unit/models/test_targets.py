"""Which modules get an adapter and which are trained in full: as peft has it, and each name must match."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from tiny_run import MODEL, write_tokenizer
from transformers import AutoTokenizer

from llmtrain.config.adapter import AdapterConfig
from llmtrain.config.sections import ModelConfig, PretrainedModelConfig
from llmtrain.models.adapters.base import base_facts
from llmtrain.models.adapters.lora import add_adapter
from llmtrain.models.adapters.weight_sharing import shared_copy
from llmtrain.models.folders.adapter import export_adapter, merge_adapter
from llmtrain.models.folders.bases import origin_of
from llmtrain.models.folders.model import ExportSpec
from llmtrain.models.load import load_model, load_pretrained

UNTIED = {**MODEL, "num_hidden_layers": 4, "tie_word_embeddings": False}
IDS = torch.arange(60, 90)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tokenizer = AutoTokenizer.from_pretrained(write_tokenizer(folder))
    load_model(ModelConfig(config=UNTIED), tokenizer, max_seq_len=64, seed=0).save_pretrained(folder)
    return folder


def load(base: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = load_pretrained(PretrainedModelConfig(path=str(base)), tokenizer, max_seq_len=32)
    model.set_attn_implementation("eager")
    return model


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "an expression": (
        {"target": r".*\.[13]\..*\.(q|down)_proj"},
        {"target_modules": r".*\.[13]\..*\.(q|down)_proj"},
    ),
    "layers by range": (
        {"target": ["q_proj", "up_proj"], "layers": "1-2"},
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1, 2]},
    ),
    "layers by list": (
        {"layers": [0, 3]},
        {
            "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            "layers_to_transform": [0, 3],
        },
    ),
    "the head in full": (
        {"modules_to_save": ["lm_head"]},
        {"target_modules": "all-linear", "modules_to_save": ["lm_head"]},
    ),
    "norms in full": (
        {"target": ["q_proj"], "modules_to_save": ["norm", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["norm", "embed_tokens"]},
    ),
    "layers in full": (
        {"modules_to_save": ["q_proj"]},
        {"target_modules": "all-linear", "modules_to_save": ["q_proj"]},
    ),
    "blocks in full": (
        {"target": ["q_proj", "up_proj"], "modules_to_save": ["mlp"]},
        {"target_modules": ["q_proj", "up_proj"], "modules_to_save": ["mlp"]},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_trained_is_what_peft_trains(base: Path, case: str) -> None:
    ours, theirs = CASES[case]
    model = load(base)
    add_adapter(model, AdapterConfig(kind="lora", rank=4, **ours), (), 0)
    peft = get_peft_model(load(base), LoraConfig(r=4, task_type="CAUSAL_LM", **theirs))
    expected = {
        name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
        for name, parameter in peft.named_parameters()
        if parameter.requires_grad
    }
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == expected


@pytest.mark.parametrize("case", CASES)
def test_it_is_exported_as_peft_loads_and_merges_it(base: Path, tmp_path: Path, case: str) -> None:
    config = AdapterConfig(kind="lora", rank=4, **CASES[case][0])
    model, tokenizer = load(base), AutoTokenizer.from_pretrained(base)
    facts, reference = base_facts(model), shared_copy(model)
    start = reference(IDS).logits.detach()
    add_adapter(model, config, (), 0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    assert torch.equal(reference(IDS).logits, start)  # what is trained in full is not the reference's
    trained = {f"model.{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad}
    origin = origin_of(str(base))
    spec = ExportSpec(model.config, tokenizer, stop_ids=(257,), origin=origin, adapter=config, base=facts)
    export_adapter(tmp_path / "a", trained, "---\n---\n", spec)
    expected = model.eval()(IDS).logits
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "a").eval()
    torch.testing.assert_close(loaded(IDS).logits, expected, rtol=1e-4, atol=1e-5)
    merge_adapter(tmp_path / "a", tmp_path / "merged")
    merged = load(tmp_path / "merged").eval()
    torch.testing.assert_close(merged(IDS).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"target": r".*\.q_prj"}, "matches no whole name of a linear layer, such as model.layers.0.self_attn.q_proj"),
        ({"target": ".*norm"}, "matches no whole name of a linear layer"),
        ({"target": ".*_proj|.*norm"}, "which is not a linear layer: narrow it"),
        ({"target": "lm_head|.*q_proj"}, "matches the output head"),
        ({"target": ".*q_proj", "layers": [1]}, "does nothing beside a regular expression"),
        ({"layers": "2-9"}, "adapter.layers=4: this model has the layers 0 to 3"),
        ({"modules_to_save": ["head_lm"]}, "it has .*lm_head"),
        ({"modules_to_save": ["mlp", "gate_proj"]}, "is a part of model.layers.0.mlp: name one"),
        ({"modules_to_save": ["proj"]}, "down_proj is named by a part of its name: write it out"),
        ({"target": ["gate_proj"], "modules_to_save": ["mlp"]}, "holds every layer that adapter.target names"),
    ],
)
def test_what_matches_nothing_says_what_would(base: Path, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        add_adapter(load(base), AdapterConfig(kind="lora", **keys), (), 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"target": "("}, "not a regular expression"),
        ({"target": []}, "names no module"),
        ({"layers": "8-2"}, "the range 8-2 is empty"),
        ({"layers": "a-b"}, "give ranges of layers"),
        ({"layers": [-1]}, "numbers of layers"),
    ],
)
def test_what_is_no_expression_or_range_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        AdapterConfig(kind="lora", **keys)


@pytest.mark.parametrize(("given", "expected"), [("8-10", [8, 9, 10]), ("0,2", [0, 2]), (5, [5]), ([3, 1], [1, 3])])
def test_layers_are_named_by_ranges_and_numbers(given: Any, expected: list[int]) -> None:
    assert AdapterConfig(kind="lora", layers=given).chosen_layers() == expected


@pytest.mark.parametrize("change", ["two values swapped", "one value", "one sign", "one of the last"])
def test_any_changed_weight_is_another_base(base: Path, change: str) -> None:
    model = load(base)
    before = base_facts(model)
    weight = model.model.layers[2].mlp.down_proj.weight.data.view(-1)
    with torch.no_grad():
        if change == "two values swapped":
            weight[[101, 102]] = weight[[102, 101]].clone()
        elif change == "one of the last":
            model.lm_head.weight.data[-1, -1] += 1e-3
        else:
            weight[1234] = -weight[1234] if change == "one sign" else weight[1234].nextafter(torch.tensor(9.0))
    after = base_facts(model)
    assert after["weights"] != before["weights"] and after["configuration"] == before["configuration"]
