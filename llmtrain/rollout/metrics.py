"""What a rollout was like: its metrics over all ranks, and its samples one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from llmtrain.batch import Experience
from llmtrain.config.rl import RolloutConfig
from llmtrain.objectives.advantages import signal_groups
from llmtrain.protocols import Ranks
from llmtrain.rewards.score import several
from llmtrain.rollout.sample import Drawn


def rollout_metrics(
    drawn: Drawn,
    kl: Float[Tensor, " kept"],
    gaps: Float[Tensor, " tokens"],
    config: RolloutConfig,
    ranks: Ranks,
) -> dict[str, float]:
    """Means over the samples of all ranks; `gaps`: of logprobs as they were drawn to those of training, in nats.

    `rollout_score` is what the rewards say, of all samples, and `rollout_score/NAME` what each of several says before
    its weight; `rollout_kl` is of those that are trained on. Collective.
    """
    samples, size = drawn.samples, config.samples_per_prompt
    even = float((~signal_groups(samples.shaped, size)).sum()) * size if size > 1 else 0.0
    responses = samples.responses
    scores, gap = samples.scores.double(), gaps.double().abs()
    sums = {
        "count": float(len(responses)),
        "score": float(scores.sum()),
        "square": float((scores**2).sum()),
        "shaped": float(samples.shaped.sum()),
        "kept": float(len(drawn.kept)),
        "kl": float(kl.sum()),
        "tokens": float(sum(len(response.response_ids) for response in responses)),
        "stopped": float(sum(response.stopped for response in responses)),
        "even": even,
        "compared": float(gap.numel()),
        "gap": float(gap.sum()),
    }
    of_terms = {f"rollout_score/{name}": sum(values) for name, values in several(samples.by_term).items()}
    sums |= of_terms
    totals = dict(zip(sums, ranks.sum_floats(list(sums.values())), strict=True))
    count, mean = totals["count"], totals["score"] / totals["count"]
    metrics = {
        "rollout_score": mean,
        "rollout_score_std": max(0.0, totals["square"] / count - mean**2) ** 0.5,
        "rollout_shaped_score": totals["shaped"] / count,
        "rollout_kl": totals["kl"] / max(1.0, totals["kept"]),
        "rollout_response_tokens": totals["tokens"] / count,
        "rollout_stopped": totals["stopped"] / count,
        "rollout_logprob_gap": totals["gap"] / max(1.0, totals["compared"]),
        "rollout_logprob_gap_max": max(row[0] for row in ranks.gather_floats([max([0.0, *gap.tolist()])])),
        "rollout_samples": totals["kept"],
    }
    metrics |= {name: totals[name] / count for name in of_terms}
    if size > 1:
        metrics["rollout_even_groups"] = totals["even"] / count
    if config.drop_even_groups:
        metrics["rollout_rounds"] = float(drawn.num_rounds)
    return metrics


def explained_variance(packs: Sequence[Experience], ranks: Ranks) -> float:
    """1 - var(returns - values) / var(returns), over response tokens of all ranks; 0 where returns are all the same.

    1 of a critic that foresees every return, 0 of one that knows no more than their mean. Collective.
    """
    sums = torch.zeros(5, dtype=torch.float64)
    for pack in packs:
        assert pack.returns is not None and pack.old_values is not None
        returns = pack.returns.double()
        errors = returns - pack.old_values.double()
        parts = [torch.ones_like(returns), returns, returns**2, errors, errors**2]
        sums += torch.stack([part.sum() for part in parts])
    count, *moments = ranks.sum_floats(sums.tolist())
    mean, square, mean_error, square_error = (moment / max(1.0, count) for moment in moments)
    variance = square - mean**2
    return 1 - (square_error - mean_error**2) / variance if variance > 0 else 0.0


def sample_rows(drawn: Drawn, kl: Float[Tensor, " kept"]) -> list[Mapping[str, Any]]:
    """A row for each sample of this rank; one that is not trained on has no KL, one of a single reward no `scores`."""
    samples = drawn.samples
    by_term = several(samples.by_term)
    distances = dict(zip(drawn.kept, kl.tolist(), strict=True))
    return [
        {
            "sample": sample_id,
            "prompt": prompt,
            "response": response,
            "score": round(float(score), 6),
            **({"scores": {name: round(values[index], 6) for name, values in by_term.items()}} if by_term else {}),
            "shaped_score": round(float(shaped), 6),
            "kl": round(distances[index], 6) if index in distances else None,
            "stopped": response.stopped,
        }
        for index, (sample_id, prompt, response, score, shaped) in enumerate(
            zip(samples.sample_ids, samples.prompts, samples.responses, samples.scores, samples.shaped, strict=True)
        )
    ]
