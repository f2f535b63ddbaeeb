"""Models from a configuration or a folder: what is made, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import MODEL, write_tokenizer
from tiny_tokenizers import byte_level_bpe
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from llmtrain.config.sections import ModelConfig, TunedModelConfig
from llmtrain.models.adapters import quantized
from llmtrain.models.load import load_model, load_pretrained
from llmtrain.models.paths.small import noise_of
from llmtrain.models.presets import PRESETS, preset_size


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def load(tokenizer: PreTrainedTokenizerBase, *, max_seq_len: int = 32, seed: int = 0, **model: Any) -> PreTrainedModel:
    return load_model(ModelConfig(**model), tokenizer, max_seq_len=max_seq_len, seed=seed)


@pytest.fixture
def saved(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    """A folder with a model of bf16 weights."""
    load(tokenizer, config=MODEL).to(torch.bfloat16).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_the_size_of_its_name(tokenizer: PreTrainedTokenizerBase, preset: str) -> None:
    with torch.device("meta"):
        model = load(tokenizer, preset=preset, config={"vocab_size": {"1m": 320}.get(preset, 32768)})
    body = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()
    named = float(preset[:-1]) * {"m": 1e6, "b": 1e9}[preset[-1]]
    assert 0.6 * named < body < 1.3 * named, f"{body:,}"
    assert model.config.head_dim * model.config.num_attention_heads == model.config.hidden_size


def test_fields_go_over_the_preset(tokenizer: PreTrainedTokenizerBase) -> None:
    model = load(tokenizer, preset="1m", config={"num_hidden_layers": 2, "tie_word_embeddings": False})
    assert model.config.num_hidden_layers == 2 and model.config.hidden_size == PRESETS["1m"][0]
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight


def test_a_new_model_takes_over_the_tokenizer_and_the_context(tokenizer: PreTrainedTokenizerBase) -> None:
    shape = load(tokenizer, config=MODEL, max_seq_len=48).config
    assert shape.vocab_size == 320  # 259 up to a multiple of 64
    assert (shape.bos_token_id, shape.eos_token_id, shape.pad_token_id) == (256, 257, 258)
    assert shape.max_position_embeddings == 48


def test_initialisation_is_a_function_of_the_seed(tokenizer: PreTrainedTokenizerBase) -> None:
    def first(seed: int) -> Tensor:
        return next(load(tokenizer, config=MODEL, seed=seed).parameters()).detach()

    assert torch.equal(first(3), first(3))
    assert not torch.equal(first(3), first(4))


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "gemma2"])
def test_architectures_of_other_field_names_take_the_same_presets(
    tokenizer: PreTrainedTokenizerBase, architecture: str
) -> None:
    shape = load(tokenizer, architecture=architecture, preset="1m", config={"num_hidden_layers": 1}).config
    assert (shape.num_hidden_layers, shape.hidden_size, shape.num_attention_heads) == (1, 128, 4)


def test_a_given_model_is_continued_in_fp32(tokenizer: PreTrainedTokenizerBase, saved: Path) -> None:
    model, fresh = load(tokenizer, path=str(saved)), load(tokenizer, config=MODEL)
    for (name, parameter), (_, expected) in zip(model.named_parameters(), fresh.named_parameters(), strict=True):
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, expected.bfloat16().float()), name


MAMBA2 = {"architecture": "mamba2", "config": {"hidden_size": 64, "num_heads": 4, "head_dim": 32}}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown preset": ({"preset": "2b"}, r"^model\.preset='2b': there are 1m, 3m,"),
    "an unknown architecture": (
        {"architecture": "lama", "preset": "1m"},
        r"^model\.architecture='lama' is not a ",
    ),
    "an unknown field": ({"config": {"num_layer": 2}}, r"^model\.config\.num_layer: llama has no such field$"),
    "no shape": ({}, r"^model: give model\.path, model\.preset or fields in model\.config$"),
    "few embeddings": ({"config": {**MODEL, "vocab_size": 258}}, r"259 tokens .* only 258 .*model\.config\.vocab_size"),
    "few positions": (
        {"config": {**MODEL, "max_position_embeddings": 31}},
        r"^data\.max_seq_len=32 .* 31 positions: lower",
    ),
    "dropout where there is none": ({**MAMBA2, "dropout": 0.1}, r"^model\.dropout=0\.1: mamba2 has no dropout$"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_refused_by_name(tokenizer: PreTrainedTokenizerBase, case: str) -> None:
    model, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as caught:
        load(tokenizer, **model)
    assert "\n" not in str(caught.value)


def test_a_given_model_with_fewer_embeddings_than_tokens_is_refused(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    bare = AutoTokenizer.from_pretrained(write_tokenizer(tmp_path / "bare", special_tokens=()))
    load(bare, config={**MODEL, "vocab_size": 256}).save_pretrained(tmp_path / "small")
    with pytest.raises(ValueError, match=r"259 tokens but the model only 256 .* take the model's own tokenizer"):
        load(tokenizer, path=str(tmp_path / "small"))


def test_a_given_model_with_fewer_positions_than_the_context_is_refused(
    tokenizer: PreTrainedTokenizerBase, saved: Path
) -> None:
    with pytest.raises(ValueError, match=r"data\.max_seq_len=33 is longer than the model's 32 positions"):
        load(tokenizer, path=str(saved), max_seq_len=33)


def test_4_bits_are_refused_without_a_gpu(
    tokenizer: PreTrainedTokenizerBase, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: None)
    config = TunedModelConfig(path=str(saved), quantize="nf4")
    with pytest.raises(ValueError, match=r"^model\.quantize=nf4 needs an NVIDIA GPU \(this is cpu\): leave it out$"):
        load_pretrained(config, tokenizer, max_seq_len=32)


def test_4_bits_are_refused_without_bitsandbytes(
    tokenizer: PreTrainedTokenizerBase, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    config = TunedModelConfig(path=str(saved), quantize="nf4")
    with pytest.raises(ValueError, match=r"needs bitsandbytes: pip install 'llmtrain\[quantize\]'$"):
        load_pretrained(config, tokenizer, max_seq_len=32)


def test_a_model_that_is_quantized_already_is_refused(tokenizer: PreTrainedTokenizerBase, saved: Path) -> None:
    shape = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(shape | {"quantization_config": {"quant_method": "gptq", "bits": 4}}))
    with pytest.raises(ValueError, match=rf"^model\.path={saved}: its weights are quantized \(gptq\): take the"):
        load(tokenizer, path=str(saved))


def test_a_damaged_model_folder_is_named(tokenizer: PreTrainedTokenizerBase, saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=rf"^model\.path={saved}: ") as caught:
        load(tokenizer, path=str(saved))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [("llama", ["attention_dropout"]), ("gpt2", ["attn_pdrop", "embd_pdrop", "resid_pdrop"])],
)
def test_dropout_is_written_to_every_field_that_means_it(
    tokenizer: PreTrainedTokenizerBase, architecture: str, fields: list[str]
) -> None:
    for dropout in (0.0, 0.25):
        shape = load(tokenizer, architecture=architecture, preset="1m", dropout=dropout).config.to_dict()
        assert [shape[name] for name in fields] == [dropout] * len(fields)


def test_no_dropout_is_no_noise_of_another_kind_either(tokenizer: PreTrainedTokenizerBase) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    opt = sizes | {"ffn_dim": 32, "word_embed_proj_dim": 32, "layerdrop": 0.5}
    mixtral = sizes | {"intermediate_size": 32, "num_key_value_heads": 2, "router_jitter_noise": 0.5}
    for architecture, fields in (("opt", opt), ("mixtral", mixtral)):
        assert noise_of(load(tokenizer, architecture=architecture, config=fields).config)
        assert not noise_of(load(tokenizer, architecture=architecture, config=fields, dropout=0.0).config)


@pytest.mark.parametrize("architecture", ["gemma4_text", "mixtral"])
def test_a_preset_for_an_architecture_that_has_another_size_with_it_is_refused(architecture: str) -> None:
    config = ModelConfig(architecture=architecture, preset="1m")
    with pytest.raises(ValueError, match=rf"model.preset=1m: {architecture} would have [\d,]+ weights"):
        load_model(config, byte_level_bpe(), max_seq_len=32, seed=0)


def test_the_size_of_a_preset_is_that_of_its_llama() -> None:
    model = load_model(ModelConfig(preset="1m"), byte_level_bpe(), max_seq_len=32, seed=0)
    assert preset_size("1m", model.config.vocab_size) == model.num_parameters()
