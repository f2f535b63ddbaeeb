"""The process of a response's code: it runs the code, then answers the tester's requests for names, calls and items.

What it is asked has the arguments of calls in it, never what is expected of them.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Callable
from typing import Any

from llmtrain.rewards.inside.wire import CHANGED_IN_PLACE, Channel, Closed, decode, encode

# What the tester may ask of an object; the same names as in `tester`.
OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, *arguments, **named: function(*arguments, **named),
    "getattr": getattr,
    "setattr": setattr,
    "delattr": delattr,
    "isinstance": isinstance,
    "len": len,
    "bool": bool,
    "str": str,
    "repr": repr,
    "int": int,
    "float": float,
    "round": round,
    "iter": iter,
    "next": next,
    "reversed": reversed,
    "divmod": divmod,
    **{
        name: getattr(operator, name)
        for name in (
            *("getitem", "setitem", "delitem", "eq", "lt", "le", "gt", "ge", "neg", "pos", "abs", "invert", "index"),
            *("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift"),
            *("and_", "or_", "xor"),
        )
    },
}
BUILTIN_ERRORS = {
    kind for kind in vars(builtins).values() if isinstance(kind, type) and issubclass(kind, BaseException)
}


class Solution:
    """The names and objects of the response's code."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._names: dict[str, Any] = {"__name__": "solution"}
        self._objects: list[Any] = []

    def start(self, prelude: str, code: str) -> None:
        """Run the code, and say how that went."""
        try:
            exec(compile(prelude, "<setup>", "exec"), self._names)
            exec(compile(code, "<response>", "exec"), self._names)
        except BaseException as error:  # SystemExit too: a program that ends itself has passed nothing
            self._channel.send(self._raised(error))
            return
        self._channel.send({"ready": True})

    def serve(self) -> None:
        """Answer until the tester has gone."""
        while True:
            self._channel.send(self._answer(self._channel.receive()))

    def _answer(self, request: Any) -> dict[str, Any]:
        if "name" in request:
            name = request["name"]
            return {"value": encode(self._names[name], self._keep)} if name in self._names else {"missing": name}
        arguments = [decode(part, self._find) for part in request["arguments"]]
        named = {name: decode(part, self._find) for name, part in request["named"].items()}
        try:
            result = OPERATIONS[request["operation"]](*arguments, **named)
            answer = {"value": encode(result, self._keep)}
            if result is None:
                answer["changed"] = [
                    [place, encode(argument, self._keep)]
                    for place, argument in enumerate(arguments)
                    if type(argument) in CHANGED_IN_PLACE
                ]
        except Closed:
            raise
        except BaseException as error:
            return self._raised(error)
        return answer

    def _keep(self, value: Any) -> list[Any]:
        if isinstance(value, type) and issubclass(value, BaseException):
            return ["error type", *_error_names(value)]
        self._objects.append(value)
        return ["ref", len(self._objects) - 1]

    def _find(self, data: list[Any]) -> Any:
        kind, which = data
        if kind == "builtin":
            return getattr(builtins, which)
        if kind == "callback":
            return lambda *arguments: self._call_back(which, arguments)
        return self._objects[which]

    def _call_back(self, which: int, arguments: tuple[Any, ...]) -> Any:
        """Call a function of the tester's, a `key=lambda ...` for example, and serve it meanwhile."""
        self._channel.send({"callback": which, "arguments": [encode(part, self._keep) for part in arguments]})
        while "result" not in (message := self._channel.receive()):
            self._channel.send(self._answer(message))
        if message["result"] is None:
            raise RuntimeError("a function of the test failed")
        return decode(message["result"][0], self._find)

    def _raised(self, error: BaseException) -> dict[str, Any]:
        try:
            text = str(error)[:1000]
        except BaseException:
            text = ""
        return {"raised": _error_names(type(error)), "text": text}


def _error_names(kind: type) -> list[str]:
    """The name of an error, and those of its bases up to the first that is Python's own."""
    names = []
    for each in type.mro(kind):
        names.append(each.__name__)
        if each in BUILTIN_ERRORS:
            break
    return names
