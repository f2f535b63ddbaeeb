"""The reward model: packed equals one by one, scores are of the last token, and what is exported scores the same."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file
from tiny_run import MODEL, write_tokenizer
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaForSequenceClassification,
)

from llmtrain.batch import PackedTokens, PreferencePairs, empty_pairs
from llmtrain.config.adapter import AdapterConfig
from llmtrain.config.sections import ModelConfig, TunedModelConfig
from llmtrain.models.adapters.base import base_facts
from llmtrain.models.adapters.lora import add_adapter
from llmtrain.models.cpu.lora import fuse_adapters
from llmtrain.models.folders.adapter import export_adapter, merge_adapter
from llmtrain.models.folders.card import CardFacts, model_card
from llmtrain.models.folders.kind import REWARD
from llmtrain.models.folders.model import ExportSpec, export_model
from llmtrain.models.folders.origin import Origin
from llmtrain.models.folders.reward import load_reward_model
from llmtrain.models.load import load_model, load_pretrained
from llmtrain.models.param_kinds import parameters_by_kind
from llmtrain.models.wrappers.checks import wrap_reward_model
from llmtrain.models.wrappers.reward_model import RewardModel, pooling_pad_id, score_model
from llmtrain.objectives.reward import PairwiseReward

LENGTHS = (7, 12, 3, 9)
END, START, PAD = 257, 259, 258  # of the tokenizer below
UNTIED = {**MODEL, "tie_word_embeddings": False}
GPT2 = {"architecture": "gpt2", "config": {"n_embd": 32, "n_layer": 2, "n_head": 2}}
CASES: dict[str, dict[str, Any]] = {"llama": {}, "untied": {"config": UNTIED}, "gpt2": GPT2}
LORA = {"kind": "lora", "rank": 4, "alpha": 8}


def write_base(folder: Path, **model: Any) -> Path:
    """A causal model whose tokenizer pads with the token that ends an answer, as chat models do."""
    tokenizer = AutoTokenizer.from_pretrained(
        write_tokenizer(folder, special_tokens=("<|bos|>", "<|im_end|>", "<|pad|>"))
    )
    tokenizer.pad_token = "<|im_end|>"
    tokenizer.save_pretrained(folder)
    base = load_model(ModelConfig(**({"config": MODEL} | model)), tokenizer, max_seq_len=64, seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    base.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Trained:
    """A reward model as training leaves it."""

    module: RewardModel
    tokenizer: Any
    adapter: AdapterConfig | None
    base: dict[str, Any]

    @property
    def weights(self) -> dict[str, Tensor]:
        """What a checkpoint holds."""
        kept = self.module.state_dict()
        buffers = {name: tensor for name, tensor in self.module.named_buffers() if name in kept}
        return {name: p.detach() for name, p in self.module.named_parameters() if p.requires_grad} | buffers


def trained(base: Path, adapter: dict[str, Any] | None = None, new_tokens: tuple[str, ...] = ()) -> Trained:
    """A reward model with weights that are not those it started from."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(list(new_tokens), special_tokens=True)
    new_ids = tuple(tokenizer.convert_tokens_to_ids(list(new_tokens)))
    config, lora = TunedModelConfig(path=str(base)), None if adapter is None else AdapterConfig(**adapter)
    causal = load_pretrained(config, tokenizer, max_seq_len=64, new_token_ids=new_ids)
    if lora is not None:
        add_adapter(causal, lora, new_ids, 0)
    model = score_model(causal, config, pad_token_id=pooling_pad_id(tokenizer, (END,)), seed=0)
    base = base_facts(model)
    fuse_adapters(model)
    module = wrap_reward_model(model, "segments", 64, torch.device("cpu"))
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    module.eval()
    return Trained(module, tokenizer, lora, base)


