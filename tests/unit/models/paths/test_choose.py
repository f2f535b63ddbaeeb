"""Planted wrong models are found on a small copy, and by what is wrong with them."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
from one_by_one import SMALL
from tiny_paths import EXPERTS, WINDOWS, longrope
from tiny_run import write_tokenizer
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

from llmtrain.models.attention import ATTENTION
from llmtrain.models.folders import reward
from llmtrain.models.folders.reward import Classifier, load_reward_model
from llmtrain.models.paths import choose
from llmtrain.models.paths.choose import Trial, paths
from llmtrain.models.paths.leaks import leaking_class
from llmtrain.models.paths.path import Path
from llmtrain.models.paths.small import BOUND, small_copy
from llmtrain.models.trunk import run_model
from llmtrain.models.wrappers.checks import wrap_causal_lm
from llmtrain.recipes.tasks import trained_subject
from llmtrain.rollout.local.ways import way_of

LARGE = SMALL | {"vocab_size": 5000, "num_hidden_layers": 9, "intermediate_size": 500, "max_position_embeddings": 4096}


ENCODER = {"vocab_size": 96, "hidden_size": 32, "num_attention_heads": 2, "dim_head": 16, "dim_ff": 64}
ENCODER |= {"num_hidden_layers": 1}


class Mixing(nn.Module):
    """A mixer that leaks: each token gets something of the one before, whosever it is."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor) -> Tensor:
        before = nn.functional.pad(hidden, (0, 0, 1, 0))[:, :-1]
        found: Tensor = self.inner(hidden + before)
        return found


class MixingLlama(LlamaForCausalLM):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = Mixing(layer.mlp)


class LateLeak(Mixing):
    """One that leaks by a buffer that is zero in a new model, and so in a small copy."""

    share: Tensor

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self.register_buffer("share", torch.zeros(1))

    def forward(self, hidden: Tensor) -> Tensor:
        before = nn.functional.pad(hidden, (0, 0, 1, 0))[:, :-1]
        found: Tensor = self.inner(hidden + self.share * before)
        return found


class LateLeakLlama(LlamaForCausalLM):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = LateLeak(layer.mlp)


class LateLeakReward(LlamaForSequenceClassification):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = LateLeak(layer.mlp)


class TrainingLeak(Mixing):
    """One that leaks in training only, as a mixer with a faster kernel there may."""

    def forward(self, hidden: Tensor) -> Tensor:
        found: Tensor = super().forward(hidden) if self.training else self.inner(hidden)
        return found


class BlockLeak(Mixing):
    """One that leaks where a block of 64 tokens ends, as a kernel that computes in such blocks may."""

    def forward(self, hidden: Tensor) -> Tensor:
        before = nn.functional.pad(hidden, (0, 0, 1, 0))[:, :-1]
        is_first = torch.arange(hidden.shape[1])[:, None] % 64 == 0
        found: Tensor = self.inner(hidden + before * is_first)
        return found


class BlockLeakLlama(LlamaForCausalLM):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = BlockLeak(layer.mlp)


class TrainingLeakLlama(LlamaForCausalLM):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = nn.Sequential(TrainingLeak(layer.mlp), nn.Dropout(0.1))


