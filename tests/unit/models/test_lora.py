"""Adapters: what is trained and with which gradients, what is refused, how the base is known again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny_run import MODEL, write_tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from llmtrain.batch import PackedTokens
from llmtrain.config.adapter import AdapterConfig
from llmtrain.config.sections import ModelConfig, PretrainedModelConfig
from llmtrain.models.adapters.base import base_facts
from llmtrain.models.adapters.lora import adapter_report, add_adapter
from llmtrain.models.load import load_model, load_pretrained
from llmtrain.models.wrappers.causal_lm import CausalLMLoss
from llmtrain.models.wrappers.checks import wrap_causal_lm
from llmtrain.train.optim import OPTIMIZER_BYTES

LENGTHS = (7, 4, 9)
NEW_IDS = (259, 260)  # after the 259 tokens of the tiny tokenizer, among the 320 rows of the tiny model
UNTIED = {**MODEL, "tie_word_embeddings": False}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def tiny(tokenizer: PreTrainedTokenizerBase, **fields: Any) -> PreTrainedModel:
    config = ModelConfig(**({"config": MODEL} | fields))
    return load_model(config, tokenizer, max_seq_len=32, seed=0)


def adapted(model: PreTrainedModel, new_ids: Sequence[int] = (), seed: int = 1, **adapter: Any) -> PeftModel:
    """The model with an adapter that is away from its start, where it adds nothing."""
    config = AdapterConfig(**({"kind": "lora", "rank": 4, "alpha": 8} | adapter))
    wrapped = add_adapter(model, config, new_ids, seed)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return wrapped


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def documents(ids: Sequence[int] = ()) -> PackedTokens:
    """Documents of random tokens, `ids` strewn among them; every token but a document's first is trained."""
    input_ids = torch.randint(259, (sum(LENGTHS),), generator=torch.Generator().manual_seed(3))
    for place, token_id in enumerate(ids):
        input_ids[2 + 3 * place] = token_id
    labels = torch.cat([torch.cat([part[1:], torch.tensor([-100])]) for part in input_ids.split(LENGTHS)])
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    return PackedTokens(input_ids, labels, positions, LENGTHS, sum(LENGTHS) - len(LENGTHS), (0,))


def loss_of_peft(model: PeftModel, batch: PackedTokens) -> Tensor:
    """The summed loss that transformers gives through peft's own forward, one document at a time."""
    parts = []
    for document in batch.input_ids.split(batch.segment_lengths):
        parts.append(model(input_ids=document[None], labels=document[None]).loss * (len(document) - 1))
    return torch.stack(parts).sum()


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in trainable(model).items()}


ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"kind": "dora"},
    "two targets": {"target": ["q_proj", "down_proj"]},
}
MODELS: dict[str, dict[str, Any]] = {
    "tied llama": {"config": MODEL},
    "untied llama": {"config": UNTIED},
    "gpt2": {"architecture": "gpt2", "config": {"n_embd": 32, "n_layer": 2, "n_head": 2}},
}


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("new_ids", [(), NEW_IDS], ids=["no new tokens", "new tokens"])
@pytest.mark.parametrize("name", MODELS)
def test_packed_loss_and_gradients_are_those_of_peft(
    tokenizer: PreTrainedTokenizerBase, adapter: str, new_ids: tuple[int, ...], name: str
) -> None:
    if name == "gpt2" and adapter == "two targets":
        adapter = "lora"  # it has other names
    model, batch = tiny(tokenizer, **MODELS[name]), documents(new_ids)
    wrapped = adapted(model, new_ids, **ADAPTERS[adapter])
    model.set_attn_implementation("eager")
    model.eval()
    reference = loss_of_peft(wrapped, batch)
    expected = gradients(model, reference)

    module = wrap_causal_lm(model, "segments", 32, torch.device("cpu"))
    assert not module.whole_logits
    ours = module(batch).objective
    torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-6)
    found = gradients(model, ours)
    assert found.keys() == expected.keys() and len(found) > 0
    for parameter, gradient in found.items():
        torch.testing.assert_close(gradient, expected[parameter], rtol=1e-4, atol=1e-6, msg=parameter)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_gradients_are_the_same_with_recomputed_activations(tokenizer: PreTrainedTokenizerBase, kind: str) -> None:
    model, batch = tiny(tokenizer), documents(NEW_IDS)
    adapted(model, NEW_IDS, kind=kind, dropout=0.2)
    module = wrap_causal_lm(model, "segments", 32, torch.device("cpu"))
    module.train()

    def found() -> dict[str, Tensor]:
        torch.manual_seed(0)
        return gradients(model, module(batch).objective)

    expected = found()
    model.activation_checkpointing_enable({"use_reentrant": False})
    for name, gradient in found().items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


