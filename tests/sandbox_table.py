"""Writes the tables of docs/sandbox.md: what each attack and cheat came to on this machine, in a jail and without.

python tests/sandbox_table.py
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sandbox_attacks import ATTACKS, FILES, INTERPRETER, NETWORK, PROCESSES, RESOURCES, SECRET, program
from sandbox_cheats import CHEATS, HONEST
from sandbox_native import NATIVE_CALLS, native_program

from llmtrain.rewards.asserts import split
from llmtrain.rewards.jail import find_jail
from llmtrain.rewards.sandbox import Limits, Verdict, run_all

PAGE = Path(__file__).parents[1] / "docs" / "sandbox.md"
BEGIN, END = "<!-- tables: begin -->\n", "<!-- tables: end -->\n"
MODES = ("require", "limits")
LIMITS = Limits(seconds=1, memory_mb=256, folder_mb=16)
SECTIONS = {
    "files": FILES,
    "processes": PROCESSES,
    "the network": NETWORK,
    "the interpreter": INTERPRETER,
    "resources": RESOURCES,
}
ONE_TEST = split(["assert attack()"])


def ended(verdict: Verdict, *, is_attack: bool) -> str:
    if verdict.num_passed:
        return "**works**" if is_attack else "**passes**"
    if not is_attack:
        return "no test passed"
    return "held" if verdict.outcome == "wrong" else f"held ({verdict.outcome})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


def tables() -> str:
    jails = [find_jail(mode) for mode in MODES]
    [walls] = run_all([("", ONE_TEST)], LIMITS, jails[1])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kept.txt"
        file.write_text(SECRET)
        victim = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={"TOKEN": SECRET})
        attacks = [(program(attack, str(file), victim.pid), ONE_TEST) for attack in ATTACKS]
        by_attack = zip(*(run_all(attacks, LIMITS, jail) for jail in jails), strict=True)
        columns = {attack.name: verdicts for attack, verdicts in zip(ATTACKS, by_attack, strict=True)}
        calls = [call for call in NATIVE_CALLS if call.number is not None]
        native = [(native_program(call, str(file), victim.pid), ONE_TEST) for call in calls]
        by_call = zip(*(run_all(native, LIMITS, jail, hooks=False) for jail in jails), strict=True)
        natives = dict(zip([call.name for call in calls], by_call, strict=True))
        assert victim.poll() is None and file.read_text() == SECRET
        victim.kill()
        victim.communicate()
    cheats = [(cheat.code, split(cheat.tests, cheat.setup)) for cheat in CHEATS]
    by_cheat = list(zip(*(run_all(cheats, LIMITS, jail) for jail in jails), strict=True))
    honest = [(code, split([test])) for _, code, test in HONEST]
    passed = [sum(one.outcome == "passed" for one in run_all(honest, Limits(), jail)) for jail in jails]

    held = [sum(not verdicts[mode].num_passed for verdicts in columns.values()) for mode in range(2)]
    refused = [sum(not verdicts[mode].num_passed for verdicts in natives.values()) for mode in range(2)]
    failed = [sum(not verdicts[mode].num_passed for verdicts in by_cheat) for mode in range(2)]
    text = f"On Linux {platform.machine()}, Python {platform.python_version()}, as {'root' if os.getuid() == 0 else 'a user'}; "
    text += f"walls: {', '.join(walls.walls)}.\n\n"
    text += table(
        ["", "in a jail", "walls alone"],
        [
            [f"attacks that held, of {len(ATTACKS)}", *map(str, held)],
            [f"system calls of machine code that are refused, of {len(calls)}", *map(str, refused)],
            [f"cheats that passed no test, of {len(CHEATS)}", *map(str, failed)],
            [f"honest programs that passed, of {len(HONEST)}", *map(str, passed)],
        ],
    )
    for section, some in SECTIONS.items():
        rows = [[a.name, *(ended(one, is_attack=True) for one in columns[a.name])] for a in some]
        text += f"**Attacks on {section}**\n\n" + table(["attack", "in a jail", "walls alone"], rows)
    rows = [[f"`{name}`", *(ended(one, is_attack=True) for one in both)] for name, both in natives.items()]
    text += "**System calls of machine code**, with the hooks off\n\n" + table(
        ["call", "in a jail", "walls alone"], rows
    )
    rows = [
        [cheat.name, *(ended(one, is_attack=False) for one in both)]
        for cheat, both in zip(CHEATS, by_cheat, strict=True)
    ]
    text += "**Cheats**\n\n" + table(["cheat", "in a jail", "walls alone"], rows)
    return text + f"**Honest programs**, by what they return or take: {', '.join(name for name, _, _ in HONEST)}.\n"


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}{tables()}{END}{after}", encoding="utf-8")
