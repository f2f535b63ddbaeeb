"""`llmtrain data --report`: what is to be measured of which sources, the measures, the page."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtrain.config.data import CleanConfig, DataConfig, Source
from llmtrain.config.load import config_of, read_given
from llmtrain.config.recipes import PretrainConfig, RecipeConfig, SftConfig
from llmtrain.config.shipped import shipped_configs
from llmtrain.config.stages import stages_of
from llmtrain.config.tokenizer import TokenizerTrainConfig
from llmtrain.config.which import fitting_recipes
from llmtrain.data.survey import Survey, Use
from llmtrain.system.paths import local_path
from llmtrain.system.terminal import say

if TYPE_CHECKING:
    from llmtrain.data.quality.measure import Asked
    from llmtrain.data.quality.sample import Reading

CONFIG_SUFFIXES = (".yaml", ".yml")
TOKENIZER = "tokenizer.json"
SECONDS_BETWEEN_LINES = 10.0
BEST_USES: Sequence[Use] = ("pairs", "kto", "sft", "prompts", "pretrain")
"""Uses of rows, the one that shows most of them first: a pair is also a chat, and a chat is also a prompt."""
STAGE_USES: dict[str, Use] = {"reward": "pairs", "preference": "pairs", "policy": "prompts"}


@dataclass(frozen=True)
class Configured:
    """What a recipe's configuration says of its data."""

    sources: Sequence[tuple[Source, Use]]  # and what each is read for
    held_out: Sequence[Source] = ()
    clean: CleanConfig | None = None
    tokenizer: str | None = None
    cache_dir: str | None = None


@dataclass(frozen=True)
class Wanted:
    """What a command line asks for besides the sources."""

    output: Path
    rows: int
    seed: int
    against: Sequence[Source] = ()
    tokenizer: str | None = None
    model: str | None = None
    config: Configured | None = None
    command: Sequence[str] = field(default_factory=tuple)


def names_config(given: Sequence[str]) -> bool:
    """Whether a command line begins with a configuration: a YAML file, or the name of a shipped one."""
    first = given[0]
    if first.endswith(CONFIG_SUFFIXES):
        return True
    return not Path(first).exists() and "/" not in first and first in shipped_configs("recipes", "tokenizer")


def configured(given: Sequence[str]) -> Configured:
    """What `CONFIG [key=value ...]` says of its data. Raises ValueError as the recipe would, in one line."""
    read = read_given(given, "data")
    fitting = fitting_recipes(read.file, read.tree)
    if not fitting:
        raise ValueError(
            f"{read.path} is a configuration of no recipe: start its run, which names the key that is wrong, or give "
            "the path of the data"
        )
    match fitting[0]:
        case "pretrain":
            return _of_recipe(config_of(PretrainConfig, read), "pretrain")
        case "sft":
            return _of_recipe(config_of(SftConfig, read), "sft")
        case "tokenizer":
            return Configured([(source, "pretrain") for source in config_of(TokenizerTrainConfig, read).sources])
    stages = [_of_recipe(config, STAGE_USES[name]) for name, config in stages_of(read).configs.items()]
    return Configured(
        sources=_distinct([each for stage in stages for each in stage.sources]),
        held_out=_distinct([each for stage in stages for each in stage.held_out]),
        tokenizer=stages[0].tokenizer,
        cache_dir=stages[0].cache_dir,
    )


def _of_recipe(config: RecipeConfig, use: Use) -> Configured:
    data = config.data
    clean = data.clean if isinstance(data, DataConfig) else None
    decontaminated = [Source(path=path, split="all") for path in (clean.decontaminate if clean is not None else ())]
    return Configured(
        sources=[(source, use) for source in data.train],
        held_out=[*(data.eval or ()), *decontaminated],
        clean=clean,
        tokenizer=config.tokenizer.path or config.model.path,
        cache_dir=data.cache_dir,
    )


def _distinct(each: Sequence[Any]) -> list[Any]:
    return [value for place, value in enumerate(each) if value not in each[:place]]


