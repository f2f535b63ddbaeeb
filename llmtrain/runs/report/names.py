"""Short names of runs: what their folders' paths do not share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmtrain.runs.report.svg import plain

COMMON = {"run", "pretrain", "sft", "reward", "preference", "dpo", "policy", "ppo"}
"""Names that say little by themselves."""


def short_names(folders: Sequence[Path]) -> list[str]:
    """Of one folder its name, after its parent's if that is `run` or a stage's; of several what of their paths differs.

    The latter are the parts from the first to the last that differs.
    """
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < 2:
        return [plain(str(Path(*each[-2 if each[-1] in COMMON else -1 :]))) for each in parts]
    shared = min(map(len, parts)) - 1
    start = next((i for i in range(shared) if len({each[i] for each in parts}) > 1), shared)
    end = next((i for i in range(shared - start + 1) if len({each[-1 - i] for each in parts}) > 1), 0)
    return [plain("/".join(each[start : len(each) - end])) for each in parts]
