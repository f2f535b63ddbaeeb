"""`python recipes/sft.py CONFIG.yaml [key=value ...]`: the recipe is llmtrain/recipes/sft.py."""

from llmtrain.config.recipes import SftConfig
from llmtrain.recipes.command import run_recipe
from llmtrain.recipes.sft import main

if __name__ == "__main__":
    run_recipe(SftConfig, main)
