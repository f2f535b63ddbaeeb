"""One run of `transformers.Trainer` for `pretrain.py`, set up as one who knows it would.

    python benchmarks/trainer_peer.py rows|documents|show CONFIG MICROBATCH_TOKENS

It takes the model, the token store and the optimizer's settings of one of our configurations. Rows are the store's
tokens, cut every `max_seq_len` with no padding, held in memory as tensors; attention is SDPA, causal over each row
(`rows`) or, by positions that restart, over each document (`documents`); AdamW is fused; nothing is evaluated, saved
or reported; rows come from the main process, since workers would only take cores from the arithmetic. The last line
is JSON: the clock after each step, and the last loss. `show` prints the configuration instead.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmtrain.batch import IGNORE_INDEX
from llmtrain.config.load import load_config
from llmtrain.config.recipes import PretrainConfig
from llmtrain.data.store.text import build_text_stores
from llmtrain.data.store.token_store import TokenStore
from llmtrain.data.tokenize import load_tokenizer
from llmtrain.models.load import load_model


class Rows(Dataset[dict[str, Tensor]]):
    """The tokens of a store in rows of `max_seq_len`; the last, shorter row is left out.

    With `isolate_documents`, positions restart at each document, whose first token is not predicted.
    """

    def __init__(self, store: TokenStore, max_seq_len: int, isolate_documents: bool) -> None:
        num_tokens = store.num_tokens // max_seq_len * max_seq_len
        tokens = store.tokens[:num_tokens].astype(np.int64)
        columns = {"input_ids": tokens, "labels": tokens}
        if isolate_documents:
            index = np.arange(num_tokens)
            document = np.searchsorted(store.document_offsets, index, side="right") - 1
            start = np.maximum(store.document_offsets[document], index // max_seq_len * max_seq_len)
            labels = np.where(index == start, IGNORE_INDEX, tokens)
            columns |= {"labels": labels, "position_ids": index - start}
        self._rows = {name: torch.from_numpy(column).view(-1, max_seq_len) for name, column in columns.items()}

    def __len__(self) -> int:
        return len(self._rows["input_ids"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: rows[index] for name, rows in self._rows.items()}


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Rows of equal length as one batch."""
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


class Clock(TrainerCallback):
    """Reads the clock after each optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any) -> None:
        self.seconds.append(time.perf_counter())


def training_arguments(config: PretrainConfig, microbatch_tokens: int, output_dir: Path) -> TrainingArguments:
    """Trainer's settings for the same steps."""
    optim, train = config.optim, config.train
    assert train.steps is not None and optim.max_grad_norm is not None
    assert optim.name == "adamw" and optim.schedule == "constant" and optim.warmup_steps == 0
    return TrainingArguments(
        output_dir=str(output_dir),
        per_device_train_batch_size=microbatch_tokens // config.data.max_seq_len,
        gradient_accumulation_steps=train.global_batch_tokens // microbatch_tokens,
        max_steps=train.steps,
        optim="adamw_torch_fused",
        learning_rate=optim.lr,
        lr_scheduler_type="constant",
        adam_beta1=optim.beta1,
        adam_beta2=optim.beta2,
        adam_epsilon=optim.eps,
        weight_decay=optim.weight_decay,
        max_grad_norm=optim.max_grad_norm,
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        logging_steps=config.log.every,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        use_cpu=True,
        seed=config.run.seed,
    )


def new_model(config: PretrainConfig) -> PreTrainedModel:
    """The model that the recipe would train, with the attention that `transformers` recommends."""
    assert config.tokenizer.path is not None
    tokenizer = load_tokenizer(config.tokenizer.path)
    model = load_model(config.model, tokenizer, max_seq_len=config.data.max_seq_len, seed=config.run.seed)
    model.set_attn_implementation("sdpa")
    model.config.use_cache = False
    return model


def main() -> None:
    task, path, microbatch_tokens = sys.argv[1:]
    assert task in ("rows", "documents", "show"), task
    config = load_config(PretrainConfig, [path])
    model = new_model(config)
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(config, int(microbatch_tokens), Path(folder))
        if task == "show":
            print(json.dumps(arguments.to_dict(), indent=1, default=str))
            print(model.config.to_json_string())
            return
        assert config.tokenizer.path is not None
        stores = build_text_stores(config.data, load_tokenizer(config.tokenizer.path), report=print)
        clock = Clock()
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=Rows(stores.train[0], config.data.max_seq_len, isolate_documents=task == "documents"),
            data_collator=collate,
            callbacks=[clock],
        )
        trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    print(json.dumps({"seconds": clock.seconds, "loss": float(losses[-1])}))


if __name__ == "__main__":
    main()
