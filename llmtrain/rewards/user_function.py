"""The one place where a function is loaded by name: `FILE.py:FUNCTION` of the user's, `trl:FUNCTION` of trl.rewards."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

TRL = "trl:"


def load_function(name: str, key: str, settings: Mapping[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function of a name, and the settings that its calls take.

    A factory of TRL's (`get_...`) takes all settings and returns the function. Raises ValueError, naming the `key`, if
    there is no such file, package or function, or the file fails.
    """
    if name.startswith(TRL):
        function = _function(_trl_rewards(name, key), name.removeprefix(TRL), name, key)
        if not name.startswith(f"{TRL}get_"):
            return function, dict(settings)
        try:
            return function(**settings), {}
        except (TypeError, ValueError) as error:
            raise ValueError(f"{key}: {name} does not take these settings: {error}") from None
    file, _, function_name = name.rpartition(":")
    return _function(_module(Path(file).expanduser(), key), function_name, name, key), dict(settings)


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
