"""Noise is a pure function, and tokens drawn with it follow their distribution to the last one of the tail."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from llmtrain.rollout.noise import uniforms
from llmtrain.rollout.sampling import Sampling, draw

ONE = Sampling(max_new_tokens=1)


def grid(num: int) -> Tensor:
    """Noise that visits every part of [0, 1) equally often."""
    return (torch.arange(num, dtype=torch.float64) + 0.5) / num


def counts(logits: Tensor, noise: Tensor, settings: Sampling = ONE) -> Tensor:
    """How often each token of one distribution is drawn; (vocab,)."""
    drawn = [draw(logits.expand(len(part), -1), part, settings)[0] for part in noise.split(500)]
    return torch.bincount(torch.cat(drawn), minlength=logits.shape[0])


def warped(logits: Tensor, settings: Sampling) -> Tensor:
    """transformers' own temperature, top-k and top-p; (rows, vocab) logprobs."""
    ids: Tensor = torch.zeros(0, dtype=torch.long)
    logits = TemperatureLogitsWarper(settings.temperature)(ids, logits)
    if settings.top_k is not None:
        logits = TopKLogitsWarper(settings.top_k)(ids, logits)
    return TopPLogitsWarper(settings.top_p)(ids, logits).log_softmax(-1)


def test_noise_does_not_depend_on_the_other_samples_or_the_number_of_positions() -> None:
    together = uniforms(3, 5, [7, 1, 9], 6)
    assert torch.equal(together[2:], uniforms(3, 5, [9], 6))
    assert torch.equal(together[:, :4], uniforms(3, 5, [7, 1, 9], 4))


@pytest.mark.parametrize("other", [(4, 5, 7), (3, 6, 7), (3, 5, 8)])
def test_another_seed_rollout_or_sample_has_other_noise(other: tuple[int, int, int]) -> None:
    seed, rollout, sample = other
    assert not torch.isin(uniforms(seed, rollout, [sample], 100), uniforms(3, 5, [7], 100)).any()


def test_noise_is_the_same_in_every_version() -> None:
    expected = torch.tensor([[0.7189388877276962, 0.41126597421331446, 0.04623857368614115]], dtype=torch.float64)
    assert torch.equal(uniforms(1, 2, [3], 3), expected)


def test_noise_is_uniform_over_samples_and_positions() -> None:
    noise = uniforms(0, 0, range(200), 100)
    assert float(noise.min()) >= 0 and float(noise.max()) < 1
    for numbers in (noise.flatten(), noise[:, 0], noise[0]):
        bins = torch.histc(numbers.float(), 10, 0, 1)
        expected = numbers.numel() / 10
        assert float(((bins - expected) ** 2 / expected).sum()) < 27.9  # chi-square, 9 degrees of freedom, p = 0.001


def test_drawn_tokens_follow_the_distribution() -> None:
    logits = torch.randn(30, generator=torch.Generator().manual_seed(0))
    noise = uniforms(0, 0, range(20_000), 1)[:, 0]
    expected = 20_000 * logits.double().softmax(-1)
    statistic = float(((counts(logits, noise) - expected) ** 2 / expected).sum())
    assert statistic < 58.3  # chi-square, 29 degrees of freedom, p = 0.001


def test_every_token_of_a_large_vocabulary_gets_its_share() -> None:
    logits = 3 * torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    expected = 10_000 * logits.double().softmax(-1)
    assert float((counts(logits, grid(10_000)) - expected).abs().max()) < 1.01


@pytest.mark.parametrize(
    "settings",
    [
        Sampling(1, temperature=0.7),
        Sampling(1, top_k=5),
        Sampling(1, top_p=0.9),
        Sampling(1, top_p=0.01),
        Sampling(1, temperature=1.3, top_k=40, top_p=0.8),
        Sampling(1, top_p=0.999),
    ],
)
def test_tokens_and_logprobs_are_those_of_transformers_filters(settings: Sampling) -> None:
    logits = 2 * torch.randn(200, generator=torch.Generator().manual_seed(1))
    expected = warped(logits[None], settings)[0]
    drawn = counts(logits, grid(4_000), settings)
    assert float((drawn - 4_000 * expected.double().exp()).abs().max()) < 1.01
    assert not drawn[expected.isinf()].any()
    token_ids, logprobs = draw(logits.expand(50, -1), grid(50), settings)
    torch.testing.assert_close(logprobs, expected[token_ids], rtol=0, atol=1e-5)


def test_equally_likely_tokens_at_the_bound_are_all_kept() -> None:
    drawn = counts(torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0]), grid(1_000), Sampling(1, top_k=2))
    assert (drawn > 0).tolist() == [True, True, True, True, False]


def test_the_largest_noise_does_not_point_past_the_last_possible_token() -> None:
    logits = torch.full((1, 1_000), float("-inf"))
    logits[0, :3] = torch.tensor([0.1, 0.2, 0.3])
    token_ids, logprobs = draw(logits, torch.tensor([1 - 2.0**-53], dtype=torch.float64), ONE)
    assert token_ids.tolist() == [2] and bool(logprobs.isfinite().all())


def test_temperature_zero_takes_the_likeliest_token() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(2))
    token_ids, logprobs = draw(logits, grid(4), Sampling(1, temperature=0))
    assert torch.equal(token_ids, logits.argmax(-1))
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).amax(-1))


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    logits = torch.randn(9, 320, generator=torch.Generator().manual_seed(3))
    settings = Sampling(1, temperature=0.8, top_p=0.95)
    together = draw(logits, grid(9), settings)
    for row in range(9):
        alone = draw(logits[row : row + 1], grid(9)[row : row + 1], settings)
        assert torch.equal(alone[0], together[0][row : row + 1])
        assert torch.equal(alone[1], together[1][row : row + 1])


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temperature": -0.5}, "temperature=-0.5"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"top_k": 0}, "top_k=0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], key: str) -> None:
    with pytest.raises(ValueError, match=rf"rollout\.{key}: must be"):
        Sampling(**{"max_new_tokens": 4} | settings)  # type: ignore[arg-type]
