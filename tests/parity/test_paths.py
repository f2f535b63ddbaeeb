"""Documents together against `transformers`' own forward of one at a time, on each path that a model can be on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from one_by_one import SMALL, VOCAB, gradients, packed, stock_loss
from tiny_paths import DELTA, EXPERTS, WINDOWS, longrope
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel

from llmtrain.models.adapters.weight_sharing import shared_copy
from llmtrain.models.attention import ATTENTION
from llmtrain.models.paths.path import can_switch
from llmtrain.models.trunk import pack_inputs, run_trunk
from llmtrain.models.wrappers.causal_lm import CausalLMLoss
from llmtrain.models.wrappers.checks import wrap_causal_lm

CPU = torch.device("cpu")
MAMBA = {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, "vocab_size": VOCAB, "pad_token_id": 0}
ON_PATHS: dict[str, tuple[str, dict[str, Any], str]] = {
    "lfm2": ("lfm2", SMALL | {"layer_types": ["conv", "full_attention"]}, "Lfm2ShortConv per group"),
    "qwen3_5_text": ("qwen3_5_text", SMALL | DELTA, "Qwen3_5GatedDeltaNet per group"),
    "mamba": ("mamba", MAMBA, "MambaMixer per group"),
    "mamba2": ("mamba2", MAMBA | {"num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8}, "Mamba2Mixer per"),
    "longrope": (
        "phi3",
        SMALL | {"rope_parameters": longrope(16), "original_max_position_embeddings": 16},
        "Phi3RotaryEmbedding per group",
    ),
    "windows by the mask only": ("qwen2_moe", SMALL | EXPERTS | WINDOWS, "as a row, padded"),
    "sinks": ("gpt_oss", SMALL | {"num_local_experts": 4, "sliding_window": 8}, "in packs, attention by segments"),
    "alibi": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCAB}, "as a row, padded"),
    "an attention of its own": (
        "gptj",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 64, "vocab_size": VOCAB},
        "as a row, padded",
    ),
}
LENGTHS = (7, 21, 7, 1, 12, 20, 4)


def make_model(architecture: str, fields: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    for attention in (ATTENTION, "eager"):
        shape = AutoConfig.for_model(architecture, **fields)
        try:
            model = AutoModelForCausalLM.from_config(shape, attn_implementation=attention)
        except KeyError:
            continue
        if attention == "eager" or can_switch(model):
            break
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # weights large enough for a leak to show
            parameter.mul_(8.0) if parameter.ndim > 1 and "A_log" not in name else None
    return model.eval()


def documents(lengths: tuple[int, ...] = LENGTHS) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCAB, (length,), generator=generator) for length in lengths]


@pytest.mark.parametrize("name", list(ON_PATHS))
@pytest.mark.parametrize("order", [1, -1])
def test_loss_and_gradients_equal_one_by_one(name: str, order: int) -> None:
    architecture, fields, path = ON_PATHS[name]
    model, texts = make_model(architecture, fields), documents(LENGTHS[::order])
    stock = make_model(architecture, fields)
    if can_switch(stock):
        stock.set_attn_implementation("eager")
    module = wrap_causal_lm(model, "segments", 64, CPU)
    model.eval()
    assert path in module.path.line
    loss = module(packed(texts)).objective
    loss.backward()
    reference = sum((stock_loss(stock, text) for text in texts), torch.zeros(()))
    reference.backward()
    torch.testing.assert_close(loss.detach(), reference.detach(), rtol=1e-6, atol=1e-5)
    ours, theirs = gradients(model), gradients(stock)
    assert ours.keys() == theirs.keys()
    for parameter, grad in theirs.items():
        assert (ours[parameter] - grad).norm() <= 1e-4 * grad.norm() + 1e-6, parameter


@pytest.mark.parametrize("name", ["lfm2", "longrope"])
def test_recomputed_activations_give_the_same_gradients(name: str) -> None:
    model = make_model(*ON_PATHS[name][:2])
    module = wrap_causal_lm(model, "segments", 64, CPU)
    model.train()
    module(packed(documents())).objective.backward()
    stored = gradients(model)
    model.zero_grad()
    model.activation_checkpointing_enable({"use_reentrant": False})
    module(packed(documents())).objective.backward()
    for parameter, grad in gradients(model).items():
        torch.testing.assert_close(grad, stored[parameter], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["lfm2", "longrope", "windows by the mask only"])
def test_packs_without_the_path_are_wrong(name: str) -> None:
    """So the tests above can fail, and what the check finds is there."""
    model, stock = (make_model(*ON_PATHS[name][:2]) for _ in range(2))
    stock.set_attn_implementation("eager")
    texts = documents()
    with torch.no_grad():
        loss = CausalLMLoss(model, "segments")(packed(texts)).cross_entropy
        reference = sum((stock_loss(stock, text) for text in texts), torch.zeros(()))
    assert abs(loss - reference) > 1e-4 * reference


@pytest.mark.parametrize("before", [True, False])
def test_a_copy_that_shares_weights_is_on_the_path_too(before: bool) -> None:
    """`before`: copied before the model was put on its path, as a critic is."""
    model, texts = make_model(*ON_PATHS["lfm2"][:2]), documents()
    early = shared_copy(model)
    module = wrap_causal_lm(model, "segments", 64, CPU)
    twin = module.path.put_into(early if before else shared_copy(model)).eval()
    inputs = pack_inputs(packed(texts), module.kernel)
    with torch.no_grad():
        run_trunk(model.base_model, pack_inputs(packed(texts[:2]), module.kernel))  # its bounds are not the twin's
        found = run_trunk(twin.base_model, inputs)
        twin.set_attn_implementation("eager")
        alone = torch.cat([twin.base_model(text[None]).last_hidden_state[0] for text in texts])
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
    assert all(one is other for one, other in zip(model.parameters(), twin.parameters(), strict=True))


class Blending(LlamaForCausalLM):
    """A model in which documents of a pack see those before them, and rows of a batch each other's beginning."""

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:  # type: ignore[override]
        outputs = super().forward(input_ids, **kwargs)
        outputs.logits = outputs.logits * input_ids[:, :1].float().mean()
        return outputs


def test_a_model_that_no_path_computes_is_refused_by_name() -> None:
    model = Blending._from_config(AutoConfig.for_model("llama", **SMALL), attn_implementation=ATTENTION)
    with pytest.raises(ValueError, match=r"llama: neither packs nor rows .* alone .outputs differ"):
        wrap_causal_lm(model, "segments", 64, CPU)
