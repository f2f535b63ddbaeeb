"""What a run pins: a copy of everything elsewhere goes on, and one change of what decides its course is refused.

Every recipe, and each thing that its configuration only names: base, tokenizer, data, rewards, critic.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_chat import write_model, write_rows
from tiny_pairs import write_pairs
from tiny_run import PRETRAIN, RLHF, SFT, Ended, run_here, write_corpus

REWARD_FILE = """
import letters

def share(prompts, responses, rows):
    return [response.count("a") / 10 + letters.bonus(response) for response in responses]
"""
LETTERS_FILE = "def bonus(response):\n    return response.count('b') / 20\n"

RECIPES = ("pretrain", "sft", "reward", "preference", "policy")
SCRIPTS = {"pretrain": PRETRAIN, "sft": SFT, "reward": RLHF, "preference": RLHF, "policy": RLHF}


def tree_of(recipe: str, inputs: str) -> dict[str, Any]:
    """The configuration of one step of a recipe on the files of `inputs`."""
    tree: dict[str, Any] = {
        "model": {"path": f"{inputs}/base"},
        "data": {"train": f"{inputs}/pairs.jsonl", "max_seq_len": 128, "eval_fraction": 0.2},
        "train": {"steps": 1, "global_batch_tokens": 256, "microbatch_tokens": 256},
        "eval": {"every": None},
        "optim": {"warmup_steps": 0, "schedule": "constant"},
        "log": {"report": False},
    }
    if recipe == "pretrain":
        tree["data"]["train"] = f"{inputs}/corpus.jsonl"
    elif recipe == "sft":
        tree["data"]["train"] = f"{inputs}/rows.jsonl"
    elif recipe == "policy":
        del tree["train"]["global_batch_tokens"]
        rewards = [f"{inputs}/rewards.py:share", {"name": "model", "path": f"{inputs}/scorer"}]
        tree["policy"] = {"critic_init": f"{inputs}/critic"}
        tree["rollout"] = {"rewards": rewards, "num_prompts": 4, "max_new_tokens": 4, "ppo_epochs": 1}
    else:
        tree[recipe] = {}
    return tree


def run_of(recipe: str, folder: Path, inputs: Path, *overrides: str) -> Ended:
    config = folder.parent / f"{recipe}.yaml"
    tree = tree_of(recipe, str(inputs)) | {"run": {"dir": str(folder)}}
    tree["data"]["cache_dir"] = str(inputs.parent / "cache")
    config.write_text(yaml.safe_dump(tree))
    sys.path.insert(0, str(inputs))
    try:
        return run_here(config, *overrides, recipe=SCRIPTS[recipe])
    finally:
        sys.path.remove(str(inputs))
        sys.modules.pop("letters", None)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `inputs` and a run of one step of each recipe; beside it, a copy `kept`."""
    folder = tmp_path_factory.mktemp("started") / "here"
    folder.mkdir()
    inputs = folder / "inputs"
    inputs.mkdir()
    write_model(inputs / "base", spread=0.1)
    write_corpus(inputs / "corpus.jsonl", seed=1)
    write_rows(inputs / "rows.jsonl", seed=1)
    write_pairs(inputs / "pairs.jsonl", seed=1)
    (inputs / "rewards.py").write_text(REWARD_FILE)
    (inputs / "letters.py").write_text(LETTERS_FILE)
    for recipe in RECIPES:
        ended = run_of(recipe, folder / recipe, inputs)
        assert ended.code == 0, (recipe, ended.err)
        if recipe == "reward":
            for name in ("scorer", "critic"):
                shutil.copytree(folder / "reward" / "model", inputs / name)
    shutil.copytree(folder, folder.parent / "kept")
    return folder


@pytest.fixture
def here(started: Path) -> Path:
    """It, as it was when its runs had ended."""
    shutil.rmtree(started)
    return shutil.copytree(started.parent / "kept", started)


@pytest.fixture
def moved(started: Path, tmp_path: Path) -> Path:
    """A copy of it in another folder."""
    return shutil.copytree(started.parent / "kept", tmp_path / "moved")


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def other_weights(folder: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights[name][-1] += 0.001
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def change_text(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))


FIRST_TEXT = {"corpus.jsonl": "text", "rows.jsonl": "content", "pairs.jsonl": "prompt"}


def rope_theta(config: dict[str, Any]) -> None:
    config["rope_parameters"]["rope_theta"] = 50000.0