def documents(new_tokens: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    found = [torch.randint(0, 256, (length,), generator=generator) for length in LENGTHS]
    for document in found:
        document[-1] = END
        if new_tokens:
            document[0] = START
    return found


def packed(texts: list[Tensor]) -> PackedTokens:
    lengths = tuple(len(text) for text in texts)
    ids = torch.cat(texts)
    return PackedTokens(ids, ids, torch.cat([torch.arange(length) for length in lengths]), lengths, 0, ())


def scores(module: nn.Module, texts: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return module(packed(texts))


def loaded_scores(model: Any, texts: list[Tensor]) -> Tensor:
    """A model of transformers' in one padded batch."""
    width, pad = max(len(text) for text in texts), model.config.pad_token_id
    ids = torch.stack([torch.nn.functional.pad(text, (0, width - len(text)), value=pad) for text in texts])
    mask = torch.stack([(torch.arange(width) < len(text)).long() for text in texts])
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=mask).logits[:, 0]


@pytest.mark.parametrize("case", CASES)
def test_packed_conversations_score_as_one_by_one(tmp_path: Path, case: str) -> None:
    module, texts = trained(write_base(tmp_path, **CASES[case])).module, documents()
    alone = torch.cat([scores(module, [text]) for text in texts])
    torch.testing.assert_close(scores(module, texts), alone, rtol=1e-4, atol=1e-5)
    assert alone.std() > 0.01


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
def test_transformers_and_peft_load_what_was_trained(tmp_path: Path, case: str, adapter: dict[str, Any] | None) -> None:
    one = trained(write_base(tmp_path / "base", **CASES[case]), adapter)
    expected, folder = scores(one.module, documents()), tmp_path / "out"
    if one.adapter is None:
        export(one, folder)
        model = AutoModelForSequenceClassification.from_pretrained(folder)
    else:
        export(one, folder, tmp_path / "base")
        pad = AutoTokenizer.from_pretrained(folder).pad_token_id
        model = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1, pad_token_id=pad)
    torch.testing.assert_close(loaded_scores(model, documents()), expected, rtol=1e-4, atol=1e-5)


def export(one: Trained, folder: Path, base: Path | None = None, card: str = "---\n") -> None:
    spec = ExportSpec(one.module.model.config, one.tokenizer, REWARD)
    if one.adapter is None:
        export_model(folder, one.weights, card, spec)
        return
    own = replace(spec, origin=Origin("folder", str(base)), adapter=one.adapter, base=one.base)
    export_adapter(folder, one.weights, card, own)


def test_new_tokens_are_trained_and_exported_with_an_adapter(tmp_path: Path) -> None:
    one = trained(write_base(tmp_path / "base"), LORA, ("<|im_start|>",))
    assert any(name.endswith(".rows") for name in one.weights)
    expected = scores(one.module, documents(new_tokens=True))
    export(one, tmp_path / "out", tmp_path / "base")
    model = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "out", num_labels=1, pad_token_id=PAD)
    torch.testing.assert_close(loaded_scores(model, documents(new_tokens=True)), expected, rtol=1e-4, atol=1e-5)


