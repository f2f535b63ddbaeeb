"""What a run exports opens in transformers 4.57 as it does here: ids, logits, chat template, where it stops."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_chat import write_config, write_model, write_rows
from tiny_llama import LLAMA3_ROPE
from tiny_run import SFT, run_here
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

TEXT = "<|im_start|>user\nHello, 12 \u00e9<|im_end|>"
OPENED = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
folder, text = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
inputs = tokenizer(text, return_tensors="pt")
model.generate(**inputs, max_new_tokens=2)
print(json.dumps({
    "version": transformers.__version__,
    "ids": inputs.input_ids[0].tolist(),
    "logits": model(**inputs).logits[0].detach().tolist(),
    "chat": tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False),
    "stops": GenerationConfig.from_pretrained(folder).eos_token_id,
}))
"""


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """transformers 4.57 and what it needs beside this environment's torch."""
    folder = tmp_path_factory.mktemp("transformers-4.57")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), "transformers==4.57.*"]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"transformers 4.57 cannot be installed here: {done.stderr.strip().splitlines()[-1:]}")
    return folder


def opened(folder: Path, packages: Path | None = None) -> dict[str, object]:
    environment = os.environ | ({} if packages is None else {"PYTHONPATH": str(packages)})
    command = [sys.executable, "-c", OPENED, str(folder), TEXT]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@pytest.mark.soak
def test_exports_open_in_transformers_4(tmp_path: Path, older: Path) -> None:
    base = write_model(tmp_path / "base", spread=0.3)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.config.rope_parameters = dict(LLAMA3_ROPE)
    model.bfloat16().save_pretrained(base)
    GenerationConfig(eos_token_id=[257, 256], temperature=0.6, do_sample=True).save_pretrained(base)
    rows = write_rows(tmp_path / "rows.jsonl", seed=1, num_rows=40)
    for kind, name in (("none", "model"), ("lora", "merged")):
        adapter = {"kind": kind, "merge": kind == "lora"}
        run = write_config(tmp_path / kind, base, [rows], adapter=adapter, train={"steps": 2}, eval={"every": None})
        assert run_here(run, recipe=SFT).code == 0
        folder = tmp_path / kind / "run" / name
        here, there = opened(folder), opened(folder, older)
        assert str(there.pop("version")).startswith("4.57") and str(here.pop("version")).startswith("5.")
        torch.testing.assert_close(torch.tensor(there.pop("logits")), torch.tensor(here.pop("logits")))
        assert there == here and there["stops"] == [257, 256]
        assert there["ids"] == AutoTokenizer.from_pretrained(base)(TEXT).input_ids
