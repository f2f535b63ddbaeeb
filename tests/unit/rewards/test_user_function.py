"""What says which code a user's reward is: its file, and every file of the user's that it takes something from."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmtrain.rewards.user_function import load_function

REWARD = "{line}\ndef f(prompts, responses):\n    {inner}\n    return [1.0 for _ in responses]\n"
FILES = {
    "constants.py": "SCALE = 1.0\n",
    "lib/__init__.py": "",
    "lib/text/__init__.py": "from .deep import WORDS\n",
    "lib/text/deep.py": "WORDS = {'good': 1.0}\n",
}


@pytest.fixture(params=["beside the reward", "elsewhere"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of modules on Python's path; the reward goes to `folder/../rewards` or beside them."""
    folder = tmp_path / ("rewards" if request.param == "beside the reward" else "modules")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (tmp_path / "rewards").mkdir(exist_ok=True)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield folder
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("constants", "lib")]:
        del sys.modules[name]


def code_of(folder: Path, line: str, inner: str) -> dict[str, str]:
    forget()
    file = folder.parent / "rewards" / "mine.py"
    file.write_text(REWARD.format(line=line, inner=inner))
    return dict(load_function(f"{file}:f", "rewards", {}).code)


@pytest.mark.parametrize(
    ("line", "inner", "changed"),
    [
        ("import constants", "", "constants.py"),
        ("from constants import SCALE", "", "constants.py"),
        ("from constants import *", "", "constants.py"),
        ("from constants import SCALE as S", "", "constants.py"),
        ("", "from constants import SCALE", "constants.py"),
        ("from lib import text", "", "lib/text/deep.py"),
        ("from lib.text import WORDS", "", "lib/text/deep.py"),
        ("from lib.text import WORDS", "", "lib/text/__init__.py"),
        ("from lib.text import WORDS", "", "lib/__init__.py"),
        ("import lib.text.deep", "", "lib/text/deep.py"),
        ("import importlib\nheld = importlib.import_module('constants')", "", "constants.py"),
    ],
)
def test_what_a_reward_imports_in_any_way_is_part_of_its_code(
    folder: Path, line: str, inner: str, changed: str
) -> None:
    before = code_of(folder, line, inner)
    assert before == code_of(folder, line, inner)
    (folder / changed).write_text(FILES[changed] + "# changed\n")
    after = code_of(folder, line, inner)
    assert {name for name in before if before[name] != after[name]} == {changed} and before.keys() == after.keys()


@pytest.mark.parametrize(
    "line",
    [
        "import json, math, numpy",
        "from numpy import linalg",
        "try:\n    import no_such_module\nexcept ImportError:\n    pass",
        "from __future__ import annotations",
        "import llmtrain.batch",
    ],
)
def test_what_is_not_the_users_is_no_part_of_it(folder: Path, line: str) -> None:
    assert code_of(folder, line, "from . import nothing").keys() == {"function", "mine.py"}


def test_a_module_that_is_imported_later_is_not_run_before(folder: Path) -> None:
    (folder / "constants.py").write_text("raise SystemExit('was run')\n")
    assert "constants.py" in code_of(folder, "", "import constants")
