"""TRL's side of `sft.py`, set up as one who knows it would, and the tokens of our own steps.

    python benchmarks/sft_peer.py packed|unpacked|count CONFIG

`packed` and `unpacked` run SFTTrainer on the rows and model of one of our configurations: conversational prompt and
completion, loss on the completion, SDPA, AdamW (fused), fp32, no gradient checkpointing, nothing saved or reported.
The last line is JSON: the clock after each step, the tokens of each step without padding, the last loss. `count` prints
the tokens of each step of our run.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_settings import ON_A_CPU

from llmtrain.config.load import load_config
from llmtrain.config.recipes import SftConfig

if TYPE_CHECKING:
    from trl import SFTConfig

UNPACKED_ROWS = 8


def count(config: SftConfig) -> list[int]:
    """Input tokens of each step of our run."""
    from llmtrain.data.chat.tokenizer import open_chat_tokenizer
    from llmtrain.data.loader.batches import SingleProcess, collate
    from llmtrain.data.loader.plan import plan_data
    from llmtrain.data.packing.documents import pack_documents
    from llmtrain.data.store.kinds import build_chat_stores

    chat = open_chat_tokenizer(config.model, config.tokenizer, config.data, config.data.loss_on)
    stores = build_chat_stores(config.data, chat.encoder, report=print)
    packs = [pack_documents(store, config.data.max_seq_len) for store in stores.train]
    source = plan_data(config, packs, [], SingleProcess()).batches(collate, SingleProcess())
    tokens = []
    while (step := source.next_step()) is not None:
        source.advance()
        tokens.append(sum(batch.input_ids.numel() for batch in step))
    return tokens


def trl_arguments(folder: str | Path, **settings: Any) -> SFTConfig:
    """These settings of SFTTrainer, and those of every run: fp32 on a CPU, a constant rate, nothing saved."""
    from trl import SFTConfig

    return SFTConfig(
        output_dir=str(folder),
        **ON_A_CPU,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        **settings,
    )


def train(config: SftConfig, is_packed: bool, folder: str) -> dict[str, Any]:
    """A run of SFTTrainer."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTTrainer

    seconds: list[float] = []
    tokens: list[int] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
            seconds.append(time.perf_counter())

    rows = [json.loads(line) for line in Path(config.data.train[0].path).read_text(encoding="utf-8").splitlines()]
    dataset = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["response"]}],
            }
            for row in rows
        ]
    )
    rows_per_batch = 1 if is_packed else UNPACKED_ROWS
    accumulation = config.train.global_batch_tokens // config.data.max_seq_len if is_packed else 1
    assert config.train.steps is not None
    adapter = config.adapter
    lora = LoraConfig(r=adapter.rank, lora_alpha=int(adapter.alpha), target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(config.model.path, attn_implementation="sdpa", dtype="float32"),
        args=trl_arguments(
            folder,
            per_device_train_batch_size=rows_per_batch,
            gradient_accumulation_steps=accumulation,
            max_steps=config.train.steps,
            max_length=config.data.max_seq_len,
            packing=is_packed,
            learning_rate=config.optim.lr,
            logging_steps=1,
        ),
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(config.model.path),
        peft_config=lora if adapter.kind == "lora" else None,
        callbacks=[Clock()],
    )
    collate = trainer.data_collator

    def counted(examples: list[dict[str, Any]]) -> Any:
        tokens.append(sum(len(example["input_ids"]) for example in examples))
        return collate(examples)

    trainer.data_collator = counted
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    steps = range(0, accumulation * len(seconds), accumulation)
    return {
        "seconds": seconds,
        "tokens": [sum(tokens[step : step + accumulation]) for step in steps],
        "loss": float(losses[-1]),
    }


def main() -> None:
    task, path = sys.argv[1:]
    config = load_config(SftConfig, [path])
    if task == "count":
        print(json.dumps(count(config)))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(train(config, task == "packed", folder)))


if __name__ == "__main__":
    main()
