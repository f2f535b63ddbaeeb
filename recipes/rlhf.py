"""`python recipes/rlhf.py CONFIG [key=value ...]` is `llmtrain rlhf` of a checkout."""

from llmtrain.cli.train import rlhf

if __name__ == "__main__":
    rlhf()
