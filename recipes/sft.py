"""`python recipes/sft.py CONFIG [key=value ...]` is `llmtrain sft` of a checkout."""

from llmtrain.cli.train import sft

if __name__ == "__main__":
    sft()
