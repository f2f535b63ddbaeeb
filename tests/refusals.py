"""What a verb says that stops at once, as it must: one line of error, exit code 2."""

from __future__ import annotations

import pytest

from llmtrain.cli.main import main


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The line."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    return error
