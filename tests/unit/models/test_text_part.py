"""The text model inside a multimodal folder: what is trained, what stays, what loads it again."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from families.steps import write_base
from families.table import read
from families.tiny import tiny_config
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from llmtrain.config.adapter import AdapterConfig
from llmtrain.config.sections import TunedModelConfig
from llmtrain.data.tokenize import load_tokenizer
from llmtrain.models.adapters.lora import add_adapter
from llmtrain.models.flops import training_flops
from llmtrain.models.folders.adapter import export_adapter, merge_adapter
from llmtrain.models.folders.bases import origin_of
from llmtrain.models.folders.continued import AdapterPlan, continued
from llmtrain.models.folders.model import WRAPPER_PREFIX, ExportSpec, export_model
from llmtrain.models.folders.open import open_model
from llmtrain.models.load import load_pretrained
from llmtrain.models.text_part import freeze_other_parts, parts_beside, text_names

VISION = ("vision_tower", "multi_modal_projector")
TUNED = ("gemma3", "gemma4", "lfm2_vl", "llama4", "mllama", "phi4_multimodal", "qwen2_5_vl", "qwen3_vl", "smolvlm")


def multimodal_families() -> list[str]:
    """The families of the table with a part that takes no text: those of images, and with sound."""
    built = [name for name, steps in read()["families"].items() if "built" not in steps]
    return [name for name in built if name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES or name == "phi4_multimodal"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistral3")
    write_base(folder, "mistral3")
    (folder / "preprocessor_config.json").write_text("{}")
    return folder


@pytest.fixture
def model(base: Path) -> PreTrainedModel:
    return load_pretrained(TunedModelConfig(path=str(base)), AutoTokenizer.from_pretrained(base), max_seq_len=32)


def spec_of(model: PreTrainedModel, base: Path, adapter: AdapterConfig | None = None) -> ExportSpec:
    return ExportSpec(model.config, AutoTokenizer.from_pretrained(base), origin=origin_of(str(base)), adapter=adapter)


def test_the_vision_tower_is_frozen_and_the_text_model_is_not(model: PreTrainedModel) -> None:
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if any(part in name for part in VISION)}
    assert frozen


def test_the_vision_tower_costs_no_arithmetic(model: PreTrainedModel) -> None:
    alone = sum(p.numel() for p in model.get_decoder().parameters()) - model.get_input_embeddings().weight.numel()
    assert training_flops(model).per_token == 6.0 * alone


def test_an_export_is_of_the_class_of_its_base_with_the_vision_tower_to_the_byte(
    model: PreTrainedModel, base: Path, tmp_path: Path
) -> None:
    trained = {
        f"{WRAPPER_PREFIX}{name}": parameter.detach() + 1
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    export_model(tmp_path / "model", trained, "", spec_of(model, base))
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "model"))
    assert before.keys() == after.keys()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if any(part in name for part in VISION)}
    assert type(open_model(str(tmp_path / "model"))[0]) is type(model)
    assert (tmp_path / "model" / "preprocessor_config.json").is_file()  # or nobody could give it an image


def test_a_vision_tower_keeps_its_bytes_where_the_configuration_names_another_type(base: Path, tmp_path: Path) -> None:
    other = shutil.copytree(base, tmp_path / "base")
    text = (other / "config.json").read_text()
    (other / "config.json").write_text(text.replace('"float32"', '"bfloat16"'))
    assert "bfloat16" in (other / "config.json").read_text()
    model = load_pretrained(TunedModelConfig(path=str(other)), AutoTokenizer.from_pretrained(other), max_seq_len=32)
    trained = {f"{WRAPPER_PREFIX}{n}": p.detach() for n, p in model.named_parameters() if p.requires_grad}
    export_model(tmp_path / "model", trained, "", spec_of(model, other))
    before, after = (load_file(folder / "model.safetensors") for folder in (other, tmp_path / "model"))
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.fixture
def adapter(base: Path, model: PreTrainedModel, tmp_path: Path) -> Path:
    """The folder of an adapter that changes every layer of the text model."""
    config = AdapterConfig.model_validate({"kind": "lora", "rank": 2})
    add_adapter(model, config, (), 0)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    weights = {f"{WRAPPER_PREFIX}{name}": torch.ones_like(parameter) for name, parameter in trained.items()}
    export_adapter(tmp_path / "adapter", weights, "", spec_of(model, base, config))
    return tmp_path / "adapter"


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["the base's type", "another type"])
def test_a_merged_folder_takes_images_as_its_base_does(
    base: Path, adapter: Path, tmp_path: Path, dtype: torch.dtype | None
) -> None:
    merge_adapter(adapter, tmp_path / "merged", dtype=dtype)
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "merged"))
    assert before.keys() == after.keys()
    beside = {name for name in before if any(part in name for part in VISION)}
    assert beside and all(before[name].dtype == after[name].dtype for name in beside)
    assert all(torch.equal(before[name], after[name]) for name in beside)
    text = next(name for name in before if "q_proj" in name and name not in beside)
    assert after[text].dtype == (dtype or before[text].dtype)
    assert not torch.equal(before[text].float(), after[text].float())
    assert (tmp_path / "merged" / "preprocessor_config.json").is_file()


def test_a_merged_folder_that_lacks_weights_is_refused(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = PreTrainedModel.save_pretrained

    def dropping(model: PreTrainedModel, folder: Path, **options: object) -> None:
        save(model, folder, **options)
        weights = load_file(folder / "model.safetensors")
        del weights[next(name for name in weights if "vision_tower" in name)]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", dropping)
    with pytest.raises(ValueError, match="weights were not written"):
        merge_adapter(adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    "settings",
    [{}, {"target": ["q_proj", "v_proj"]}, {"layers": [1]}, {"layers": [1], "target": ["q_proj", "v_proj"]}],
    ids=["all linear", "names", "a layer", "names of a layer"],
)
def test_an_adapter_covers_the_text_model_only_and_loads_in_plain_peft(
    settings: dict[str, object], base: Path, model: PreTrainedModel, tmp_path: Path
) -> None:
    config = AdapterConfig.model_validate({"kind": "lora", "rank": 2, **settings})
    add_adapter(model, config, (), 0)
    adapted = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert adapted and all(re.match(text_names(model), name) for name in adapted)
    numbers = {found[1] for name in adapted if (found := re.search(r"\.layers\.(\d+)\.", name))}
    assert numbers == ({"1"} if "layers" in settings else {"0", "1"})
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    weights = {
        f"{WRAPPER_PREFIX}{name}": parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    export_adapter(tmp_path / "adapter", weights, "", spec_of(model, base, config))
    plain = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), str(tmp_path / "adapter"))
    ids = torch.arange(40, 52)[None]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        torch.testing.assert_close(plain(input_ids=ids).logits, model(input_ids=ids).logits)
    assert not any("lora" in name for name, _ in plain.named_parameters() if any(part in name for part in VISION))
    again = load_pretrained(TunedModelConfig(path=str(base)), AutoTokenizer.from_pretrained(base), max_seq_len=32)
    continued(AdapterPlan(AdapterConfig(kind="lora"), (), 1), tmp_path / "adapter").put_into(again)
    assert {name for name, parameter in again.named_parameters() if parameter.requires_grad} == adapted


def test_an_expression_that_matches_the_vision_tower_is_refused(model: PreTrainedModel) -> None:
    config = AdapterConfig(kind="lora", target=r".*\.(q_proj|v_proj)")
    with pytest.raises(ValueError, match=r"matches model.vision_tower.* begin it with model\\.language_model\\."):
        add_adapter(model, config, (), 0)


def test_no_module_of_the_vision_tower_is_trained_in_full(model: PreTrainedModel) -> None:
    config = AdapterConfig(kind="lora", modules_to_save=["norm"])
    with pytest.raises(ValueError, match=r"modules_to_save: model\.vision_tower.*norm is no part of the text model"):
        add_adapter(model, config, (), 0)
    add_adapter(model, AdapterConfig(kind="lora", modules_to_save=["language_model.norm"]), (), 0)
    trained = {name for name, each in model.named_parameters() if each.requires_grad and "lora" not in name}
    assert trained == {"model.language_model.norm.weight"}


def test_the_chat_template_of_an_older_processor_is_read(base: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.json").write_text('{"chat_template": "{{ messages }}"}')
    assert load_tokenizer(str(tmp_path)).chat_template == "{{ messages }}"


def all_in_one(base: Path) -> PreTrainedModel:
    """A model for images and sound whose configuration is that of its text model too."""
    if not (base / "config.json").is_file():
        write_base(base, "phi4_multimodal")
    return load_pretrained(TunedModelConfig(path=str(base)), AutoTokenizer.from_pretrained(base), max_seq_len=32)


def test_an_adapter_of_a_model_with_one_configuration_is_in_its_text_model_and_all_of_it_trains(tmp_path: Path) -> None:
    model = all_in_one(tmp_path)
    assert list(parts_beside(model)) == ["model.embed_tokens_extend"]
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {
        name for name, _ in model.named_parameters() if "embed_tokens_extend" in name
    }
    config = AdapterConfig(kind="lora", rank=2)
    add_adapter(model, config, (), 0)
    adapted = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, parameter in adapted.items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    ids = torch.arange(40, 52)[None]
    model.set_attn_implementation("eager")
    expected = model(input_ids=ids, use_cache=False).logits
    expected.sum().backward()
    assert len(adapted) == 2 * 4 * 2 and all(each.grad is not None and each.grad.any() for each in adapted.values())
    weights = {f"{WRAPPER_PREFIX}{name}": parameter.detach() for name, parameter in adapted.items()}
    export_adapter(tmp_path / "adapter", weights, "", spec_of(model, tmp_path, config))
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path), str(tmp_path / "adapter"))
    torch.testing.assert_close(plain(input_ids=ids, use_cache=False).logits, expected)
    assert not any("lora" in name and "embed_tokens_extend" in name for name, _ in plain.named_parameters())


def test_an_expression_that_matches_sound_says_how_to_begin(tmp_path: Path) -> None:
    model = all_in_one(tmp_path)
    with pytest.raises(ValueError, match=r"no part of the text model: begin it with \(\?!model\\\.embed_tokens_extend"):
        add_adapter(model, AdapterConfig(kind="lora", target=r".*\.(gate_up_proj|down_proj)"), (), 0)
    inside = r"(?!model\.embed_tokens_extend\.).*\.(gate_up_proj|down_proj)"
    add_adapter(model, AdapterConfig(kind="lora", target=inside), (), 0)
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 4


@pytest.mark.parametrize(
    "family",
    [name if name in TUNED else pytest.param(name, marks=pytest.mark.soak) for name in multimodal_families()],
)
def test_no_adapter_is_in_a_part_that_text_never_enters(family: str) -> None:
    of_images = family in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    with torch.device("meta"):
        auto = AutoModelForImageTextToText if of_images else AutoModelForCausalLM
        model = auto.from_config(tiny_config(family, 272))
    towers = [
        name
        for name, part in model.named_modules()
        if isinstance(part, PreTrainedModel) and "text" not in part.input_modalities
    ]
    freeze_other_parts(model)
    add_adapter(model, AdapterConfig(kind="lora", rank=2), (), 0)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and not [name for name in trained if name.startswith(tuple(f"{each}." for each in towers))]