@pytest.mark.parametrize("config", [MODEL, UNTIED], ids=["tied", "untied"])
def test_new_tokens_train_their_rows_and_no_others(tokenizer: PreTrainedTokenizerBase, config: dict[str, Any]) -> None:
    model = tiny(tokenizer, config=config)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    add_adapter(model, AdapterConfig(kind="lora", rank=4), NEW_IDS, 0)
    rows = {name for name in trainable(model) if name.endswith(".rows")}
    assert rows == {"model.embed_tokens.rows"} | ({"lm_head.rows"} if config is UNTIED else set())
    learn(wrap_causal_lm(model, "segments", 32, torch.device("cpu")), documents(NEW_IDS), 1)
    for name, parameter in model.named_parameters():
        if name in rows:
            source = before[name.replace(".rows", ".weight")][list(NEW_IDS)]
            assert (parameter != source).any(dim=1).all(), name  # each row has moved
        elif ".lora_" not in name:
            assert torch.equal(parameter, before[name.replace(".base_layer", "")]), name


def learn(module: CausalLMLoss, batch: PackedTokens, steps: int) -> list[float]:
    """The losses of some steps of AdamW."""
    module.train()
    optimizer, losses = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], 0.02), []
    for _ in range(steps):
        loss = module(batch)
        optimizer.zero_grad()
        loss.objective.backward()
        optimizer.step()
        losses.append(float(loss.cross_entropy) / batch.num_trained)
    return losses


@pytest.mark.parametrize("adapter", ["lora", "rslora", "dora"])
def test_an_adapter_learns(tokenizer: PreTrainedTokenizerBase, adapter: str) -> None:
    model = tiny(tokenizer)
    add_adapter(model, AdapterConfig(**{"kind": "lora", "rank": 4} | ADAPTERS[adapter]), (), 0)
    losses = learn(wrap_causal_lm(model, "segments", 32, torch.device("cpu")), documents(), 10)
    assert losses[-1] < losses[0] - 0.1  # a base of random weights lets it learn slowly


@pytest.mark.parametrize(("rslora", "scale"), [(False, 8 / 4), (True, 8 / 2)])
def test_the_update_is_scaled_by_alpha(tokenizer: PreTrainedTokenizerBase, rslora: bool, scale: float) -> None:
    model = tiny(tokenizer)
    plain = model.model.layers[0].self_attn.q_proj.weight.detach().clone()
    adapted(model, target=["q_proj"], rslora=rslora)
    layer, x = model.model.layers[0].self_attn.q_proj, torch.ones(1, 32)
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.testing.assert_close(layer(x), x @ (plain + scale * up @ down).T)


def test_initialisation_is_a_function_of_the_seed(tokenizer: PreTrainedTokenizerBase) -> None:
    def weights(seed: int) -> list[Tensor]:
        model = tiny(tokenizer)
        torch.rand(seed)  # whatever was drawn before
        add_adapter(model, AdapterConfig(kind="lora"), (), seed)
        return [parameter.detach() for parameter in trainable(model).values()]

    same = zip(weights(3), weights(3), strict=True)
    assert all(torch.equal(one, other) for one, other in same)
    assert not torch.equal(weights(3)[0], weights(4)[0])


def test_a_fresh_adapter_changes_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    model, ids = tiny(tokenizer), documents().input_ids[None]
    model.set_attn_implementation("eager")
    plain = model(ids).logits
    add_adapter(model, AdapterConfig(kind="lora"), NEW_IDS, 0)
    torch.testing.assert_close(model(ids).logits, plain)


