"""Text to a byte-level BPE tokenizer: `python tokenizer/train.py CONFIG.yaml [key=value ...]`."""

from __future__ import annotations

from llmtrain.config.sections import TokenizerTrainConfig
from llmtrain.recipes.command import run_recipe
from llmtrain.tokenizers.train import train_tokenizer


def main(config: TokenizerTrainConfig) -> None:
    """Train the tokenizer of a configuration, telling what was read and how well it compresses."""
    train_tokenizer(config, print)


if __name__ == "__main__":
    run_recipe(TokenizerTrainConfig, main)
