"""Noise is a pure function, and tokens drawn with it follow their distribution to the last one of the tail."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from llmtrain.rollout.engine import Sampling
from llmtrain.rollout.local.noise import exponentials
from llmtrain.rollout.local.sampling import BLOCK, draw, noise_count

ONE = Sampling(max_new_tokens=1)


def noise_for(logits: Tensor, num: int) -> Tensor:
    """Noise of `num` samples, for a vocabulary as large as that of `logits`; (num, noise)."""
    return exponentials(0, 0, range(num), [0] * num, noise_count(logits.shape[-1]))


def counts(logits: Tensor, num: int, settings: Sampling = ONE) -> Tensor:
    """How often each token of one distribution is drawn by `num` samples; (vocab,)."""
    parts = noise_for(logits, num).split(500)
    drawn = [draw(logits.expand(len(part), -1), part, settings)[0] for part in parts]
    return torch.bincount(torch.cat(drawn), minlength=logits.shape[0])


def chi_square(observed: Tensor, probabilities: Tensor) -> float:
    """The statistic over tokens, which are taken together in the tail where fewer than ten are expected."""
    expected = observed.sum() * probabilities.double()
    common = expected >= 10
    rest = torch.stack([observed[~common].sum().double(), expected[~common].sum()])
    statistic = ((observed - expected) ** 2 / expected)[common].sum()
    return float(statistic + (rest[0] - rest[1]) ** 2 / rest[1].clamp(min=1.0))


def chi_square_bound(degrees: int) -> float:
    """Above the statistic's 99.9 % quantile, by Wilson and Hilferty's approximation."""
    if degrees == 0:
        return 0.0
    part = 2 / (9 * degrees)
    return degrees * (1 - part + 3.0902 * part**0.5) ** 3 + 1


def warped(logits: Tensor, settings: Sampling) -> Tensor:
    """transformers' own temperature, top-k and top-p; (rows, vocab) logprobs."""
    ids: Tensor = torch.zeros(0, dtype=torch.long)
    logits = TemperatureLogitsWarper(settings.temperature)(ids, logits)
    if settings.top_k is not None:
        logits = TopKLogitsWarper(settings.top_k)(ids, logits)
    return TopPLogitsWarper(settings.top_p)(ids, logits).log_softmax(-1)


def test_noise_does_not_depend_on_the_other_rows() -> None:
    together = exponentials(3, 5, [7, 1, 9], [0, 4, 2], 6)
    assert torch.equal(together[2:], exponentials(3, 5, [9], [2], 6))
    assert torch.equal(together[:, :4], exponentials(3, 5, [7, 1, 9], [0, 4, 2], 4))


@pytest.mark.parametrize("other", [(4, 5, 7, 2), (3, 6, 7, 2), (3, 5, 8, 2), (3, 5, 7, 3)])
def test_another_seed_rollout_sample_or_position_has_other_noise(other: tuple[int, int, int, int]) -> None:
    seed, rollout, sample, position = other
    here = exponentials(3, 5, [7], [2], 100)
    assert not torch.isin(exponentials(seed, rollout, [sample], [position], 100), here).any()


