"""How a source names things: its fields, its speakers, the keys of its turns; every row is read through it.

    fields: {messages: dialog}, roles: {customer: user, agent: assistant}, role_key: who, content_key: said

Messages that a cell holds as text, JSON or Python's own (CSV files have no lists), become lists here as well.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmtrain.config.data import Source
from llmtrain.data.formats.faults import UnfitRow
from llmtrain.data.formats.roles import content_key_of, is_turn, role_key_of
from llmtrain.data.sources.rows import Fields, has_field, value_at

LISTS = {
    "messages": "messages",
    "conversations": "ShareGPT",
    "conversation": "messages",
    "dialog": "messages",
    "dialogue": "messages",
    "turns": "messages",
}
"""Field that holds a whole chat as a list of turns -> name of the format."""
TOOLS = ("tools", "functions")
"""Fields that may hold the tools, the second as OpenAI had them before."""
WRITTEN = {*LISTS, "prompt", "question", "query", "completion", "chosen", "rejected", "history"}
"""Fields whose text is read as messages where it is a written list of them."""


@dataclass(frozen=True)
class Naming:
    """What a source's rows call what formats read."""

    fields: Mapping[str, str] = field(default_factory=dict)  # canonical name -> field of the row
    roles: Mapping[str, str] = field(default_factory=dict)  # speaker in lower case -> role
    role_key: str | None = None
    content_key: str | None = None

    @classmethod
    def of(cls, source: Source, *leave_out: str) -> Naming:
        """That of a source, without some of its `fields`."""
        fields = {name: held for name, held in source.fields.items() if name not in leave_out}
        roles = {_spoken(name): role for name, role in source.roles.items()}
        return cls(fields, roles, source.role_key, source.content_key)

    def view(self, row: Fields) -> Fields:
        """A row under canonical names, its chats as lists of turns with known keys and speakers."""
        named = self._renamed(row)
        return {name: self._turns(name, value) for name, value in named.items()}

    def note(self, row: Fields) -> str:
        """What the user should know of how a row's chats are written; mostly nothing."""
        named = self._renamed(row)
        written = [name for name, value in named.items() if isinstance(value, str) and _parsed(name, value) != value]
        return f"messages are written as text in {', '.join(written)}, and read from it" if written else ""

    def heard(self, row: Fields) -> set[str]:
        """The speakers among the source's `roles` that a row's chats have."""
        found = set()
        for name, value in self._renamed(row).items():
            parsed = _parsed(name, value) if isinstance(value, str) else value
            for turn in parsed if isinstance(parsed, list) else [parsed]:
                key = self._role_key(turn) if isinstance(turn, Mapping) else None
                if key is not None:
                    found.add(_spoken(value_at(turn, key)))
        return found & self.roles.keys()

    def _role_key(self, turn: Fields) -> str | None:
        """The key of a turn that names its speaker; None: it is no turn."""
        key = self.role_key if self.role_key is not None else role_key_of(turn)
        return key if key is not None and has_field(turn, key) else None

    def _renamed(self, row: Fields) -> Fields:
        if not self.fields:
            return row
        mapped = {*self.fields, *self.fields.values()}
        kept = {name: value for name, value in row.items() if name not in mapped}
        return kept | {name: value_at(row, held) for name, held in self.fields.items() if has_field(row, held)}

    def _turns(self, name: str, value: Any) -> Any:
        parsed = _parsed(name, value) if isinstance(value, str) else value
        if name in TOOLS or not (self.roles or self.role_key or self.content_key):
            return parsed
        if name in LISTS and isinstance(parsed, list):
            self._require_key(name, parsed)
        if isinstance(parsed, list):
            return [self._turn(turn) if isinstance(turn, Mapping) else turn for turn in parsed]
        return self._turn(parsed) if isinstance(parsed, Mapping) else parsed

    def _require_key(self, name: str, turns: list[Any]) -> None:
        """Raises UnfitRow where no turn has the key that the source gives as that of the speaker."""
        objects = [turn for turn in turns if isinstance(turn, Mapping)]
        if self.role_key is not None and objects and not any(has_field(turn, self.role_key) for turn in objects):
            raise UnfitRow(
                "no such key",
                f"no message of {name!r} has the key {self.role_key!r} (the source's role_key), only "
                f"{', '.join(map(repr, objects[0]))}",
            )

    def _turn(self, turn: Fields) -> Fields:
        """A turn under the keys role and content, its speaker mapped; an object that is no turn, as it is."""
        role_key = self._role_key(turn)
        if role_key is None:
            return turn
        content_key = self.content_key if self.content_key is not None else content_key_of(turn)
        speaker = value_at(turn, role_key)
        role = self.roles.get(_spoken(speaker), speaker)
        content = None if content_key is None or not has_field(turn, content_key) else value_at(turn, content_key)
        used = {key.partition(".")[0] for key in (role_key, content_key) if key is not None}
        rest = {key: held for key, held in turn.items() if key not in used}
        return {"role": role, "content": content, **rest}


def _spoken(name: Any) -> str:
    """A speaker's name as names are compared."""
    return str(name).strip().lower()


def _parsed(name: str, text: str) -> Any:
    """The turns that a cell holds as text; any other text as it is."""
    if name not in WRITTEN or text.lstrip()[:1] not in ("[", "{"):
        return text
    tree = _tree(text)
    turns = tree if isinstance(tree, list) else [tree]
    if not turns or not all(isinstance(turn, Mapping) and role_key_of(turn) is not None for turn in turns):
        return text
    are_messages = all({"role", "content"} <= turn.keys() for turn in turns)
    return tree if any(map(is_turn, turns)) or (isinstance(tree, list) and are_messages) else text


def _tree(text: str) -> Any:
    """What a text holds as JSON, or as Python prints it; None: it is neither."""
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
