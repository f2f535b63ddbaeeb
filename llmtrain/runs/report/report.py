"""The report of one or several runs: folders in, one HTML file out.

    read_run(folder) -> RunRecord -> sections -> page

It reads files only, so it works on a run that is still going and on one that was killed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from llmtrain.runs.record import read_run
from llmtrain.runs.report.names import short_names
from llmtrain.runs.report.page import page
from llmtrain.runs.report.sections import sections_of
from llmtrain.runs.report.svg import require_matplotlib
from llmtrain.system.files import one_line, write_bytes
from llmtrain.system.terminal import say as say_line

REPORT = "report.html"


def write_report(folders: Sequence[Path], output: Path | None = None, warn: Callable[[str], None] = say_line) -> Path:
    """Write the report of runs; `output` None: into the folder of the run, or here if there are several.

    Raises ValueError for a folder that is not a run's, and if matplotlib is missing.
    """
    require_matplotlib()
    records = [read_run(folder) for folder in folders]
    path = output or (folders[0] / REPORT if len(folders) == 1 else Path(REPORT))
    title = short_names(folders)[0] if len(folders) == 1 else f"{len(folders)} runs compared"
    text = page(title, list(sections_of(records, warn)), about=f"llmtrain {version('llmtrain')}")
    write_bytes(path, text.encode("utf-8"), "free some space or name another file with --output")
    return path


def report_run(folder: Path, say: Callable[[str], None]) -> None:
    """Write the report of a run that has just ended, into its folder, and say where; what goes wrong is one line."""
    try:
        say(f"report: {write_report([folder], warn=say)}")
    except Exception as error:  # whatever it is, the run is well
        say(f"warning: no report: {one_line(error)}")
