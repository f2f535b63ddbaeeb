"""What is exported loads as what was trained, or the run says so at its start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_llama import tiny_llama
from transformers import CamembertConfig, CamembertForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedModel

from llmtrain.models.folders import exported
from llmtrain.models.folders.exported import require_export, write_weights
from llmtrain.models.folders.kind import LANGUAGE
from llmtrain.models.folders.skeleton import skeleton


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> MixtralForCausalLM:
    monkeypatch.setattr(exported, "_RIGHT", set())  # whatever other tests have found
    shape = MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
    )
    return MixtralForCausalLM(shape)


def changes_files(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Let each saved folder of weights be changed as it is written."""
    save = PreTrainedModel.save_pretrained

    def changed(model: PreTrainedModel, folder: Path, **options: Any) -> None:
        save(model, folder, **options)
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", changed)


def test_a_model_that_saves_all_it_has_passes(model: MixtralForCausalLM) -> None:
    require_export(model, LANGUAGE, 32)


def test_an_expert_that_the_export_drops_is_found_at_the_start(
    model: MixtralForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drop(weights: dict[str, Any]) -> None:
        del weights[next(name for name in weights if ".experts.3." in name)]

    changes_files(monkeypatch, drop)
    with pytest.raises(ValueError, match=r"weights were not written: transformers does not save mixtral whole"):
        require_export(model, LANGUAGE, 32)


def test_experts_that_the_export_swaps_are_found_at_the_start(
    model: MixtralForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swap(weights: dict[str, Any]) -> None:
        names = [name for name in weights if ".experts.1." in name]
        for name in names:
            other = name.replace(".experts.1.", ".experts.2.")
            weights[name], weights[other] = weights[other], weights[name]

    changes_files(monkeypatch, swap)
    with pytest.raises(ValueError, match=r"mixtral: an exported model would load as another one \(.*experts.* differs"):
        require_export(model, LANGUAGE, 32)


def test_a_field_that_the_configuration_loses_is_found_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported, "_RIGHT", set())
    own = exported.AutoConfig.from_pretrained

    def forgetful(folder: Path, **options: Any) -> Any:
        shape = own(folder, **options)
        if not options:  # where the folder is loaded, not where the older names are added
            shape.rms_norm_eps = 0.5
        return shape

    monkeypatch.setattr(exported.AutoConfig, "from_pretrained", forgetful)
    with pytest.raises(ValueError, match=r"logits differ .*rms_norm_eps"):
        require_export(tiny_llama(), LANGUAGE, 32)


def test_files_that_hold_fewer_values_than_the_model_are_refused(
    model: MixtralForCausalLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changes_files(monkeypatch, lambda weights: weights.pop("model.norm.weight"))
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    with pytest.raises(ValueError, match="32 of the model's"):
        write_weights(skeleton(model.config, LANGUAGE, torch.float32), weights, tmp_path)


def tied_by_its_other_name() -> CamembertForCausalLM:
    """A model whose head comes before the embedding that it is tied to, so a checkpoint has the head's name."""
    shape = CamembertConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=40,
        is_decoder=True,
    )
    return CamembertForCausalLM(shape)


def test_a_tied_weight_is_written_by_whichever_of_its_names_a_checkpoint_has(tmp_path: Path) -> None:
    model = tied_by_its_other_name()
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    assert not any("word_embeddings" in name for name in weights)
    write_weights(skeleton(model.config, LANGUAGE, torch.float32), weights, tmp_path)
    loaded = CamembertForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(weight, weights[name]) for name, weight in loaded.named_parameters())


def test_the_trial_writes_what_a_checkpoint_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported, "_RIGHT", set())
    model = tied_by_its_other_name()
    require_export(model, LANGUAGE, 32)

    def not_tied(*given: Any, **options: Any) -> PreTrainedModel:
        blank = skeleton(*given, **options)
        blank.all_tied_weights_keys = {}
        return blank

    monkeypatch.setattr(exported, "_RIGHT", set())
    monkeypatch.setattr(exported, "skeleton", not_tied)
    with pytest.raises(ValueError, match=r"^camembert: an exported model would .* has no place in"):
        require_export(model, LANGUAGE, 32)
