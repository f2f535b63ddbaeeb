"""How much code a row and a prompt pass through: functions and files, counted by tracing tiny runs of a checkout.

    python benchmarks/flow.py                        # this checkout
    python benchmarks/flow.py --tree PATH            # another one: git worktree add PATH REVISION

The recipes `rlhf.py` and `sft.py` run in turn in one process, on the tiny model and rows of the tests. A profile
function records which functions of llmtrain are called. Three windows count:

- row to store: from the first function of `data/` that only a run with an empty cache calls, to the end of the last
  `finish` of `data/store/documents.py`. Comparing with a second run, which finds its store, shows which functions
  those are.
- step to gradient: from the loop's call of `next_step` to the end of its last `backward`, in a step without evaluation
  or checkpoint.
- prompt to gradient: what `data/` does before the first step, and the first step of PPO, which makes a rollout.

Functions within functions, lambdas and comprehensions count as part of the function around them. The last line is JSON.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import runpy
import shutil
import subprocess
import sys
import threading
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
Function = tuple[str, str]  # (file within llmtrain, name)

MEASURED_STEP = 2
"""The step that is measured in tuning, from 0: neither the first nor the last, which evaluate and save."""
FINISH = ("data/store/documents.py", "finish")
"""What ends the building of a store."""


class Trace:
    """Every call of a function of a tree's llmtrain, in order, with the calls and returns that bound the windows."""

    def __init__(self, tree: Path) -> None:
        self._package = f"{tree / 'llmtrain'}{os.sep}"
        self._functions: dict[CodeType, Function | None] = {}
        self.events: list[tuple[str, str, str]] = []  # ("call" | "step" | "return", file, function)

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event not in ("call", "return"):
            return
        function = self._function(frame.f_code)
        if function is None:
            return
        file, name = function
        if event == "call":
            caller = self._function(frame.f_back.f_code) if frame.f_back is not None else None
            if name.endswith(".next_step") and caller is not None and caller[0] == "train/loop.py":
                self.events.append(("step", *caller))
            self.events.append(("call", file, name))
        elif (file, name) == FINISH or (name.endswith(".backward") and file.startswith("train/")):
            self.events.append(("return", file, name))

    def _function(self, code: CodeType) -> Function | None:
        if code not in self._functions:
            inside = code.co_filename.startswith(self._package)
            name = code.co_qualname.split(".<locals>")[0]
            is_function = code.co_flags & CO_OPTIMIZED and not name.startswith("<")  # not the body of a class or module
            file = code.co_filename.removeprefix(self._package)
            self._functions[code] = (file, name) if inside and is_function else None
        return self._functions[code]


def trace(tree: Path, folder: Path) -> None:
    """Run the recipes of a tree in this process, as `plan.json` says, each under a trace, and write their events."""
    for name, recipe in json.loads((folder / "plan.json").read_text()):
        recorded = Trace(tree)
        sys.argv = [recipe, str(folder / f"{name}.yaml")]
        threading.setprofile(recorded)
        sys.setprofile(recorded)
        try:
            runpy.run_path(str(tree / "recipes" / recipe), run_name="__main__")
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
        (folder / f"{name}.json").write_text(json.dumps(recorded.events))


def events_of(tree: Path, runs: list[tuple[str, str, dict[str, Any]]], folder: Path) -> list[list[list[str]]]:
    """The events of runs (name, recipe, configuration), which run in turn in one separate process."""
    for name, _, config in runs:
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    (folder / "plan.json").write_text(json.dumps([(name, recipe) for name, recipe, _ in runs]))
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--tree", str(tree), "--trace", str(folder)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{tree}:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    return [json.loads((folder / f"{name}.json").read_text()) for name, _, _ in runs]


def called(events: list[list[str]]) -> set[Function]:
    """The functions that events call or come from."""
    return {(file, name) for _, file, name in events}


def to_store(built: list[list[str]], found: list[list[str]]) -> set[Function]:
    """What runs from a row to its store: `built` is of a run with an empty cache, `found` of one with a full one."""
    only = called(built) - called(found)
    first = next(i for i, (_, file, name) in enumerate(built) if (file, name) in only and file.startswith("data/"))
    last = max(i for i, (kind, file, name) in enumerate(built) if kind == "return" and (file, name) == FINISH)
    return called(built[first : last + 1])


