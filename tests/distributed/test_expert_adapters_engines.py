"""An adapter on experts under two processes is that of one; engines that hold parts of weights refuse it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from families.steps import configuration, write_base, write_rows
from launch import launch
from safetensors.torch import load_file
from tiny_run import SFT

EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
TOLERANCE = 2e-5


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_what_two_processes_train_is_that_of_one(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    write_base(base, "mixtral")
    write_rows(tmp_path)
    trained = []
    for engine in (None, "cpu"):
        place = tmp_path / str(engine)
        place.mkdir()
        tree = configuration("lora", base, tmp_path)
        tree["run"]["dir"] = str(place / "run")
        tree["adapter"] |= {"target": ["q_proj"], "target_parameters": EXPERTS}
        tree["data"]["max_seq_len"] = 64
        # Three packs a step: one of two processes gets one more than the other, which gets an empty one.
        tree["train"] |= {"steps": 3, "global_batch_tokens": 3 * 64, "microbatch_tokens": 64}
        (place / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
        launch(SFT, [str(place / "config.yaml")], config=engine, output=place / "process")
        trained.append(load_file(place / "run" / "model" / "adapter_model.safetensors"))
    one, two = trained
    assert one.keys() == two.keys() and any("experts" in name for name in one)
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=TOLERANCE, msg=name)
