"""Pairs that share their prompt: the scores, losses and gradients of their documents one by one, as transformers'."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_paths import longrope
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from llmtrain.batch import IGNORE_INDEX, PreferencePairs
from llmtrain.config.adapter import AdapterConfig
from llmtrain.config.sections import TunedModelConfig
from llmtrain.models import trunk
from llmtrain.models.adapters.lora import add_adapter
from llmtrain.models.attention import ATTENTION
from llmtrain.models.cpu.lora import fuse_adapters
from llmtrain.models.wrappers.actor_critic import ActorCritic
from llmtrain.models.wrappers.causal_lm import CausalLMLoss
from llmtrain.models.wrappers.checks import shares_prompts, wrap_causal_lm
from llmtrain.models.wrappers.reward_model import RewardModel, score_model
from llmtrain.objectives.reward import PairwiseReward
from llmtrain.system.device import AttentionKernel

CPU = torch.device("cpu")
TOLERANCE = 1e-6  # of the largest value
# (prefix, chosen, rejected): no prefix, one token after it, equal sides, one side as short as the other is long
PAIRS = ((7, 4, 6), (0, 5, 3), (9, 1, 3), (5, 4, 4), (1, 2, 11))
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
WINDOW = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
MODELS: dict[str, dict[str, Any]] = {
    "llama": SHAPE,
    "qwen3": SHAPE,
    "gpt2": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": None, "eos_token_id": None},
    "mistral": SHAPE | {"sliding_window": 4},
    "gemma2": SHAPE | WINDOW | {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "gemma3_text": SHAPE | WINDOW | {"query_pre_attn_scalar": 8},
}


def tiny(name: str, auto: Any = AutoModelForSequenceClassification) -> PreTrainedModel:
    """A model in double precision, so that only what differs by more than rounding differs."""
    shape = AutoConfig.for_model(name, **MODELS[name])
    if auto is AutoModelForSequenceClassification:
        shape.num_labels = 1
    torch.manual_seed(0)
    model: PreTrainedModel = auto.from_config(shape, attn_implementation=ATTENTION).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def batch_of(pairs: tuple[tuple[int, int, int], ...]) -> PreferencePairs:
    """Random pairs; every token after a prefix but the first is an answer's."""
    torch.manual_seed(1)
    positions, labels = [], []
    ids = [torch.randint(1, 64, (sum(pair),)) for pair in pairs]
    for laid, (prefix, chosen, rejected) in zip(ids, pairs, strict=True):
        positions += [torch.arange(prefix + chosen), torch.arange(prefix, prefix + rejected)]
        labels.append(torch.full((prefix,), IGNORE_INDEX))
        for side in laid[prefix:].split((chosen, rejected)):
            labels.append(torch.cat([side[1:], torch.tensor([IGNORE_INDEX])]))
    return PreferencePairs(
        input_ids=torch.cat(ids),
        labels=torch.cat(labels),
        position_ids=torch.cat(positions),
        prefix_lengths=tuple(prefix for prefix, *_ in pairs),
        segment_lengths=tuple(length for _, *sides in pairs for length in sides),
        answer_lengths=tuple(length - 1 for _, *sides in pairs for length in sides),
        weights=torch.linspace(0.5, 1.5, len(pairs)).double(),
        margins=None,
        num_pairs=len(pairs),
        sample_ids=(0,),
    )


def documents(batch: PreferencePairs) -> list[Tensor]:
    """The documents of a batch, each whole: chosen, rejected, chosen, ..."""
    sides = list(zip(batch.prefix_lengths, batch.segment_lengths[::2], batch.segment_lengths[1::2], strict=True))
    found = []
    for laid, pair in zip(batch.input_ids.split([sum(pair) for pair in sides]), sides, strict=True):
        prefix, chosen, rejected = laid.split(pair)
        found += [torch.cat([prefix, chosen]), torch.cat([prefix, rejected])]
    return found