EVERYWHERE: dict[str, tuple[Callable[[Path], None], str]] = {
    "one value of a weight": (lambda at: other_weights(at / "base", "model.norm.weight"), "the base model"),
    "rope_theta": (
        lambda at: change_json(at / "base/config.json", rope_theta),
        "base.configuration.rope_parameters.rope_theta was 10000.0 and is 50000.0 now",
    ),
    "rms_norm_eps": (
        lambda at: change_json(at / "base/config.json", lambda tree: tree.update(rms_norm_eps=1e-3)),
        "base.configuration.rms_norm_eps was 1e-06 and is 0.001 now",
    ),
    "activation": (
        lambda at: change_json(at / "base/config.json", lambda tree: tree.update(hidden_act="gelu")),
        "base.configuration.hidden_act was 'silu' and is 'gelu' now",
    ),
    "chat template": (
        lambda at: change_text(at / "base/chat_template.jinja", "m['content']", "m['content']|trim"),
        "the tokenizer or its chat template changed",
    ),
    "padding token": (
        lambda at: change_json(at / "base/tokenizer_config.json", lambda tree: tree.update(pad_token="<|im_end|>")),
        "the tokenizer or its chat template changed",
    ),
    "a word of the data": (
        lambda at: (
            [change_text(at / name, f'"{key}": "', f'"{key}": "b ') for name, key in FIRST_TEXT.items()] and None
        ),
        "the data changed",
    ),
}
OF_POLICIES: dict[str, tuple[Callable[[Path], None], str]] = {
    "code of a reward": (lambda at: change_text(at / "rewards.py", "/ 10", "/ 11"), "a reward changed"),
    "a module that a reward imports": (lambda at: change_text(at / "letters.py", "/ 20", "/ 21"), "a reward changed"),
    "head of a reward model": (lambda at: other_weights(at / "scorer", "score.weight"), "a reward changed"),
    "configuration of a reward model": (
        lambda at: change_json(at / "scorer/config.json", rope_theta),
        "rewards[1].model.configuration.rope_parameters.rope_theta was 10000.0 and is 50000.0 now",
    ),
    "template of a reward model": (
        lambda at: change_text(at / "scorer/chat_template.jinja", "m['content']", "m['content']|trim"),
        "a reward changed",
    ),
    "head of the critic's start": (
        lambda at: other_weights(at / "critic", "score.weight"),
        "what the critic starts as changed",
    ),
}
LIKE_ROPE_THETA = ("rms_norm_eps", "activation")  # fields of one file: test-all changes them for one recipe
CASES = [
    *((recipe, name, *EVERYWHERE[name]) for recipe in RECIPES for name in EVERYWHERE),
    *(("policy", name, *OF_POLICIES[name]) for name in OF_POLICIES),
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_goes_on_with_a_copy_of_everything_elsewhere(moved: Path, recipe: str) -> None:
    ended = run_of(recipe, moved / recipe, moved / "inputs", "train.steps=2")
    assert ended.code == 0 and "resumed at step 1" in ended.out, ended.err


@pytest.mark.parametrize(
    ("recipe", "_change", "apply", "said"),
    [
        pytest.param(
            *case,
            marks=pytest.mark.soak if case[0] != "pretrain" and case[1] in LIKE_ROPE_THETA else (),
            id="-".join(case[:2]),
        )
        for case in CASES
    ],
)
def test_a_run_does_not_go_on_with_what_changed(
    here: Path, recipe: str, _change: str, apply: Callable[[Path], None], said: str
) -> None:
    apply(here / "inputs")
    ended = run_of(recipe, here / recipe, here / "inputs", "train.steps=2")
    assert ended.code == 2 and ended.err.count("\n") == 1, ended.err
    assert said in ended.err and f"run.dir={here / recipe}" in ended.err and "start another run" in ended.err


@pytest.mark.parametrize(
    "rewards",
    [
        ["json_valid"],
        [{"name": "length", "target": 4, "unit": "words"}],
        [{"name": "length", "target": 3, "unit": "words", "weight": 0.5}],
        [{"name": "length", "target": 3, "unit": "words"}, "json_valid"],
    ],
)
def test_a_policy_does_not_go_on_with_other_rewards_or_settings(here: Path, tmp_path: Path, rewards: list[Any]) -> None:
    given = [{"name": "length", "target": 3, "unit": "words"}]
    zero = "policy.critic_init=zero"
    assert run_of("policy", tmp_path / "run", here / "inputs", f"rollout.rewards={json.dumps(given)}", zero).code == 0
    ended = run_of(
        "policy", tmp_path / "run", here / "inputs", f"rollout.rewards={json.dumps(rewards)}", zero, "train.steps=2"
    )
    assert ended.code == 2 and "reward" in ended.err and ended.err.count("\n") == 1, ended.err


def test_a_run_of_a_version_that_pinned_less_is_refused(here: Path) -> None:
    change_json(here / "sft/environment.json", lambda tree: tree.pop("pinned", None))
    ended = run_of("sft", here / "sft", here / "inputs", "train.steps=2")
    assert ended.code == 2 and "started by a version of llmtrain that did not record all" in ended.err, ended.err


@pytest.mark.parametrize("spelling", ["{0}/", "{0}/.", "{1}/./{2}", "{1}/link"])
def test_spellings_of_a_folder_are_the_same_run(moved: Path, spelling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (moved / "link").symlink_to(moved / "sft")
    tree = tree_of("sft", "inputs") | {"run": {"dir": spelling.format(moved / "sft", moved, "sft")}}
    monkeypatch.chdir(moved)  # the data too is spelled in another way
    (moved / "again.yaml").write_text(yaml.safe_dump(tree))
    ended = run_here(moved / "again.yaml", "train.steps=2", recipe=SFT)
    assert ended.code == 0 and "resumed at step 1" in ended.out, ended.err