def wanted(arguments: argparse.Namespace, config: Configured | None) -> Wanted:
    """The options, checked before anything is read. Raises ValueError."""
    from llmtrain.data.sources.files import resolve, whole_source
    from llmtrain.runs.report.svg import require_matplotlib

    output: Path = arguments.report
    require_matplotlib()
    if output.is_dir():
        raise ValueError(f"--report {output}: is a folder: name a file in it, such as data.html")
    if not output.parent.is_dir():
        raise ValueError(f"--report {output}: the folder {output.parent} does not exist")
    against = [whole_source(path) for path in arguments.against or ()]
    for source in against:
        resolve(source)
    if arguments.tokenizer is not None:  # of a configuration, one that is not there is a line on the page
        _load_tokenizer(arguments.tokenizer, "--tokenizer")
    if arguments.model is not None:
        from llmtrain.models.folders.given import given_folder

        given_folder(arguments.model, say)
    return Wanted(
        output=output,
        rows=arguments.rows,
        seed=arguments.seed,
        against=_distinct([*against, *(config.held_out if config is not None else ())]),
        tokenizer=arguments.tokenizer,
        model=arguments.model,
        config=config,
    )


def write_report(surveys: Sequence[Survey], options: Wanted) -> None:
    """Measure, print what was found, write the page and print its path. Raises ValueError."""
    from llmtrain.data.quality.measure import measured
    from llmtrain.data.quality.sample import read_sample
    from llmtrain.runs.report.quality.findings import findings
    from llmtrain.runs.report.quality.report import write_page

    asked = _asked(options)
    readings = _readings(surveys, options.config)
    say("")
    started = time.monotonic()
    sample = read_sample(readings, options.rows, options.seed, _progress())
    part = "all" if sample.is_whole else f"{len(sample.items):,}"
    say(f"reading: {part} of {sample.num_items:,} measured; {time.monotonic() - started:.1f} s")
    quality = measured(sample, readings, asked, say)
    write_page(quality, options.output)
    say("")
    for finding in findings(quality):
        say(f"{finding.level.word:>6}  {finding.sentence}")
    say("")
    say(str(options.output))


def _readings(surveys: Sequence[Survey], config: Configured | None) -> list[Reading]:
    from llmtrain.data.quality.sample import Reading

    asked = [use for _, use in config.sources] if config is not None else [None] * len(surveys)
    return [
        Reading(survey.source, _use_of(survey, use), survey.unit == "row")
        for survey, use in zip(surveys, asked, strict=True)
    ]


def _use_of(survey: Survey, asked: Use | None) -> Use | None:
    """What the rows of a source are read for: what is asked for if any fit, else what most of them fit."""
    if survey.unit == "text":
        return "pretrain"
    order = [*((asked,) if asked is not None else ()), *BEST_USES]
    for state in ("fits", "partly"):
        for use in order:
            if survey.fits[use].num_fit and survey.state(use) == state:
                return use
    return None


def _asked(options: Wanted) -> Asked:
    from llmtrain.data.quality.measure import Asked

    config = options.config
    path = options.tokenizer or options.model or (config.tokenizer if config is not None else None)
    load = None if path is None else partial(_load_tokenizer, path, "tokenizer.path")
    return Asked(
        against=options.against,
        tokenizer=path,
        load_tokenizer=load,
        clean=config.clean if config is not None else None,
        cache_dir=config.cache_dir if config is not None else None,
        model=options.model,
        losses=None if options.model is None else partial(_losses, options.model),
    )


def _load_tokenizer(path: str, key: str) -> Any:
    """The tokenizer in a folder of its own, of a run or of a model; `key`: what names it, for messages."""
    from llmtrain.cli.main import hide_developer_messages
    from llmtrain.data.tokenize import load_tokenizer
    from llmtrain.models.folders.given import given_folder

    hide_developer_messages()
    is_model = path.endswith(".gguf") or not (local_path(path) / TOKENIZER).is_file()
    is_there = path.endswith(".gguf") or local_path(path).is_dir()
    return load_tokenizer(given_folder(path, say) if is_model and is_there else path, key=key)


def _losses(model: str, sample: Any) -> Any:
    from llmtrain.cli.main import hide_developer_messages
    from llmtrain.eval.typical import item_losses
    from llmtrain.recipes.command import prepare_process

    prepare_process()
    hide_developer_messages()
    return item_losses(model, sample, say)


def _progress() -> Callable[[int], None]:
    """Reports now and then how much is read."""
    started = last = time.monotonic()

    def read(count: int) -> None:
        nonlocal last
        if count % 1000 == 0 and time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(f"reading: {count:,} so far, {last - started:.0f} s")

    return read
