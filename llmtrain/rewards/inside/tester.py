"""The process of a row's tests: it runs them against the solution in the other process, and knows what is expected.

A name that the tests use and do not define is the solution's; a call of it is sent over, and its result comes back as
plain data, which is compared here. Objects of the solution's own classes stay there; here each is a `Remote`.
"""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmtrain.rewards.inside.wire import CHANGED_IN_PLACE, Channel, Closed, decode, encode

PASSED, FAILED, GONE = "P", "F", "G"  # of a test; GONE: the solution's process ended, or broke the language
NOT_RUN = "N"  # the code raised an error


class Remote:
    """An object in the solution's process."""

    __slots__ = ("_link", "_which")

    def __init__(self, link: Link, which: int) -> None:
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_which", which)

    def __getattr__(self, name: str) -> Any:
        return self._link.ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._link.ask("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._link.ask("delattr", self, name)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._link.ask("call", self, *arguments, **named)

    def __eq__(self, other: object) -> bool:
        """Equal to plain data: never, whatever its class says. To another object of the solution: as its class says."""
        return isinstance(other, Remote) and self._link.ask("eq", self, other) is True

    def __hash__(self) -> int:
        return hash(("Remote", self._which))

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, Remote) and self._link.ask("isinstance", instance, self) is True


def _asks(operation: str) -> Callable[..., Any]:
    def ask(self: Remote, *arguments: Any) -> Any:
        return self._link.ask(operation, self, *arguments)

    return ask


def _computes(operation: str, *, swapped: bool = False) -> Callable[..., Any]:
    """Arithmetic with another object, or with data if an object comes of it: 2 * vector, but not abs(result - 2)."""

    def compute(self: Remote, other: Any) -> Any:
        result = self._link.ask(operation, *((other, self) if swapped else (self, other)))
        return result if isinstance(other, Remote) or isinstance(result, Remote) else NotImplemented

    return compute


def _compares(operation: str) -> Callable[..., Any]:
    def compare(self: Remote, other: Any) -> Any:
        return self._link.ask(operation, self, other) is True if isinstance(other, Remote) else NotImplemented

    return compare


for _name in ("len", "bool", "str", "repr", "int", "float", "index", "round", "iter", "next", "reversed"):
    setattr(Remote, f"__{_name}__", _asks(_name))
for _name in ("getitem", "setitem", "delitem", "neg", "pos", "abs", "invert"):
    setattr(Remote, f"__{_name}__", _asks(_name))
for _name in ("lt", "le", "gt", "ge"):
    setattr(Remote, f"__{_name}__", _compares(_name))
