"""What the metrics of a rollout give reason to say: each warning once, with its share, as soon as there is reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from llmtrain.config.rl import ADVANTAGES, PolicyConfig, RolloutConfig
from llmtrain.protocols import Report

MANY = 0.5  # of the samples of a rollout
ROUNDING = 1e-6  # of a mean, to which a deviation of equal scores may come


class Notices:
    """Warnings of a run, those that it has said already left out."""

    def __init__(self, policy: PolicyConfig, rollout: RolloutConfig, report: Report) -> None:
        self._policy, self._rollout, self._report = policy, rollout, report
        self._said: set[str] = set()

    def look_at(self, number: int, metrics: Mapping[str, float]) -> None:
        """Say what is new in the metrics of a rollout."""
        for what, line in self._found(metrics):
            if what not in self._said:
                self._said.add(what)
                self._report(f"warning: rollout {number}: {line}")

    def _found(self, metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        rollout = self._rollout
        cut = 1 - metrics["rollout_terminated_ratio"]
        limit = f"rollout.max_new_tokens={rollout.max_new_tokens}"
        if cut == 1:
            yield "all cut", f"no response ended by itself within {limit}: raise it"
        elif cut >= MANY:
            fate = "are left out of the loss" if rollout.mask_truncated else "are trained as they are"
            yield "many cut", f"{cut:.0%} of the responses were cut at {limit} and {fate}"
        even = metrics.get("rollout_zero_variance_groups", 0.0)
        if ADVANTAGES[self._policy.advantage].needs_groups:
            if even == 1:
                yield "all even", "the samples of each prompt all score the same, so that rewards give no gradient"
            elif even >= MANY:
                yield "many even", f"the samples of {even:.0%} of the prompts all score the same and give no gradient"
        elif metrics["rollout_samples"] > 1 and metrics["rollout_score_std"] <= ROUNDING * abs(
            metrics["rollout_score"]
        ):
            yield "one score", f"all responses score {metrics['rollout_score']:g}"
        if unscored := metrics.get("rollout_unscored", 0.0):
            yield (
                "unscored",
                f"{unscored:.0%} of the responses have no score, as each reward abstained: they count 0",
            )
