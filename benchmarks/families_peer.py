"""The peers' sides of `families.py`, in its process: TRL's trainer, which hands on the turn, and a bare loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sft_peer import trl_arguments
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
from trl import SFTTrainer

from llmtrain.batch import IGNORE_INDEX
from llmtrain.config.sections import OptimConfig

Steps = Sequence[Sequence[Tensor]]
"""The documents of each step, token ids."""


class Bare:
    """A bare loop over padded batches."""

    def __init__(self, model: PreTrainedModel, steps: Steps, config: OptimConfig) -> None:
        self.model, self.steps = model, iter(steps)
        self.losses: list[Tensor] = []
        assert config.max_grad_norm is not None
        self.max_grad_norm = config.max_grad_norm
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def step(self) -> None:
        texts = next(self.steps)
        ids = nn.utils.rnn.pad_sequence(list(texts), batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
        labels = nn.utils.rnn.pad_sequence(list(texts), batch_first=True, padding_value=IGNORE_INDEX)
        loss: Tensor = self.model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.detach())


class Turns(TrainerCallback):
    """After each step of TRL's trainer, one of each other way; the seconds of all."""

    def __init__(self, others: dict[str, Callable[[], object]]) -> None:
        self.others = others
        self.seconds: dict[str, list[float]] = {way: [] for way in ("trl", *others)}

    def on_train_begin(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        self.seconds["trl"].append(time.perf_counter() - self.started)
        for way, step in self.others.items():
            started = time.perf_counter()
            step()
            self.seconds[way].append(time.perf_counter() - started)
        self.started = time.perf_counter()


class Unpacked(SFTTrainer):
    """TRL's trainer, whose losses are kept."""

    losses: list[Tensor]

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)
        self.losses.append(loss)
        return loss


def make_trl(model: PreTrainedModel, steps: Steps, config: OptimConfig, folder: Path, turns: Turns) -> Unpacked:
    """TRL's trainer on token ids, a batch of documents per step, in their order."""
    vocabulary = {f"t{id_}": id_ for id_ in range(model.config.vocab_size)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary)), pad_token="t0")
    trainer = Unpacked(
        model=model,
        args=trl_arguments(
            folder,
            per_device_train_batch_size=len(steps[0]),
            max_steps=len(steps),
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            train_sampling_strategy="sequential",
            learning_rate=config.lr,
            adam_beta1=config.beta1,
            adam_beta2=config.beta2,
            adam_epsilon=config.eps,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            logging_strategy="no",
        ),
        train_dataset=Dataset.from_list([{"input_ids": text.tolist()} for texts in steps for text in texts]),
        processing_class=tokenizer,
        callbacks=[turns],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.losses = []
    return trainer
