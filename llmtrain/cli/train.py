"""The verbs that train: `llmtrain pretrain|sft|rlhf|tokenizer CONFIG [key=value ...]`.

The scripts in `recipes/` and `tokenizer/` call the same functions. The schema is imported within the command, so that
Ctrl-C is one line from the first moment on, and a recipe only after its configuration has been read and the allocator
set: that import takes seconds and makes tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from llmtrain.recipes.command import command, resumable_command, run_recipe
from llmtrain.system.terminal import say

if TYPE_CHECKING:
    from llmtrain.config.recipes import PretrainConfig, SftConfig
    from llmtrain.config.tokenizer import TokenizerTrainConfig
    from llmtrain.system.stop_signal import StopSignal


def pretrain(argv: Sequence[str] | None = None) -> None:
    """Pretrain a model; `argv` None: the command line's."""
    with resumable_command() as stop:
        with stop.deferred():
            from llmtrain.config.recipes import PretrainConfig

        run_recipe(PretrainConfig, partial(_pretrain, stop=stop), argv)


def sft(argv: Sequence[str] | None = None) -> None:
    """Fine-tune a model on instructions and chats."""
    with resumable_command() as stop:
        with stop.deferred():
            from llmtrain.config.recipes import SftConfig

        run_recipe(SftConfig, partial(_sft, stop=stop), argv)


def rlhf(argv: Sequence[str] | None = None) -> None:
    """Train a reward model, a policy on preferences, a policy on rewards, or several of them in turn."""
    with resumable_command() as stop:
        with stop.deferred():
            from llmtrain.recipes import rlhf as rlhf_recipe

        rlhf_recipe.start(stop, argv)


def tokenizer(argv: Sequence[str] | None = None) -> None:
    """Train a tokenizer."""
    with command():
        from llmtrain.config.tokenizer import TokenizerTrainConfig

        run_recipe(TokenizerTrainConfig, _tokenizer, argv)


def _pretrain(config: PretrainConfig, stop: StopSignal) -> None:
    with stop.deferred():
        from llmtrain.recipes.pretrain import run_pretrain

    run_pretrain(config, stop)


def _sft(config: SftConfig, stop: StopSignal) -> None:
    with stop.deferred():
        from llmtrain.recipes.sft import run_sft

    run_sft(config, stop)


def _tokenizer(config: TokenizerTrainConfig) -> None:
    from llmtrain.tokenizers.train import train_tokenizer

    train_tokenizer(config, say)
