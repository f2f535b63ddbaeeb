"""The verbs that train: `llmtrain pretrain|sft|rlhf|tokenizer CONFIG [key=value ...]`.

The scripts in `recipes/` and `tokenizer/` call the same functions. A recipe is imported only after its configuration
has been read and the allocator set: the import takes seconds and makes tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmtrain.config.recipes import PretrainConfig, SftConfig
from llmtrain.config.sections import TokenizerTrainConfig
from llmtrain.recipes import rlhf as rlhf_recipe
from llmtrain.recipes.command import run_recipe


def pretrain(argv: Sequence[str] | None = None) -> None:
    """Pretrain a model; `argv` None: the command line's."""
    run_recipe(PretrainConfig, _pretrain, argv)


def sft(argv: Sequence[str] | None = None) -> None:
    """Fine-tune a model on instructions and chats."""
    run_recipe(SftConfig, _sft, argv)


def rlhf(argv: Sequence[str] | None = None) -> None:
    """Train a reward model, a policy on preferences, a policy on rewards, or several of them in turn."""
    rlhf_recipe.start(argv)


def tokenizer(argv: Sequence[str] | None = None) -> None:
    """Train a tokenizer."""
    run_recipe(TokenizerTrainConfig, _tokenizer, argv)


def _pretrain(config: PretrainConfig) -> None:
    from llmtrain.recipes.pretrain import run_pretrain

    run_pretrain(config)


def _sft(config: SftConfig) -> None:
    from llmtrain.recipes.sft import run_sft

    run_sft(config)


def _tokenizer(config: TokenizerTrainConfig) -> None:
    from llmtrain.tokenizers.train import train_tokenizer

    train_tokenizer(config, print)
