"""The chunked loss against torch's own cross-entropy, value and gradient."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from llmtrain.models.heads import chunks as chunking
from llmtrain.models.heads.cross_entropy import logits_loss
from llmtrain.models.heads.head import Head
from llmtrain.protocols import LossOptions

TOKENS, HIDDEN, VOCAB = 150, 12, 33


def parts(bias: bool) -> tuple[torch.Tensor, Head, torch.Tensor]:
    torch.manual_seed(0)
    return (
        torch.randn(TOKENS, HIDDEN, requires_grad=True),
        Head(HIDDEN, VOCAB, bias=bias),
        torch.randint(VOCAB, (TOKENS,)),
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_chunked_loss_and_gradients_equal_autograd(
    monkeypatch: pytest.MonkeyPatch, bias: bool, smoothing: float, z_loss: float
) -> None:
    monkeypatch.setattr(chunking, "MIN_CHUNK_TOKENS", 64)  # three chunks, the last one short
    monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", 1)
    hidden, head, labels = parts(bias)
    options = LossOptions(smoothing, z_loss)
    ours = head(hidden, labels, options)
    (ours.objective * 0.37).backward()
    grads = [hidden.grad, *(parameter.grad for parameter in head.parameters())]
    hidden.grad = None
    head.zero_grad()

    logits = nn.functional.linear(hidden, head.weight, head.bias)
    reference = cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
    reference = reference + z_loss * (logits.logsumexp(-1) ** 2).sum()
    (reference * 0.37).backward()
    torch.testing.assert_close(ours.objective, reference.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.cross_entropy, cross_entropy(logits, labels, reduction="sum").detach())
    assert ours.errors == (logits.argmax(-1) != labels).sum() != 0
    for ours_grad, grad in zip(grads, [hidden.grad, *(p.grad for p in head.parameters())], strict=True):
        torch.testing.assert_close(ours_grad, grad, rtol=1e-4, atol=1e-5)


def test_plain_loss_from_logits_is_the_same_function() -> None:
    hidden, head, labels = parts(True)
    options = LossOptions(0.2, 1e-3)
    plain, chunked = logits_loss(head(hidden), labels, options), head(hidden, labels, options)
    torch.testing.assert_close(plain.objective, chunked.objective)
    assert plain.errors == chunked.errors


@pytest.mark.parametrize("whole", [False, True])
def test_of_several_most_likely_tokens_the_first_is_chosen(whole: bool) -> None:
    head = Head(2, 3, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]))
    hidden = torch.tensor([[1.0, 0.0]] * 3)  # tokens 1 and 2 are equally likely, and more than 0
    for label, errors in ((0, 3), (1, 0), (2, 3)):
        labels = torch.full((3,), label)
        loss = logits_loss(head(hidden), labels, LossOptions()) if whole else head(hidden, labels)
        assert loss.errors == errors


def test_a_model_without_knowledge_is_not_right_by_chance_of_ties() -> None:
    head = Head(HIDDEN, VOCAB, bias=False)
    nn.init.zeros_(head.weight)
    labels = torch.arange(VOCAB)
    assert head(torch.randn(VOCAB, HIDDEN), labels).errors == VOCAB - 1


def test_errors_are_counted_without_gradients_too() -> None:
    hidden, head, labels = parts(True)
    with torch.no_grad():
        assert head(hidden, labels).errors == (head(hidden).argmax(-1) != labels).sum()


def test_no_trained_token_gives_a_zero_that_reaches_every_parameter() -> None:
    hidden, head, labels = parts(True)
    loss = head(hidden[:0], labels[:0])
    assert loss.objective.item() == loss.errors.item() == 0.0
    loss.objective.backward()
    assert hidden.grad is not None and not hidden.grad.any()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in head.parameters())


def test_a_frozen_head_passes_its_gradient_on_and_gets_none() -> None:
    hidden, head, labels = parts(False)
    head.weight.requires_grad_(False)
    head(hidden, labels).objective.backward()
    assert hidden.grad is not None and hidden.grad.any() and head.weight.grad is None
