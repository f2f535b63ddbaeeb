"""TRL's side of `reward.py`, set up as an experienced user would, and the pairs of our own steps.

    python benchmarks/reward_peer.py train PAIRS-OF-A-MICROBATCH CONFIG
    python benchmarks/reward_peer.py count once|twice CONFIG

`train` runs RewardTrainer on the token ids of our stores and the model of one of our configurations: batches grouped by
length, SDPA, the same LoRA with a trained head, AdamW (fused), fp32, no gradient checkpointing, nothing saved or
reported; microbatches are accumulated to the tokens of our step, as near as whole ones come. The last line is JSON: the
clock after each step, the tokens of each step without padding, the tokens of an average pair, the last loss. `count`
prints the tokens of each step of our run, which stores prompts once or twice per pair; it counts them twice.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from typing import Any

from trl_settings import ON_A_CPU

from llmtrain.config.load import load_config
from llmtrain.config.recipes import RewardStageConfig
from llmtrain.data.chat.tokenizer import ChatTokenizer, open_chat_tokenizer
from llmtrain.data.loader.batches import SingleProcess
from llmtrain.data.loader.plan import plan_data
from llmtrain.data.packing.pairs import collate_pairs, pack_pairs
from llmtrain.data.store.kinds import build_pair_stores
from llmtrain.data.store.token_store import TokenStore
from llmtrain.models.wrappers.reward_model import pooling_pad_id


def opened(config: RewardStageConfig) -> tuple[ChatTokenizer, TokenStore]:
    """The tokenizer and the pairs of a run."""
    chat = open_chat_tokenizer(config.model, config.tokenizer, config.data, "completion")
    return chat, build_pair_stores(config.data, chat.encoder, report=print).train[0]


def pair_tokens(store: TokenStore) -> float:
    """Tokens of an average pair."""
    return store.num_tokens / (store.num_documents / 2)


def count(config: RewardStageConfig, share_prompts: bool) -> dict[str, Any]:
    """Tokens of the pairs of each step of our run."""
    _, store = opened(config)
    packing = pack_pairs(store, config.data.max_seq_len, share_prompts=share_prompts)
    source = plan_data(config, [packing], [], SingleProcess()).batches(collate_pairs, SingleProcess())
    tokens = []
    while (step := source.next_step()) is not None:
        source.advance()
        tokens.append(sum(sum(batch.segment_lengths) + 2 * sum(batch.prefix_lengths) for batch in step))
    return {"tokens": tokens, "pair_tokens": pair_tokens(store)}


def train(config: RewardStageConfig, batch: int, folder: str) -> dict[str, Any]:
    """A run of RewardTrainer."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForSequenceClassification, TrainerCallback
    from trl import RewardConfig, RewardTrainer

    seconds: list[float] = []
    tokens: list[int] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
            seconds.append(time.perf_counter())

    chat, store = opened(config)
    offsets = store.document_offsets
    documents = [store.tokens[offsets[i] : offsets[i + 1]].tolist() for i in range(store.num_documents)]
    rows = [
        {"chosen_ids": chosen, "rejected_ids": rejected, "length": max(len(chosen), len(rejected))}
        for chosen, rejected in zip(documents[::2], documents[1::2], strict=True)
    ]
    pad_token_id = pooling_pad_id(chat.tokenizer, chat.encoder.end_of_turn_ids)
    chat.tokenizer.pad_token = chat.tokenizer.convert_ids_to_tokens(pad_token_id)
    step_tokens = statistics.mean(count(config, share_prompts=True)["tokens"])
    accumulation = max(1, round(step_tokens / pair_tokens(store) / batch))
    assert config.train.steps is not None
    adapter = config.adapter
    trainer = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(
            config.model.path,
            num_labels=1,
            pad_token_id=pad_token_id,
            attn_implementation="sdpa",
            dtype="float32",
        ),
        args=RewardConfig(
            output_dir=folder,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            train_sampling_strategy="group_by_length",
            remove_unused_columns=False,  # the sampler reads the lengths
            max_steps=config.train.steps,
            max_length=config.data.max_seq_len,
            learning_rate=config.optim.lr,
            logging_steps=1,
            **ON_A_CPU,
            dataloader_num_workers=0,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=chat.tokenizer,
        peft_config=LoraConfig(
            r=adapter.rank,
            lora_alpha=int(adapter.alpha),
            target_modules="all-linear",
            modules_to_save=["score"],
            task_type="SEQ_CLS",
        ),
        callbacks=[Clock()],
    )
    collate = trainer.data_collator

    def counted(examples: list[dict[str, Any]]) -> Any:
        tokens.append(sum(len(example["chosen_ids"]) + len(example["rejected_ids"]) for example in examples))
        return collate(examples)

    trainer.data_collator = counted
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    steps = range(0, accumulation * len(seconds), accumulation)
    return {
        "seconds": seconds,
        "tokens": [sum(tokens[step : step + accumulation]) for step in steps],
        "pair_tokens": pair_tokens(store),
        "loss": float(losses[-1]),
    }


def main() -> None:
    task, how, path = sys.argv[1:]
    config = load_config(RewardStageConfig, [path])
    if task == "count":
        print(json.dumps(count(config, share_prompts=how == "once")))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(train(config, int(how), folder)))


if __name__ == "__main__":
    main()
