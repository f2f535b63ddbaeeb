"""The verdict on curves whose right word is known, and what must not change it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmtrain.runs.record import RunRecord
from llmtrain.runs.report.verdict import Verdict, verdict_of
from llmtrain.runs.rows import Rows

STEPS = 200
Curve = Callable[[float], float]


def record(
    train: Curve,
    held_out: Curve,
    *,
    steps: int = STEPS,
    every: int = 10,
    lr: Curve = lambda share: 1e-3,
    epochs: float = 1.0,
    noise: float = 0.0,
    seed: int = 0,
    recipe: str = "pretrain",
    events: Sequence[Mapping[str, Any]] = (),
    is_finished: bool = True,
) -> RunRecord:
    """A run of curves over the share of its steps that are done."""
    drawn = np.random.default_rng(seed)
    train_rows = [
        {
            "step": step,
            "loss": train(step / steps) + noise * float(drawn.normal()),
            "lr": lr(step / steps),
            "epoch": epochs * step / steps,
        }
        for step in range(1, steps + 1)
    ]
    eval_rows = [
        {"step": step, "eval_loss": held_out(step / steps) + noise / 5 * float(drawn.normal())}
        for step in range(0, steps + 1, every)
    ]
    return RunRecord(
        folder=Path("missing"),
        recipe=recipe,
        config={"train": {"steps": steps}},
        environment={},
        ledger={},
        train_rows=Rows(train_rows),
        eval_rows=Rows(eval_rows),
        events=list(events),
        samples=[],
        evaluations={},
        reward_card={},
        is_finished=is_finished,
        problems=[],
    )


def falling(to: float, speed: float, start: float = 6.0) -> Curve:
    return lambda share: to + (start - to) * math.exp(-speed * share)


def straight(start: float, end: float) -> Curve:
    return lambda share: start + (end - start) * share


def turning(best: float, at: float, end: float, start: float = 6.0) -> Curve:
    """Falls to its best at a share of the run, then rises in a straight line."""

    def curve(share: float) -> float:
        if share < at:
            return best + (start - best) * (1 - share / at) ** 2
        return best + (end - best) * (share - at) / (1 - at)

    return curve


def power(exponent: float, floor: float, start: float = 6.0) -> Curve:
    return lambda share: floor + (start - floor) * (1 + 100 * share) ** -exponent


CURVES: Mapping[str, tuple[Curve, Curve, float]] = {
    "underfitting": (straight(6, 4), straight(6, 4.05), 0.5),
    "healthy": (power(0.6, 2.0), power(0.6, 2.02), 1.0),
    "converged": (falling(2.0, 20), falling(2.02, 20), 1.0),
    "data exhausted": (power(0.5, 1.0), falling(2.0, 20), 12.0),
    "overfitting": (falling(0.5, 5), turning(2.3, 0.4, 2.8), 12.0),
    "diverged": (turning(3.0, 0.4, 7.0), turning(3.0, 0.4, 7.0), 1.0),
}


def planted(word: str, **settings: Any) -> RunRecord:
    train, held_out, epochs = CURVES[word]
    return record(train, held_out, **({"epochs": epochs} | settings))


def spiked(found: RunRecord, steps: Sequence[int], height: float) -> RunRecord:
    rows = [{**row, "loss": row["loss"] + height * (row["step"] in steps)} for row in found.train_rows]
    return replace(found, train_rows=rows)


def words(verdict: Verdict) -> list[str]:
    return [verdict.word, *(finding.word for finding in verdict.findings)]


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.05])
@pytest.mark.parametrize("word", CURVES)
def test_a_curve_gets_its_word(word: str, noise: float) -> None:
    assert words(verdict_of(planted(word, noise=noise))) == [word]


def test_overfitting_names_the_step_to_stop_at_and_its_evidence() -> None:
    verdict = verdict_of(planted("overfitting"))
    assert verdict.stop_step == 80 and verdict.stop_checkpoint is None
    assert "to 2.3 at step 80, then got worse, to 2.8 at step 200 (metrics.jsonl: eval_loss)" in verdict.evidence[0]
    assert "the training loss, by medians of 11 rows, went from" in verdict.evidence[1]
    assert all("metrics.jsonl: " in sentence for sentence in verdict.evidence)
    assert "eval.patience=3" in verdict.advice[0]
    assert verdict.headline == "Overfitting: stop at step 80"


def test_the_checkpoint_of_the_best_step_is_named_if_it_was_kept(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-00000080").mkdir(parents=True)
    found = replace(planted("overfitting"), folder=tmp_path)
    assert verdict_of(found).stop_checkpoint == "checkpoints/step-00000080"


def test_spikes_come_before_how_the_run_ended_and_after_overfitting() -> None:
    steps = (60, 90, 120, 150)
    assert words(verdict_of(spiked(planted("healthy", noise=0.02), steps, 1.0))) == ["spiking", "healthy"]
    assert words(verdict_of(spiked(planted("overfitting", noise=0.02), steps, 1.0))) == ["overfitting", "spiking"]


def test_two_spikes_are_no_verdict() -> None:
    assert words(verdict_of(spiked(planted("healthy", noise=0.02), (60, 150), 1.0))) == ["healthy"]


@pytest.mark.parametrize("event", ["skipped", "rolled_back"])
def test_steps_that_were_not_kept_are_spikes(event: str) -> None:
    events = [{"event": event, "step": step} for step in (40, 60, 80)]
    verdict = verdict_of(planted("healthy", events=events))
    assert verdict.word == "spiking" and f"events.jsonl: {event}" in verdict.evidence[0]


def test_a_step_that_is_skipped_again_after_a_restart_is_one() -> None:
    events = [{"event": "skipped", "step": 40}, {"event": "resumed", "step": 30}] * 3
    assert words(verdict_of(planted("healthy", events=events))) == ["healthy"]


def test_a_run_that_ended_not_finite_diverged_also_without_evaluations() -> None:
    found = planted("healthy", events=[{"event": "failed", "step": 90, "reason": "step 90: loss not finite"}])
    assert verdict_of(found).word == "diverged"
    assert verdict_of(replace(found, eval_rows=[])).word == "diverged"


def test_a_last_evaluation_that_is_not_finite_is_divergence() -> None:
    found = planted("healthy")
    rows = [*found.eval_rows[:-1], {"step": STEPS, "eval_loss": None}]
    verdict = verdict_of(replace(found, eval_rows=rows))
    assert verdict.word == "diverged" and "eval_loss" in verdict.evidence[0]


def test_rows_that_are_not_finite_to_the_end_are_divergence() -> None:
    found = planted("healthy")
    rows = [{**row, "loss": None if row["step"] > 150 else row["loss"]} for row in found.train_rows]
    assert verdict_of(replace(found, train_rows=rows)).word == "diverged"


def test_one_row_that_is_not_finite_changes_nothing() -> None:
    found = planted("healthy")
    for step in (1, 100, STEPS):
        rows = [{**row, "loss": None if row["step"] == step else row["loss"]} for row in found.train_rows]
        assert words(verdict_of(replace(found, train_rows=rows))) == ["healthy"]


def test_a_run_that_rose_far_above_its_start_diverged_even_if_it_came_back() -> None:
    def curve(share: float) -> float:
        return 12.0 if 0.2 < share < 0.4 else falling(3.0, 5)(share)

    assert verdict_of(record(curve, curve)).word == "diverged"


@pytest.mark.parametrize("word", CURVES)
def test_a_run_without_evaluations_has_no_verdict_unless_it_diverged(word: str) -> None:
    verdict = verdict_of(replace(planted(word), eval_rows=[]))
    assert verdict.word == ("diverged" if word == "diverged" else "no verdict")
    assert verdict.word == "diverged" or "no evaluation rows" in verdict.evidence[0]


def test_an_empty_run_has_no_verdict() -> None:
    verdict = verdict_of(replace(planted("healthy"), eval_rows=[], train_rows=[], is_finished=False))
    assert verdict.word == "no verdict" and verdict.headline == "No verdict"


def test_one_evaluation_is_too_few() -> None:
    found = planted("healthy")
    verdict = verdict_of(replace(found, eval_rows=found.eval_rows[:1], train_rows=found.train_rows[:5]))
    assert verdict.word == "no verdict" and "one evaluation only, of step 0" in verdict.evidence[0]


@pytest.mark.parametrize("seed", range(5))
def test_few_noisy_rows_of_a_run_that_goes_on_give_no_verdict_and_say_why(seed: int) -> None:
    found = record(straight(3.0, 2.9), straight(3.0, 2.95), steps=5, every=5, noise=0.3, seed=seed, is_finished=False)
    verdict = verdict_of(replace(found, config={"train": {"steps": 20}}))
    assert verdict.word == "no verdict"
    assert "2 evaluations and 5 training rows" in verdict.evidence[0]
    assert "as of step 5 of 20" in verdict.evidence[-1]


@pytest.mark.parametrize("every", [2, 4, 8])
@pytest.mark.parametrize("is_finished", [True, False])
def test_few_noisy_rows_of_a_run_whose_held_out_loss_falls_are_not_divergence(every: int, is_finished: bool) -> None:
    for seed in range(50):
        found = record(straight(3.0, 2.8), lambda share: 3.0, steps=8, noise=1.0, seed=seed, is_finished=is_finished)
        evaluated = Rows({"step": step, "eval_loss": 3.0 - step / 50} for step in range(0, 9, every))
        assert "diverged" not in words(verdict_of(replace(found, eval_rows=evaluated)))


def test_few_rows_that_rise_together_with_the_held_out_loss_are_divergence() -> None:
    assert verdict_of(record(straight(3.0, 30.0), straight(3.0, 30.0), steps=8, every=4)).word == "diverged"


@pytest.mark.parametrize("word", ["underfitting", "healthy", "converged", "diverged"])
def test_evaluations_at_the_start_and_the_end_suffice_with_training_rows(word: str) -> None:
    found = planted(word, noise=0.02)
    ends = [found.eval_rows[0], found.eval_rows[-1]]
    assert verdict_of(replace(found, eval_rows=ends)).word == word


def test_evaluations_at_the_ends_do_not_suffice_if_training_no_longer_speaks_for_held_out_data() -> None:
    found = planted("data exhausted", noise=0.02)
    verdict = verdict_of(replace(found, eval_rows=[found.eval_rows[0], found.eval_rows[-1]]))
    assert verdict.word == "no verdict" and verdict.advice == ["evaluate more often: `eval.every=20`"]


def test_three_evaluations_show_overfitting() -> None:
    found = planted("overfitting")
    rows = [found.eval_rows[0], found.eval_rows[8], found.eval_rows[-1]]
    verdict = verdict_of(replace(found, eval_rows=rows))
    assert verdict.word == "overfitting" and verdict.stop_step == 80


def test_held_out_loss_that_only_rises_is_overfitting_from_the_start() -> None:
    verdict = verdict_of(record(falling(1.0, 5, start=2.0), straight(2.0, 3.0), epochs=5))
    assert verdict.word == "overfitting" and verdict.stop_step == 0
    assert verdict.headline == "Overfitting from the first step"


@pytest.mark.parametrize("word", CURVES)
def test_a_run_that_goes_on_is_judged_so_far(word: str) -> None:
    verdict = verdict_of(planted(word, is_finished=False))
    assert verdict.so_far and "so far" in verdict.headline
    assert verdict.word == ("healthy" if word == "underfitting" else word)  # steps are left
    assert "as of step 200 of 200" in verdict.evidence[-1]


def test_nothing_learned_is_underfitting() -> None:
    for noise in (0.0, 0.05):
        verdict = verdict_of(record(lambda share: 5.0, lambda share: 5.0, noise=noise))
        assert words(verdict) == ["underfitting"] and "no gain" in verdict.evidence[0]


@pytest.mark.parametrize("word", ["underfitting", "overfitting"])
def test_the_keys_to_change_are_those_of_the_runs_optimizer(word: str) -> None:
    found = planted(word)
    muon = replace(found, config={**found.config, "optim": {"name": "muon"}})
    for each, keys in ((found, "`optim.lr`"), (muon, "`optim.muon_lr` and `optim.lr`")):
        assert re.findall(r"(?:lower|raise) (`optim.*?lr`(?: and `optim.*?`)?)", " ".join(verdict_of(each).advice)) == [
            keys
        ]


def test_a_curve_that_is_flat_only_because_the_learning_rate_ended_has_not_converged() -> None:
    def lr(share: float) -> float:
        return 1e-3 if share < 0.5 else 1e-9

    def curve(share: float) -> float:
        return straight(6, 4)(min(share, 0.5) * 2)

    assert verdict_of(record(curve, curve, lr=lr)).word == "underfitting"


def test_noise_is_judged_as_the_curve_below_it() -> None:
    wrong = [
        (word, seed)
        for word in CURVES
        for seed in range(20)
        if verdict_of(planted(word, noise=0.03, seed=seed)).word != word
    ]
    assert not wrong


def test_noise_alone_never_is_overfitting_spiking_or_diverged() -> None:
    for seed in range(50):
        found = record(lambda share: 3.0, lambda share: 3.0, noise=0.2, seed=seed, epochs=10, every=5)
        assert words(verdict_of(found)) == ["underfitting"]


@pytest.mark.parametrize("factor", [1, 7, 10**9])
@pytest.mark.parametrize("word", CURVES)
def test_the_number_of_steps_changes_nothing(word: str, factor: int) -> None:
    found = planted(word, noise=0.02)
    rows = [[{**row, "step": row["step"] * factor} for row in rows] for rows in (found.train_rows, found.eval_rows)]
    longer = verdict_of(replace(found, train_rows=rows[0], eval_rows=rows[1]))
    assert longer.word == word
    assert longer.stop_step == (None if word != "overfitting" else factor * (verdict_of(found).stop_step or 0))


@pytest.mark.parametrize("factor", [0.01, 100.0])
@pytest.mark.parametrize("word", CURVES)
def test_the_unit_of_the_loss_and_of_the_learning_rate_change_nothing(word: str, factor: float) -> None:
    found = planted(word, noise=0.02)
    train = [{**row, "loss": row["loss"] * factor, "lr": row["lr"] * factor} for row in found.train_rows]
    held_out = [{**row, "eval_loss": row["eval_loss"] * factor} for row in found.eval_rows]
    assert verdict_of(replace(found, train_rows=train, eval_rows=held_out)).word == word


@pytest.mark.parametrize("word", CURVES)
def test_points_on_the_curve_between_evaluations_change_nothing(word: str) -> None:
    found = planted(word)
    rows = list(found.eval_rows)
    for before, after in zip(found.eval_rows, found.eval_rows[1:], strict=False):
        middle = {name: (before[name] + after[name]) / 2 for name in ("step", "eval_loss")}
        rows.append(middle)
    denser = replace(found, eval_rows=sorted(rows, key=lambda row: row["step"]))
    assert verdict_of(denser).word == word


@pytest.mark.parametrize("every", [2, 5, 10, 40])
@pytest.mark.parametrize("word", CURVES)
def test_how_often_it_was_evaluated_changes_nothing(word: str, every: int) -> None:
    assert verdict_of(planted(word, every=every)).word == word


@pytest.mark.parametrize("word", CURVES)
def test_how_often_it_was_logged_changes_nothing(word: str) -> None:
    found = planted(word, noise=0.01)
    assert verdict_of(replace(found, train_rows=found.train_rows[9::10])).word == word


def policy(rollouts: Curve, held_out: Curve, *, noise: float = 0.01, half: float = 0.02, seed: int = 0) -> RunRecord:
    """A run of PPO of scores over the share of its steps that are done; `half`: of the held-out score's interval."""
    found = record(rollouts, held_out, noise=noise, seed=seed, recipe="policy")
    train = [{**row, "rollout_score": row["loss"], "loss": 0.3} for row in found.train_rows]
    evaluated = []
    for row in found.eval_rows:
        score = row["eval_loss"]
        ends = {"eval_score_low": score - half, "eval_score_high": score + half}
        evaluated.append({"step": row["step"], "eval_loss": -score, "eval_score": score, **ends})
    return replace(found, train_rows=train, eval_rows=evaluated)


