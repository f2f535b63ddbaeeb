"""The one place where a function is loaded by name: `FILE.py:FUNCTION` of the user's, `trl:FUNCTION` of trl.rewards."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from importlib.metadata import version
from importlib.util import find_spec, resolve_name
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from llmtrain.system.files import one_line
from llmtrain.system.paths import local_path

TRL = "trl:"
_loaded: dict[Path, tuple[bytes, ModuleType]] = {}  # the files of rewards, with the content that was loaded


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
    module = _module(local_path(file), key)
    function = _function(module, function_name, name, key)
    return Loaded(function, dict(settings), {"function": function_name, **_sources(module)})


def load_value(file: Path, name: str, key: str) -> tuple[Any, Mapping[str, str]]:
    """A value that a file of Python code gives a name, and what says which code it is.

    Raises ValueError, naming the `key`, if there is no such file or value, or the file fails.
    """
    if not local_path(file).is_file():
        raise ValueError(f"{key}: {file}: no such file")
    module = _module(local_path(file), key)
    if name not in vars(module):
        raise ValueError(f"{key}: {file} has no {name}")
    return vars(module)[name], _sources(module)


class _Source(NamedTuple):
    """A file of Python code, the module's full name and its package, and the module itself if it is imported."""

    file: Path
    name: str
    package: str
    module: ModuleType | None

    def place(self, folder: Path) -> str:
        """Its path from a folder, or, if it is not in it, from where its outermost package is."""
        if self.file.is_relative_to(folder):
            return str(self.file.relative_to(folder))
        return "/".join(self.file.parts[-self.name.count(".") - (2 if self.file.stem == "__init__" else 1) :])


def _sources(module: ModuleType) -> dict[str, str]:
    """A hash of a module's file, and of each that it imports from outside the installed packages.

    They go by their paths from the module's folder, so that moving them changes nothing.
    """
    folder = Path(str(module.__file__)).resolve().parent
    found: set[Path] = set()
    hashes: dict[str, Any] = {}
    pending = [_source(module)]
    while pending:
        each = pending.pop()
        if each is None or each.file in found or not _is_users(each.file):
            continue
        found.add(each.file)
        content = each.file.read_bytes()
        hashes.setdefault(each.place(folder), blake2b(digest_size=16)).update(content)
        pending += [_source(held) for held in _held_modules(each.module)]
        if each.file.suffix == ".py":
            pending += _named_sources(ast.parse(content), each.package)
    return {place: content_hash.hexdigest() for place, content_hash in hashes.items()}


def _source(module: ModuleType) -> _Source | None:
    file, package = vars(module).get("__file__"), vars(module).get("__package__") or ""
    return None if file is None else _Source(Path(file).resolve(), module.__name__, package, module)


def _held_modules(module: ModuleType | None) -> Iterator[ModuleType]:
    """The modules among a module's values, and those of its functions and classes."""
    for value in [] if module is None else list(vars(module).values()):
        if isinstance(value, ModuleType):
            yield value
        elif (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ in sys.modules:
            yield sys.modules[value.__module__]


def _named_sources(code: ast.Module, package: str) -> Iterator[_Source]:
    """The files of the user's that the import statements of a code name, those within its functions too.

    A constant does not say which module it was imported from: the statement does.
    """
    for statement in ast.walk(code):
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            start = "." * statement.level + (statement.module or "")
            names = [
                f"{start}.{alias.name}" if statement.module else f"{start}{alias.name}" for alias in statement.names
            ]
        else:
            continue
        for name in names:
            yield from _user_files(name, package)


def _user_files(name: str, package: str) -> Iterator[_Source]:
    """The files of the modules `a`, `a.b` and `a.b.c` of `a.b.c`, as far as they are modules of the user's."""
    try:
        parts = resolve_name(name, package).split(".")
        for end in range(1, len(parts) + 1):
            full = ".".join(parts[:end])
            spec = find_spec(full)
            if spec is None or (spec.has_location and not _is_users(Path(str(spec.origin)).resolve())):
                return
            if spec.has_location:
                yield _Source(Path(str(spec.origin)).resolve(), full, spec.parent or "", sys.modules.get(full))
    except (Exception, SystemExit):  # no module; or a package that the code may do without, and that may fail anyhow
        return


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
    file = file.resolve()
    content = file.read_bytes()
    if file in _loaded and _loaded[file][0] == content:  # of another reward in the same file
        return _loaded[file][1]
    name = _module_name(file)
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{key}: {file}: not a Python file")
    # As when Python imports it: dataclasses and pickle look a module up by its name, processes that it starts import it
    # again, and its neighbours are found. Last on the path: a neighbour called `random.py` is not everybody's `random`.
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ValueError(f"{key}: {file} fails: {type(error).__name__}: {one_line(error)}") from error
    _loaded[file] = (content, module)
    return module


def _module_name(file: Path) -> str:
    """The file's own name, unless another module has it: then one that ends in a hash of the file's path."""
    held = sys.modules.get(file.stem)
    if held is not None:
        is_free = vars(held).get("__file__") == str(file)
    else:
        is_free = file.stem.isidentifier() and find_spec(file.stem) is None
    return file.stem if is_free else f"reward_{blake2b(str(file).encode(), digest_size=4).hexdigest()}"


def _function(module: ModuleType, function_name: str, name: str, key: str) -> Callable[..., Any]:
    names = [found for found in dir(module) if not found.startswith("_") and callable(getattr(module, found))]
    function = getattr(module, function_name) if function_name in names else None
    if function is None:
        raise ValueError(f"{key}: {name}: no function {function_name!r} there, only {', '.join(names) or 'nothing'}")
    found: Callable[..., Any] = function
    return found
