"""A mixer that separates documents by the bounds that it is handed runs in packs; one that ignores them does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.lfm2 import modeling_lfm2

from llmtrain.models.adapters.weight_sharing import shared_copy
from llmtrain.models.attention import ATTENTION
from llmtrain.models.paths import choose
from llmtrain.models.paths.path import Path, is_on_plain_packs
from llmtrain.models.wrappers.checks import wrap_causal_lm
from llmtrain.rollout.local.ways import way_of
from tests.parity.test_transformers import SMALL, documents, gradients, packed, stock_loss

CPU = torch.device("cpu")


def convolution(hidden: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor | None) -> Tensor:
    """(1, channels, tokens): each token's own document alone, where `seq_idx` says which that is."""
    width, length = weight.shape[-1], hidden.shape[-1]
    total = torch.zeros_like(hidden)
    for back in range(width):
        before = nn.functional.pad(hidden, (back, 0))[..., :length]
        if seq_idx is not None:
            owner = nn.functional.pad(seq_idx, (back, 0), value=-1)[..., :length]
            before = before * (owner == seq_idx)[:, None]
        total = total + weight[:, width - 1 - back, None] * before
    return total if bias is None else total + bias[:, None]


def honouring(hidden: Tensor, weight: Tensor, bias: Tensor | None = None, **kwargs: Any) -> Tensor:
    return convolution(hidden, weight, bias, kwargs.get("seq_idx"))


def ignoring(hidden: Tensor, weight: Tensor, bias: Tensor | None = None, **_: Any) -> Tensor:
    return convolution(hidden, weight, bias, None)


@pytest.fixture(params=[honouring])
def mixer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """The convolution of LFM2's mixers, as it might be on some device."""
    monkeypatch.setattr(modeling_lfm2, "causal_conv1d_fn", request.param)
    monkeypatch.setattr(choose, "_KNOWN", {})  # paths that were found with another
    return request.param


def make_model(attention: str = ATTENTION) -> PreTrainedModel:
    torch.manual_seed(0)
    shape = AutoConfig.for_model("lfm2", **SMALL | {"layer_types": ["conv", "full_attention"]})
    model = AutoModelForCausalLM.from_config(shape, attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():  # weights large enough for a leak to show
            parameter.mul_(8.0) if parameter.ndim > 1 else None
    return model.eval()


@pytest.mark.parametrize("checkpointed", [False, True])
def test_one_that_honours_them_is_handed_them(mixer: Any, checkpointed: bool) -> None:
    model, stock, texts = make_model(), make_model("eager"), documents()
    module = wrap_causal_lm(model, "segments", 64, CPU)
    assert module.path == Path("segments", hands_bounds=True)
    assert module.path.line.endswith("attention by segments; other layers are handed the documents' bounds")
    assert module.path.for_shards("modules") == module.path
    if checkpointed:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model.train(checkpointed)
    loss = module(packed(texts)).objective
    loss.backward()
    reference = sum((stock_loss(stock, text) for text in texts), torch.zeros(()))
    reference.backward()
    torch.testing.assert_close(loss, reference, rtol=1e-6, atol=1e-5)
    ours = gradients(model)
    for name, grad in gradients(stock).items():
        assert (ours[name] - grad).norm() <= 1e-4 * grad.norm() + 1e-6, name


@pytest.mark.parametrize("mixer", [ignoring], indirect=True)
def test_one_that_ignores_them_runs_per_group(mixer: Any) -> None:
    assert "Lfm2ShortConv per group" in wrap_causal_lm(make_model(), "segments", 64, CPU).path.line


def test_without_kernels_transformers_refuses_them_and_mixers_run_per_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "_KNOWN", {})
    assert "Lfm2ShortConv per group" in wrap_causal_lm(make_model(), "segments", 64, CPU).path.line


def test_copies_are_handed_them_too_and_another_path_ends_it(mixer: Any) -> None:
    model = make_model()
    path = wrap_causal_lm(model, "segments", 64, CPU).path
    twin = shared_copy(model)
    assert not is_on_plain_packs(model) and not is_on_plain_packs(twin) and way_of(model) != "packs"
    assert len(path.put_into(twin)._forward_pre_hooks) == 1
    Path("segments").put_into(twin)
    assert is_on_plain_packs(twin) and not twin.base_model._forward_pre_hooks and not is_on_plain_packs(model)
