"""The trials of a sweep: what was asked for, who runs which, and how each ended.

    DIR/auto.yaml            what --auto has proposed
    DIR/sweep.yaml           what is searched; a sweep that is continued must ask for the same
    DIR/study/journal.log    Optuna's storage: every trial with its setting, evaluations and end
    DIR/study/claims/0007/   the lease of the process that runs trial 7
    DIR/configs/0007.yaml    the configuration of its run
    DIR/trials/0007/         its run's folder; with --seeds, one folder within it for each seed
    DIR/logs/0007.txt        what its run printed

A trial that is running in the storage, and whose lease is of a process that is dead, is taken up by whoever asks next.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from llmtrain.config.load import read_yaml, yaml_text
from llmtrain.system.files import FREE_RUN, write_bytes
from llmtrain.system.lease import Lease, Watch, contents, try_to_take
from llmtrain.tune.sweep.storage import StudyLock, open_storage
from llmtrain.tune.sweep.suggest import SamplerName, Setting

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

NAME = "sweep"
SWEEP_FILE = "sweep.yaml"
PROPOSAL_FILE = "auto.yaml"  # what --auto has proposed
OWN = {SWEEP_FILE, PROPOSAL_FILE, "study", "configs", "logs", "trials", "probe", f"{SWEEP_FILE}.partial"}
STARTUP_TRIALS = 4  # that are finished before any is pruned


@dataclass(frozen=True)
class Search:
    """What a sweep searches, as `sweep.yaml` records it."""

    recipe: str
    config: Mapping[str, Any]  # the tree that the settings change
    space: Mapping[str, Any]
    first: Sequence[Mapping[str, Any]]  # settings that are tried before any is drawn
    sampler: SamplerName
    seeds: int  # runs of each setting
    metric: str
    maximize: bool
    prunes: bool


@dataclass(frozen=True)
class TrialRecord:
    """A trial as a report shows it."""

    number: int
    values: Mapping[str, Any]
    state: str  # running, finished, pruned or failed
    score: float | None  # the mean over seeds; of a pruned trial the last evaluation
    scores: Sequence[float]  # of each seed
    curve: Mapping[int, float]  # step -> metric, of the first seed
    error: str
    steps: int
    tokens: int
    seconds: float
    num_refused: int
    refusal: str

    @property
    def is_finished(self) -> bool:
        return self.state == "finished"


@dataclass(frozen=True)
class Claim:
    """A trial that this process runs."""

    record: TrialRecord
    lease: Lease
    is_taken_over: bool


class Study:
    """A sweep's folder, open."""

    def __init__(self, folder: Path, search: Search) -> None:
        """Open a folder. Raises ValueError if it holds another sweep."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.folder, self.search = folder, search
        self.lock = StudyLock(folder / "study")
        with self.lock:
            _record(folder, search)
            storage = open_storage(folder / "study", self.lock)
            self._study = optuna.create_study(
                study_name=NAME,
                storage=storage,
                sampler=optuna.samplers.RandomSampler(0),  # unused: `suggest.py` draws
                pruner=_pruner(search.prunes),
                direction="maximize" if search.maximize else "minimize",
                load_if_exists=True,
            )
        self._watches: dict[int, Watch] = {}

    def trials(self) -> list[FrozenTrial]:
        """Every trial, by number."""
        return self._study.get_trials(deepcopy=False)

    def records(self) -> list[TrialRecord]:
        """Every trial as a report shows it."""
        return [record_of(trial) for trial in self.trials()]

    def claim_left(self) -> Claim | None:
        """A trial that a process has left unfinished; under the lock."""
        for record in self.records():
            if record.state == "running" and (lease := self._take(record.number)) is not None:
                return Claim(record, lease, is_taken_over=True)
        return None

    def is_watching(self) -> bool:
        """Whether a trial is held by a process of which is not known yet whether it lives."""
        running = (record.number for record in self.records() if record.state == "running")
        return any(
            self._watches.setdefault(number, Watch()).verdict(lease, content) == "unknown"
            for number in running
            for lease, content in contents(self._claims(number))
        )

    def start(self, setting: Setting) -> Claim:
        """Add a trial; under the lock."""
        import optuna

        self._study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.RUNNING,
                params=dict(setting.params),
                distributions=dict(setting.distributions),
                user_attrs={
                    "values": dict(setting.values),
                    "num_refused": setting.num_refused,
                    "refusal": setting.refusal,
                },
            )
        )
        record = self.records()[-1]
        lease = self._take(record.number)
        assert lease is not None, "a new trial is held by nobody"
        return Claim(record, lease, is_taken_over=False)

    def report(self, number: int, step: int, value: float) -> bool:
        """Note an evaluation; whether the trial should be pruned."""
        import optuna

        trial = optuna.trial.Trial(self._study, self.trials()[number]._trial_id)
        if step not in self.trials()[number].intermediate_values:
            trial.report(value, step)
        return trial.should_prune()

    def note(self, number: int, **attributes: Any) -> None:
        """Note facts of a trial."""
        import optuna

        trial = optuna.trial.Trial(self._study, self.trials()[number]._trial_id)
        for name, value in attributes.items():
            trial.set_user_attr(name, value)

    def finish(self, claim: Claim, state: str, score: float | None) -> TrialRecord:
        """Note the end of a trial, and give it up."""
        import optuna

        states = optuna.trial.TrialState
        number = claim.record.number
        match state:
            case "finished":
                self._study.tell(number, score, states.COMPLETE)
            case "pruned":
                self._study.tell(number, state=states.PRUNED)
            case _:
                self._study.tell(number, state=states.FAIL)
        claim.lease.release()
        return self.records()[number]

    def _take(self, number: int) -> Lease | None:
        folder = self._claims(number)
        folder.mkdir(parents=True, exist_ok=True)
        lease = try_to_take(folder, self._watches.setdefault(number, Watch()), lambda _line: None)
        return None if isinstance(lease, str) else lease

    def _claims(self, number: int) -> Path:
        return self.folder / "study" / "claims" / f"{number:04d}"


def record_of(trial: FrozenTrial) -> TrialRecord:
    """A stored trial as a report shows it."""
    noted = trial.user_attrs
    states = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}
    curve = dict(sorted(trial.intermediate_values.items()))
    score = trial.value if trial.state.name != "PRUNED" or not curve else curve[max(curve)]
    return TrialRecord(
        number=trial.number,
        values=noted["values"],
        state=states.get(trial.state.name, "running"),
        score=score,
        scores=noted.get("scores", []),
        curve=curve,
        error=noted.get("error", ""),
        steps=noted.get("steps", 0),
        tokens=noted.get("tokens", 0),
        seconds=noted.get("seconds", 0.0),
        num_refused=noted.get("num_refused", 0),
        refusal=noted.get("refusal", ""),
    )


def best_of(records: Sequence[TrialRecord], maximize: bool) -> TrialRecord | None:
    """The finished trial with the best score; of equal ones the first."""
    finished = [record for record in records if record.is_finished and record.score is not None]
    sign = -1 if maximize else 1
    return min(finished, key=lambda record: sign * (record.score or 0.0), default=None)


def _pruner(prunes: bool) -> Any:
    """The median rule: a run worse than half of those before it, at the same step, is stopped.

    Hyperband needs many trials for each of its brackets and a length that all runs share; the median rule works from
    five trials on.
    """
    import optuna

    if not prunes:
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS)


def _record(folder: Path, search: Search) -> None:
    """Write `sweep.yaml`, or check that it asks for the same."""
    here = yaml.safe_load(yaml.safe_dump(_plain(asdict(search))))
    path = folder / SWEEP_FILE
    if path.exists():
        there = read_yaml(path)
        for key, value in here.items():
            if there.get(key) != value:
                raise ValueError(
                    f"{folder} holds a sweep with another {key}: continue it with the same command, or choose another "
                    "folder with --dir"
                )
        return
    write_bytes(path, yaml_text(here).encode(), FREE_RUN)


def make_folder(folder: Path) -> None:
    """Make a sweep's folder. Raises ValueError if it cannot be made or written, or holds something else."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        foreign = sorted(path.name for path in folder.iterdir() if path.name not in OWN)
        if not (folder / SWEEP_FILE).exists() and foreign:
            raise ValueError(f"{folder} holds {foreign[0]} and is not a sweep: choose another folder with --dir")
        if not os.access(folder, os.W_OK):
            raise ValueError(f"{folder} cannot be written: choose another folder with --dir")
    except OSError as error:
        raise ValueError(f"{folder} cannot be made ({error.strerror}): choose another folder with --dir") from None


def _plain(value: Any) -> Any:
    """A tree of dicts and lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value
