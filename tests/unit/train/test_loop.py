"""The loop with a model of two weights: what it trains on, evaluates, saves, skips, rolls back, and when it stops."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmtrain.config.sections import CheckpointConfig, EvalConfig, LogConfig, TrainConfig
from llmtrain.data.loader.order import skipped_position
from llmtrain.protocols import Counts, Evaluate, Metrics
from llmtrain.system.stop_signal import StopSignal
from llmtrain.train.checkpoint import Checkpoints
from llmtrain.train.ema import Ema
from llmtrain.train.loop import Loop, Outcome
from llmtrain.train.profile import StepProfiler
from llmtrain.train.run_log import RunLog
from llmtrain.train.runtime import Runtime
from llmtrain.train.step_guard import SPIKE_HISTORY_STEPS, StepGuard

SAMPLES_PER_STEP = 4
LR = 0.1


class Descent(torch.optim.SGD):
    """Plain gradient descent, with state that is saved and not used."""

    def init_state(self, group: Mapping[str, Any], parameter: Tensor, number: int, place: int) -> None:
        self.state[parameter]["unused"] = torch.zeros_like(parameter)


@dataclass(frozen=True)
class Samples:
    """A microbatch: sample i pulls the weights towards `target(i)`."""

    sample_ids: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return len(self.sample_ids)

    @property
    def num_attended(self) -> int:
        return len(self.sample_ids)

    def to(self, device: torch.device) -> Samples:
        return self


class NumberedSamples:
    """Samples 0, 1, 2, ... in steps of four, two microbatches each, without those on the skip-list."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps, self.step, self.skip_list = num_steps, 0, list[int]()
        self.given: list[tuple[int, ...]] = []

    def next_step(self) -> list[Samples] | None:
        if self.step == self.num_steps:
            return None
        ids = self._ids(self.step)
        self.given.append(ids)
        return [Samples(ids[:1]), Samples(ids[1:])]

    def advance(self) -> None:
        self.step += 1

    @property
    def epoch(self) -> float:
        return self.step / self.num_steps

    def metrics(self) -> dict[str, float]:
        return {}

    def state_without_step(self, earlier: Mapping[str, Any]) -> dict[str, Any]:
        return {**earlier, "skip_list": sorted([*self.skip_list, *self._ids(self.step)])}

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "skip_list": list(self.skip_list)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step, self.skip_list = state["step"], list(state["skip_list"])

    def _ids(self, step: int) -> tuple[int, ...]:
        return tuple(skipped_position(step * SAMPLES_PER_STEP + i, self.skip_list) for i in range(SAMPLES_PER_STEP))


def target(sample_id: int) -> Tensor:
    return torch.tensor([math.sin(sample_id), math.cos(sample_id)])


@dataclass
class Distance:
    """Mean over samples of half the squared distance from target; `scale` says of a sample by how much more."""

    scale: Callable[[int], float] = lambda sample_id: 1.0

    def counts(self, batch: Samples) -> Counts:
        return {"tokens": len(batch.sample_ids)}

    def loss(self, model: nn.Module, batch: Samples, totals: Counts) -> tuple[Tensor, Metrics]:
        (weight,) = model.parameters()
        terms = [self.scale(i) * (weight[0] - target(i)).square().sum() / 2 for i in batch.sample_ids]
        share = torch.stack(terms).sum() / totals["tokens"]
        return share, {"loss": share.detach()}


def descended(steps: list[tuple[int, ...]], lr: float = LR) -> Tensor:
    """The weights after plain gradient descent on these steps' samples."""
    weight = torch.zeros(2)
    for ids in steps:
        weight = weight - lr * torch.stack([weight - target(i) for i in ids]).mean(0)
    return weight


def steps_of(*numbers: int) -> list[tuple[int, ...]]:
    return [tuple(range(n * SAMPLES_PER_STEP, (n + 1) * SAMPLES_PER_STEP)) for n in numbers]


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield Runtime(precision="fp32", max_grad_norm=None, seed=0, timeout_minutes=1)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def stop() -> Iterator[StopSignal]:
    with StopSignal() as stop:
        yield stop


