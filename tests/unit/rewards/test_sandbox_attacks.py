"""Hostile programs get nowhere, honest ones pass, in a jail and without: the lines of the tables of docs/sandbox.md."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sandbox_attacks import ATTACKS, RESOURCES, SECRET, Attack, program
from sandbox_cheats import CHEATS, HONEST
from sandbox_native import NATIVE_CALLS, native_program

from llmtrain.rewards.asserts import split
from llmtrain.rewards.jail import find_jail
from llmtrain.rewards.sandbox import Limits, Verdict, run_all

LIMITS = Limits(seconds=1, memory_mb=256, folder_mb=16)
MODES = ("auto", "limits")
MBPP = "LLMTRAIN_MBPP"  # a folder with mbpp.jsonl, or the file itself
QUICK = [attack for attack in ATTACKS if attack not in RESOURCES]
pytestmark = [pytest.mark.timeout(600), pytest.mark.filterwarnings("error")]


@dataclass(frozen=True)
class Victim:
    """A process and a file outside the sandbox."""

    process: subprocess.Popen[bytes]
    file: Path

    def state(self) -> Any:
        """What must not change."""
        pid, stat = self.process.pid, self.file.stat()
        of_process = (self.process.poll(), os.getpriority(os.PRIO_PROCESS, pid))
        if sys.platform == "linux":
            of_process += (os.sched_getaffinity(pid), os.sched_getscheduler(pid), os.listxattr(self.file))
        names = sorted(os.listdir(self.file.parent))
        return *of_process, self.file.read_text(), stat.st_mode, stat.st_mtime_ns, stat.st_uid, stat.st_nlink, names


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    file = tmp_path_factory.mktemp("outside") / "kept.txt"
    file.write_text(SECRET)
    command = [sys.executable, "-I", "-S", "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env={"TOKEN": SECRET}) as process:
        yield Victim(process, file)
        process.send_signal(signal.SIGKILL)


@pytest.fixture(scope="module", params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    """The mode of the sandbox; `auto` only where there is a jail."""
    if request.param == "auto" and find_jail("auto").kind == "none":
        pytest.skip(find_jail("auto").description)
    return str(request.param)


def verdicts_on(attacks: list[Attack], mode: Any, victim: Victim) -> dict[str, Verdict]:
    asserts = split(["assert attack()"])
    programs = [(program(attack, str(victim.file), victim.process.pid), asserts) for attack in attacks]
    return dict(zip([attack.name for attack in attacks], run_all(programs, LIMITS, find_jail(mode)), strict=True))


def check(attacks: list[Attack], mode: Any, victim: Victim) -> None:
    before, descriptors = victim.state(), len(os.listdir("/dev/fd"))
    verdicts = verdicts_on(attacks, mode, victim)
    assert victim.state() == before
    assert len(os.listdir("/dev/fd")) == descriptors
    worked = {attack.name for attack in attacks if verdicts[attack.name].num_passed}
    assert worked == {attack.name for attack in attacks if mode in attack.weak_in}
    ended = [(attack, verdicts[attack.name].outcome) for attack in attacks if mode not in attack.weak_in]
    assert {attack.name: outcome for attack, outcome in ended if outcome not in attack.outcomes} == {}


@pytest.mark.slow
def test_attacks_get_nowhere_and_leave_nothing_behind(
    mode: str, victim: Victim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    check(QUICK, mode, victim)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_programs_that_use_all_they_can_are_ended_and_counted_for_what_they_are(mode: str, victim: Victim) -> None:
    check(RESOURCES, mode, victim)


def test_the_kernel_refuses_system_calls_of_machine_code(mode: Any, victim: Victim) -> None:
    jail = find_jail(mode)
    walls = run_all([("", split(["assert True"]))], LIMITS, jail)[0].walls
    if not {"seccomp", "landlock"} <= set(walls):
        pytest.skip(f"this kernel offers only {walls}")
    calls = [call for call in NATIVE_CALLS if call.number is not None]
    before = victim.state()
    codes = [native_program(call, str(victim.file), victim.process.pid) for call in calls]
    code = "\n".join(text.replace("def attack()", f"def attack_{i}()") for i, text in enumerate(codes))
    # A try for each, so that a call that works is named; the process would not survive some of them.
    tests = [f"assert attack_{i}() is False" for i in range(len(calls))]
    [verdict] = run_all([(code, split(tests))], LIMITS, jail, hooks=False)
    assert victim.state() == before
    if verdict.num_passed != len(calls):
        singles = [(text, split(["assert attack() is False"])) for text in codes]
        worked = [
            call.name
            for call, one in zip(calls, run_all(singles, LIMITS, jail, hooks=False), strict=True)
            if not one.num_passed
        ]
        pytest.fail(f"{verdict}: {worked}")


@pytest.mark.parametrize("cheat", CHEATS, ids=lambda cheat: cheat.name)
def test_a_cheat_passes_no_test(cheat: Any) -> None:
    [verdict] = run_all([(cheat.code, split(cheat.tests, cheat.setup))], LIMITS, find_jail("limits"))
    assert verdict.num_passed == 0


@pytest.mark.slow
def test_cheats_pass_no_test_in_a_jail() -> None:
    jail = find_jail("auto")
    if jail.kind == "none":
        pytest.skip(jail.description)
    programs = [(cheat.code, split(cheat.tests, cheat.setup)) for cheat in CHEATS]
    passed = [verdict.num_passed for verdict in run_all(programs, LIMITS, jail)]
    assert {cheat.name: count for cheat, count in zip(CHEATS, passed, strict=True) if count} == {}


def test_honest_programs_pass(mode: Any) -> None:
    programs = [(code, split([test])) for _, code, test in HONEST]
    verdicts = run_all(programs, Limits(seconds=5), find_jail(mode))
    assert {name: one for (name, _, _), one in zip(HONEST, verdicts, strict=True) if one.outcome != "passed"} == {}


def test_a_jail_that_is_required_and_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmtrain.rewards import jail

    monkeypatch.setattr(shutil, "which", lambda name: None)
    jail._bubblewrap.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"^rollout\.sandbox=require: no jail for code, bwrap is not installed: "):
            find_jail("require")
        assert find_jail("auto").kind == "none" and "bwrap is not installed" in find_jail("auto").description
    finally:
        jail._bubblewrap.cache_clear()


def test_the_page_has_every_attack_and_cheat_with_its_verdict() -> None:
    page = (Path(__file__).parents[3] / "docs" / "sandbox.md").read_text(encoding="utf-8")
    for attack in ATTACKS:
        verdicts = ["**works**" if mode in attack.weak_in else "held" for mode in MODES]
        line = next(line for line in page.splitlines() if line.startswith(f"| {attack.name} |"))
        assert [cell.split(" (")[0].strip() for cell in line.split("|")[2:4]] == verdicts
    for call in NATIVE_CALLS:
        assert call.number is None or f"| `{call.name}` | held | held |" in page
    for cheat in CHEATS:
        assert f"| {cheat.name} | no test passed | no test passed |" in page


@pytest.mark.soak
def test_the_reference_solutions_of_mbpp_pass_their_own_tests(mode: Any) -> None:
    given = os.environ.get(MBPP)
    if given is None:
        pytest.skip(f"set {MBPP} to the folder of mbpp.jsonl")
    path = Path(given)
    lines = (path / "mbpp.jsonl" if path.is_dir() else path).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    programs = [(row["code"], split(row["test_list"], row["test_setup_code"])) for row in rows]
    verdicts = run_all(programs, Limits(seconds=20), find_jail(mode))
    assert len(rows) == 974
    assert {row["task_id"]: v for row, v in zip(rows, verdicts, strict=True) if v.outcome != "passed"} == {}
