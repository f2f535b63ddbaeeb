"""`python recipes/pretrain.py CONFIG [key=value ...]` is `llmtrain pretrain` of a checkout."""

from llmtrain.cli.train import pretrain

if __name__ == "__main__":
    pretrain()