@dataclass
class Run:
    """A run in a folder; each `loop()` is what a new process would make of it."""

    folder: Path
    runtime: Runtime
    stop: StopSignal
    num_steps: int = 10
    train: dict[str, Any] = field(default_factory=dict)
    eval: dict[str, Any] = field(default_factory=lambda: {"every": None})
    checkpoint: dict[str, Any] = field(default_factory=lambda: {"every": None})
    objective: Distance = field(default_factory=Distance)
    evaluate: Evaluate | None = None
    ema_decay: float | None = None
    l1: float = 0.0
    log_every: int = 1
    may_write: Callable[[], bool] = lambda: True
    evaluated: list[Tensor] = field(default_factory=list)  # the weights that each evaluation saw

    def loop(self) -> Loop[Samples]:
        model = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(model.weight)
        ema = None if self.ema_decay is None else Ema(model, self.ema_decay)
        groups = [{"params": list(model.parameters()), "lr": LR, "peak_lr": LR, "decayed": True}]
        prepared, optimizer = self.runtime.prepare(model, Descent(groups))
        source = NumberedSamples(self.num_steps)
        train_config = TrainConfig(steps=self.num_steps, **self.train)
        return Loop(
            runtime=self.runtime,
            model=prepared,
            optimizer=optimizer,
            objective=self.objective,
            source=source,
            state_without_step=source.state_without_step,
            schedule=lambda step: 1.0,
            num_steps=self.num_steps,
            evaluate=self.evaluate,
            checkpoints=self.checkpoints,
            log=RunLog(
                self.folder,
                may_write=self.may_write,
                num_steps=self.num_steps,
                flops=lambda totals: 0.0,
                peak_flops=1.0,
                track=lambda row, step: None,
                memory_bytes=lambda: 0,
            ),
            guard=StepGuard(train_config.max_nonfinite_steps, train_config.spike_factor),
            stop=self.stop,
            profiler=StepProfiler(None, self.folder, rank=0, num_steps=self.num_steps),
            eval_config=EvalConfig(**self.eval),
            checkpoint_config=CheckpointConfig(**self.checkpoint),
            log_config=LogConfig(every=self.log_every),
            l1=self.l1,
            ema=ema,
        )

    def run(self) -> Outcome:
        return self.loop().run()

    @property
    def checkpoints(self) -> Checkpoints:
        config = CheckpointConfig(**self.checkpoint)
        return Checkpoints(self.folder / "checkpoints", config.keep, config.best)

    @property
    def rows(self) -> list[dict[str, Any]]:
        text = (self.folder / "metrics.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    @property
    def evaluated_steps(self) -> list[int]:
        return [row["step"] for row in self.rows if "eval_loss" in row]

    @property
    def trained_steps(self) -> list[int]:
        return [row["step"] for row in self.rows if "loss" in row]

    @property
    def log(self) -> str:
        return (self.folder / "train.log").read_text(encoding="utf-8")

    @property
    def events(self) -> list[dict[str, Any]]:
        text = (self.folder / "events.jsonl").read_text(encoding="utf-8")
        assert text.endswith("\n")
        return [json.loads(line) for line in text.splitlines()]

    @property
    def event_steps(self) -> list[tuple[str, int]]:
        return [(event["event"], event["step"]) for event in self.events]

    def see(self, model: nn.Module, should_stop: Callable[[], bool]) -> dict[str, float] | None:
        """An evaluation that notes the weights it sees; its loss is the distance from (1, 1)."""
        (weight,) = model.parameters()
        self.evaluated.append(weight.detach()[0].clone())
        return None if should_stop() else {"eval_loss": float((weight - 1).detach().square().sum())}

    def weights(self, step: int | None = None) -> Tensor:
        """Those of the newest checkpoint, or of one step's."""
        latest = self.checkpoints.latest(self.runtime)
        assert latest is not None
        found = latest if step is None else type(latest)(latest.path.with_name(f"step-{step:08d}"))
        return found.read("model", "weight")[0]


@pytest.fixture
def new_run(tmp_path: Path, runtime: Runtime, stop: StopSignal) -> Callable[..., Run]:
    def make(name: str = "run", **options: Any) -> Run:
        (tmp_path / name).mkdir()
        return Run(tmp_path / name, runtime, stop, **options)

    return make


NewRun = Callable[..., Run]


def scripted(losses: Mapping[int, float], run: Run) -> Evaluate:
    """Held-out losses by the number of checkpointed or trained steps that the log shows."""

    def evaluate(model: nn.Module, should_stop: Callable[[], bool]) -> dict[str, float]:
        step = max(run.trained_steps) if (run.folder / "metrics.jsonl").exists() and run.trained_steps else 0
        return {"eval_loss": losses[step]}

    return evaluate


def test_each_step_descends_on_the_samples_it_was_given(new_run: NewRun) -> None:
    run = new_run(num_steps=10)
    assert run.run() == "finished"
    torch.testing.assert_close(run.weights(), descended(steps_of(*range(10))))
    assert run.trained_steps == list(range(1, 11))
    assert run.rows[-1]["tokens"] == 40


@pytest.mark.parametrize(("every", "steps"), [(3, [0, 3, 6, 9, 10]), (5, [0, 5, 10]), (None, [0, 10]), (99, [0, 10])])
def test_it_evaluates_at_the_start_every_so_often_and_at_the_end_once_each(
    new_run: NewRun, every: int | None, steps: list[int]
) -> None:
    run = new_run(eval={"every": every})
    run.evaluate = run.see
    run.run()
    assert run.evaluated_steps == steps
    assert len(run.evaluated) == len(steps)
    assert all(row["epoch"] == row["step"] / 10 for row in run.rows)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(new_run: NewRun, value: float) -> None:
    run = new_run(objective=Distance(lambda i: value if i == 13 else 1.0), ema_decay=0.5)
    assert run.run() == "finished"
    torch.testing.assert_close(run.weights(), descended(steps_of(0, 1, 2, 4, 5, 6, 7, 8, 9)))
    assert [row.get("nonfinite_steps") for row in run.rows] == [None] * 3 + [1] * 7
    assert run.trained_steps == list(range(1, 11))
    assert "step 4: loss or gradient not finite, step skipped (samples 12 to 15)" in run.log
    assert run.event_steps == [("started", 0), ("skipped", 4), ("finished", 10)]


def test_the_tokens_of_a_skipped_step_do_not_count_as_trained(new_run: NewRun) -> None:
    run = new_run(objective=Distance(lambda i: math.nan if i == 13 else 1.0))
    run.run()
    assert run.rows[-1]["tokens"] == 36


def test_steps_that_are_not_finite_are_fatal_after_so_many_in_a_row(new_run: NewRun) -> None:
    bad = {4, 8, 16, 20, 24}  # steps 2, 3 and 5, 6, 7
    run = new_run(objective=Distance(lambda i: math.nan if i in bad else 1.0), train={"max_nonfinite_steps": 3})
    with pytest.raises(
        ValueError, match=r"step 7: .*samples 24 to 27.* 3 in a row, train.max_nonfinite_steps"
    ) as error:
        run.run()
    skipped = [("skipped", step) for step in (2, 3, 5, 6, 7)]
    assert run.event_steps == [("started", 0), *skipped, ("failed", 7)]
    assert run.events[-1]["reason"] == str(error.value)


def test_the_count_of_steps_in_a_row_survives_a_restart(new_run: NewRun) -> None:
    run = new_run(
        objective=Distance(lambda i: math.nan if i >= 8 else 1.0),
        train={"max_nonfinite_steps": 3},
        checkpoint={"every": 4},
    )
    for _ in range(2):
        with pytest.raises(ValueError, match=r"step 5: .* 3 in a row"):
            run.run()


def test_a_spike_rolls_back_and_skips_exactly_its_own_samples(new_run: NewRun) -> None:
    spiking = SPIKE_HISTORY_STEPS + 3  # the step, from 0
    run = new_run(
        num_steps=30,
        objective=Distance(lambda i: 1e4 if i == 4 * spiking else 1.0),
        train={"spike_factor": 10.0},
        checkpoint={"every": 5},
    )
    loop = run.loop()
    assert loop.run() == "finished"
    kept = [step for step in range(31) if step != spiking]
    torch.testing.assert_close(run.weights(), descended(steps_of(*kept)))
    assert loop.source.state_dict()["skip_list"] == list(range(4 * spiking, 4 * spiking + 4))
    assert run.trained_steps == list(range(1, 31))
    assert f"step {spiking + 1}: loss" in run.log and "rolled back to step 20" in run.log
    assert run.event_steps == [("started", 0), ("rolled_back", spiking + 1), ("finished", 30)]
    event = run.events[1]
    assert event["to_step"] == 20 and event["loss"] > 10 * event["mean"] > 0


def test_two_spikes_of_one_stretch_are_both_skipped(new_run: NewRun) -> None:
    spiking = {SPIKE_HISTORY_STEPS + 1, SPIKE_HISTORY_STEPS + 3}
    run = new_run(
        num_steps=30,
        objective=Distance(lambda i: 1e4 if i in {4 * step for step in spiking} else 1.0),
        train={"spike_factor": 10.0},
        checkpoint={"every": 20},
    )
    run.run()
    torch.testing.assert_close(run.weights(), descended(steps_of(*(n for n in range(32) if n not in spiking))))


def test_a_spike_is_judged_only_after_enough_history(new_run: NewRun) -> None:
    run = new_run(objective=Distance(lambda i: 1e4 if i == 12 else 1.0), train={"spike_factor": 10.0})
    run.checkpoint = {"every": 5}
    run.run()
    assert "rolled back" not in run.log


def test_patience_stops_the_run_and_the_best_checkpoint_stays(new_run: NewRun) -> None:
    run = new_run(num_steps=20, eval={"every": 2, "patience": 3}, checkpoint={"every": 2, "keep": 1, "best": True})
    run.evaluate = scripted({0: 9.0, 2: 5.0, 4: 3.0, 6: 4.0, 8: 3.0, 10: 3.5}, run)
    assert run.run() == "stopped early"
    assert run.evaluated_steps == [0, 2, 4, 6, 8, 10]
    best, latest = run.checkpoints.best(run.runtime), run.checkpoints.latest(run.runtime)
    assert best is not None and best.step == 4
    assert latest is not None and latest.step == 10
    assert run.run() == "stopped early"
    assert run.trained_steps == list(range(1, 11))
    assert run.event_steps == [("started", 0), ("finished", 10), ("resumed", 10), ("finished", 10)]
    assert {event["outcome"] for event in run.events if event["event"] == "finished"} == {"stopped early"}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_evaluation_that_is_not_finite_is_reported_and_the_best_found_after_it(new_run: NewRun, bad: float) -> None:
    run = new_run(num_steps=6, eval={"every": 2}, checkpoint={"every": 2, "keep": 1, "best": True})
    run.evaluate = scripted({0: bad, 2: 5.0, 4: 3.0, 6: bad}, run)
    run.run()
    best = run.checkpoints.best(run.runtime)
    assert best is not None and best.step == 4
    assert run.log.count("it never counts as the best") == 2


def test_the_average_is_what_is_evaluated_and_training_goes_on_from_the_weights(new_run: NewRun) -> None:
    run = new_run(num_steps=3, eval={"every": 1}, ema_decay=0.25)
    run.evaluate = run.see
    run.run()
    average = torch.zeros(2)
    expected = [average]
    for step in range(1, 4):
        decay = min(0.25, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * descended(steps_of(*range(step)))
        expected.append(average)
    torch.testing.assert_close(torch.stack(run.evaluated), torch.stack(expected))
    torch.testing.assert_close(run.weights(), descended(steps_of(0, 1, 2)))
    latest = run.checkpoints.latest(run.runtime)
    assert latest is not None
    torch.testing.assert_close(latest.read("ema", "weight")[0], average)


def test_l1_makes_weights_exactly_zero(new_run: NewRun) -> None:
    plain, shrunk = new_run("plain"), new_run("shrunk", l1=1.0)
    plain.run()
    shrunk.run()
    assert (plain.weights() != 0).all()
    assert (shrunk.weights() == 0).all()


def test_a_finished_run_started_again_trains_and_evaluates_nothing(new_run: NewRun) -> None:
    run = new_run(eval={"every": 4}, checkpoint={"every": 4})
    run.evaluate = run.see
    run.run()
    rows, num_evaluations = run.rows, len(run.evaluated)
    loop = run.loop()
    assert loop.run() == "finished"
    assert run.rows == rows and len(run.evaluated) == num_evaluations
    assert loop.source.given == []


def test_a_signal_is_seen_before_the_next_step_and_its_samples_come_again(new_run: NewRun, stop: StopSignal) -> None:
    def ask_at_step_6(sample_id: int) -> float:
        stop.requested = "SIGTERM" if sample_id == 20 else stop.requested
        return 1.0

    run = new_run(objective=Distance(ask_at_step_6))
    assert run.run() == "interrupted"
    assert run.trained_steps == [1, 2, 3, 4, 5, 6]
    assert "SIGTERM: stopping after 6 steps" in run.log
    torch.testing.assert_close(run.weights(), descended(steps_of(*range(6))))
    stop.requested, run.objective = None, Distance()
    assert run.run() == "finished"
    torch.testing.assert_close(run.weights(), descended(steps_of(*range(10))))
    assert run.event_steps == [("started", 0), ("interrupted", 6), ("resumed", 6), ("finished", 10)]
    assert run.events[1]["reason"] == "SIGTERM"
    times = [datetime.fromisoformat(event["time"]) for event in run.events]
    assert times == sorted(times) and all(time.utcoffset() is not None for time in times)


@pytest.mark.parametrize(("every", "words"), [(1, 0), (5, 1)])
def test_nobody_waits_for_the_first_row_without_a_word(new_run: NewRun, every: int, words: int) -> None:
    run = new_run(log_every=every)
    run.evaluate = run.see
    run.run()
    assert run.log.count("evaluating before the first step") == 1
    assert run.log.count(f"; a line every {every} steps") == words
    assert run.log.index("evaluating before") < run.log.index("step 0/10  evaluation: held-out loss 2.0000")


def test_events_stay_where_a_run_goes_back_and_follow_a_line_that_a_kill_cut_short(new_run: NewRun) -> None:
    run = new_run(checkpoint={"every": 4})
    run.objective = Distance(lambda i: math.nan if i == 24 else (1.0 if i < 28 else _die()))
    with pytest.raises(KeyboardInterrupt):
        run.run()
    with (run.folder / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"time": "2026-')
    run.objective = Distance(lambda i: math.nan if i == 24 else 1.0)
    run.run()
    assert run.event_steps == [("started", 0), ("skipped", 7), ("resumed", 4), ("skipped", 7), ("finished", 10)]


def test_what_ends_a_run_is_raised_and_noted_in_one_line(new_run: NewRun) -> None:
    def fail(sample_id: int) -> float:
        raise RuntimeError("CUDA error:\n  out of memory")

    run = new_run(objective=Distance(fail))
    with pytest.raises(RuntimeError, match="out of memory"):
        run.run()
    assert run.event_steps == [("started", 0), ("failed", 0)]
    assert run.events[-1]["reason"] == "CUDA error: out of memory"


def test_a_run_that_lost_its_folder_writes_no_event_there(new_run: NewRun) -> None:
    def may_write() -> bool:
        if run.trained_steps[-1:] == [3]:
            raise ValueError("was taken over")
        return True

    run = new_run()
    (run.folder / "metrics.jsonl").touch()
    run.may_write = may_write
    with pytest.raises(ValueError, match="was taken over"):
        run.run()
    assert run.event_steps == [("started", 0)]


def interrupt_evaluation_at(step: int, run: Run) -> Evaluate:
    """Held-out losses that fall until `step` and rise after it; the first evaluation at `step` is interrupted."""
    interrupted: list[int] = []

    def evaluate(model: nn.Module, should_stop: Callable[[], bool]) -> dict[str, float] | None:
        at = max(run.trained_steps, default=0) if (run.folder / "metrics.jsonl").exists() else 0
        if at == step and not interrupted:
            interrupted.append(at)
            run.stop.requested = "SIGUSR1"
        return None if should_stop() else {"eval_loss": float(abs(at - step))}

    return evaluate


@pytest.mark.parametrize("step", [0, 4, 10])
def test_an_interrupted_evaluation_is_made_up_for_once(new_run: NewRun, stop: StopSignal, step: int) -> None:
    run = new_run(eval={"every": 2}, checkpoint={"every": 3, "best": True})
    run.evaluate = interrupt_evaluation_at(step, run)
    assert run.run() == "interrupted"
    stop.requested = None
    for _ in range(2):
        assert run.run() == "finished"
    assert run.evaluated_steps == [0, 2, 4, 6, 8, 10]
    torch.testing.assert_close(run.weights(), descended(steps_of(*range(10))))


@pytest.mark.parametrize("step", [4, 10])
def test_a_best_checkpoint_is_kept_whose_evaluation_was_interrupted(
    new_run: NewRun, stop: StopSignal, step: int
) -> None:
    run = new_run(eval={"every": 2}, checkpoint={"every": 3, "keep": 1, "best": True})
    run.evaluate = interrupt_evaluation_at(step, run)
    run.run()
    stop.requested = None
    run.run()
    best = run.checkpoints.best(run.runtime)
    assert best is not None and best.step == step


def test_a_kill_right_after_the_evaluation_of_a_saved_step_does_not_repeat_its_row(
    new_run: NewRun, stop: StopSignal
) -> None:
    run = new_run(eval={"every": 4})
    run.evaluate = interrupt_evaluation_at(4, run)
    run.run()
    stop.requested = None

    def die(sample_id: int) -> float:
        raise KeyboardInterrupt

    run.objective = Distance(die)  # after the evaluation of step 4, before anything is saved
    with pytest.raises(KeyboardInterrupt):
        run.run()
    run.objective = Distance()
    run.run()
    assert run.evaluated_steps == [0, 4, 8, 10]


def test_dropping_rows_never_leaves_less_than_the_rows_that_stay(
    new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(checkpoint={"every": 4})
    run.objective = Distance(lambda i: 1.0 if i < 24 else _die())
    with pytest.raises(KeyboardInterrupt):
        run.run()
    rows = run.rows
    monkeypatch.setattr(Path, "rename", lambda path, to: _die())
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert run.rows == rows


def _die() -> float:
    raise KeyboardInterrupt