def test_noise_is_the_same_in_every_version() -> None:
    found = exponentials(1, 2, [3], [4], 3)
    expected = torch.tensor([[1.037230894082904, 0.1497056979918146, 0.605553154579944]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)


def test_noise_is_exponential_over_samples_positions_and_numbers() -> None:
    noise = torch.stack([exponentials(0, 0, range(200), [position] * 200, 20) for position in range(20)])
    assert float(noise.min()) > 0
    for numbers in (noise.flatten(), noise[0].flatten(), noise[:, 0].flatten(), noise[..., 0].flatten()):
        bins = torch.histc(1 - torch.exp(-numbers), 10, 0, 1)
        expected = numbers.numel() / 10
        assert float(((bins - expected) ** 2 / expected).sum()) < 27.9  # chi-square, 9 degrees of freedom, p = 0.001


def test_drawn_tokens_follow_the_distribution() -> None:
    logits = torch.randn(30, generator=torch.Generator().manual_seed(0))
    observed = counts(logits, 20_000)
    assert chi_square(observed, logits.softmax(-1)) < 58.3  # 29 degrees of freedom, p = 0.001


def test_every_block_and_every_place_in_it_gets_its_share() -> None:
    logits = 2 * torch.randn(3 * BLOCK + 44, generator=torch.Generator().manual_seed(0))
    observed, expected = counts(logits, 20_000), logits.softmax(-1)
    num_blocks = noise_count(len(logits)) - BLOCK
    padding = num_blocks * BLOCK - len(logits)
    padded = [torch.nn.functional.pad(values, (0, padding)).view(num_blocks, BLOCK) for values in (observed, expected)]
    of_blocks, of_places = ([values.sum(axis) for values in padded] for axis in (1, 0))
    assert chi_square(*of_blocks) < 16.3  # 3 degrees of freedom, p = 0.001
    assert chi_square(*of_places) < 330.6  # 255 degrees of freedom, p = 0.001


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
    drawn, kept = counts(logits, 4_000, settings), ~expected.isinf()
    assert not drawn[~kept].any()
    assert chi_square(drawn[kept], expected[kept].exp()) <= chi_square_bound(int(kept.sum()) - 1)
    token_ids, logprobs, _ = draw(logits.expand(50, -1), noise_for(logits, 50), settings)
    torch.testing.assert_close(logprobs, expected[token_ids], rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", [Sampling(1, top_k=5), Sampling(1, top_p=0.9), Sampling(1, 0.7, 0.8, 12)])
def test_what_a_token_was_drawn_among_is_what_the_filters_keep(settings: Sampling) -> None:
    logits = 2 * torch.randn(6, 200, generator=torch.Generator().manual_seed(1))
    token_ids, _, mask = draw(logits, noise_for(logits, 6), settings)
    assert mask is not None
    for row, ids in enumerate(mask.ids.split(mask.counts)):
        assert ids.tolist() == warped(logits[row : row + 1], settings)[0].isfinite().nonzero()[:, 0].tolist()
        assert int(token_ids[row]) in ids


def test_a_draw_from_the_whole_vocabulary_keeps_nothing_back() -> None:
    logits = torch.randn(2, 50)
    assert draw(logits, noise_for(logits, 2), ONE).sampling_mask is None
    assert draw(logits, noise_for(logits, 2), Sampling(1, temperature=0, top_k=5)).sampling_mask is None


def test_equally_likely_tokens_at_the_bound_are_all_kept() -> None:
    drawn = counts(torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0]), 1_000, Sampling(1, top_k=2))
    assert (drawn > 0).tolist() == [True, True, True, True, False]


def test_no_noise_points_to_an_impossible_token() -> None:
    logits = torch.full((1, 1_000), float("-inf"))
    logits[0, :3] = torch.tensor([0.1, 0.2, 0.3])
    smallest = torch.full((1, noise_count(1_000)), 2.0**-54, dtype=torch.float64)
    for noise in (smallest, smallest * 2.0**60):
        token_ids, logprobs, _ = draw(logits, noise, ONE)
        assert token_ids.tolist() == [2] and bool(logprobs.isfinite().all())


def test_temperature_zero_takes_the_likeliest_token() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(2))
    token_ids, logprobs, _ = draw(logits, noise_for(logits, 4), Sampling(1, temperature=0))
    assert torch.equal(token_ids, logits.argmax(-1))
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).amax(-1))


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    logits = torch.randn(9, 320, generator=torch.Generator().manual_seed(3))
    settings = Sampling(1, temperature=0.8, top_p=0.95)
    noise = noise_for(logits, 9)
    together = draw(logits, noise, settings)
    for row in range(9):
        alone = draw(logits[row : row + 1], noise[row : row + 1], settings)
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
