"""The exported adapter: what peft and transformers load from it, and what it merges into, is what was trained."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from tiny_run import MODEL, write_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase, pipeline

from llmtrain.config.adapter import AdapterConfig
from llmtrain.config.sections import ModelConfig, PretrainedModelConfig
from llmtrain.models.adapters.base import base_facts
from llmtrain.models.adapters.lora import add_adapter
from llmtrain.models.folders.adapter import export_adapter, merge_adapter, open_adapter
from llmtrain.models.folders.bases import origin_of
from llmtrain.models.folders.card import CardFacts, model_card
from llmtrain.models.folders.model import ExportSpec
from llmtrain.models.folders.origin import Origin
from llmtrain.models.load import load_model, load_pretrained
from llmtrain.models.wrappers.checks import wrap_causal_lm

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
UNTIED = {**MODEL, "tie_word_embeddings": False}
GPT2 = {"architecture": "gpt2", "config": {"n_embd": 32, "n_layer": 2, "n_head": 2}}
SPARE, BEYOND = ("<|im_start|>", "<|im_end|>"), tuple(f"<|{i}|>" for i in range(64))  # the base has 320 - 259 rows


@dataclass(frozen=True)
class Exported:
    """What a model in training answers, and the folder of its adapter."""

    logits: Tensor
    folder: Path


TOKENS = torch.tensor([[*range(65, 91), 259, 97, 260]])


def write_base(folder: Path, dtype: torch.dtype = torch.float32, **model: Any) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(write_tokenizer(folder))
    base = load_model(ModelConfig(**({"config": MODEL} | model)), tokenizer, max_seq_len=64, seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    base.to(dtype).save_pretrained(folder)
    return folder


def export(
    folder: Path, base: Path, adapter: dict[str, Any], new_tokens: tuple[str, ...] = (), stop_ids: tuple[int, ...] = ()
) -> Exported:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = TEMPLATE
    tokenizer.add_special_tokens({"additional_special_tokens": list(new_tokens)})
    new_ids = tokenizer.convert_tokens_to_ids(list(new_tokens))
    config = AdapterConfig(**({"kind": "lora", "rank": 4, "alpha": 8} | adapter))
    model = load_pretrained(
        PretrainedModelConfig(path=str(base)), tokenizer, max_seq_len=32, new_token_ids=tuple(new_ids)
    )
    add_adapter(model, config, new_ids, 0)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    module = wrap_causal_lm(model, "segments", 64, torch.device("cpu"))
    buffers = {name: tensor for name, tensor in module.named_buffers() if name in module.state_dict()}
    trained = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    export_adapter(
        folder,
        trained | buffers,
        "---\nlibrary_name: peft\n---\n",
        ExportSpec(
            model.config,
            tokenizer,
            stop_ids=stop_ids,
            origin=origin_of(str(base)),
            adapter=config,
            base=base_facts(model),
        ),
    )
    model.set_attn_implementation("eager")
    model.eval()
    with torch.no_grad():
        return Exported(model(TOKENS).logits, folder)


def logits(model: torch.nn.Module) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(TOKENS).logits


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "lora": ({}, {}, ()),
    "rslora, two targets": ({}, {"rslora": True, "target": ["q_proj", "down_proj"]}, ()),
    "dora": ({}, {"kind": "dora"}, ()),
    "untied": ({"config": UNTIED}, {}, ()),
    "gpt2": (GPT2, {}, ()),
    "new tokens": ({}, {}, SPARE),
    "new tokens, untied": ({"config": UNTIED}, {"kind": "dora"}, SPARE),
    "new tokens beyond the base's rows": ({}, {}, BEYOND),
    "new tokens beyond the base's rows, untied": ({"config": UNTIED}, {}, BEYOND),
}


@pytest.mark.parametrize("case", CASES)
def test_peft_loads_the_model_that_was_trained(tmp_path: Path, case: str) -> None:
    model, adapter, new_tokens = CASES[case]
    exported = export(tmp_path / "adapter", write_base(tmp_path / "base", **model), adapter, new_tokens)
    loaded = AutoPeftModelForCausalLM.from_pretrained(exported.folder)
    torch.testing.assert_close(logits(loaded), exported.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_merged_model_is_the_one_that_was_trained(tmp_path: Path, case: str) -> None:
    model, adapter, new_tokens = CASES[case]
    exported = export(tmp_path / "adapter", write_base(tmp_path / "base", **model), adapter, new_tokens)
    merge_adapter(exported.folder, tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(loaded), exported.logits, rtol=1e-4, atol=1e-5)
    tied = model.get("config") is not UNTIED
    assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) == tied


def test_the_folder_holds_the_adapter_and_nothing_of_the_base(tmp_path: Path) -> None:
    folder = export(tmp_path / "adapter", write_base(tmp_path / "base"), {"target": ["q_proj"]}).folder
    tensors = load_file(folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert sorted(tensors) == [
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{matrix}.weight"
        for layer in range(3)
        for matrix in "AB"
    ]


def test_the_configuration_names_the_base_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_base(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    folder = export(Path("adapter"), Path("base"), {"dropout": 0.25}).folder
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8, 0.25)
    assert config["inference_mode"] and config["task_type"] == "CAUSAL_LM"


@pytest.mark.parametrize("new_tokens", [(), SPARE], ids=["no new tokens", "new tokens"])
def test_a_pipeline_of_transformers_loads_it(tmp_path: Path, new_tokens: tuple[str, ...]) -> None:
    exported = export(tmp_path / "adapter", write_base(tmp_path / "base"), {}, new_tokens, stop_ids=(257,))
    generate = pipeline("text-generation", model=str(exported.folder), tokenizer=str(exported.folder))
    torch.testing.assert_close(logits(generate.model), exported.logits, rtol=1e-4, atol=1e-5)


def test_it_stops_at_the_end_of_a_turn(tmp_path: Path) -> None:
    folder = export(tmp_path / "adapter", write_base(tmp_path / "base"), {}, SPARE, stop_ids=(260, 257)).folder
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [260, 257]
    merge_adapter(folder, tmp_path / "merged")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").generation_config.eos_token_id == [260, 257]


def test_the_tokenizer_comes_with_its_template_and_new_tokens(tmp_path: Path) -> None:
    folder = export(tmp_path / "adapter", write_base(tmp_path / "base"), {}, SPARE).folder
    merge_adapter(folder, tmp_path / "merged")
    for place in (folder, tmp_path / "merged"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place)
        assert tokenizer.chat_template == TEMPLATE
        assert tokenizer("a<|im_end|>")["input_ids"][-1] == 260


def test_a_bf16_base_merges_into_a_bf16_model(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", torch.bfloat16)
    exported = export(tmp_path / "adapter", base, {})
    merge_adapter(exported.folder, tmp_path / "merged")
    base_weights, merged = load_file(base / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), exported.folder)
    exact = model.merge_and_unload().state_dict()
    assert base_weights.keys() == merged.keys()
    assert all(torch.equal(tensor, exact[name].bfloat16()) for name, tensor in merged.items())


def test_a_base_that_has_changed_is_refused(tmp_path: Path) -> None:
    folder = export(tmp_path / "adapter", write_base(tmp_path / "base"), {}).folder
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    other.save_pretrained(tmp_path / "base")
    with pytest.raises(
        ValueError, match=rf"^{folder} was trained on another base than {tmp_path}/base is now"
    ) as caught:
        merge_adapter(folder, tmp_path / "merged")
    assert "\n" not in str(caught.value) and not (tmp_path / "merged").exists()


CONFIGURATIONS: dict[str, Any] = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "rms_norm_eps": 1e-3,
    "hidden_act": "gelu",
}


@pytest.mark.parametrize("name", ["rope_parameters", "rms_norm_eps", "hidden_act"])
def test_a_base_of_equal_weights_and_another_configuration_is_refused_by_the_field(tmp_path: Path, name: str) -> None:
    folder = export(tmp_path / "adapter", write_base(tmp_path / "base"), {}).folder
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: CONFIGURATIONS[name]}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for use in (lambda: merge_adapter(folder, tmp_path / "merged"), lambda: open_adapter(folder, tokenizer)):
        with pytest.raises(
            ValueError, match=rf"^{folder} was trained on another base .*configuration: {name} "
        ) as caught:
            use()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "merged").exists()


def test_names_versions_and_storage_of_a_base_may_change(tmp_path: Path) -> None:
    folder = export(tmp_path / "adapter", write_base(tmp_path / "base"), {}).folder
    path = tmp_path / "base" / "config.json"
    stored = json.loads(path.read_text())
    stored |= {"transformers_version": "4.40.0", "_name_or_path": "x", "use_cache": False, "attention_dropout": 0.1}
    path.write_text(json.dumps(stored | {"initializer_range": 0.5, "architectures": ["Other"], "eos_token_id": 3}))
    merge_adapter(folder, tmp_path / "merged")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"fingerprint": "ab12"}', "recorded other facts of the base"),
        ('{"weights": "ab', "cannot be read .*: export or copy the model again"),
    ],
)
def test_a_note_on_the_base_that_cannot_be_judged_is_named(tmp_path: Path, content: str, said: str) -> None:
    folder = export(tmp_path / "adapter", write_base(tmp_path / "base"), {}).folder
    (folder / "base.json").write_text(content)
    with pytest.raises(ValueError, match=rf"{folder}/base.json .*{said}"):
        merge_adapter(folder, tmp_path / "merged")


def test_a_base_of_another_shape_is_refused_without_a_fingerprint_too(tmp_path: Path) -> None:
    folder = export(tmp_path / "adapter", write_base(tmp_path / "base"), {}).folder
    (folder / "base.json").unlink()
    write_base(tmp_path / "base", config={**MODEL, "intermediate_size": 64})
    with pytest.raises(ValueError, match=rf"^{folder} does not fit its base {tmp_path}/base: ") as caught:
        merge_adapter(folder, tmp_path / "merged")
    assert "\n" not in str(caught.value)


def test_a_base_that_is_gone_is_named(tmp_path: Path) -> None:
    folder = export(tmp_path / "adapter", write_base(tmp_path / "base"), {}).folder
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=rf"^{folder}: its base {tmp_path}/base cannot be loaded: ") as caught:
        merge_adapter(folder, tmp_path / "merged")
    assert "\n" not in str(caught.value)


def test_a_folder_in_use_is_not_written_over(tmp_path: Path) -> None:
    folder = export(tmp_path / "adapter", write_base(tmp_path / "base"), {}).folder
    (tmp_path / "merged").mkdir()
    with pytest.raises(ValueError, match=r"merged exists already: choose another folder"):
        merge_adapter(folder, tmp_path / "merged")


def test_a_folder_that_is_no_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"base is not an adapter: it has no adapter_config\.json$"):
        merge_adapter(write_base(tmp_path / "base"), tmp_path / "merged")


def test_the_card_of_an_adapter_names_its_base_and_loads_it_through_peft(tmp_path: Path) -> None:
    config = {"run": {"dir": "runs/x"}, "data": {"train": [{"path": "a.jsonl"}]}}
    facts = CardFacts(
        config=config | {"model": {"path": "org/base"}},
        ledger={},
        before={},
        after={},
        num_parameters=7,
        is_adapter=True,
        origin=Origin("hub", "org/base", hub_id="org/base"),
    )
    card = model_card(facts)
    front = yaml.safe_load(card.split("---")[1])
    assert (front["library_name"], front["base_model"]) == ("peft", "org/base")
    assert (
        "An adapter of [org/base](https://huggingface.co/org/base): a causal language model, 7 parameters" in card
        and "AutoPeftModelForCausalLM" in card
    )
    folder = export(tmp_path / "adapter", write_base(tmp_path / "base"), {}).folder
    (folder / "README.md").write_text(card)
    merge_adapter(folder, tmp_path / "merged")
    merged = (tmp_path / "merged" / "README.md").read_text()
    assert yaml.safe_load(merged.split("---")[1])["library_name"] == "transformers"
    assert "peft" not in merged.lower()


def test_the_card_of_an_adapter_on_a_gguf_file_says_that_peft_loads_other_weights(tmp_path: Path) -> None:
    config = {"run": {"dir": "runs/x"}, "data": {"train": [{"path": "a.jsonl"}]}, "model": {"path": "m.gguf"}}
    facts = CardFacts(
        config, {}, {}, {}, num_parameters=7, is_adapter=True, origin=Origin("gguf", "m.gguf", hub_id="o/m")
    )
    said = "peft by itself loads `o/m`, as `adapter_config.json` names it: those are the original weights"
    card = model_card(facts)
    assert said in card
    assert said not in model_card(replace(facts, origin=Origin("gguf", "m.gguf")))
    assert said not in model_card(replace(facts, origin=Origin("hub", "o/m", hub_id="o/m")))
    folder = export(tmp_path / "adapter", write_base(tmp_path / "base"), {}).folder
    (folder / "README.md").write_text(card)
    merge_adapter(folder, tmp_path / "merged")
    merged = (tmp_path / "merged" / "README.md").read_text()
    assert "peft" not in merged.lower() and "llmtrain merge" not in merged