@pytest.mark.parametrize(
    ("word", "rollouts", "held_out"),
    [
        ("healthy", falling(0.9, 2.7, 0.1), falling(0.88, 2.7, 0.1)),
        ("converged", falling(0.9, 20, 0.1), falling(0.88, 20, 0.1)),
        ("underfitting", straight(0.1, 0.5), straight(0.1, 0.48)),
        ("underfitting", lambda share: 0.3, lambda share: 0.3),  # nothing learned
        ("overfitting", falling(0.9, 10, 0.1), turning(0.8, 0.4, 0.5, 0.1)),
        ("diverged", turning(0.8, 0.4, 0.05, 0.1), turning(0.8, 0.4, 0.05, 0.1)),  # collapsed
    ],
)
def test_scores_of_a_policy_run_are_judged_as_losses_turned_round(word: str, rollouts: Curve, held_out: Curve) -> None:
    verdict = verdict_of(policy(rollouts, held_out))
    assert words(verdict) == [word]
    assert "score" in verdict.evidence[0] and "loss" not in verdict.evidence[0]
    assert verdict.stop_step == (80 if word == "overfitting" else None)


def test_a_score_that_rose_and_fell_back_in_few_evaluations_is_overfitting() -> None:
    found = policy(straight(0.1, 1.5), lambda share: 1.5 - (2 * share - 1) ** 2 / 4, half=0.05)
    few = replace(found, eval_rows=found.eval_rows[::4])
    assert len(few.eval_rows) == 6 and verdict_of(few).word == "overfitting"


