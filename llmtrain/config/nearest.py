"""What a mistyped word may have meant: named only if it is near."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from llmtrain.config.sections import Section, Source, iter_keys

NEAR = 0.6
"""Share of the letters that two words have in common, in order: `stf` and `sft` 0.67, `zzz` and `z_loss` 0.22."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like a mistyped one; None: none is near."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=NEAR)), None)


def unknown_key(schema: type[Section], location: Sequence[str]) -> str:
    """The error of a key that a schema does not have: the nearest key, or else all that its section has."""
    key, section = ".".join(location), ".".join(location[:-1])
    if any(part.isdigit() for part in location):  # a key of one of several sources
        inside = [f"{section}.{name}" for name in Source.model_fields]
        everywhere = inside
    else:
        everywhere = [name for name, _ in iter_keys(schema)]
        everywhere += sorted({name.rsplit(".", 1)[0] for name in everywhere if "." in name})
        inside = _direct(everywhere, section)
    names = {name.rsplit(".", 1)[-1]: name for name in inside}
    near = nearest(location[-1], names)
    same = [name for name in everywhere if name.rsplit(".", 1)[-1] == location[-1]]
    if near is not None or same:
        return f"unknown key {key}: the nearest is {names[near] if near is not None else same[0]}"
    return f"unknown key {key}: {section or 'a configuration'} has {', '.join(names)}"


def _direct(keys: Sequence[str], section: str) -> list[str]:
    """The keys and sections directly in a section; in the section "", those of the top."""
    prefix = f"{section}." if section else ""
    inside = (key.removeprefix(prefix).split(".")[0] for key in keys if key.startswith(prefix))
    return [prefix + name for name in dict.fromkeys(inside)]