def test_a_merged_reward_model_scores_as_the_adapter(tmp_path: Path) -> None:
    one = trained(write_base(tmp_path / "base"), LORA)
    export(one, tmp_path / "out", tmp_path / "base")
    merge_adapter(tmp_path / "out", tmp_path / "merged")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(loaded_scores(model, documents()), scores(one.module, documents()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_opens_on_its_own_base_alone(tmp_path: Path, case: str) -> None:
    one = trained(write_base(tmp_path / "base", **CASES[case]), LORA)
    export(one, tmp_path / "out", tmp_path / "base")
    opened, _ = load_reward_model(tmp_path / "out")
    torch.testing.assert_close(scores(opened, documents()), scores(one.module, documents()), rtol=1e-4, atol=1e-5)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        base.get_input_embeddings().weight.mul_(1.5)
    base.save_pretrained(tmp_path / "base")
    for use in (load_reward_model, lambda folder: merge_adapter(folder, tmp_path / "merged")):
        with pytest.raises(ValueError, match=rf"{tmp_path}/out was trained on another base than") as caught:
            use(tmp_path / "out")
        assert "\n" not in str(caught.value)


def test_the_adapter_of_a_language_model_is_no_reward_model(tmp_path: Path) -> None:
    tokenizer, config = AutoTokenizer.from_pretrained(write_base(tmp_path / "base")), AdapterConfig(**LORA)
    causal = load_pretrained(TunedModelConfig(path=str(tmp_path / "base")), tokenizer, max_seq_len=64)
    add_adapter(causal, config, (), 0)
    weights = {f"model.{name}": p.detach() for name, p in causal.named_parameters() if p.requires_grad}
    spec = ExportSpec(causal.config, tokenizer, origin=Origin("folder", str(tmp_path / "base")), adapter=config)
    export_adapter(tmp_path / "out", weights, "", spec)
    with pytest.raises(ValueError, match=r"out: no reward model .*the adapter of a language model"):
        load_reward_model(tmp_path / "out")


def test_the_adapter_folder_holds_the_adapter_and_the_head_only(tmp_path: Path) -> None:
    export(trained(write_base(tmp_path / "base"), LORA), tmp_path / "out", tmp_path / "base")
    names = load_file(tmp_path / "out" / "adapter_model.safetensors").keys()
    assert [name for name in names if ".lora_" not in name] == ["base_model.model.score.weight"]
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["task_type"], config["base_model_name_or_path"]) == ("SEQ_CLS", str(tmp_path / "base"))


def test_padding_is_never_what_ends_an_answer(tmp_path: Path) -> None:
    one = trained(write_base(tmp_path / "base"))
    assert one.module.model.config.pad_token_id == PAD
    export(one, tmp_path / "out")
    assert AutoConfig.from_pretrained(tmp_path / "out").num_labels == 1
    assert AutoTokenizer.from_pretrained(tmp_path / "out").pad_token == "<|pad|>"


def test_a_tokenizer_without_another_special_token_is_refused(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(write_tokenizer(tmp_path, special_tokens=("<|end|>",)))
    with pytest.raises(ValueError, match=r"one more for padding: set data\.chat_template=ours"):
        pooling_pad_id(tokenizer, (256,))


def test_a_new_head_is_small_and_drawn_from_the_seed(tmp_path: Path) -> None:
    base = write_base(tmp_path, config={**MODEL, "hidden_size": 1024, "num_hidden_layers": 1})
    config = TunedModelConfig(path=str(base))
    tokenizer = AutoTokenizer.from_pretrained(base)
    heads = []
    for seed in (0, 0, 1):
        causal = load_pretrained(config, tokenizer, max_seq_len=64)
        heads.append(score_model(causal, config, pad_token_id=PAD, seed=seed).score.weight.detach())
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert float(heads[0].std()) == pytest.approx(1025**-0.5, rel=0.1)


def test_a_reward_model_goes_on_with_its_own_head(tmp_path: Path) -> None:
    one = trained(write_base(tmp_path / "base"))
    export(one, tmp_path / "first")
    config = TunedModelConfig(path=str(tmp_path / "first"))
    causal = load_pretrained(config, one.tokenizer, max_seq_len=64)
    again = wrap_reward_model(
        score_model(causal, config, pad_token_id=PAD, seed=5), "segments", 64, torch.device("cpu")
    )
    again.eval()
    torch.testing.assert_close(scores(again, documents()), scores(one.module, documents()), rtol=1e-4, atol=1e-5)


def test_a_classifier_is_refused(tmp_path: Path) -> None:
    shape = AutoConfig.from_pretrained(write_base(tmp_path / "base"))
    shape.num_labels = 3
    LlamaForSequenceClassification(shape).save_pretrained(tmp_path / "base")
    config = TunedModelConfig(path=str(tmp_path / "base"))
    causal = load_pretrained(config, AutoTokenizer.from_pretrained(tmp_path / "base"), max_seq_len=64)
    with pytest.raises(ValueError, match="a classifier with 3 labels is not a reward model"):
        score_model(causal, config, pad_token_id=PAD, seed=0)


def test_the_head_computes_in_fp32_where_the_trunk_does_not(tmp_path: Path) -> None:
    module = trained(write_base(tmp_path)).module
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert scores(module, documents()).dtype == torch.float32


def test_leaking_attention_is_found_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmtrain.models import trunk
    from llmtrain.models.paths import choose

    plan = trunk.plan_segments
    monkeypatch.setattr(trunk, "plan_segments", lambda lengths, *rest: plan((sum(lengths),), *rest))
    monkeypatch.setattr(choose, "_KNOWN", {})
    module = trained(write_base(tmp_path)).module
    assert module.kernel == "padded"
    assert "slower than packs, as outputs differ by" in module.path.line


def test_every_trained_parameter_has_one_role_and_the_head_is_a_head(tmp_path: Path) -> None:
    model = trained(write_base(tmp_path), LORA).module.model
    roles = parameters_by_kind(model)
    assert roles["head"] == [model.score.weight]
    found = [id(parameter) for members in roles.values() for parameter in members]
    assert sorted(found) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)


def pair_batch(weights: list[float], margins: list[float] | None = None) -> PreferencePairs:
    texts = documents()
    batch = packed(texts)
    return PreferencePairs(
        batch.input_ids,
        batch.labels,
        batch.position_ids,
        (0,) * (len(texts) // 2),
        batch.segment_lengths,
        tuple(len(text) for text in texts),
        torch.tensor(weights),
        None if margins is None else torch.tensor(margins),
        2,
        (0,),
    )


class Given(nn.Module):
    """Gives the scores that it was made with."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, batch: PreferencePairs) -> Tensor:
        return self.values * 1.0


def test_the_loss_is_a_share_of_the_step(tmp_path: Path) -> None:
    batch, totals = pair_batch([1.0, 0.5], [0.25, 1.0]), {"tokens": 0, "pairs": 3.0}
    share, metrics = PairwiseReward(margin=True, centering=0.1).loss(Given([1.0, 0.5, -1.0, 1.0]), batch, totals)
    first = torch.log1p(torch.exp(torch.tensor(-0.25))) + 0.1 * 1.5**2
    second = torch.log1p(torch.exp(torch.tensor(3.0))) + 0.1 * 0.0
    assert float(share.detach()) == pytest.approx(float(first + 0.5 * second) / 3)
    assert float(metrics["accuracy"]) == pytest.approx(1 / 3)
    assert float(metrics["margin"]) == pytest.approx((0.5 - 0.5 * 2) / 3)


def test_margins_count_only_where_they_are_asked_for() -> None:
    totals = {"tokens": 0, "pairs": 2.0}
    losses = [
        PairwiseReward().loss(Given([1.0, 0.0, 1.0, 0.0]), pair_batch([1.0, 1.0], margins), totals)[0]
        for margins in (None, [5.0, 5.0])
    ]
    assert torch.equal(losses[0], losses[1])


def test_counts_are_of_comparisons_and_of_all_tokens() -> None:
    assert PairwiseReward().counts(pair_batch([1.0, 0.5])) == {"tokens": sum(LENGTHS), "pairs": 1.5}
    assert PairwiseReward().counts(empty_pairs()) == {"tokens": 0, "pairs": 0.0}


def test_an_empty_batch_has_a_loss_of_zero_that_reaches_every_parameter(tmp_path: Path) -> None:
    module = trained(write_base(tmp_path), LORA).module
    share, _ = PairwiseReward(centering=0.1).loss(module, empty_pairs(), {"tokens": 9, "pairs": 2.0})
    share.backward()
    gradients = [parameter.grad for parameter in module.parameters() if parameter.requires_grad]
    assert share.detach() == 0.0
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


@pytest.mark.parametrize(("adapter", "loader"), [(None, "AutoModel"), (LORA, "AutoPeftModel")])
def test_the_card_loads_a_model_that_scores(tmp_path: Path, adapter: dict[str, Any] | None, loader: str) -> None:
    one = trained(write_base(tmp_path / "base"), adapter)
    config = {"run": {"dir": "runs/x"}, "data": {"train": [{"path": "a.jsonl"}]}}
    facts = CardFacts(
        config=config,
        ledger={},
        before={},
        after={"eval_accuracy": 0.7},
        num_parameters=7,
        is_adapter=adapter is not None,
        origin=Origin("hub", "org/base", hub_id="org/base"),
        kind=REWARD,
    )
    card = model_card(facts)
    export(one, tmp_path / "out", tmp_path / "base", card)
    written = (tmp_path / "out" / "README.md").read_text()
    assert f"{loader}ForSequenceClassification" in written and "CausalLM" not in written
    assert "text-classification" in written and "reward model" in written and "7 parameters" in written
    assert "eval_accuracy" in written
