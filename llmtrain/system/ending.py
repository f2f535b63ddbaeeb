"""How one rank ends a launch, as the other ranks learn of it: by an error, a kill, a hang, or a signal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["failed", "lost", "hung", "interrupted"]


@dataclass(frozen=True)
class Ending:
    """The end of a rank, which ends all."""

    kind: Kind
    rank: int
    host: str
    reason: str  # one line
    status: int  # that every rank ends with

    @property
    def line(self) -> str:
        """What the other ranks print in place of the errors of their collectives."""
        who = f"rank {self.rank} ({self.host})"
        match self.kind:
            case "failed":
                return f"stopped: {who} failed: {self.reason}"
            case "lost":
                return f"stopped: {who} is gone: {self.reason}"
            case "hung":
                return f"stopped: {who} hangs: {self.reason}"
            case "interrupted":
                return f"interrupted {self.reason}; start the same command again to continue"

    def is_printed_by(self, rank: int, environment: Mapping[str, str]) -> bool:
        """Whether a rank prints the line: the first of all others does, and the first of each node for its own log."""
        if rank == self.rank:
            return False  # it has said why itself
        if self.kind == "interrupted":
            return rank == 0
        return rank == (1 if self.rank == 0 else 0) or environment.get("LOCAL_RANK") == "0"


class LaunchEnded(Exception):
    """Another rank has ended the launch, and so this one."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.line)
        self.ending = ending
