"""How the tests check tensor shapes while llmtrain runs; everything else in a signature is mypy's affair.

jaxtyping's own import hook wraps every function of a package, which doubled the time of a run. This one wraps those
functions and dataclasses that name a shape.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

from beartype import beartype
from jaxtyping import jaxtyped

SHAPED = re.compile(r"\b(Bool|Float\d*|Inexact|Int\d*|Integer|Num|Shaped|UInt\d*)\[")
"""An annotation of jaxtyping's, as it is written."""
DECORATOR = "@__import__('shape_checks').checked\ndef _(): ..."


def install(package: str) -> None:
    """Check shapes in the modules of a package that are imported from now on."""
    sys.meta_path.insert(0, _Finder(package))


def checked(it: Any) -> Any:
    """The function or dataclass with the jaxtyping annotations of its signature checked at each call."""
    return jaxtyped(it, typechecker=_check_shapes)


def _check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    function.__annotations__ = {
        name: hint for name, hint in function.__annotations__.items() if SHAPED.search(str(hint))
    }
    return beartype(function)


class _Finder(MetaPathFinder):
    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not f"{fullname}.".startswith(f"{self._package}."):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or not isinstance(spec.loader, SourceFileLoader):
            return None
        if "jaxtyping" in spec.loader.get_data(spec.loader.path).decode("utf-8"):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        """The module's code, compiled again: Python's cache is for code without checks."""
        tree = ast.parse(self.get_data(self.path), self.path)
        for node in ast.walk(tree):
            (decorator,) = ast.parse(DECORATOR).body[0].decorator_list  # type: ignore[attr-defined]
            if isinstance(node, ast.FunctionDef) and _names_a_shape(node):
                node.decorator_list.append(ast.copy_location(decorator, node))
            elif isinstance(node, ast.ClassDef) and any(
                isinstance(field, ast.AnnAssign) and SHAPED.search(ast.unparse(field.annotation)) for field in node.body
            ):
                node.decorator_list.insert(0, ast.copy_location(decorator, node))
        return compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True)


def _names_a_shape(function: ast.FunctionDef) -> bool:
    given = [argument.annotation for argument in ast.walk(function.args) if isinstance(argument, ast.arg)]
    return any(hint is not None and SHAPED.search(ast.unparse(hint)) for hint in [*given, function.returns])