@pytest.mark.parametrize("count", [4, 5, 6, 7, 8, 9])
def test_a_score_whose_best_is_flat_and_in_the_middle_is_overfitting(count: int) -> None:
    found = policy(straight(0.1, 1.5), lambda share: 1.5)
    rows = []
    for step in np.linspace(0, STEPS, count).astype(int).tolist():
        score = 1.5 - (2 * step / STEPS - 1) ** 2 / 4
        ends = {"eval_score_low": score - 0.05, "eval_score_high": score + 0.05}
        rows.append({"step": step, "eval_loss": -score, "eval_score": score, **ends})
    verdict = verdict_of(replace(found, eval_rows=Rows(rows)))
    assert verdict.word == "overfitting" and abs((verdict.stop_step or 0) - STEPS / 2) <= STEPS / 6


def test_scores_below_zero_are_judged_alike() -> None:
    lower = policy(lambda share: falling(0.9, 2.7, 0.1)(share) - 5, lambda share: falling(0.88, 2.7, 0.1)(share) - 5)
    assert verdict_of(lower).word == "healthy"


def test_a_fall_of_a_score_within_its_interval_is_no_overfitting() -> None:
    found = policy(falling(0.9, 10, 0.1), turning(0.8, 0.4, 0.7, 0.1), half=0.2)
    assert verdict_of(found).word != "overfitting"


