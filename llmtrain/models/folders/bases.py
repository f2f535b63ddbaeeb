"""The base of a run or of an adapter: where it comes from, and where it is opened."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from peft import PeftConfig

from llmtrain.models.folders.gguf import hub_id_of
from llmtrain.models.folders.given import given_folder, is_adapter
from llmtrain.models.folders.origin import MADE, Origin, read_origin
from llmtrain.system.files import one_line
from llmtrain.system.paths import is_local, local_path, package_of


class Base(NamedTuple):
    """Where the base of an adapter is opened: a folder, which may be another adapter's, or a name of the hub."""

    path: str
    revision: str | None


def find_base(adapter_folder: Path, given: str | None = None) -> Base:
    """The base of an adapter, `given` or as its folder tells. Raises ValueError if that is not there."""
    fix = f"give the base's place: llmtrain merge {adapter_folder} OUTPUT --base PATH"
    origin = read_origin(adapter_folder)
    try:
        if given is not None:
            return Base(given_folder(given), None)
        if origin is not None and origin.form in MADE:
            return Base(given_folder(origin.path), None)
    except ValueError as error:
        raise ValueError(f"{adapter_folder}: its base cannot be made again: {one_line(error)}; {fix}") from None
    config = PeftConfig.from_pretrained(str(adapter_folder))
    if config.base_model_name_or_path is None:
        raise ValueError(f"{adapter_folder}: it does not say what its base is: {fix}")
    path = str(config.base_model_name_or_path)
    if is_local(path) and not local_path(path).is_dir():
        raise ValueError(f"{adapter_folder}: its base {path} cannot be loaded: there is no such folder; {fix}")
    return Base(path, config.revision)


def innermost(path: str, revision: str | None = None) -> Base:
    """What a path is made from: the base of an adapter's base and so on, any other path itself."""
    while is_adapter(path):
        path, revision = find_base(local_path(path))
    return Base(path, revision)


def origin_of(path: str, revision: str | None = None) -> Origin:
    """The origin of a base by what `model.path` names."""
    opened = given_folder(path, lambda line: None)
    if path.endswith(".gguf"):
        place = path if package_of(path) is not None else str(local_path(path).resolve())
        return Origin("gguf", place, hub_id=hub_id_of(Path(opened)))
    if is_adapter(opened):
        return Origin("adapter", str(local_path(opened).resolve()))
    folder = local_path(opened)
    if folder.is_dir():
        return Origin("folder", str(folder.resolve()))
    return Origin("hub", path, revision, path)


def origin_of_base(adapter_folder: Path) -> Origin:
    """The origin of the base of an adapter: as its folder tells, else by what `adapter_config.json` names."""
    known = read_origin(adapter_folder)
    if known is not None:
        return known
    path, revision = find_base(adapter_folder)
    return origin_of(path, revision)