for _name in (
    *("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "divmod", "pow", "lshift", "rshift"),
    *("and_", "or_", "xor"),
):
    setattr(Remote, f"__{_name.rstrip('_')}__", _computes(_name))
    setattr(Remote, f"__r{_name.rstrip('_')}__", _computes(_name, swapped=True))


class Link:
    """Requests to the solution's process."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._functions: list[Callable[..., Any]] = []
        self._errors: dict[tuple[str, ...], type] = {}
        self.is_gone = False

    def has_started(self) -> bool:
        """Whether the code ran to its end."""
        return "ready" in self._receive()

    def name(self, name: str) -> Any:
        """The value of a name of the solution's. Raises KeyError."""
        answer = self._exchange({"name": name})
        if "missing" in answer:
            raise KeyError(name)
        return decode(answer["value"], self._find)

    def ask(self, operation: str, *arguments: Any, **named: Any) -> Any:
        """The result of an operation; what it raised there is raised here."""
        parts = [encode(part, self._keep) for part in arguments]
        answer = self._exchange(
            {
                "operation": operation,
                "arguments": parts,
                "named": {name: encode(part, self._keep) for name, part in named.items()},
            }
        )
        if "raised" in answer:
            error = self._error(answer["raised"])
            if issubclass(error, StopIteration) and operation != "next":
                error = RuntimeError  # or `all(map(...))` would take it for the end of what it looks at
            raise error(str(answer.get("text", "")))
        result = decode(answer["value"], self._find)
        # A function that returns nothing may have changed its arguments. One that returns a value may not, or it could
        # empty what its result is compared with: `x = [2, 1]; assert f(x) == sorted(x)`.
        for place, data in answer.get("changed", []) if result is None else []:
            _replace(arguments[place], decode(data, self._find))
        return result

    def _exchange(self, request: Any) -> dict[str, Any]:
        self._channel.send(request)
        while "callback" in (message := self._receive()):
            self._channel.send({"result": self._called(message)})
        return message

    def _called(self, message: Mapping[str, Any]) -> list[Any] | None:
        """The result of a function of the tests that the solution calls; None: it raised an error."""
        arguments = [decode(part, self._find) for part in message["arguments"]]
        try:
            return [encode(self._functions[message["callback"]](*arguments), self._keep)]
        except Closed:
            raise
        except Exception:
            return None

    def _receive(self) -> dict[str, Any]:
        try:
            message = self._channel.receive()
            if not isinstance(message, dict):
                raise Closed
        except Closed:
            self.is_gone = True
            raise
        return message

    def _keep(self, value: Any) -> list[Any]:
        if isinstance(value, Remote):
            return ["ref", object.__getattribute__(value, "_which")]
        name = getattr(value, "__name__", "")
        if getattr(builtins, name, None) is value:
            return ["builtin", name]
        if not callable(value):
            raise TypeError(f"an object of {type(value).__name__} cannot be given to the solution")
        self._functions.append(value)
        return ["callback", len(self._functions) - 1]

    def _find(self, data: list[Any]) -> Any:
        if data[0] == "error type":
            return self._error(data[1:])
        kind, which = data
        if kind != "ref" or not isinstance(which, int):
            raise Closed
        return Remote(self, which)

    def _error(self, names: Sequence[str]) -> type:
        """The class of an error of the solution's: its own name, under the first base that is Python's."""
        base = getattr(builtins, names[-1], None)
        if not (isinstance(base, type) and issubclass(base, Exception)):
            base = RuntimeError
        if len(names) == 1:
            return base
        key = tuple(names)
        if key not in self._errors:
            self._errors[key] = type(str(names[0]), (self._error(names[1:]),), {})
        return self._errors[key]


class Names(dict[str, Any]):
    """Python's own names, and before them those of the solution's that the tests are about."""

    def __init__(self, link: Link, under_test: Sequence[str]) -> None:
        super().__init__(vars(builtins))
        self._link, self._under_test = link, frozenset(under_test)

    def __getitem__(self, name: str) -> Any:
        if name in self._under_test:
            try:
                return self._link.name(name)
            except KeyError:
                pass
        return super().__getitem__(name)


def run(channel: Channel, setup: str, tests: Sequence[str], under_test: Sequence[str], verdict_fd: int) -> None:
    """Run the tests, writing a letter for each to a file descriptor as it ends."""
    link = Link(channel)
    names: dict[str, Any] = {"__name__": "tests", "__builtins__": Names(link, under_test)}
    try:
        if not link.has_started():
            os.write(verdict_fd, NOT_RUN.encode())
            return
        _execute(setup, names)
    except BaseException:
        os.write(verdict_fd, (GONE if link.is_gone else FAILED * len(tests)).encode())
        return
    for test in tests:
        try:
            _execute(test, names)
            letter = PASSED
        except BaseException:
            letter = FAILED
        if link.is_gone:
            letter = GONE
        os.write(verdict_fd, letter.encode())
        if link.is_gone:
            return


def _execute(source: str, names: dict[str, Any]) -> None:
    exec(compile(source, "<test>", "exec"), names)


def _replace(argument: Any, value: Any) -> None:
    """Give a container the content of another of its type."""
    if type(argument) is not type(value) or type(argument) not in CHANGED_IN_PLACE:
        raise Closed
    argument.clear()
    (argument.update if isinstance(argument, dict | set) else argument.extend)(value)
