"""A given model at another context: its logits are those of transformers with that configuration."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_paths import longrope
from tiny_run import MODEL, write_tokenizer
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from llmtrain.config.sections import PretrainedModelConfig
from llmtrain.models.context import require_fixed_rope
from llmtrain.models.load import load_pretrained

LENGTH = 64  # positions of the given model
ROPE: dict[str, dict[str, Any]] = {
    "theta": {"rope_parameters": {"rope_theta": 500000.0}},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0}, "max_position_embeddings": 256},
    "yarn": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}, "max_position_embeddings": 256},
    "llama3": {
        "rope_parameters": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "max_position_embeddings": 256,
    },
}
STORED: dict[str, dict[str, Any]] = {  # as a folder's config.json would say it
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "linear": ROPE["linear"],
    "yarn": ROPE["yarn"]
    | {"rope_parameters": {"original_max_position_embeddings": LENGTH, **ROPE["yarn"]["rope_parameters"]}},
    "llama3": ROPE["llama3"]
    | {"rope_parameters": {"original_max_position_embeddings": LENGTH, **ROPE["llama3"]["rope_parameters"]}},
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def save(folder: Path, architecture: str, **fields: Any) -> Path:
    torch.manual_seed(0)
    shape = AutoConfig.for_model(architecture, **{"vocab_size": 320, "max_position_embeddings": LENGTH, **fields})
    model = AutoModelForCausalLM.from_config(shape)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(model: Any) -> Tensor:
    ids = torch.arange(40)[None] * 7 % 300
    model.set_attn_implementation("eager")  # ours reads document bounds
    found: Tensor = model.eval()(input_ids=ids, position_ids=torch.arange(40)[None]).logits
    return found


def load(path: Path, tokenizer: PreTrainedTokenizerBase, config: dict[str, Any], **options: Any) -> Any:
    given = PretrainedModelConfig(path=str(path), config=config)
    return load_pretrained(given, tokenizer, **{"max_seq_len": 32, **options})


def rewritten(path: Path, folder: Path, fields: dict[str, Any]) -> Path:
    """A copy of a model's folder with other fields in its configuration."""
    shutil.copytree(path, folder)
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stored | fields))
    return folder


@pytest.mark.parametrize("kind", ROPE)
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_the_logits_are_those_of_transformers_with_that_configuration(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, architecture: str, kind: str
) -> None:
    path = save(tmp_path / "given", architecture, **MODEL)
    expected = AutoModelForCausalLM.from_pretrained(rewritten(path, tmp_path / "other", STORED[kind]))
    said: list[str] = []
    model = load(path, tokenizer, ROPE[kind], report=said.append)
    torch.testing.assert_close(logits(model), logits(expected), rtol=1e-5, atol=1e-5)
    assert (logits(model) - logits(AutoModelForCausalLM.from_pretrained(path))).abs().max() > 1e-2
    assert len(said) == 1 and "rope_parameters {" in said[0] and " -> {" in said[0]
    assert ("max_position_embeddings 64 -> 256" in said[0]) == (kind != "theta")
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-5)


def test_rope_of_one_type_of_layer_leaves_the_others(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = save(tmp_path / "given", "gemma3_text", **MODEL, head_dim=16, sliding_window=16)
    model = load(path, tokenizer, {"rope_parameters": {"full_attention": {"rope_theta": 5e6}}, "sliding_window": 8})
    assert model.config.rope_parameters["full_attention"]["rope_theta"] == 5e6
    assert model.config.rope_parameters["sliding_attention"]["rope_theta"] == 10000.0
    assert model.config.sliding_window == 8
    with pytest.raises(ValueError, match=r"write model.config.rope_parameters\.\w+_attention.rope_theta or "):
        load(path, tokenizer, {"rope_parameters": {"rope_theta": 5e6}})


def test_a_longer_context_is_trained_once_it_is_asked_for(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = save(tmp_path / "given", "llama", **MODEL)
    with pytest.raises(ValueError, match=r"longer than the model's 64 positions: lower it, or set model\.config\."):
        load(path, tokenizer, {}, max_seq_len=256)
    load(path, tokenizer, ROPE["yarn"], max_seq_len=256)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"hidden_size": 64}, "model.config.hidden_size: .* keeps the shapes of its weights"),
        ({"num_hidden_layers": 1}, "model.config.num_hidden_layers: .*only max_position_embeddings, rope_parameters"),
        ({"rope_scaling": {"factor": 2.0}}, "model.config.rope_scaling: .*rope_parameters"),
        ({"sliding_window": 8}, "llama has no such field"),
        ({"max_position_embeddings": 0}, "must be a positive whole number"),
        ({"max_position_embeddings": "long"}, "must be a positive whole number"),
        ({"rope_parameters": 4}, "give its parameters"),
        ({"rope_parameters": {"factor": 4.0}}, "Unrecognized keys.*factor"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "Missing required keys.*factor"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 0.5}}, "factor field must be a float or int >= 1"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "beta": 1}}, "Unrecognized keys.*beta"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "longest document of a microbatch"),
        ({"rope_parameters": {"rope_type": "nonsense"}}, "rope_type"),
    ],
)
def test_what_changes_shapes_or_does_nothing_is_refused_by_name(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, config: dict[str, Any], said: str
) -> None:
    path = save(tmp_path / "given", "llama", **MODEL)
    with pytest.raises(ValueError, match=said) as caught:
        load(path, tokenizer, config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["max_position_embeddings", "rope_parameters"])
def test_a_model_whose_positions_are_weights_keeps_them(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    path = save(tmp_path / "given", "gpt2", n_embd=32, n_layer=1, n_head=2)
    with pytest.raises(ValueError, match=f"model.config.{name}: gpt2 has no RoPE"):
        load(path, tokenizer, {name: {"rope_type": "yarn"} if name == "rope_parameters" else 2048})


def test_a_response_that_would_grow_past_longrope_s_bound_is_refused() -> None:
    shape = AutoConfig.for_model(
        "phi3",
        hidden_size=32,
        num_attention_heads=4,
        rope_parameters=longrope(32),
        original_max_position_embeddings=32,
        max_position_embeddings=64,
    )
    require_fixed_rope(shape, 32)
    with pytest.raises(
        ValueError, match=r"^data\.max_seq_len=33: this .* RoPE .* changes at 32 tokens, .* at most 32$"
    ):
        require_fixed_rope(shape, 33)
