"""Runs by DPO, IPO and KTO beside those of TRL: the same rows, order and settings give the same losses and weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny_chat import write_config, write_model
from tiny_run import RLHF, metrics, run_here
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from llmtrain.config.load import load_config
from llmtrain.config.recipes import PreferenceStageConfig
from llmtrain.data.loader.order import SampleOrder
from llmtrain.models.adapters.lora import add_adapter
from llmtrain.train.checkpoint import Checkpoint

# Of TRL and what it calls.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

STEPS, PAIRS_PER_STEP, MAX_SEQ_LEN = 6, 3, 128
LOSS_TOLERANCE, WEIGHT_TOLERANCE = 1e-5, 1e-4
ADAPTERS = {"full": {}, "lora": {"adapter": {"kind": "lora", "rank": 4, "alpha": 8}}}
LRS = {"full": 1e-3, "lora": 1e-2}
# ChatML without a newline after a turn, which TRL would train and ours would not.
BARE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_long_pairs(path: Path, num_pairs: int) -> list[dict[str, Any]]:
    """Pairs that are longer than half a pack, so that each fills one: a step's packs are a step's pairs."""
    rows = []
    for i in range(num_pairs):
        question = f"{i} " + "abcdefgh"[i % 8] * (8 + i % 4)
        chosen, rejected = "hg" * (12 + i % 3), "ab" * (13 - i % 4)
        rows.append(
            {
                "prompt": [{"role": "user", "content": question}],
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
            }
        )
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return rows


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("dpo")
    model = write_model(folder / "model", spread=0.1)
    (model / "chat_template.jinja").write_text(BARE)
    return folder, write_long_pairs(folder / "pairs.jsonl", num_pairs=24)


def pairs_in_our_order(config: PreferenceStageConfig, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pairs of our steps, in turn: packs are made longest first, and then shuffled."""
    tokenizer = AutoTokenizer.from_pretrained(config.model.path)

    def laid(row: dict[str, Any]) -> int:
        turn, chosen, rejected = (len(row[name][0]["content"]) for name in ("prompt", "chosen", "rejected"))
        frame = len(tokenizer("<|im_start|>user\n<|im_end|><|im_start|>assistant\n")["input_ids"])
        whole = 2 * (frame + turn) + chosen + rejected + 2
        assert whole <= MAX_SEQ_LEN
        return whole - (frame + turn - 1)  # the prompt once, but for the token that predicts the answer

    lengths = [laid(row) for row in rows]
    assert all(length > MAX_SEQ_LEN / 2 for length in lengths)
    packs = sorted(range(len(rows)), key=lambda i: (-lengths[i], i))
    order = SampleOrder([len(packs)], None, config.run.seed)
    return [rows[packs[order(position)[1]]] for position in range(STEPS * PAIRS_PER_STEP)]


def initial(config: PreferenceStageConfig) -> PreTrainedModel | Any:
    """What ours started with: the base, with the adapter where there is one."""
    model = AutoModelForCausalLM.from_pretrained(config.model.path, attn_implementation="sdpa", dtype=torch.float32)
    return model if config.adapter.kind == "none" else add_adapter(model, config.adapter, (), config.run.seed)


def settings(folder: Path, rows_per_step: int, lr: float) -> dict[str, Any]:
    """The options of every trainer here."""
    return {
        "output_dir": str(folder / "theirs"),
        "per_device_train_batch_size": rows_per_step,
        "max_steps": STEPS,
        "max_length": None,
        "train_sampling_strategy": "sequential",
        "learning_rate": lr,
        "lr_scheduler_type": "constant",
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "activation_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
    }


def assert_same_weights(run: Path, model: nn.Module, prefix: str) -> None:
    """The last checkpoint of a run of ours holds what TRL trained, under names that begin with `prefix`."""
    final = Checkpoint(run / "checkpoints" / f"step-{STEPS:08d}").read_all("model")
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    assert len(final) == len(weights)
    for name, weight in final.items():
        their_name = prefix + name.removeprefix("model.")
        torch.testing.assert_close(weight, weights[their_name], rtol=0, atol=WEIGHT_TOLERANCE, msg=name)


