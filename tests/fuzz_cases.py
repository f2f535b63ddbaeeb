"""A command and its inputs from a seed: right ones, changed in a few places.

python tests/fuzz_cases.py 0 10000        these seeds, each alone in a folder; what ends wrongly is printed
python tests/fuzz_cases.py 4711           this one, with all that it printed; its inputs stay
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from fuzz_configs import KEYS, config_tree, set_a_key, variants, yaml_bytes
from fuzz_rows import ROWS, SUFFIXES, content_of, write_rows
from fuzz_values import as_json, bytes_of, damaged, misspelt, mutated, other_thing, spoil, value, word
from fuzz_world import Ended, World, run
from recipe_schemas import SCHEMAS

DATA_OF = {"reward": "pairs", "dpo": "pairs"}
FOCI = ("rows", "rows", "rows", "files", "model", "keys", "keys", "keys", "config", "words", "nothing")
"""What is wrong in a case; the rest of its inputs is right, so that the command comes as far as that."""
RECIPES = tuple(SCHEMAS)
MOST_BYTES = 8 << 30


class Case:
    """The inputs of one command, written to a folder."""

    def __init__(self, seed: int, world: World, folder: Path) -> None:
        self.drawn, self.world, self.folder = random.Random(seed), world, folder
        folder.mkdir(parents=True)
        self.stdin, self.trains = "", False
        self.focus = self.drawn.choice(FOCI)
        self.argv = self._argv()

    def chance(self, share: float) -> bool:
        return self.drawn.random() < share

    def _argv(self) -> list[str]:
        verbs: dict[Callable[[], list[str]], int] = {
            self._train: 50,
            self._preview: 8,
            self._prepare: 5,
            self._data: 9,
            self._tokenizer: 3,
            self._crossval: 4,
            self._sweep: 4,
            self._on_a_run: 8,
            self._answering: 7,
            self._words: 2,
        }
        argv = self.drawn.choices(list(verbs), list(verbs.values()))[0]()
        if self.focus == "words" and self.chance(0.7):
            argv.insert(self.drawn.randrange(1, len(argv) + 1), word(self.drawn, 2_000))
        elif self.focus == "words" and len(argv) > 1:
            del argv[self.drawn.randrange(1, len(argv))]
        return [word.replace("\0", "") for word in argv]  # no command line can hold it

    def rows(self, kind: str) -> Path:
        """A file of rows, of any format, changed or not."""
        drawn = self.drawn
        is_other = self.focus == "rows" and self.chance(0.15)
        rows = list(drawn.choice(ROWS[drawn.choice(list(ROWS)) if is_other else kind]) * drawn.choice((1, 4, 4)))
        if self.focus == "rows":
            at = drawn.randrange(len(rows))
            rows = [
                mutated(row, drawn, drawn.choice((1, 1, 2, 4))) if i == at or self.chance(0.2) else row
                for i, row in enumerate(rows)
            ]
        if self.focus not in ("rows", "files"):  # so that the command comes as far as what is wrong
            return write_rows(self.folder / "rows.jsonl", rows)
        suffix = drawn.choice(SUFFIXES)
        path = self.folder / f"rows.{suffix}"
        content = content_of(rows, suffix, drawn)
        if self.focus == "files" and self.chance(0.6):
            content = damaged(content, drawn)
        path.write_bytes(content)
        if self.focus == "files" and self.chance(0.4):
            other_thing(path, drawn)
        elif self.focus == "files" and self.chance(0.3):
            path.chmod(0)
        elif self.focus == "files":
            return self.folder
        return path

    def model(self) -> Path:
        """A model's folder with a part missing, torn or changed."""
        drawn, folder = self.drawn, self.folder / "model"
        shutil.copytree(drawn.choice((self.world.chat, self.world.chat, self.world.base)), folder)
        path = drawn.choice(sorted(folder.iterdir()))
        spoil(path, drawn, self._changed_file)
        return folder

    def _changed_file(self, path: Path) -> None:
        """Change what a model's file holds, or replace it."""
        drawn = self.drawn
        if path.suffix == ".json":
            tree = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(as_json(mutated(tree, drawn, drawn.choice((1, 1, 2)))), encoding="utf-8")
        else:
            path.write_bytes(bytes_of(word(drawn), drawn))

    def config(self, recipe: str) -> list[str]:
        """A configuration's file, and overrides."""
        drawn = self.drawn
        rows = self.rows(DATA_OF.get(recipe, recipe))
        tree = config_tree(recipe, self.world, self.folder, rows, drawn.choice(variants(recipe)))
        if self.chance(0.2):
            tree["data"]["eval_fraction"] = 0.5
        if self.chance(0.2):
            tree["adapter"] = {"kind": "lora", "rank": 2}
        if self.focus == "model":
            tree["model"] = {"path": str(self.model())}
        for _ in range(drawn.choice((1, 1, 2, 3)) if self.focus == "keys" else 0):
            set_a_key(tree, recipe, drawn)
        if self.focus == "config" and self.chance(0.6):
            tree = mutated(tree, drawn, drawn.choice((1, 1, 2, 5)))
        path = self.folder / "config.yaml"
        path.write_bytes(self._yaml(tree))
        if self.focus == "config" and self.chance(0.1):
            other_thing(path, drawn)
        overrides = []
        for _ in range(drawn.choice((1, 1, 2)) if self.focus == "words" else 0):
            key = drawn.choice(KEYS[recipe]) if self.chance(0.9) else word(drawn, 30)
            overrides.append(f"{key if self.chance(0.9) else misspelt(key, drawn)}={as_json(value(drawn))[:5_000]}")
        return [str(path), *overrides]

    def _yaml(self, tree: Any) -> bytes:
        return yaml_bytes(tree, self.drawn, is_changed=self.focus == "config")

    def _train(self) -> list[str]:
        recipe = self.drawn.choice(RECIPES)
        verb = recipe if recipe in ("pretrain", "sft") else "rlhf"
        argv = [verb if self.chance(0.95) else self.drawn.choice(("pretrain", "sft", "rlhf")), *self.config(recipe)]
        if self.chance(0.015):
            self.trains = True
            argv += [
                "train.steps=1",
                "train.epochs=null",
                "model.config=null" if recipe != "pretrain" else "run.seed=1",
            ]
        return argv

    def _preview(self) -> list[str]:
        packs = [f"--packs={word(self.drawn, 20)}"] if self.chance(0.2) else []
        return ["preview", *self.config("sft"), *packs]

    def _prepare(self) -> list[str]:
        recipe = self.drawn.choice(RECIPES)
        given = ["--recipe", recipe if recipe in ("pretrain", "sft") else "rlhf"] if self.chance(0.8) else []
        return ["prepare", *self.config(recipe), "--workers=1", *given]

    def _data(self) -> list[str]:
        words = [str(self.rows(self.drawn.choice(list(ROWS))))]
        keys = ("fields", "split", "name", "slice", "text_field", "pattern", "filter", "clean", "limit", "roles", "pth")
        for _ in range(self.drawn.choice((0, 0, 1, 2))):
            words.append(f"{self.drawn.choice(keys)}={as_json(value(self.drawn))[:3_000]}")
        return ["data", *words]

    def _tokenizer(self) -> list[str]:
        tree: dict[str, Any] = {
            "sources": str(self.rows("pretrain")),
            "output": str(self.folder / "tokenizer"),
            "vocab_size": 300,
        }
        tree = mutated(tree, self.drawn, self.drawn.choice((1, 2)) if self.focus in ("keys", "config") else 0)
        path = self.folder / "config.yaml"
        path.write_bytes(self._yaml(tree))
        return ["tokenizer", str(path)]

    def _crossval(self) -> list[str]:
        folds = word(self.drawn, 20) if self.chance(0.3) else "2"
        by = [f"--by={word(self.drawn, 40)}"] if self.chance(0.3) else []
        recipe = self.drawn.choice(("sft", "reward", "dpo", "kto", "pretrain"))
        return ["crossval", *self.config(recipe), f"--folds={folds}", *by]

    def _sweep(self) -> list[str]:
        space: dict[str, Any] = {"optim.lr": {"log": [1e-5, 1e-3]}, "train.steps": [1, 2]}
        space = mutated(space, self.drawn, self.drawn.choice((1, 2)) if self.focus in ("keys", "config") else 0)
        path = self.folder / "space.yaml"
        path.write_bytes(self._yaml(space))
        config, *overrides = self.config(self.drawn.choice(("sft", "pretrain", "dpo")))
        return ["sweep", config, str(path), "data.eval_fraction=0.5", *overrides, "--trials=1", "--recipe=sft"]

    def _on_a_run(self) -> list[str]:
        """Commands that read a run's folder, of which a part is missing or changed."""
        drawn, folder = self.drawn, self.folder / "made"
        shutil.copytree(drawn.choice(list(self.world.runs.values())), folder)
        path, files = folder, sorted(path for path in folder.rglob("*") if path.is_file())
        for _ in range(drawn.choice((1, 1, 2)) if self.focus != "nothing" else 0):
            path = drawn.choice(files)
            if path.is_file():
                spoil(path, drawn, self._changed_record)
        run_ = str(folder if self.chance(0.8) else drawn.choice((folder / "model", folder / "nowhere", path)))
        verb = drawn.choice(("report", "report", "export", "merge", "sample", "chat", "generate", "sft"))
        match verb:
            case "report":
                return ["report", run_, "--output", str(self.folder / "report.html")]
            case "export":
                step = drawn.choice(("latest", "best", "1", "-1", "x", "99999999999999999999", ""))
                return ["export", run_, "--step", step, "--output", str(self.folder / "out")]
            case "merge":
                return ["merge", run_, str(self.folder / "out")]
            case "sft":  # goes on
                return ["sft", str(folder / "config.yaml"), f"run.dir={folder}"]
        return self._asks(verb, run_)

    def _changed_record(self, path: Path) -> None:
        """Change what a run's file holds."""
        drawn = self.drawn
        try:
            self._change_values(path, drawn)
        except (yaml.YAMLError, RecursionError):  # it was spoilt before
            path.write_bytes(damaged(path.read_bytes(), drawn))

    def _change_values(self, path: Path, drawn: random.Random) -> None:
        match path.suffix:
            case ".jsonl":
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines() or ["{}"]
                at = drawn.randrange(len(lines))
                lines[at] = as_json(mutated(yaml.safe_load(lines[at]), drawn, 2))
                path.write_text("\n".join(lines) + "\n")
            case ".json" | ".yaml":
                tree = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
                path.write_text(as_json(mutated(tree, drawn, drawn.choice((1, 3)))))
            case _:
                path.write_bytes(damaged(path.read_bytes(), drawn))

    def _answering(self) -> list[str]:
        model = self.model() if self.focus in ("model", "keys", "config") else self.world.chat
        return self._asks(self.drawn.choice(("chat", "generate", "sample")), str(model))

    def _asks(self, verb: str, model: str) -> list[str]:
        drawn = self.drawn
        options = ["--max-new-tokens", "2"]
        if self.focus == "words":
            name = drawn.choice(("--temperature", "--top-p", "--max-new-tokens", "--seed", "--batch-size", "--system"))
            options += [f"{name}={word(drawn, 30)}"]
        match verb:
            case "chat":
                self.stdin = "hi\n/new\n" + word(drawn, 500) + "\n"
                return ["chat", model, *options]
            case "generate":
                return ["generate", model, str(self.rows("policy")), str(self.folder / "out.jsonl"), *options]
        return ["sample", model, word(drawn, 300)]

    def _words(self) -> list[str]:
        return [word(self.drawn, 50) or "x" for _ in range(self.drawn.choice((1, 1, 2, 4)))]