def to_gradient(events: list[list[str]], step: int) -> set[Function]:
    """What runs from the loop's call of `next_step` to the end of the last backward of a step, from 0."""
    starts = [i for i, (kind, _, _) in enumerate(events) if kind == "step"]
    window = events[starts[step] : starts[step + 1]]
    last = max(i for i, (kind, _, name) in enumerate(window) if kind == "return" and name.endswith(".backward"))
    return called(window[: last + 1])


def reading(events: list[list[str]]) -> set[Function]:
    """What `data/` runs before the first step."""
    start = next(i for i, (kind, _, _) in enumerate(events) if kind == "step")
    return {(file, name) for file, name in called(events[:start]) if file.startswith("data/")}


def flows(tree: Path, work: Path) -> dict[str, set[Function]]:
    """The windows of a tree."""
    sys.path.insert(0, str(ROOT / "tests"))
    import golden

    inputs = golden.write_inputs(work / "inputs")
    short = {"eval": {"every": None}, "checkpoint": {"every": None}}
    sft = golden.tree_of("sft", inputs, work / "built") | short
    sft["train"]["steps"] = MEASURED_STEP + 2
    ppo = golden.tree_of("ppo", inputs, work / "ppo") | short
    ppo["train"]["steps"] = 2
    # Only keys that every tree has: revisions differ in the name of PPO's epochs.
    ppo["rollout"] = {"rewards": ppo["rollout"]["rewards"], "num_prompts": 8, "max_new_tokens": 12}
    again = sft | {"run": sft["run"] | {"dir": str(work / "found")}}
    # PPO comes first: what is computed once per process, and cached, is then no part of the other two.
    runs = [("ppo", "rlhf.py", ppo), ("built", "sft.py", sft), ("found", "sft.py", again)]
    rollouts, built, found = events_of(tree, runs, work)
    store, gradient = to_store(built, found), to_gradient(built, MEASURED_STEP)
    return {
        "row to store": store,
        "step to gradient": gradient,
        "row to gradient": store | gradient,
        "prompt to gradient": reading(rollouts) | to_gradient(rollouts, 0),
    }


def signatures(tree: Path) -> list[tuple[int, str]]:
    """(number of parameters without self, `file:function`) of every function, the largest first."""
    found = []
    for path in sorted((tree / "llmtrain").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                spec = node.args
                names = [argument.arg for argument in [*spec.posonlyargs, *spec.args, *spec.kwonlyargs]]
                names += [argument.arg for argument in (spec.vararg, spec.kwarg) if argument is not None]
                number = len([name for name in names if name not in ("self", "cls")])
                found.append((number, f"{path.relative_to(tree / 'llmtrain')}:{node.name}"))
    return sorted(found, key=lambda signature: (-signature[0], signature[1]))


def report(tree: Path, work: Path, names: bool) -> dict[str, Any]:
    """Print the counts of a tree, with all functions where `names`, and return them."""
    modules = [path for path in (tree / "llmtrain").rglob("*.py") if path.name != "__init__.py"]
    largest = signatures(tree)[:5]
    counts: dict[str, Any] = {}
    for window, functions in flows(tree, work).items():
        files = sorted({file for file, _ in functions})
        counts[window] = {"functions": len(functions), "files": len(files)}
        print(f"{window}: {len(functions)} functions in {len(files)} files")
        for file in files if names else []:
            print(f"  {file}: {', '.join(sorted(name for place, name in functions if place == file))}")
    counts["modules"] = len(modules)
    counts["lines"] = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in modules)
    counts["largest signatures"] = [f"{number} {name}" for number, name in largest]
    counts["signatures over 7"] = sum(number > 7 for number, _ in signatures(tree))
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tree", type=Path, default=ROOT, help="checkout to count; default: this one")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "flow", help="folder for the runs; emptied first")
    parser.add_argument("--names", action="store_true", help="list the functions by file")
    parser.add_argument("--trace", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    tree = arguments.tree.resolve()
    if arguments.trace is not None:
        trace(tree, arguments.trace)
        return
    work = arguments.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    print(json.dumps(report(tree, work, arguments.names)))


if __name__ == "__main__":
    main()
