"""Instruction tuning beside TRL's SFTTrainer: the same rows, order, masks and settings give the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from tiny_chat import write_config, write_model
from tiny_run import SFT, metrics, run_here
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig as TrlConfig
from trl import SFTTrainer

from llmtrain.config.load import load_config
from llmtrain.config.recipes import SftConfig
from llmtrain.data.loader.order import SampleOrder
from llmtrain.train.checkpoint import Checkpoint

# Of TRL and what it calls.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

STEPS, ROWS_PER_STEP, MAX_SEQ_LEN = 20, 4, 128
TOLERANCE = 1e-4
# ChatML whose answers are marked, so that TRL finds them too.
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}"
    "{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_long_rows(path: Path, num_rows: int) -> list[dict[str, Any]]:
    """Rows that are longer than half a pack, so that each fills one: a step's packs are a step's rows."""
    rows = []
    for i in range(num_rows):
        question = " ".join("abcdefgh"[(i + j) % 8] * (2 + (i * j) % 4) for j in range(10 + i % 3))
        answer = " ".join("hgfedcba"[(i * j) % 8] * 2 for j in range(7 + i % 7))
        rows.append({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return rows


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[dict[str, Any]]]:
    """Our runs with LoRA: each pack alone (`unpacked`), and all packs of a step in one sequence (`packed`)."""
    folder = tmp_path_factory.mktemp("trl")
    model = write_model(folder / "model")
    (model / "chat_template.jinja").write_text(MARKED)
    rows = write_long_rows(folder / "rows.jsonl", num_rows=60)
    for name, microbatch_tokens in {"unpacked": MAX_SEQ_LEN, "packed": ROWS_PER_STEP * MAX_SEQ_LEN}.items():
        config = write_config(
            folder / name,
            model,
            [folder / "rows.jsonl"],
            adapter={"kind": "lora", "rank": 4, "alpha": 8},
            data={"max_seq_len": MAX_SEQ_LEN, "eval_fraction": 0.0},
            train={
                "steps": STEPS,
                "global_batch_tokens": ROWS_PER_STEP * MAX_SEQ_LEN,
                "microbatch_tokens": microbatch_tokens,
            },
            optim={"lr": 1e-2, "schedule": "constant", "warmup_steps": 0},
            eval={"every": None},
            checkpoint={"every": 1, "keep": STEPS + 1},
        )
        ended = run_here(config, recipe=SFT)
        assert (ended.code, ended.err) == (0, "")
    return folder, model, rows


def rows_in_our_order(folder: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of our steps, in turn: packs are made longest first, and then shuffled."""
    config = load_config(SftConfig, [str(folder / "unpacked" / "config.yaml")])
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    lengths = [len(tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=False)) for row in rows]
    assert all(MAX_SEQ_LEN / 2 < length <= MAX_SEQ_LEN for length in lengths)
    packs = sorted(range(len(rows)), key=lambda i: (-lengths[i], i))
    order = SampleOrder([len(packs)], None, config.run.seed)
    return [rows[packs[order(position)[1]]] for position in range(STEPS * ROWS_PER_STEP)]


def test_losses_and_the_adapter_are_those_of_trl(ours: tuple[Path, Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    folder, base, rows = ours
    trainer = SFTTrainer(
        model=initial_adapter(folder, base),
        args=TrlConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=ROWS_PER_STEP,
            max_steps=STEPS,
            max_length=None,
            packing=False,
            assistant_only_loss=True,
            train_sampling_strategy="sequential",
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            adam_beta1=0.9,
            adam_beta2=0.999,
            weight_decay=0.0,
            max_grad_norm=1.0,
            activation_checkpointing=False,
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            logging_steps=1,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows_in_our_order(folder, rows)),
        processing_class=AutoTokenizer.from_pretrained(base),
    )
    trainer.train()
    theirs = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    losses = [row["loss"] for row in metrics(folder / "unpacked" / "run") if "loss" in row]
    assert len(theirs) == len(losses) == STEPS
    assert losses == pytest.approx(theirs, abs=TOLERANCE)
    final = adapter_of(folder / "unpacked", STEPS)
    weights = {name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert len(final) == len(weights)
    for name, weight in final.items():
        their_name = name.replace("model.model.", "base_model.model.model.", 1)
        torch.testing.assert_close(weight, weights[their_name], rtol=0, atol=TOLERANCE)


def test_a_step_laid_in_one_sequence_trains_as_row_by_row(ours: tuple[Path, Path, list[dict[str, Any]]]) -> None:
    folder, _, _ = ours
    losses = {
        name: [row["loss"] for row in metrics(folder / name / "run") if "loss" in row]
        for name in ("packed", "unpacked")
    }
    assert losses["packed"] == pytest.approx(losses["unpacked"], abs=1e-5)
    packed, unpacked = (adapter_of(folder / name, STEPS) for name in ("packed", "unpacked"))
    for name, weight in packed.items():
        torch.testing.assert_close(weight, unpacked[name], rtol=0, atol=TOLERANCE)


def adapter_of(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return Checkpoint(folder / "run" / "checkpoints" / f"step-{step:08d}").read_all("model")


def initial_adapter(folder: Path, base: Path) -> PeftModel:
    """The base with an adapter that holds what ours started with."""
    from llmtrain.models.adapters.lora import add_adapter

    config = load_config(SftConfig, [str(folder / "unpacked" / "config.yaml")])
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="sdpa", dtype=torch.float32)
    return add_adapter(model, config.adapter, (), config.run.seed)
