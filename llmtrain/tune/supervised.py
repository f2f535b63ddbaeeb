"""Start a command that ends with its parent: `python -m llmtrain.tune.supervised PARENT_PID COMMAND ...`."""

from __future__ import annotations

import os
import sys

from llmtrain.system.parent import end_with


def main() -> None:
    """Ask for the signal, then become the command."""
    parent, *command = sys.argv[1:]
    if not end_with(int(parent)):
        return  # it was killed before the kernel was asked
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