@pytest.mark.parametrize("recipe", ["reward", "preference"])
@pytest.mark.parametrize(
    ("word", "train", "held_out", "epochs"),
    [
        ("overfitting", falling(0.01, 6, 0.693), turning(0.55, 0.3, 0.8, 0.693), 8.0),
        ("underfitting", straight(0.693, 0.6), straight(0.693, 0.61), 1.0),
        ("healthy", falling(0.3, 2.7, 0.693), falling(0.32, 2.7, 0.693), 1.0),
        ("converged", falling(0.3, 20, 0.693), falling(0.32, 20, 0.693), 1.0),
        ("data exhausted", straight(0.55, 0.2), falling(0.5, 20, 0.693), 5.0),
        ("diverged", turning(0.5, 0.3, 3.0, 0.693), turning(0.5, 0.3, 3.0, 0.693), 1.0),
    ],
)
def test_losses_of_pairs_are_judged_too(recipe: str, word: str, train: Curve, held_out: Curve, epochs: float) -> None:
    assert words(verdict_of(record(train, held_out, epochs=epochs, recipe=recipe, noise=0.005))) == [word]


def test_ten_thousand_rows_are_judged_in_time() -> None:
    assert verdict_of(planted("healthy", steps=10_000, every=10, noise=0.05)).word == "healthy"
