"""The commands that README and docs show: their files exist, and their configurations are valid as written."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmtrain.cli.launch import VERBS as LAUNCHED
from llmtrain.cli.main import VERBS
from llmtrain.config.load import load_config
from llmtrain.config.recipes import (
    PolicyStageConfig,
    PreferenceStageConfig,
    PretrainConfig,
    RewardStageConfig,
    SftConfig,
)
from llmtrain.config.sections import Section
from llmtrain.config.shipped import shipped_configs
from llmtrain.config.stages import load_stages
from llmtrain.config.tokenizer import TokenizerTrainConfig
from llmtrain.launch.options import parsed
from llmtrain.rewards.functions import REWARDS
from llmtrain.train.engines.table import ENGINES, FEATURES, refusal

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "AGENTS.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [ROOT / "tokenizer" / "README.md"]
RUN_ELSEWHERE = {"guide.md", "cluster.md"}
"""Pages whose commands tests/recipes/test_guide.py and tests/slurm/test_page.py run, on files that they write."""
YAMLS = sorted(path for folder in ("recipes/configs", "tokenizer") for path in (ROOT / folder).glob("*.yaml"))
SCHEMAS: dict[str, type[Section]] = {
    "pretrain": PretrainConfig,
    "sft": SftConfig,
    "rlhf": RewardStageConfig,
    "recipes/pretrain.py": PretrainConfig,
    "recipes/sft.py": SftConfig,
    "recipes/rlhf.py": RewardStageConfig,
    "tokenizer/train.py": TokenizerTrainConfig,
}
"""Verb or script -> the configuration it reads; `rlhf` chooses by the sections of the file."""


def config_file(name: str) -> str:
    """The file of a configuration that a command names: a path, or the name of a shipped one."""
    path = ROOT / name
    return str(path if path.suffix == ".yaml" else ROOT / "recipes" / "configs" / f"{name}.yaml")


def check_arguments(recipe: str, arguments: list[str]) -> None:
    """Raise where `CONFIG [key=value ...]` is no valid configuration of a recipe."""
    config, *overrides = arguments
    argv = [config_file(config), *overrides]
    if recipe.removesuffix(".py").endswith("rlhf"):
        load_stages(argv)
    else:
        load_config(SCHEMAS[recipe], argv)


def commands(text: str) -> Iterator[list[str]]:
    """Each shown command as words: continued lines joined, comments and leading VAR=value left out."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True) if _is_command(line) else []
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        if words:
            yield words


def _is_command(line: str) -> bool:
    return re.match(r"(\$ )?([A-Z_]+=\S* )*(python|accelerate launch|make|llmtrain) ", line) is not None


def block_commands(page: Path) -> list[list[str]]:
    """The commands in a page's code blocks."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [words for block in blocks for words in commands(block)]


SHOWN = [(page, words) for page in PAGES if page.name not in RUN_ELSEWHERE for words in block_commands(page)]
SHOWN += [
    (path, words)
    for path in YAMLS
    for words in commands("\n".join(line.lstrip("# ") for line in path.read_text().splitlines() if line[:1] == "#"))
]


@pytest.mark.parametrize(("page", "words"), SHOWN, ids=[f"{page.name}: {' '.join(words)}" for page, words in SHOWN])
def test_a_shown_command_would_start(page: Path, words: list[str]) -> None:
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        return
    if words[0] == "llmtrain":
        assert words[1] in VERBS
        if words[1] == "launch":
            check_launch(words[2:])
            return
        if words[1] == "preview":
            check_arguments("sft", words[2:])
        elif words[1] in SCHEMAS and words[2:] != ["--help"]:
            check_arguments(words[1], words[2:])
        return
    if words[:2] == ["python", "-m"]:
        name = words[2].replace(".", "/")
        assert words[2] in {"pytest", "venv", "pip"} or (ROOT / f"{name}.py").exists()
        return
    script = next(i for i, word in enumerate(words) if word.endswith(".py"))
    launcher, arguments = words[:script], words[script + 1 :]
    assert (ROOT / words[script]).is_file()
    for word in launcher:
        assert not word.endswith(".yaml") or (ROOT / word).is_file(), word
    if words[script] in SCHEMAS and arguments != ["--help"]:
        check_arguments(words[script], arguments)


def check_launch(words: list[str]) -> None:
    """Check the options of `llmtrain launch`, and what follows its verb."""
    at = next(i for i, word in enumerate(words) if word in LAUNCHED)
    options = parsed(words)
    assert options.config_file is None or options.config_file in shipped_configs("accelerate")
    check_arguments(words[at], words[at + 1 :])


def test_the_first_page_shows_commands() -> None:
    shown = [words for page, words in SHOWN if page.name == "README.md"]
    assert [words for words in shown if words[:2] == ["llmtrain", "sft"]]
    assert [words for words in shown if "recipes/sft.py" in words]


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.name)
def test_a_configuration_of_ours_is_valid(path: Path) -> None:
    is_tokenizer = path.parent.name == "tokenizer" or path.stem.endswith("_tokenizer")
    by_name = {"sft": SftConfig, "reward": RewardStageConfig, "ppo": PolicyStageConfig, "dpo": PreferenceStageConfig}
    if path.stem.startswith("rlhf"):
        assert len(load_stages([str(path)]).configs) > 1
        return
    schema = by_name.get(path.stem.split("_")[0], PretrainConfig)
    load_config(TokenizerTrainConfig if is_tokenizer else schema, [str(path)])


def test_every_reward_that_there_is_is_listed() -> None:
    page = (ROOT / "docs" / "rlhf.md").read_text(encoding="utf-8")
    assert not [name for name in [*REWARDS, "model"] if f"`{name}`" not in page]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def engine_table() -> str:
    """The engines' table of docs/pretrain.md, from the one that decides."""
    lines = [f"| | {' | '.join(ENGINES)} |", f"|---{'|---' * len(ENGINES)}|"]
    for feature in FEATURES:
        cells = ["yes" if refusal(feature, engine, "fp32") is None else "no" for engine in ENGINES]
        lines.append(f"| {feature.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_table_of_engines_is_the_one_that_decides() -> None:
    table = engine_table()
    assert table in (ROOT / "docs" / "pretrain.md").read_text(), f"docs/pretrain.md should hold:\n{table}"