def tried(seed: int, world: World, folder: Path) -> tuple[Case, Ended]:
    """The case of a seed, and how it ends."""
    case = Case(seed, world, folder / str(seed))
    return case, run(case.argv, folder=folder / str(seed), stdin=case.stdin, trains=case.trains)


def described(ended: Ended) -> str:
    """What is wrong with an ending, and where."""
    lines = str(ended.code).strip().splitlines()
    ours = [line.strip() for line in lines if "/llmtrain/" in line and line.strip().startswith("File")]
    where = ours[-1].rpartition("/llmtrain/")[2] if ours else ""
    return f"{(ended.fault or '').splitlines()[0][:60]} | {lines[-1][:200]} | {where} | {ended.err[-300:]!r}"


def main() -> None:
    """Try the seeds of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("end", type=int, nargs="?")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))  # an endless file must not take the machine
    folder = Path(tempfile.mkdtemp(prefix="llmtrain-fuzz-"))
    os.environ |= {"LLMTRAIN_CACHE": str(folder / "shared"), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    world = World(folder)
    if arguments.end is None:
        case, ended = tried(arguments.first, world, folder)
        print(case.argv, ended.code, ended.out[-3000:], ended.err, ended.fault, folder / str(arguments.first), sep="\n")
        return
    codes: collections.Counter[str] = collections.Counter()
    started = time.monotonic()
    for seed in range(arguments.first, arguments.end):
        begun = time.monotonic()
        if os.environ.get("FUZZ_SAYS"):
            print("seed", seed, flush=True)
        case, ended = tried(seed, world, folder)
        seconds = time.monotonic() - begun
        codes[str(ended.code)[:1] if isinstance(ended.code, int) else "fault"] += 1
        if ended.fault is not None:
            print(f"FAULT seed {seed}, {seconds:.1f} s: {described(ended)} | {' '.join(case.argv)[:120]!r}", flush=True)
        shutil.rmtree(folder / str(seed), ignore_errors=True)
    print(f"seeds {arguments.first} to {arguments.end}: {dict(codes)}, {time.monotonic() - started:.0f} s", flush=True)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
