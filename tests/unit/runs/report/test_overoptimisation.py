"""Signs of over-optimisation, each on rows that have it and on rows that do not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from llmtrain.runs.record import RunRecord
from llmtrain.runs.report.overoptimisation import (
    entropy_collapsed,
    held_out_score_falls,
    kl_without_gain,
    length_explains_reward,
    one_reward_falls,
    repeats_itself,
    signs,
)
from llmtrain.runs.report.parts_of_run import clear_change, parts
from llmtrain.runs.report.responses import (
    Responses,
    distinct_share,
    first_and_last,
    length_correlation,
    repeated_share,
)
from llmtrain.runs.report.traded import summary
from llmtrain.runs.rows import Rows

STEPS = 100
Curve = Callable[[float], float]


def record(
    evaluations: Curve | None = None,
    samples: Sequence[Mapping[str, Any]] = (),
    policy: Mapping[str, Any] | None = None,
    **curves: Curve,
) -> RunRecord:
    """A policy run whose fields follow curves of the part that is done, with noise of 0.01."""
    drawn = np.random.default_rng(0)
    train = [
        {
            "step": step,
            **{name.replace("__", "/"): at(step / STEPS) + drawn.normal(0, 0.01) for name, at in curves.items()},
        }
        for step in range(1, STEPS + 1)
    ]
    held_out = []
    for step in range(0, STEPS + 1, 10) if evaluations is not None else ():
        score = evaluations(step / STEPS)
        held_out.append({"step": step, "eval_loss": -score, "eval_score": score})
        held_out[-1] |= {"eval_score_low": score - 0.05, "eval_score_high": score + 0.05}
    return RunRecord(
        folder=Path("run"),
        recipe="policy",
        config={"policy": {"kl_coef": 0.05} if policy is None else policy},
        environment={},
        ledger={},
        train_rows=Rows(train),
        eval_rows=Rows(held_out),
        events=(),
        samples=samples,
        evaluations={},
        reward_card={},
        is_finished=True,
        writer=None,
        problems=(),
    )


def up(done: float) -> float:
    return done


def arch(done: float) -> float:
    """Up to 1 in the middle, and down again."""
    return 1 - 4 * (done - 0.5) ** 2


def flat(done: float) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("held_out", "training", "state", "step"),
    [
        (arch, up, "seen", 50),
        (up, up, "not seen", None),
        (arch, arch, "not seen", None),  # both fall: unstable
        (lambda done: 1 + 0.03 * arch(done), up, "not seen", None),  # within the intervals
        (None, up, "unknown", None),
    ],
    ids=["planted", "healthy", "unstable", "noise", "nothing held out"],
)
def test_a_held_out_score_that_falls_while_training_rises(
    held_out: Curve | None, training: Curve, state: str, step: int | None
) -> None:
    found = held_out_score_falls(record(held_out, rollout_score=training))
    assert (found.state, found.step) == (state, step), found.evidence


@pytest.mark.parametrize(
    ("first", "second", "state"), [(arch, lambda done: 3 * done, "seen"), (up, up, "not seen"), (flat, up, "not seen")]
)
def test_one_of_several_rewards_that_falls(first: Curve, second: Curve, state: str) -> None:
    total = {"rollout_score": lambda done: first(done) + second(done)}
    found = one_reward_falls(record(rollout_score__good=first, rollout_score__kind=second, **total))
    assert found.state == state, found.evidence
    assert (found.step is not None and 40 <= found.step <= 60 and "good: " in found.evidence) == (state == "seen")


def test_a_single_reward_has_no_other_to_fall() -> None:
    assert one_reward_falls(record(rollout_score=up)).state == "unknown"


@pytest.mark.parametrize(
    ("policy", "held_out", "kl", "state"),
    [
        ({"kl_coef": 0.05, "kl_budget": 3.0}, up, lambda done: 8 * done, "seen"),
        ({"kl_coef": 0.05, "kl_budget": 30.0}, up, lambda done: 8 * done, "not seen"),
        ({"kl_coef": 0.05, "kl_target": 2.0}, up, lambda done: 8 * done, "seen"),
        ({"kl_coef": 0.05}, arch, lambda done: 8 * done, "seen"),  # after the best score it still grows
        ({"kl_coef": 0.05}, arch, lambda done: min(4.0, 8 * done), "not seen"),
        ({"kl_coef": 0.05}, None, lambda done: 8 * done, "unknown"),
    ],
)
def test_a_kl_that_buys_nothing(policy: Mapping[str, Any], held_out: Curve | None, kl: Curve, state: str) -> None:
    found = kl_without_gain(record(held_out, policy=policy, rollout_score=up, rollout_kl=kl))
    assert found.state == state, found.evidence


def test_without_a_reference_there_is_no_kl() -> None:
    found = kl_without_gain(record(up, policy={"kl_coef": 0.0}, rollout_score=up))
    assert found.state == "unknown" and "no reference" in found.evidence


def rollouts(response: Callable[[float, int], tuple[str, float]], prompts: int = 1) -> list[dict[str, Any]]:
    """Samples of twenty rollouts of forty responses; `response` gives text and score by part done and number."""
    rows = []
    for rollout in range(20):
        for number in range(40):
            text, score = response(rollout / 19, number)
            prompt = [{"role": "user", "content": f"{number % prompts}"}]
            rows.append({"rollout": rollout, "prompt": prompt, "response": text, "score": score})
    return rows


@pytest.mark.parametrize(
    ("tokens", "pays", "state"),
    [(lambda done: 10 + 20 * done, True, "seen"), (lambda done: 10.0, True, "not seen"), (up, False, "not seen")],
    ids=["longer and paid for", "no drift", "longer for nothing"],
)
def test_length_that_explains_the_reward(tokens: Curve, pays: bool, state: str) -> None:
    drawn = np.random.default_rng(1)
    samples = rollouts(lambda done, n: ("x" * (5 + n), float(n if pays else drawn.normal())))
    found = length_explains_reward(record(samples=samples, rollout_response_tokens=tokens))
    assert found.state == state, found.evidence


def test_text_that_comes_to_repeat_itself() -> None:
    def response(done: float, number: int) -> tuple[str, float]:
        return " ".join(f"w{word % (30 - round(26 * done))} {number}" for word in range(30)), 0.0

    assert repeats_itself(record(samples=rollouts(response))).state == "seen"
    assert repeats_itself(record(samples=rollouts(lambda done, n: response(0.0, n)))).state == "not seen"
    assert repeats_itself(record(samples=rollouts(lambda done, n: ("two words", 0.0)))).state == "unknown"


def test_an_entropy_that_collapses() -> None:
    assert entropy_collapsed(record(entropy=lambda done: 3 * math.exp(-4 * done))).state == "seen"
    assert entropy_collapsed(record(entropy=lambda done: 3 - 2 * done)).state == "not seen"


def test_a_run_without_rows_has_no_sign_that_is_seen_or_not() -> None:
    empty = record(policy={"kl_coef": 0.05})
    assert {each.state for each in signs(empty)} == {"unknown"}
    assert "Too little is logged" in summary(empty, list(signs(empty)))


def test_the_summary_names_the_step_to_stop_at() -> None:
    run = record(arch, rollout_score=up, rollout_kl=lambda done: 8 * done)
    text = summary(run, list(signs(run)))
    assert "The reward is over-optimised" in text and "Stop at about step 50." in text
    healthy = record(up, rollout_score=up, rollout_kl=lambda done: 8 * done)
    assert "none is seen" in summary(healthy, list(signs(healthy)))


def test_parts_are_means_with_standard_errors_and_repeated_rows_count_once() -> None:
    values = [float(value) for value in np.random.default_rng(2).normal(size=40)]
    rows = Rows([{"step": step, "x": values[step // 2]} for step in range(80)])
    found = parts(rows, "x")
    assert len(found) == 10 and found[0].mean == pytest.approx(np.mean(values[:4]))
    assert found[0].error == pytest.approx(stats.sem(values[:4]))
    assert parts(Rows([{"step": step, "x": step} for step in range(5)]), "x") == []
    assert clear_change(found[0], found[0]) == 0.0


def test_the_correlation_with_length_is_within_prompts() -> None:
    rows = [
        {"rollout": 0, "prompt": prompt, "response": "x" * length, "score": score}
        for prompt, lengths, scores in (("a", (100, 110, 120), (3, 2, 1)), ("b", (10, 20, 30), (-1, -2, -3)))
        for length, score in zip(lengths, scores, strict=True)
    ]
    found, count = length_correlation(Responses((0, 0), rows))
    assert (found, count) == (pytest.approx(-1.0), 6)  # over all six, longer answers would score higher


def test_shares_of_repeated_and_of_distinct_answers() -> None:
    def of(*texts: str) -> Responses:
        return Responses((0, 0), [{"rollout": 0, "prompt": "p", "response": text} for text in texts])

    assert repeated_share(of("a b c a b c a b c")) == pytest.approx(4 / 7)
    assert math.isnan(repeated_share(of("a b")))
    assert distinct_share(of("x", "x", "y", "x")) == 0.5 and math.isnan(distinct_share(of("x")))


def test_the_first_and_last_rollouts_are_a_tenth_each() -> None:
    found = first_and_last(rollouts(lambda done, n: ("x", 0.0)))
    assert found is not None and [each.rollouts for each in found] == [(0, 1), (18, 19)]
    assert len(found[0].rows) == 80 and first_and_last([]) is None
