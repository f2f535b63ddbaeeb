"""Logprobs and entropies in chunks are those of whole logits, and so are their gradients."""

from __future__ import annotations

import pytest
import torch

from llmtrain.batch import SamplingMask
from llmtrain.models.heads import chunks as chunking
from llmtrain.models.heads import logprobs as token_logprobs
from llmtrain.models.heads.head import Head
from llmtrain.models.heads.logprobs import LogprobOptions, TokenLogprobs, logits_logprobs


@pytest.mark.parametrize("trains_entropy", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_are_those_of_whole_logits(
    monkeypatch: pytest.MonkeyPatch, temperature: float, bias: bool, frozen: bool, trains_entropy: bool
) -> None:
    monkeypatch.setattr(chunking, "MIN_CHUNK_TOKENS", 64)  # chunks of as many
    monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", 1)
    torch.manual_seed(0)
    head = Head(8, 11, bias=bias).double().requires_grad_(not frozen)
    hidden = torch.randn(150, 8, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(11, (150,))
    weights = torch.randn(2, 150)

    def gradients(said: TokenLogprobs) -> list[torch.Tensor]:
        loss = (said.logprobs * weights[0]).sum()
        if trains_entropy:
            loss = loss + (said.entropies * weights[1]).sum()
        return list(torch.autograd.grad(loss, [hidden, *([] if frozen else head.parameters())]))

    chunked = head.logprobs(hidden, labels, LogprobOptions(temperature, trains_entropy=trains_entropy))
    assert chunked.entropies.requires_grad is trains_entropy
    whole = logits_logprobs(head(hidden), labels, LogprobOptions(temperature))
    torch.testing.assert_close(chunked.logprobs, whole.logprobs, rtol=0, atol=1e-6)
    torch.testing.assert_close(chunked.entropies, whole.entropies, rtol=0, atol=1e-6)
    for one, other in zip(gradients(chunked), gradients(whole), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_under_autocast_the_gradient_is_the_same_wherever_backward_runs(frozen: bool) -> None:
    torch.manual_seed(0)
    head, labels = Head(32, 50).requires_grad_(not frozen), torch.randint(50, (70,))
    hidden = torch.randn(70, 32, requires_grad=True)

    def gradients(in_autocast: bool) -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            said = head.logprobs(hidden, labels, LogprobOptions(0.9))
        with torch.autocast("cpu", torch.bfloat16, enabled=in_autocast):
            trained = [hidden, *([] if frozen else head.parameters())]
            return list(torch.autograd.grad((said.logprobs + said.entropies).sum(), trained))

    for outside, inside in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(outside, inside)


def some_mask(num_tokens: int, vocab: int, labels: torch.Tensor) -> SamplingMask:
    """A few tokens of the vocabulary for each, the label among them."""
    rows = torch.rand(num_tokens, vocab, generator=torch.Generator().manual_seed(1)) < 0.3
    rows[torch.arange(num_tokens), labels] = True
    return SamplingMask(rows.nonzero()[:, 1].int(), tuple(rows.sum(-1).tolist()))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_among_kept_tokens_values_and_gradients_are_those_of_logits_over_these_alone(
    monkeypatch: pytest.MonkeyPatch, temperature: float, frozen: bool
) -> None:
    monkeypatch.setattr(chunking, "MIN_CHUNK_TOKENS", 64)  # chunks of as many
    monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", 1)
    torch.manual_seed(0)
    head = Head(8, 11).double().requires_grad_(not frozen)
    hidden = torch.randn(150, 8, dtype=torch.float64, requires_grad=True)
    labels, weights = torch.randint(11, (150,)), torch.randn(2, 150)
    mask = some_mask(150, 11, labels)

    def by_hand() -> TokenLogprobs:
        said = []
        for row, ids, label in zip(head(hidden), mask.ids.long().split(mask.counts), labels, strict=True):
            log_probs = (row[ids] / temperature).log_softmax(-1)
            said.append((log_probs[(ids == label).nonzero()[0, 0]], -(log_probs.exp() * log_probs).sum()))
        return TokenLogprobs(*(torch.stack(column) for column in zip(*said, strict=True)))

    def gradients(said: TokenLogprobs) -> list[torch.Tensor]:
        loss = (said.logprobs * weights[0]).sum() + (said.entropies * weights[1]).sum()
        return list(torch.autograd.grad(loss, [hidden, *([] if frozen else head.parameters())]))

    wanted, chunked = by_hand(), head.logprobs(hidden, labels, LogprobOptions(temperature, mask))
    whole = logits_logprobs(head(hidden), labels, LogprobOptions(temperature, mask))
    for said in (chunked, whole):
        torch.testing.assert_close(said.logprobs.double(), wanted.logprobs, rtol=0, atol=1e-6)
        torch.testing.assert_close(said.entropies.double(), wanted.entropies, rtol=0, atol=1e-6)
    expected = gradients(wanted)
    for said in (chunked, whole):
        for one, other in zip(gradients(said), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_token_drawn_among_itself_alone_has_probability_one_and_no_gradient() -> None:
    head = Head(4, 16, bias=False)
    options = LogprobOptions(sampling_mask=SamplingMask(torch.tensor([0, 5, 15]).int(), (1, 1, 1)))
    said = head.logprobs(torch.randn(3, 4), torch.tensor([0, 5, 15]), options)
    (said.logprobs + said.entropies).sum().backward()
    assert said.logprobs.tolist() == said.entropies.tolist() == [0.0, 0.0, 0.0]
    assert head.weight.grad is not None and not head.weight.grad.any()


def test_a_uniform_policy_has_the_entropy_of_its_vocabulary() -> None:
    head = Head(4, 16, bias=False)
    torch.nn.init.zeros_(head.weight)
    said = head.logprobs(torch.randn(3, 4), torch.tensor([0, 5, 15]))
    torch.testing.assert_close(said.entropies, torch.full((3,), 16.0).log())
    torch.testing.assert_close(said.logprobs, -torch.full((3,), 16.0).log())


def test_no_tokens_give_nothing_but_stay_attached() -> None:
    head = Head(4, 16, bias=False)
    said = head.logprobs(torch.zeros(0, 4, requires_grad=True), torch.zeros(0, dtype=torch.long))
    said.logprobs.sum().backward()
    assert head.weight.grad is not None and not head.weight.grad.any()


def test_in_fp16_the_slopes_of_a_policy_that_is_sure_do_not_underflow() -> None:
    torch.manual_seed(0)
    labels = torch.arange(64)
    head = Head(64, 64, bias=False).requires_grad_(False)
    head.weight.data = torch.eye(64)
    hidden = (torch.eye(64) * 15 + 0.3 * torch.randn(64, 64)).requires_grad_()  # labels have probability 1 - 2e-5
    with torch.autocast("cpu", torch.float16):
        said = head.logprobs(hidden, labels, LogprobOptions(trains_entropy=False))
    (found,) = torch.autograd.grad(said.logprobs.sum(), hidden)
    log_probs = (hidden.half().double() @ head.weight.double()).log_softmax(-1)
    (expected,) = torch.autograd.grad(log_probs[labels, labels].sum(), hidden)
    assert float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).median()) < 0.02


def test_a_second_derivative_is_refused() -> None:
    head = Head(4, 16, bias=False).requires_grad_(False)
    hidden = torch.randn(3, 4, requires_grad=True)
    said = head.logprobs(hidden, torch.tensor([0, 5, 15]))
    (slope,) = torch.autograd.grad((said.logprobs**2).sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_without_gradients_no_slope_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_logprobs, "_along_hidden", None)
    head = Head(4, 16, bias=False).requires_grad_(False)
    with torch.no_grad():
        head.logprobs(torch.randn(3, 4, requires_grad=True), torch.tensor([0, 5, 15]))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    ("dtype", "offset"), [*((torch.float32, x) for x in (0.0, 100.0, 1e4, -1e4)), (torch.bfloat16, -1e3)]
)
def test_logits_far_from_zero_lose_no_digits(dtype: torch.dtype, offset: float, frozen: bool, masked: bool) -> None:
    """Against float64 on the same logits; only the rounding of the logits themselves is forgiven."""
    torch.manual_seed(0)
    head = Head(16, 40).to(dtype).requires_grad_(not frozen)
    head.bias.data.fill_(offset)
    hidden = (8 * torch.randn(30, 16)).to(dtype).requires_grad_()
    labels, weights = torch.randint(40, (30,)), torch.randn(2, 30)
    mask = some_mask(30, 40, labels) if masked else None

    logits = head(hidden).detach().double().requires_grad_()
    among = logits if mask is None else mask.apply(logits.clone())
    log_probs = among.log_softmax(-1)
    wanted = [log_probs[torch.arange(30), labels], -(log_probs.exp() * log_probs).sum(-1)]
    (of_logits,) = torch.autograd.grad(wanted[1], logits, weights[1].double(), retain_graph=True)
    entropy_gradient = of_logits @ head.weight.detach().double()
    (of_logits,) = torch.autograd.grad(wanted[0], logits, weights[0].double())
    logprob_gradient = of_logits @ head.weight.detach().double()

    found = head.logprobs(hidden, labels, LogprobOptions(sampling_mask=mask))
    plain = logits_logprobs(logits.detach().float(), labels, LogprobOptions(sampling_mask=mask))
    for said in (found, plain):
        for one, other in zip(said, wanted, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=2e-6)
    tolerance = 1e-5 if dtype == torch.float32 else 0.01
    for said, weight, expected in zip(found, weights, (logprob_gradient, entropy_gradient), strict=True):
        (gradient,) = torch.autograd.grad(said, hidden, weight, retain_graph=True)
        assert float((gradient - expected).norm()) <= tolerance * float(expected.norm())