def test_adapter_weights_are_fp32_on_a_bf16_base(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny(tokenizer).to(torch.bfloat16)
    add_adapter(model, AdapterConfig(kind="lora"), NEW_IDS, 0)
    assert {parameter.dtype for parameter in trainable(model).values()} == {torch.float32}


def test_all_linear_leaves_out_the_head_and_nothing_else(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny(tokenizer, config=UNTIED)
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    add_adapter(model, AdapterConfig(kind="lora"), (), 0)
    targeted = {name.split(".lora_A")[0] for name in trainable(model) if ".lora_A" in name}
    assert targeted == linear - {"lm_head"}


def test_a_linear_layer_that_only_writes_its_product_otherwise_takes_an_adapter() -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("falcon", **shape))
    assert type(model.transformer.h[0].mlp.dense_h_to_4h).__name__ == "FalconLinear"
    add_adapter(model, AdapterConfig(kind="lora"), (), 0)
    assert [name for name in trainable(model) if "dense_h_to_4h" in name]


def test_a_linear_layer_with_a_forward_of_its_own_takes_no_adapter(tokenizer: PreTrainedTokenizerBase) -> None:
    class GroupedLinear(nn.Linear):
        def forward(self, hidden: Tensor) -> Tensor:
            return super().forward(hidden.flip(-1))

    GroupedLinear.__module__ = "transformers.models.made_up"
    model = tiny(tokenizer)
    for layer in model.model.layers:
        layer.self_attn.o_proj.__class__ = GroupedLinear
    add_adapter(model, AdapterConfig(kind="lora"), (), 0)
    assert not [name for name in trainable(model) if "o_proj" in name]
    with pytest.raises(ValueError, match=r"^adapter\.target=o_proj: this model has no linear layer of that name"):
        add_adapter(model, AdapterConfig(kind="lora", target=["o_proj"]), (), 0)


REFUSED: dict[str, tuple[list[str], str]] = {
    "an unknown name": (["q_prj"], r"^adapter\.target=q_prj: .* it has down_proj, gate_proj, k_proj, o_proj, q_proj"),
    "one of two": (["q_proj", "oproj"], r"^adapter\.target=oproj: this model has no linear layer of that name"),
    "the embedding": (["embed_tokens"], r"^adapter\.target=embed_tokens: this model has no linear layer"),
    "a norm": (["input_layernorm"], r"^adapter\.target=input_layernorm: this model has no linear layer"),
    "the head": (["q_proj", "lm_head"], r"^adapter\.target=lm_head is the output head, .* leave it out$"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_targets_that_cannot_be_adapted_are_refused_by_name(tokenizer: PreTrainedTokenizerBase, case: str) -> None:
    target, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as caught:
        add_adapter(tiny(tokenizer), AdapterConfig(kind="lora", target=target), (), 0)
    assert "\n" not in str(caught.value)


def test_the_report_counts_weights_and_memory(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny(tokenizer)
    total = sum(parameter.numel() for parameter in model.parameters())
    add_adapter(model, AdapterConfig(kind="lora", rank=4, target=["q_proj"]), (), 0)
    num = 3 * 4 * (32 + 32)
    said = adapter_report(model, OPTIMIZER_BYTES["adamw"])
    assert said.startswith(f"training {num} of {total + num:,} weights ({num / (total + num):.2%}, 0.0 MB on disk)")
    assert said.endswith("0.2 MB of weights, 0.0 MB of gradients, 0.0 MB of optimizer state") and "\n" not in said


def test_a_base_has_one_fingerprint_with_and_without_an_adapter(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny(tokenizer)
    plain, known = base_facts(model), base_facts(model, min(NEW_IDS))
    adapted(tiny(tokenizer))
    assert base_facts(adapted(model, kind="dora").get_base_model()) == plain
    assert base_facts(adapted(tiny(tokenizer), NEW_IDS).get_base_model()) == known != plain


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"]
)
def test_another_base_has_another_fingerprint(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    model = tiny(tokenizer)
    before = base_facts(model)
    with torch.no_grad():
        model.get_parameter(name).mul_(1.01)
    assert base_facts(model) != before


def test_one_changed_value_is_another_base(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny(tokenizer)
    before = base_facts(model)
    with torch.no_grad():
        model.get_parameter("model.embed_tokens.weight")[17, 3] += 1e-3  # not among the samples
    assert base_facts(model)["weights"] != before["weights"]


def test_new_tokens_start_at_the_mean_of_the_known_ones(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tiny(tokenizer, config=UNTIED).save_pretrained(tmp_path / "base")
    larger = AutoTokenizer.from_pretrained(write_tokenizer(tmp_path / "tokenizer"))
    larger.add_special_tokens({"additional_special_tokens": [f"<|{i}|>" for i in range(70)]})
    config = PretrainedModelConfig(path=str(tmp_path / "base"))
    ids = range(259, 329)  # 61 of them in rows that the model had to spare
    model = load_pretrained(config, larger, max_seq_len=32, new_token_ids=ids)
    assert model.config.vocab_size == 329
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        mean = module.weight[:259].mean(dim=0)
        torch.testing.assert_close(module.weight[259:], mean.expand(70, -1))
    with pytest.raises(ValueError, match=r"329 tokens but the model only 320 embeddings"):
        load_pretrained(config, larger, max_seq_len=32)
