"""What one run exports the next one starts from, each in a process of its own, for families of several mechanisms."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_run
import yaml
from families.steps import RECIPES, configuration, write_base, write_rows

CHAIN = ("pretrain", "sft", "reward")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("family", ["mistral3", "mamba", "qwen3_moe"])
def test_each_run_starts_from_the_folder_of_the_one_before(family: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    write_base(base, family)
    write_rows(tmp_path)
    for step in CHAIN:
        place = tmp_path / step
        place.mkdir()
        config = place / "config.yaml"
        config.write_text(yaml.safe_dump(configuration(step, base, tmp_path)))
        ended = tiny_run.run(config, recipe=RECIPES[step])
        assert ended.code == 0, ended.err
        base = place / "run" / "model"
