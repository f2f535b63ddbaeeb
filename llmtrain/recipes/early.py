"""What can be checked of a run from its configuration and the names of files alone, before torch is imported.

The rule of every recipe: first this, then the first row of each source and the model's configuration, then all rows,
and only then a model. So a mistyped path is found in a second, not after a model was loaded.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from llmtrain.config.data import DataConfig, Source, TemplatedSourcesConfig
from llmtrain.config.recipes import PolicyStageConfig, PretrainConfig, RecipeConfig, TuningConfig
from llmtrain.config.sections import Section
from llmtrain.config.which import STAGE_SUFFIX
from llmtrain.runs.folder import check_folder, is_finished
from llmtrain.system.files import cache_root
from llmtrain.system.paths import checkpoint_hint, is_local, local_path, no_folder, package_of
from llmtrain.train.tracking import check_trackers

FILE_SUFFIXES = (".txt", ".md", ".rst", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".zst")
"""Suffixes of files that are read: a name with one of them is no name of the hub."""
MODEL_FILES = ("config.json", "adapter_config.json")


def check_early(config: Section, made: Sequence[str] = ()) -> None:
    """Raise ValueError, one line, for the first of a recipe's mistakes that needs no torch.

    `made`: folders that are there once the run starts.
    """
    if not isinstance(config, RecipeConfig):
        return
    check_folder(config.run, config)
    check_trackers(config.log.trackers)
    _check_packages(config)
    for key, source in _sources(config):
        _check_source(key, source)
    if config.model.path not in made:
        _check_model(config.model.path, "model.path")
    _check_tokenizer(config)
    if isinstance(config.data, TemplatedSourcesConfig):
        _check_template(config.data.chat_template)
    if isinstance(config, PolicyStageConfig):
        _check_reward_models(config, made)
    if config.eval.tasks or config.eval.general_text is not None:
        from llmtrain.recipes.items import items_of  # without torch, but with all that scores

        items_of(config.eval)


def check_stages(configs: Mapping[str, RecipeConfig]) -> None:
    """The same for the stages of a file that are not finished; what an earlier one writes need not be there."""
    made: list[str] = []
    for name, config in configs.items():
        if not is_finished(Path(config.run.dir), config):
            try:
                check_early(config, made)
            except ValueError as error:
                raise ValueError(f"{name}{STAGE_SUFFIX}: {error}" if len(configs) > 1 else str(error)) from None
        made.append(config.run.dir)


def _sources(config: RecipeConfig) -> Iterator[tuple[str, Source]]:
    for name, sources in (("train", config.data.train), ("eval", config.data.eval or ())):
        for index, source in enumerate(sources):
            yield f"data.{name}[{index}]", source
    if isinstance(config.data, DataConfig):
        for path in config.data.clean.decontaminate:
            yield "data.clean.decontaminate", Source(path=path)


def _check_source(key: str, source: Source) -> None:
    path = source.path
    if local_path(path).exists():  # before it is a pattern: a name may hold brackets
        return
    if glob.has_magic(path):
        there = any(True for _ in glob.iglob(str(local_path(path)), recursive=True))
        if not there:
            raise ValueError(f"{key}={path}: no file matches")
        return
    if is_local(path) or path.lower().endswith(FILE_SUFFIXES):
        raise ValueError(f"{key}={path}: no such file or folder")


def _check_model(path: str | None, key: str) -> None:
    """A model's folder, or a GGUF file; a name of the hub is left to its client."""
    if path is None:
        return
    if path.endswith(".gguf"):
        is_converted = any((cache_root() / "models").glob(f"{glob.escape(Path(path.rpartition(':')[2]).stem)}-*"))
        if not is_converted and find_spec("gguf") is None:
            raise ValueError(f"{key}={path}: reading it needs the gguf package: pip install 'llmtrain[gguf]'")
        if package_of(path) is not None:
            return  # `models.folders.gguf` looks into the package, and says how to install it
        if not local_path(path).is_file():
            raise ValueError(f"{key}={path}: no such file")
        return
    folder = local_path(path)
    if folder.is_dir():
        if (folder / "checkpoints").is_dir() and not (folder / "model").is_dir():
            raise ValueError(
                f"{key}={path}: this run has no model yet: start its command again, or `llmtrain export {path}`"
            )
        if not any((place / file).is_file() for place in (folder, folder / "model") for file in MODEL_FILES):
            why = checkpoint_hint(folder) or f"holds no model: there is no {MODEL_FILES[0]} in it"
            raise ValueError(f"{key}={path}: {why}")
    elif is_local(path):
        raise ValueError(f"{key}={path}: {no_folder(path)}")


def _check_tokenizer(config: RecipeConfig) -> None:
    path = config.tokenizer.path
    if path is not None and not local_path(path).is_dir() and is_local(path):
        hint = "; `llmtrain tokenizer CONFIG` trains one" if isinstance(config, PretrainConfig) else ""
        raise ValueError(f"tokenizer.path={path}: {no_folder(path)}{hint}")


def _check_template(template: str) -> None:
    if template not in ("auto", "ours", "none") and not local_path(template).is_file():
        raise ValueError(
            f"data.chat_template={template}: no such file: give auto, ours, none or the path of a Jinja file"
        )


def _check_reward_models(config: PolicyStageConfig, made: Sequence[str]) -> None:
    places = {f"{place}.path": spec.get("path") for place, spec in config.rollout.reward_models().items()}
    if config.policy.critic_init not in ("zero", "reward") and config.policy.has_critic:
        places["policy.critic_init"] = config.policy.critic_init
    for place, path in places.items():
        if isinstance(path, str) and path not in made:
            _check_model(path, place)


def _check_packages(config: RecipeConfig) -> None:
    """Raise ValueError for a package that a key needs and that is not installed."""
    needs: list[tuple[str, str, str]] = []
    if isinstance(config, TuningConfig) and config.model.quantize is not None:
        needs.append((f"model.quantize={config.model.quantize}", "bitsandbytes", "quantize"))
    if config.optim.name in ("adamw8bit", "paged_adamw8bit"):
        needs.append((f"optim.name={config.optim.name}", "bitsandbytes", "quantize"))
    if isinstance(config.data, DataConfig) and config.data.clean.near_dedup is not None:
        needs.append(("data.clean.near_dedup", "rensa", "clean"))
    for key, package, extra in needs:
        if find_spec(package) is None:
            raise ValueError(f"{key} needs {package}: pip install 'llmtrain[{extra}]'")
