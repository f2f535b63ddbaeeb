"""The tests of a row, split between the two processes of the sandbox: what the solution sees, and what the tester runs.

setup   import math                      both
        class Node: ...                  the solution: tests make its objects there
        LIMIT = 10                       the solution: no test uses it
        root = Node(3)                   the tester: a test uses it, so it may be what is expected
tests   assert depth(root) == 1          the tester, with `depth` and `Node` of the solution
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmtrain.rewards.row import RowError

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Asserts:
    """Tests and what each process needs for them."""

    tests: tuple[str, ...]
    prelude: str  # run before the response's code, with it
    setup: str  # run before the tests, with them
    under_test: tuple[str, ...]  # names of the solution's that the tests may use


def split(tests: Sequence[str], setup: str = "") -> Asserts:
    """The tests of a row. Raises RowError for a test or setup that is not Python, and for tests that check nothing."""
    parsed = [_parsed(test, f"test {number}") for number, test in enumerate(tests, 1)]
    statements = _parsed(setup, "the setup").body
    _require_checks([statement for test in parsed for statement in test.body], statements)
    needed = _needed(statements, {name for test in parsed for name in _used(test)})
    prelude: list[ast.stmt] = []
    of_tests: list[ast.stmt] = []
    for statement in statements:
        names = _bound(statement)
        if isinstance(statement, ast.Import | ast.ImportFrom):
            prelude.append(statement)
            of_tests.append(statement)
        elif isinstance(statement, ast.ClassDef) or (names and not names & needed):
            prelude.append(statement)
        else:
            of_tests.append(statement)
    modules = _modules([*of_tests, *parsed])
    imports = [ast.Import([ast.alias(name)]) for name in sorted(modules)]
    return Asserts(
        tuple(tests),
        _source(prelude),
        _source([*imports, *of_tests]),
        tuple(sorted(_under_test([*of_tests, *parsed]) - modules)),
    )


def _parsed(source: str, what: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise RowError(f"{what} of the row is not Python ({reason}): {source[:60]!r}") from None


def _require_checks(tests: Sequence[ast.stmt], setup: Sequence[ast.stmt]) -> None:
    """Raises RowError for tests that any code would pass: without a check, or with checks that never run.

    def check(candidate): assert candidate(1) == 2      never runs without check(f)
    class T(unittest.TestCase): ...                     never runs
    """
    defined = {part.name: part for part in (*setup, *tests) if isinstance(part, Function | ast.ClassDef)}
    run: list[ast.stmt] = [part for part in tests if not isinstance(part, Function | ast.ClassDef)]
    waiting = list(run)
    while waiting:
        called = [defined.pop(name) for name in _used(waiting.pop()) if name in defined]
        run += called
        waiting += called
    for part in tests:
        if isinstance(part, Function | ast.ClassDef) and part not in run and _is_meant_to_run(part) and _checks(part):
            raise RowError(
                f"{part.name} of the row's tests is never called, so that it checks nothing: call it in a test, as in "
                f"{part.name}(NAME), or write asserts"
            )
    if not any(map(_checks, run)):
        raise RowError("no test of the row checks anything, so that any code would pass: write asserts")


def _is_meant_to_run(part: Function | ast.ClassDef) -> bool:
    """Whether a definition is a test, for pytest or unittest, or HumanEval's check; others may be left over."""
    bases = part.bases if isinstance(part, ast.ClassDef) else []
    return part.name.lower().startswith(("test", "check")) or any("TestCase" in ast.unparse(base) for base in bases)


def _checks(node: ast.AST) -> bool:
    """Whether a piece of code holds an assert, raises, or calls what is named as an assert."""
    for part in ast.walk(node):
        if isinstance(part, ast.Assert | ast.Raise):
            return True
        match part:
            case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)) if name.lower().startswith("assert"):
                return True
    return False


def _source(statements: Sequence[ast.stmt]) -> str:
    return ast.unparse(ast.fix_missing_locations(ast.Module(list(statements), [])))


def _used(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load)}


def _bound(node: ast.AST) -> set[str]:
    """The names that a piece of code gives values to, those of functions within it too."""
    return set(_bindings(node))


def _bindings(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and not isinstance(part.ctx, ast.Load):
            yield part.id
        elif isinstance(part, Function | ast.ClassDef):
            yield part.name
        elif isinstance(part, ast.arg):
            yield part.arg
        elif isinstance(part, ast.alias):
            yield (part.asname or part.name).split(".")[0]
        elif isinstance(part, ast.ExceptHandler) and part.name:
            yield part.name


def _needed(statements: Sequence[ast.stmt], names: set[str]) -> set[str]:
    """The names, and those that their values are made of."""
    needed = set(names)
    while True:
        grown = needed.union(*(_used(statement) for statement in statements if _bound(statement) & needed))
        if grown == needed:
            return needed
        needed = grown


def _free(parts: Sequence[ast.AST]) -> set[str]:
    """The names that pieces of code use and none of them gives a value to."""
    return set().union(*(_used(part) for part in parts)) - set().union(*(_bound(part) for part in parts))


def _modules(parts: Sequence[ast.AST]) -> set[str]:
    """Names that are only ever looked into, and are modules of Python's: `math` in `math.isclose(f(2), 1.5)`.

    The tester has its own: what a solution calls `math` does not decide whether numbers are close.
    """
    nodes = [node for part in parts for node in ast.walk(part)]
    looked_into = {
        id(node.value) for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    bare = {node.id for node in nodes if isinstance(node, ast.Name) and id(node) not in looked_into}
    return (_free(parts) - bare) & sys.stdlib_module_names


def _under_test(parts: Sequence[ast.AST]) -> set[str]:
    """The names that come from the solution: those that the tests use, without defining them.

    Python's own names are Python's: a solution that defines `set` does not change what `set(f(x))` is. Only tests that
    use no other name are about the solution's: `assert sum(10, 15) == 6`.
    """
    free = _free(parts)
    python = free & set(vars(builtins))
    return free - python or python
