"""Linear layers whose names peft takes for experts, such as those of shared experts: trained, and loaded again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families.steps import write_base
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.utils import transformers_weight_conversion as conversion
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from llmtrain.config.adapter import AdapterConfig
from llmtrain.config.sections import TunedModelConfig
from llmtrain.models.adapters.base import base_facts
from llmtrain.models.adapters.lora import add_adapter, lora_config
from llmtrain.models.adapters.renamed import left_out
from llmtrain.models.folders.adapter import export_adapter, merge_adapter
from llmtrain.models.folders.adapter_trial import require_loading
from llmtrain.models.folders.bases import origin_of
from llmtrain.models.folders.continued import AdapterPlan, continued
from llmtrain.models.folders.model import WRAPPER_PREFIX, ExportSpec
from llmtrain.models.folders.open import open_model
from llmtrain.models.load import load_pretrained

IDS = torch.arange(40, 70)[None]
SHARED = {f"model.layers.1.mlp.shared_experts.{name}_proj" for name in ("gate", "up", "down")}
DENSE = {f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("glm4_moe")
    write_base(folder, "glm4_moe")
    return folder


def load(base: Path) -> PreTrainedModel:
    model = load_pretrained(TunedModelConfig(path=str(base)), AutoTokenizer.from_pretrained(base), max_seq_len=64)
    model.set_attn_implementation("eager")
    return model.eval()


def lora(**keys: object) -> AdapterConfig:
    return AdapterConfig.model_validate({"kind": "lora", "rank": 3, "alpha": 6, **keys})


def adapted_layers(model: nn.Module) -> set[str]:
    return {name for name, each in model.named_modules() if isinstance(each, LoraLayer)}


def exported(model: PreTrainedModel, base: Path, folder: Path, config: AdapterConfig) -> Path:
    """The folder of what a model trains, moved away from its start."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, parameter in trained.items():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    weights = {f"{WRAPPER_PREFIX}{name}": parameter.detach() for name, parameter in trained.items()}
    tokenizer, facts = AutoTokenizer.from_pretrained(base), base_facts(load(base))
    spec = ExportSpec(model.config, tokenizer, origin=origin_of(str(base)), adapter=config, base=facts)
    export_adapter(folder, weights, "---\n---\n", spec)
    return folder


def test_all_linear_trains_each_layer_and_plain_peft_gives_the_same_and_merged_too(base: Path, tmp_path: Path) -> None:
    model = load(base)
    add_adapter(model, lora(), (), 0)
    assert adapted_layers(model) > SHARED | DENSE
    assert not any(isinstance(each, ParamWrapper) for each in model.modules())  # no copy of a weight
    folder = exported(model, base, tmp_path / "adapter", lora())
    expected = model(input_ids=IDS, use_cache=False).logits
    expected.square().sum().backward()
    assert all(each.grad is not None and each.grad.any() for each in model.parameters() if each.requires_grad)
    plain = AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    torch.testing.assert_close(plain(input_ids=IDS, use_cache=False).logits, expected, rtol=1e-4, atol=1e-5)
    start = load(base)(input_ids=IDS, use_cache=False).logits
    assert (start - expected).abs().max() > 0.1
    merge_adapter(folder, tmp_path / "merged")
    merged = load(tmp_path / "merged")(input_ids=IDS, use_cache=False).logits
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(open_model(str(folder))[0](input_ids=IDS, use_cache=False).logits, merged)


def test_it_goes_on_from_its_folder(base: Path, tmp_path: Path) -> None:
    model = load(base)
    add_adapter(model, lora(), (), 0)
    folder = exported(model, base, tmp_path / "adapter", lora())
    again = load(base)
    plan = continued(AdapterPlan(lora(), (), 1), folder)
    plan.put_into(again)
    assert adapted_layers(again) == adapted_layers(model)
    torch.testing.assert_close(again(input_ids=IDS).logits, model(input_ids=IDS).logits)
    require_loading(again, plan.config)
    second = exported(again, base, tmp_path / "second", plan.config)
    assert PeftConfig.from_pretrained(second).target_parameters == PeftConfig.from_pretrained(folder).target_parameters


