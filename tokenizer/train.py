"""Text to a byte-level BPE tokenizer: `python tokenizer/train.py CONFIG [key=value ...]`, or `llmtrain tokenizer`."""

from llmtrain.cli.train import tokenizer

if __name__ == "__main__":
    tokenizer()
