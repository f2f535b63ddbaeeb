"""Values and messages between the solution's process and the tester's: JSON lines of plain data.

A value crosses as data of Python's own types, never as code, so what the tester compares has Python's own `==`. What is
no plain data stays where it is and crosses as a reference:

    [1, (2.5, "a")]          ["list", [1, ["tuple", [["float", "0x1.4p+1"], "a"]]]]
    an object of a class     ["ref", 7]
"""

from __future__ import annotations

import collections
import datetime
import json
import os
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_MESSAGE_BYTES = 16 * 2**20
SMALL_INT = 2**53
READ_BYTES = 2**16

Keep = Callable[[Any], list[Any]]
"""What is sent for a value that is no plain data. May raise TypeError."""
Find = Callable[[list[Any]], Any]
"""The value of what `Keep` gave on the other side."""


class Closed(Exception):
    """The other process has gone, or does not speak this language."""


class Channel:
    """Messages over two file descriptors."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing, self._held = reading, writing, bytearray()

    def send(self, message: Any) -> None:
        """Raises Closed, and ValueError for a message that is too long."""
        line = json.dumps(message).encode("ascii") + b"\n"
        if len(line) > MAX_MESSAGE_BYTES:
            raise ValueError(f"a value of {len(line)} bytes is too large to be compared")
        sent = 0
        try:
            while sent < len(line):
                sent += os.write(self._writing, line[sent:])
        except OSError as error:
            raise Closed from error

    def receive(self) -> Any:
        """Raises Closed."""
        start = 0
        while (end := self._held.find(b"\n", start)) < 0:
            start = len(self._held)
            part = os.read(self._reading, READ_BYTES)
            if not part or start > MAX_MESSAGE_BYTES:
                raise Closed
            self._held += part
        line = bytes(self._held[:end])
        del self._held[: end + 1]
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Closed from error


TYPES = (int, float, complex, str, bytes, bytearray, bool, list, tuple, dict, set, frozenset, type(None), object, range)
TYPE_OF_NAME = {kind.__name__: kind for kind in TYPES}
CHANGED_IN_PLACE = (list, dict, set, bytearray, collections.deque)  # arguments that a function may change
BASES: tuple[Any, ...] = (list, tuple, set, frozenset)
DICTS = (collections.OrderedDict, collections.Counter)
NO_DICT: dict[Any, Any] = {}
VIEWS: dict[str, Any] = {"keys": type(NO_DICT.keys()), "values": type(NO_DICT.values()), "items": type(NO_DICT.items())}
SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": collections.deque,
}
MAPPINGS: dict[str, Callable[[list[Any]], Any]] = {
    "dict": dict,
    "OrderedDict": collections.OrderedDict,
    "Counter": lambda pairs: collections.Counter(dict(pairs)),
    "keys": lambda pairs: dict(pairs).keys(),
    "values": lambda pairs: dict(pairs).values(),
    "items": lambda pairs: dict(pairs).items(),
}
# Values that their text gives back: tag -> (type, to text, from text).
BY_TEXT: dict[str, tuple[type, Callable[[Any], str], Callable[[str], Any]]] = {
    "int": (int, lambda value: hex(int.__index__(value)), lambda text: int(text, 16)),
    "float": (float, lambda value: float.hex(value), float.fromhex),
    "bytes": (bytes, lambda value: bytes.hex(value), bytes.fromhex),
    "bytearray": (bytearray, lambda value: bytearray.hex(value), bytearray.fromhex),
    "Decimal": (Decimal, lambda value: Decimal.__str__(value), Decimal),
    "Fraction": (Fraction, lambda value: f"{value.numerator}/{value.denominator}", Fraction),
    "datetime": (datetime.datetime, lambda value: value.isoformat(), datetime.datetime.fromisoformat),
    "date": (datetime.date, lambda value: value.isoformat(), datetime.date.fromisoformat),
    "time": (datetime.time, lambda value: value.isoformat(), datetime.time.fromisoformat),
}


def encode(value: Any, keep: Keep) -> Any:
    """A value as JSON. An object of a subclass crosses as its plain base: a list with an `__eq__` as a list."""
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int) and -SMALL_INT < value < SMALL_INT:
        return int.__add__(value, 0)
    if isinstance(value, tuple) and type(value) is not tuple and hasattr(value, "_fields"):
        return ["namedtuple", type(value).__name__, list(value._fields), _all(tuple.__iter__(value), keep)]
    for base in BASES:
        if isinstance(value, base):
            return [base.__name__, _all(base.__iter__(value), keep)]
    if isinstance(value, collections.deque):
        return ["deque", _all(iter(value), keep)]
    if isinstance(value, dict):
        name = next((kind.__name__ for kind in DICTS if isinstance(value, kind)), "dict")
        return [name, [[encode(key, keep), encode(held, keep)] for key, held in dict.items(value)]]
    for tag, view in VIEWS.items():
        if isinstance(value, view):
            return [tag, [[encode(key, keep), encode(held, keep)] for key, held in value.mapping.items()]]
    if isinstance(value, range):
        return ["range", [encode(part, keep) for part in (value.start, value.stop, value.step)]]
    if isinstance(value, complex):
        return ["complex", float.hex(value.real), float.hex(value.imag)]
    if isinstance(value, datetime.timedelta):
        return ["timedelta", value.days, value.seconds, value.microseconds]
    for tag, (of_text, to_text, _) in BY_TEXT.items():
        if isinstance(value, of_text):
            return [tag, to_text(value)]
    if isinstance(value, type) and value in TYPES:
        return ["type", value.__name__]
    return keep(value)


def decode(data: Any, find: Find) -> Any:
    """The value of JSON. Raises Closed for what `encode` does not write."""
    if data is None or isinstance(data, bool | str | int):
        return data
    try:
        tag, *rest = data
        if tag in SEQUENCES:
            return SEQUENCES[tag]([decode(part, find) for part in rest[0]])
        if tag in MAPPINGS:
            return MAPPINGS[tag]([(decode(key, find), decode(held, find)) for key, held in rest[0]])
        if tag in BY_TEXT:
            return BY_TEXT[tag][2](rest[0])
        if tag == "namedtuple":
            name, fields, values = rest
            return collections.namedtuple(str(name), fields, rename=True)(*(decode(part, find) for part in values))
        if tag == "range":
            return range(*(decode(part, find) for part in rest[0]))
        if tag == "complex":
            return complex(float.fromhex(rest[0]), float.fromhex(rest[1]))
        if tag == "timedelta":
            return datetime.timedelta(*rest)
        if tag == "type":
            return TYPE_OF_NAME[rest[0]]
        return find(data)
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise Closed from error


def _all(values: Any, keep: Keep) -> list[Any]:
    return [encode(value, keep) for value in values]
