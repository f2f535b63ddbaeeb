"""The one place where a function is loaded by name: `FILE.py:FUNCTION` of the user's, `trl:FUNCTION` of trl.rewards."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Callable, Mapping
from hashlib import blake2b
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

TRL = "trl:"


class Loaded(NamedTuple):
    """A function, the settings that its calls take, and what says which code it is."""

    function: Callable[..., Any]
    settings: dict[str, Any]
    code: Mapping[str, str]


def load_function(name: str, key: str, settings: Mapping[str, Any]) -> Loaded:
    """The function of a name.

    A factory of TRL's (`get_...`) takes all settings and returns the function. Raises ValueError, naming the `key`, if
    there is no such file, package or function, or the file fails.
    """
    if name.startswith(TRL):
        function_name = name.removeprefix(TRL)
        function = _function(_trl_rewards(name, key), function_name, name, key)
        code = {"function": function_name, "trl": version("trl")}
        if not name.startswith(f"{TRL}get_"):
            return Loaded(function, dict(settings), code)
        try:
            return Loaded(function(**settings), {}, code)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{key}: {name} does not take these settings: {error}") from None
    file, _, function_name = name.rpartition(":")
    module = _module(Path(file).expanduser(), key)
    function = _function(module, function_name, name, key)
    return Loaded(function, dict(settings), {"function": function_name, **_sources(module)})


def _sources(module: ModuleType) -> dict[str, str]:
    """A hash of a module's file, and of each that it imports from outside the installed packages.

    They go by their paths from the module's folder, so that moving them changes nothing.
    """
    folder = Path(str(module.__file__)).resolve().parent
    hashes: dict[str, str] = {}
    pending = [module]
    while pending:
        each = pending.pop()
        file = vars(each).get("__file__")
        if file is None or not _is_users(Path(file).resolve()):
            continue
        path = Path(file).resolve()
        name = str(path.relative_to(folder)) if path.is_relative_to(folder) else path.name
        if name in hashes:
            continue
        hashes[name] = blake2b(Path(file).read_bytes(), digest_size=16).hexdigest()
        for value in vars(each).values():
            if isinstance(value, ModuleType):
                pending.append(value)
            elif (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ in sys.modules:
                pending.append(sys.modules[value.__module__])
    return hashes


def _is_users(file: Path) -> bool:
    """Whether a module's file is neither Python's nor of an installed package, nor ours."""
    installed = {"site-packages", "dist-packages"} & set(file.parts)
    ours = Path(__file__).resolve().parents[1]
    return not installed and not any(file.is_relative_to(root) for root in (sysconfig.get_path("stdlib"), ours))


def _trl_rewards(name: str, key: str) -> ModuleType:
    if find_spec("trl") is None:
        raise ValueError(f"{key}: {name} needs trl, which is not installed: pip install trl")
    return importlib.import_module("trl.rewards")


def _module(file: Path, key: str) -> ModuleType:
    if not file.is_file():
        raise ValueError(f"{key}: {file}: no such file (a reward is one of ours, FILE.py:FUNCTION, or trl:FUNCTION)")
    spec = importlib.util.spec_from_file_location(f"reward_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{key}: {file}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{key}: {file} fails: {type(error).__name__}: {error}") from error
    return module


def _function(module: ModuleType, function_name: str, name: str, key: str) -> Callable[..., Any]:
    names = [found for found in dir(module) if not found.startswith("_")]
    function = getattr(module, function_name) if function_name in names else None
    if not callable(function):
        raise ValueError(f"{key}: {name}: no function {function_name!r} there, only {', '.join(names) or 'nothing'}")
    found: Callable[..., Any] = function
    return found
