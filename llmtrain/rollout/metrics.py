"""Metrics of a rollout over all ranks, and its samples as rows."""

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
from llmtrain.rewards.score import logged_rewards
from llmtrain.rollout.experience import Built
from llmtrain.rollout.sample import SampledRollout
from llmtrain.rollout.sample_log import gather_rows


def rollout_metrics(sampled: SampledRollout, built: Built, config: RolloutConfig, ranks: Ranks) -> dict[str, float]:
    """Means over the samples of all ranks. Collective.

    `rollout_score` is the weighted sum of the rewards, over all samples, and `rollout_score/NAME` one of several
    rewards before its weight. `rollout_kl`, nats per response, is over the samples that are trained on.
    `rollout_logprob_difference` is the mean of |training's logprob - the sampler's|, in nats per token. What rewards
    log themselves, `rollout_reward/NAME`, is on the main process alone.
    """
    samples, size = sampled.samples, config.samples_per_prompt
    zero_variance = float((~signal_groups(samples.shaped, size)).sum()) * size if size > 1 else 0.0
    scores, differences = samples.scores.double(), built.differences.double().abs()
    sums = {
        "count": float(len(samples.responses)),
        "score": float(scores.sum()),
        "square": float((scores**2).sum()),
        "shaped": float(samples.shaped.sum()),
        "trained": float(len(sampled.chosen)),
        "kl": float(built.kl.sum()),
        "tokens": float(sum(len(response.response_ids) for response in samples.responses)),
        "terminated": float(sum(response.stopped for response in samples.responses)),
        "zero_variance": zero_variance,
        "compared": float(differences.numel()),
        "difference": float(differences.sum()),
    }
    logged = logged_rewards(samples.by_reward)
    sums |= {f"rollout_score/{name}": sum(x for x in each if x is not None) for name, each in logged.items()}
    sums |= {f"valid/{name}": float(len(each) - each.count(None)) for name, each in samples.by_reward.items()}
    sums |= {f"failed/{name}": float(samples.failed.get(name, 0)) for name in samples.by_reward}
    columns = zip(*samples.by_reward.values(), strict=True)
    sums["unscored"] = float(sum(all(value is None for value in each) for each in columns))
    totals = dict(zip(sums, ranks.sum_floats(list(sums.values())), strict=True))
    largest = max(row[0] for row in ranks.gather_floats([max([0.0, *differences.tolist()])]))
    count, mean = totals["count"], totals["score"] / totals["count"]
    metrics = {
        "rollout_score": mean,
        "rollout_score_std": max(0.0, totals["square"] / count - mean**2) ** 0.5,
        "rollout_shaped_score": totals["shaped"] / count,
        "rollout_kl": totals["kl"] / max(1.0, totals["trained"]),
        "rollout_response_tokens": totals["tokens"] / count,
        "rollout_terminated_ratio": totals["terminated"] / count,
        "rollout_logprob_difference": totals["difference"] / max(1.0, totals["compared"]),
        "rollout_logprob_difference_max": largest,
        "rollout_samples": totals["trained"],
    }
    metrics |= {
        f"rollout_score/{name}": totals[f"rollout_score/{name}"] / max(1.0, totals[f"valid/{name}"]) for name in logged
    }
    for name in samples.by_reward:
        if totals[f"valid/{name}"] < count:
            metrics[f"rollout_abstained/{name}"] = 1 - totals[f"valid/{name}"] / count
        if totals[f"failed/{name}"]:
            metrics[f"rollout_failed/{name}"] = totals[f"failed/{name}"] / count
    if totals["unscored"]:
        metrics["rollout_unscored"] = totals["unscored"] / count
    metrics |= _logged_by_rewards(samples.metrics, ranks)
    if size > 1:
        metrics["rollout_zero_variance_groups"] = totals["zero_variance"] / count
    if config.dynamic_sampling:
        metrics["rollout_sampling_rounds"] = float(sampled.num_rounds)
    return metrics


def _logged_by_rewards(values: Sequence[tuple[str, float]], ranks: Ranks) -> dict[str, float]:
    """The mean of each name that rewards log, on the main process; nothing on the others. Collective."""
    if not ranks.any(bool(values)):
        return {}
    rows = gather_rows(
        [{"number": number, "metric": metric} for number, metric in enumerate(values)], ranks, by="number"
    )
    by_name: dict[str, list[float]] = {}
    for row in rows:
        name, value = row["metric"]
        by_name.setdefault(f"rollout_reward/{name}", []).append(value)
    return {name: sum(each) / len(each) for name, each in by_name.items()}


def explained_variance(packs: Sequence[Experience], ranks: Ranks) -> float:
    """1 - var(returns - values) / var(returns) over the response tokens of all ranks; 0 if all returns are equal.

    1: the critic predicts every return; 0: it does no better than their mean. Collective.
    """
    sums = torch.zeros(5, dtype=torch.float64)
    for pack in packs:
        assert pack.returns is not None and pack.old_values is not None
        returns = pack.returns.double()
        errors = returns - pack.old_values.double()
        columns = [torch.ones_like(returns), returns, returns**2, errors, errors**2]
        sums += torch.stack([column.sum() for column in columns])
    count, *moments = ranks.sum_floats(sums.tolist())
    mean, square, mean_error, square_error = (moment / max(1.0, count) for moment in moments)
    variance = square - mean**2
    return 1 - (square_error - mean_error**2) / variance if variance > 0 else 0.0


def sample_rows(sampled: SampledRollout, kl: Float[Tensor, " chosen"]) -> list[Mapping[str, Any]]:
    """A row for each sample of this rank. `kl` is null if it is not trained on; `scores` are those of several rewards.

    `prompt` and `response` are objects; `sample_log.readable` turns them into text.
    """
    samples = sampled.samples
    by_reward = logged_rewards(samples.by_reward)
    kl_of = dict(zip(sampled.chosen, kl.tolist(), strict=True))
    rows: list[Mapping[str, Any]] = []
    for index, response in enumerate(samples.responses):
        scores = {"scores": {name: _rounded(values[index]) for name, values in by_reward.items()}}
        row = {
            "sample": samples.sample_ids[index],
            "prompt": samples.prompts[index],
            "response": response,
            "score": round(float(samples.scores[index]), 6),
            **(scores if by_reward else {}),
            "shaped_score": round(float(samples.shaped[index]), 6),
            "kl": round(kl_of[index], 6) if index in kl_of else None,
            "stopped": response.stopped,
            **({"logged": samples.extras[index]} if samples.extras[index] else {}),
        }
        rows.append(row)
    return rows


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, 6)
