"""docs/guide.md: every command in it runs, in the order in which a reader meets it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_demo import run_demo
from tiny_run import ROOT, environment

PAGE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
LIMIT_SECONDS = 900

pytestmark = [pytest.mark.slow, pytest.mark.timeout(LIMIT_SECONDS + 60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guide")


@pytest.mark.parametrize("block", BLOCKS, ids=[block.splitlines()[0] for block in BLOCKS])
def test_the_commands_of_the_guide_run(block: str, folder: Path) -> None:
    if block == "make demo\n":
        run_demo(folder)  # with a few steps per stage, after which not every stage is better than before
        assert (folder / "runs" / "demo" / "report.html").is_file()
        return
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=folder,
        env=environment() | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for written in re.findall(r"runs/guide/\w+\.html|run\.dir=(runs/guide/\w+)", block):
        assert not written or (folder / written / "model").is_dir()


def test_every_figure_that_the_guide_names_is_in_a_report(folder: Path) -> None:
    pages = [path.read_text(encoding="utf-8") for path in folder.glob("runs/**/report.html")]
    assert pages
    for title in ("Loss", "Speed", "Memory", "From rows read to tokens trained"):
        assert any(title in page for page in pages), title