@pytest.mark.parametrize(
    ("keys", "layers"),
    [
        ({"target": ["o_proj", "up_proj"], "layers": [1]}, {"self_attn.o_proj", "mlp.shared_experts.up_proj"}),
        ({"target": ["shared_experts.down_proj"]}, {"mlp.shared_experts.down_proj"}),
        ({"target": r".*\.1\..*(k|up)_proj"}, {"self_attn.k_proj", "mlp.shared_experts.up_proj"}),
        ({"layers": [1], "modules_to_save": ["shared_experts"]}, {f"self_attn.{each}_proj" for each in "qkvo"}),
        ({"target": [], "target_parameters": ["shared_experts.up_proj.weight"]}, {"mlp.shared_experts.up_proj"}),
    ],
)
def test_names_expressions_and_layers_hold_for_them(
    base: Path, tmp_path: Path, keys: dict[str, object], layers: set[str]
) -> None:
    model = load(base)
    add_adapter(model, lora(**keys), (), 0)
    assert adapted_layers(model) == {f"model.layers.1.{name}" for name in layers}
    folder = exported(model, base, tmp_path / "adapter", lora(**keys))
    plain = AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    torch.testing.assert_close(plain(input_ids=IDS).logits, model(input_ids=IDS).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keys", [{"kind": "dora"}, {"dropout": 0.1}])
def test_what_peft_has_not_for_parameters_leaves_them_out(base: Path, keys: dict[str, object]) -> None:
    model = load(base)
    assert left_out(model, lora(**keys)) == {"gate_proj", "up_proj", "down_proj"} and not left_out(model, lora())
    add_adapter(model, lora(**keys), (), 0)
    assert adapted_layers(model) == {
        f"model.layers.{layer}.self_attn.{name}_proj" for layer in (0, 1) for name in "qkvo"
    }
    said = (
        r"^adapter\.target=up_proj: peft takes this name for one of glm4_moe's experts, and adapts .* without dropout"
    )
    with pytest.raises(ValueError, match=said):
        add_adapter(load(base), lora(target=["up_proj"], **keys), (), 0)
    with pytest.raises(ValueError, match="matches up_proj: peft takes this name"):
        add_adapter(load(base), lora(target=".*up_proj", **keys), (), 0)


@pytest.mark.parametrize(
    "keys",
    [
        {"target": ["o_proj", "up_proj"]},
        {"target": r".*\.(o|up)_proj"},
        {"target_parameters": ["layers.1.mlp.shared_experts.up_proj.weight"]},
    ],
)
def test_on_a_base_in_4_bits_all_linear_is_without_them_and_no_name_is_passed_over(
    base: Path, keys: dict[str, object]
) -> None:
    model = load(base)
    attention = model.get_submodule("model.layers.0.self_attn.v_proj")
    attention.weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)  # as bitsandbytes has it
    config = lora_config(model, lora(), model.get_output_embeddings())
    assert config.target_modules == {f"{name}_proj" for name in "qkvo"} and not config.target_parameters
    assert left_out(model, lora()) == {"gate_proj", "up_proj", "down_proj"}
    with pytest.raises(ValueError, match=r"up_proj for one of glm4_moe's experts, and .* not in 4 bits: leave it out"):
        lora_config(model, lora(**keys), model.get_output_embeddings())


def test_a_run_that_did_not_train_them_is_exported_without_them(base: Path, tmp_path: Path) -> None:
    model = load(base)
    add_adapter(model, lora(dropout=0.1), (), 0)
    folder = exported(model.eval(), base, tmp_path / "adapter", lora())  # a base in 4 bits, an earlier version
    settings = PeftConfig.from_pretrained(folder)
    assert isinstance(settings, LoraConfig) and not settings.target_parameters
    plain = AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    torch.testing.assert_close(plain(input_ids=IDS).logits, model(input_ids=IDS).logits, rtol=1e-4, atol=1e-5)


def test_a_name_that_the_chosen_layers_have_not_is_refused(base: Path) -> None:
    with pytest.raises(ValueError, match=r"names no linear layer that takes an adapter in adapter\.layers=0$"):
        add_adapter(load(base), lora(layers="0", target=["shared_experts.up_proj"]), (), 0)


def test_beside_a_vision_tower_it_goes_on_too(tmp_path: Path) -> None:
    write_base(tmp_path / "base", "glm4v_moe")
    model = load(tmp_path / "base")
    add_adapter(model, lora(), (), 0)
    folder = exported(model, tmp_path / "base", tmp_path / "adapter", lora())
    again = load(tmp_path / "base")
    continued(AdapterPlan(lora(), (), 1), folder).put_into(again)
    assert adapted_layers(again) == adapted_layers(model) and len(adapted_layers(model)) == 14
    torch.testing.assert_close(again(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_peft_renames_again_after_an_adapter_of_ours(base: Path) -> None:
    before = conversion.convert_peft_config_for_transformers
    add_adapter(load(base), lora(), (), 0)
    assert conversion.convert_peft_config_for_transformers is before
