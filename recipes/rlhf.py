"""`python recipes/rlhf.py CONFIG.yaml [key=value ...]`: the recipe is llmtrain/recipes/rlhf.py."""

import sys

from llmtrain.recipes.rlhf import main

if __name__ == "__main__":
    main(sys.argv[1:])