class OneByOne(nn.Module):
    """Scores as transformers gives them, a document at a time."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: PreferencePairs) -> Tensor:
        self.model.set_attn_implementation("eager")
        scores = torch.cat([self.model(document[None], use_cache=False).logits[0] for document in documents(batch)])
        self.model.set_attn_implementation(ATTENTION)
        return scores


def loss_and_gradients(module: nn.Module, batch: PreferencePairs) -> list[Tensor]:
    objective = PairwiseReward(centering=0.1)
    module.zero_grad()
    share, _ = objective.loss(module, batch, dict(objective.counts(batch)))
    share.backward()
    found = [parameter.grad for parameter in module.parameters() if parameter.requires_grad]
    return [share.detach(), *(gradient.clone() for gradient in found if gradient is not None)]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(
            one.double(), other.double(), rtol=0, atol=TOLERANCE * float(other.detach().abs().max())
        )


@pytest.mark.parametrize("kernel", ["segments", "mask"])
@pytest.mark.parametrize("name", MODELS)
def test_scores_losses_and_gradients_are_those_of_whole_documents(name: str, kernel: AttentionKernel) -> None:
    model, batch = tiny(name), batch_of(PAIRS)
    shared, alone = RewardModel(model, kernel), OneByOne(model)
    with torch.no_grad():
        assert_equal([shared(batch)], [alone(batch)])
        assert shared(batch).std() > 0.01
    assert_equal(loss_and_gradients(shared, batch), loss_and_gradients(alone, batch))


@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
def test_an_adapter_is_trained_on_shared_prompts_as_on_whole_documents(recomputed: bool) -> None:
    causal, batch = tiny("llama", AutoModelForCausalLM), batch_of(PAIRS)
    add_adapter(causal, AdapterConfig(kind="lora", rank=4, alpha=8), (), 0)
    model = score_model(causal, TunedModelConfig(path="given"), pad_token_id=0, seed=0).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    expected = loss_and_gradients(OneByOne(model), batch)
    fuse_adapters(model)
    model.train()
    if recomputed:
        model.activation_checkpointing_enable({"use_reentrant": False})
    assert_equal(loss_and_gradients(RewardModel(model, "segments"), batch), expected)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_logprobs_of_answers_are_those_of_whole_documents(name: str) -> None:
    model, batch = tiny(name, AutoModelForCausalLM), batch_of(PAIRS)
    model.set_attn_implementation("eager")
    expected = []
    for document, length in zip(documents(batch), batch.answer_lengths, strict=True):
        logprobs = model(document[None], use_cache=False).logits[0].log_softmax(-1)[:-1]
        expected.append(logprobs.gather(-1, document[1:, None])[len(document) - 1 - length :, 0].sum())
    model.set_attn_implementation(ATTENTION)
    checked = CausalLMLoss(model, "segments")
    said = ActorCritic(checked, temperature=1.0)(batch).logprobs
    sums = torch.stack([answer.sum() for answer in said.split(batch.answer_lengths)])
    assert_equal([sums], [torch.stack(expected)])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("max_seq_len", [4, 64])
def test_models_that_share_prompts_rightly_do(name: str, max_seq_len: int) -> None:
    said: list[str] = []
    model = tiny(name).float().train()
    assert shares_prompts(model, "segments", max_seq_len, CPU, said.append)
    assert said == ["a pair's prompt is computed once"] and model.training


def test_prompts_stand_twice_under_a_kernel_that_cannot_share_them() -> None:
    said: list[str] = []
    assert not shares_prompts(tiny("llama").float(), "varlen", 64, CPU, said.append)
    assert said == [
        "a pair's prompt is computed twice, since attention runs as varlen, which has no shared prompts yet"
    ]


def test_prompts_stand_twice_where_sharing_is_computed_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, said = trunk.plan_segments, list[str]()

    def leaking(lengths: Any, kernel: AttentionKernel, device: torch.device, prefixes: Any = ()) -> Any:
        return plan((sum(lengths) + sum(prefixes),), kernel, device)

    monkeypatch.setattr(trunk, "plan_segments", leaking)
    assert not shares_prompts(tiny("llama").float(), "segments", 64, CPU, said.append)
    assert said[0].startswith(
        "a pair's prompt is computed twice, since llama computes them differently when they are shared"
    )


def test_prompts_are_computed_twice_where_rope_goes_by_the_length_of_the_whole() -> None:
    """No pair of the check is past the original positions, so that it alone would not find it."""
    bounds = {"max_position_embeddings": 4096, "original_max_position_embeddings": 1024}
    shape = AutoConfig.for_model("phi3", **SHAPE | bounds | {"rope_parameters": longrope(1024)})
    model = AutoModelForCausalLM.from_config(shape, attn_implementation=ATTENTION)
    wrapped = wrap_causal_lm(model, "segments", 2048, CPU)
    assert [cls.__name__ for cls in wrapped.path.by_groups] == ["Phi3RotaryEmbedding"]
    said: list[str] = []
    assert not shares_prompts(model, wrapped.kernel, 2048, CPU, said.append)
    assert said == ["a pair's prompt is computed twice, since phi3 has modules that run per whole document"]