class NoisyLlama(LlamaForCausalLM):
    """Its noise in training is no field of its configuration."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.norm.register_forward_hook(
            lambda module, _, output: output + torch.rand_like(output) if module.training else output
        )


def leaking_late(cls: type[PreTrainedModel]) -> PreTrainedModel:
    shape = AutoConfig.for_model("llama", **LARGE | {"num_labels": 1, "pad_token_id": 0})
    model = cls._from_config(shape, attn_implementation=ATTENTION)
    for buffer in (module.share for module in model.modules() if isinstance(module, LateLeak)):
        buffer.fill_(1)
    return model


def of_type(architecture: str, **fields: Any) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    shape = AutoConfig.for_model(architecture, **LARGE | fields)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(shape, attn_implementation=ATTENTION)
    return model


def mixing() -> PreTrainedModel:
    return MixingLlama._from_config(AutoConfig.for_model("llama", **LARGE), attn_implementation=ATTENTION)


def first(model: PreTrainedModel, max_seq_len: int = 2048) -> Path:
    return next(paths(model, "segments", max_seq_len, run_model))


def test_a_mixer_that_leaks_runs_per_document() -> None:
    model = mixing()
    assert "outputs differ" in str(Trial(model, 2048, run_model).fault(Path("segments")))
    assert first(model).by_groups == {Mixing: "padded"}


def test_a_mixer_that_leaks_in_training_only_runs_per_document() -> None:
    model = TrainingLeakLlama._from_config(AutoConfig.for_model("llama", **LARGE), attn_implementation=ATTENTION)
    assert first(model).by_groups == {TrainingLeak: "padded"}


def test_a_mixer_that_leaks_between_blocks_only_is_found() -> None:
    model = BlockLeakLlama._from_config(AutoConfig.for_model("llama", **LARGE), attn_implementation=ATTENTION)
    assert "outputs differ" in str(Trial(model, 2048, run_model).fault(Path("segments")))
    assert first(model).kernel == "padded"


def test_noise_in_training_is_no_fault_and_leaves_the_generator() -> None:
    model = NoisyLlama._from_config(AutoConfig.for_model("llama", **LARGE), attn_implementation=ATTENTION)
    before = torch.get_rng_state()
    assert first(model) == Path("segments")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_window_that_packs_ignore_takes_rows() -> None:
    """Of 1,024 tokens: longer than any document of a check that does not lower it."""
    model = of_type("qwen2_moe", **EXPERTS | WINDOWS | {"sliding_window": 1024}, num_hidden_layers=2)
    assert "outputs differ" in str(Trial(model, 2048, run_model).fault(Path("segments")))
    assert first(model).kernel == "padded"
    assert first(model, max_seq_len=1024).kernel == "segments"  # no document is past the window


def test_attention_by_a_tokens_place_in_a_pack_takes_rows() -> None:
    """Llama 4 tempers attention by floor_scale tokens, 8,192, which no document of the run need be past: packs are."""
    fields: dict[str, Any] = {
        "intermediate_size_mlp": 64,
        "num_local_experts": 2,
        "moe_layers": [],
        "no_rope_layers": [1, 0],
    }
    model = of_type("llama4_text", **fields, num_hidden_layers=2, floor_scale=8192, attention_chunk_size=8192)
    assert "outputs differ" in str(Trial(model, 1024, run_model).fault(Path("segments")))
    assert first(model, max_seq_len=1024).kernel == "padded"


def test_rope_by_the_length_of_the_pack_runs_per_length() -> None:
    bound = {"original_max_position_embeddings": 1024}
    model = of_type("phi3", rope_parameters=longrope(16) | bound, **bound)
    path = first(model)
    assert [(cls.__name__, grouping) for cls, grouping in path.by_groups.items()] == [("Phi3RotaryEmbedding", "equal")]
    trial = Trial(model, 2048, run_model)
    assert trial.fault(Path("padded", {}, "sdpa")) is not None  # padding does not help
    assert trial.fault(Path("equal", {}, "sdpa")) is None
    assert not first(model, max_seq_len=1024).by_groups


def test_what_is_wrong_only_in_its_gradients_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = of_type("llama")
    trial = Trial(model, 2048, run_model)
    trial._run = lambda each, inputs: run_model(each, inputs) + 0 * each.lm_head.weight.sum()
    assert trial.fault(Path("segments")) is None

    def half(each: Any, inputs: Any) -> Tensor:
        logits = run_model(each, inputs)
        return logits.detach() + 0.5 * (logits - logits.detach())

    trial._run = half
    assert "the gradient of" in str(trial.fault(Path("segments")))


def test_a_small_copy_is_small_and_has_every_kind_of_layer() -> None:
    kinds = ["sliding_attention"] * 3 + ["full_attention"] + ["sliding_attention"] * 5
    model = of_type("gemma3_text", layer_types=kinds, sliding_window=512, query_pre_attn_scalar=8)
    small = small_copy(model, 2048, ATTENTION)
    assert small.config.layer_types == kinds[:4]
    assert small.config.sliding_window == BOUND
    assert sum(each.numel() for each in small.parameters()) < sum(each.numel() for each in model.parameters()) / 5
    assert model.config.sliding_window == 512 and len(model.model.layers) == 9


def test_a_model_that_is_packed_rightly_has_no_leak() -> None:
    trial = Trial(of_type("llama"), 2048, run_model)
    assert trial.leaking("segments") == {}
    assert leaking_class(nn.Identity(), lambda lengths: None, (3, 2), (4, 2)) is None


def test_a_path_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = of_type("llama", num_hidden_layers=2)
    path = first(model)
    monkeypatch.setattr(choose, "Trial", None)
    assert first(model) == path


def test_a_model_generates_on_the_path_that_its_own_weights_allow() -> None:
    model = leaking_late(LateLeakLlama)
    assert first(model) == Path("segments")
    assert wrap_causal_lm(model, "segments", 2048, torch.device("cpu")).kernel == "padded"
    assert way_of(model) != "packs"


def test_a_finished_reward_model_is_on_the_path_that_its_own_weights_allow(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Classifier(
        leaking_late(LateLeakReward).eval(), AutoTokenizer.from_pretrained(write_tokenizer(tmp_path)), True
    )
    monkeypatch.setattr(reward, "open_classifier", lambda folder: found)
    assert load_reward_model(tmp_path)[0].kernel == "padded"


def test_running_out_of_memory_is_no_fault_of_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    model = of_type("llama")
    trial = Trial(model, 2048, run_model)

    def run_out(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    trial._run = run_out
    for use in (lambda: trial.fault(Path("segments")), lambda: trial.leaking("segments")):
        with pytest.raises(torch.OutOfMemoryError):
            use()
    monkeypatch.setattr(type(model), "_from_config", run_out)
    with pytest.raises(torch.OutOfMemoryError):
        small_copy(model, 2048, ATTENTION)


def test_a_small_copy_leaves_the_generators_of_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    forked: list[Any] = []
    fork_rng = torch.random.fork_rng

    def spy(devices: list[torch.device], **named: Any) -> Any:
        forked.append(devices)
        return fork_rng(devices, **named)

    monkeypatch.setattr(torch.random, "fork_rng", spy)
    monkeypatch.setattr(torch, "manual_seed", None)  # it seeds all devices
    model = of_type("llama")
    before = torch.get_rng_state()
    small_copy(model, 2048, ATTENTION)
    assert forked == [[]]
    assert torch.equal(torch.get_rng_state(), before)


def test_tasks_are_measured_up_to_the_length_at_which_the_path_is_right() -> None:
    bound = {"original_max_position_embeddings": 1024}
    changing, fixed = of_type("phi3", rope_parameters=longrope(16) | bound, **bound), of_type("llama")
    for model, length, expected in ((changing, 1024, 1024), (changing, 2048, 4096), (fixed, 1024, 4096)):
        module = wrap_causal_lm(model, "segments", length, torch.device("cpu"))
        assert trained_subject(model, None, module, length).max_tokens == expected  # type: ignore[arg-type]


def test_shards_get_equal_numbers_of_calls() -> None:
    mixers, equal = Path("segments", {Mixing: "padded"}), Path("segments", {Mixing: "equal"}, needs_equal=True)
    assert mixers.for_shards("modules").by_groups == {Mixing: "fixed"}
    assert Path("padded").for_shards("modules").kernel == Path("padded").for_shards("layers").kernel == "fixed"
    assert [path.for_shards("layers") for path in (mixers, equal)] == [mixers, equal]
    for path, sharding in ((equal, "modules"), (Path("equal"), "modules"), (Path("equal"), "layers")):
        with pytest.raises(ValueError, match=r"\((ZeRO-3|FSDP2)\).*take DDP, ZeRO-1 or ZeRO-2$"):
            path.for_shards(sharding)


def test_a_model_that_sees_later_tokens_is_refused() -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("cpmant", **ENCODER))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    with pytest.raises(ValueError, match=r"^cpmant: its outputs depend on later tokens, as an encoder's do"):
        wrap_causal_lm(model, "segments", 64, torch.device("cpu"))