@pytest.mark.parametrize("kind", list(ADAPTERS))
@pytest.mark.parametrize(("ours", "theirs"), [("dpo", "sigmoid"), ("ipo", "ipo")])
def test_losses_and_weights_are_those_of_trl(
    inputs: tuple[Path, list[dict[str, Any]]], tmp_path: Path, kind: str, ours: str, theirs: str
) -> None:
    folder, rows = inputs
    path = write_config(
        tmp_path / "ours",
        folder / "model",
        [folder / "pairs.jsonl"],
        preference={"loss": ours, "beta": 0.2},
        data={"max_seq_len": MAX_SEQ_LEN, "eval_fraction": 0.0},
        train={
            "steps": STEPS,
            "global_batch_tokens": PAIRS_PER_STEP * MAX_SEQ_LEN,
            "microbatch_tokens": 2 * MAX_SEQ_LEN,
        },
        optim={"lr": LRS[kind], "schedule": "constant", "warmup_steps": 0},
        eval={"every": None},
        **ADAPTERS[kind],
    )
    ended = run_here(path, recipe=RLHF)
    assert ended.code == 0, ended.err
    config = load_config(PreferenceStageConfig, [str(path)])
    trainer = DPOTrainer(
        model=initial(config),
        args=DPOConfig(**settings(tmp_path, PAIRS_PER_STEP, LRS[kind]), loss_type=[theirs], beta=0.2),
        train_dataset=Dataset.from_list(pairs_in_our_order(config, rows)),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
    )
    trainer.train()
    expected = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    losses = [row["loss"] for row in metrics(tmp_path / "ours" / "run") if "loss" in row]
    assert len(expected) == len(losses) == STEPS
    assert losses == pytest.approx(expected, abs=LOSS_TOLERANCE, rel=LOSS_TOLERANCE)

    assert_same_weights(tmp_path / "ours" / "run", trainer.model, "" if kind == "full" else "base_model.model.")


def test_kto_is_that_of_trl(inputs: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    """Of two answers each is the other's mismatch, in whatever order they come."""
    folder, pairs = inputs
    rows = [
        {"prompt": pairs[0]["prompt"], "completion": pairs[0]["chosen"], "label": True},
        {"prompt": pairs[1]["prompt"], "completion": pairs[1]["rejected"], "label": False},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    weights = {"desirable_weight": 1.2, "undesirable_weight": 0.9}
    path = write_config(
        tmp_path / "ours",
        folder / "model",
        [tmp_path / "rows.jsonl"],
        preference={"loss": "kto", "beta": 0.3, **weights},
        data={"max_seq_len": MAX_SEQ_LEN, "eval_fraction": 0.0},
        train={"steps": STEPS, "global_batch_tokens": MAX_SEQ_LEN, "microbatch_tokens": MAX_SEQ_LEN},
        optim={"lr": 1e-2, "schedule": "constant", "warmup_steps": 0},
        eval={"every": None},
        **ADAPTERS["lora"],
    )
    ended = run_here(path, recipe=RLHF)
    assert ended.code == 0, ended.err
    trainer = KTOTrainer(
        model=initial(load_config(PreferenceStageConfig, [str(path)])),
        args=KTOConfig(**settings(tmp_path, 2, 1e-2), beta=0.3, **weights),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
    )
    trainer.train()
    expected = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    found = [row for row in metrics(tmp_path / "ours" / "run") if "loss" in row]
    assert [row["loss"] for row in found] == pytest.approx(expected, abs=LOSS_TOLERANCE)
    assert max(row["kl"] for row in found) > 0.1
    assert_same_weights(tmp_path / "ours" / "run", trainer.model, "base_model.model.")
