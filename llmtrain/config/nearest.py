"""What a key that does not exist may have meant."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llmtrain.config.data import Source
from llmtrain.config.other_tools import OURS
from llmtrain.config.sections import Section, iter_keys
from llmtrain.system.nearest import nearest


def unknown_key(schema: type[Section], location: Sequence[str]) -> str:
    """The error of a key that a schema does not have.

    With the key that another tool calls so, else the nearest one, else all that its section has: `learning_rate` is
    optim.lr, `optim.lrr` is nearest to optim.lr, nothing is near `zzz`.
    """
    key, section, name = ".".join(location), ".".join(location[:-1]), location[-1]
    if any(part.isdigit() for part in location):  # a key of one of several sources
        inside = [f"{section}.{field}" for field in Source.model_fields]
        everywhere = inside
    else:
        everywhere = [name for name, _ in iter_keys(schema)]
        everywhere += sorted({name.rsplit(".", 1)[0] for name in everywhere if "." in name})
        inside = _direct(everywhere, section)
    names = {each.rsplit(".", 1)[-1]: each for each in inside}
    same = [each for each in everywhere if each.rsplit(".", 1)[-1] == name]
    ours = OURS.get(name, "")
    if re.split("[^a-z0-9_.]", ours)[0] in everywhere:
        return f"unknown key {key}: here it is {ours}"
    if (near := nearest(name, names)) is not None:
        return f"unknown key {key}: the nearest is {names[near]}"
    if same:
        return f"unknown key {key}: the nearest is {same[0]}"
    return f"unknown key {key}: {section or 'a configuration'} has {', '.join(names)}"


def _direct(keys: Sequence[str], section: str) -> list[str]:
    """The keys and sections directly in a section; in the section "", those of the top."""
    prefix = f"{section}." if section else ""
    inside = (key.removeprefix(prefix).split(".")[0] for key in keys if key.startswith(prefix))
    return [prefix + name for name in dict.fromkeys(inside)]
